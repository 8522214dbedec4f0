package senderscore

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

// A zone answers after 100 ms. A name it does not have does not exist, "fail"
// is no clear answer.
type zone struct {
	mu      sync.Mutex
	answers map[string]string
	queries []string
}

func (z *zone) set(name, answer string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.answers[name] = answer
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return len(z.queries)
}

func (z *zone) FreshNS(ctx context.Context, name string) ([]string, error) {
	_, err := z.FreshA(ctx, "root", nil)
	if err != nil && !strings.Contains(err.Error(), "no such host") {
		return nil, err
	}
	return []string{"a.root-servers.net."}, nil
}

func (z *zone) FreshA(ctx context.Context, name string, _ resolve.Refusal) ([]netip.Addr, error) {
	z.mu.Lock()
	if strings.HasSuffix(name, Zone) {
		z.queries = append(z.queries, name)
	}
	answer, ok := z.answers[name]
	if !ok && strings.HasSuffix(name, ".invalid") {
		answer = z.answers["invalid"]
	} else if !ok && name != "root" {
		answer = z.answers["*"]
	}
	z.mu.Unlock()
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch answer {
	case "":
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	case "nodata":
		return nil, &net.DNSError{Err: "no such record", Name: name, IsNotFound: true, UnwrapErr: resolve.ErrNoData}
	case "fail":
		return nil, &net.DNSError{Err: "server failure", Name: name, IsTemporary: true}
	case "panic":
		panic("resolver")
	}
	var addrs []netip.Addr
	for _, s := range strings.Fields(answer) {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, nil
}

func newZone(answers map[string]string) *zone {
	if answers == nil {
		answers = make(map[string]string)
	}
	return &zone{answers: answers}
}

func client(o Options) (*Client, *bytes.Buffer) {
	log := new(bytes.Buffer)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	o.Metrics = metrics.New(metrics.Options{})
	return New(o), log
}

// look looks the nth address up.
func look(c *Client, n int) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cached, ok := c.Cached(addr(n))
	r := c.Lookup(ctx, addr(n))
	if ok && (cached.Status != r.Status || cached.Score != r.Score) {
		return fmt.Sprintf("%+v cached, %+v found", cached, r)
	}
	if r.Status == Known {
		return fmt.Sprint(r.Score)
	}
	return string(r.Status)
}

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}) }

func name(n int) string { return fmt.Sprintf("%d.%d.0.203.%s", n&255, n>>8, Zone) }

func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for answer, want := range map[string]string{
			"":                                "no data",
			"fail":                            "dns trouble",
			"127.0.4.0":                       "0",
			"127.0.4.42":                      "42",
			"127.0.4.100":                     "100",
			"127.0.4.101":                     "dns trouble",
			"127.0.4.255":                     "dns trouble",
			"127.0.0.2":                       "dns trouble",
			"127.0.5.42":                      "dns trouble",
			"128.0.4.42":                      "dns trouble",
			"198.51.100.7":                    "dns trouble",
			"::ffff:127.0.4.42":               "dns trouble",
			"127.0.4.5 127.0.4.6 127.0.4.200": "6",
			"127.255.255.255":                 "refused",
			"127.255.255.0":                   "refused",
			"127.0.4.5 127.255.255.254":       "refused",
			"127.255.254.255":                 "dns trouble",
		} {
			c, _ := client(Options{Resolver: newZone(map[string]string{name(1): answer})})
			if got := look(c, 1); got != want {
				t.Errorf("%q: %s, want %s", answer, got, want)
			}
		}
	})
}

