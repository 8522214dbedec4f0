package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const ms = time.Millisecond

// A fake is a server in memory.
type fake struct {
	// answer says what comes back for the nth query, and when; never if negative.
	answer func(k key, n int) (time.Duration, *answer, error)
	// tcp is the same for TCP.
	tcp func(k key) (time.Duration, *answer, error)

	mu    sync.Mutex
	n     int
	plain int // of these without EDNS0
}

func (f *fake) send(q *query, edns bool, to receiver) (func(), error) {
	f.mu.Lock()
	f.n++
	if !edns {
		f.plain++
	}
	n := f.n
	f.mu.Unlock()
	after, ans, err := f.answer(q.key, n)
	if after < 0 {
		return func() {}, nil
	}
	t := time.AfterFunc(after, func() { to(ans, err) })
	return func() { t.Stop() }, nil
}

func (f *fake) stream(ctx context.Context, q *query, edns bool) (*answer, error) {
	after, ans, err := f.tcp(q.key)
	select {
	case <-time.After(after):
		return ans, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fake) share(int) {}
func (f *fake) close()    {}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

var (
	one   = netip.MustParseAddr("192.0.2.1")
	two   = netip.MustParseAddr("192.0.2.2")
	never = time.Duration(-1)
)

// says answers with an address after a while.
func says(after time.Duration, addr netip.Addr) func(key, int) (time.Duration, *answer, error) {
	return func(key, int) (time.Duration, *answer, error) {
		return after, &answer{addrs: []netip.Addr{addr}, ttl: time.Hour}, nil
	}
}

func failsWith(after time.Duration, err error) func(key, int) (time.Duration, *answer, error) {
	return func(key, int) (time.Duration, *answer, error) { return after, nil, err }
}

// withFakes returns a resolver of these servers, to be used in a bubble.
func withFakes(t *testing.T, o Options, fakes ...*fake) *Resolver {
	for i := range fakes {
		o.Servers = append(o.Servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53))
	}
	r := newResolver(o)
	r.dial = func(a netip.AddrPort) exchanger { return fakes[a.Addr().As4()[3]] }
	r.start()
	t.Cleanup(r.Close)
	return r
}

// timed looks up and returns how long it took.
func timed(t *testing.T, r *Resolver, name string) ([]netip.Addr, time.Duration, *net.DNSError) {
	t.Helper()
	start := time.Now()
	as, err := r.A(t.Context(), name)
	took := time.Since(start)
	if err == nil {
		return as, took, nil
	}
	var de *net.DNSError
	if !errors.As(err, &de) || de != err {
		t.Fatalf("error is %T, not *net.DNSError", err)
	}
	return as, took, de
}

