// Package resolve is a DNS client for programs that run for months and must
// not hang: it asks recursive servers, as resolv.conf(5) names them, and
// remembers what they said.
//
// A lookup has one deadline, whatever it takes: retries, other servers, TCP
// for a truncated answer. Lookups of the same name and type share one query,
// and a caller that stops waiting does not end it: the answer fills the cache.
// Memory, sockets and queries in flight are bounded; past the bounds a lookup
// fails at once with a temporary error.
//
// Errors are of type *[net.DNSError]. IsNotFound is a clear answer: the name
// does not exist or has no such record. Everything else is IsTemporary, and
// IsTimeout as well when nobody answered in time: no statement about the name.
// An error that is [ErrNoData] too says that the name exists.
// The error's text contains the name; a name that carries a key must not be
// logged that way. This package never logs names.
//
// Names are absolute, with or without the final dot, in the presentation form
// of RFC 1035 section 5.1 (a dot inside a label is \.), and compared without
// regard to ASCII case.
package resolve

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
)

// SystemConf is the file that says which servers the system asks.
const SystemConf = "/etc/resolv.conf"

const (
	defaultTimeout     = 2 * time.Second
	defaultCacheSize   = 65536
	defaultMaxTTL      = 24 * time.Hour
	defaultNegativeTTL = time.Hour // RFC 2308 section 5: one to three hours work well
	defaultErrorTTL    = 5 * time.Second
	defaultMaxInFlight = 16384
)

// ErrNoData is wrapped by an error about a name that is said to exist, or to have
// others below it, without records of the type asked for (RFC 2308 section 2.2). It
// is temporary if the answer was not complete.
var ErrNoData = errors.New("no such record")

// A Refusal tells whether addresses say that the server which has answered is not
// served: lists in the DNS have codes for that. Of a server that is not the first
// one it is no answer, and the others are waited for. Nil is never.
type Refusal func([]netip.Addr) bool

// Options are the settings of a [Resolver]. The zero value is usable.
type Options struct {
	// Servers are asked in this order, see [ParseServers]. Only the first
	// eight count. None: those of Conf, which is read again when it changes.
	Servers []netip.AddrPort

	// Conf is a resolv.conf(5) file, by default SystemConf. Of it
	// count the first three nameservers and the options timeout and attempts.
	Conf string

	// Timeout is the deadline of a lookup; 0 is 2 s.
	Timeout time.Duration

	// CacheSize is the number of answers kept; 0 is 65,536. The cache holds
	// at most 32 MB of them, whatever the number.
	CacheSize int

	// MinTTL and MaxTTL bound the time an answer is kept; 0 is no least
	// time, and at most 24 h. MaxTTL wins over MinTTL.
	MinTTL, MaxTTL time.Duration

	// NegativeTTL is how long "no such name" is kept at most; 0 is 1 h.
	NegativeTTL time.Duration

	// ErrorTTL is how long a temporary error is kept; 0 is 5 s.
	ErrorTTL time.Duration

	// MaxInFlight is the number of queries at work at a time; 0 is 16,384.
	MaxInFlight int

	Log     *slog.Logger // nil: no log
	Metrics *metrics.Set // nil: no metrics
}

// A Resolver looks names up. It may be used from several goroutines.
type Resolver struct {
	opts  Options
	cache *cache
	count counters
	log   guard.Complaints
	dial  func(netip.AddrPort) exchanger // replaced by tests

	judged atomic.Bool // a Health says when nobody answers

	conf   atomic.Pointer[config]
	confMu sync.Mutex   // held while the file is looked at
	seen   confStamp    // guarded by confMu
	looked atomic.Int64 // when the file was, in nanoseconds
	tcp    chan struct{}

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	flights map[key]*flight
	closed  bool
}

// A key is a question: a name in lower case without the final dot, and a type.
type key struct {
	name string
	typ  uint16
}

// A flight is a query at work, and those who wait for the answer; the first of
// them has sent it.
type flight struct {
	exchange
	waiters []waiter
}

