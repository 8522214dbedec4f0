package spf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

const (
	client4 = "198.51.100.7"
	client6 = "2001:db8:7::7"
)

// check is the result for a client whose sender is u@d.example, of whose records
// text is the zone.
func check(t testing.TB, text, addr string) (Result, *zone) {
	z := newZone(text)
	return New(Options{Resolver: z}).Check(t.Context(), Query{netip.MustParseAddr(addr), "mail.h.example", "u@d.example"}), z
}

func TestEverybody(t *testing.T) {
	const zone = `
d.example A 198.51.100.7
d.example AAAA 2001:db8:7::7
d.example MX mx.example
mx.example A 203.0.113.5
mx.example AAAA 2001:db8:5::5
any.example TXT v=spf1 +all
any.example A 198.51.100.9
any4.example TXT v=spf1 ip4:0.0.0.0/0 -all
half.example TXT v=spf1 ip4:0.0.0.0/1 -all
deep.example TXT v=spf1 include:deeper.example -all
deeper.example TXT v=spf1 redirect=any.example
mine.example TXT v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:7::/48 -all
*.wild.example A 127.0.0.2
*.wild.example TXT v=spf1 +all
*.wild.example MX mx.example
sales.example TXT v=spf1 exists:%{i}._spf.sales.example -all
198.51.100.7._spf.sales.example A 127.0.0.2
silent.example TXT silent
broken.example TXT broken
u.l.example A 127.0.0.2
mail.h.example A 198.51.100.7
mail.h.example AAAA 2001:db8:7::7
`
	const pass, everybody, per = "pass:d.example", "none:d.example everybody", "pass:d.example per address"
	for _, tt := range []struct{ record, want4, want6 string }{
		{"ip4:198.51.100.0/24 ip6:2001:db8:7::/48 -all", pass, pass},
		{"a mx -all", pass, pass},
		{"a/8 a//32 -all", pass, pass},
		{"ip4:198.0.0.0/8 ip6:2001:db8::/32 ip4:10.0.0.0/8 ip4:127.0.0.0/8 ip4:172.16.0.0/12 ip4:192.168.0.0/16 -all", pass, pass},
		{"include:mine.example -all", pass, pass},
		{"redirect=mine.example", pass, pass},

		{"+all", everybody, everybody},
		{"all", everybody, everybody},
		{"-ip4:192.0.2.0/24 -ip6:2001:db8::/64 +all", everybody, everybody},
		{"-ip4:8.0.0.0/7 ~ip6:2a00::/12 ALL", everybody, everybody},
		{"ip4:0.0.0.0/0 ip6:::/0 -all", everybody, everybody},
		{"ip4:0.0.0.0/1 ip4:128.0.0.0/1 ip6:::/1 ip6:8000::/1 -all", everybody, everybody},
		{"ip4:0.0.0.0/0 ip6:2001:db8:7::/48 -all", everybody, pass},
		{"ip6:::/0 ip4:198.51.100.0/24 -all", pass, everybody},
		{"a/0 a//0 -all", everybody, everybody},
		{"a/0//0 -all", everybody, everybody},
		{"mx/0//0 -all", everybody, everybody},
		{"mx/1//0 a/1 -all", everybody, everybody},
		{"a:any.example/0 a -all", everybody, pass},
		{"include:any.example -all", everybody, everybody},
		{"include:any4.example a -all", everybody, pass},
		{"include:half.example ip4:128.0.0.0/1 a -all", everybody, pass},
		{"redirect=any.example", everybody, everybody},
		{"include:deep.example -all", everybody, everybody},
		{"a redirect=deep.example", everybody, everybody},
		{"exists:any.example -all", everybody, everybody},
		{"exists:%{d2}.wild.example -all", everybody, everybody},
		{"a:%{o}.wild.example/0 mx//0 -all", everybody, everybody},
		{"ip4:192.0.0.0/3 ip6:2000::/8 -all", everybody, everybody},
		{"a ip4:1.0.0.0/8 ip4:2.0.0.0/7 ip4:4.0.0.0/6 ip4:8.0.0.0/5 ip4:16.0.0.0/4 -all", everybody, pass},
		{"exists:%{i}.wild.example +all", everybody, everybody},
		{"-exists:%{ir}.no.example +all", everybody, everybody},
		{"a exists:%{i}.wild.example all", everybody, everybody},

		{"?all", "neutral:d.example", "neutral:d.example"},
		{"~all", "softfail:d.example", "softfail:d.example"},
		{"-a +all", "fail:d.example", "fail:d.example"},
		{"a ?all", pass, pass},
		{"a ~include:any.example", pass, pass},
		{"?include:any.example", "neutral:d.example", "neutral:d.example"},

		{"exists:%{i}.wild.example -all", per, per},
		{"exists:%{i1}.wild.example -all", per, per},
		{"include:%{i}.wild.example -all", per, per},
		{"redirect=%{ir}.wild.example", per, per},
		{"a:%{i}.wild.example/0//0 mx:%{i}.wild.example/0//0 -all", per, per},
		{"exists:%{I}.wild.example -all", per, per},
		{"exists:%{p}.wild.example -all", per, per},
		{"include:sales.example a -all", per, per},
		{"a include:sales.example -all", per, per},
		{"a ptr -all", per, per},
		{"exists:%{l}.l.example -all", per, per},
		{"a:%{h} -all", per, per},
		{"a include:silent.example -all", per, per},
		{"a include:broken.example -all", per, per},
		{"a exp=%{i}.x.example note=%{l} -all", pass, pass},
	} {
		for i, addr := range []string{client4, client6} {
			want := []string{tt.want4, tt.want6}[i]
			synctest.Test(t, func(t *testing.T) { // a silent zone costs its time
				begin := time.Now()
				r, z := check(t, "d.example TXT v=spf1 "+tt.record+zone, addr)
				if took := time.Since(begin); took > probeTime {
					t.Errorf("%q from %s took %v", tt.record, addr, took)
				}
				if r.String() != want {
					t.Errorf("%q from %s: %v, want %s", tt.record, addr, r, want)
				}
				if n := z.count(); n > maxQueries {
					t.Errorf("%q from %s: %d queries", tt.record, addr, n)
				}
			})
		}
	}
}

