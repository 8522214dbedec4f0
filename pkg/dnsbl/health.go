package dnsbl

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

const (
	testInterval = 15 * time.Minute
	trustTime    = 30 * time.Minute // for which a good test counts
	freshTest    = time.Minute      // after which a hit that decides starts another one
	maxFailures  = 5                // in a row, which start a test
	firstProbe   = 5 * time.Second
	busyProbe    = time.Minute // while there are clients
	lastProbe    = 30 * time.Minute
	busyTime     = 2 * time.Minute // since the last client
)

// What is counted.
var (
	hitsTotal = metrics.Desc{Name: "filter_dnsbl_hits_total",
		Help: "Answers of a DNS list that counted, by label of the list.", Labels: []string{"zone"}}
	askedTotal = metrics.Desc{Name: "filter_dnsbl_asked_total",
		Help: "Questions to a DNS list about clients, by label of the list; also those answered from the cache.", Labels: []string{"zone"}}
	decisiveTotal = metrics.Desc{Name: "filter_dnsbl_decisive_total",
		Help: "Clients refused or junked that would not have been without this DNS list, by label of the list.", Labels: []string{"zone"}}
	sharedTotal = metrics.Desc{Name: "filter_dnsbl_shared_hits_total",
		Help: "Hits of a DNS list that another list had too, by label of the list.", Labels: []string{"zone"}}
	errorsTotal = metrics.Desc{Name: "filter_dnsbl_errors_total",
		Help: "Questions that a DNS list did not answer, by label of the list and kind: timeout or failure.", Labels: []string{"zone", "kind"}}
	answerSeconds = metrics.Desc{Name: "filter_dnsbl_answer_seconds",
		Help: "Time of questions to a DNS list until the answer or the end of patience, by label of the list.", Labels: []string{"zone"}, Buckets: metrics.DNSBuckets()}
	listGood = metrics.Desc{Name: "filter_dnsbl_list_good",
		Help: "Whether a DNS list is well: 1, or 0 if it does not answer, answers nonsense, is not tested or is dead.", Labels: []string{"zone"}}
)

// A family is a kind of question. A zone is tested and trusted for each by itself:
// many know one only.
type family byte

const (
	inet family = iota
	inet6
	hosts
)

func (f family) String() string { return [...]string{"IPv4", "IPv6", "names"}[f] }

// A zone is a list as it is asked. Several entries may share it.
type zone struct {
	c        *Checker
	name     string
	label    string // of the first entry
	why      string // it is not asked; "" if it is
	info     known
	ask      Subject
	matches  []Match // of all entries
	parts    []*part
	errors   *metrics.Counter
	timeouts *metrics.Counter
	asked    *metrics.Counter
	seconds  *metrics.Histogram

	mu      sync.Mutex // guards what is below, and the parts
	found   bool       // the test entry was there
	missing bool       // and is not; said already
	listing bool       // has listed anything
}

// A part is the health of a zone in one family.
type part struct {
	zone   *zone
	family family

	good     time.Time // of the last good test; zero: none, or not to be believed any more
	lost     time.Time // what it answered until then counts no more
	sick     *fault    // answers nonsense
	off      bool      // does not answer
	partial  int       // tests that were not complete, in a row
	failures int       // of queries, in a row
	answer   time.Time // the last clear one to a query, and not from a cache
	calm     time.Time // until when failures start no test
	doubt    doubt
	used     time.Time // by a client

	run     *run          // the test under way
	wait    chan struct{} // closed when that has decided; nil: it has, or there is none
	tested  time.Time     // when the last test began
	ended   time.Time
	backoff time.Duration
}

// state is what a part's answers are worth.
type state byte

const (
	good     state = iota
	untested       // its listings do not count
	useless        // is not asked
)

func (p *part) state() state {
	if p.zone.c.health.Trouble().Useless() {
		return useless
	}
	p.zone.mu.Lock()
	defer p.zone.mu.Unlock()
	return p.own(time.Now())
}

// own is state but for the resolver. It is called with mu held, as all that are
// marked so.
func (p *part) own(now time.Time) state {
	switch {
	case p.off || p.sick != nil:
		return useless
	case p.good.IsZero() || now.Sub(p.good) > trustTime:
		return untested
	}
	return good
}

// believes reports whether an answer that came at a time may count: not one from
// before the part was found to answer nonsense.
func (p *part) believes(at time.Time) bool {
	p.zone.mu.Lock()
	defer p.zone.mu.Unlock()
	return p.lost.IsZero() || at.After(p.lost)
}

// use reports whether a part is asked on behalf of a client. If it is time for a
// test that begins.
func (p *part) use() bool {
	z := p.zone
	z.c.health.Use()
	now := time.Now()
	z.mu.Lock()
	p.used = now
	s := p.own(now)
	due := s != good && p.run == nil && (p.ended.IsZero() || now.Sub(p.ended) >= min(p.backoff, busyProbe))
	z.mu.Unlock()
	if z.c.health.Trouble().Useless() {
		return false
	}
	if due {
		z.start(p)
	}
	return s != useless
}

