package resolve_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/resolve"
)

// A world is what two servers answer about three lists, second by second: the first
// is one's own, the second a public one. Block.example lists 203.0.0.0/16 and
// 77.0.0.0/8, other.example 203.1.0.0/16, white.example 192.0.2.0/24; names.example
// is of domains.
type world struct {
	mu sync.Mutex
	is string
}

func (w *world) turn(to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.is = to
}

func (w *world) now() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.is
}

// own is the first server.
func (w *world) own(name, typ string) resolve.Reply {
	is := w.now()
	r := lookup(name, typ, is)
	r.After = time.Millisecond
	switch {
	case is == "down":
		r = resolve.Reply{Err: "drop"}
	case is == "failing":
		r = resolve.Reply{Err: "servfail", After: time.Millisecond}
	case is == "inventing" && typ == "A":
		r.Addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	case is == "hijacked" && typ == "A" && r.Addrs == nil:
		r.Addrs = []netip.Addr{netip.MustParseAddr("198.51.100.80")}
	case is == "filtering" && r.Addrs != nil:
		r = resolve.Reply{Err: "nodata", After: time.Millisecond}
	case is == "slow" && strings.HasSuffix(name, ".block.example"):
		r.After = 800 * time.Millisecond
	}
	return r
}

// public is the second server: lists do not serve it.
func (w *world) public(name, typ string) resolve.Reply {
	if is := w.now(); is == "down" || is == "failing" {
		return resolve.Reply{Err: "drop"}
	}
	if typ == "A" && strings.HasSuffix(name, ".example") {
		return resolve.Reply{After: time.Millisecond, Addrs: []netip.Addr{netip.MustParseAddr("127.255.255.254")}}
	}
	return lookup(name, typ, "")
}

func lookup(name, typ, is string) (r resolve.Reply) {
	listed := resolve.Reply{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}}
	if name == "" {
		return resolve.Reply{Names: []string{"a.root-servers.net."}}
	}
	left, list, _ := strings.Cut(strings.TrimSuffix(name, ".example"), "\x00")
	for _, l := range []string{"block", "other", "white", "names"} {
		if l2, ok := strings.CutSuffix(left, "."+l); ok {
			left, list = l2, l
		}
	}
	if list == "" || typ != "A" {
		return r
	}
	address := strings.Count(left, ".") >= 3
	test := left == "2.0.0.127" || left == "test"
	switch {
	case is == "gone" && list == "block":
		return resolve.Reply{Err: "drop"}
	case is == "empty" && list == "block":
		return r
	case is == "wildcard" && list == "block" && !strings.HasSuffix(left, ".127") && !strings.HasSuffix(left, ".f.f.f.f"+strings.Repeat(".0", 20)):
		return listed
	case is == "around" && list == "block" && address && left != "1.0.0.127" && !strings.HasPrefix(left, "0.0.0.0") && !strings.HasPrefix(left, "1.0.0.0"):
		return listed
	case is == "generous" && list == "white":
		return listed
	case is == "names" && list == "names" && strings.HasPrefix(left, "evil"):
		return resolve.Reply{Err: "servfail"}
	case is == "silence" && list == "names" && strings.HasPrefix(left, "evil"):
		return resolve.Reply{Err: "drop"}
	case test,
		list == "block" && (strings.HasSuffix(left, ".0.203") || strings.HasSuffix(left, ".77") && address),
		list == "other" && strings.HasSuffix(left, ".1.203"),
		list == "white" && strings.HasSuffix(left, ".2.0.192"):
		return listed
	}
	return r
}