// However a record says that everybody may send, it is found; and one with the
// networks of a large sender is not taken for such.
func TestEverybodyGenerated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		addr, family, width := client4, "ip4", 32
		if v6 {
			addr, family, width = client6, "ip6", 128
		}
		random := func(name string) netip.Addr {
			b := make([]byte, width/8)
			for i := range b {
				b[i] = rapid.Byte().Draw(t, name)
			}
			if v6 {
				b[0] |= 0x20
				b[0] &= 0x3f
			}
			a, _ := netip.AddrFromSlice(b)
			return a
		}
		var text strings.Builder
		names := 0
		// record makes a name with a record of terms that lead to others.
		var record func(terms []string, depth int) string
		record = func(terms []string, depth int) string {
			name := "d.example"
			if names > 0 {
				name = fmt.Sprintf("n%d.example", names)
			}
			names++
			how := rapid.IntRange(0, 3).Draw(t, "how")
			switch {
			case depth < 4 && how == 1:
				terms = []string{"include:" + record(terms, depth+1), "-all"}
			case depth < 4 && how == 2:
				terms = []string{"redirect=" + record(terms, depth+1)}
			case depth < 4 && how == 3 && len(terms) > 1:
				terms = append([]string{"include:" + record(terms[1:], depth+1)}, terms[0], "-all")
			}
			fmt.Fprintf(&text, "\n%s TXT v=spf1 %s", name, strings.Join(terms, " "))
			return name
		}
		open := rapid.Bool().Draw(t, "open")
		var terms []string
		if open {
			// All the space in 2^bits parts, in any order.
			bits := rapid.IntRange(0, 5).Draw(t, "bits")
			for i := range 1 << bits {
				b := make([]byte, width/8)
				b[0] = byte(i << (8 - bits))
				a, _ := netip.AddrFromSlice(b)
				terms = append(terms, fmt.Sprintf("%s:%s/%d", family, a, bits))
			}
			terms = rapid.Permutation(terms).Draw(t, "order")
		} else {
			// Up to 20 networks of at most a /16 or /64.
			for range rapid.IntRange(0, 20).Draw(t, "nets") {
				terms = append(terms, fmt.Sprintf("%s:%s/%d", family, random("net"), rapid.IntRange(width/2, width).Draw(t, "size")))
			}
			terms = append(terms, family+":"+addr)
		}
		record(terms, 0)
		z := newZone(text.String())
		r := New(Options{Resolver: z}).Check(t.Context(), Query{netip.MustParseAddr(addr), "", "u@d.example"})
		want := "pass:d.example"
		if open {
			want = "none:d.example everybody"
		}
		if r.String() != want {
			t.Errorf("%v, want %s:%s", r, want, text.String())
		}
	})
}

