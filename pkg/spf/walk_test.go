package spf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/spf"
)

// Whatever records ask for, a check has its budget, and what is too much is an
// error that is not temporary. What the probes lack they do without.
func TestBombs(t *testing.T) {
	many := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	hosts := "\n*.h.example A 203.0.113.2\n*.h.example AAAA 2001:db8:9::1"
	for i := range 10 {
		hosts += many(fmt.Sprintf("\n*.m%d.m.example MX h%%d.m%d.h.example\nm%d.m.example MX h%%[1]d.m%d.h.example", i, i, i, i), 10)
	}
	wild := "\n*.w.example TXT v=spf1 include:%{i}.a.%{d} include:b.%{d} -all\n*.w.example A 203.0.113.1\n*.w.example AAAA 2001:db8:9::1"
	for _, tt := range []struct{ name, zone, want string }{
		{"mx of each address", "d.example TXT v=spf1" + many(" mx:%%{i}.m%d.m.example", 10) + hosts, "permerror"},
		{"mx and then pass", "d.example TXT v=spf1" + many(" mx:%%{i}.m%d.m.example", 2) + " all" + hosts, "none"},
		{"pass and then mx of each address", "d.example TXT v=spf1 a" + many(" mx:%%{i}.m%d.m.example", 9) + hosts, "pass"},
		{"pass and then mx", "d.example TXT v=spf1 a" + many(" mx:m%d.m.example", 9) + hosts, "pass"},
		{"pass and then includes", "d.example TXT v=spf1 a include:1.w.example include:2.w.example" + wild, "pass"},
		{"includes", "d.example TXT v=spf1 include:1.w.example" + wild, "permerror"},
		{"include of itself", "d.example TXT v=spf1 include:d.example", "permerror"},
		{"include of more of itself", "d.example TXT v=spf1 include:%{d}.%{d}.%{d}\n*.d.example TXT v=spf1 include:%{d}.%{d}.%{d}", "permerror"},
		{"redirect to itself", "d.example TXT v=spf1 redirect=d.example", "permerror"},
		{"a chain of redirects", "d.example TXT v=spf1 redirect=x.d.example\n*.d.example TXT v=spf1 redirect=x.%{d}", "permerror"},
		{"addresses of each", "d.example TXT v=spf1" + many(" a:%%{i}.%d.w.example", 11) + wild, "permerror"},
		{"exists of nothing", "d.example TXT v=spf1" + many(" exists:%%{i}.%d.no.example", 11), "permerror"},
		{"ptr with many names", "d.example TXT v=spf1 ptr -all" + many("\n198.51.100.7 PTR p%d.example\n2001:db8:7::7 PTR p%[1]d.example", 100), "fail"},
		{"many ptr", "d.example TXT v=spf1" + many(" ptr:p%d.example", 9) + " mx:m1.m.example mx:m2.m.example" +
			many("\n198.51.100.7 PTR p%d.h.example\n2001:db8:7::7 PTR p%[1]d.h.example", 100) + hosts, "permerror"},
		{"many addresses", "d.example TXT v=spf1" + many(" a:%d.big.example", 10) + " -all" + many("\n*.big.example A 203.0.113.%d\n*.big.example AAAA 2001:db8::%[1]d", 250), "permerror"},
		{"a long record", "d.example TXT v=spf1" + many(" ip4:203.0.113.%d", 2000) + " all", "permerror"},
		{"a long record often", "d.example TXT v=spf1" + many(" include:l.example", 9) + " all\nl.example TXT v=spf1" + many(" ip4:203.0.113.%d", 200), "permerror"},
		{"long macros", "d.example TXT v=spf1 exists:" + strings.Repeat("%{d}", 1000), "permerror"},
		{"long names", "d.example TXT v=spf1 include:" + strings.Repeat("%{d}.", 60) + "d.example", "permerror"},
	} {
		for _, addr := range []string{client4, client6} {
			r, z := check(t, tt.zone+"\nd.example A "+client4+"\nd.example AAAA "+client6, addr)
			if r.Status.String() != tt.want {
				t.Errorf("%s: %v, want %s", tt.name, r, tt.want)
			}
			if n := z.count(); n > maxQueries {
				t.Errorf("%s: %d queries", tt.name, n)
			}
			seen := map[string]bool{}
			for _, q := range z.asked {
				if seen[q] {
					t.Errorf("%s: asked again: %s", tt.name, q)
				}
				seen[q] = true
			}
		}
	}
}

