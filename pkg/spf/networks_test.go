package spf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func networksOf(t *testing.T, text, domain string, most int) (Published, *zone) {
	t.Helper()
	z := newZone(text)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return Networks(ctx, z, domain, most), z
}

func TestNetworks(t *testing.T) {
	var sixty strings.Builder
	sixty.WriteString("sixty.example TXT v=spf1")
	for i := range 60 {
		fmt.Fprintf(&sixty, " include:n%d.example", i)
	}
	sixty.WriteString(" -all\n")
	for i := range 60 {
		fmt.Fprintf(&sixty, "n%d.example TXT v=spf1 ip4:198.51.%d.0/24 -all\n", i, i)
	}
	text := `
big.example TXT v=spf1 redirect=_spf.big.example
big.example TXT google-site-verification=x
_spf.big.example TXT v=spf1 include:_a.big.example include:_b.big.example ?all
_a.big.example TXT v=spf1 ip4:192.0.2.0/24 ip6:2001:db8:a::/48 include:_c.big.example -all
_b.big.example TXT V=SPF1 IP4:203.0.113.7 ip4:192.0.2.128/25 ~all
_c.big.example TXT v=spf1 ip4:198.51.100.0/23 include:_a.big.example -all
hosts.example TXT v=spf1 a mx a:other.example/28 mx:other.example/24//64 -all
hosts.example A 192.0.2.1
hosts.example AAAA 2001:db8::1
hosts.example MX mx1.example
hosts.example MX mx2.example
mx1.example A 192.0.2.25
mx2.example A 192.0.2.26
other.example A 203.0.113.17
other.example MX mx3.example
mx3.example A 198.51.100.25
mx3.example AAAA 2001:db8:3::25
loop.example TXT v=spf1 ip4:192.0.2.1 include:loop2.example -all
loop2.example TXT v=spf1 include:loop.example ip4:192.0.2.2 redirect=loop.example
dead.example TXT v=spf1 ip4:192.0.2.0/24 include:broken.example ip4:198.51.100.0/24 -all
broken.example TXT broken
gone.example TXT v=spf1 ip4:192.0.2.0/24 include:nowhere.example -all
wide.example TXT v=spf1 ip4:0.0.0.0/0 ip4:10.0.0.0/11 ip4:12.0.0.0/12 ip6:::/0 ip6:2001::/19 ip6:2a00:1000::/20 -all
all.example TXT v=spf1 ip4:192.0.2.0/24 include:all2.example -all
all2.example TXT v=spf1 ip4:192.0.2.1 +all
late.example TXT v=spf1 ip4:192.0.2.0/24 -all ip4:198.51.100.0/24 redirect=big.example
not.example TXT v=spf1 -ip4:192.0.2.7 ?include:not2.example ip4:192.0.2.0/24 ip4:198.51.100.0/24 ip4:203.0.113.0/24 -all
not2.example TXT v=spf1 ip4:203.0.113.0/26 -all
two.example TXT v=spf1 ip4:192.0.2.0/24 -all
two.example TXT v=spf1 ip4:192.0.2.0/24 ~all
deaf.example TXT v=spf1 ip4:192.0.2.0/24 include:broken.example a:broken2.example include:n.example -all
broken2.example A broken
broken2.example AAAA broken
n.example TXT v=spf1 ip4:198.51.100.0/24 -all
macro.example TXT v=spf1 exists:%{i}.x.example include:%{d}.x.example ptr ip4:192.0.2.0/24 foo ip4:nonsense ip4:192.0.2.0/33 ip6:192.0.2.1 x=y -all
`
	for _, tt := range []struct {
		domain, nets string
		lookups      int
		failed, odd  string
	}{
		{"big.example", "192.0.2.0/24 198.51.100.0/23 203.0.113.7/32 2001:db8:a::/48", 5, "", ""},
		{"BIG.example.", "192.0.2.0/24 198.51.100.0/23 203.0.113.7/32 2001:db8:a::/48", 5, "", ""},
		{"hosts.example", "192.0.2.1/32 192.0.2.25/32 192.0.2.26/32 198.51.100.0/24 203.0.113.16/28 2001:db8::1/128 2001:db8:3::/64", 13, "", ""},
		{"loop.example", "192.0.2.1/32 192.0.2.2/32", 2, "", ""},
		{"dead.example", "192.0.2.0/24 198.51.100.0/24", 2, "broken.example", ""},
		{"gone.example", "192.0.2.0/24", 2, "", "nowhere.example has 0 SPF records"},
		{"wide.example", "12.0.0.0/12 2a00:1000::/20", 1, "", "too wide"},
		{"all.example", "", 2, "", "lets everybody send"},
		{"late.example", "192.0.2.0/24", 1, "", ""},
		{"not.example", "198.51.100.0/24", 2, "", ""},
		{"two.example", "", 1, "", "has 2 SPF records"},
		{"nowhere.example", "", 1, "", "has 0 SPF records"},
		{"broken.example", "", 1, "broken.example", ""},
		{"deaf.example", "192.0.2.0/24", 4, "broken.example broken2.example broken2.example", ""},
		{"macro.example", "192.0.2.0/24", 1, "", "depends on the message"},
	} {
		p, z := networksOf(t, text, tt.domain, 40)
		var nets []string
		for _, n := range p.Nets {
			nets = append(nets, n.String())
		}
		if got := strings.Join(nets, " "); got != tt.nets {
			t.Errorf("%s: %s, want %s", tt.domain, got, tt.nets)
		}
		if p.Lookups != tt.lookups || z.count() != tt.lookups {
			t.Errorf("%s: %d lookups, says %d, want %d: %v", tt.domain, z.count(), p.Lookups, tt.lookups, z.asked)
		}
		if strings.Join(p.Failed, " ") != tt.failed || !strings.Contains(strings.Join(p.Odd, "; "), tt.odd) || tt.odd == "" && p.Odd != nil {
			t.Errorf("%s: failed %q, odd %q", tt.domain, p.Failed, p.Odd)
		}
	}
	p, z := networksOf(t, sixty.String(), "sixty.example", 40)
	if len(p.Nets) != 39 || z.count() != 40 || !slices.Contains(p.Odd, "more than 40 lookups") || p.Failed != nil {
		t.Errorf("60 includes: %d networks, %d lookups, odd %q", len(p.Nets), z.count(), p.Odd)
	}
}

