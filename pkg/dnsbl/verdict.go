package dnsbl

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
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
// and returns it. A question that is not answered within its time counts nothing.
// A list that would decide and was not found well within a minute is tested first;
// the whole takes at most Options.Timeout, after which what is known decides. So
// does what is known when ctx ends. Reasons that are asked for take what is left of
// the time.
func (q *Inquiry) Verdict(ctx context.Context) Result {
	start := time.Now()
	within, cancel := context.WithDeadline(ctx, start.Add(q.c.opts.Timeout))
	defer cancel()
	for {
		q.again(ctx)
		q.wait(within, func() bool { return q.bounds(false).certain })
		tests := q.tests()
		if tests == nil || within.Err() != nil {
			break
		}
		for _, done := range tests {
			select {
			case <-done:
			case <-within.Done():
			}
		}
	}
	res := q.locked(within.Err() != nil)
	if res.Verdict == Block && !q.c.opts.DryRun {
		q.explain(within, &res)
	}
	res.Took = time.Since(start)
	q.count(res)
	return res
}

// Known returns the verdict if nothing has to be waited for.
func (q *Inquiry) Known(ctx context.Context) (Result, bool) {
	start := time.Now()
	q.again(ctx)
	if !q.certainNow() || q.tests() != nil {
		return Result{}, false
	}
	res := q.locked(false)
	if res.Verdict == Block && !q.c.opts.DryRun {
		return Result{}, false // reasons may be asked for
	}
	res.Took = time.Since(start)
	q.count(res)
	return res, true
}

func (q *Inquiry) certainNow() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bounds(false).certain
}

// count counts hits, and those that made the verdict, once for each client.
func (q *Inquiry) count(res Result) {
	q.mu.Lock()
	defer q.mu.Unlock()
	once := func(what string, c *metrics.Counter) {
		if q.counted == nil {
			q.counted = make(map[string]bool)
		}
		if !q.counted[what] {
			q.counted[what] = true
			c.Inc()
		}
	}
	threshold := q.c.opts.BlockAt
	if res.Verdict == Junk {
		threshold = q.c.opts.JunkAt
	}
	for _, h := range res.Hits {
		c := q.set.counts[h.Label]
		once(h.Label, c.hits)
		alone := h.Weight > 0 || h.Alone
		for _, o := range res.Hits {
			if o.Label == h.Label {
				continue
			}
			if (o.Weight < 0) == (h.Weight < 0) {
				once("&"+h.Label, c.shared)
			}
			alone = alone && !o.Alone
		}
		if res.Verdict != Pass && alone && (threshold == 0 || res.Score-h.Weight < threshold) {
			once("!"+h.Label, c.decisive)
		}
	}
}

// tests returns the tests that the verdict has to wait for: of lists whose hits
// decide it, or have turned it, and of those whose hits would if they were trusted.
func (q *Inquiry) tests() (tests []<-chan struct{}) {
	q.mu.Lock()
	b := q.bounds(false)
	decide, allow := make(map[*part]bool), make(map[*part]bool)
	var unknown []*part
	for _, e := range q.set.entries {
		for _, a := range q.asks {
			if !e.applies(a) || !a.done || !e.hits(a) {
				continue
			}
			switch s := a.part.state(); {
			case !a.part.believes(a.at), s == useless:
			case s == untested:
				unknown = append(unknown, a.part)
			case e.Weight < 0:
				allow[a.part] = true
			default:
				decide[a.part] = true
			}
		}
	}
	q.mu.Unlock()
	add := func(wait <-chan struct{}) {
		if wait != nil {
			tests = append(tests, wait)
		}
	}
	if b.verdict != Pass {
		for p := range decide {
			add(p.verify())
		}
	}
	if b.turned {
		for p := range allow {
			add(p.verify())
		}
	}
	for _, p := range unknown {
		add(p.underWay())
	}
	return tests
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
	hit      *ask // with a code that matches, of a list that is well
	untested bool // a hit of one that is not known to be
	pending  bool
}

