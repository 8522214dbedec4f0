package filtertest

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const dnsTestScript = `
# records
example.org         SOA   ns.example.org. root.example.org. 1 3600 600 86400 60
example.org         A     192.0.2.1
example.org    60   TXT   "v=spf1 -all" "b\013"
www.Example.org.    CNAME web.example.org
web.example.org     CNAME example.org
deep.down.example   A     192.0.2.7
*.list.example      A     127.0.0.2
own.list.example    A     127.0.0.3
*.list.example      delay 1ms
many.example        records 40
big.example         text  3000
odd.example         A     192.0.2.8
`

// ask sends one query and returns what comes first.
func ask(t *testing.T, d *DNS, network, name string, qtype uint16, edns bool) (*dns.Msg, error) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	if edns {
		m.SetEdns0(1232, false)
	}
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	re, _, err := c.Exchange(m, d.Addr.String())
	return re, err
}

func answers(m *dns.Msg) string {
	var s []string
	for _, rr := range m.Answer {
		s = append(s, strings.Join(strings.Fields(rr.String()), " "))
	}
	text := dns.RcodeToString[m.Rcode] + " " + strings.Join(s, ", ")
	if m.Truncated {
		text += "TC"
	}
	if len(m.Ns) > 0 {
		text += dns.TypeToString[m.Ns[0].Header().Rrtype]
	}
	return text
}

func TestDNSRecords(t *testing.T) {
	d := NewDNS(t, dnsTestScript)
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"example.org", dns.TypeA, "NOERROR example.org. 3600 IN A 192.0.2.1"},
		{"EXAMPLE.org", dns.TypeA, "NOERROR EXAMPLE.org. 3600 IN A 192.0.2.1"},
		{"example.org", dns.TypeTXT, `NOERROR example.org. 60 IN TXT "v=spf1 -all" "b\013"`},
		{"example.org", dns.TypeMX, "NOERROR SOA"},
		{"no.example.org", dns.TypeA, "NXDOMAIN SOA"},
		{"no.example", dns.TypeA, "NXDOMAIN "},
		{"down.example", dns.TypeA, "NOERROR "}, // an empty non-terminal
		{"www.example.org", dns.TypeA, "NOERROR www.example.org. 3600 IN CNAME web.example.org., web.example.org. 3600 IN CNAME example.org., example.org. 3600 IN A 192.0.2.1"},
		{"www.example.org", dns.TypeCNAME, "NOERROR www.example.org. 3600 IN CNAME web.example.org."},
		{"2.0.0.127.list.example", dns.TypeA, "NOERROR 2.0.0.127.list.example. 3600 IN A 127.0.0.2"},
		{"own.list.example", dns.TypeA, "NOERROR own.list.example. 3600 IN A 127.0.0.3"},
		{"list.example", dns.TypeA, "NOERROR "},
	}
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			m, err := ask(t, d, network, tt.name, tt.qtype, true)
			if err != nil {
				t.Error(tt.name, err)
			} else if got := answers(m); got != tt.want {
				t.Errorf("%s %s: %s, want %s", network, tt.name, got, tt.want)
			}
		}
	}
	m, err := ask(t, d, "udp", "many.example", dns.TypeA, true)
	if err != nil || len(m.Answer) != 40 || m.Answer[39].(*dns.A).A.String() != "127.0.0.41" {
		t.Error(m, err)
	}
	if n := d.Count("Example.org.", "A"); n != 4 {
		t.Errorf("%d queries", n)
	}
	qs := d.Queries()
	if len(qs) != d.Total() || len(qs) != 2*len(tests)+1 {
		t.Errorf("%d queries in the log, %d counted", len(qs), d.Total())
	}
	if q := qs[1]; q.Name != "example.org" || q.Type != "A" || q.Net != "tcp" || !q.EDNS || !q.Client.IsValid() || time.Since(q.Time) > time.Hour {
		t.Errorf("%+v", q)
	}
	d.Reset()
	if d.Total() != 0 || len(d.Queries()) != 0 {
		t.Error("not reset")
	}
}

// A reply that does not fit is truncated, as by any server.
func TestDNSSizes(t *testing.T) {
	d := NewDNS(t, dnsTestScript)
	for _, tt := range []struct {
		network, name string
		edns          bool
		n             int
	}{
		{"udp", "many.example", false, 0}, {"udp", "many.example", true, 40}, {"tcp", "many.example", false, 40},
		{"udp", "big.example", true, 0}, {"tcp", "big.example", true, 1},
	} {
		m, err := ask(t, d, tt.network, tt.name, map[bool]uint16{true: dns.TypeA, false: dns.TypeTXT}[tt.name[0] == 'm'], tt.edns)
		if err != nil || len(m.Answer) != tt.n || m.Truncated != (tt.n == 0) {
			t.Errorf("%+v: %v, %v", tt, m, err)
		}
	}
}

func TestDNSBehaviours(t *testing.T) {
	tests := []struct {
		verb string
		want []string // of the first queries over UDP
	}{
		{"servfail", []string{"SERVFAIL "}},
		{"refused", []string{"REFUSED "}},
		{"formerr", []string{"FORMERR "}},
		{"notimp", []string{"NOTIMP "}},
		{"nxdomain", []string{"NXDOMAIN "}},
		{"nodata", []string{"NOERROR "}},
		{"lame", []string{"NOERROR NS"}},
		{"truncate", []string{"NOERROR TC"}},
		{"tcpdrop", []string{"NOERROR TC"}},
		{"noedns", []string{"FORMERR "}},
		{"answer", []string{"NOERROR odd.example. 3600 IN A 192.0.2.8"}},
		{"servfail 2", []string{"SERVFAIL ", "SERVFAIL ", "NOERROR odd.example. 3600 IN A 192.0.2.8"}},
	}
	for _, tt := range tests {
		d := NewDNS(t, dnsTestScript+"odd.example "+tt.verb)
		for i, want := range tt.want {
			m, err := ask(t, d, "udp", "odd.example", dns.TypeA, true)
			if err != nil {
				t.Error(tt.verb, err)
			} else if got := answers(m); got != want {
				t.Errorf("%s, query %d: %s, want %s", tt.verb, i+1, got, want)
			}
		}
		if m, err := ask(t, d, "udp", "example.org", dns.TypeA, true); err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: hit another name: %v, %v", tt.verb, m, err)
		}
	}
}

