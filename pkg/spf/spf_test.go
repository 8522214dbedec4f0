package spf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"weak"
)

// zone answers from lines "NAME TYPE DATA", and counts. A line with the data
// "silent" is never answered, "broken" is a temporary error. The name *.x
// stands for what is below x and has no line of its own.
type zone struct {
	lines map[string][]string // by "TYPE NAME"

	mu    sync.Mutex
	asked []string
}

func newZone(text string) *zone {
	z := &zone{lines: map[string][]string{}}
	for line := range strings.Lines(text) {
		if f := strings.SplitN(strings.TrimSpace(line), " ", 3); len(f) == 3 {
			z.lines[f[1]+" "+f[0]] = append(z.lines[f[1]+" "+f[0]], f[2])
		}
	}
	return z
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return len(z.asked)
}

func (z *zone) ask(ctx context.Context, typ, name string) ([]string, error) {
	z.mu.Lock()
	z.asked = append(z.asked, typ+" "+name)
	z.mu.Unlock()
	list := z.lines[typ+" "+name]
	for rest, ok := name, true; list == nil && ok; {
		_, rest, ok = strings.Cut(rest, ".")
		list = z.lines[typ+" *."+rest]
	}
	switch {
	case list == nil:
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	case list[0] == "silent":
		<-ctx.Done()
		return nil, &net.DNSError{Err: "timeout", Name: name, IsTimeout: true, IsTemporary: true}
	case list[0] == "broken":
		return nil, &net.DNSError{Err: "server failure", Name: name, IsTemporary: true}
	case list[0] == "panic":
		panic("broken")
	}
	return list, nil
}

func (z *zone) addrs(ctx context.Context, typ, name string) (addrs []netip.Addr, err error) {
	list, err := z.ask(ctx, typ, name)
	for _, s := range list {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, err
}

func (z *zone) TXT(ctx context.Context, name string) ([]string, error) {
	return z.ask(ctx, "TXT", name)
}
func (z *zone) A(ctx context.Context, name string) ([]netip.Addr, error) {
	return z.addrs(ctx, "A", name)
}
func (z *zone) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	return z.addrs(ctx, "AAAA", name)
}
func (z *zone) PTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	return z.ask(ctx, "PTR", addr.String())
}
func (z *zone) LookupMX(ctx context.Context, name string) (mx []*net.MX, err error) {
	list, err := z.ask(ctx, "MX", name)
	for i, host := range list {
		mx = append(mx, &net.MX{Host: host + ".", Pref: uint16(i)})
	}
	return mx, err
}

func (r Result) String() string {
	s := fmt.Sprint(r.Status, ":", r.Domain)
	if r.Everybody {
		s += " everybody"
	}
	if r.PerAddress {
		s += " per address"
	}
	return s
}

func TestCheck(t *testing.T) {
	const text = `
s.example TXT v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:5::/48 -all
s.example TXT other
soft.example TXT v=spf1 ~all
silent.example TXT silent
broken.example TXT broken
panic.example TXT panic
include.example TXT v=spf1 include:broken.example ip4:198.51.100.0/24 -all
mx.s.example TXT v=spf1 ip4:198.51.100.7 -all
two.example TXT v=spf1 -all
two.example TXT v=spf1 +all
wrong.example TXT v=spf1 ip4:198.51.100.7.8 -all
neutral.example TXT v=spf1 ?ip4:198.51.100.7 -all
xn--bcher-kva.example TXT v=spf1 ip4:198.51.100.7 -all
_u.example TXT v=spf1 a mx -all
_u.example MX m.u.example
m.u.example A 198.51.100.7
m.u.example AAAA 2001:db8::7
ptr.example TXT v=spf1 ptr -all
198.51.100.7 PTR host.ptr.example
host.ptr.example A 198.51.100.7
`
	for _, tt := range []struct{ addr, sender, helo, want string }{
		{"198.51.100.7", "a@S.example", "", "pass:s.example"},
		{"::ffff:198.51.100.7", "a@s.example.", "", "pass:s.example"},
		{"2001:db8:5::1%eth0", "a@s.example", "", "pass:s.example"},
		{"203.0.113.1", "a@s.example", "", "fail:s.example"},
		{"198.51.100.7", "a@soft.example", "", "softfail:soft.example"},
		{"198.51.100.7", "a@neutral.example", "", "neutral:neutral.example"},
		{"198.51.100.7", "a@none.example", "", "none:none.example"},
		{"198.51.100.7", "a@two.example", "", "permerror:two.example"},
		{"198.51.100.7", "a@wrong.example", "", "permerror:wrong.example"},
		{"198.51.100.7", "a@broken.example", "", "temperror:broken.example"},
		{"198.51.100.7", "a@include.example", "", "temperror:include.example"},
		{"198.51.100.7", "a@panic.example", "", "permerror:panic.example"},
		{"198.51.100.7", "", "MX.s.example.", "pass:mx.s.example"},
		{"198.51.100.7", "<>", "mx.s.example", "pass:mx.s.example"},
		{"198.51.100.7", "a@bücher.example", "", "pass:xn--bcher-kva.example"},
		{"198.51.100.7", "a@BÜCHER.example", "", "pass:xn--bcher-kva.example"},
		{"198.51.100.7", "a@XN--bcher-kva.example", "", "pass:xn--bcher-kva.example"},
		{"198.51.100.7", "", "bücher.example", "pass:xn--bcher-kva.example"},
		{"198.51.100.7", "@a.example,@b.example:a@s.example", "", "pass:s.example"},
		{"198.51.100.7", `"a@soft.example"@s.example`, "", "pass:s.example"},
		{"198.51.100.7", "a@_u.example", "", "pass:_u.example"},
		{"2001:db8::7", "a@_u.example", "", "pass:_u.example"},
		{"198.51.100.7", "a@ptr.example", "", "pass:ptr.example per address"},
		{"198.51.100.7", "", "[198.51.100.7]", "none:"},
		{"198.51.100.7", "", "localhost", "none:"},
		{"198.51.100.7", "a", "mx.s.example", "none:"},
		{"198.51.100.7", "a@x\x00y.example", "mx.s.example", "none:"},
		{"198.51.100.7", "a@\xff.example", "mx.s.example", "none:"},
		{"", "a@s.example", "", "none:"},
	} {
		addr, _ := netip.ParseAddr(tt.addr)
		r := New(Options{Resolver: newZone(text)}).Check(t.Context(), Query{addr, tt.helo, tt.sender})
		if r.String() != tt.want {
			t.Errorf("%+v: got %v", tt, r)
		}
	}
}

// A result is kept for long, and the session it was made for is not.
func TestKeptHoldsNobody(t *testing.T) {
	c := New(Options{Resolver: newZone("a.example TXT v=spf1 -all\n")})
	ask := func() weak.Pointer[[64]byte] {
		session := new([64]byte)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), session, session))
		defer cancel()
		if r := c.Check(ctx, Query{Addr: netip.MustParseAddr("192.0.2.1"), Sender: "x@a.example"}); r.Status != Fail {
			t.Fatal(r)
		}
		return weak.Make(session)
	}
	p := ask()
	for i := 0; p.Value() != nil; i++ {
		if i == 100 {
			t.Fatal("the session is held")
		}
		runtime.GC()
		runtime.Gosched()
	}
	if c.cache.Len() != 1 {
		t.Errorf("%d results are kept, want 1", c.cache.Len())
	}
}