// A waiter is called with an answer, and whether the query was sent for it.
type waiter func(a *answer, fresh bool)

// An answer is what is known about a key. It is shared and never changed.
type answer struct {
	addrs   []netip.Addr // A, AAAA
	strs    []string     // TXT; NS and PTR with the final dot
	mx      []net.MX
	err     *net.DNSError
	ttl     time.Duration // as it came, before the bounds
	expires time.Time
}

// New returns a resolver. It does no network traffic; a Conf that cannot be
// read is logged, and 127.0.0.1 asked, until it can.
func New(o Options) *Resolver {
	r := newResolver(o)
	r.start()
	return r
}

func newResolver(o Options) *Resolver {
	or(&o.Conf, SystemConf)
	or(&o.Timeout, defaultTimeout)
	or(&o.CacheSize, defaultCacheSize)
	or(&o.MaxTTL, defaultMaxTTL)
	or(&o.NegativeTTL, defaultNegativeTTL)
	or(&o.ErrorTTL, defaultErrorTTL)
	or(&o.MaxInFlight, defaultMaxInFlight)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{
		opts:    o,
		cache:   newCache(o.CacheSize),
		count:   newCounters(o.Metrics),
		log:     guard.Complaints{Log: o.Log},
		tcp:     make(chan struct{}, maxTCP),
		flights: make(map[key]*flight),
	}
	r.dial = func(addr netip.AddrPort) exchanger {
		return &pool{addr: addr, ignored: r.count.ignored, trouble: r.socketTrouble}
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// or sets an option that is zero or negative to its default.
func or[T ~string | ~int | ~int64](v *T, def T) {
	var zero T
	if *v <= zero {
		*v = def
	}
}

// start sets the first servers; after it the resolver is in use.
func (r *Resolver) start() {
	if len(r.opts.Servers) > 0 {
		r.setConfig(fileConfig{
			servers:  r.opts.Servers[:min(len(r.opts.Servers), maxServers)],
			attempts: defaultAttempts,
			interval: r.opts.Timeout,
		})
		return
	}
	r.confDue(time.Now())
	r.checkConf()
}

// Close ends all lookups with a temporary error and closes the sockets. It
// returns when no goroutine of the resolver is left.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	flights := slices.Collect(maps.Values(r.flights))
	r.mu.Unlock()
	for _, f := range flights {
		f.on(func() *answer { return temporary(f.q.name, "resolver closed") })
	}
	r.cancel()
	r.wg.Wait()
	for _, s := range r.conf.Load().servers {
		s.ex.close()
	}
}

// Servers returns the servers in use, in the order they are asked.
func (r *Resolver) Servers() []netip.AddrPort {
	var as []netip.AddrPort
	for _, s := range r.conf.Load().servers {
		as = append(as, s.addr)
	}
	return as
}

// A returns the IPv4 addresses of a name.
func (r *Resolver) A(ctx context.Context, name string) ([]netip.Addr, error) {
	a := r.lookup(ctx, name, dns.TypeA)
	return slices.Clone(a.addrs), a.error()
}

// StartA is A for those who cannot wait, and who may be refused. It calls then
// once, before it returns or from another goroutine, within Options.Timeout. Fresh
// tells that the answer is to a query that was sent for this call, and not for
// another one or long ago. Then must not wait: the replies to others are behind it.
func (r *Resolver) StartA(name string, refusal Refusal, then func(addrs []netip.Addr, fresh bool, err error)) {
	w := func(a *answer, fresh bool) { then(slices.Clone(a.addrs), fresh, a.error()) }
	if a := r.begin(context.Background(), name, dns.TypeA, refusal, w); a != nil {
		w(a, false)
	}
}

// FreshA is A that does not take an answer from the cache. A query that is under
// way is shared all the same, and the answer fills the cache.
func (r *Resolver) FreshA(ctx context.Context, name string, refusal Refusal) ([]netip.Addr, error) {
	r.cache.drop(key{canonical(name), dns.TypeA})
	a := r.query(ctx, name, dns.TypeA, refusal)()
	return slices.Clone(a.addrs), a.error()
}

// FreshNS returns the names of the servers of a zone, "" being the root, and does
// not take them from the cache.
func (r *Resolver) FreshNS(ctx context.Context, name string) ([]string, error) {
	r.cache.drop(key{canonical(name), dns.TypeNS})
	a := r.lookup(ctx, name, dns.TypeNS)
	return slices.Clone(a.strs), a.error()
}

// Forget drops from the cache what is known of a name and all names below it.
func (r *Resolver) Forget(name string) { r.cache.dropBelow(canonical(name)) }

// AAAA returns the IPv6 addresses of a name.
func (r *Resolver) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	a := r.lookup(ctx, name, dns.TypeAAAA)
	return slices.Clone(a.addrs), a.error()
}

