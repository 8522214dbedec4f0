// Package senderscore asks for the Sender Score of an address: what Validity
// thinks of a sender of mail, from 0, the worst, to 100.
//
// The name asked for is the address in reverse under the zone, the answer
// 127.0.4.N with the score N. Few addresses have one. Validity answers a
// resolver that has not registered, or asks too much, with 127.255.255.255;
// without registration 10,000 queries in 30 days are free. So nothing is asked
// twice that can be remembered, queries are counted over restarts, and a zone
// that refuses is left alone for a while.
package senderscore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

const (
	// Zone is the zone of Validity.
	Zone = "score.senderscore.com"

	// Quota is how many queries Validity answers in 30 days without
	// registration, since March 2024.
	Quota = 10_000

	noDataTTL = 6 * time.Hour
	failedTTL = time.Minute
	cacheSize = 65536 // addresses, about 10 MB

	minPause = 10 * time.Minute
	maxPause = 24 * time.Hour
	// A query that is to show whether the pause is over has so long before
	// there is another.
	probeTime = time.Minute

	// So many lookups in a row are not chance: without an answer, with one that is
	// no score, or without an address though the name exists.
	maxFailures = 5
	maxStrange  = 3
	maxEmpty    = 3
)

// A Status says what came of a lookup.
type Status string

const (
	Known   Status = "known"       // there is a score
	NoData  Status = "no data"     // the zone does not know the address, which says nothing about it
	Failed  Status = "dns trouble" // no answer, or none that means anything
	Refused Status = "refused"     // the zone does not answer this resolver
	Spent   Status = "quota spent"
)

// A Result is what a lookup has found.
type Result struct {
	Status Status
	Score  int   // 0 to 100 if Known
	Err    error // what is wrong if Failed
}

// A Resolver looks names up, as one of package resolve does. An error that is
// not a *net.DNSError with IsNotFound is no statement about the name. An answer
// that is a refusal counts of the first server only.
type Resolver interface {
	FreshA(ctx context.Context, name string, refusal resolve.Refusal) ([]netip.Addr, error)
	FreshNS(ctx context.Context, name string) ([]string, error)
}

// Options are the settings of a Client. All but Resolver may be zero.
type Options struct {
	Resolver Resolver
	Zone     string        // default Zone
	MaxTTL   time.Duration // how long a score is kept, default 12 h; "no data" for 6 h at most, errors for a minute

	// Quota is the number of queries in 30 days; past it every lookup is
	// Spent. 0 is no limit.
	Quota int

	// StateFile keeps the number of queries over a restart, see Run. Trouble
	// with it is logged and changes nothing else. "" is none.
	StateFile string

	Log     *slog.Logger // nil: no log
	Metrics *metrics.Set // nil: no metrics
}

// What is counted.
var (
	lookupsTotal = metrics.Desc{Name: "filter_senderscore_lookups_total",
		Help: "Lookups of sender scores, by result.", Labels: []string{"result"}}
	hitsTotal = metrics.Desc{Name: "filter_senderscore_cache_hits_total",
		Help: "Lookups of sender scores that needed no query."}
	queriesUsed = metrics.Desc{Name: "filter_senderscore_queries_30d",
		Help: "Queries for sender scores in the last 30 days, which are what the quota is about."}
	zoneGood = metrics.Desc{Name: "filter_senderscore_zone_good",
		Help: "Whether the zone of sender scores answers: 1, or 0 while it refuses."}
)

// A Client looks scores up. It may be used from several goroutines.
type Client struct {
	opts   Options
	count  *count
	health *resolve.Health
	cache  *lru.Cache[netip.Addr, cached]

	hits    *metrics.Counter
	results map[Status]*metrics.Counter

	mu      sync.Mutex
	flights map[netip.Addr]*flight
	spent   bool // as logged
	refused bool // the zone has refused, and has not answered since
	probing bool // while refused: a query is at work to see if it still does
	until   time.Time
	pause   time.Duration

	failures, strange, empty int // lookups in a row
}

type cached struct {
	result Result
	until  time.Time
}

// A flight is a query at work; done is closed when result is set.
type flight struct {
	done   chan struct{}
	result Result
}

// New returns a client. It reads the state file.
func New(o Options) *Client {
	if o.Zone == "" {
		o.Zone = Zone
	}
	if o.MaxTTL == 0 {
		o.MaxTTL = 12 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		opts:    o,
		count:   newCount(o.StateFile, o.Log),
		hits:    o.Metrics.Counter(hitsTotal),
		results: make(map[Status]*metrics.Counter),
		flights: make(map[netip.Addr]*flight),
	}
	c.health = resolve.NewHealth(o.Resolver, o.Log, c.recovered)
	c.cache, _ = lru.New[netip.Addr, cached](cacheSize) // fails for a size below one only
	for _, s := range []Status{Known, NoData, Failed, Refused, Spent} {
		c.results[s] = o.Metrics.Counter(lookupsTotal, string(s))
	}
	o.Metrics.Gauge(zoneGood, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refused {
			return 0
		}
		return 1
	})
	o.Metrics.Gauge(queriesUsed, func() float64 { return float64(c.Used()) })
	return c
}

