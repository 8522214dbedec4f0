package dnsbl

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/resolve"
)

// What looks like trouble of a list may be the resolver's. This file tells the two
// apart.

// heard notes a clear answer of a list.
func (z *zone) heard(now time.Time, answer []netip.Addr) {
	c := z.c
	listing := slices.ContainsFunc(answer, loopback().Contains)
	z.mu.Lock()
	z.listing = z.listing || listing
	z.mu.Unlock()
	c.mu.Lock()
	c.answered = now
	c.mu.Unlock()
	if listing {
		c.health.Clear(resolve.Filters)
	}
}

// heardSince reports whether any list has answered after a time.
func (c *Checker) heardSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered.After(t)
}

// blame reports whether the resolver is at fault.
func (r *run) blame(ctx context.Context) bool {
	c := r.zone.c
	var silent, sick, foreign bool
	for _, o := range r.outcomes {
		silent = silent || o.silent
		sick = sick || o.sick != nil
		foreign = foreign || o.foreign.IsValid()
	}
	silent = silent && !c.heardSince(r.begun)
	if !silent && !sick || ctx.Err() != nil {
		return false
	}
	switch t := c.health.Judge(ctx); {
	case t == resolve.Down && silent && !c.heardSince(r.begun):
		c.health.Blame(t, func(ctx context.Context) bool { return c.health.Judge(ctx) == resolve.Well || c.anyAnswers(ctx) })
	case t == resolve.Invents && sick:
		c.distrust()
		c.health.Blame(t, nil)
	case foreign && c.allForeign(ctx):
		// Its control questions may be answered by itself (as unbound does for
		// invalid.), and the rest by somebody who invents.
		c.distrust()
		c.health.Blame(resolve.Invents, func(ctx context.Context) bool { return !c.allForeign(ctx) && c.anyAnswers(ctx) })
	default:
		return false
	}
	return true
}

// distrust takes back what the lists have been trusted for.
func (c *Checker) distrust() {
	now := time.Now()
	for _, z := range c.alive() {
		z.mu.Lock()
		for _, p := range z.parts {
			p.good, p.lost = time.Time{}, now
		}
		z.mu.Unlock()
	}
}

// recovered is called when the resolver is well again. What it has said while it
// was not is forgotten.
func (c *Checker) recovered(from resolve.Trouble) {
	if from == resolve.Invents || from == resolve.Denies {
		for _, z := range c.alive() {
			c.opts.Resolver.Forget(z.name)
		}
		c.distrust()
	}
	for _, z := range c.alive() {
		if from == resolve.Filters { // what is missing now is so by itself
			z.mu.Lock()
			z.found = false
			z.mu.Unlock()
		}
		z.start(z.parts...)
	}
}

// cutOff reports whether no list at all answers, though the resolver does.
func (r *run) cutOff(ctx context.Context) bool {
	c := r.zone.c
	if len(c.alive()) < 2 || !slices.ContainsFunc(r.outcomes, func(o *outcome) bool { return o.silent }) ||
		c.heardSince(r.begun) || c.anyAnswers(ctx) {
		return false
	}
	c.health.Blame(resolve.CutOff, c.anyAnswers)
	return true
}

// randoms asks some lists for a random name.
func (c *Checker) randoms(ctx context.Context) []probe {
	zones := c.alive()
	zones = zones[:min(len(zones), 8)]
	got := make([]probe, len(zones))
	var wg sync.WaitGroup
	for i, z := range zones {
		wg.Go(func() {
			guard.Run(c.opts.Log, "lists", func() { got[i] = z.probe(ctx, resolve.RandomLabel()+"."+z.name) })
		})
	}
	wg.Wait()
	return got
}

func (c *Checker) anyAnswers(ctx context.Context) bool {
	return slices.ContainsFunc(c.randoms(ctx), func(p probe) bool { return p.clear })
}

// allForeign reports whether several lists answer a random name with the same
// address outside 127.0.0.0/8.
func (c *Checker) allForeign(ctx context.Context) bool {
	got := c.randoms(ctx)
	return len(got) > 1 && got[0].outside.IsValid() &&
		!slices.ContainsFunc(got, func(p probe) bool { return p.outside != got[0].outside })
}

// look is for a list without its test entry: the resolver may have removed it.
func (r *run) look(ctx context.Context) {
	z := r.zone
	missing := false
	for _, o := range r.outcomes {
		if o.entry && o.complete && o.sick == nil {
			missing = !o.found
			break
		}
	}
	z.mu.Lock()
	news := missing && !z.missing
	z.mu.Unlock()
	if !news {
		return
	}
	entries := z.c.entries(ctx)
	switch {
	case filtered(entries):
		z.c.health.Blame(resolve.Filters, nil)
	case nothing(entries) && z.c.health.Judge(ctx) == resolve.Denies:
		z.c.distrust()
		z.c.health.Blame(resolve.Denies, func(ctx context.Context) bool {
			return z.c.health.Judge(ctx) != resolve.Denies
		})
	default:
		z.mu.Lock()
		news = !z.missing
		z.missing = true
		z.mu.Unlock()
		if news {
			z.c.opts.Log.Warn("list lacks the test entry that every list has; it may be empty", "list", z.label)
		}
	}
}

// An entry is what is to be had of a test entry. One that was never there, of a
// list that does list others, is void: it shows nothing.
type entry struct{ void, clear, listed, text, noData bool }

// entries asks for the test entries of all lists.
func (c *Checker) entries(ctx context.Context) []entry {
	zones := c.alive()
	entries := make([]entry, len(zones))
	var wg sync.WaitGroup
	for i, z := range zones {
		wg.Go(func() { guard.Run(c.opts.Log, "lists", func() { entries[i] = z.entry(ctx) }) })
	}
	wg.Wait()
	return entries
}

func (z *zone) entry(ctx context.Context) (e entry) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	listed, _ := z.parts[0].testNames()
	answer, err := z.c.opts.Resolver.FreshA(ctx, listed[0], z.refusal)
	e.listed = slices.ContainsFunc(answer, loopback().Contains)
	e.noData = errors.Is(err, resolve.ErrNoData)
	e.clear = err == nil || notListed(err) || e.noData
	z.mu.Lock()
	e.void = z.listing && !z.found
	z.mu.Unlock()
	if e.listed || e.void || !e.clear {
		return e
	}
	texts, err := z.c.opts.Resolver.TXT(ctx, listed[0])
	// "v=spf1 -all" may stand below a name that sends no mail.
	e.text = err == nil && !slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, "v=") })
	return e
}

// filtered reports whether the resolver removes the addresses that lists answer
// with: no test entry has one, and one has a TXT record, or all are there without
// records.
func filtered(entries []entry) bool {
	text, noData, clear := 0, 0, 0
	for _, e := range entries {
		if e.listed {
			return false
		}
		if e.void {
			continue
		}
		text += number(e.text)
		noData += number(e.noData)
		clear += number(e.clear)
	}
	return text > 0 || noData > 0 && noData == clear
}

// nothing reports whether no list has its test entry.
func nothing(entries []entry) bool {
	return !slices.ContainsFunc(entries, func(e entry) bool { return e.listed })
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