func TestScored(t *testing.T) {
	for s, want := range map[string]bool{
		"203.0.113.5": true, "::ffff:203.0.113.5": true, "198.51.100.1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "127.0.0.1": false, "169.254.1.1": false,
		"100.64.0.1": false, "224.0.0.1": false, "0.0.0.0": false, "2001:db8::1": false, "::1": false,
		"::ffff:10.0.0.1": false,
	} {
		if got := Scored(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
	if Scored(netip.Addr{}) {
		t.Error("the zero address")
	}
	z := newZone(nil)
	c, _ := client(Options{Resolver: z})
	for _, s := range []string{"10.0.0.1", "2001:db8::1"} {
		if r := c.Lookup(t.Context(), netip.MustParseAddr(s)); r.Status != NoData || z.count() != 0 {
			t.Errorf("%s: %v, %d queries", s, r, z.count())
		}
	}
}

// Every kind of answer is kept for its time, whatever its TTL.
func TestCache(t *testing.T) {
	for _, tt := range []struct {
		answer string
		maxTTL time.Duration
		keep   time.Duration
	}{
		{"127.0.4.42", 0, 12 * time.Hour},
		{"", 0, 6 * time.Hour},
		{"fail", 0, time.Minute},
		{"127.0.0.2", 0, time.Minute},
		{"127.0.4.42", 2 * time.Hour, 2 * time.Hour},
		{"", 2 * time.Hour, 2 * time.Hour},
		{"", 48 * time.Hour, 6 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			z := newZone(map[string]string{name(1): tt.answer})
			c, _ := client(Options{Resolver: z, MaxTTL: tt.maxTTL})
			first := look(c, 1)
			time.Sleep(tt.keep - time.Second)
			if got := look(c, 1); got != first || z.count() != 1 {
				t.Errorf("%q: before %v: %s after %s, %d queries", tt.answer, tt.keep, got, first, z.count())
			}
			time.Sleep(time.Second)
			if look(c, 1); z.count() != 2 {
				t.Errorf("%q: after %v: %d queries", tt.answer, tt.keep, z.count())
			}
		})
	}
}

// Lookups of one address at a time share a query, an IPv4-mapped address is the
// same, and one that gives up does not take the answer from the others.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{name(1): "127.0.4.42"})
		c, _ := client(Options{Resolver: z})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := look(c, 1); got != "42" {
					t.Error(got)
				}
			})
		}
		wg.Go(func() {
			if r := c.Lookup(t.Context(), netip.AddrFrom16(addr(1).As16())); r.Score != 42 {
				t.Error(r)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if r := c.Lookup(ctx, addr(1)); r.Status != Failed || r.Err == nil {
			t.Errorf("without time: %v", r)
		}
		wg.Wait()
		if z.count() != 1 || z.queries[0] != name(1) {
			t.Errorf("asked %v", z.queries)
		}
	})
}

// After a panic of the resolver nobody waits for ever.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := client(Options{Resolver: newZone(map[string]string{name(1): "panic"})})
		func() {
			defer func() { _ = recover() }()
			look(c, 1)
		}()
		if got := look(c, 1); got != "dns trouble" {
			t.Error(got)
		}
	})
}

// A zone that refuses is asked again after 10 minutes, 20, 40 ... 24 hours, once
// each time.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"*": "127.255.255.255", name(1): "127.0.4.42"})
		c, log := client(Options{Resolver: z})
		look(c, 1)
		var wg sync.WaitGroup
		for n := range 10 {
			wg.Go(func() {
				if got := look(c, 2+n); got != "refused" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		n := z.count()
		for _, pause := range []time.Duration{10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440} {
			pause *= time.Minute
			time.Sleep(pause - time.Second)
			if got := look(c, 3); got != "refused" || z.count() != n {
				t.Errorf("asked before %v", pause)
			}
			time.Sleep(time.Second)
			for i := range 10 { // one asks, nine do not
				wg.Go(func() { look(c, 100+i) })
			}
			wg.Wait()
			if n++; z.count() != n {
				t.Fatalf("%d queries after %v, want 1", z.count()-n+1, pause)
			}
		}
		if got := strings.Count(log.String(), "registered with Validity"); got != 1 {
			t.Errorf("said %d times:\n%s", got, log)
		}

		// No answer is no news: the next minute has the next query.
		z.set("*", "fail")
		time.Sleep(24 * time.Hour)
		if got := look(c, 3); got != "dns trouble" {
			t.Error(got)
		}
		if got := look(c, 4); got != "refused" {
			t.Error(got)
		}
		z.set("*", "")
		time.Sleep(time.Minute)
		if got := look(c, 4); got != "no data" {
			t.Error(got)
		}
		if !strings.Contains(log.String(), "answers again") {
			t.Errorf("not said:\n%s", log)
		}
		z.set("*", "127.255.255.255")
		look(c, 5)
		if !strings.Contains(log.String(), "next=10m0s") || strings.Count(log.String(), "registered") != 2 {
			t.Errorf("a pause after an answer:\n%s", log)
		}
		n = z.count()
		time.Sleep(10 * time.Minute)
		if look(c, 6); z.count() != n+1 {
			t.Error("not asked after 10 minutes")
		}
	})
}

// An answer to what was asked before the pause began does not end it.
func TestPauseMixed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{name(1): "127.255.255.255", name(2): "127.0.4.42"})
		c, log := client(Options{Resolver: z})
		var wg sync.WaitGroup
		wg.Go(func() { look(c, 1) })
		time.Sleep(50 * time.Millisecond)
		wg.Go(func() { look(c, 2) })
		wg.Go(func() { look(c, 3) })
		wg.Wait()
		if got := look(c, 2); got != "42" {
			t.Error(got)
		}
		if got := look(c, 4); got != "refused" || z.count() != 3 {
			t.Errorf("%s, %d queries", got, z.count())
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("log:\n%s", log)
		}
	})
}