// The time of a query, with the default deadline of 2 s: a server that is
// silent is given 2 s / (number of queries + 1).
func TestServers(t *testing.T) {
	refused := failsWith(ms, rcodeError("server answers REFUSED"))
	servfail := failsWith(ms, rcodeError("server answers SERVFAIL"))
	unreachable := failsWith(0, errors.New("connection refused"))
	silent := failsWith(never, nil)
	tests := []struct {
		name    string
		servers []func(key, int) (time.Duration, *answer, error)
		want    netip.Addr // or
		err     string
		took    time.Duration
		sent    string
	}{
		{"first answers", []func(key, int) (time.Duration, *answer, error){says(10*ms, one), says(ms, two)}, one, "", 10 * ms, "[1 0]"},
		{"first silent", []func(key, int) (time.Duration, *answer, error){silent, says(10*ms, two)}, two, "", 410 * ms, "[1 1]"},
		{"first slow", []func(key, int) (time.Duration, *answer, error){says(500*ms, one), silent}, one, "", 500 * ms, "[1 1]"},
		{"first slower than second", []func(key, int) (time.Duration, *answer, error){says(500*ms, one), says(20*ms, two)}, two, "", 420 * ms, "[1 1]"},
		{"first refuses", []func(key, int) (time.Duration, *answer, error){refused, says(10*ms, two)}, two, "", 11 * ms, "[1 1]"},
		{"first fails", []func(key, int) (time.Duration, *answer, error){servfail, says(10*ms, two)}, two, "", 11 * ms, "[1 1]"},
		{"first unreachable", []func(key, int) (time.Duration, *answer, error){unreachable, says(10*ms, two)}, two, "", 10 * ms, "[1 1]"},
		{"all fail", []func(key, int) (time.Duration, *answer, error){servfail, refused}, netip.Addr{}, "server answers REFUSED", 2 * ms, "[1 1]"},
		{"one fails, one silent", []func(key, int) (time.Duration, *answer, error){servfail, silent}, netip.Addr{}, "no answer in time", 2 * time.Second, "[1 2]"},
		{"all silent", []func(key, int) (time.Duration, *answer, error){silent, silent, silent}, netip.Addr{}, "no answer in time", 2 * time.Second, "[2 2 2]"},
		{"one silent", []func(key, int) (time.Duration, *answer, error){silent}, netip.Addr{}, "no answer in time", 2 * time.Second, "[2]"},
		{"all unreachable", []func(key, int) (time.Duration, *answer, error){unreachable, unreachable}, netip.Addr{}, "connection refused", 400 * ms, "[2 2]"},
		{"first packet lost", []func(key, int) (time.Duration, *answer, error){
			func(k key, n int) (time.Duration, *answer, error) {
				if n == 1 {
					return never, nil, nil
				}
				return says(10*ms, one)(k, n)
			}}, one, "", 2*time.Second/3 + 10*ms, "[2]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var fakes []*fake
				for _, s := range tt.servers {
					fakes = append(fakes, &fake{answer: s})
				}
				r := withFakes(t, Options{}, fakes...)
				as, took, err := timed(t, r, "example.org")
				if took.Round(ms) != tt.took.Round(ms) {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				var sent []int
				for _, f := range fakes {
					sent = append(sent, f.count())
				}
				if got := fmt.Sprint(sent); got != tt.sent {
					t.Errorf("sent %v, want %v", got, tt.sent)
				}
				if tt.err == "" {
					if err != nil || len(as) != 1 || as[0] != tt.want {
						t.Errorf("got %v, %v", as, err)
					}
					return
				}
				if err == nil || err.Err != tt.err || !err.IsTemporary || err.IsNotFound {
					t.Fatalf("got %v, %+v", as, err)
				}
				if isTimeout := tt.err == "no answer in time"; err.IsTimeout != isTimeout {
					t.Errorf("IsTimeout is %v", err.IsTimeout)
				}
			})
		})
	}
}

// A first server that is dead costs three lookups a timeout; it is probed
// beside the second one, and asked first again when it is back.
func TestDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var back bool
		dead := &fake{answer: func(k key, n int) (time.Duration, *answer, error) {
			if back {
				return says(5*ms, one)(k, n)
			}
			return never, nil, nil
		}}
		good := &fake{answer: says(10*ms, two)}
		r := withFakes(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, dead, good)
		name := 0
		look := func() (netip.Addr, time.Duration) {
			t.Helper()
			name++
			as, took, err := timed(t, r, fmt.Sprintf("n%d.example.org", name))
			if err != nil {
				t.Fatal(err)
			}
			return as[0], took
		}
		for range maxFails {
			if a, took := look(); a != two || took != 410*ms {
				t.Fatalf("%v after %v", a, took)
			}
		}
		// Down: nobody waits, for hours; the probes become rare.
		for range 3600 {
			if a, took := look(); a != two || took != 10*ms {
				t.Fatalf("%v after %v", a, took)
			}
			time.Sleep(time.Second)
		}
		if n := dead.count(); n < maxFails+12 || n > maxFails+24 {
			t.Errorf("dead server asked %d times in an hour", n)
		}
		back = true
		time.Sleep(maxBackoff)
		if a, took := look(); a != one || took != 5*ms {
			t.Errorf("probe: %v after %v", a, took)
		}
		n := good.count()
		if a, took := look(); a != one || took != 5*ms || good.count() != n {
			t.Errorf("back: %v after %v", a, took)
		}
		for _, s := range []string{`"server does not answer" server=10.0.0.0:53`, `"server answers again" server=10.0.0.0:53`} {
			if c := strings.Count(log.String(), s); c != 1 {
				t.Errorf("%q is in the log %d times:\n%s", s, c, &log)
			}
		}
		if strings.Contains(log.String(), "example.org") {
			t.Error("a name was logged")
		}
	})
}