// A client has a budget, whatever it names, and others have their own.
func TestClientBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := "*.e.example TXT v=spf1 mx:%{i}.1.%{d} mx:%{i}.2.%{d} -all\n*.e.example MX h1.%{d}\ngood.example TXT v=spf1 ip4:192.0.2.0/24 ip6:2001:db8:ffff::/48 -all\n*.silent.example TXT silent\n"
		for i := range 10 {
			zone += fmt.Sprintf("*.e.example MX h%d.e.example\n", i)
		}
		n := 0
		attack := func(c *Checker, addr, below string) (spent bool) {
			n++
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			r := c.Check(ctx, Query{netip.MustParseAddr(addr), "", fmt.Sprintf("a@%d.%s", n, below)})
			return r.Status == TempError
		}
		z := newZone(zone)
		c := New(Options{Resolver: z})
		good := func() {
			t.Helper()
			for _, addr := range []string{"192.0.2.1", "2001:db8:ffff::1"} {
				if r := c.Check(t.Context(), Query{netip.MustParseAddr(addr), "", "a@good.example"}); r.Status != Pass {
					t.Errorf("a good client: %v", r)
				}
			}
		}
		for range 10 {
			before := z.count()
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				attack(c, "198.51.100.7", "e.example")
			}
			if got := z.count() - before; got > 600 {
				t.Errorf("%d queries in a minute for one client", got)
			}
			good()
		}
		// So have a /64, and a /48 and /24.
		for _, tt := range []struct {
			addr func(i int) string
			most int
		}{
			{func(i int) string { return fmt.Sprintf("2001:db8::%x", i) }, 600},
			{func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i%2) }, 2 * 600},
			{func(i int) string { return fmt.Sprintf("2001:db8:2:%x::1", i) }, netFactor * 600},
			{func(i int) string { return fmt.Sprintf("203.0.113.%d", i%256) }, netFactor * 600},
		} {
			before := z.count()
			for i := range 6000 {
				attack(c, tt.addr(i), "e.example")
				time.Sleep(10 * time.Millisecond)
			}
			if got := z.count() - before; got > tt.most || got < tt.most/2 {
				t.Errorf("%d queries in a minute for %s, want at most %d", got, tt.addr(1), tt.most)
			}
			good()
		}
		// A zone that never answers costs more.
		before := z.count()
		for range 6000 {
			if !attack(c, "198.51.100.9", "silent.example") {
				t.Fatal("the silent zone has answered")
			}
			time.Sleep(9 * time.Millisecond)
		}
		if got := z.count() - before; got > 110 {
			t.Errorf("%d queries in a minute to a silent zone", got)
		}
		good()
		// After a while all is well again.
		time.Sleep(2 * time.Minute)
		if r := c.Check(t.Context(), Query{netip.MustParseAddr("198.51.100.9"), "", "a@good.example"}); r.Status != Fail {
			t.Errorf("%v", r)
		}
	})
}

