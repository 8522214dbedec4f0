package dnsbl

import (
	"context"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"opensmtpd-filters/pkg/metrics"
)

// A Resolver is what a Checker asks. Errors are of type *net.DNSError; one that
// IsNotFound says clearly that there is no such record. A *resolve.Resolver is
// one.
type Resolver interface {
	// StartA calls then once, now or later. Fresh tells that the answer is to
	// a query that was sent for this call, and not from a cache or to a
	// query of another one.
	StartA(name string, then func(addrs []netip.Addr, fresh bool, err error))
	FreshA(ctx context.Context, name string) ([]netip.Addr, error) // not from a cache
	TXT(ctx context.Context, name string) ([]string, error)
	Forget(name string) // drops it and all names below it from the cache
}

// Options are the settings of a Checker.
type Options struct {
	Lists           []List
	BlockAt, JunkAt int           // scores; 0 is never
	Timeout         time.Duration // of a question; 0 is 2 s
	Reason          bool          // ask for the heaviest list's TXT when the verdict is Block
	DryRun          bool          // nobody is refused, and nobody waits for a TXT
	Resolver        Resolver
	Log             *slog.Logger // nil: no log
	Metrics         *metrics.Set // nil: no metrics
}

// A Checker asks lists about clients. It may be used from several goroutines.
type Checker struct {
	opts    Options
	entries []*entry
	zones   []*zone
	redact  func(string) string
	hits    map[string]*metrics.Counter // by label
}

// An entry is a list and the zone it shares with others.
type entry struct {
	List
	zone *zone
}

// New returns a Checker. It asks nothing yet. Lists that are dead are logged.
func New(o Options) *Checker {
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Lists = Distinct(o.Lists)
	c := &Checker{opts: o, hits: make(map[string]*metrics.Counter)}
	var keys []string
	for _, l := range o.Lists {
		if l.Dead != "" {
			o.Log.Warn("list is dead and not asked; remove it", "list", l.Label, "why", l.Dead)
		}
		keys = append(keys, Keys(l.zone)...)
		c.entries = append(c.entries, &entry{l, c.zoneOf(l)})
		c.hits[l.Label] = o.Metrics.Counter(hitsTotal, l.Label)
	}
	c.redact = Redactor(keys)
	if most := c.most(); most < o.BlockAt {
		o.Log.Warn("all lists together do not reach -blockAt", "blockAt", o.BlockAt, "lists", most)
	}
	return c
}

// most is what may count towards BlockAt.
func (c *Checker) most() (n int) {
	for _, e := range c.entries {
		switch {
		case e.Dead != "" || e.Weight < 0:
		case e.Block:
			return math.MaxInt
		default:
			n += e.Weight
		}
	}
	return n
}

func (c *Checker) zoneOf(l List) *zone {
	i := slices.IndexFunc(c.zones, func(z *zone) bool { return z.name == l.zone })
	if i < 0 {
		m := c.opts.Metrics
		z := &zone{
			name: l.zone, label: l.Label, info: l.info,
			resolver: c.opts.Resolver, log: c.opts.Log, patience: c.opts.Timeout,
			errors:   m.Counter(errorsTotal, l.Label, "failure"),
			timeouts: m.Counter(errorsTotal, l.Label, "timeout"),
			seconds:  m.Histogram(answerSeconds, l.Label),
			tripped:  make(chan struct{}, 1), wanted: make(chan struct{}, 1),
		}
		m.Gauge(listGood, func() float64 {
			if l.Dead == "" && z.state() == good {
				return 1
			}
			return 0
		}, l.Label)
		i = len(c.zones)
		c.zones = append(c.zones, z)
	}
	z := c.zones[i]
	z.ask |= l.Ask
	z.v4 = z.v4 || l.Ask&IP != 0 && l.V4
	z.v6 = z.v6 || l.Ask&IP != 0 && l.V6
	return z
}

// Run tests the zones, at once and as long as ctx lasts.
func (c *Checker) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, z := range c.alive() {
		wg.Go(func() { z.run(ctx) })
	}
	wg.Wait()
}

// Test tests the zones once.
func (c *Checker) Test(ctx context.Context) {
	var wg sync.WaitGroup
	for _, z := range c.alive() {
		wg.Go(func() { guard(c.opts.Log, func() { z.test(ctx) }) })
	}
	wg.Wait()
}

func (c *Checker) alive() []*zone {
	var zones []*zone
	for _, z := range c.zones {
		if dead(z.name) == "" {
			zones = append(zones, z)
		}
	}
	return zones
}

// An Inquiry is what is asked about one client, and the answers so far.
type Inquiry struct {
	c *Checker

	mu      sync.Mutex
	asks    []*ask
	domains map[Subject]string
	timer   *time.Timer   // of the first question whose time ends
	certain chan struct{} // closed with an answer that makes the verdict certain; nil: nobody waits
}

// An ask is one question.
type ask struct {
	zone    *zone
	subject Subject
	name    string
	addr    netip.Addr // of subject IP
	domain  string     // of the others
	start   time.Time

	// The answer, guarded by the inquiry's mu.
	done    bool
	codes   []netip.Addr
	trusted bool // counts towards Block
	took    time.Duration
	failure string // why there is no answer
}

