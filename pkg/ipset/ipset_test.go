package ipset

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParsePrefix(t *testing.T) {
	for _, tt := range []struct{ in, want string }{ // no want: an error
		{"192.0.2.1", "192.0.2.1/32"},
		{"192.0.2.0/24", "192.0.2.0/24"},
		{"192.0.2.5/24", "192.0.2.0/24"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"::/0", "::/0"},
		{"2001:db8::1", "2001:db8::1/128"},
		{"2001:DB8:0::/32", "2001:db8::/32"},
		{"2001:db8::1/64", "2001:db8::/64"},
		{"fe80::1%em0", "fe80::1/128"},
		{"::ffff:192.0.2.1", "192.0.2.1/32"},
		{"::ffff:192.0.2.1/120", "192.0.2.0/24"},
		{"::ffff:0.0.0.0/96", "0.0.0.0/0"},
		{"192.0.2.1/0", ""},
		{"2001:db8::1/0", ""},
		{"::ffff:192.0.2.1/95", ""},
		{"::ffff:192.0.2.1/96", ""},
		{"192.0.2.1/33", ""},
		{"192.0.2.1/-1", ""},
		{"192.0.2.1/024", ""},
		{"192.0.2.1/255.255.255.0", ""},
		{"195.235.39", "195.235.39.0/24"},
		{"195.235", "195.235.0.0/16"},
		{"10/8", "10.0.0.0/8"},
		{"192.168/16", "192.168.0.0/16"},
		{"192.168.9/16", "192.168.0.0/16"},
		{"0/0", "0.0.0.0/0"},
		{"[2001:db8::1]", "2001:db8::1/128"},
		{"[2001:db8::]/64", "2001:db8::/64"},
		{"[192.0.2.1]", "192.0.2.1/32"},
		{"[::ffff:192.0.2.1]", "192.0.2.1/32"},
		{"[fe80::1%em0]", "fe80::1/128"},
		{"10", ""},
		{"1/0", ""},
		{"195.235.399", ""},
		{"195.235.", ""},
		{"195..39", ""},
		{".", ""},
		{"1.2.3.4.5", ""},
		{"[195.235.39]", ""},
		{"[2001:db8::1", ""},
		{"2001:db8::1]", ""},
		{"[2001:db8::/64]", ""},
		{"[2001:db8::1]:25", ""},
		{"[]", ""},
		{"[]/64", ""},
		{"fe80::1%em0/64", ""},
		{"192.0.2.0/", ""},
		{"192.0.2.0/+24", ""},
		{"192.0.2.0/24/24", ""},
		{"010.0.0.1", ""},
		{"192.0.2.1:25", ""},
		{"192.0.2.1 permit", ""},
		{"mx.example.org", ""},
		{"/24", ""},
		{"", ""},
	} {
		p, err := ParsePrefix(tt.in)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%q: got %v, want an error", tt.in, p)
			}
		} else if err != nil || p.String() != tt.want {
			t.Errorf("%q: got %v, %v, want %s", tt.in, p, err, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	s, errs := Parse(strings.NewReader("\ufeff192.0.2.1\r\n"+
		"# all\n"+
		"\n"+
		" \t 192.0.2.0/24 \t # the lab\r\n"+
		"192.0.2.5/33\n"+
		"mail\x00\xff.example.org\n"+
		"192.0.2.0/24 # again\n"+
		"198.51.100.1#no blank\n"+
		"198.51.100.2"+strings.Repeat(" ", 5000)+"x\n"+
		"198.51.100.3 # "+strings.Repeat("long ", 5000)+"\n"+
		"2001:db8::/32"), "/etc/mail/allow")
	want := []string{
		`/etc/mail/allow:5: "192.0.2.5/33" is not an address or network`,
		`/etc/mail/allow:6: "mail\x00\xff.example.org" is not plain text`,
		`/etc/mail/allow:9: "198.51.100.2" is longer than 4096 bytes`,
	}
	if fmt.Sprint(errs) != fmt.Sprint(want) {
		t.Errorf("errors\n%v\nwant\n%v", errs, want)
	}
	if s.Len() != 5 {
		t.Errorf("%d entries", s.Len())
	}
	for addr, want := range map[string]string{
		"192.0.2.1":        "/etc/mail/allow:1 192.0.2.1/32",
		"192.0.2.2":        "/etc/mail/allow:4 192.0.2.0/24", // the first of two equal lines
		"::ffff:192.0.2.2": "/etc/mail/allow:4 192.0.2.0/24",
		"198.51.100.1":     "/etc/mail/allow:8 198.51.100.1/32",
		"198.51.100.3":     "/etc/mail/allow:10 198.51.100.3/32",
		"2001:db8::1%em0":  "/etc/mail/allow:11 2001:db8::/32",
		"198.51.100.2":     "",
		"2001:db9::":       "",
	} {
		m, ok := s.Lookup(netip.MustParseAddr(addr))
		if got := m.String() + " " + m.Prefix.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%s: got %s, %v, want %q", addr, got, ok, want)
		}
	}
}

