package resolve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/spf"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

var _ spf.DNSResolver = (*resolve.Resolver)(nil)

// asking returns a resolver of these servers. The deadline is long: the tests
// that use real sockets do not measure time.
func asking(t testing.TB, o resolve.Options, servers ...*filtertest.DNS) *resolve.Resolver {
	for _, s := range servers {
		o.Servers = append(o.Servers, s.Addr)
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	r := resolve.New(o)
	t.Cleanup(r.Close)
	return r
}

const zone = `
example.org         SOA    ns.example.org. root.example.org. 1 3600 600 86400 60
example.org         A      192.0.2.1
example.org         AAAA   2001:db8::1
example.org         MX     20 backup.example.org
example.org         MX     10 mail.example.org
example.org         TXT    "v=spf1 mx include:_spf" ".example.org -all"
example.org         TXT    "other"
_spf.example.org    TXT    "v=spf1 ip4:198.51.100.0/24 -all"
mail.example.org    A      192.0.2.25
mail.example.org    AAAA   2001:db8::25
www.example.org     CNAME  web.example.org
web.example.org     CNAME  example.org
loop.example.org    CNAME  loop.example.org
null.example.org    MX     0 .
many.example.org    records 30
huge.example.org    records 1000
big.example.org     text   60000
odd.example.org     TXT    "a|b\013\010\000\255"
x\.y.example.org    A      192.0.2.9
*.list.example      A      127.0.0.2
tc.example.org      A      192.0.2.3
tc.example.org      truncate
noisy.example.org   A      192.0.2.4
noisy.example.org   noise
old.example.org     A      192.0.2.5
old.example.org     noedns
25.2.0.192.in-addr.arpa   PTR  mail.example.org
25.2.0.192.in-addr.arpa   PTR  Alias.example.org
5.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa  PTR  mail.example.org
`

func TestLookups(t *testing.T) {
	srv := filtertest.NewDNS(t, zone)
	r := asking(t, resolve.Options{}, srv)
	ctx := t.Context()
	a := func(name string) func() (any, error) { return func() (any, error) { return r.A(ctx, name) } }
	ptr := func(ip string) func() (any, error) {
		return func() (any, error) { return r.PTR(ctx, netip.MustParseAddr(ip)) }
	}
	tests := []struct {
		name string
		look func() (any, error)
		want string // or "not found"
	}{
		{"A", a("example.org"), "[192.0.2.1]"},
		{"A with dot and capitals", a("EXAMPLE.org."), "[192.0.2.1]"},
		{"A by CNAME", a("www.example.org"), "[192.0.2.1]"},
		{"A loop", a("loop.example.org"), "unclear"},
		{"A none", a("nothing.example.org"), "not found"},
		{"A no data", a("_spf.example.org"), "not found"},
		{"A not a name", a("a..b"), "not found"},
		{"A empty", a(""), "not found"},
		{"A escaped", a(`x\.y.example.org`), "[192.0.2.9]"},
		{"A by wildcard", a("2.0.0.127.list.example"), "[127.0.0.2]"},
		{"A by TCP", a("tc.example.org"), "[192.0.2.3]"},
		{"A in noise", a("noisy.example.org"), "[192.0.2.4]"},
		{"A without EDNS0", a("old.example.org"), "[192.0.2.5]"},
		{"AAAA", func() (any, error) { return r.AAAA(ctx, "example.org") }, "[2001:db8::1]"},
		{"Addrs", func() (any, error) { return r.Addrs(ctx, "example.org") }, "[192.0.2.1 2001:db8::1]"},
		{"TXT", func() (any, error) { return r.TXT(ctx, "_spf.example.org") }, "[v=spf1 ip4:198.51.100.0/24 -all]"},
		{"TXT joined", func() (any, error) { return r.TXT(ctx, "example.org") }, "[v=spf1 mx include:_spf.example.org -all other]"},
		{"TXT bytes", func() (any, error) { return r.TXT(ctx, "odd.example.org") }, "[a|b\r\n\x00\xff]"},
		{"TXT of 60 kB", func() (any, error) { return r.TXT(ctx, "big.example.org") }, "[" + strings.Repeat("x", 60000) + "]"},
		{"PTR", ptr("192.0.2.25"), "[mail.example.org Alias.example.org]"},
		{"PTR mapped", ptr("::ffff:192.0.2.25"), "[mail.example.org Alias.example.org]"},
		{"PTR of IPv6", ptr("2001:db8::25%em0"), "[mail.example.org]"},
		{"PTR none", ptr("192.0.2.26"), "not found"},
		{"PTR of nothing", func() (any, error) { return r.PTR(ctx, netip.Addr{}) }, "not found"},
		{"LookupAddr", func() (any, error) { return r.LookupAddr(ctx, "192.0.2.25") }, "[mail.example.org. Alias.example.org.]"},
		{"LookupAddr of nothing", func() (any, error) { return r.LookupAddr(ctx, "mail") }, "not found"},
		{"LookupIPAddr", func() (any, error) { return r.LookupIPAddr(ctx, "example.org") }, "[{192.0.2.1 } {2001:db8::1 }]"},
		{"LookupIPAddr none", func() (any, error) { return r.LookupIPAddr(ctx, "nothing.example.org") }, "not found"},
		{"LookupTXT", func() (any, error) { return r.LookupTXT(ctx, "_spf.example.org") }, "[v=spf1 ip4:198.51.100.0/24 -all]"},
		{"LookupMX", func() (any, error) { return mx(r.LookupMX(ctx, "example.org")) }, "[10 mail.example.org. 20 backup.example.org.]"},
		{"LookupMX null", func() (any, error) { return mx(r.LookupMX(ctx, "null.example.org")) }, "[0 .]"},
		{"LookupMX none", func() (any, error) { return mx(r.LookupMX(ctx, "mail.example.org")) }, "not found"},
	}
	for _, tt := range tests {
		for _, again := range []string{"", ", cached"} {
			got, err := tt.look()
			text := fmt.Sprint(got)
			var de *net.DNSError
			if errors.As(err, &de) && de.IsNotFound && !de.Temporary() && !de.Timeout() {
				text, err = "not found", nil
			} else if de != nil && de.IsTemporary {
				text, err = "unclear", nil
			}
			if text != tt.want || err != nil {
				t.Errorf("%s%s: got %.200q, %v, want %.200q", tt.name, again, text, err, tt.want)
			}
		}
	}
	for _, name := range []string{"many.example.org", "huge.example.org"} {
		n := 30
		if name[0] == 'h' {
			n = 1000
		}
		as, err := r.A(ctx, name)
		if err != nil || len(as) != n || as[n-1] != netip.AddrFrom4([4]byte{127, 0, byte((n + 1) >> 8), byte(n + 1)}) {
			t.Errorf("%s: %d addresses, %v", name, len(as), err)
		}
	}
	// Answers are cached; NXDOMAIN and NODATA without SOA record are not.
	for name, want := range map[string]int{"example.org": 1, "nothing.example.org": 1, "tc.example.org": 2, "old.example.org": 2} {
		if n := srv.Count(name, "A"); n != want {
			t.Errorf("%s was asked %d times, want %d", name, n, want)
		}
	}
	if nets := networks(srv, "tc.example.org"); nets != "udp tcp" {
		t.Errorf("truncated answer: asked over %s", nets)
	}
}

func mx(mxs []*net.MX, err error) (any, error) {
	var s []string
	for _, m := range mxs {
		s = append(s, fmt.Sprint(m.Pref, " ", m.Host))
	}
	return s, err
}

func networks(srv *filtertest.DNS, name string) string {
	var s []string
	for _, q := range srv.Queries() {
		if q.Name == name {
			s = append(s, q.Net)
		}
	}
	return strings.Join(s, " ")
}

// What the first server does must not keep the second one's answer away.
func TestSecondServer(t *testing.T) {
	for _, verb := range []string{"drop", "wrongid", "wrongname", "garbage", "servfail", "refused", "formerr", "notimp", "lame"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel() // some wait for a second
			bad := filtertest.NewDNS(t, "example.org A 203.0.113.1\nexample.org "+verb+"\n")
			good := filtertest.NewDNS(t, zone)
			set := metrics.New(metrics.Options{})
			r := asking(t, resolve.Options{Timeout: 5 * time.Second, Metrics: set}, bad, good)
			as, err := r.A(t.Context(), "example.org")
			if err != nil || fmt.Sprint(as) != "[192.0.2.1]" {
				t.Errorf("got %v, %v", as, err)
			}
			if bad.Total() == 0 {
				t.Error("the first one was not asked")
			}
			ignored := set.Value("filter_resolve_ignored_packets_total")
			if want := strings.HasPrefix(verb, "wrong") || verb == "garbage"; (ignored > 0) != want {
				t.Errorf("%v packets ignored", ignored)
			}
		})
	}
	t.Run("closed port", func(t *testing.T) {
		bad := filtertest.NewDNS(t, "")
		bad.Close()
		good := filtertest.NewDNS(t, zone)
		r := asking(t, resolve.Options{Timeout: time.Minute}, bad, good)
		start := time.Now()
		for _, name := range []string{"example.org", "mail.example.org", "many.example.org", "odd.example.org"} {
			if _, err := r.Addrs(t.Context(), name); err != nil && !err.(*net.DNSError).IsNotFound {
				t.Error(name, err)
			}
		}
		if took := time.Since(start); took > 12*time.Second {
			t.Errorf("took %v: the port was waited for", took)
		}
	})
}

