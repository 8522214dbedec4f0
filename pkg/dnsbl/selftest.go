package dnsbl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/resolve"
)

const testTimeout = 5 * time.Second // of one query of a test

// A run is a test of some parts of a zone.
type run struct {
	zone     *zone
	begun    time.Time
	done     chan struct{}
	outcomes []*outcome
}

// An outcome is what a test has shown of a part.
type outcome struct {
	part     *part
	silent   bool       // no answer at all
	complete bool       // enough of them to be trusted
	sick     *fault     // an answer that takes trust
	foreign  netip.Addr // to the random name, outside 127.0.0.0/8
	entry    bool       // the test entry was asked for
	found    bool       // and is there
	err      error      // of the first question that failed
	back     bool       // it is well again
}

func (o *outcome) bad() bool { return o.sick != nil || o.silent }

// start begins a test of parts, in place of one that is under way.
func (z *zone) start(parts ...*part) *run {
	r := &run{zone: z, begun: time.Now(), done: make(chan struct{})}
	z.mu.Lock()
	for _, p := range parts {
		p.begin(r)
	}
	z.mu.Unlock()
	if z.c.ctx.Err() != nil {
		r.end()
		return r
	}
	z.c.tests.Go(func() {
		guard.Run(z.c.opts.Log, "lists", func() {
			defer z.c.awake()
			defer r.end()
			r.test(z.c.ctx, parts)
		})
	})
	return r
}

// begin is called with mu held.
func (p *part) begin(r *run) {
	p.decided() // who waits for another test finds this one
	p.run, p.wait, p.tested = r, make(chan struct{}), r.begun
}

// decided is called with mu held.
func (p *part) decided() {
	if p.wait != nil {
		close(p.wait)
		p.wait = nil
	}
}

func (r *run) end() {
	z := r.zone
	defer close(r.done)
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, p := range z.parts {
		if p.run == r {
			p.decided()
			p.run, p.ended = nil, time.Now()
		}
	}
}

// test is that of RFC 5782 section 5, and more. What is one cause is said once: if
// one family fails, the others are looked at, and the resolver.
func (r *run) test(ctx context.Context, parts []*part) {
	r.ask(ctx, parts)
	if slices.ContainsFunc(r.outcomes, (*outcome).bad) {
		r.ask(ctx, r.others())
		blamed := r.blame(ctx)
		var again []*part // what is silent may be back this moment
		for _, o := range r.outcomes {
			if o.silent && !blamed {
				again = append(again, o.part)
			}
		}
		r.ask(ctx, again)
		if blamed || ctx.Err() == nil && r.cutOff(ctx) {
			return
		}
	}
	if ctx.Err() != nil { // the end of the program says nothing
		return
	}
	r.conclude()
	r.look(ctx)
}

// others claims the parts that are not being tested.
func (r *run) others() []*part {
	z := r.zone
	var others []*part
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, p := range z.parts {
		if p.run == nil {
			p.begin(r)
			others = append(others, p)
		}
	}
	return others
}

// ask asks the questions of a test about parts, all at once, and gives or takes
// trust.
func (r *run) ask(ctx context.Context, parts []*part) {
	outcomes := make([]*outcome, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		outcomes[i] = &outcome{part: p, silent: true, err: errors.New("internal error")}
		wg.Go(func() {
			guard.Run(r.zone.c.opts.Log, "lists", func() {
				o := p.test(ctx)
				outcomes[i] = o
				r.settle(o)
			})
		})
	}
	wg.Wait()
	for _, o := range outcomes {
		r.outcomes = slices.DeleteFunc(r.outcomes, func(old *outcome) bool { return old.part == o.part })
		r.outcomes = append(r.outcomes, o)
	}
}