// A world that turns bad, second by second, with clients that are good and clients
// that are listed. No good one is refused later than a minute and -timeout after a
// list has turned bad; no listed one is let in later than 5 s after the resolver is
// back, or a minute and a test after a list is; and one line of the log says why.
func TestWorld(t *testing.T) {
	const timeout = 2 * time.Second
	synctest.Test(t, func(t *testing.T) {
		w := new(world)
		log := new(logBuffer)
		logger := slog.New(slog.NewTextHandler(log, nil))
		r := resolve.InMemory(resolve.Options{Timeout: 3 * time.Second, MinTTL: time.Minute, Log: logger}, w.own, w.public)
		defer r.Close()
		lists, errs := dnsbl.Parse("block.example*5+ip other.example*5 white.example*-9 names.example*5+helo")
		if errs != nil {
			t.Fatal(errs)
		}
		c := dnsbl.New(dnsbl.Options{Lists: lists, BlockAt: 5, Timeout: timeout, Resolver: r, Log: logger})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { c.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()

		n := 0
		type tally struct {
			lastRefused, lastPassed time.Duration // of a good client, of a listed one
			refused                 int
			longest                 time.Duration
		}
		var mu sync.Mutex
		// clients come every second for a while, and what becomes of them.
		clients := func(d time.Duration, botnet int) (res tally) {
			start := time.Now()
			var wg sync.WaitGroup
			ask := func(a netip.Addr, listed bool) {
				wg.Go(func() {
					q := c.Begin(ctx, a)
					time.Sleep(100 * time.Millisecond)
					q.Domain(ctx, dnsbl.Helo, fmt.Sprintf("evil%d.good.example", time.Now().UnixNano()))
					v := q.Verdict(ctx)
					since := time.Since(start)
					mu.Lock()
					defer mu.Unlock()
					res.longest = max(res.longest, v.Took)
					switch {
					case !listed && v.Verdict == dnsbl.Block:
						res.lastRefused = since
						res.refused++
					case listed && v.Verdict != dnsbl.Block:
						res.lastPassed = since
					}
				})
			}
			for time.Since(start) < d {
				n++
				ask(netip.AddrFrom4([4]byte{198, byte(n >> 8), byte(n), 9}), false)
				ask(netip.AddrFrom4([4]byte{203, 0, byte(n), byte(n >> 8)}), true)
				for i := range botnet {
					ask(netip.AddrFrom4([4]byte{77, byte(n >> 4), byte(n<<4 + i), 7}), true)
				}
				time.Sleep(time.Second)
			}
			wg.Wait()
			return res
		}
		// lines returns what was logged since it was called last, but for good news.
		lines := func() (bad []string) {
			for line := range strings.Lines(log.take()) {
				if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
					bad = append(bad, line)
				}
			}
			return bad
		}
		if res := clients(2*time.Minute, 0); res.refused > 0 || res.lastPassed > 0 {
			t.Fatalf("at first: %+v", res)
		}
		lines()
		for _, tt := range []struct {
			turn    string
			refuses time.Duration // until when good clients may be refused
			passes  bool          // listed ones are let in while it lasts
			back    time.Duration // until when they may be afterwards
			says    string        // "" is nothing
			botnet  int
		}{
			{"wildcard", time.Minute + timeout, true, time.Minute + 5*time.Second, "list=block.example", 0},
			{"empty", 0, true, 0, "list lacks the test entry", 0},
			{"gone", 0, true, time.Minute + 5*time.Second, "list does not answer, it is not asked until it does\" list=block.example", 0},
			{"generous", 0, true, time.Minute + 5*time.Second, "list=white.example", 0},
			{"down", 0, true, 5 * time.Second, "the resolver does not answer", 0},
			{"failing", 0, true, 5 * time.Second, "the resolver does not answer", 0},
			{"inventing", time.Minute + timeout, true, 5 * time.Second, "the resolver invents answers", 0},
			{"hijacked", 0, true, 5 * time.Second, "the resolver invents answers", 0},
			{"filtering", 0, true, 5 * time.Second, "the resolver removes addresses within 127.0.0.0/8", 0},
			{"slow", 0, false, 0, "", 0},
			{"botnet", 0, false, 0, "", 16},
			{"names", 0, false, 0, "", 0},
			{"silence", 0, false, 0, "", 0},
			{"around", time.Minute + timeout, true, time.Minute + 5*time.Second, "list=block.example family=IPv4 why=\"lists the world: random entries are listed, 16 of 16\"", 0},
		} {
			lasts := 5 * time.Minute
			switch tt.turn {
			case "around":
				lasts = time.Hour
			case "empty": // no hit is missed before the next test
				lasts = 20 * time.Minute
			}
			w.turn(tt.turn)
			bad := clients(lasts, tt.botnet)
			said := lines()
			w.turn("")
			back := clients(3*time.Minute, 0)
			after := lines()
			t.Logf("%-10s good refused until %v (%d), listed let in until %v after; longest wait %v", tt.turn,
				bad.lastRefused.Round(time.Millisecond), bad.refused, back.lastPassed.Round(time.Millisecond), max(bad.longest, back.longest).Round(time.Millisecond))
			if bad.lastRefused > tt.refuses || tt.turn == "around" && bad.refused > 50 {
				t.Errorf("%s: a good client is refused after %v, %d in all", tt.turn, bad.lastRefused, bad.refused)
			}
			if !tt.passes && bad.lastPassed > 0 {
				t.Errorf("%s: a listed client is let in after %v", tt.turn, bad.lastPassed)
			}
			if back.lastPassed > tt.back || back.refused > 0 && tt.turn != "inventing" {
				t.Errorf("%s: a listed client is let in %v after it was over; %d good ones refused", tt.turn, back.lastPassed, back.refused)
			}
			if max(bad.longest, back.longest) > timeout {
				t.Errorf("%s: a client has waited %v", tt.turn, max(bad.longest, back.longest))
			}
			if tt.says == "" && len(said) > 0 || tt.says != "" && (len(said) != 1 || !strings.Contains(said[0], tt.says)) || len(after) > 0 {
				t.Errorf("%s: said %q, and afterwards %q, want one line with %q", tt.turn, said, after, tt.says)
			}
		}
	})
}

// A logBuffer is a log that is read bit by bit.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}
