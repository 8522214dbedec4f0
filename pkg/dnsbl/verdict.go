package dnsbl

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Verdict is what is to be done with a client.
type Verdict byte

const (
	Pass Verdict = iota
	Junk
	Block
)

// String returns pass, junk or block.
func (v Verdict) String() string {
	switch v {
	case Junk:
		return "junk"
	case Block:
		return "block"
	}
	return "pass"
}

// A Hit is a list that counts.
type Hit struct {
	Label  string
	Weight int
	Codes  []netip.Addr
	Domain string // that is listed, "" if it is the address
	Alone  bool   // is enough for the verdict, whatever the score
	Text   string // TXT record, cleaned and without keys; if it was asked for
	ask    *ask
}

// A Result is a verdict and what it rests on.
type Result struct {
	Verdict  Verdict
	Score    int
	Hits     []Hit         // in the order of the lists
	Silent   []string      // lists that did not answer, or are not asked because of their health
	Untested []string      // lists that are not known to be well; their hits do not count towards Block
	Took     time.Duration // the wait for the verdict
}

// Heaviest returns the hit with the greatest weight, the first of equals. There
// must be one.
func (r Result) Heaviest() *Hit {
	h := &r.Hits[0]
	for i := range r.Hits {
		if r.Hits[i].Weight > h.Weight {
			h = &r.Hits[i]
		}
	}
	return h
}

// add adds a hit. Entries of one label are one hit.
func (r *Result) add(h Hit) {
	i := slices.IndexFunc(r.Hits, func(o Hit) bool { return o.Label == h.Label })
	if i < 0 {
		r.Hits = append(r.Hits, h)
		return
	}
	r.Hits[i].Weight += h.Weight
	r.Hits[i].Alone = r.Hits[i].Alone || h.Alone
	r.Hits[i].Codes = append(r.Hits[i].Codes, h.Codes...)
}

// Verdict waits until the answers that are missing cannot change the verdict,
// and returns it. A question that is not answered within its time counts
// nothing, so that is at most Options.Timeout after the last question. Reasons
// that are asked for take what is left of that time from the call. When ctx ends
// it returns what there is.
func (q *Inquiry) Verdict(ctx context.Context) Result {
	start := time.Now()
	q.wait(ctx, func() bool { _, _, certain := q.bounds(false); return certain })
	res := q.locked(ctx.Err() != nil)
	if res.Verdict == Block && !q.c.opts.DryRun {
		ctx, cancel := context.WithDeadline(ctx, start.Add(q.c.opts.Timeout))
		q.explain(ctx, &res)
		cancel()
	}
	res.Took = time.Since(start)
	for _, h := range res.Hits {
		q.c.hits[h.Label].Inc()
	}
	return res
}

// Now returns the verdict by the answers that are there.
func (q *Inquiry) Now() Result { return q.locked(true) }

func (q *Inquiry) locked(final bool) Result {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.result(final)
}

// sums are the score and how far it may still go.
type sums struct{ score, low, high int }

func (s *sums) add(weight int, certain bool) {
	switch {
	case certain:
		s.score += weight
		s.low += weight
		s.high += weight
	case weight > 0:
		s.high += weight
	default:
		s.low += weight
	}
}

// A tally is what the answers say about one entry.
type tally struct {
	hit      *ask // with a code that matches
	trusted  bool // counts towards Block
	doubtful bool // a hit of an allow list that is not known to be well
	pending  bool
}

func (q *Inquiry) tally(e *entry) (t tally) {
	for _, a := range q.asks {
		switch {
		case !e.applies(a):
		case !a.done:
			t.pending = true
		case !e.hits(a):
		case e.Weight < 0 && !a.trusted:
			t.doubtful = true
		default:
			if t.hit == nil {
				t.hit = a
			}
			t.trusted = t.trusted || a.trusted
		}
	}
	t.doubtful = t.doubtful && t.hit == nil
	return t
}

