package dnsbl

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

// A Resolver is what a Checker asks. Errors are of type *net.DNSError; one that
// IsNotFound says clearly that there is no such record. A *resolve.Resolver is
// one.
type Resolver interface {
	// StartA calls then once, now or later. Fresh tells that the answer is to
	// a query that was sent for this call, and not from a cache or to a
	// query of another one.
	// An answer that is a refusal counts of the first server only.
	StartA(name string, refusal resolve.Refusal, then func(addrs []netip.Addr, fresh bool, err error))
	FreshA(ctx context.Context, name string, refusal resolve.Refusal) ([]netip.Addr, error) // not from a cache
	FreshNS(ctx context.Context, name string) ([]string, error)                             // "" is the root
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
	opts   Options
	health *resolve.Health
	wake   chan struct{} // for Run
	set    atomic.Pointer[lists]
	ctx    context.Context // of tests
	cancel context.CancelFunc
	tests  sync.WaitGroup

	mu       sync.Mutex
	answered time.Time // when any list has, clearly
}

// lists are those in use. They are replaced, never changed.
type lists struct {
	entries []*item
	zones   []*zone
	redact  func(string) string
	counts  map[string]counts // by label
}

// counts are those of a label.
type counts struct{ hits, shared, decisive *metrics.Counter }

// An item is a list and the zone it shares with others.
type item struct {
	List
	zone *zone
}

// New returns a Checker. It asks nothing yet.
func New(o Options) *Checker {
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Checker{opts: o, wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.health = resolve.NewHealth(o.Resolver, o.Log, c.recovered)
	c.use(o.Lists)
	return c
}

// Use replaces the lists. Those that stay keep their health; inquiries under way
// keep the lists they have begun with. What is odd about them is logged.
func (c *Checker) Use(all []List) {
	o := c.opts
	o.Lists = all
	for _, w := range o.Warnings() {
		o.Log.Warn(w)
	}
	c.use(all)
}

func (c *Checker) use(all []List) {
	o := c.opts
	o.Lists = Distinct(all)
	s := &lists{counts: make(map[string]counts)}
	var keys []string
	byZone := make(map[string][]List)
	for _, l := range o.Lists {
		keys = append(keys, Keys(l.zone)...)
		byZone[l.zone] = append(byZone[l.zone], l)
	}
	for _, l := range o.Lists {
		i := slices.IndexFunc(s.zones, func(z *zone) bool { return z.name == l.zone })
		if i < 0 {
			i = len(s.zones)
			s.zones = append(s.zones, c.zoneOf(byZone[l.zone]))
		}
		s.entries = append(s.entries, &item{l, s.zones[i]})
		m := o.Metrics
		s.counts[l.Label] = counts{m.Counter(hitsTotal, l.Label), m.Counter(sharedTotal, l.Label), m.Counter(decisiveTotal, l.Label)}
	}
	s.redact = Redactor(keys)
	c.set.Store(s)
	c.awake()
}

// zoneOf returns the zone of these lists: the one in use, if it is asked the same.
func (c *Checker) zoneOf(of []List) *zone {
	first := of[0]
	m := c.opts.Metrics
	z := &zone{
		c: c, name: first.zone, label: first.Label, info: first.info, why: first.Dead,
		errors:   m.Counter(errorsTotal, first.Label, "failure"),
		timeouts: m.Counter(errorsTotal, first.Label, "timeout"),
		asked:    m.Counter(askedTotal, first.Label),
		seconds:  m.Histogram(answerSeconds, first.Label),
	}
	var families [3]bool
	for _, l := range of {
		z.ask |= l.Ask
		z.matches = append(z.matches, l.Match)
		families[inet] = families[inet] || l.Ask&IP != 0 && l.V4
		families[inet6] = families[inet6] || l.Ask&IP != 0 && l.V6
		families[hosts] = families[hosts] || l.Ask&^IP != 0
	}
	for f, on := range families {
		if on {
			z.parts = append(z.parts, &part{zone: z, family: family(f)})
		}
	}
	if old := c.set.Load(); old != nil {
		i := slices.IndexFunc(old.zones, func(o *zone) bool { return o.same(z) })
		if i >= 0 {
			return old.zones[i]
		}
	}
	m.Gauge(listGood, func() float64 {
		for _, z := range c.set.Load().zones { // it may be another one by then
			if z.label == first.Label && z.why == "" && z.well() {
				return 1
			}
		}
		return 0
	}, first.Label)
	return z
}

// same reports whether z and o are asked the same and told apart by nothing.
func (z *zone) same(o *zone) bool {
	return z.name == o.name && z.label == o.label && z.ask == o.ask && z.why == o.why &&
		slices.EqualFunc(z.parts, o.parts, func(a, b *part) bool { return a.family == b.family }) &&
		slices.EqualFunc(z.matches, o.matches, func(a, b Match) bool { return a.text == b.text })
}

// Trouble says what is wrong with the resolver, "" if nothing is known to be.
func (c *Checker) Trouble() string {
	if t := c.health.Trouble(); t != resolve.Well {
		return t.String()
	}
	return ""
}

func (c *Checker) awake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run tests the zones, at once and as long as ctx lasts: every 15 minutes while
// they are in use, and more often while they are not well.
func (c *Checker) Run(ctx context.Context) {
	defer c.close()
	guard.Keep(ctx, c.opts.Log, "resolver", c.health.Run)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		guard.Run(c.opts.Log, "lists", func() { timer.Reset(c.testDue()) })
	}
}