func TestOneServer(t *testing.T) {
	tests := []struct {
		script  string
		timeout bool
	}{
		{"* drop", true}, {"* tcpdrop", true}, {"* wrongid", true}, {"* wrongname", true}, {"* garbage", true},
		{"* servfail", false}, {"* refused", false}, {"* formerr", false}, {"* notimp", false}, {"* lame", false},
	}
	for _, tt := range tests {
		srv := filtertest.NewDNS(t, tt.script)
		limit := 20 * time.Second
		if tt.timeout {
			limit = 100 * time.Millisecond
		}
		r := asking(t, resolve.Options{Timeout: limit}, srv)
		_, err := r.A(t.Context(), "key.example.org")
		var de *net.DNSError
		if !errors.As(err, &de) || !de.IsTemporary || de.IsNotFound || de.IsTimeout != tt.timeout {
			t.Errorf("%s: %+v", tt.script, err)
		}
	}
}

// Ports and ids: a socket is used for a hundred queries.
func TestPorts(t *testing.T) {
	srv := filtertest.NewDNS(t, "* A 127.0.0.2")
	r := asking(t, resolve.Options{}, srv)
	const n = 1000
	for i := range n {
		if _, err := r.A(t.Context(), fmt.Sprint("n", i, ".example.org")); err != nil {
			t.Fatal(err)
		}
	}
	ports := make(map[uint16]int)
	ids := make(map[uint16]bool)
	for _, q := range srv.Queries() {
		ports[q.Client.Port()]++
		ids[q.ID] = true
	}
	for p, c := range ports {
		if c > 100 {
			t.Errorf("port %d was used for %d queries", p, c)
		}
	}
	if len(ports) < n/100 {
		t.Errorf("%d ports", len(ports))
	}
	if len(ids) < n*9/10 {
		t.Errorf("%d ids for %d queries", len(ids), n)
	}
}