func TestProbes(t *testing.T) {
	g := newProber()
	seen := map[netip.Addr]bool{}
	for _, domain := range []string{"a.example", "b.example"} {
		for _, v6 := range []bool{false, true} {
			list := g.probes(domain, v6)
			nets := map[netip.Prefix]int{}
			for _, a := range list {
				seen[a] = true
				if a.Is6() != v6 || a.IsPrivate() || a.IsLoopback() {
					t.Errorf("%s", a)
				}
				bits := 4
				if v6 {
					bits = 16
				}
				p, _ := a.Prefix(bits)
				nets[p]++
				in := false
				for _, s := range spans(v6) {
					b := a.AsSlice()
					head := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
					in = in || s.first <= head && head <= s.last
				}
				if !in {
					t.Errorf("%s is nowhere", a)
				}
			}
			if len(list) != probes {
				t.Errorf("%d probes", len(list))
			}
			for i := range 14 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i << 4)}), 4)
				if n := nets[p]; !v6 && (n < 3 || n > 6) {
					t.Errorf("%d probes in %s", n, p)
				}
			}
			if again := g.probes(domain, v6); fmt.Sprint(again) != fmt.Sprint(list) {
				t.Error("not the same again")
			}
		}
	}
	if len(seen) != 4*probes {
		t.Errorf("%d different probes", len(seen))
	}
	if fmt.Sprint(newProber().probes("a.example", false)) == fmt.Sprint(g.probes("a.example", false)) {
		t.Error("the secret makes no difference")
	}
}

// What the probes have found is kept for an hour, for the records that it read.
func TestProberKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone("d.example TXT v=spf1 a include:big.example -all\nd.example A 198.51.100.7\nd.example A 198.51.100.8\nbig.example TXT v=spf1 ip4:203.0.113.0/24 -all")
		c := New(Options{Resolver: z})
		ask := func(addr, want string, queries int) {
			t.Helper()
			before := z.count()
			r := c.Check(t.Context(), Query{netip.MustParseAddr(addr), "", "u@d.example"})
			if r.String() != want || z.count()-before != queries {
				t.Errorf("%v after %d queries, want %s after %d", r, z.count()-before, want, queries)
			}
		}
		ask("198.51.100.7", "pass:d.example", 3)
		ask("198.51.100.7", "pass:d.example", 0)
		ask("198.51.100.8", "pass:d.example", 2) // what has passed is known of the record
		time.Sleep(keep)
		ask("198.51.100.7", "pass:d.example", 2)
		time.Sleep(proberKeeps)
		ask("198.51.100.7", "pass:d.example", 3)
		// Another text is another record.
		z.lines["TXT d.example"] = []string{"v=spf1 a +all"}
		time.Sleep(keep)
		ask("198.51.100.7", "none:d.example everybody", 2)
		ask("203.0.113.1", "none:d.example everybody", 2)
		// What is not answered is asked again soon.
		z.lines["TXT d.example"] = []string{"v=spf1 a include:silent.example -all"}
		z.lines["TXT silent.example"] = []string{"silent"}
		time.Sleep(keep)
		ask("198.51.100.7", "pass:d.example per address", 3)
		z.lines["TXT silent.example"] = []string{"v=spf1 -all"}
		ask("198.51.100.7", "pass:d.example per address", 0)
		time.Sleep(keepError)
		ask("198.51.100.7", "pass:d.example", 3)
	})
}