// A first server that is back counts as such even if the second one, which is
// asked beside it, is faster: the first is the one that is wanted.
func TestSlowServerComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := failsWith(never, nil)
		r := withFakes(t, Options{},
			&fake{answer: func(k key, n int) (time.Duration, *answer, error) { return now(k, n) }},
			&fake{answer: says(10*ms, two)})
		for i := range maxFails {
			timed(t, r, fmt.Sprintf("n%d.example.org", i))
		}
		for i, back := range []func(key, int) (time.Duration, *answer, error){
			says(50*ms, one),
			failsWith(50*ms, rcodeError("server answers SERVFAIL")),
		} {
			now = back
			time.Sleep(maxBackoff)
			if as, took, err := timed(t, r, fmt.Sprintf("probe%d.example.org", i)); err != nil || as[0] != two || took != 10*ms {
				t.Errorf("probe: %v, %v after %v", as, err, took)
			}
			time.Sleep(100 * ms)
			now = says(50*ms, one)
			if as, took, err := timed(t, r, fmt.Sprintf("back%d.example.org", i)); err != nil || as[0] != one || took != 50*ms {
				t.Errorf("back: %v, %v after %v", as, err, took)
			}
			now = failsWith(never, nil)
			for j := range maxFails {
				timed(t, r, fmt.Sprintf("n%d.%d.example.org", j, i))
			}
		}
	})
}

// When all are down, all are asked, in order.
func TestAllDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := failsWith(never, nil)
		fakes := make([]*fake, 2)
		for i := range fakes {
			fakes[i] = &fake{answer: func(k key, n int) (time.Duration, *answer, error) { return now(k, n) }}
		}
		r := withFakes(t, Options{ErrorTTL: 1}, fakes...)
		for range 5 {
			if _, took, err := timed(t, r, "example.org"); !err.IsTimeout || took != 2*time.Second {
				t.Fatalf("%v after %v", err, took)
			}
			time.Sleep(time.Nanosecond)
		}
		now = says(ms, one)
		if _, took, err := timed(t, r, "example.org"); err != nil || took != ms {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestTruncated(t *testing.T) {
	truncated := failsWith(10*ms, errTruncated)
	tcp := func(after time.Duration, err error) func(key) (time.Duration, *answer, error) {
		return func(k key) (time.Duration, *answer, error) {
			if err != nil {
				return after, nil, err
			}
			return says(after, one)(k, 0)
		}
	}
	tests := []struct {
		name string
		tcp  func(key) (time.Duration, *answer, error)
		want netip.Addr
		took time.Duration
	}{
		{"answers", tcp(20*ms, nil), one, 30 * ms},
		{"slow", tcp(600*ms, nil), two, 420 * ms},
		{"refused", tcp(20*ms, errors.New("refused")), two, 40 * ms},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := withFakes(t, Options{}, &fake{answer: truncated, tcp: tt.tcp}, &fake{answer: says(10*ms, two)})
				as, took, err := timed(t, r, "example.org")
				if err != nil || as[0] != tt.want || took != tt.took {
					t.Errorf("%v, %v after %v", as, err, took)
				}
			})
		})
	}
	t.Run("refused twice", func(t *testing.T) { // nobody waits for what cannot come
		synctest.Test(t, func(t *testing.T) {
			r := withFakes(t, Options{}, &fake{answer: truncated, tcp: tcp(20*ms, errors.New("refused"))})
			if _, took, err := timed(t, r, "example.org"); kind(err) != "temporary" || took > time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	})
	t.Run("panic", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{answer: truncated, tcp: func(key) (time.Duration, *answer, error) { panic("oops") }}
			r := withFakes(t, Options{}, f)
			for i := range 2 * maxTCP { // none keeps its place
				if _, took, err := timed(t, r, fmt.Sprint(i, ".example.org")); kind(err) != "temporary" || took > time.Second {
					t.Fatalf("%v after %v", err, took)
				}
			}
		})
	})
	t.Run("deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := withFakes(t, Options{}, &fake{answer: truncated, tcp: tcp(time.Hour, nil)})
			if _, took, err := timed(t, r, "example.org"); !err.IsTimeout || took != 2*time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	})
	t.Run("connections", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			now, most := 0, 0
			f := &fake{answer: truncated}
			f.tcp = func(k key) (time.Duration, *answer, error) {
				mu.Lock()
				defer mu.Unlock()
				now++
				most = max(most, now)
				time.AfterFunc(50*ms, func() { mu.Lock(); now--; mu.Unlock() })
				return says(51*ms, one)(k, 0)
			}
			r := withFakes(t, Options{}, f)
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					if _, err := r.A(t.Context(), fmt.Sprint(i, ".example.org")); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if most != maxTCP {
				t.Errorf("%d connections at a time", most)
			}
		})
	})
}

func TestWithoutEDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.answer = func(k key, n int) (time.Duration, *answer, error) {
			if n == 1 {
				return ms, nil, errFormat
			}
			return says(ms, one)(k, n)
		}
		r := withFakes(t, Options{}, f)
		if _, took, err := timed(t, r, "example.org"); err != nil || took != 2*ms || f.plain != 1 {
			t.Errorf("%v after %v, %d without EDNS0", err, took, f.plain)
		}
		f.answer = failsWith(ms, errFormat)
		if _, took, err := timed(t, r, "other.example.org"); err == nil || !err.IsTemporary || took != 2*ms {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// One query for all who ask; who leaves early leaves alone.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: says(500*ms, one)}
		r := withFakes(t, Options{}, f)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // the first one, which starts the query
			_, err := r.A(ctx, "example.org")
			var de *net.DNSError
			if !errors.As(err, &de) || !de.IsTimeout || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*ms {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
		synctest.Wait()
		for _, name := range []string{"example.org", "example.org.", "EXAMPLE.org"} {
			for range 100 {
				wg.Go(func() {
					if as, err := r.A(t.Context(), name); err != nil || as[0] != one {
						t.Errorf("%v, %v", as, err)
					}
					if d := time.Since(start); d != 500*ms {
						t.Errorf("after %v", d)
					}
				})
			}
		}
		wg.Wait()
		if n := f.count(); n != 1 {
			t.Errorf("%d queries", n)
		}
	})
}

func TestLateAnswerFillsCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: says(500*ms, one)}
		r := withFakes(t, Options{}, f)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(ms, cancel)
		if _, err := r.A(ctx, "example.org"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if as, took, err := timed(t, r, "example.org"); err != nil || took != 0 || as[0] != one {
			t.Errorf("%v, %v after %v", as, err, took)
		}
		if _, err := r.A(ctx, "example.org"); err != nil {
			t.Error("a cached answer is refused to a caller whose time is over:", err)
		}
		if _, err := r.A(ctx, "other.example.org"); !errors.Is(err, context.Canceled) || f.count() != 1 {
			t.Errorf("%v, %d queries", err, f.count())
		}
	})
}

