package greylist

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTimes(t *testing.T) {
	g := New(Options{Policy: Policy{PassTime: time.Minute, GreyExp: time.Hour, WhiteExp: 24 * time.Hour, TrapTime: 2 * time.Hour}})
	const never = -1
	for _, tt := range []struct {
		kind            Kind
		state           State
		first, last     time.Duration // after epoch
		passes, expires time.Duration
	}{
		{KindAttempt, Grey, 0, 5 * time.Minute, time.Minute, time.Hour},
		{KindPair, Grey, 0, 5 * time.Minute, never, time.Hour},
		{KindTrap, Grey, 0, 5 * time.Minute, never, 2 * time.Hour},
		{KindClient, Grey, 0, 5 * time.Minute, never, 65 * time.Minute},
		{KindLearned, Pass, 0, 5 * time.Minute, never, 24*time.Hour + 5*time.Minute},
		{KindReply, Pass, 0, 5 * time.Minute, never, 7*24*time.Hour + 5*time.Minute},
		{KindAttempt, Pass, 0, 5 * time.Minute, never, 24*time.Hour + 5*time.Minute},
		{KindOrigin, Pass, 0, 5 * time.Minute, never, 24*time.Hour + 5*time.Minute},
		{KindAttempt, Grey, 48 * time.Hour, 48 * time.Hour, 11 * time.Minute, 70 * time.Minute}, // a clock was wrong
		{KindOrigin, Pass, 48 * time.Hour, 48 * time.Hour, never, 24*time.Hour + 10*time.Minute},
	} {
		now := epoch.Add(10 * time.Minute)
		e := Entry{Key{15: byte(tt.kind)}, Record{State: tt.state, First: epoch.Add(tt.first).UnixMilli(), Last: epoch.Add(tt.last).UnixMilli()}}
		passes, expires := g.Times(now, e)
		if !expires.Equal(epoch.Add(tt.expires)) || passes.IsZero() != (tt.passes == never) || !passes.IsZero() && !passes.Equal(epoch.Add(tt.passes)) {
			t.Errorf("%+v: passes %s, expires %s", tt, passes, expires)
		}
		if g.Expired(expires)(e.Key, e.Record) && tt.first < 48*time.Hour || !g.Expired(expires.Add(48*time.Hour))(e.Key, e.Record) {
			t.Errorf("%+v: not as Expired has it", tt)
		}
	}
}

