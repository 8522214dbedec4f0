package redis

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/test/redistest"
)

var secretOfTests = []byte("0123456789abcdef0123456789abcdef")

func secretFunc() ([]byte, error) { return secretOfTests, nil }

// A host is a greylist on a server, with its log.
type host struct {
	*greylist.Greylist
	t     *testing.T
	store *Store
	log   *lines
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newHost(t *testing.T, url string, o Options) *host {
	t.Helper()
	var err error
	if o.Location, err = ParseURL(url); err != nil {
		t.Fatal(err)
	}
	log := new(lines)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	if o.Secret == nil {
		o.Secret = secretFunc
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &host{greylist.New(greylist.Options{Store: s, Secret: o.Secret}), t, s, log}
}

var begin = time.Unix(1_800_000_000, 0)

// attempt is one of a client that writes to many.
func attempt(client, rcpt int, at time.Duration) greylist.Attempt {
	return greylist.Attempt{
		Time:   begin.Add(at),
		Client: greylist.Client{Addr: netip.AddrFrom4([4]byte{10, byte(client >> 8), byte(client), 1}), Class: greylist.NoName},
		Sender: "a@a.example", Rcpts: []string{fmt.Sprintf("bob.%d@b.example", rcpt)},
	}
}

func (h *host) decide(client, rcpt int, at time.Duration) greylist.Decision {
	h.t.Helper()
	d, err := h.Decide(h.t.Context(), attempt(client, rcpt, at))
	if err != nil {
		h.t.Error(err)
	}
	return d
}

func (h *host) want(reason greylist.Reason, client, rcpt int, at time.Duration) {
	h.t.Helper()
	if d := h.decide(client, rcpt, at); d.Reason != reason {
		h.t.Errorf("%d to %d at %s: %s, want %s", client, rcpt, at, d.Reason, reason)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

// faults are what servers do, and how that ends.
var faults = []struct {
	name      string
	via       bool // through the proxy
	empty     bool // the server has forgotten everything
	fail, end func(*redistest.Server, *redistest.Proxy)
}{
	{name: "killed and restarted empty", empty: true,
		fail: func(s *redistest.Server, _ *redistest.Proxy) { s.Kill() }, end: func(s *redistest.Server, _ *redistest.Proxy) { s.Start() }},
	{name: "stopped",
		fail: func(s *redistest.Server, _ *redistest.Proxy) { s.Stop() }, end: func(s *redistest.Server, _ *redistest.Proxy) { s.Continue() }},
	{name: "read-only",
		fail: func(s *redistest.Server, _ *redistest.Proxy) { s.Do("REPLICAOF", "127.0.0.1", "1") },
		end:  func(s *redistest.Server, _ *redistest.Proxy) { s.Do("REPLICAOF", "NO", "ONE") }},
	{name: "full",
		fail: func(s *redistest.Server, _ *redistest.Proxy) { s.Do("CONFIG", "SET", "maxmemory", "1") },
		end:  func(s *redistest.Server, _ *redistest.Proxy) { s.Do("CONFIG", "SET", "maxmemory", "0") }},
	{name: "another password",
		fail: func(s *redistest.Server, p *redistest.Proxy) {
			s.Do("ACL", "SETUSER", "default", "resetpass", ">other", "-@all")
		},
		end: func(s *redistest.Server, p *redistest.Proxy) { s.Kill(); s.Start() }, empty: true},
	{name: "cut in the middle of an answer", via: true,
		fail: func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(1) }, end: func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(0) }},
	{name: "cut before the end of an answer", via: true,
		fail: func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(3) }, end: func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(0) }},
	{name: "slow", via: true,
		fail: func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(200 * time.Millisecond) }, end: func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(0) }},
}