func (q *Inquiry) tally(e *item) (t tally) {
	for _, a := range q.asks {
		switch {
		case !e.applies(a):
		case !a.done:
			t.pending = true
		case !e.hits(a) || !a.part.believes(a.at):
		default:
			switch a.part.state() {
			case good:
				if t.hit == nil {
					t.hit = a
				}
			case untested:
				t.untested = true
			}
		}
	}
	t.untested = t.untested && t.hit == nil
	return t
}

// bounds are the verdict so far.
type bounds struct {
	verdict Verdict
	score   int
	certain bool // whatever comes
	turned  bool // by allow lists: it would be worse without them
}

// bounds is the verdict by bounds: Block as soon as the score, with all
// negative weights that may still come, reaches BlockAt; Pass as soon as it
// cannot reach a threshold with all positive ones; Junk as soon as it can be
// nothing else. With final, nothing more comes. It is called with mu held.
func (q *Inquiry) bounds(final bool) bounds {
	var s sums
	var mustJunk, mustBlock, mayJunk, mayBlock bool
	allowed, saved := 0, 0
	for _, e := range q.set.entries {
		t := q.tally(e)
		switch {
		case t.hit != nil:
			s.add(e.Weight, true)
			mustJunk = mustJunk || e.Junk || e.Block
			mustBlock = mustBlock || e.Block
			allowed += min(e.Weight, 0)
		case t.untested && e.Weight < 0:
			// It counts only while it is well, but until that is known nobody is
			// blocked or junked whom it might save.
			saved += e.Weight
		case t.pending && !final:
			s.add(e.Weight, false)
			mayJunk = mayJunk || e.Junk || e.Block
			mayBlock = mayBlock || e.Block
		}
	}
	o := &q.c.opts
	reaches := func(score, threshold int) bool { return threshold > 0 && score >= threshold }
	b := bounds{score: s.score}
	low, high := s.low+saved, s.high+saved
	worse := func(threshold int) bool {
		return !reaches(s.score+saved, threshold) && reaches(s.score-allowed, threshold)
	}
	switch {
	case mustBlock || reaches(low, o.BlockAt):
		b.verdict, b.certain = Block, true
	case mayBlock || reaches(high, o.BlockAt):
	case mustJunk || reaches(low, o.JunkAt):
		b.verdict, b.certain = Junk, true
		b.turned = worse(o.BlockAt)
	default:
		b.certain = !mayJunk && !reaches(high, o.JunkAt)
		b.turned = worse(o.BlockAt) || worse(o.JunkAt)
	}
	return b
}

// result is the verdict and what it rests on. It is called with mu held.
func (q *Inquiry) result(final bool) Result {
	var res Result
	b := q.bounds(final)
	res.Verdict, res.Score = b.verdict, b.score
	add := func(list *[]string, label string) {
		if !slices.Contains(*list, label) {
			*list = append(*list, label)
		}
	}
	for _, e := range q.set.entries {
		t := q.tally(e)
		if t.hit != nil {
			h := q.hit(e, t.hit)
			h.Alone = res.Verdict == Block && e.Block || res.Verdict == Junk && (e.Block || e.Junk)
			res.add(h)
		}
		if t.untested {
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
func (q *Inquiry) hit(e *item, first *ask) Hit {
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
		if !shown && !slices.ContainsFunc(q.set.entries, func(e *item) bool { return e.TXT && e.Label == h.Label }) {
			continue
		}
		wg.Go(func() {
			guard.Run(q.c.opts.Log, "lists", func() {
				if texts, err := q.c.opts.Resolver.TXT(ctx, h.ask.name); err == nil && len(texts) > 0 {
					h.Text = Clean(q.set.redact(texts[0]))
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
	for _, e := range q.set.entries {
		row := Row{Label: e.Label, Weight: e.Weight}
		if e.Dead != "" {
			row.Weight, row.Health = 0, "not asked: "+e.Dead
		} else {
			row.Health = e.zone.health()
		}
		n := len(rows)
		for _, a := range q.asks {
			if !e.applies(a) {
				continue
			}
			r := row
			r.Health = a.part.health()
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