// settle gives and takes trust, unless a later test has begun. Silence decides
// nothing yet.
func (r *run) settle(o *outcome) {
	z, p := r.zone, o.part
	now := time.Now()
	z.mu.Lock()
	ill := p.own(now) != good && !p.good.IsZero() || p.off || p.sick != nil
	z.mu.Unlock()
	if ill && o.complete && o.sick == nil {
		z.c.opts.Resolver.Forget(z.name) // it is not to be believed what it said
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if p.run != r {
		return
	}
	switch {
	case o.sick != nil:
		p.good, p.lost = time.Time{}, now
	case o.complete:
		if p.sick != nil {
			p.lost = now
		}
		o.back = p.sick != nil || p.off
		p.sick, p.off = nil, false
		p.good, p.partial, p.failures, p.backoff = now, 0, 0, 0
	case o.silent:
		return
	default:
		p.partial++
	}
	p.decided()
}

// test asks the questions of a test about a part.
func (p *part) test(ctx context.Context) *outcome {
	z := p.zone
	z.mu.Lock()
	wide := p.doubt.wide()
	z.mu.Unlock()
	listed, unlisted := p.testNames()
	rest := len(listed) + len(unlisted)
	questions := slices.Concat(listed, unlisted)
	if wide {
		questions = append(questions, p.sample()...)
	}
	got := z.probes(ctx, questions)

	o := &outcome{part: p, silent: true, entry: len(listed) > 0}
	there, not := 0, 0
	for i, g := range got {
		if !g.clear {
			if o.err == nil {
				o.err = g.err
			}
			continue
		}
		o.silent = false
		switch {
		case g.fault != nil:
			if o.sick == nil {
				o.sick = g.fault
			}
		case i < len(listed):
			o.found = o.found || len(g.codes) > 0
		case i < rest:
			if len(g.codes) > 0 {
				o.sick = z.info.world("an entry that no list may have is listed")
			}
		case z.lists(g.codes):
			there++
		default:
			not++
		}
	}
	random := got[rest-1]
	if random.fault != nil {
		o.foreign = random.outside
	}
	// The resolver may remember the others when the list is gone; only the random
	// name shows that it is there. Some lists answer no names that are none of
	// theirs: they are there if clients are answered.
	z.mu.Lock()
	alive := random.clear || !timedOut(random.err) && p.failures < maxFailures || time.Since(p.answer) < freshTest
	dead := !random.clear && p.failures >= maxFailures
	z.mu.Unlock()
	o.complete = !o.silent && alive && !slices.ContainsFunc(got[len(listed):rest-1], func(g probe) bool { return !g.clear })
	o.silent = o.silent || dead && o.sick == nil
	if o.silent && o.err == nil {
		o.err = random.err
	}
	if wide {
		z.mu.Lock()
		world := p.doubt.judge(there, not)
		z.mu.Unlock()
		if world && o.sick == nil {
			o.sick = z.info.world(fmt.Sprintf("random entries are listed, %d of %d", there, samples))
		}
	}
	return o
}

// A probe is the answer to a question of a test.
type probe struct {
	clear   bool
	codes   []netip.Addr
	fault   *fault
	outside netip.Addr // an address that is not within 127.0.0.0/8
	err     error
}

func (z *zone) probes(ctx context.Context, questions []string) []probe {
	got := make([]probe, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { guard.Run(z.c.opts.Log, "lists", func() { got[i] = z.probe(ctx, q) }) })
	}
	wg.Wait()
	return got
}

func (z *zone) probe(ctx context.Context, question string) probe {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	answer, err := z.c.opts.Resolver.FreshA(ctx, question, z.refusal)
	g := probe{err: err, clear: err == nil || notListed(err)}
	if !g.clear {
		if z.c.ctx.Err() == nil {
			z.trouble(timedOut(err))
		}
		return g
	}
	z.heard(time.Now(), answer)
	about := IP
	if z.ask&IP == 0 {
		about = z.ask
	}
	g.codes, g.fault = z.info.decode(answer, about)
	for _, a := range answer {
		if !loopback().Contains(a) {
			g.outside = a
		}
	}
	return g
}