// openFiles counts our descriptors.
func openFiles(t testing.TB) int {
	fds, err := os.ReadDir("/dev/fd")
	if err != nil || len(fds) < 4 {
		t.Skip("no /dev/fd to count descriptors with")
	}
	return len(fds)
}

// A thousand sessions at once, ten names each.
func TestManyInFlight(t *testing.T) {
	const n = 10000
	srv := filtertest.NewDNS(t, "*.list.example A 127.0.0.2\n* delay 300ms")
	before := openFiles(t)
	set := metrics.New(metrics.Options{})
	r := asking(t, resolve.Options{Metrics: set}, srv)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			as, err := r.A(t.Context(), fmt.Sprint("n", i, ".list.example"))
			if err != nil || len(as) != 1 {
				t.Error(as, err)
			}
		})
	}
	most := 0
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(10 * time.Millisecond):
			most = max(most, openFiles(t))
		}
	}
	ports := make(map[netip.AddrPort]bool)
	for _, q := range srv.Queries() {
		ports[q.Client] = true
	}
	t.Logf("%d queries sent, %d ports, at most %d descriptors more than before", srv.Total(), len(ports), most-before)
	if most-before > 64+3 { // and what the test itself opens
		t.Errorf("%d descriptors", most-before)
	}
	if as, err := r.A(t.Context(), "n1.list.example"); err != nil || len(as) != 1 {
		t.Error(as, err)
	}
}