// close ends all tests.
func (c *Checker) close() {
	c.cancel()
	c.tests.Wait()
}

// testDue starts the tests that are due. It returns when to call it again.
func (c *Checker) testDue() time.Duration {
	now := time.Now()
	next := now.Add(testInterval)
	if c.health.Trouble().Useless() { // recovered starts them
		return testInterval
	}
	for _, z := range c.alive() {
		var due []*part
		z.mu.Lock()
		for _, p := range z.parts {
			if at := p.due(now); at.After(now) {
				next = earlier(next, at)
			} else {
				due = append(due, p)
			}
		}
		z.mu.Unlock()
		if due != nil {
			z.start(due...)
		}
	}
	return next.Sub(now)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Test tests the zones once, and waits for that.
func (c *Checker) Test(ctx context.Context) {
	var runs []*run
	for _, z := range c.alive() {
		runs = append(runs, z.start(z.parts...))
	}
	for _, r := range runs {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
	}
}

// alive returns the zones that are asked.
func (c *Checker) alive() []*zone {
	return slices.DeleteFunc(slices.Clone(c.set.Load().zones), func(z *zone) bool { return z.why != "" })
}

// An Inquiry is what is asked about one client, and the answers so far.
type Inquiry struct {
	c   *Checker
	set *lists

	mu      sync.Mutex
	asks    []*ask
	domains map[Subject]string
	timer   *time.Timer     // of the first question whose time ends
	certain chan struct{}   // closed with an answer that makes the verdict certain; nil: nobody waits
	counted map[string]bool // what is, of this client
}

// An ask is one question.
type ask struct {
	zone    *zone
	part    *part
	subject Subject
	name    string
	addr    netip.Addr // of subject IP
	domain  string     // of the others
	network string     // who shares it is one to doubt
	start   time.Time

	// The answer, guarded by the inquiry's mu.
	done    bool
	at      time.Time
	codes   []netip.Addr
	took    time.Duration
	failure string // why there is no answer
}

// Begin asks all lists about the client's address, at once, and returns
// without waiting. A question counts as not answered after Options.Timeout, and
// none that ends after ctx does says anything of the health of a list.
func (c *Checker) Begin(ctx context.Context, addr netip.Addr) *Inquiry {
	q := &Inquiry{c: c, set: c.set.Load()}
	addr = addr.Unmap().WithZone("")
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	network, _ := addr.Prefix(bits)
	q.ask(ctx, ask{subject: IP, addr: addr, network: network.String()}, func(z *zone) string { return name(z.name, addr) })
	return q
}

// Domain asks the domain lists about a host name, or a domain, that the client
// has given, instead of what was asked before for that subject. Of a name that is
// not ASCII the A-label form is asked (RFC 5891 section 4.4). Address literals and
// names that are addresses are not asked about.
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
	domain = asciiName(domain)
	if !strings.Contains(domain, ".") || !validName(domain) {
		return
	}
	parent, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		parent = domain
	}
	q.ask(ctx, ask{subject: s, domain: domain, network: parent}, func(z *zone) string {
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

// Asks reports whether any list is asked about names of a kind.
func (q *Inquiry) Asks(s Subject) bool {
	return slices.ContainsFunc(q.set.entries, func(e *item) bool { return e.Dead == "" && e.Ask&s != 0 })
}

// asciiName returns a name with its U-labels as A-labels, "" if it has none to
// have.
func asciiName(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 {
		return s
	}
	a, err := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false)).ToASCII(s)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(a, ".")
}

