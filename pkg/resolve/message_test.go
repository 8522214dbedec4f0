package resolve

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// packed returns a reply to q in wire form.
func packed(t testing.TB, q *query, id uint16, rrs ...string) []byte {
	t.Helper()
	m := replyTo(t, q, id, rrs...)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replyTo(t testing.TB, q *query, id uint16, rrs ...string) *dns.Msg {
	t.Helper()
	req := new(dns.Msg)
	if err := req.Unpack(q.packet(id, true)); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	m.SetReply(req)
	m.RecursionAvailable = true
	for _, s := range rrs {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(s, err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

func mustQuery(t testing.TB, name string, typ uint16) *query {
	t.Helper()
	q, err := newQuery(key{canonical(name), typ})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestDecode(t *testing.T) {
	const soa = "example.org. 600 IN SOA ns. root. 1 3600 600 86400 60"
	tests := []struct {
		name string
		typ  uint16
		rrs  []string
		want string
		ttl  int // seconds
	}{
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 A 192.0.2.1", "a.example.org. 200 A 192.0.2.2"}, "[192.0.2.1 192.0.2.2]", 200},
		{"a.example.org", dns.TypeA, []string{"A.EXAMPLE.org. 300 A 192.0.2.1"}, "[192.0.2.1]", 300},
		{"a.example.org", dns.TypeA, []string{"b.example.org. 300 A 192.0.2.1"}, "unclear", 0},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 CH A 192.0.2.1"}, "unclear", 0},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 TXT hello"}, "unclear", 0},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 4294967295 A 192.0.2.1"}, "[192.0.2.1]", 0}, // RFC 2181 section 8
		{"a.example.org", dns.TypeAAAA, []string{"a.example.org. 300 AAAA 2001:db8::1"}, "[2001:db8::1]", 300},
		{"a.example.org", dns.TypeA, nil, "not found", 0},
		{"a.example.org", dns.TypeA, []string{soa}, "not found", 60}, // RFC 2308 section 5
		{"a.example.org", dns.TypeA, []string{"example.org. 30 SOA ns. root. 1 3600 600 86400 60"}, "not found", 30},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 10 CNAME b.example.org.", soa}, "not found", 10},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 10 CNAME b.example.org."}, "unclear", 0},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 CNAME b.example.org.", "b.example.org. 20 CNAME c.example.org.", "c.example.org. 300 A 192.0.2.1"}, "[192.0.2.1]", 20},
		{"a.example.org", dns.TypeA, []string{"c.example.org. 300 A 192.0.2.1", "b.example.org. 20 CNAME c.example.org.", "a.example.org. 300 CNAME b.example.org."}, "[192.0.2.1]", 20},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 CNAME b.example.org.", "b.example.org. 300 CNAME a.example.org."}, "unclear", 0},
		{"a.example.org", dns.TypeA, []string{"a.example.org. 300 CNAME a.example.org."}, "unclear", 0},
		{"a.example.org", dns.TypeTXT, []string{`a.example.org. 300 TXT "v=spf1 ip4:192.0.2.1" " -all"`, `a.example.org. 300 TXT ""`}, `["v=spf1 ip4:192.0.2.1 -all" ""]`, 300},
		{"a.example.org", dns.TypeTXT, []string{`a.example.org. 300 TXT "q\" b\\ \013\010\000\255|x"`}, "[" + fmt.Sprintf("%q", "q\" b\\ \r\n\x00\xff|x") + "]", 300},
		{"1.2.0.192.in-addr.arpa", dns.TypePTR, []string{"1.2.0.192.in-addr.arpa. 300 PTR Mail.example.org."}, `["Mail.example.org."]`, 300},
		{"1.2.0.192.in-addr.arpa", dns.TypePTR, []string{"1.2.0.192.in-addr.arpa. 300 CNAME 1.0-15.2.0.192.in-addr.arpa.", "1.0-15.2.0.192.in-addr.arpa. 300 PTR mail.example.org."}, `["mail.example.org."]`, 300},
		{"a.example.org", dns.TypeMX, []string{"a.example.org. 300 MX 20 b.example.org.", "a.example.org. 300 MX 10 c.example.org."}, "[{c.example.org. 10} {b.example.org. 20}]", 300},
		{"a\\.b \\001.example.org", dns.TypeA, []string{`a\.b\032\001.example.org. 300 A 192.0.2.1`}, "[192.0.2.1]", 300},
	}
	for _, tt := range tests {
		q := mustQuery(t, tt.name, tt.typ)
		ans, err := decode(packed(t, q, 7, tt.rrs...), q, 7)
		if err != nil {
			t.Errorf("%s %q: %v", tt.name, tt.rrs, err)
			continue
		}
		var got string
		switch {
		case ans.err != nil && ans.err.IsNotFound:
			got = "not found"
		case ans.err != nil && ans.err.IsTemporary:
			got = "unclear"
		case ans.addrs != nil:
			got = fmt.Sprint(ans.addrs)
		case ans.strs != nil:
			got = fmt.Sprintf("%q", ans.strs)
		case ans.mx != nil:
			got = fmt.Sprint(ans.mx)
		}
		if got != tt.want || ans.ttl != time.Duration(tt.ttl)*time.Second {
			t.Errorf("%s %q: %s, %v, want %s, %ds", tt.name, tt.rrs, got, ans.ttl, tt.want, tt.ttl)
		}
	}
}

func TestDecodeLongChain(t *testing.T) {
	q := mustQuery(t, "n0.example.org", dns.TypeA)
	for _, n := range []int{maxChain - 1, maxChain} {
		var rrs []string
		for i := range n {
			rrs = append(rrs, fmt.Sprintf("n%d.example.org. CNAME n%d.example.org.", i, i+1))
		}
		rrs = append(rrs, fmt.Sprintf("n%d.example.org. A 192.0.2.1", n))
		ans, err := decode(packed(t, q, 7, rrs...), q, 7)
		if err != nil {
			t.Fatal(err)
		}
		if found := ans.err == nil; found != (n < maxChain) {
			t.Errorf("chain of %d: found is %v", n, found)
		}
	}
}

func TestDecodeRejects(t *testing.T) {
	q := mustQuery(t, "a.example.org", dns.TypeA)
	const a = "a.example.org. 300 A 192.0.2.1"
	tests := []struct {
		name  string
		spoil func(m *dns.Msg)
		want  error
	}{
		{"good", func(m *dns.Msg) {}, nil},
		{"case", func(m *dns.Msg) { m.Question[0].Name = "A.example.ORG." }, nil},
		{"id", func(m *dns.Msg) { m.Id++ }, errForeign},
		{"query", func(m *dns.Msg) { m.Response = false }, errForeign},
		{"opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, errForeign},
		{"name", func(m *dns.Msg) { m.Question[0].Name = "b.example.org." }, errForeign},
		{"longer name", func(m *dns.Msg) { m.Question[0].Name = "a.example.org.x." }, errForeign},
		{"type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, errForeign},
		{"class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, errForeign},
		{"no question", func(m *dns.Msg) { m.Question = nil }, errForeign},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, errForeign},
		{"truncated", func(m *dns.Msg) { m.Truncated = true }, errTruncated},
		{"formerr", func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError }, errFormat},
		{"notimp", func(m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented }, errFormat},
		{"badvers", func(m *dns.Msg) { m.SetEdns0(1232, false); m.Rcode = dns.RcodeBadVers }, errFormat},
		{"servfail", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, rcodeError("server answers SERVFAIL")},
		{"refused", func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, rcodeError("server answers REFUSED")},
		{"header only", func(m *dns.Msg) { m.Rcode = dns.RcodeRefused; m.Question, m.Answer = nil, nil }, rcodeError("server answers REFUSED")},
		{"unknown", func(m *dns.Msg) { m.Rcode = 13 }, rcodeError("server answers with an error")},
		{"badmode", func(m *dns.Msg) { m.SetEdns0(1232, false); m.Rcode = dns.RcodeBadMode }, rcodeError("server answers BADMODE")},
		{"referral", func(m *dns.Msg) { m.Answer = nil; m.RecursionAvailable = false }, rcodeError("server does not recurse")},
		{"authoritative", func(m *dns.Msg) { m.Answer = nil; m.RecursionAvailable = false; m.Authoritative = true }, nil},
	}
	for _, tt := range tests {
		m := replyTo(t, q, 7, a)
		tt.spoil(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(tt.name, err)
		}
		if _, err := decode(b, q, 7); err != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	b := packed(t, q, 7, a, a, "example.org. SOA ns. root. 1 1 1 1 1")
	for n := range b {
		if _, err := decode(b[:n], q, 7); err != errForeign {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestDecodeNameErrorWins(t *testing.T) {
	q := mustQuery(t, "a.example.org", dns.TypeA)
	m := replyTo(t, q, 7, "a.example.org. 300 A 192.0.2.1")
	m.Rcode = dns.RcodeNameError
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if ans, err := decode(b, q, 7); err != nil || ans.err == nil || !ans.err.IsNotFound {
		t.Errorf("%v, %v", ans, err)
	}
}

func TestPacket(t *testing.T) {
	q := mustQuery(t, "A.Example.org.", dns.TypeMX)
	for _, edns := range []bool{true, false} {
		var m dns.Msg
		if err := m.Unpack(q.packet(0x1234, edns)); err != nil {
			t.Fatal(err)
		}
		want := dns.Question{Name: "a.example.org.", Qtype: dns.TypeMX, Qclass: dns.ClassINET}
		if m.Id != 0x1234 || !m.RecursionDesired || m.Response || len(m.Question) != 1 || m.Question[0] != want {
			t.Errorf("edns %v: %v", edns, &m)
		}
		opt := m.IsEdns0()
		if (opt != nil) != edns || edns && (opt.UDPSize() != 1232 || opt.Do()) {
			t.Errorf("edns %v: %v", edns, opt)
		}
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "a..b", ".a", strings.Repeat("a", 64) + ".org", strings.Repeat("a.", 127) + "a", `a\`, `\`,
	} {
		if q, err := newQuery(key{canonical(name), dns.TypeA}); err == nil {
			t.Errorf("%q: %q", name, q.wire)
		}
	}
	for _, name := range []string{"a", "a.", "_dmarc.example.org", "a b.example", "\xff\x00.example", strings.Repeat("a", 63) + ".org", strings.Repeat("a.", 126) + "a"} {
		if _, err := newQuery(key{canonical(name), dns.TypeA}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseServers(t *testing.T) {
	good := map[string]string{
		"192.0.2.1":                       "[192.0.2.1:53]",
		"192.0.2.1:5353":                  "[192.0.2.1:5353]",
		"::1":                             "[[::1]:53]",
		"2001:db8::53":                    "[[2001:db8::53]:53]",
		"[2001:db8::53]":                  "[[2001:db8::53]:53]",
		"[2001:db8::53]:5353":             "[[2001:db8::53]:5353]",
		"fe80::1%em0":                     "[[fe80::1%em0]:53]",
		"[fe80::1%em0]:54":                "[[fe80::1%em0]:54]",
		"::ffff:192.0.2.1":                "[192.0.2.1:53]",
		"[192.0.2.1]:5353":                "[192.0.2.1:5353]",
		"192.0.2.1, ::1,192.0.2.1":        "[192.0.2.1:53 [::1]:53]",
		"1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4": "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53 1.1.1.4:53]",
	}
	for in, want := range good {
		got, err := ParseServers(in)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", ",", "192.0.2.1,", "192.0.2", "ns.example.org", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x",
		"[192.0.2.1]x", "[192.0.2.1]:", "[2001:db8::53", "2001:db8::53]", "[]", "[]:53", "1.0.0.1,1.0.0.2,1.0.0.3,1.0.0.4,1.0.0.5,1.0.0.6,1.0.0.7,1.0.0.8,1.0.0.9",
	} {
		if got, err := ParseServers(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestParseConf(t *testing.T) {
	tests := []struct {
		text     string
		servers  string
		attempts int
		interval time.Duration
	}{
		{"", "[127.0.0.1:53]", 2, 5 * time.Second},
		{"# nameserver 192.0.2.1\n; nameserver 192.0.2.1\nsearch example.org\n", "[127.0.0.1:53]", 2, 5 * time.Second},
		{"nameserver 192.0.2.1 # resolvd: em0\nnameserver ns.example.org\nnameserver\nnameserver fe80::1%em0\n", "[192.0.2.1:53 [fe80::1%em0]:53]", 2, 5 * time.Second},
		{"nameserver [192.0.2.1]:5353\n", "[192.0.2.1:5353]", 2, 5 * time.Second},
		{"nameserver [2001:db8::1]:5353\n", "[[2001:db8::1]:5353]", 2, 5 * time.Second},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53]", 2, 5 * time.Second},
		{"options timeout:1 attempts:3 rotate edns0\nnameserver 192.0.2.1", "[192.0.2.1:53]", 3, time.Second},
		{"options timeout:99999999999999999999 attempts:100000", "[127.0.0.1:53]", 5, 30 * time.Second},
		{"options timeout:-1 attempts:-1", "[127.0.0.1:53]", 1, time.Second},
	}
	for _, tt := range tests {
		c := parseConf([]byte(tt.text))
		if got := fmt.Sprint(c.servers); got != tt.servers || c.attempts != tt.attempts || c.interval != tt.interval {
			t.Errorf("%q: %+v", tt.text, c)
		}
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"example.org": "example.org", "Example.ORG.": "example.org", ".": "", "": "",
		`a\.`: `a\.`, `a\\.`: `a\\`, "\xffÄA.": "\xffÄa",
	} {
		if got := canonical(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeTXT, dns.TypeMX}
	rrs := []string{
		"a.example.org. A 192.0.2.1", "a.example.org. AAAA 2001:db8::1", "a.example.org. PTR b.example.org.",
		`a.example.org. TXT "v=spf1" "\000\255\""`, "a.example.org. MX 10 b.example.org.",
	}
	for i, rr := range rrs {
		q := mustQuery(f, "a.example.org", types[i])
		f.Add(packed(f, q, 7, rr), byte(i))
		f.Add(packed(f, q, 7, "example.org. SOA ns. root. 1 1 1 1 1"), byte(i))
		m := replyTo(f, q, 7, "a.example.org. CNAME b.example.org.", "b"+rr[1:])
		m.Compress = true
		m.SetEdns0(1232, false)
		b, _ := m.Pack()
		f.Add(b, byte(i))
		f.Add(packed(f, q, 7, "a.example.org. CNAME a.example.org."), byte(i))
		f.Add(q.packet(7, true), byte(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, typ byte) {
		q := mustQuery(t, "a.example.org", types[int(typ)%len(types)])
		ans, err := decode(b, q, 7)
		if (ans == nil) == (err == nil) {
			t.Fatalf("%v, %v", ans, err)
		}
		if err != nil {
			return
		}
		if ans.ttl < 0 || ans.ttl > maxRecordTTL {
			t.Errorf("ttl %v", ans.ttl)
		}
		if ans.err != nil {
			if ans.err.IsNotFound == ans.err.IsTemporary || ans.addrs != nil || ans.strs != nil || ans.mx != nil {
				t.Errorf("%+v", ans)
			}
			return
		}
		if len(ans.addrs)+len(ans.strs)+len(ans.mx) == 0 {
			t.Error("an answer of nothing")
		}
		for _, a := range ans.addrs {
			if a.Is4() != (q.typ == dns.TypeA) || a.Zone() != "" {
				t.Errorf("address %v of type %d", a, q.typ)
			}
		}
		if q.typ == dns.TypePTR {
			for _, s := range ans.strs {
				if strings.ContainsFunc(s, func(r rune) bool { return r < '!' && r != ' ' || r > '~' }) {
					t.Errorf("name %q", s)
				}
			}
		}
	})
}

// Every TXT record comes back as the bytes it has on the wire.
func FuzzText(f *testing.F) {
	f.Add([]byte("v=spf1 -all"))
	f.Add([]byte("\"\\\\065\r\n\x00\xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 60000 {
			return
		}
		q := mustQuery(t, "a.example.org", dns.TypeTXT)
		b := packed(t, q, 7)
		b = b[:headerSize+len(q.question())]
		b[7], b[11] = 1, 0 // one answer, no OPT record
		var data []byte
		for c := range slices.Chunk(text, 255) {
			data = append(append(data, byte(len(c))), c...)
		}
		if len(text) == 0 {
			data = []byte{0}
		}
		b = append(b, 0xc0, headerSize, 0, byte(dns.TypeTXT), 0, 1, 0, 0, 0, 60, byte(len(data)>>8), byte(len(data)))
		ans, err := decode(append(b, data...), q, 7)
		if err != nil || ans.err != nil {
			t.Fatal(err, ans.err)
		}
		if len(ans.strs) != 1 || ans.strs[0] != string(text) {
			t.Errorf("%q became %q", text, ans.strs)
		}
	})
}

// Any string is a name that can be asked, or none; never a panic, and the
// question is one that a reply can be recognised by.
func FuzzName(f *testing.F) {
	for _, s := range []string{"example.org", "", ".", `a\`, `a\.b`, `\255\.`, "a..b", strings.Repeat("a.", 127), strings.Repeat(`\000`, 63)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		c := canonical(name)
		q, err := newQuery(key{c, dns.TypeA})
		if err != nil {
			return
		}
		if len(q.wire) > headerSize+255+4+optSize {
			t.Errorf("%q: %d bytes", name, len(q.wire))
		}
		var m dns.Msg
		if err := m.Unpack(q.packet(7, true)); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		m.SetReply(m.Copy())
		m.RecursionAvailable = true
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 1}}}
		b, err := m.Pack()
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		ans, err := decode(b, q, 7)
		if err != nil || ans.err != nil || ans.addrs[0] != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("%q: %v, %v", name, ans, err)
		}
	})
}

func FuzzParseServers(f *testing.F) {
	f.Add("192.0.2.1,[::1]:53,fe80::1%em0")
	f.Fuzz(func(t *testing.T, s string) {
		servers, err := ParseServers(s)
		if err != nil {
			return
		}
		var list []string
		for _, a := range servers {
			list = append(list, a.String())
		}
		again, err := ParseServers(strings.Join(list, ","))
		if err != nil && !strings.Contains(s, "%") || err == nil && !slices.Equal(servers, again) {
			t.Errorf("%q: %v, %v, %v", s, servers, again, err)
		}
	})
}

func FuzzParseConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\noptions timeout:1 attempts:2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseConf(b)
		if len(c.servers) < 1 || len(c.servers) > 3 || c.attempts < 1 || c.attempts > 5 || c.interval < time.Second || c.interval > 30*time.Second {
			t.Errorf("%+v", c)
		}
	})
}