// Of whatever records there are, SPF passes for every address in the networks; and if
// no term before says otherwise, for no other.
func TestNetworksOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	inside, outside := 0, 0
	for round := range 300 {
		var text strings.Builder
		plain := round%2 == 0
		for d := range 6 {
			fmt.Fprintf(&text, "d%d.example TXT v=spf1", d)
			for range r.IntN(5) {
				term := fmt.Sprintf("ip4:198.51.%d.%d/%d", r.IntN(4), r.IntN(256), 22+r.IntN(11))
				if r.IntN(3) == 0 && d < 5 {
					term = fmt.Sprintf("include:d%d.example", d+1+r.IntN(5-d))
				}
				if !plain {
					term = []string{"", "", "+", "-", "?", "~"}[r.IntN(6)] + term
				}
				text.WriteString(" " + term)
			}
			if r.IntN(4) == 0 && d < 5 {
				fmt.Fprintf(&text, " redirect=d%d.example\n", d+1)
			} else {
				text.WriteString(" -all\n")
			}
		}
		p, z := networksOf(t, text.String(), "d0.example", 1000)
		c := New(Options{Resolver: z})
		for range 30 {
			addr := netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(5)), byte(r.IntN(256))})
			if len(p.Nets) > 0 && r.IntN(2) == 0 {
				b := p.Nets[r.IntN(len(p.Nets))].Addr().As4()
				b[3] += byte(r.IntN(3))
				addr = netip.AddrFrom4(b)
			}
			in := slices.ContainsFunc(p.Nets, func(n netip.Prefix) bool { return n.Contains(addr) })
			status := c.Check(t.Context(), Query{Addr: addr, Sender: "a@d0.example"}).Status
			switch {
			case status == PermError: // too many includes for one check
			case in && status != Pass:
				t.Fatalf("%s is in %v, but %s:\n%s", addr, p.Nets, status, &text)
			case plain && !in && status == Pass:
				t.Fatalf("%s is not in %v, but passes:\n%s", addr, p.Nets, &text)
			case in:
				inside++
			default:
				outside++
			}
		}
	}
	if inside < 500 || outside < 500 {
		t.Errorf("%d inside, %d outside", inside, outside)
	}
}