func TestParseTrouble(t *testing.T) {
	bad := errors.New("input/output error")
	s, errs := Parse(io.MultiReader(strings.NewReader("192.0.2.1\n192.0.2.2"), iotest.ErrReader(bad)), "f")
	if s.Len() != 1 || len(errs) != 1 || !errors.Is(errs[0], bad) || !strings.HasPrefix(errs[0].Error(), "f:2: ") {
		t.Errorf("%d entries, errors %v", s.Len(), errs)
	}
}

func TestMergeAndNil(t *testing.T) {
	a, _ := Parse(strings.NewReader("192.0.2.1\n"), "a")
	b, _ := Parse(strings.NewReader("192.0.2.1\n192.0.2.0/24\n"), "b")
	m := Merge(a, nil, b)
	for addr, want := range map[string]string{"192.0.2.1": "a:1", "192.0.2.2": "b:2"} {
		if got, ok := m.Lookup(netip.MustParseAddr(addr)); !ok || got.String() != want {
			t.Errorf("%s: got %v, %v", addr, got, ok)
		}
	}
	if m.Len() != 2 || a.Len() != 1 || b.Len() != 2 {
		t.Errorf("sizes %d %d %d", m.Len(), a.Len(), b.Len())
	}
	var s *Set
	if _, ok := s.Lookup(netip.MustParseAddr("192.0.2.1")); ok || s.Len() != 0 || Merge().Len() != 0 {
		t.Error("nothing matches")
	}
	if _, ok := m.Lookup(netip.Addr{}); ok {
		t.Error("no address matches")
	}
}

func TestPrivate(t *testing.T) {
	for addr, want := range map[string]bool{
		"0.0.0.0": true, "0.255.255.255": true, "1.0.0.0": false,
		"9.255.255.255": false, "10.0.0.0": true, "10.255.255.255": true, "11.0.0.0": false,
		"100.63.255.255": false, "100.64.0.0": true, "100.127.255.255": true, "100.128.0.0": false,
		"126.255.255.255": false, "127.0.0.1": true, "127.255.255.255": true, "128.0.0.0": false,
		"169.253.255.255": false, "169.254.0.0": true, "169.254.255.255": true, "169.255.0.0": false,
		"172.15.255.255": false, "172.16.0.0": true, "172.31.255.255": true, "172.32.0.0": false,
		"192.167.255.255": false, "192.168.0.0": true, "192.168.255.255": true, "192.169.0.0": false,
		"223.255.255.255": false, "224.0.0.0": true, "239.255.255.255": true,
		"192.0.2.1": false, "198.51.100.1": false, "203.0.113.1": false, // documentation
		"::": true, "::1": true, "::2": false, "::ffff:10.0.0.1": true, "::ffff:100.64.0.1": true, "::ffff:192.0.2.1": false,
		"fbff::1": false, "fc00::": true, "fdff::1": true, "fe00::": false,
		"fe7f::": false, "fe80::1%em0": true, "febf::1": true, "fec0::": false, "ff02::1": true, "ff00::": true,
		"2001:db8::1": false, "2606:4700::1": false,
	} {
		if got := Private(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if !Private(netip.Addr{}) {
		t.Error("a local socket is public")
	}
}

func TestReverseName(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.99":       "99.2.0.192.bl.example",
		"2001:db8::1":      "1" + strings.Repeat(".0", 23) + ".8.b.d.0.1.0.0.2.bl.example",
		"::ffff:127.0.0.2": "2.0.0.0.0.0.f.7.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example",
	} {
		if got := ReverseName(netip.MustParseAddr(addr), "bl.example"); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
	if got := ReverseName(netip.Addr{}, "bl.example"); got != "" {
		t.Errorf("no address has the name %s", got)
	}
}

// Every line is an entry, a comment or an error, and an entry is found again.
func FuzzParse(f *testing.F) {
	f.Add("192.0.2.1\r\n192.0.2.5/24 # x\n::ffff:10.0.0.1/104\n\n2001:db8::/32")
	f.Add("\ufeff#\nx\nfe80::1%em0\n0.0.0.0/0")
	f.Fuzz(func(t *testing.T, text string) {
		s, errs := Parse(strings.NewReader(text), "f")
		lines := strings.Count(text, "\n") + 1
		if s.Len()+len(errs) > lines {
			t.Errorf("%d entries and %d errors of %d lines", s.Len(), len(errs), lines)
		}
		for _, err := range errs {
			if !strings.HasPrefix(err.Error(), "f:") || strings.ContainsAny(err.Error(), "\r\n\x00") {
				t.Errorf("error %q", err)
			}
		}
		for p := range s.table.All() {
			m, ok := s.Lookup(p.Addr())
			if !ok || !m.Prefix.Contains(p.Addr()) || m.Prefix.Bits() < p.Bits() || m.Line < 1 || m.Line > lines {
				t.Errorf("%v: found %+v, %v", p, m, ok)
			}
			if q, err := ParsePrefix(p.String()); err != nil || q != p {
				t.Errorf("%v is read as %v, %v", p, q, err)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "%d.%d.%d.0/24\n", 11+i%80, i%251, i/400)
	}
	s, errs := Parse(strings.NewReader(text.String()), "f")
	if errs != nil {
		b.Fatal(errs[0])
	}
	a := netip.MustParseAddr("11.0.0.7")
	for b.Loop() {
		s.Lookup(a)
	}
}
