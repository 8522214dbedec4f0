package dnsbl

import (
	"context"
	"log/slog"
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
	A(ctx context.Context, name string) ([]netip.Addr, error)
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
	Resolver        Resolver
	Log             *slog.Logger // nil: no log
	Metrics         *metrics.Set // nil: no metrics
}

// A Checker asks lists about clients. It may be used from several goroutines.
type Checker struct {
	opts    Options
	entries []entry
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
	c := &Checker{opts: o, hits: make(map[string]*metrics.Counter)}
	var keys []string
	for _, l := range o.Lists {
		if l.Dead != "" {
			o.Log.Warn("list is dead and not asked; remove it", "list", l.Label, "why", l.Dead)
		}
		keys = append(keys, Keys(l.zone)...)
		c.entries = append(c.entries, entry{l, c.zoneOf(l)})
		c.hits[l.Label] = o.Metrics.Counter(metrics.Label("dnsbl_hits_total", "list", l.Label))
	}
	c.redact = Redactor(keys)
	return c
}

func (c *Checker) zoneOf(l List) *zone {
	i := slices.IndexFunc(c.zones, func(z *zone) bool { return z.name == l.zone })
	if i < 0 {
		count := func(kind string) *metrics.Counter {
			return c.opts.Metrics.Counter(metrics.Label(metrics.Label("dnsbl_errors_total", "kind", kind), "list", l.Label))
		}
		z := &zone{
			name: l.zone, label: l.Label, info: l.info,
			resolver: c.opts.Resolver, log: c.opts.Log,
			errors: count("failure"), timeouts: count("timeout"),
			tripped: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
		}
		c.opts.Metrics.Gauge(metrics.Label("dnsbl_list_good", "list", l.Label), func() float64 {
			if l.Dead == "" && z.state() == good {
				return 1
			}
			return 0
		})
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
	changed chan struct{} // closed when there is another answer
	domains map[Subject]string
}

// An ask is one question.
type ask struct {
	zone    *zone
	subject Subject
	name    string
	addr    netip.Addr // of subject IP

	// The answer, guarded by the inquiry's mu.
	done    bool
	codes   []netip.Addr
	trusted bool // counts towards Block
	good    bool // the zone was well
	took    time.Duration
	failure string // why there is no answer
}

// Begin asks all lists about the client's address, at once, and returns
// without waiting. Questions end with ctx, or after Options.Timeout.
func (c *Checker) Begin(ctx context.Context, addr netip.Addr) *Inquiry {
	q := &Inquiry{c: c, changed: make(chan struct{}), domains: make(map[Subject]string)}
	addr = addr.Unmap().WithZone("")
	q.ask(ctx, IP, addr, func(z *zone) string { return name(z.name, addr) })
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
	q.ask(ctx, s, netip.Addr{}, func(z *zone) string {
		d := domain
		if z.info.parent {
			d = parent
		}
		if len(d)+1+len(z.name) > 253 {
			return ""
		}
		return d + "." + z.name
	})
}

func (q *Inquiry) ask(ctx context.Context, s Subject, addr netip.Addr, name func(*zone) string) {
	for _, z := range q.c.zones {
		if !slices.ContainsFunc(q.c.entries, func(e entry) bool {
			return e.zone == z && e.Dead == "" && (s == IP && e.asks(addr) || s != IP && e.Ask&s != 0)
		}) {
			continue
		}
		a := &ask{zone: z, subject: s, name: name(z), addr: addr}
		switch {
		case a.name == "":
			continue
		case z.use() == useless:
			a.done, a.failure = true, notAsked
		}
		q.mu.Lock()
		q.asks = append(q.asks, a)
		q.mu.Unlock()
		if !a.done {
			go guard(q.c.opts.Log, func() { q.put(ctx, a) })
		}
	}
}

const notAsked = "not asked" // because of the zone's health

// put puts a question to the resolver.
func (q *Inquiry) put(parent context.Context, a *ask) {
	r := ask{failure: "internal error"}
	start := time.Now()
	defer func() { q.done(a, r, time.Since(start)) }()
	ctx, cancel := context.WithTimeout(parent, q.c.opts.Timeout)
	defer cancel()
	answer, err := q.c.opts.Resolver.A(ctx, a.name)
	if err != nil && !notListed(err) {
		r.failure = reason(err)
		if parent.Err() == nil {
			a.zone.failed(a.name, ctx.Err() != nil)
		}
		return
	}
	r.failure = ""
	r.codes = a.zone.answered(answer, a.subject)
	switch a.zone.state() {
	case good:
		r.trusted, r.good = true, true
	case useless:
		r.codes = nil
	}
}

func (q *Inquiry) done(a *ask, r ask, took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.done, a.codes, a.trusted, a.good, a.failure, a.took = true, r.codes, r.trusted, r.good, r.failure, took
	close(q.changed)
	q.changed = make(chan struct{})
}

// hit returns the codes of an answer that match.
func (e entry) hit(a *ask) []netip.Addr {
	if !a.done {
		return nil
	}
	var codes []netip.Addr
	for _, code := range a.codes {
		if e.Match.Contains(code) {
			codes = append(codes, code)
		}
	}
	return codes
}

// applies reports whether the answer to a is one to e.
func (e entry) applies(a *ask) bool {
	return e.zone == a.zone && e.Ask&a.subject != 0 && (a.subject != IP || e.asks(a.addr))
}