// bounds is the verdict by bounds: Block as soon as the score, with all
// negative weights that may still come, reaches BlockAt; Pass as soon as it
// cannot reach a threshold with all positive ones; Junk as soon as it can be
// nothing else. It returns the score so far, and whether the verdict is certain.
// With final, nothing more comes. It is called with mu held.
func (q *Inquiry) bounds(final bool) (v Verdict, score int, certain bool) {
	var junk, block sums // for Block, hits of untested lists do not count
	var mustJunk, mustBlock, mayJunk, mayBlock bool
	for _, e := range q.c.entries {
		t := q.tally(e)
		// An allow list counts only while it is well, but until that is
		// known nobody is blocked whom it might save.
		if t.doubtful {
			block.add(e.Weight, true)
		}
		switch {
		case t.hit != nil:
			junk.add(e.Weight, true)
			mustJunk = mustJunk || e.Junk || e.Block
			if t.trusted {
				block.add(e.Weight, true)
				mustBlock = mustBlock || e.Block
			} else if t.pending && !final { // the next one may be trusted
				block.add(e.Weight, false)
				mayBlock = mayBlock || e.Block
			}
		case t.pending && !final:
			junk.add(e.Weight, false)
			block.add(e.Weight, false)
			mayJunk = mayJunk || e.Junk || e.Block
			mayBlock = mayBlock || e.Block
		}
	}
	reaches := func(score, threshold int) bool { return threshold > 0 && score >= threshold }
	o := &q.c.opts
	switch {
	case mustBlock || reaches(block.low, o.BlockAt):
		return Block, junk.score, true
	case mayBlock || reaches(block.high, o.BlockAt):
		return Pass, junk.score, false
	case mustJunk || reaches(junk.low, o.JunkAt):
		return Junk, junk.score, true
	}
	return Pass, junk.score, !mayJunk && !reaches(junk.high, o.JunkAt)
}

// result is the verdict and what it rests on. It is called with mu held.
func (q *Inquiry) result(final bool) Result {
	var res Result
	res.Verdict, res.Score, _ = q.bounds(final)
	add := func(list *[]string, label string) {
		if !slices.Contains(*list, label) {
			*list = append(*list, label)
		}
	}
	for _, e := range q.c.entries {
		t := q.tally(e)
		if t.hit != nil {
			h := q.hit(e, t.hit)
			h.Alone = res.Verdict == Block && e.Block && t.trusted || res.Verdict == Junk && (e.Block || e.Junk)
			res.add(h)
		}
		if t.doubtful || t.hit != nil && !t.trusted {
			add(&res.Untested, e.Label)
		}
	}
	for _, a := range q.asks {
		if a.failure != "" || final && !a.done {
			add(&res.Silent, a.zone.label)
		}
	}
	return res
}

// hit collects the codes of all answers that match.
func (q *Inquiry) hit(e *entry, first *ask) Hit {
	h := Hit{Label: e.Label, Weight: e.Weight, Domain: first.domain, ask: first}
	for _, a := range q.asks {
		if !e.applies(a) || !a.done {
			continue
		}
		for _, code := range a.codes {
			if e.Match.Contains(code) {
				h.Codes = append(h.Codes, code)
			}
		}
	}
	return h
}

// explain asks for the reasons that are shown.
func (q *Inquiry) explain(ctx context.Context, res *Result) {
	if len(res.Hits) == 0 {
		return
	}
	var wg sync.WaitGroup
	heaviest := res.Heaviest()
	for i := range res.Hits {
		h := &res.Hits[i]
		shown := q.c.opts.Reason && res.Verdict == Block && h == heaviest
		if !shown && !slices.ContainsFunc(q.c.entries, func(e *entry) bool { return e.TXT && e.Label == h.Label }) {
			continue
		}
		wg.Go(func() {
			guard(q.c.opts.Log, func() {
				if texts, err := q.c.opts.Resolver.TXT(ctx, h.ask.name); err == nil && len(texts) > 0 {
					h.Text = Clean(q.c.redact(texts[0]))
				}
			})
		})
	}
	wg.Wait()
}

// A Row is what one list says about a client, for people.
type Row struct {
	Label   string
	Asked   bool
	Hit     bool
	Codes   []netip.Addr
	Meaning []string // of the codes, "" where it is not known
	Weight  int
	Took    time.Duration
	Failure string // why there is no answer
	Health  string
}

// Rows returns a row for each question of each list, in the order of the
// lists.
func (q *Inquiry) Rows() []Row {
	q.mu.Lock()
	defer q.mu.Unlock()
	var rows []Row
	for _, e := range q.c.entries {
		row := Row{Label: e.Label, Weight: e.Weight, Health: e.zone.health()}
		if e.Dead != "" {
			row.Weight, row.Health = 0, "dead: "+e.Dead
		}
		n := len(rows)
		for _, a := range q.asks {
			if !e.applies(a) {
				continue
			}
			r := row
			r.Asked, r.Codes, r.Took, r.Failure = a.failure != notAsked, a.codes, a.took, a.failure
			r.Hit = e.hits(a)
			for _, code := range r.Codes {
				r.Meaning = append(r.Meaning, e.meaning(code))
			}
			if !a.done {
				r.Failure = tooLate
			}
			rows = append(rows, r)
		}
		if len(rows) == n {
			rows = append(rows, row)
		}
	}
	return rows
}

// Wait waits for all answers.
func (q *Inquiry) Wait(ctx context.Context) {
	q.wait(ctx, func() bool { return !slices.ContainsFunc(q.asks, func(a *ask) bool { return !a.done }) })
}