// Addrs returns the IPv4 and then the IPv6 addresses of a name. When only one
// of the two could be had, it returns that and the other's temporary error.
func (r *Resolver) Addrs(ctx context.Context, name string) ([]netip.Addr, error) {
	wait4 := r.query(ctx, name, dns.TypeA, nil)
	wait6 := r.query(ctx, name, dns.TypeAAAA, nil)
	a4, a6 := wait4(), wait6()
	addrs := slices.Concat(a4.addrs, a6.addrs)
	for _, a := range []*answer{a4, a6} {
		if a.err != nil && !a.err.IsNotFound {
			return addrs, a.err
		}
	}
	if len(addrs) == 0 {
		return nil, a4.err
	}
	return addrs, nil
}

// PTR returns the names of an address, as they came but without the final dot.
// An IPv4-mapped address is the IPv4 address.
func (r *Resolver) PTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	a := r.ptr(ctx, addr)
	names := slices.Clone(a.strs)
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".")
	}
	return names, a.error()
}

func (r *Resolver) ptr(ctx context.Context, addr netip.Addr) *answer {
	arpa, err := dns.ReverseAddr(addr.Unmap().WithZone("").String())
	if err != nil {
		return notFound(addr.String())
	}
	return r.lookup(ctx, arpa, dns.TypePTR)
}

// TXT returns the TXT records of a name, the strings of each joined without
// blanks. They are the bytes as they came, of any value, up to 64 kB.
func (r *Resolver) TXT(ctx context.Context, name string) ([]string, error) {
	a := r.lookup(ctx, name, dns.TypeTXT)
	return slices.Clone(a.strs), a.error()
}

func (r *Resolver) lookup(ctx context.Context, name string, typ uint16) *answer {
	return r.query(ctx, name, typ, nil)()
}

// query begins a lookup and returns a function that waits for the answer.
func (r *Resolver) query(ctx context.Context, name string, typ uint16, refusal Refusal) func() *answer {
	c := make(chan *answer, 1)
	if a := r.begin(ctx, name, typ, refusal, func(a *answer, _ bool) { c <- a }); a != nil {
		return func() *answer { return a }
	}
	return func() *answer {
		select {
		case a := <-c:
			return a
		default:
		}
		select {
		case a := <-c:
			return a
		case <-ctx.Done():
			return ended(name, ctx.Err())
		}
	}
}

// begin returns the answer if it is known, else w is called with it.
func (r *Resolver) begin(ctx context.Context, name string, typ uint16, refusal Refusal, w waiter) *answer {
	k := key{canonical(name), typ}
	now := time.Now()
	if a := r.cache.get(k, now); a != nil {
		r.count.hits.Inc()
		return a
	}
	if err := ctx.Err(); err != nil {
		return ended(name, err)
	}
	q, err := newQuery(k)
	if err != nil {
		return notFound(name)
	}
	f, a := r.board(q, now, refusal, w)
	switch {
	case f == nil:
	case r.confDue(now):
		r.beginLater(f)
	default:
		f.begin()
	}
	return a
}

