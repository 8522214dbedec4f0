package greylist

import (
	"context"
	"iter"
	"strings"
)

// A Finder is a Store that finds some of its records without handing out all.
type Finder interface {
	// Find returns the records that a query matches, as All does, and may return
	// others too.
	Find(ctx context.Context, q Query) iter.Seq2[Entry, error]
}

// A Query says which records are wanted. The zero value matches all.
type Query struct {
	Kind Kind // 0: of any kind

	// What is in the text of that name, as it is stored in clear. Client and Sender
	// may be in Origin instead.
	Client, Sender, Rcpt string
}

// Matches reports whether a record is wanted.
func (q *Query) Matches(e Entry) bool {
	r := e.Record
	return (q.Kind == 0 || q.Kind == e.Key.Kind()) &&
		(strings.Contains(r.Client, q.Client) || strings.Contains(r.Origin, q.Client)) &&
		(strings.Contains(r.Sender, q.Sender) || strings.Contains(r.Origin, q.Sender)) && strings.Contains(r.Rcpt, q.Rcpt)
}

// Find returns the records of a store that a query matches, as All does.
func Find(ctx context.Context, s Store, q Query) iter.Seq2[Entry, error] {
	some := s.All(ctx)
	if f, ok := s.(Finder); ok {
		some = f.Find(ctx, q)
	}
	return func(yield func(Entry, error) bool) {
		for e, err := range some {
			if err == nil && !q.Matches(e) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}