func tooLong(domain string, z *zone) bool { return len(domain)+1+len(z.name) > 253 }

// ask puts a question to the zones that it is for.
func (q *Inquiry) ask(ctx context.Context, about ask, name func(*zone) string) {
	about.start = time.Now()
	var put []*ask
	q.mu.Lock()
	for _, z := range q.set.zones {
		a := about
		a.zone = z
		if !slices.ContainsFunc(q.set.entries, func(e *item) bool { return e.Dead == "" && e.applies(&a) }) {
			continue
		}
		if a.name = name(z); a.name == "" {
			continue
		}
		a.part = z.part(&a)
		if a.part.use() {
			put = append(put, &a)
		} else {
			a.done, a.failure = true, notAsked
		}
		q.asks = append(q.asks, &a)
	}
	q.limit(len(put) > 0)
	q.mu.Unlock()
	q.put(ctx, put)
}

// limit sets the timer if there are questions and none is set. It is called with
// mu held.
func (q *Inquiry) limit(questions bool) {
	if questions && q.timer == nil {
		q.timer = guard.AfterFunc(q.c.opts.Log, q.c.opts.Timeout, "lists", q.expire)
	}
}

func (q *Inquiry) put(ctx context.Context, asks []*ask) {
	for _, a := range asks {
		a.zone.asked.Inc()
		if !guard.Run(q.c.opts.Log, "lists", func() {
			q.c.opts.Resolver.StartA(a.name, a.zone.refusal, func(answer []netip.Addr, fresh bool, err error) {
				r := a.zone.take(ctx, a, answer, fresh, err)
				q.answer(a, r)
			})
		}) {
			q.answer(a, reply{failure: "internal error"})
		}
	}
}

// again asks the lists that were not asked because they were not well, or whose
// answers are not to be believed, and that are well now.
func (q *Inquiry) again(ctx context.Context) {
	now := time.Now()
	var put []*ask
	q.mu.Lock()
	for i, a := range q.asks {
		if !a.done || a.failure != notAsked && (a.failure != "" || a.part.believes(a.at)) || a.part.state() != good {
			continue
		}
		b := &ask{zone: a.zone, part: a.part, subject: a.subject, name: a.name, addr: a.addr, domain: a.domain, network: a.network, start: now}
		q.asks[i] = b
		put = append(put, b)
	}
	q.limit(len(put) > 0)
	q.mu.Unlock()
	q.put(ctx, put)
}

const (
	notAsked = "not asked" // because of the zone's health
	tooLate  = "no answer in time"
)

// A reply is what a zone has answered.
type reply struct {
	codes   []netip.Addr
	failure string
}

// answer notes the reply to a question.
func (q *Inquiry) answer(a *ask, r reply) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if a.done {
		return
	}
	a.done, a.at, a.codes, a.failure, a.took = true, now, r.codes, r.failure, now.Sub(a.start)
	q.changed()
}

// expire ends the questions whose time is over.
func (q *Inquiry) expire() {
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
		q.timer = guard.AfterFunc(q.c.opts.Log, next, "lists", q.expire)
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
	if q.bounds(false).certain {
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
func (e *item) hits(a *ask) bool { return slices.ContainsFunc(a.codes, e.Match.Contains) }

// applies reports whether the answer to a is one to e.
func (e *item) applies(a *ask) bool {
	return e.zone == a.zone && e.Ask&a.subject != 0 && (a.subject != IP || e.asks(a.addr))
}
