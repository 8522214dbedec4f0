package greylist

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/metrics"
)

var epoch = time.Date(2024, 2, 28, 23, 0, 0, 0, time.UTC)

// A replay is a series of attempts, each with the answer that is due.
type step struct {
	at   float64 // seconds
	addr string
	from string // "" is a@s.example, "<>" the null sender
	spf  string
	want string // reason
	left int    // seconds, if refused and not 0
	name string // confirmed, of a generic class: a suspect's
}

func (s step) attempt() Attempt {
	from := s.from
	if from == "" {
		from = "a@s.example"
	}
	a := Attempt{
		Time:   epoch.Add(time.Duration(s.at * float64(time.Second))),
		Client: Client{Addr: netip.MustParseAddr(s.addr), Class: NoName},
		Sender: from, Rcpts: []string{"bob@rcpt.example"},
	}
	if s.name != "" {
		a.Client.Name, a.Client.Class = s.name, Generic
	}
	if s.spf != "" {
		a.SPF = SPFResult{Status: SPFPass, Domain: s.spf, Frees: true}
	}
	return a
}

func accepts(r Reason) bool { return r == Retry || r == Known || r == Paired }

func TestReplay(t *testing.T) {
	const hour, day = 3600, 86400
	for _, tt := range []struct {
		name   string
		policy Policy
		steps  []step
	}{
		{"59 s refused, 60 s accepted", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{59, "192.0.2.1", "", "", "early", 1, ""},
			{60, "192.0.2.1", "", "", "retry", 0, ""},
			{61, "192.0.2.1", "", "", "known", 0, ""},
		}},
		{"59.9 s is too early", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{59.999, "192.0.2.1", "", "", "early", 1, ""},
		}},
		{"passtime 300 s, early retries do not begin again", Policy{PassTime: 300 * time.Second}, []step{
			{0, "192.0.2.1", "", "", "new", 300, ""},
			{61, "192.0.2.1", "", "", "early", 239, ""},
			{299, "192.0.2.1", "", "", "early", 1, ""},
			{300, "192.0.2.1", "", "", "retry", 0, ""},
		}},
		{"passtime 1m30s", Policy{PassTime: 90 * time.Second}, []step{
			{0, "192.0.2.1", "", "", "new", 90, ""},
			{89, "192.0.2.1", "", "", "early", 1, ""},
			{90, "192.0.2.1", "", "", "retry", 0, ""},
		}},
		{"retry after 24 h 1 s is a first attempt", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{day + 1, "192.0.2.1", "", "", "late", 60, ""},
			{day + 61, "192.0.2.1", "", "", "retry", 0, ""},
		}},
		{"retry after 24 h", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{day, "192.0.2.1", "", "", "retry", 0, ""},
		}},
		{"pool with SPF", Policy{}, []step{
			{0, "192.0.2.1", "x1234@s.example", "s.example", "new", 60, ""},
			{60, "203.0.113.9", "another@s.example", "S.example.", "retry", 0, ""},
			{61, "198.51.100.7", "third@s.example", "s.example", "known", 0, ""},
		}},
		{"SPF silent on the first attempt", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "192.0.2.1", "", "s.example", "retry", 0, ""},
			{61, "198.51.100.7", "b@s.example", "s.example", "known", 0, ""},
		}},
		{"SPF silent on the retry", Policy{}, []step{
			{0, "192.0.2.1", "", "s.example", "new", 60, ""},
			{60, "192.0.2.2", "", "", "retry", 0, ""},
		}},
		{"a /24 retries, one address is free", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "192.0.2.200", "", "", "retry", 0, ""},
			{61, "192.0.2.200", "other@s.example", "", "known", 0, ""},
			{62, "192.0.2.1", "third@s.example", "", "new", 60, ""},
			{63, "192.0.2.77", "", "", "known", 0, ""}, // the same sender and recipient
			{64, "192.0.3.1", "", "", "new", 60, ""},
		}},
		{"mapped IPv4", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "::ffff:192.0.2.1", "", "", "retry", 0, ""},
		}},
		{"IPv6 /64", Policy{}, []step{
			{0, "2001:db8:0:1::1", "", "", "new", 60, ""},
			{60, "2001:db8:0:1:ffff::2", "", "", "retry", 0, ""},
			{61, "2001:db8:0:1::3", "other@s.example", "", "known", 0, ""},
			{62, "2001:db8:0:2::1", "", "", "new", 60, ""},
		}},
		{"masks", Policy{Mask4: 16, Mask6: 48}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "192.0.77.1", "", "", "retry", 0, ""},
			{61, "2001:db8:0:1::1", "", "", "new", 60, ""},
			{121, "2001:db8:0:2::1", "", "", "retry", 0, ""},
			{122, "2001:db8:0:1::1", "x@s.example", "", "new", 60, ""}, // the /64 is not free
		}},
		{"case and extension of the sender", Policy{}, []step{
			{0, "192.0.2.1", "Alice+1@S.example", "", "new", 60, ""},
			{60, "192.0.2.1", "aLICE+2@s.EXAMPLE", "", "retry", 0, ""},
		}},
		{"clock steps back", Policy{}, []step{
			{hour, "192.0.2.1", "", "", "new", 60, ""},
			{0, "192.0.2.1", "", "", "early", 60, ""},
			{59, "192.0.2.1", "", "", "early", 1, ""},
			{60, "192.0.2.1", "", "", "retry", 0, ""},
			{-hour, "192.0.2.1", "", "", "known", 0, ""},
		}},
		{"three networks", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, "a.isp.example"},
			{400, "198.51.100.1", "", "", "new", 60, "a.isp.example"},
			{1000, "203.0.113.1", "", "", "pair", 0, "a.isp.example"},
			{1001, "10.1.2.3", "", "", "pair", 0, "a.isp.example"},
			{1002, "203.0.113.1", "other@s.example", "", "new", 60, "a.isp.example"}, // no address is free
		}},
		{"the pair waits 15 minutes", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, "a.isp.example"},
			{30, "198.51.100.1", "", "", "new", 60, "a.isp.example"},
			{50, "203.0.113.1", "", "", "new", 60, "a.isp.example"},
			{899, "10.1.2.3", "", "", "new", 60, "a.isp.example"},
			{900, "10.2.2.3", "", "", "pair", 0, "a.isp.example"},
		}},
		{"the pair needs a second network", Policy{PassTime: hour * time.Second}, []step{
			{0, "192.0.2.1", "", "", "new", 0, "a.isp.example"},
			{400, "192.0.2.2", "", "", "early", 0, "a.isp.example"},
			{1000, "192.0.2.3", "", "", "early", 0, "a.isp.example"},
			{1001, "198.51.100.1", "", "", "pair", 0, "a.isp.example"},
		}},
		{"the pair needs three tries", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, "a.isp.example"},
			{1000, "198.51.100.1", "", "", "new", 60, "a.isp.example"},
		}},
		{"no pair", Policy{PairTries: -1}, []step{
			{0, "192.0.2.1", "", "", "new", 60, "a.isp.example"},
			{400, "198.51.100.1", "", "", "new", 60, "a.isp.example"},
			{1000, "203.0.113.1", "", "", "new", 60, "a.isp.example"},
		}},
		{"bounces are no pair", Policy{}, []step{
			{0, "192.0.2.1", "<>", "", "new", 60, ""},
			{400, "198.51.100.1", "<>", "", "new", 60, ""},
			{1000, "203.0.113.1", "<>", "", "new", 60, ""},
			{1060, "203.0.113.1", "<>", "", "retry", 0, ""},
		}},
		{"yesterday's pass, new sender", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "192.0.2.1", "", "", "retry", 0, ""},
			{day, "192.0.2.1", "new@other.example", "", "known", 0, ""},
		}},
		{"a pass lives 36 days after its last use", Policy{}, []step{
			{0, "192.0.2.1", "", "", "new", 60, ""},
			{60, "192.0.2.1", "", "", "retry", 0, ""},
			{30 * day, "192.0.2.1", "", "", "known", 0, ""},
			{66 * day, "192.0.2.1", "", "", "known", 0, ""},
			{102*day + 1, "192.0.2.1", "", "", "new", 60, ""},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := New(Options{Policy: tt.policy})
			for i, s := range tt.steps {
				quick, ok := g.DecideAtHand(s.attempt())
				d, err := g.Decide(t.Context(), s.attempt())
				if ok && quick.String() != d.String() {
					t.Fatalf("step %d, %+v: %v at hand, %v", i, s, quick, d)
				}
				if err != nil || string(d.Reason) != s.want || d.Accept != accepts(d.Reason) {
					t.Fatalf("step %d, %+v: got %v, %v", i, s, d, err)
				}
				if !d.Accept && s.left > 0 && d.Left != time.Duration(s.left)*time.Second {
					t.Errorf("step %d: %v left, want %d s", i, d.Left, s.left)
				}
			}
		})
	}
}