// Run keeps the state file up to date until ctx ends, and writes it then. It
// finds out when a resolver that was in trouble is well again.
func (c *Client) Run(ctx context.Context) {
	guard.Keep(ctx, c.opts.Log, "resolver", c.health.Run)
	c.count.run(ctx)
	<-ctx.Done() // without a state file there is nothing to do
}

// Trouble says what is wrong with the resolver, "" if nothing is known to be.
func (c *Client) Trouble() string {
	if t := c.health.Trouble(); t != resolve.Well {
		return t.String()
	}
	return ""
}

// Used returns the number of queries of the last 30 days.
func (c *Client) Used() int {
	n, _ := c.count.used(today())
	return n
}

// Warnings returns what is probably not meant by these thresholds; below 1 is off.
func Warnings(blockBelow, junkBelow int) (lines []string) {
	for _, t := range []struct {
		flag string
		at   int
	}{{"-blockBelow", blockBelow}, {"-junkBelow", junkBelow}} {
		switch {
		case t.at > 101:
			lines = append(lines, fmt.Sprintf("%s %d: scores go from 0 to 100, so it is every client that has one", t.flag, t.at))
		case t.at == 0:
			lines = append(lines, fmt.Sprintf("%s 0: no score is below it", t.flag))
		}
	}
	if junkBelow > 0 && junkBelow <= blockBelow {
		lines = append(lines, fmt.Sprintf("-junkBelow %d is not above -blockBelow %d: nothing is junked", junkBelow, blockBelow))
	}
	return lines
}

// Scored reports whether an address can have a score: if it is a public IPv4
// address.
func Scored(addr netip.Addr) bool { return addr.Unmap().Is4() && !ipset.Private(addr) }

// Lookup returns the score of an address, with one query at most. Lookups of
// the same address share it. Only an address that is Scored is asked for.
func (c *Client) Lookup(ctx context.Context, addr netip.Addr) Result {
	addr = addr.Unmap()
	if !Scored(addr) {
		return Result{Status: NoData}
	}
	r := c.lookup(ctx, addr)
	c.results[r.Status].Inc()
	return r
}

// Cached returns the score of an address if it is known without a query.
func (c *Client) Cached(addr netip.Addr) (Result, bool) {
	c.health.Use()
	c.mu.Lock()
	e, ok := c.cache.Get(addr.Unmap())
	c.mu.Unlock()
	if !ok || !time.Now().Before(e.until) {
		return Result{}, false
	}
	c.hits.Inc()
	c.results[e.result.Status].Inc()
	return e.result, true
}

func (c *Client) lookup(ctx context.Context, addr netip.Addr) Result {
	c.health.Use()
	trouble := c.health.Trouble()
	c.mu.Lock()
	now := time.Now()
	if e, ok := c.cache.Get(addr); ok && now.Before(e.until) {
		c.mu.Unlock()
		c.hits.Inc()
		return e.result
	}
	if f := c.flights[addr]; f != nil {
		c.mu.Unlock()
		select {
		case <-f.done:
			return f.result
		case <-ctx.Done():
			return Result{Status: Failed, Err: ctx.Err()}
		}
	}
	if trouble.Useless() { // a query would be counted for nothing
		c.mu.Unlock()
		return Result{Status: Failed, Err: errors.New(trouble.String())}
	}
	if s := c.may(now); s != "" {
		c.mu.Unlock()
		return Result{Status: s}
	}
	f := &flight{done: make(chan struct{}), result: Result{Status: Failed, Err: errors.New("internal error")}}
	c.flights[addr] = f
	c.mu.Unlock()

	defer func() { // also if the resolver panics
		c.mu.Lock()
		defer c.mu.Unlock()
		c.learn(time.Now(), addr, f.result)
		delete(c.flights, addr)
		close(f.done)
	}()
	addrs, err := c.opts.Resolver.FreshA(ctx, ipset.ReverseName(addr.Unmap(), c.opts.Zone), refusal)
	f.result = read(addrs, err)
	c.judge(ctx, f.result, addrs, err)
	return f.result
}

// refusal reports whether the zone does not serve who asks.
func refusal(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return a.Is4() && a.As4()[0] == 127 && a.As4()[1] == 255 && a.As4()[2] == 255
	})
}