// Begin asks all lists about the client's address, at once, and returns
// without waiting. A question counts as not answered after Options.Timeout, and
// none that ends after ctx does says anything of the health of a list.
func (c *Checker) Begin(ctx context.Context, addr netip.Addr) *Inquiry {
	q := &Inquiry{c: c}
	addr = addr.Unmap().WithZone("")
	q.ask(ctx, ask{subject: IP, addr: addr}, func(z *zone) string { return name(z.name, addr) })
	return q
}

// Domain asks the domain lists about a host name, or a domain, that the client
// has given, instead of what was asked before for that subject. Address literals
// and names that are addresses are not asked about.
func (q *Inquiry) Domain(ctx context.Context, s Subject, domain string) {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	q.mu.Lock()
	same := q.domains[s] == domain
	if !same {
		if q.domains == nil {
			q.domains = make(map[Subject]string)
		}
		q.domains[s] = domain
		q.asks = slices.DeleteFunc(q.asks, func(a *ask) bool { return a.subject == s })
	}
	q.mu.Unlock()
	if same {
		return
	}
	if !strings.Contains(domain, ".") || !validName(domain) {
		return
	}
	parent, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		parent = domain
	}
	q.ask(ctx, ask{subject: s, domain: domain}, func(z *zone) string {
		d := domain
		if z.info.parent || tooLong(d, z) { // or everybody would choose long names
			d = parent
		}
		if tooLong(d, z) {
			return ""
		}
		return d + "." + z.name
	})
}

func tooLong(domain string, z *zone) bool { return len(domain)+1+len(z.name) > 253 }

// ask puts a question to the zones that it is for.
func (q *Inquiry) ask(ctx context.Context, about ask, name func(*zone) string) {
	about.start = time.Now()
	var put []*ask
	q.mu.Lock()
	for _, z := range q.c.zones {
		a := about
		a.zone = z
		if !slices.ContainsFunc(q.c.entries, func(e *entry) bool { return e.Dead == "" && e.applies(&a) }) {
			continue
		}
		if a.name = name(z); a.name == "" {
			continue
		}
		if z.use() == useless {
			a.done, a.failure = true, notAsked
		} else {
			put = append(put, &a)
		}
		q.asks = append(q.asks, &a)
	}
	if len(put) > 0 && q.timer == nil {
		q.timer = time.AfterFunc(q.c.opts.Timeout, q.expire)
	}
	q.mu.Unlock()
	for _, a := range put {
		if !guard(q.c.opts.Log, func() {
			q.c.opts.Resolver.StartA(a.name, func(answer []netip.Addr, fresh bool, err error) {
				r := a.zone.take(ctx, a, answer, fresh, err)
				q.answer(a, r)
			})
		}) {
			q.answer(a, reply{failure: "internal error"})
		}
	}
}

const (
	notAsked = "not asked" // because of the zone's health
	tooLate  = "no answer in time"
)

// A reply is what a zone has answered.
type reply struct {
	codes   []netip.Addr
	trusted bool
	failure string
}

// answer notes the reply to a question.
func (q *Inquiry) answer(a *ask, r reply) {
	took := time.Since(a.start)
	q.mu.Lock()
	defer q.mu.Unlock()
	if a.done {
		return
	}
	a.done, a.codes, a.trusted, a.failure, a.took = true, r.codes, r.trusted, r.failure, took
	q.changed()
}

// expire ends the questions whose time is over.
func (q *Inquiry) expire() { guard(q.c.opts.Log, q.expireAll) }

func (q *Inquiry) expireAll() {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	next := time.Duration(0)
	for _, a := range q.asks {
		if a.done {
			continue
		}
		left := a.start.Add(q.c.opts.Timeout).Sub(now)
		switch {
		case left <= 0:
			a.done, a.failure, a.took = true, tooLate, now.Sub(a.start)
		case next == 0 || left < next:
			next = left
		}
	}
	q.timer = nil
	if next > 0 {
		q.timer = time.AfterFunc(next, q.expire)
	}
	q.changed()
}

// changed wakes those who wait when there is a reason. It is called with mu
// held.
func (q *Inquiry) changed() {
	if q.timer != nil && !slices.ContainsFunc(q.asks, func(a *ask) bool { return !a.done }) {
		q.timer.Stop()
		q.timer = nil
	}
	if q.certain == nil {
		return
	}
	if _, _, certain := q.bounds(false); certain {
		close(q.certain)
		q.certain = nil
	}
}

// wait waits until ready, which is called with mu held, reports true, or ctx
// ends.
func (q *Inquiry) wait(ctx context.Context, ready func() bool) {
	next := func() <-chan struct{} {
		q.mu.Lock()
		defer q.mu.Unlock() // in a panic too
		if ready() {
			return nil
		}
		if q.certain == nil {
			q.certain = make(chan struct{})
		}
		return q.certain
	}
	for {
		certain := next()
		if certain == nil {
			return
		}
		select {
		case <-certain:
		case <-ctx.Done():
			return
		}
	}
}

// hits reports whether an answer matches.
func (e *entry) hits(a *ask) bool { return slices.ContainsFunc(a.codes, e.Match.Contains) }

// applies reports whether the answer to a is one to e.
func (e *entry) applies(a *ask) bool {
	return e.zone == a.zone && e.Ask&a.subject != 0 && (a.subject != IP || e.asks(a.addr))
}