// While the zone refuses, scores that are known stay.
func TestPauseKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"*": "127.255.255.255", name(1): "127.0.4.42"})
		c, _ := client(Options{Resolver: z})
		look(c, 1)
		look(c, 2)
		if got := look(c, 1); got != "42" {
			t.Error(got)
		}
	})
}

// Never more than the quota is asked in 30 days, wherever they begin.
func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(nil)
		c, log := client(Options{Resolver: z, Quota: 100})
		var times []time.Time
		next := 0
		for day := range 100 {
			for range 7 {
				n := z.count()
				got := look(c, next)
				next++
				if z.count() > n {
					times = append(times, time.Now())
				} else if got != "quota spent" {
					t.Errorf("day %d: %s without a query", day, got)
				}
			}
			time.Sleep(24 * time.Hour)
		}
		if len(times) < 300 {
			t.Errorf("%d queries in 100 days", len(times))
		}
		for i := range times {
			if i+100 < len(times) && times[i+100].Sub(times[i]) < 30*24*time.Hour {
				t.Fatalf("101 queries from %v to %v", times[i], times[i+100])
			}
		}
		if !strings.Contains(log.String(), "quota=100 until=2000-02-01") { // synctest begins on 2000-01-01
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestNoQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(nil)
		c, _ := client(Options{Resolver: z})
		var wg sync.WaitGroup
		for n := range 20_000 {
			wg.Go(func() {
				if got := look(c, n); got != "no data" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if c.Used() != 20_000 {
			t.Error(c.Used())
		}
	})
}

func BenchmarkCached(b *testing.B) {
	c := New(Options{Resolver: newZone(map[string]string{name(1): "127.0.4.42"})})
	b.ReportAllocs()
	for b.Loop() {
		c.Lookup(b.Context(), addr(1))
	}
}

// The resolver is down, invents answers, or removes addresses within 127.0.0.0/8:
// that is said once, nothing is asked for nothing, and when it is over there are
// scores within seconds.
func TestResolverTrouble(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers map[string]string // while it lasts
		log     string
		asked   int // at most, in a minute with a lookup a second
	}{
		{"down", map[string]string{"*": "fail", "invalid": "fail", "root": "fail"}, "the resolver does not answer", 7},
		{"invents", map[string]string{"*": "203.0.113.1", "invalid": "203.0.113.1", "root": ""}, "the resolver invents answers", 5},
		{"filters", map[string]string{"*": "nodata"}, "private-address of unbound, stop-dns-rebind", 60},
		{"only the zone is down", map[string]string{"*": "fail"}, "", 60},
		{"nobody has a score", map[string]string{}, "", 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := newZone(map[string]string{"*": "127.0.4.50"})
				c, log := client(Options{Resolver: z})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan bool)
				go func() { c.Run(ctx); close(done) }()
				defer func() { cancel(); <-done }()
				n := 0
				next := func() string { n++; time.Sleep(time.Second); return look(c, n) }
				if next() != "50" {
					t.Fatal("not well")
				}
				z.mu.Lock()
				z.answers = tt.answers
				z.mu.Unlock()
				before := z.count()
				for range 60 {
					next()
				}
				if got := z.count() - before; got > tt.asked {
					t.Errorf("%d queries", got)
				}
				if got := log.String(); !strings.Contains(got, tt.log) || strings.Count(got, "\n") > 1 || tt.log == "" && got != "" {
					t.Errorf("log %q", got)
				}
				z.mu.Lock()
				z.answers = map[string]string{"*": "127.0.4.50"}
				z.mu.Unlock()
				for range 5 {
					next()
				}
				if got := next(); got != "50" {
					t.Errorf("afterwards %s", got)
				}
				if tt.log != "" {
					if got := look(c, 30); got != "50" {
						t.Errorf("one that was asked for meanwhile: %s", got)
					}
				}
			})
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		block, junk int
		want        string
	}{
		{-1, -1, "[]"}, {10, 70, "[]"}, {101, -1, "[]"}, {200, -1, "[-blockBelow 200: scores go from"}, {-1, 128, "[-junkBelow 128"},
		{70, 10, "[-junkBelow 10 is not above"}, {0, -1, "[-blockBelow 0: no score"},
	} {
		if got := fmt.Sprint(Warnings(tt.block, tt.junk)); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%d, %d: %s", tt.block, tt.junk, got)
		}
	}
}