func TestCacheTime(t *testing.T) {
	gone := func(ttl time.Duration) *answer {
		a := notFound("example.org")
		a.ttl = ttl
		return a
	}
	there := func(ttl time.Duration) *answer { return &answer{addrs: []netip.Addr{one}, ttl: ttl} }
	tests := []struct {
		name string
		opts Options
		ans  *answer
		err  error
		keep time.Duration
	}{
		{"ttl", Options{}, there(time.Minute), nil, time.Minute},
		{"zero", Options{}, there(0), nil, 0},
		{"least", Options{MinTTL: time.Minute}, there(time.Second), nil, time.Minute},
		{"zero with a least", Options{MinTTL: time.Minute}, there(0), nil, time.Minute},
		{"most", Options{MaxTTL: time.Minute}, there(time.Hour), nil, time.Minute},
		{"default most", Options{}, there(1000 * time.Hour), nil, 24 * time.Hour},
		{"fixed", Options{MinTTL: 12 * time.Hour, MaxTTL: 12 * time.Hour}, there(time.Second), nil, 12 * time.Hour},
		{"negative", Options{}, gone(time.Minute), nil, time.Minute},
		{"negative, default most", Options{}, gone(30 * time.Hour), nil, time.Hour},
		{"negative, most", Options{NegativeTTL: 6 * time.Hour}, gone(30 * time.Hour), nil, 6 * time.Hour},
		{"negative, least over most", Options{MinTTL: 12 * time.Hour, NegativeTTL: 6 * time.Hour}, gone(0), nil, 6 * time.Hour},
		{"negative without SOA", Options{}, gone(0), nil, 0},
		{"error", Options{MinTTL: time.Hour}, nil, rcodeError("SERVFAIL"), 5 * time.Second},
		{"error, set", Options{ErrorTTL: time.Minute}, nil, rcodeError("SERVFAIL"), time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{answer: func(key, int) (time.Duration, *answer, error) {
					if tt.ans == nil {
						return 0, nil, tt.err
					}
					a := *tt.ans
					return 0, &a, nil
				}}
				r := withFakes(t, tt.opts, f)
				timed(t, r, "example.org")
				if tt.keep > 0 {
					time.Sleep(tt.keep - 1)
					timed(t, r, "example.org")
				}
				if n := f.count(); n != 1 {
					t.Fatalf("%d queries within the time", n)
				}
				time.Sleep(time.Nanosecond)
				timed(t, r, "example.org")
				if n := f.count(); n != 2 {
					t.Errorf("%d queries after the time", n)
				}
			})
		})
	}
}

// The caller may do with an answer what he likes.
func TestAnswerIsACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := withFakes(t, Options{}, &fake{answer: says(0, one)})
		for range 2 {
			as, _, err := timed(t, r, "example.org")
			if err != nil || as[0] != one {
				t.Fatal(as, err)
			}
			as[0] = two
		}
	})
}

func TestAddrs(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	tests := []struct {
		name string
		a    func() (*answer, error)
		aaaa func() (*answer, error)
		want string
		err  string // none, notfound, temporary
	}{
		{"both", addr(one), addr(six), "[192.0.2.1 2001:db8::1]", "none"},
		{"4 only", addr(one), none, "[192.0.2.1]", "none"},
		{"6 only", none, addr(six), "[2001:db8::1]", "none"},
		{"neither", none, none, "[]", "notfound"},
		{"4, trouble with 6", addr(one), trouble, "[192.0.2.1]", "temporary"},
		{"6, trouble with 4", trouble, addr(six), "[2001:db8::1]", "temporary"},
		{"no 4, trouble with 6", none, trouble, "[]", "temporary"},
		{"trouble", trouble, trouble, "[]", "temporary"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := withFakes(t, Options{}, &fake{answer: func(k key, n int) (time.Duration, *answer, error) {
					f := tt.a
					if k.typ == dns.TypeAAAA {
						f = tt.aaaa
					}
					a, err := f()
					return 10 * ms, a, err
				}})
				start := time.Now()
				as, err := r.Addrs(t.Context(), "example.org")
				if d := time.Since(start); d != 10*ms {
					t.Errorf("took %v: one after the other?", d)
				}
				if got := kind(err); fmt.Sprint(as) != tt.want || got != tt.err {
					t.Errorf("got %v, %v", as, err)
				}
				ips, err := r.LookupIPAddr(t.Context(), "example.org")
				if len(ips) != len(as) || (err == nil) != (len(as) > 0) {
					t.Errorf("LookupIPAddr: got %v, %v", ips, err)
				}
			})
		})
	}
}

