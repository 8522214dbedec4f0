package greylist

import (
	"context"
	"iter"
	"time"
)

// All returns all records, in no order. It ends at the first error.
func (g *Greylist) All(ctx context.Context) iter.Seq2[Entry, error] {
	return g.store.All(ctx)
}

// Times returns when a retry passes, zero if the record lets none pass by its
// age alone, and until when the record means something if it is not used again.
func (g *Greylist) Times(t time.Time, e Entry) (passes, expires time.Time) {
	r := e.Record
	r.clamp(t.UnixMilli())
	kind := e.Key.Kind()
	if kind == KindAttempt && r.State == Grey {
		passes = time.UnixMilli(r.First).Add(g.policy.PassTime)
	}
	return passes, time.UnixMilli(g.policy.expiry(kind, r))
}