func TestSharedQuery(t *testing.T) {
	srv := filtertest.NewDNS(t, "*.list.example A 127.0.0.2\n* delay 100ms")
	r := asking(t, resolve.Options{}, srv)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := r.A(t.Context(), "1.2.0.192.list.example"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := srv.Total(); n != 1 {
		t.Errorf("%d queries", n)
	}
}

// FreshA asks again, and what it is told others get from the cache.
func TestFreshA(t *testing.T) {
	srv := filtertest.NewDNS(t, "a.example A 192.0.2.1\n")
	r := asking(t, resolve.Options{}, srv)
	look := func(f func(context.Context, string) ([]netip.Addr, error), want string) {
		t.Helper()
		if got, err := f(t.Context(), "A.example."); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	fresh := func(ctx context.Context, name string) ([]netip.Addr, error) { return r.FreshA(ctx, name, nil) }
	look(r.A, "[192.0.2.1]")
	if err := srv.Set("a.example A 192.0.2.2\n"); err != nil {
		t.Fatal(err)
	}
	look(r.A, "[192.0.2.1]")
	look(fresh, "[192.0.2.2]")
	look(r.A, "[192.0.2.2]")
	look(fresh, "[192.0.2.2]")
	if n := srv.Count("a.example", "A"); n != 3 {
		t.Errorf("%d queries, want 3", n)
	}
	for i, name := range []string{"b.example", "xa.example", "example", "A.example."} {
		r.Forget(name)
		look(r.A, "[192.0.2.2]")
		if n, want := srv.Count("a.example", "A"), max(3, 2+i); n != want {
			t.Errorf("%s forgotten: %d queries, want %d", name, n, want)
		}
	}
}

func TestCloseUnderLoad(t *testing.T) {
	srv := filtertest.NewDNS(t, "* delay 1h")
	r := asking(t, resolve.Options{}, srv)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			if _, err := r.A(context.Background(), fmt.Sprint("n", i, ".example.org")); err == nil {
				t.Error("an answer from nowhere")
			}
		})
	}
	for srv.Total() < 300 {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	wg.Wait()
}

