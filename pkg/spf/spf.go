// Package spf says whether a client may send for the sender it names (Sender
// Policy Framework, RFC 7208), and whether that says anything: a record may let
// everybody send.
//
// A record is written by whoever owns the sender's domain, and that may be the
// spammer. So what a check may ask is bounded: the terms of RFC 7208 section
// 4.6.4, queries of a check in all, and queries for one client in a minute.
package spf

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
)

var (
	checksTotal = metrics.Desc{Name: "filter_spf_checks_total",
		Help: "Senders that SPF was asked about, by result.", Labels: []string{"result"}}
	queriesTotal = metrics.Desc{Name: "filter_spf_queries_total",
		Help: "Questions to the DNS that checks of SPF have asked."}
	refusedTotal = metrics.Desc{Name: "filter_spf_queries_refused_total",
		Help: "Questions to the DNS that checks of SPF were not allowed to ask, for their number."}
)

// A Status is the result of a check (RFC 7208 section 2.6).
type Status uint8

const (
	None      Status = iota // no record, or no domain that could have one
	Neutral                 // the record says nothing of the client
	Pass                    // the client may send
	Fail                    // it may not
	SoftFail                // it probably may not
	TempError               // the DNS did not answer, or too much was asked for this client; later it may
	PermError               // the record is wrong, or asks for too much
)

// String returns the word of RFC 7208: none, neutral, pass, fail, softfail,
// temperror or permerror.
func (s Status) String() string {
	return [...]string{"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}[s]
}

// A Query is what a client has told of itself.
type Query struct {
	Addr   netip.Addr
	Helo   string
	Sender string // as the client wrote it, without < and >; empty for the null sender: then the HELO name counts (RFC 7208 section 2.4)
}

// A Result is what SPF says of a client and a sender.
type Result struct {
	Status Status
	Domain string // that was asked about: lower case, A-labels; empty if there is none
	// Everybody says that the record lets everybody send who has an address
	// of the client's family. It counts as no record: the Status is None.
	Everybody bool
	// PerAddress says of a pass that it holds for this message and tells
	// nothing of others: the record has terms that need a query for each
	// address or sender (ptr, or the macros i, p, l, s and h), or not all
	// could be asked that shows whether everybody may send.
	PerAddress bool
}

// A Resolver is what a Checker asks. Errors are of type *net.DNSError, and
// IsNotFound says clearly that there is no such record. A *resolve.Resolver is
// one.
type Resolver interface {
	TXT(ctx context.Context, name string) ([]string, error)
	A(ctx context.Context, name string) ([]netip.Addr, error)
	AAAA(ctx context.Context, name string) ([]netip.Addr, error)
	PTR(ctx context.Context, addr netip.Addr) ([]string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
}

// Options are the settings of a Checker. Resolver must be set.
type Options struct {
	Resolver Resolver
	Timeout  time.Duration // of a check; 0 is 5 s
	Log      *slog.Logger  // nil: no log
	Metrics  *metrics.Set  // nil: none
}

const (
	defaultTimeout = 5 * time.Second
	cacheSize      = 4096
	keep           = 10 * time.Minute // a result
	keepError      = 30 * time.Second // a temporary error, or probes without an answer
)

// A Checker checks senders. It keeps results for ten minutes, temporary errors
// for half one, and may be used from several goroutines.
type Checker struct {
	resolver Resolver
	timeout  time.Duration
	prober   *prober
	sources  *sources
	count    counters
	log      *slog.Logger
	broken   guard.Complaints

	mu    sync.Mutex
	cache *lru.Cache[key, *call]
}

type counters struct {
	checks  [PermError + 1]*metrics.Counter
	queries *metrics.Counter
	refused *metrics.Counter
}

// A call is a check that is under way or done, for all who want its result.
type call struct {
	id     identity // of the first
	done   chan struct{}
	cancel context.CancelFunc // until done, guarded by the Checker's mu as users is
	users  int                // who wait for it

	// Valid once done.
	until  time.Time
	uses   uses
	result Result
}

// New returns a Checker.
func New(o Options) *Checker {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	c := &Checker{resolver: o.Resolver, timeout: o.Timeout, prober: newProber(), log: o.Log, broken: guard.Complaints{Log: o.Log}, sources: newSources()}
	c.cache, _ = lru.New[key, *call](cacheSize) // the only error is a size that is not positive
	for s := range c.count.checks {
		c.count.checks[s] = o.Metrics.Counter(checksTotal, Status(s).String())
	}
	c.count.queries = o.Metrics.Counter(queriesTotal)
	c.count.refused = o.Metrics.Counter(refusedTotal)
	return c
}

// Check says whether a client may send for its sender. It takes no longer than
// Options.Timeout; when that or ctx ends it, the result is TempError. A check
// that nobody waits for any more is ended.
func (c *Checker) Check(ctx context.Context, q Query) Result {
	r := Result{}
	if id := identify(q); id.domain != "" {
		r = c.result(ctx, id)
	}
	c.count.checks[r.Status].Inc()
	return r
}

func (c *Checker) result(ctx context.Context, id identity) Result {
	var u uses
	for {
		m := c.wait(ctx, id.key(u), id)
		switch {
		case m == nil:
			return Result{Status: TempError, Domain: id.domain}
		case m.id.key(m.uses) == id.key(m.uses):
			return m.result
		}
		u |= m.uses // the result is another sender's
	}
}

// wait returns what is known under k once it is done, or nil when ctx ends. If
// nothing is known it begins a check.
func (c *Checker) wait(ctx context.Context, k key, id identity) *call {
	c.mu.Lock()
	m, ok := c.cache.Get(k)
	if !ok || m.isDone() && !time.Now().Before(m.until) {
		m = c.start(ctx, id)
		c.cache.Add(k, m)
	}
	m.users++
	c.mu.Unlock()

	select {
	case <-m.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.users--
	if m.isDone() {
		return m
	}
	if m.users == 0 {
		m.cancel()
		if now, _ := c.cache.Peek(k); now == m {
			c.cache.Remove(k)
		}
	}
	return nil
}

func (m *call) isDone() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// start begins a check. Others than the first may wait for it: it does not end
// with ctx.
func (c *Checker) start(ctx context.Context, id identity) *call {
	m := &call{id: id, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	m.cancel = cancel
	m.result, m.until = Result{Status: TempError, Domain: id.domain}, time.Now().Add(keepError)
	guard.Go(c.log, "spf", func() {
		defer func() {
			cancel()
			c.mu.Lock()
			defer c.mu.Unlock()
			close(m.done)
			m.cancel = nil // what is kept holds nothing of who asked
		}()
		w := &walk{ctx: ctx, c: c, id: id, client: c.sources.of(id.addr), left: maxQueries}
		m.result, m.uses = w.check()
		if m.result.Status != TempError && !w.silent {
			m.until = time.Now().Add(keep)
		}
	})
	return m
}