// A result is kept for those for whom it holds.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(`
plain.example TXT v=spf1 ip4:198.51.100.0/24 -all
l.example TXT v=spf1 exists:%{l}.users.example -all
deep.example TXT v=spf1 include:l.example ?all
s.example TXT v=spf1 exists:%{S}.senders.example -all
h.example TXT v=spf1 a:%{h2} -all
alice.users.example A 127.0.0.2
alice@s.example.senders.example A 127.0.0.2
alice%40s.example.senders.example A 127.0.0.2
helo.example A 198.51.100.7
`)
		c := New(Options{Resolver: z})
		for range 3 {
			for _, tt := range []struct{ sender, helo, want string }{
				{"alice@l.example", "x.example", "pass:l.example per address"},
				{"bob@l.example", "x.example", "fail:l.example"},
				{"alice@l.example", "y.example", "pass:l.example per address"},
				{"bob@deep.example", "x.example", "neutral:deep.example"},
				{"alice@deep.example", "x.example", "pass:deep.example per address"},
				{"bob@s.example", "x.example", "fail:s.example"},
				{"alice@s.example", "x.example", "pass:s.example per address"},
				{"a@h.example", "x.example", "fail:h.example"},
				{"a@h.example", "mx.helo.example", "pass:h.example per address"},
				{"b@h.example", "MX.helo.example.", "pass:h.example per address"},
				{"a@plain.example", "x.example", "pass:plain.example"},
				{"b@PLAIN.example", "y.example", "pass:plain.example"},
			} {
				r := c.Check(t.Context(), Query{netip.MustParseAddr("198.51.100.7"), tt.helo, tt.sender})
				if r.String() != tt.want {
					t.Errorf("%+v: %v", tt, r)
				}
			}
		}
		asked := map[string]int{}
		for _, q := range z.asked {
			asked[q]++
		}
		for q, n := range asked {
			most := 1
			switch {
			case strings.HasPrefix(q, "TXT plain"):
			case strings.HasPrefix(q, "TXT"):
				most = 4 // the first shows that there is a macro
			case strings.HasSuffix(q, ".users.example"):
				most = 2 // two domains
			}
			if n > most {
				t.Errorf("%s: asked %d times", q, n)
			}
		}
	})
}

func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone("s.example TXT v=spf1 ip4:198.51.100.0/24 -all\nsilent.example TXT silent")
		c := New(Options{Resolver: z})
		q := Query{netip.MustParseAddr(client4), "h.example", "a@s.example"}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { c.Check(t.Context(), q) })
		}
		wg.Wait()
		if z.count() != 1 {
			t.Errorf("%d queries", z.count())
		}
		time.Sleep(keep - time.Second)
		c.Check(t.Context(), q)
		if z.count() != 1 {
			t.Error("asked again")
		}
		time.Sleep(time.Second)
		c.Check(t.Context(), q)
		if z.count() != 2 {
			t.Error("kept for ever")
		}

		// The deadline is the caller's, or ours; only ours says something.
		q.Sender = "a@silent.example"
		begin, before := time.Now(), z.count()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wg.Go(func() {
			if r := c.Check(t.Context(), q); r.String() != "temperror:silent.example" || time.Since(begin) != 5*time.Second {
				t.Errorf("%v after %v", r, time.Since(begin))
			}
		})
		if r := c.Check(ctx, q); r.Status != TempError || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", r, time.Since(begin))
		}
		wg.Wait()
		if r := c.Check(t.Context(), q); r.Status != TempError || time.Since(begin) != 5*time.Second || z.count()-before != 1 {
			t.Errorf("a silent server was asked again at once: %v after %v", r, time.Since(begin))
		}
		time.Sleep(keepError)
		before = z.count()
		c.Check(t.Context(), q)
		if z.count() == before {
			t.Error("an error is kept for ever")
		}
	})
}

// A check that nobody waits for any more ends, and tells nothing of the domain.
func TestAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone("silent.example TXT silent")
		c := New(Options{Resolver: z, Timeout: time.Hour})
		q := Query{netip.MustParseAddr(client4), "h.example", "a@silent.example"}
		one, leaveOne := context.WithCancel(t.Context())
		two, leaveTwo := context.WithCancel(t.Context())
		go c.Check(one, q)
		go c.Check(two, q)
		synctest.Wait()
		leaveOne()
		synctest.Wait()
		m, ok := c.cache.Get(identify(q).key(0))
		if !ok || m.isDone() {
			t.Fatal("one is still there")
		}
		leaveTwo()
		synctest.Wait()
		if !m.isDone() {
			t.Error("goes on")
		}
		if _, ok := c.cache.Get(identify(q).key(0)); ok {
			t.Error("is remembered")
		}
		z.lines["TXT silent.example"] = []string{"v=spf1 -all"}
		if r := c.Check(t.Context(), q); r.Status != Fail {
			t.Errorf("%v", r)
		}
	})
}

// plain is a zone as the library asks it, without bounds.
type plain struct{ *zone }

func (p plain) LookupTXT(ctx context.Context, name string) ([]string, error) {
	return p.TXT(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
}
func (p plain) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	return p.zone.LookupMX(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
}
func (p plain) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	return p.ask(ctx, "PTR", addr)
}
func (p plain) LookupIPAddr(ctx context.Context, name string) (ips []net.IPAddr, err error) {
	addrs, err := p.A(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
	for _, a := range addrs {
		ips = append(ips, net.IPAddr{IP: a.AsSlice()})
	}
	return ips, err
}

// Whatever is in the records, the check does not break, has its budget, and says
// what the library says of a client within it.
func FuzzRecord(f *testing.F) {
	for _, seed := range [][2]string{
		{"a mx ptr include:b.example -all", "ip4:198.51.100.0/24 ?all"},
		{"mx:%{i}.m.example exists:%{l1r-}.%{d2} redirect=b.example", "+all"},
		{"a:b.example/0//64 include:%{ir}.m.example -all", "exists:%{h} ip6:::/0"},
		{"-ip4:1.2.3.4/33 %{p}", "v=spf1 exp=%{t}"},
		{"+a/0 ~exists:%{S}.%{v}.m.example\tx ", "a:%%%_%-{ all"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		z := &zone{lines: map[string][]string{
			"TXT d.example": {"v=spf1 " + first}, "TXT b.example": {"v=spf1 " + second}, "TXT *.m.example": {"v=spf1 " + second},
			"A d.example": {client4}, "A b.example": {"203.0.113.1", "203.0.113.2"}, "A *.m.example": {"127.0.0.2"},
			"MX d.example": {"b.example", "x.m.example"}, "MX *.m.example": {"1.m.example", "2.m.example", "3.m.example"},
			"PTR " + client4: {"d.example", "b.example"},
		}}
		q := Query{netip.MustParseAddr(client4), "helo.example", "u@d.example"}
		r := New(Options{Resolver: z}).Check(t.Context(), q)
		if n := z.count(); n > maxQueries {
			t.Errorf("%d queries", n)
		}
		if len(first)+len(second) > 200 || strings.Count(first, "%")+strings.Count(second, "%") > 10 {
			return // may be too much
		}
		want, _ := spf.CheckHostWithSender(net.ParseIP(client4), q.Helo, q.Sender, spf.WithResolver(plain{z}))
		if r.Everybody && want == spf.Pass {
			return
		}
		if r.Status.String() != string(want) && r.Status != PermError {
			t.Errorf("%v, the library says %s", r, want)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	big := "v=spf1"
	for i := range 150 {
		big += fmt.Sprintf(" ip4:203.0.%d.0/24", i)
	}
	macros := "v=spf1 " + strings.Repeat("a:%{d}%{d}%{d}%{d}%{d}%{d} ", 10)
	longest := "v=spf1" + strings.Repeat(" ip4:1.2.3.4", 1300)
	for _, bb := range []struct{ name, zone string }{
		{"usual", "d.example TXT v=spf1 a mx ip4:192.0.2.0/24 -all\nd.example A 198.51.100.7\nd.example MX m.example\nm.example A 203.0.113.1"},
		{"large", "d.example TXT v=spf1 include:a.example include:b.example include:c.example ip4:198.51.100.7 -all\na.example TXT " + big + "\nb.example TXT " + big + "\nc.example TXT " + big},
		{"longest", "d.example TXT " + longest + " ip4:198.51.100.7"},
		{"macros", "d.example TXT " + macros + " ip4:198.51.100.7\n*.example A 203.0.113.1"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			z := newZone(bb.zone)
			for b.Loop() {
				z.asked = z.asked[:0]
				if r := New(Options{Resolver: z}).Check(b.Context(), Query{netip.MustParseAddr(client4), "", "u@d.example"}); r.Status == None {
					b.Fatal(r)
				}
			}
		})
	}
}

// What is evaluated for a probe says of it what the record says.
func FuzzProbe(f *testing.F) {
	for _, seed := range []string{
		"ip4:198.51.100.0/24 -ip4:0.0.0.0/1 ~ip4:128.0.0.0/2 ?all", "+IP4:198.51.100.7 -all", "ip6:::ffff:0:0/96", "ip4:::/0 all", "ip6:198.51.100.7",
		"ip4:198.51.100.7/33 all", "-ip4: all", "ip4:1.2.3.4  a mx/8 redirect=b.example", "--ip4:0.0.0.0/0", "?", "ip4:0.0.0.0/0 junk", "junk ip4:0.0.0.0/0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, record string) {
		record = "v=spf1 " + record
		for s := range strings.SplitSeq(record, " ") {
			if u, _ := asks(s); u != 0 {
				return
			}
		}
		if strings.Count(strings.ToLower(record), "redirect=") > 1 {
			return // an error, even behind what matches
		}
		for _, addr := range []string{client4, client6, "203.0.113.1", "10.0.0.1"} {
			w := &walk{terms: map[string][]term{}}
			result := func(text string) spf.Result {
				z := &zone{lines: map[string][]string{
					"TXT d.example": {text}, "TXT b.example": {"v=spf1 ?all"}, "A d.example": {client4}, "A b.example": {"203.0.113.1"}, "MX d.example": {"b.example"},
				}}
				r, _ := spf.CheckHostWithSender(net.ParseIP(addr), "helo.example", "u@d.example", spf.WithResolver(plain{z}))
				return r
			}
			for range 2 {
				rewritten := w.forProbe(record, netip.MustParseAddr(addr))
				if got, want := result(rewritten), result(record); got != want {
					t.Errorf("%s: %s from %q, want %s from %q", addr, got, rewritten, want, record)
				}
			}
		}
	})
}
