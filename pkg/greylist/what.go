package greylist

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"opensmtpd-filters/pkg/ipset"
)

// A What says which records an operator means, by what is stored in clear. The zero
// value means all.
type What struct{ client, sender, rcpt []pattern }

// WhatUsage is how a What is written.
const WhatUsage = "client=, sender= or rcpt= and a text, with * at either end for any"

var whatNames = map[string]func(*What) *[]pattern{
	"client": func(w *What) *[]pattern { return &w.client },
	"sender": func(w *What) *[]pattern { return &w.sender },
	"rcpt":   func(w *What) *[]pattern { return &w.rcpt },
	// As the log has them.
	"addr": func(w *What) *[]pattern { return &w.client },
	"name": func(w *What) *[]pattern { return &w.client },
	"from": func(w *What) *[]pattern { return &w.sender },
}

// IsWhat reports whether a word is a part of a What, as client=192.0.2.1.
func IsWhat(word string) bool {
	name, _, ok := strings.Cut(word, "=")
	return ok && whatNames[name] != nil
}

// ParseWhat reads words of a What, all of which have to be true of a record.
func ParseWhat(words []string) (w What, err error) {
	var errs []error
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		list := whatNames[name]
		if !ok || list == nil {
			errs = append(errs, fmt.Errorf("%s: want %s", quoted(word), WhatUsage))
			continue
		}
		p, err := parsePattern(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", quoted(word), err))
		}
		*list(&w) = append(*list(&w), p)
	}
	return w, errors.Join(errs...)
}

// Empty reports whether all records are meant.
func (w What) Empty() bool { return len(w.client)+len(w.sender)+len(w.rcpt) == 0 }

// A pattern is a text, in lower case, with anything before or after it.
type pattern struct {
	text          string
	before, after bool
	net           netip.Prefix // that it is; valid only without before and after
}

func parsePattern(s string) (p pattern, err error) {
	if s == "" {
		return p, errors.New("there is no text")
	}
	if s == NullSender {
		return pattern{text: s}, nil
	}
	s = unbracket(s)
	s, p.before = strings.CutPrefix(s, "*")
	s, p.after = strings.CutSuffix(s, "*")
	p.text = strings.ToLower(strings.TrimPrefix(s, "?")) // as the log marks names
	if strings.Contains(p.text, "*") {
		return p, errors.New("* stands at either end only")
	}
	if !p.before && !p.after {
		p.net, _ = ipset.ParsePrefix(strings.TrimPrefix(p.text, "net:"))
	}
	return p, nil
}

func (p *pattern) matches(s string) bool {
	switch {
	case s == "":
		return false
	case p.before && p.after:
		return strings.Contains(s, p.text)
	case p.before:
		return strings.HasSuffix(s, p.text)
	case p.after:
		return strings.HasPrefix(s, p.text)
	}
	return s == p.text
}

// client reports whether the pattern is that of a record's client: its address,
// name or origin.
func (p *pattern) client(r *Record) bool {
	addr, name, _ := strings.Cut(strings.ToLower(r.Client), " ")
	_, bare, _ := strings.Cut(r.Origin, ":")
	if p.net.IsValid() {
		if a, err := netip.ParseAddr(addr); err == nil {
			return p.net.Contains(a)
		}
		o, err := netip.ParsePrefix(strings.TrimPrefix(r.Origin, "net:"))
		if a, ok := originAddr(r.Origin); ok && err != nil {
			o = netip.PrefixFrom(a, a.BitLen())
		}
		return o.IsValid() && o.Overlaps(p.net)
	}
	return p.matches(addr) || p.matches(strings.TrimPrefix(name, "?")) && name != "-" || p.matches(r.Origin) || p.matches(bare)
}

// sender reports whether the pattern is that of a record's sender, or of the domain
// that stands for it.
func (p *pattern) sender(e Entry) bool {
	r := e.Record
	if r.Sender != "" {
		return p.matches(r.Sender) || !p.before && !p.after && r.Sender == NormalizeSender(p.text, r.Rcpt)
	}
	domain, ok := strings.CutPrefix(r.Origin, "spf:")
	switch e.Key.Kind() {
	case KindExpect, KindReply:
		if domain, ok = r.Origin, true; strings.Contains(domain, "@") {
			return p.matches(domain)
		}
	}
	return ok && p.before && !p.after && p.text == "@"+domain
}

// Matches reports whether a record is meant.
func (w What) Matches(e Entry) bool {
	r := e.Record
	return !slices.ContainsFunc(w.client, func(p pattern) bool { return !p.client(&r) }) &&
		!slices.ContainsFunc(w.sender, func(p pattern) bool { return !p.sender(e) }) &&
		!slices.ContainsFunc(w.rcpt, func(p pattern) bool { return !p.matches(r.Rcpt) })
}

// around is what the text of a network and of all in it has in common with that of
// networks around it, as far as these are no wider than /16.
func around(net netip.Prefix) string {
	if net.Addr().Is6() || net.Bits() < 16 {
		return ""
	}
	b := net.Addr().As4()
	return fmt.Sprintf("%d.%d.", b[0], b[1])
}

// query is what a store may look for, so that less is to be looked through.
func (w What) query() (q Query) {
	for _, p := range w.client {
		if q.Client = p.text; p.net.IsValid() {
			q.Client = around(p.net)
		}
	}
	for _, p := range w.sender {
		if p.before { // else it is compared without what changes
			q.Sender = strings.TrimPrefix(p.text, "@")
		} else if _, domain := splitAddr(p.text); domain != "" && !p.after {
			q.Sender = domain
		}
	}
	for _, p := range w.rcpt {
		q.Rcpt = p.text
	}
	return q
}

// Find returns the records that are meant, in no order. It ends at the first error.
func (g *Greylist) Find(ctx context.Context, w What) iter.Seq2[Entry, error] {
	some := g.store.All(ctx)
	if !w.Empty() {
		some = Find(ctx, g.store, w.query())
	}
	return func(yield func(Entry, error) bool) {
		for e, err := range some {
			if err == nil && !w.Matches(e) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}