// testNames returns the names that must be listed, and those that must not: the
// last of these is a random one, since a wildcard beside a test entry does not
// cover 127.0.0.1 (RFC 4592 section 2.2.2).
func (p *part) testNames() (listed, unlisted []string) {
	z := p.zone
	random := resolve.RandomLabel() + "." + z.name
	switch p.family {
	case hosts:
		test := z.info.test
		if test == "" {
			test = "test"
		}
		return []string{test + "." + z.name}, []string{"invalid." + z.name, random}
	case inet:
		listed = []string{name(z.name, netip.AddrFrom4([4]byte{127, 0, 0, 2}))}
		unlisted = []string{name(z.name, netip.AddrFrom4([4]byte{127, 0, 0, 1}))}
	default:
		// Many lists of both families have the IPv4 entry only.
		if len(z.parts) == 1 || z.parts[0].family != inet {
			listed = []string{name(z.name, netip.MustParseAddr("::ffff:127.0.0.2"))}
		}
		unlisted = []string{name(z.name, netip.MustParseAddr("::ffff:127.0.0.1"))}
		random = strings.Repeat("0.", 31) + random // of the family
		if len(random) > 253 {
			random = resolve.RandomLabel() + "." + z.name
		}
	}
	if z.info.white1 {
		return listed, []string{random}
	}
	return listed, append(unlisted, random)
}

// conclude takes what failed out of use, and says so, and what is well again.
func (r *run) conclude() {
	z := r.zone
	log := z.c.opts.Log
	var fell, off, partial, well []*part
	var sick *fault
	var err error
	missing, some := false, true
	z.mu.Lock()
	for _, o := range r.outcomes {
		p := o.part
		if p.run != r {
			some = false
			continue
		}
		switch {
		case o.sick != nil:
			if p.sick == nil || p.sick.why != o.sick.why {
				fell = append(fell, p)
				sick = o.sick
			}
			p.sick, p.off = o.sick, false
		case o.complete:
			if o.back {
				well = append(well, p)
			}
			missing = missing || o.entry && !o.found
			z.found = z.found || o.found
		case o.silent:
			if !p.off && p.sick == nil {
				off = append(off, p)
				err = o.err
			}
			if p.sick == nil {
				p.off, p.good, p.failures = true, time.Time{}, 0
			}
		case p.partial == 2:
			partial = append(partial, p)
			err = o.err
		}
		if !o.complete || o.sick != nil {
			p.backoff = min(max(2*p.backoff, firstProbe), lastProbe)
		}
	}
	z.missing = z.missing && (missing || !some)
	z.mu.Unlock()
	if fell != nil {
		log.Warn("list is sick, it counts nothing until a test of it is good", z.attrs(fell, "why", sick.why, "remedy", sick.remedy)...)
	}
	if off != nil {
		log.Warn("list does not answer, it is not asked until it does", z.attrs(off, "err", reason(err), "remedy", z.remedy(off))...)
	}
	if partial != nil {
		log.Warn("list answers some of its tests only, its hits do not count unless it did so within 30 minutes", z.attrs(partial, "err", reason(err))...)
	}
	if well != nil {
		log.Info("list is well again", z.attrs(well)...)
	}
	log.Debug("list tested", "list", z.label, "health", z.health())
}

// attrs names the list, and the families if it is not all of them.
func (z *zone) attrs(parts []*part, more ...any) []any {
	attrs := []any{"list", z.label}
	if len(parts) < len(z.parts) {
		var fs []string
		for _, p := range parts {
			fs = append(fs, p.family.String())
		}
		attrs = append(attrs, "family", strings.Join(fs, ","))
	}
	return append(attrs, more...)
}

func (z *zone) remedy(off []*part) string {
	if len(off) == 1 && off[0].family == inet6 && len(z.parts) > 1 {
		return "if it lists no IPv6 addresses, write +v4 behind it"
	}
	if z.info.remedy != "" {
		return z.info.remedy
	}
	return "none, unless it lasts: then remove it"
}

// health is that of all parts.
func (z *zone) health() string {
	first := z.parts[0].health()
	for _, p := range z.parts[1:] {
		if h := p.health(); h != first {
			first += "; " + p.family.String() + " " + h
		}
	}
	return first
}