// packets sends a query and returns the n packets that come back, and whether
// each is a right answer.
func packets(t *testing.T, d *DNS, name string, n int) string {
	t.Helper()
	conn, err := net.Dial("udp", d.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	b, _ := q.Pack()
	conn.Write(b)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var got []string
	for range n {
		buf := make([]byte, 1500)
		k, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var m dns.Msg
		switch err := m.Unpack(buf[:k]); {
		case err != nil:
			got = append(got, "garbage")
		case m.Id != q.Id:
			got = append(got, "id")
		case m.Question[0] != q.Question[0]:
			got = append(got, "name")
		default:
			got = append(got, "right")
		}
	}
	return strings.Join(got, " ")
}

func TestDNSWrongAnswers(t *testing.T) {
	d := NewDNS(t, `
*.example      A 192.0.2.1
id.example     wrongid
name.example   wrongname
bad.example    garbage
noise.example  noise
gone.example   drop 1
`)
	for name, want := range map[string]string{
		"id.example": "id", "name.example": "name", "bad.example": "garbage",
		"noise.example": "garbage id name right", "x.example": "right",
	} {
		if got := packets(t, d, name, len(strings.Fields(want))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestDNSMostSpecific(t *testing.T) {
	s, err := ParseDNSScript(`
*                servfail
*                delay 1s
*.example        refused
*.example        delay 2s
a.b.example      answer
c.b.example      drop 1
d.b.example      delay 3s
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, verb string
		n          int
		delay      time.Duration
	}{
		{"x.", "servfail", 1, time.Second},
		{"example.", "servfail", 1, time.Second},
		{"x.y.example.", "refused", 1, 2 * time.Second},
		{"a.b.example.", "answer", 1, 2 * time.Second},
		{"c.b.example.", "drop", 1, 2 * time.Second},
		{"c.b.example.", "refused", 2, 2 * time.Second},
		{"d.b.example.", "refused", 1, 3 * time.Second},
	} {
		if verb, delay, _ := s.plan(tt.name, tt.n); verb != tt.verb || delay != tt.delay {
			t.Errorf("%s: %s, %v", tt.name, verb, delay)
		}
	}
}

func TestDNSChanges(t *testing.T) {
	d := NewDNS(t, "a.example A 192.0.2.1")
	look := func(name string) string {
		t.Helper()
		m, err := ask(t, d, "udp", name, dns.TypeA, false)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(dns.RcodeToString[m.Rcode], len(m.Answer))
	}
	if err := d.Add("a.example A 192.0.2.2\nb.example A 192.0.2.3"); err != nil {
		t.Fatal(err)
	}
	if a, b := look("a.example"), look("b.example"); a != "NOERROR2" || b != "NOERROR1" {
		t.Error(a, b)
	}
	if err := d.Set("b.example servfail"); err != nil {
		t.Fatal(err)
	}
	if a, b := look("a.example"), look("b.example"); a != "NXDOMAIN0" || b != "SERVFAIL0" {
		t.Error(a, b)
	}
	if d.Set("bad") == nil || d.Add("bad") == nil || look("b.example") != "SERVFAIL0" {
		t.Error("a bad script was taken")
	}
	// While it answers; for the race detector.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				d.Add("a.example A 192.0.2.1")
				ask(t, d, "udp", "a.example", dns.TypeA, true)
				d.Queries()
			}
		})
	}
	wg.Wait()
}

// Close does not wait for delays; the address can be used again.
func TestDNSClose(t *testing.T) {
	d, err := StartDNS("127.0.0.1:0", "* delay 1h")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", d.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := new(dns.Msg)
	q.SetQuestion("example.org.", dns.TypeA)
	b, _ := q.Pack()
	conn.Write(b)
	for d.Total() == 0 {
		time.Sleep(time.Millisecond)
	}
	d.Close()
	d.Close()
	again, err := StartDNS(d.Addr.String(), "")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := StartDNS("127.0.0.1:0", "bad"); err == nil {
		t.Error("a bad script was taken")
	}
}

func TestDNSScriptErrors(t *testing.T) {
	for _, line := range []string{
		"bad", "a.example A", "a.example A 1.2.3", "a..b A 192.0.2.1", "a.example delay", "a.example delay 5", "a.example drop 0",
		"a.example drop x", "a.example records 0", "a.example records 5000", "a.example text", "a.example text 66000", "a.example NOSUCHTYPE x",
	} {
		_, err := ParseDNSScript("# first\n" + line)
		if err == nil || !strings.HasPrefix(err.Error(), "line 2: ") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func FuzzParseDNSScript(f *testing.F) {
	f.Add(dnsTestScript, "www.example.org.")
	f.Add("* drop 2\n*.a noise\na.a answer\n* A 192.0.2.1", "a.a.")
	f.Fuzz(func(t *testing.T, text, name string) {
		s, err := ParseDNSScript(text)
		if err != nil {
			return
		}
		if _, ok := dns.IsDomainName(name); !ok {
			return
		}
		name = dns.CanonicalName(name)
		s.plan(name, 1)
		q := dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET}
		s.answer(new(dns.Msg), q)
	})
}