// beginLater begins f when the file has been looked at: that takes its time,
// which a caller may not have.
func (r *Resolver) beginLater(f *flight) {
	f.limit()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed { // Close has ended it, and may be waiting
		return
	}
	r.wg.Go(func() {
		r.log.Run("resolv.conf", r.checkConf)
		r.log.Run("lookup", f.begin)
	})
}

// board makes w wait. It returns a flight if that is to begin, or the answer if
// nobody has to wait.
func (r *Resolver) board(q *query, now time.Time, refusal Refusal, w waiter) (*flight, *answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flights[q.key]; f != nil {
		r.count.shared.Inc()
		f.waiters = append(f.waiters, w)
		return nil, nil
	}
	// A flight fills the cache before it is taken off the map.
	if a := r.cache.get(q.key, now); a != nil {
		r.count.hits.Inc()
		return nil, a
	}
	if r.closed {
		return nil, temporary(q.name, "resolver closed")
	}
	if len(r.flights) >= r.opts.MaxInFlight {
		r.count.overload.Inc()
		r.log.Warn("too many queries in flight", "limit", r.opts.MaxInFlight)
		return nil, temporary(q.name, "too many queries in flight")
	}
	f := &flight{waiters: []waiter{w}}
	f.exchange = exchange{r: r, q: q, refusal: refusal, deadline: now.Add(r.opts.Timeout), land: func(a *answer) { r.land(f, now, a) }}
	r.flights[q.key] = f
	r.count.queries[q.typ].Inc()
	return f, nil
}

// land hands the answer to the cache and those who wait.
func (r *Resolver) land(f *flight, start time.Time, a *answer) {
	now := time.Now()
	r.count.seconds.Update(now.Sub(start).Seconds())
	if a.err != nil && !a.err.IsNotFound {
		if a.err.IsTimeout {
			r.count.timeouts.Inc()
		} else {
			r.count.failures.Inc()
		}
	}
	if ttl := r.bound(a); ttl > 0 {
		a.expires = now.Add(ttl)
		r.cache.put(f.q.key, a)
	}
	r.mu.Lock()
	delete(r.flights, f.q.key)
	r.mu.Unlock()
	for i, w := range f.waiters { // nobody can board any more
		r.log.Run("lookup", func() { w(a, i == 0) })
	}
}

// bound returns how long an answer is kept.
func (r *Resolver) bound(a *answer) time.Duration {
	o := &r.opts
	switch {
	case a.err == nil:
		return min(max(a.ttl, o.MinTTL), o.MaxTTL)
	case a.err.IsNotFound:
		return min(max(a.ttl, o.MinTTL), o.MaxTTL, o.NegativeTTL)
	}
	return o.ErrorTTL
}

// error returns err as an error that is nil when err is.
func (a *answer) error() error {
	if a.err == nil {
		return nil
	}
	return a.err
}

func notFound(name string) *answer {
	return &answer{err: &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}}
}

func noData(name string) *answer {
	return &answer{err: &net.DNSError{UnwrapErr: ErrNoData, Err: ErrNoData.Error(), Name: name, IsNotFound: true}}
}

func temporary(name, text string) *answer {
	return &answer{err: &net.DNSError{Err: text, Name: name, IsTemporary: true}}
}

func timeout(name string) *answer {
	return &answer{err: &net.DNSError{Err: "no answer in time", Name: name, IsTimeout: true, IsTemporary: true}}
}

// ended is the answer for a caller whose context is done.
func ended(name string, err error) *answer {
	return &answer{err: &net.DNSError{
		UnwrapErr: err, Err: err.Error(), Name: name, IsTemporary: true,
		IsTimeout: err == context.DeadlineExceeded,
	}}
}

// canonical returns name in lower case (ASCII only) without the final dot.
func canonical(name string) string {
	if dns.IsFqdn(name) {
		name = name[:len(name)-1]
	}
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				b[i] = lower(b[i])
			}
			return string(b)
		}
	}
	return name
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