// What a decision tells the log and the header.
func TestDecision(t *testing.T) {
	m := NewMemory(0)
	g := New(Options{Store: m, Clear: true})
	a := step{0, "192.0.2.1", "Alice+1@s.example", "s.example", "", 0, ""}.attempt()
	if _, err := g.Decide(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	a.Time = a.Time.Add(362 * time.Second)
	before, entries, err := g.Explain(t.Context(), a)
	if err != nil || len(entries) != 3 { // spf, net, client
		t.Errorf("%v, %v", entries, err)
	}
	d, err := g.Decide(t.Context(), a)
	if err != nil || fmt.Sprint(before) != fmt.Sprint(d) {
		t.Errorf("explained as %v, decided as %v, %v", before, d, err)
	}
	if d.String() != "accept retry spf:s.example" || !d.First || d.Delay != 362*time.Second || d.Tries != 2 ||
		d.Sender != "alice@s.example" || d.Rcpt != "bob@rcpt.example" || d.Key.Kind() != KindAttempt ||
		fmt.Sprint(d.Origins) != "[spf:s.example 192.0.2.1 net:192.0.2.0/24]" {
		t.Errorf("%+v", d)
	}
	d, err = g.Decide(t.Context(), a)
	if err != nil || d.String() != "accept known spf:s.example" || d.First {
		t.Errorf("%+v, %v", d, err)
	}
}

// A provider is an origin like a domain, but for the sender.
func TestProvider(t *testing.T) {
	g := New(Options{})
	a := step{at: 0, addr: "192.0.2.1"}.attempt()
	a.Client.Provider = "big"
	g.Decide(t.Context(), a)
	a = step{at: 60, addr: "198.51.100.1"}.attempt()
	a.Client.Provider = "big"
	if d, err := g.Decide(t.Context(), a); err != nil || d.String() != "accept retry provider:big" {
		t.Errorf("%v, %v", d, err)
	}
}

// word is a different one for each number, without digits.
func word(n int) string {
	s := "w"
	for ; n > 0; n /= 26 {
		s += string(rune('a' + n%26))
	}
	return s
}

// schedule reads testdata/retry-schedules.tsv: when a sender tries, in seconds,
// and from how many addresses.
func schedules(t *testing.T) (all []schedule) {
	f, err := os.Open("testdata/retry-schedules.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		f := strings.Split(sc.Text(), "\t")
		s := schedule{name: f[0], tries: []float64{0}}
		s.addrs, _ = strconv.Atoi(f[1])
		words := strings.Fields(f[2])
		every := 0.0
		for i, w := range words {
			m, sec, ok := strings.Cut(w, ":")
			if !ok {
				continue
			}
			min, err1 := strconv.Atoi(m)
			secs, err2 := strconv.Atoi(sec)
			if err1 != nil || err2 != nil {
				t.Fatalf("%s: %s", s.name, w)
			}
			at := float64(min*60 + secs)
			switch words[max(i-1, 0)] {
			case "every":
				every = at
			case "until":
				for last := s.tries[len(s.tries)-1] + every; last <= at; last += every {
					s.tries = append(s.tries, last)
				}
			default:
				s.tries = append(s.tries, at)
			}
		}
		all = append(all, s)
	}
	if len(all) < 11 {
		t.Fatalf("%d schedules", len(all))
	}
	return all
}

type schedule struct {
	name  string
	addrs int
	tries []float64
}

// Every sender passes at its first retry that is old enough, whichever of its
// addresses that comes from, and its next message does not wait. So do bounces. With
// neither SPF nor a name of a domain it passes when one network comes again, or by
// the pair if its names are confirmed.
func TestSchedules(t *testing.T) {
	for _, s := range schedules(t) {
		for _, passtime := range []float64{60, 300} {
			for _, proof := range []string{"spf", "name", "bounce", "host", "none"} {
				t.Run(fmt.Sprint(s.name, passtime, proof), func(t *testing.T) {
					g := New(Options{Policy: Policy{PassTime: time.Duration(passtime) * time.Second}})
					decide := func(n int, at float64, from string) Decision {
						st := step{at: at, addr: fmt.Sprintf("10.0.%d.1", n%s.addrs), from: from}
						if proof == "bounce" {
							st.from = "<>"
						}
						if proof == "spf" {
							st.spf = s.name + ".example"
						}
						a := st.attempt()
						if proof != "spf" && proof != "none" {
							a.Client.Name, a.Client.Class = fmt.Sprint("mx", n%s.addrs, ".big.example"), Generic
							if proof != "host" {
								a.Client.Class, a.Client.Domain = Proper, "big.example"
							}
						}
						d, err := g.Decide(t.Context(), a)
						if err != nil {
							t.Fatal(err)
						}
						return d
					}
					due := func(n int) Reason {
						at := s.tries[n]
						if (proof != "host" && proof != "none" || s.addrs == 1) && at >= passtime {
							return Retry
						}
						for m := n - s.addrs; m >= 0; m -= s.addrs { // the same network
							if at-s.tries[m] >= passtime {
								return Retry
							}
						}
						if proof == "host" && s.addrs > 1 && n >= 2 && at >= 900 {
							return Paired
						}
						return ""
					}
					for n, at := range s.tries {
						d := decide(n, at, "bounce-12345-x@"+s.name)
						if want := due(n); d.Accept != (want != "") || d.Accept && d.Reason != want {
							t.Fatalf("try %d at %v s: %v, want %q", n, at, d, want)
						}
						if !d.Accept {
							continue
						}
						if d = decide(n, at+5, "bounce-54321-x@"+s.name); !d.Accept {
							t.Errorf("the next message: %v", d)
						}
						for m := range s.addrs {
							if d = decide(n+m, at+1000, "bounce-777-x@"+s.name); proof != "none" && !d.Accept {
								t.Errorf("the next message from another address: %v", d)
							}
						}
						return
					}
					t.Error("never passed")
				})
			}
		}
	}
}

func TestStats(t *testing.T) {
	g := New(Options{Clear: true})
	for n := range 5 {
		g.Decide(t.Context(), step{at: float64(n), addr: "192.0.2.1", from: word(n) + "@s.example"}.attempt())
	}
	g.Decide(t.Context(), step{at: 0, addr: "198.51.100.1"}.attempt())
	g.Decide(t.Context(), step{at: 362, addr: "198.51.100.1"}.attempt())
	if err := g.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := g.Stats(t.Context(), epoch.Add(400*time.Second), StatsQuery{})
	if err != nil || s.Reasons[Unseen] != 6 || s.Reasons[Retry] != 1 || s.Delays[3] != 1 ||
		fmt.Sprint(s.Silent) != "[{192.0.2.0/24 5}]" || s.Records["origin"]["pass"] != 1 || s.Records["attempt"]["grey"] != 5 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Run sweeps, and stores what was noted and counted, also at the end. A time that is
// far ahead of the clock removes nothing.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(0)
		set := metrics.New(metrics.Options{})
		g := New(Options{Store: m, Metrics: set})
		if n := set.Value(`filter_greylist_records{state="grey"}`); !math.IsNaN(n) {
			t.Errorf("%v records before they were counted", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var newest atomic.Int64
		go g.Run(ctx, func() time.Time {
			if n := newest.Load(); n != 0 {
				return time.UnixMilli(n)
			}
			return time.Time{}
		}, nil)
		begin := time.Now()
		attempt := func(vouched bool) {
			a := step{addr: "192.0.2.1", spf: "s.example"}.attempt()
			a.Time = begin
			if vouched {
				a.Client = Client{Addr: a.Client.Addr, Name: "mx.s.example", Domain: "s.example"}
			}
			g.Decide(ctx, a)
		}
		attempt(false)
		attempt(true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n, _ := m.Count(t.Context(), nil); m.grey != 3 || n["reason new"] != 1 || n["suspect noname"] != 1 || n["reason vouched"] != 1 {
			t.Errorf("%d records, counted %v", m.grey, n)
		}
		if l := m.bounded[KindVouched]; l == nil || l.Len() != 1 {
			t.Error("not noted who was vouched for")
		}
		newest.Store(begin.UnixMilli())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := set.Value(`filter_greylist_records{state="grey"}`); n != 3 {
			t.Errorf("%v records, want 3", n)
		}
		for _, ahead := range []time.Duration{400 * 24 * time.Hour, 25 * time.Hour, time.Hour + time.Minute} {
			newest.Store(time.Now().Add(ahead).UnixMilli())
			time.Sleep(ahead / 1000)
			synctest.Wait()
			if m.grey != 3 {
				t.Errorf("%d records when the clock was %v ahead", m.grey, ahead)
			}
		}
		newest.Store(begin.Add(25 * time.Hour).UnixMilli())
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if m.grey != 0 {
			t.Errorf("%d records after a day", m.grey)
		}
		attempt(false)
		cancel()
		synctest.Wait()
		if n, _ := m.Count(t.Context(), nil); n["reason new"] != 2 {
			t.Errorf("counted %v", n)
		}
	})
}

// What no client has is answered all the same.
func TestNonsense(t *testing.T) {
	g := New(Options{})
	for _, a := range []Attempt{
		{},
		{Client: Client{Addr: netip.MustParseAddr("fe80::1%em0"), Name: ".", Domain: ".", Class: Static}, SPF: SPFResult{Status: SPFPass, Domain: "."}, Sender: "@", Rcpts: []string{"@", ""}},
		{Time: time.Unix(1<<60, 0), Sender: strings.Repeat("a", 1<<17) + "@", Rcpts: []string{strings.Repeat("@", 1<<17)}},
	} {
		if d, err := g.Decide(t.Context(), a); d.Accept || err != nil {
			t.Errorf("%v, %v", d, err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := t.TempDir() + "/key"
	if _, err := (&KeyFile{Path: path}).Secret(); err == nil {
		t.Error("no file, no error")
	}
	one, err := (&KeyFile{Path: path, Create: true}).Secret()
	if err != nil || len(one) != 32 {
		t.Fatal(one, err)
	}
	two, err := (&KeyFile{Path: path, Create: true}).Secret()
	if err != nil || string(one) != string(two) {
		t.Errorf("%x, then %x, %v", one, two, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi.Mode(), err)
	}
	os.WriteFile(path, []byte("secret\n"), 0o600)
	f := &KeyFile{Path: path, Create: true}
	if _, err := f.Secret(); err == nil {
		t.Error("no error for no key")
	}
	g := New(Options{Secret: f.Secret})
	if d, err := g.Decide(t.Context(), step{addr: "192.0.2.1"}.attempt()); err == nil {
		t.Error(d)
	}
}

// Keys do not depend on which were made before, or meanwhile.
func TestHasher(t *testing.T) {
	secret := []byte("0123456789abcdef")
	h := newHasher(secret)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 500 {
				near, part := fmt.Sprint(i*n%3), fmt.Sprint(i%5)
				if i%7 == 0 {
					near = ""
				}
				rcpt := []string{"", "a@a.example", "b@a.example"}[i%3]
				if got, want := h.key(KindPair, near, "", part, rcpt), newHasher(secret).key(KindPair, near, "", part, rcpt); got != want {
					t.Errorf("%q, %q: %s, want %s", near, part, got, want)
				}
			}
		})
	}
	wg.Wait()
}

// Records of one recipient are on one server, and of the others those of a
// neighbourhood.
func TestShards(t *testing.T) {
	h := newHasher([]byte("0123456789abcdef"))
	shard := func(kind Kind, origin, sender, rcpt string) [2]byte {
		return h.entry(kind, origin, sender, rcpt).Key.Shard()
	}
	bob := shard(KindAttempt, "net:192.0.2.0/24", "a@a.example", "bob@b.example")
	for _, other := range [][2]byte{
		shard(KindAttempt, "spf:s.example", "", "bob@b.example"),
		shard(KindPair, "", "a@a.example", "bob@b.example"),
		shard(KindLearned, "", "z@z.example", "bob@b.example"),
		shard(KindReply, "z.example", "", "bob@b.example"),
	} {
		if other != bob {
			t.Errorf("%x, want %x", other, bob)
		}
	}
	if shard(KindAttempt, "net:192.0.2.0/24", "a@a.example", "eve@b.example") == bob {
		t.Error("two recipients have one shard")
	}
	client := shard(KindClient, "192.0.2.1", "", "")
	if shard(KindOrigin, "192.0.2.1", "", "") != client || shard(KindTrap, "192.0.2.9", "", "") != client {
		t.Error("a network has several shards")
	}
	if shard(KindClient, "198.51.100.1", "", "") == client {
		t.Error("two networks have one shard")
	}
}

// Keys of one attempt have their neighbourhoods, and tell the kind.
func TestKeys(t *testing.T) {
	g := New(Options{})
	h, _ := g.hash()
	a := step{addr: "192.0.2.1", spf: "s.example"}.attempt()
	keys := g.plan(h, &a).keys()
	near := make(map[[8]byte]int)
	seen := make(map[Key]bool)
	for _, k := range keys {
		near[[8]byte(k[:8])]++
		seen[k] = true
		if back, err := ParseKey(k.String()); err != nil || back != k {
			t.Errorf("%v, %v", back, err)
		}
	}
	if len(near) != 4 || len(seen) != len(keys) {
		t.Errorf("%d neighbourhoods, %d keys of %d", len(near), len(seen), len(keys))
	}
	for _, s := range []string{"", "00", strings.Repeat("0", 32), strings.Repeat("g", 32), strings.Repeat("0", 30) + "ff"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("%q: %v", s, k)
		}
	}
}

func TestImport(t *testing.T) {
	in := strings.Join([]string{
		"# spamdb",
		fmt.Sprintf("WHITE|192.0.2.1|||%d|%d|%d|3|20", epoch.Unix()-1000, epoch.Unix()-500, epoch.Unix()+86400),
		fmt.Sprintf("GREY|192.0.3.1|mx.s.example|<Alice@s.example>|<bob@rcpt.example>|%d|%d|%d|2|0", epoch.Unix()-100, epoch.Unix()+1000, epoch.Unix()+10000),
		fmt.Sprintf("WHITE|192.0.4.1|||%d|%d|%d|3|20", epoch.Unix()-1000, epoch.Unix()-500, epoch.Unix()-1), // lapsed
		fmt.Sprintf("TRAPPED|192.0.5.1|%d", epoch.Unix()+100),
		"SPAMTRAP|trap@rcpt.example",
		"WHITE|nonsense|||1|2|3|4|5",
		"WHITE|192.0.2.1|||1",
		"hello",
		"VERSION=3", "format=print", "type=btree", "HEADER=END",
		" 192.0.6.0/alice@s.example/bob@rcpt.example", fmt.Sprintf(" %d,%d,9", epoch.Unix()-500, epoch.Unix()-100),
		" 192.0.7.0/alice@s.example/bob@rcpt.example", fmt.Sprintf(" %d,%d", epoch.Unix()-30, epoch.Unix()-30),
		" 192.0.8.1", fmt.Sprintf(" 6,%d", epoch.Unix()-30),
		" 192.0.9.1", fmt.Sprintf(" 4,%d", epoch.Unix()-30),
		` back\5cslash`, " x",
		" 192.0.9.2", ` 4,\zz`,
		" 192.0.10.0/24/alice@s.example/bob@rcpt.example", fmt.Sprintf(" %d,%d", epoch.Unix()-500, epoch.Unix()-100),
		" 2001:db8:5::/64/alice@s.example/bob@rcpt.example", fmt.Sprintf(" %d,%d", epoch.Unix()-500, epoch.Unix()-100),
		"DATA=END",
		strings.Repeat("x", 100_000),
		"{\"kind\":\"origin\"}",
	}, "\n")
	g := New(Options{})
	n, errs := g.Import(t.Context(), epoch, strings.NewReader(in), "dump")
	if n.Stored != 8 || len(errs) != 6 || !slices.Equal(n.Traps, []string{"trap@rcpt.example"}) {
		t.Errorf("%+v, errors %v", n, errs)
	}
	for i, line := range []int{7, 8, 23, 25, 31, 9} {
		if i < len(errs) && !strings.HasPrefix(errs[i].Error(), fmt.Sprintf("dump:%d: ", line)) {
			t.Errorf("line %d: %v", line, errs[i])
		}
	}
	for addr, want := range map[string]Reason{
		"192.0.2.1": Known, "192.0.3.1": Retry, "192.0.4.1": Unseen, "192.0.5.1": Trapped, "192.0.6.9": Known,
		"192.0.7.1": Early, "192.0.8.1": Known, "192.0.9.1": Unseen,
		"192.0.10.9": Known, "2001:db8:5::9": Known,
	} {
		d, err := g.Decide(t.Context(), step{at: 1, addr: addr, from: "alice@s.example"}.attempt())
		if err != nil || d.Reason != want {
			t.Errorf("%s: %v, %v, want %s", addr, d, err, want)
		}
	}
}

// An address of no ASCII survives an export, also one that is cut.
func TestExchangeBytes(t *testing.T) {
	from := "ab\xff" + strings.Repeat("é", 100) + "@s.example"
	secret := func() ([]byte, error) { return []byte("0123456789abcdef"), nil }
	g := New(Options{Clear: true, Secret: secret})
	g.Decide(t.Context(), step{at: 0, addr: "192.0.2.1", from: from}.attempt())
	var text strings.Builder
	if err := g.Export(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	g = New(Options{Clear: true, Secret: secret})
	if _, errs := g.Import(t.Context(), epoch, strings.NewReader(text.String()), "f"); errs != nil {
		t.Error(errs)
	}
	d, err := g.Decide(t.Context(), step{at: 60, addr: "192.0.2.1", from: from}.attempt())
	if err != nil || d.Reason != Retry {
		t.Errorf("%v, %v", d, err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add("WHITE|192.0.2.1|||1|2|3|4|5\nGREY|::1|h|<a@b>|<c@d>|1|2|3|4|5\nTRAPPED|192.0.2.1|9999999999")
	f.Add("HEADER=END\n 192.0.2.0/a@b/c@d\n 1,2\n x\\00\n 1,2\nDATA=END\n")
	f.Add(`{"key":"00000000000000000000000000000003","kind":"pair","state":"pass","first":"2024-01-01T00:00:00Z","last":"2024-02-01T00:00:00Z","nets":"AAAAAA=="}`)
	f.Fuzz(func(t *testing.T, s string) {
		g := New(Options{Clear: true})
		g.Import(t.Context(), epoch, strings.NewReader(s), "f")
		for e, err := range g.store.All(t.Context()) {
			if err != nil || e.Record.First > epoch.UnixMilli() || e.Record.Last > epoch.UnixMilli() || e.Record.State == Absent || e.Key.Kind() == 0 {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if err := g.Export(t.Context(), io.Discard); err != nil {
			t.Error(err)
		}
	})
}

// A Memory knows which of its records are grey.
func TestMemoryGrey(t *testing.T) {
	m := NewMemory(50)
	for range 20_000 {
		k := Key{byte(rand.IntN(80)), 15: byte(KindAttempt)}
		r := Record{State: State(rand.IntN(3)), First: rand.Int64N(3)}
		m.Update(t.Context(), []Key{k}, func(recs []Record) { recs[0] = r })
		n := 0
		for _, part := range m.records {
			for _, r := range part {
				if r.State == Grey {
					n++
				}
			}
		}
		if n != m.grey || n > 50 {
			t.Fatalf("%d grey records, %d counted", n, m.grey)
		}
	}
}