// health says the state in words.
func (p *part) health() string {
	z := p.zone
	if t := z.c.health.Trouble(); t != resolve.Well {
		return t.String()
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	switch p.own(time.Now()) {
	case useless:
		if p.sick != nil {
			return "sick: " + p.sick.why
		}
		return "off: does not answer"
	case untested:
		return "not tested"
	}
	if z.missing {
		return "good, without a test entry"
	}
	return "good"
}

// well reports whether all parts are good.
func (z *zone) well() bool {
	return !slices.ContainsFunc(z.parts, func(p *part) bool { return p.state() != good })
}

// part returns the part that a question is for.
func (z *zone) part(a *ask) *part {
	f := hosts
	if a.subject == IP {
		f = inet
		if a.addr.Is6() {
			f = inet6
		}
	}
	return z.parts[slices.IndexFunc(z.parts, func(p *part) bool { return p.family == f })]
}

// lists reports whether codes are a listing for one of the entries.
func (z *zone) lists(codes []netip.Addr) bool {
	return slices.ContainsFunc(codes, func(a netip.Addr) bool {
		return slices.ContainsFunc(z.matches, func(m Match) bool { return m.Contains(a) })
	})
}

// refusal reports whether an answer is a fault.
func (z *zone) refusal(answer []netip.Addr) bool {
	return slices.ContainsFunc(answer, func(a netip.Addr) bool { return z.info.fault(a) != nil })
}

// take makes a reply of what the resolver says. Only queries count for the
// health of a zone, not what is remembered of them.
func (z *zone) take(ctx context.Context, a *ask, answer []netip.Addr, fresh bool, err error) reply {
	p := a.part
	now := time.Now()
	answered := err == nil || notListed(err)
	if fresh && ctx.Err() == nil {
		took := now.Sub(a.start)
		z.seconds.Update(took.Seconds())
		late := took > z.c.opts.Timeout
		if answered {
			z.heard(now, answer)
		}
		if late || !answered {
			p.failed(late || timedOut(err))
		} else {
			z.mu.Lock()
			p.failures, p.answer = 0, now
			z.mu.Unlock()
		}
	}
	if !answered {
		return reply{failure: reason(err)}
	}
	codes, f := z.info.decode(answer, a.subject)
	if f != nil { // one answer proves nothing
		p.startAfter(freshTest)
		return reply{}
	}
	if a.subject == IP && errors.Is(err, resolve.ErrNoData) {
		p.startAfter(freshTest) // an address is listed or does not exist; has it been removed?
	}
	z.mu.Lock()
	doubtful := p.own(now) == good && p.doubt.note(a.network, z.lists(codes), now)
	z.mu.Unlock()
	if doubtful {
		z.start(p)
	}
	return reply{codes: codes}
}

// failed notes a query without a clear answer. What clients choose to be asked
// about must not switch a list off: five in a row start a test, and that decides.
func (p *part) failed(timeout bool) {
	z := p.zone
	z.trouble(timeout)
	now := time.Now()
	z.mu.Lock()
	p.failures++
	due := p.failures >= maxFailures && p.run == nil && !now.Before(p.calm) && !p.off
	if due {
		p.calm = now.Add(freshTest)
	}
	z.mu.Unlock()
	if due {
		z.start(p)
	}
}

// trouble counts a question without a clear answer.
func (z *zone) trouble(timeout bool) {
	if timeout {
		z.timeouts.Inc()
	} else {
		z.errors.Inc()
	}
}

// startAfter starts a test unless one is under way or has begun less than d ago.
func (p *part) startAfter(d time.Duration) {
	z := p.zone
	z.mu.Lock()
	due := p.run == nil && time.Since(p.tested) >= d
	z.mu.Unlock()
	if due {
		z.start(p)
	}
}

// verify is called when a hit is about to decide. It starts a test if the last good
// one is not fresh, and returns what is to be waited for, nil for nothing.
func (p *part) verify() <-chan struct{} {
	z := p.zone
	now := time.Now()
	z.mu.Lock()
	var wait <-chan struct{} = p.wait
	old := now.Sub(p.good) > freshTest
	due := old && p.run == nil && now.Sub(p.tested) >= freshTest
	if !old && !p.doubt.open {
		wait = nil
	}
	z.mu.Unlock()
	if due {
		z.start(p)
		return p.underWay()
	}
	return wait
}

// underWay returns what is closed when the test under way has decided, nil if none
// is.
func (p *part) underWay() <-chan struct{} {
	p.zone.mu.Lock()
	defer p.zone.mu.Unlock()
	return p.wait
}

// due returns when a part is to be tested. It is called with mu held.
func (p *part) due(now time.Time) time.Time {
	switch {
	case p.tested.IsZero():
		return now
	case p.run != nil:
		return now.Add(testInterval) // its end tells
	case p.own(now) == good && p.partial == 0:
		if next := p.ended.Add(testInterval); next.After(now) || p.used.After(p.tested) {
			return next
		}
		return now.Add(testInterval) // nobody wants it
	case now.Sub(p.used) < busyTime:
		return p.ended.Add(min(p.backoff, busyProbe))
	case p.own(now) == untested && p.partial == 0: // nobody has wanted it for long
		return now.Add(testInterval)
	}
	return p.ended.Add(p.backoff)
}