func addr(a netip.Addr) func() (*answer, error) {
	return func() (*answer, error) { return &answer{addrs: []netip.Addr{a}}, nil }
}
func none() (*answer, error)    { return notFound("example.org"), nil }
func trouble() (*answer, error) { return nil, rcodeError("SERVFAIL") }

func kind(err error) string {
	var de *net.DNSError
	switch {
	case err == nil:
		return "none"
	case !errors.As(err, &de):
		return "foreign"
	case de.IsNotFound && !de.IsTemporary && !de.IsTimeout:
		return "notfound"
	case de.IsTimeout && de.IsTemporary && !de.IsNotFound:
		return "timeout"
	case de.IsTemporary && !de.IsNotFound:
		return "temporary"
	}
	return "odd"
}

func TestInFlightLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: says(100*ms, one)}
		r := withFakes(t, Options{MaxInFlight: 10}, f)
		var wg sync.WaitGroup
		for i := range 10 {
			for range 5 {
				wg.Go(func() {
					if _, err := r.A(t.Context(), fmt.Sprint(i, ".example.org")); err != nil {
						t.Error(err)
					}
				})
			}
		}
		synctest.Wait()
		if _, took, err := timed(t, r, "more.example.org"); kind(err) != "temporary" || took != 0 {
			t.Errorf("%v after %v", err, took)
		}
		wg.Wait()
		if _, _, err := timed(t, r, "more.example.org"); err != nil {
			t.Error("the refusal was kept:", err)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := withFakes(t, Options{}, &fake{answer: failsWith(never, nil)})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				start := time.Now()
				_, err := r.A(t.Context(), fmt.Sprint(i, ".example.org"))
				if kind(err) != "temporary" || time.Since(start) != 100*ms {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		}
		time.Sleep(100 * ms)
		r.Close()
		wg.Wait()
		if _, took, err := timed(t, r, "example.org"); kind(err) != "temporary" || took != 0 {
			t.Errorf("%v after %v", err, took)
		}
		r.Close()
	})
}

func TestPanicIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := withFakes(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
			&fake{answer: func(key, int) (time.Duration, *answer, error) { panic("oops") }})
		if _, _, err := timed(t, r, "example.org"); kind(err) != "temporary" {
			t.Error(err)
		}
		if !strings.Contains(log.String(), "oops") {
			t.Error("not logged")
		}
	})
}

func TestConfIsReadAgain(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		tmp := conf + ".new"
		if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, conf); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		fakes := map[string]*fake{
			"127.0.0.1": {answer: says(ms, one)},
			"10.0.0.1":  {answer: says(ms, one)},
			"10.0.0.2":  {answer: says(ms, two)},
		}
		var log bytes.Buffer
		r := newResolver(Options{Conf: conf, Log: slog.New(slog.NewTextHandler(&log, nil))})
		r.dial = func(a netip.AddrPort) exchanger { return fakes[a.Addr().String()] }
		r.start()
		defer r.Close()

		steps := []struct {
			does func()
			want string
			ans  netip.Addr
		}{
			{func() {}, "[127.0.0.1:53]", one}, // no file
			{func() { write("nameserver 10.0.0.1\n") }, "[10.0.0.1:53]", one},
			{func() { write("nameserver 10.0.0.2\nnameserver 10.0.0.1\n") }, "[10.0.0.2:53 10.0.0.1:53]", two},
			{func() { os.Remove(conf) }, "[10.0.0.2:53 10.0.0.1:53]", two}, // what was stays
			{func() { write("") }, "[127.0.0.1:53]", one},
		}
		for i, s := range steps {
			s.does()
			time.Sleep(confInterval)
			timed(t, r, fmt.Sprint("any", i, ".example.org")) // a lookup that is not in the cache looks
			as, _, err := timed(t, r, "example.org")
			if err != nil || as[0] != s.ans {
				t.Errorf("step %d: %v, %v", i, as, err)
			}
			if got := fmt.Sprint(r.Servers()); got != s.want {
				t.Errorf("step %d: servers are %v, want %v", i, got, s.want)
			}
		}
		write("nameserver 10.0.0.2\n")
		timed(t, r, "again.example.org")
		if got := fmt.Sprint(r.Servers()); got != "[127.0.0.1:53]" {
			t.Errorf("looked twice within a second: %v", got)
		}
		if n := strings.Count(log.String(), "cannot read"); n != 2 {
			t.Errorf("%d messages about the missing file:\n%s", n, &log)
		}
	})
}