// judge blames the resolver when it is its fault that there are no scores. A name
// below the zone has a score or does not exist: one that exists without an address
// has had it removed.
func (c *Client) judge(ctx context.Context, r Result, addrs []netip.Addr, err error) {
	if ctx.Err() == context.Canceled { // the client has left
		return
	}
	empty := errors.Is(err, resolve.ErrNoData)
	if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() && a.As4()[0] == 127 }) {
		c.health.Clear(resolve.Filters)
	}
	c.mu.Lock()
	var suspect, filters bool
	switch {
	case empty:
		c.failures, c.strange = 0, 0
		c.empty++
		filters = c.empty == maxEmpty
	case r.Status == Failed && err != nil:
		c.failures++
		suspect = c.failures%maxFailures == 0
	case r.Status == Failed:
		c.failures = 0
		c.strange++
		suspect = c.strange%maxStrange == 0
	case r.Status == NoData:
		c.failures, c.strange = 0, 0
	default:
		c.failures, c.strange, c.empty = 0, 0, 0
	}
	c.mu.Unlock()
	if filters {
		c.health.Blame(resolve.Filters, nil)
	}
	if suspect {
		guard.Go(c.opts.Log, "resolver", func() {
			// An answer that is no score does not mean that there is none at all.
			t := c.health.Judge(context.Background())
			if t == resolve.Down && err != nil || t == resolve.Invents {
				c.health.Blame(t, nil)
			}
		})
	}
}

// recovered forgets what the resolver has said while it was not well.
func (c *Client) recovered(resolve.Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures, c.strange, c.empty = 0, 0, 0
	for _, a := range c.cache.Keys() {
		if e, ok := c.cache.Peek(a); ok && e.result.Status != Known {
			c.cache.Remove(a)
		}
	}
}

// read says what an answer means. Of several scores the best counts.
func read(addrs []netip.Addr, err error) Result {
	if err != nil {
		if e := (*net.DNSError)(nil); errors.As(err, &e) && e.IsNotFound {
			return Result{Status: NoData}
		}
		return Result{Status: Failed, Err: err}
	}
	best := -1
	for _, a := range addrs {
		if !a.Is4() {
			continue
		}
		b := a.As4()
		switch {
		case b[0] == 127 && b[1] == 255 && b[2] == 255:
			return Result{Status: Refused}
		case b[0] == 127 && b[1] == 0 && b[2] == 4 && b[3] <= 100:
			best = max(best, int(b[3]))
		}
	}
	if best < 0 {
		return Result{Status: Failed, Err: fmt.Errorf("the answer %v is not a score", addrs)}
	}
	return Result{Status: Known, Score: best}
}

// may counts a query that may be sent, or says why it may not.
func (c *Client) may(now time.Time) Status {
	probe := c.refused && !now.Before(c.until)
	if c.refused && !probe {
		return Refused
	}
	if day := dayOf(now); !c.count.take(day, c.opts.Quota) {
		if !c.spent {
			c.spent = true
			_, free := c.count.used(day)
			c.opts.Log.Warn("the quota is spent: until some queries are 30 days old there are no scores and all mail passes",
				"quota", c.opts.Quota, "until", free)
		}
		return Spent
	}
	c.spent = false
	if probe {
		c.probing = true
		c.until = now.Add(probeTime)
	}
	return ""
}

// learn takes over what a query has brought.
func (c *Client) learn(now time.Time, addr netip.Addr, r Result) {
	keep := min(c.opts.MaxTTL, noDataTTL)
	switch r.Status {
	case Refused:
		c.refuse(now)
		return
	case Failed:
		keep = failedTTL
	case Known:
		keep = c.opts.MaxTTL
	}
	// What was asked before the pause began does not end it.
	if c.probing && r.Status != Failed {
		c.refused, c.probing = false, false
		c.opts.Log.Info("the zone answers again", "zone", c.opts.Zone)
	}
	c.cache.Add(addr, cached{r, now.Add(keep)})
}

// refuse begins a pause, or a longer one. What was asked before the pause began
// does not count.
func (c *Client) refuse(now time.Time) {
	switch {
	case !c.refused:
		c.refused = true
		c.pause = minPause
		c.opts.Log.Warn("the zone refuses to answer: the DNS server that asks it must be registered with Validity (my.validity.com);"+
			" until then there are no scores and all mail passes", "zone", c.opts.Zone, "next", c.pause)
	case c.probing:
		c.pause = min(2*c.pause, maxPause)
		c.opts.Log.Debug("the zone still refuses to answer", "zone", c.opts.Zone, "next", c.pause)
	default:
		return
	}
	c.probing = false
	c.until = now.Add(c.pause)
}