// What is deleted is new again, and nothing else is.
func TestDelete(t *testing.T) {
	for _, tt := range []struct {
		name string
		text []string
		want map[string]bool // attempts that are new again
	}{
		{"address", []string{"198.51.100.7", "spf:pool.example"}, map[string]bool{"known": true, "waits": true}}, // both of its network
		{"another of the network", []string{"198.51.100.8"}, map[string]bool{"waits": true}},
		{"domain", []string{"spf:pool.example"}, nil}, // the address is still free
		{"pair", []string{"Carol@X.example,bob@example.org"}, map[string]bool{"waits": true}},
		{"network", []string{"net:203.0.113.0/24"}, map[string]bool{"other": true}},
		{"nobody", []string{"192.0.2.1"}, nil},
	} {
		g := New(Options{Clear: true})
		attempts := map[string]Attempt{
			"known": {Client: Client{Addr: netip.MustParseAddr("198.51.100.7"), Class: NoName}, Sender: "alice@pool.example", Rcpts: []string{"bob@example.org"}, SPF: SPFResult{Status: SPFPass, Domain: "pool.example", Frees: true}},
			"waits": {Client: Client{Addr: netip.MustParseAddr("198.51.100.9"), Class: NoName}, Sender: "carol@x.example", Rcpts: []string{"bob@example.org"}},
			"other": {Client: Client{Addr: netip.MustParseAddr("203.0.113.9"), Class: NoName}, Sender: "carol@y.example", Rcpts: []string{"bob@example.org"}},
		}
		decide := func(name string, at time.Duration) Decision {
			a := attempts[name]
			a.Time = epoch.Add(at)
			d, err := g.Decide(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		for name := range attempts {
			decide(name, 0)
		}
		if d := decide("known", time.Minute); !d.Accept {
			t.Fatal(d)
		}
		n := 0
		for _, text := range tt.text {
			k, err := g.Delete(t.Context(), text)
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
		if (n == 0) != (tt.name == "nobody") {
			t.Errorf("%s: %d records deleted", tt.name, n)
		}
		for name := range attempts {
			if d := decide(name, 2*time.Minute); (d.Reason == Unseen) != tt.want[name] {
				t.Errorf("%s: then %s is %s", tt.name, name, d)
			}
		}
	}
}

// brokenStore panics where nobody waits for it.
type brokenStore struct{ Store }

func (brokenStore) Sweep(context.Context, func(Key, Record) bool) (int, bool, error) { panic("broken") }

func (brokenStore) Count(context.Context, map[string]int64) (map[string]int64, error) {
	panic("broken")
}

// A store that breaks is said, and ends nothing.
func TestRunBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		g := New(Options{Store: brokenStore{NewMemory(0)}})
		if _, err := g.Decide(t.Context(), Attempt{Time: epoch, Client: Client{Addr: netip.MustParseAddr("192.0.2.1")}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go g.Run(ctx, func() time.Time { return epoch }, slog.New(slog.NewTextHandler(&out, nil)))
		time.Sleep(5 * time.Minute)
		cancel()
		synctest.Wait()
		if got := out.String(); strings.Count(got, "panic: broken") != 1 {
			t.Errorf("%q", got)
		}
	})
}

// An attempt that expires without a retry is said, once.
func TestUnretried(t *testing.T) {
	for clear, want := range map[bool]string{
		true:  "msg=\"filter=greylist\" event=noretry addr=198.51.100.7 name=- from=<a@x.example> rcpt=<b@example.org> origin=net:198.51.100.0/24 tries=2 first=2024-02-28T23:00:00Z",
		false: "msg=\"filter=greylist\" event=noretry key=",
	} {
		var out strings.Builder
		log := slog.New(slog.NewTextHandler(&out, nil))
		g := New(Options{Clear: clear})
		for _, a := range []Attempt{
			{Time: epoch, Client: Client{Addr: netip.MustParseAddr("198.51.100.7"), Class: NoName}, Sender: "a@x.example", Rcpts: []string{"b@example.org"}},
			{Time: epoch.Add(time.Second), Client: Client{Addr: netip.MustParseAddr("198.51.100.8"), Class: NoName}, Sender: "a@x.example", Rcpts: []string{"b@example.org"}},
			{Time: epoch, Client: Client{Addr: netip.MustParseAddr("203.0.113.7"), Class: NoName}, Sender: "a@y.example", Rcpts: []string{"b@example.org"}},
			{Time: epoch.Add(time.Minute), Client: Client{Addr: netip.MustParseAddr("203.0.113.7"), Class: NoName}, Sender: "a@y.example", Rcpts: []string{"b@example.org"}},
		} {
			if _, err := g.Decide(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 * shards {
			if err := g.sweep(t.Context(), epoch.Add(25*time.Hour), log); err != nil {
				t.Fatal(err)
			}
		}
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, want) {
			t.Errorf("%q", got)
		}
	}
}

// What is not stored in clear is found by its key alone.
func TestDeleteUnclear(t *testing.T) {
	g := New(Options{Providers: []string{"x"}})
	a := Attempt{Time: epoch, Client: Client{Addr: netip.MustParseAddr("198.51.100.7"), Class: NoName}, Sender: "alice@s.example", Rcpts: []string{"bob@example.org"}, SPF: SPFResult{Status: SPFPass, Domain: "s.example", Frees: true}}
	if _, err := g.Decide(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{
		"198.51.100.7":  1, // what counts its attempts
		"spf:s.example": 0, "provider:x": 0, "<>,bob@example.org": 0, "alice@s.example,bob@example.org": 0,
	} {
		if n, err := g.Delete(t.Context(), text); n != want || err != nil {
			t.Errorf("%s: %d records deleted, %v", text, n, err)
		}
	}
	a.Time = a.Time.Add(time.Minute)
	if d, err := g.Decide(t.Context(), a); d.Reason != Retry || err != nil {
		t.Errorf("%s, %v", d, err)
	}
}