// What goes wrong while the file is read ends neither the filter nor the lookup.
func TestConfPanics(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newResolver(Options{Conf: conf, Log: slog.New(slog.NewTextHandler(&log, nil))})
		r.dial = func(a netip.AddrPort) exchanger {
			if a != localhost {
				panic("oops")
			}
			return &fake{answer: says(ms, one)}
		}
		r.start()
		defer r.Close()
		if err := os.WriteFile(conf, []byte("nameserver 10.0.0.1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(confInterval)
		if as, took, err := timed(t, r, "example.org"); err != nil || as[0] != one || took != ms {
			t.Errorf("%v, %v after %v", as, err, took)
		}
		if !strings.Contains(log.String(), "oops") {
			t.Error("not logged")
		}
	})
}

// A disk that hangs holds up the lookup that looks, until its deadline, and no
// other one.
func TestConfHangs(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(Options{Conf: conf})
		r.dial = func(a netip.AddrPort) exchanger {
			if a != localhost {
				time.Sleep(time.Hour)
			}
			return &fake{answer: says(ms, one)}
		}
		r.start()
		defer r.Close()
		if err := os.WriteFile(conf, []byte("nameserver 10.0.0.1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(confInterval)
		ended := make(chan time.Duration, 1)
		start := time.Now()
		r.StartA("example.org", nil, func(_ []netip.Addr, _ bool, err error) {
			if kind(err) != "timeout" {
				t.Error(err)
			}
			ended <- time.Since(start)
		})
		time.Sleep(confInterval)
		if _, took, err := timed(t, r, "other.example.org"); err != nil || took != ms {
			t.Errorf("other: %v after %v", err, took)
		}
		if took := <-ended; took != 2*time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestConfIsNoFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(Options{Conf: t.TempDir()})
		r.dial = func(netip.AddrPort) exchanger { return &fake{answer: says(0, one)} }
		r.start()
		defer r.Close()
		if _, _, err := timed(t, r, "example.org"); err != nil {
			t.Error(err)
		}
	})
}

func TestCacheBounds(t *testing.T) {
	c := newCache(100)
	now := time.Now()
	big := strings.Repeat("x", 1<<20)
	for i := range 200 {
		c.put(key{fmt.Sprint(i), dns.TypeTXT}, &answer{strs: []string{big}, expires: now.Add(time.Hour)})
		c.put(key{fmt.Sprint(i), dns.TypeTXT}, &answer{strs: []string{big}, expires: now.Add(time.Hour)})
	}
	if n := c.lru.Len(); n != 31 {
		t.Errorf("%d answers of 1 MB", n)
	}
	if c.get(key{"199", dns.TypeTXT}, now) == nil || c.get(key{"1", dns.TypeTXT}, now) != nil {
		t.Error("not the newest are kept")
	}
	for i := range 200 {
		c.put(key{fmt.Sprint(i), dns.TypeA}, &answer{addrs: []netip.Addr{one}, expires: now.Add(time.Hour)})
	}
	if n := c.lru.Len(); n != 100 {
		t.Errorf("%d answers", n)
	}
	want := 0
	for _, k := range c.lru.Keys() {
		a, _ := c.lru.Peek(k)
		want += footprint(k, a)
	}
	if c.bytes != want {
		t.Errorf("%d bytes, counted %d", want, c.bytes)
	}
	c.purge()
	if c.bytes != 0 || c.lru.Len() != 0 {
		t.Errorf("%d bytes in %d answers after purge", c.bytes, c.lru.Len())
	}
}