func TestSPF(t *testing.T) {
	srv := filtertest.NewDNS(t, zone+"\nslow.example drop\nbroken.example servfail\n")
	r := asking(t, resolve.Options{}, srv)
	hasty := asking(t, resolve.Options{Timeout: 100 * time.Millisecond}, srv)
	tests := []struct {
		ip, sender string
		want       spf.Result
	}{
		{"192.0.2.25", "a@example.org", spf.Pass},      // mx
		{"2001:db8::25", "a@example.org", spf.Pass},    // mx
		{"198.51.100.9", "a@example.org", spf.Pass},    // include
		{"203.0.113.1", "a@example.org", spf.Fail},     //
		{"203.0.113.1", "a@www.example.org", spf.Fail}, // by CNAME
		{"203.0.113.1", "a@mail.example.org", spf.None},
		{"203.0.113.1", "a@nothing.example.org", spf.None},
		{"203.0.113.1", "a@slow.example", spf.TempError},
		{"203.0.113.1", "a@broken.example", spf.TempError},
	}
	for _, tt := range tests {
		r := r
		if tt.sender == "a@slow.example" {
			r = hasty
		}
		got, err := spf.CheckHostWithSender(net.ParseIP(tt.ip), "helo.example", tt.sender,
			spf.WithResolver(r), spf.WithContext(t.Context()))
		if got != tt.want {
			t.Errorf("%s %s: %s (%v), want %s", tt.ip, tt.sender, got, err, tt.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	srv := filtertest.NewDNS(t, zone+"* servfail\nexample.org answer\ntc.example.org answer\ntc.example.org truncate")
	set := metrics.New(metrics.Options{})
	r := asking(t, resolve.Options{Metrics: set}, srv)
	for _, name := range []string{"example.org", "example.org", "bad.example.org"} {
		r.A(t.Context(), name)
	}
	for name, want := range map[string]float64{
		`filter_resolve_queries_total{type="A"}`:      2,
		`filter_resolve_cache_hits_total`:             1,
		`filter_resolve_errors_total{kind="failure"}`: 1,
		`filter_resolve_errors_total{kind="timeout"}`: 0,
	} {
		if got := set.Value(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// The log of a name with a key in it would give the key away.
func TestNamesAreNotLogged(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	srv := filtertest.NewDNS(t, "* drop")
	gone := filtertest.NewDNS(t, "")
	gone.Close()
	r := asking(t, resolve.Options{Timeout: 50 * time.Millisecond, Log: logger}, srv, gone)
	for i := range 20 {
		r.A(t.Context(), fmt.Sprintf("%d.secretkey.zen.example", i))
		r.A(t.Context(), "secretkey..")
	}
	r.Close()
	mu.Lock()
	defer mu.Unlock()
	if log.Len() == 0 || strings.Contains(log.String(), "secretkey") {
		t.Errorf("log: %q", log.String())
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func TestServersOption(t *testing.T) {
	var servers []netip.AddrPort
	for i := range 10 {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i)}), 53))
	}
	r := resolve.New(resolve.Options{Servers: servers})
	defer r.Close()
	if got := r.Servers(); !slices.Equal(got, servers[:8]) {
		t.Errorf("servers are %v", got)
	}
}

func BenchmarkCached(b *testing.B) {
	srv := filtertest.NewDNS(b, "* A 127.0.0.2")
	r := asking(b, resolve.Options{}, srv)
	if _, err := r.A(b.Context(), "2.0.0.127.list.example"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.A(b.Context(), "2.0.0.127.list.example"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoopback(b *testing.B) {
	srv := filtertest.NewDNS(b, "* A 127.0.0.2")
	r := asking(b, resolve.Options{MaxTTL: 1}, srv)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.A(b.Context(), "2.0.0.127.list.example"); err != nil {
			b.Fatal(err)
		}
	}
}

// The 10,000 lookups of 1,000 sessions at once.
func BenchmarkBurst(b *testing.B) {
	srv := filtertest.NewDNS(b, "* A 127.0.0.2")
	for b.Loop() {
		r := asking(b, resolve.Options{}, srv)
		var wg sync.WaitGroup
		for i := range 10000 {
			wg.Go(func() {
				if _, err := r.A(b.Context(), fmt.Sprint(i, ".list.example")); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		r.Close()
	}
	b.ReportMetric(float64(srv.Total())/float64(b.N), "queries/op")
}