// Whatever the server does: newcomers are refused, who is known is let in, a retry
// at this host is one, and afterwards the server has it all.
func TestAway(t *testing.T) {
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.Redis)
			proxy := redistest.NewProxy(t, server.Addr())
			url := "redis://" + server.Addr()
			if tt.via {
				url = "redis://" + proxy.Addr
			}
			h := newHost(t, url, Options{})
			eventually(t, "the server is met", func() bool { return server.Do("EXISTS", "gl:secret") == "1" })
			h.want(greylist.Unseen, 1, 1, 0)
			h.want(greylist.Retry, 1, 1, time.Minute)
			h.want(greylist.Unseen, 2, 1, 0)
			tt.fail(server, proxy)

			const newcomers = 300
			var wg sync.WaitGroup
			for n := range newcomers {
				wg.Go(func() {
					h.want(greylist.Unseen, 100+n, 1, 2*time.Minute)
					h.want(greylist.Known, 1, n, 2*time.Minute)
				})
			}
			wg.Wait()
			h.want(greylist.Retry, 2, 1, 2*time.Minute)
			h.want(greylist.Early, 100, 1, 2*time.Minute+time.Second)
			eventually(t, "it is said", func() bool { return strings.Contains(h.log.String(), "this host decides alone") })
			h.want(greylist.Retry, 101, 1, 3*time.Minute)
			h.want(greylist.Known, 101, 1, 3*time.Minute)
			tt.end(server, proxy)

			eventually(t, "it is said that the server is back", func() bool { return strings.Contains(h.log.String(), "is back") })
			eventually(t, "all is handed in", func() bool { return h.store.pending.count() == 0 })
			other := newHost(t, "redis://"+server.Addr(), Options{Operator: true})
			for n := range newcomers {
				want := greylist.Retry
				if n == 1 {
					want = greylist.Known
				}
				if d, _, err := other.Explain(t.Context(), attempt(100+n, 1, 4*time.Minute)); d.Reason != want || err != nil {
					t.Errorf("newcomer %d at another host: %s, %v, want %s", n, d.Reason, err, want)
				}
			}
			for _, client := range []int{1, 2} {
				if d, _, err := other.Explain(t.Context(), attempt(client, 9, 4*time.Minute)); d.Reason != greylist.Known || err != nil {
					t.Errorf("client %d at another host: %s, %v", client, d.Reason, err)
				}
			}
			if n := strings.Count(h.log.String(), "decides alone"); n != 1 {
				t.Errorf("said %d times:\n%s", n, h.log)
			}
		})
	}
}

// What has not been handed in yet counts.
func TestHandInByUse(t *testing.T) {
	server := redistest.Start(t, redistest.Redis)
	h := newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute})
	h.want(greylist.Unseen, 1, 1, 0)
	h.store.health.fail(context.DeadlineExceeded)
	h.want(greylist.Unseen, 2, 1, 0)
	h.store.health.back()
	h.want(greylist.Retry, 2, 1, time.Minute)
	other := newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute})
	other.want(greylist.Known, 2, 2, time.Minute)
}

// Down when the filter starts, and up later.
func TestStartsAlone(t *testing.T) {
	server := redistest.Start(t, redistest.Redis)
	server.Kill()
	h := newHost(t, "redis://"+server.Addr(), Options{})
	h.want(greylist.Unseen, 1, 1, 0)
	h.want(greylist.Retry, 1, 1, time.Minute)
	server.Start()
	eventually(t, "it is handed in", func() bool { return h.store.pending.count() == 0 && strings.Contains(h.log.String(), "is back") })
	newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute}).want(greylist.Known, 1, 2, time.Minute)
}

// What nobody can mend but the operator is said at once.
func TestRefused(t *testing.T) {
	server := redistest.Start(t, redistest.Redis, "--requirepass", "right")
	h := newHost(t, "redis://:wrong@"+server.Addr(), Options{})
	eventually(t, "it is said", func() bool { return strings.Contains(h.log.String(), "refuses this filter") })
	if strings.Contains(h.log.String(), "wrong\"") || strings.Contains(h.log.String(), ":wrong") {
		t.Errorf("the password is in the log:\n%s", h.log)
	}
	h.want(greylist.Unseen, 1, 1, 0)
}

func TestOtherSecret(t *testing.T) {
	server := redistest.Start(t, redistest.Redis)
	newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute}).want(greylist.Unseen, 1, 1, 0)
	eventually(t, "the server has a fingerprint", func() bool { return server.Do("EXISTS", "gl:secret") == "1" })
	same := newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute})
	other := newHost(t, "redis://"+server.Addr(), Options{Wait: time.Minute, Secret: func() ([]byte, error) { return []byte("another secret of a host"), nil }})
	eventually(t, "it is said", func() bool { return strings.Contains(other.log.String(), "another secret") })
	other.want(greylist.Unseen, 1, 1, time.Minute) // goes on with its own
	same.want(greylist.Retry, 1, 1, time.Minute)
	if strings.Contains(same.log.String(), "another secret") {
		t.Error(same.log)
	}
}

func TestEviction(t *testing.T) {
	server := redistest.Start(t, redistest.Redis, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	h := newHost(t, "redis://"+server.Addr(), Options{})
	eventually(t, "it is said", func() bool { return strings.Contains(h.log.String(), "noeviction is advised") })
}