// Names that are asked for once do not stay until the cache is full.
func TestCacheDropsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(1 << 16)
		n := 0
		put := func(ttl time.Duration) {
			n++
			c.put(key{fmt.Sprint(n), dns.TypeTXT}, &answer{expires: time.Now().Add(ttl)})
		}
		put(24 * time.Hour) // the oldest, and good for longest
		for range 600 {
			time.Sleep(time.Second)
			for range 20 {
				put(10 * time.Second)
			}
		}
		if c.get(key{"1", dns.TypeTXT}, time.Now()) == nil {
			t.Error("what has not expired is dropped")
		}
		// Those of a minute until they are looked for, and of what it takes to look
		// among as many.
		if got := c.lru.Len(); got > 20*(10+60+10) {
			t.Errorf("%d answers", got)
		}
		c.purge()
		if c.bytes != 0 {
			t.Errorf("%d bytes after purge", c.bytes)
		}
	})
}

// StartA calls back once, whatever happens, and says whose query it was.
func TestStartA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.answer = func(k key, n int) (time.Duration, *answer, error) {
			switch {
			case strings.HasPrefix(k.name, "ok"):
				return says(100*ms, one)(k, n)
			case strings.HasPrefix(k.name, "bad"):
				return 100 * ms, nil, rcodeError("server answers SERVFAIL")
			}
			return never, nil, nil
		}
		r := withFakes(t, Options{MaxInFlight: 3}, f)
		start := time.Now()
		var mu sync.Mutex
		var got []string
		ask := func(name string) {
			r.StartA(name, nil, func(addrs []netip.Addr, fresh bool, err error) {
				mu.Lock()
				defer mu.Unlock()
				var de *net.DNSError
				errors.As(err, &de)
				got = append(got, fmt.Sprint(name, " ", addrs, " ", fresh, " ", kind(err), " ", time.Since(start)))
			})
		}
		want := func(lines ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(got)
			slices.Sort(lines)
			if fmt.Sprint(got) != fmt.Sprint(lines) {
				t.Errorf("%q\nwant\n%q", got, lines)
			}
			got = nil
		}
		for _, name := range []string{"ok.example", "bad.example", "silent.example", "ok.example", "OK.example.", "more.example", "bad..example"} {
			ask(name)
		}
		want("more.example [] false temporary 0s", "bad..example [] false notfound 0s")
		time.Sleep(100 * ms)
		want("ok.example [192.0.2.1] true none 100ms", "ok.example [192.0.2.1] false none 100ms", "OK.example. [192.0.2.1] false none 100ms", "bad.example [] true temporary 100ms")
		ask("ok.example")
		ask("bad.example")
		want("ok.example [192.0.2.1] false none 100ms", "bad.example [] false temporary 100ms")
		time.Sleep(1900 * ms)
		want("silent.example [] true timeout 2s")
		ask("last.example")
		r.Close()
		ask("after.example")
		want("last.example [] true temporary 2s", "after.example [] false temporary 2s")
		if got := len(r.flights); got != 0 {
			t.Errorf("%d queries in flight", got)
		}
	})
}

// A panic of who is called back hurts nobody else.
func TestStartAPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := withFakes(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, &fake{answer: says(ms, one)})
		r.StartA("example.org", nil, func([]netip.Addr, bool, error) { panic("oops") })
		if as, took, err := timed(t, r, "example.org"); err != nil || as[0] != one || took != ms {
			t.Errorf("%v, %v after %v", as, err, took)
		}
		if !strings.Contains(log.String(), "oops") {
			t.Error("not logged")
		}
	})
}

// What is called back may ask again.
func TestStartAAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := withFakes(t, Options{}, &fake{answer: says(ms, one)})
		n := 0
		var next func([]netip.Addr, bool, error)
		next = func([]netip.Addr, bool, error) {
			if n++; n < 10 {
				r.StartA(fmt.Sprint(n, ".example.org"), nil, next)
			}
		}
		next(nil, false, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if n != 10 {
			t.Errorf("%d answers", n)
		}
	})
}
