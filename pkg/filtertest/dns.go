package filtertest

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A DNSScript is what a [DNS] server answers, parsed from lines of three
// fields, "name type data" or "name behaviour argument":
//
//	# a comment
//	example.org           A        192.0.2.1
//	example.org      60   TXT      "v=spf1 -all"     TTL 60, else 3600
//	www.example.org       CNAME    example.org       followed in the answer
//	example.org           SOA      ns.example.org. root.example.org. 1 3600 600 86400 60
//	*.list.example        A        127.0.0.2         names below that have no records
//	many.example          records  30                127.0.0.2 to 127.0.0.31
//	big.example           text     60000             one TXT record of 60,000 bytes
//	*.list.example        delay    100ms             every name below
//	flaky.example         servfail 2                 the first 2 queries of each type
//
// Records are in the form of zone files (RFC 1035 section 5.1); names are
// absolute. The root has a server. A name without records is NXDOMAIN, with the SOA record of the
// closest name above it that has one.
//
// The behaviours are
//
//	delay D      answers D later
//	noise        sends garbage, a wrong id and another question's answer first
//	drop         does not answer
//	servfail refused formerr notimp nxdomain    that response code
//	nodata       NOERROR without records
//	lame         refers to other servers, recursion not available
//	truncate     TC over UDP, the full answer over TCP
//	tcpdrop      TC over UDP, nothing over TCP
//	noedns       FORMERR to a query with EDNS0
//	wrongid      the answer with another id
//	wrongname    the answer to another question
//	garbage      rubbish under the right id
//	answer       as if there were no such line: an exception from a wildcard
//
// and, delay and noise aside, take a number N: the first N queries of each
// name and type. A name *.zone selects every name below zone, * every name;
// the most specific line counts.
type DNSScript struct {
	names map[string]*dnsName // lower case, with the final dot
	inner map[string]bool     // those above a name with records
}

type dnsName struct {
	rrs  []dns.RR
	acts []dnsAct
}

type dnsAct struct {
	verb  string
	delay time.Duration
	times int // 0 is always
}

var dnsRcodes = map[string]int{
	"servfail": dns.RcodeServerFailure,
	"refused":  dns.RcodeRefused,
	"formerr":  dns.RcodeFormatError,
	"notimp":   dns.RcodeNotImplemented,
	"nxdomain": dns.RcodeNameError,
}

// ParseDNSScript reads a script. Errors name the line.
func ParseDNSScript(text string) (*DNSScript, error) {
	s := &DNSScript{names: make(map[string]*dnsName)}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		n++
		if err := s.line(strings.TrimSpace(lines.Text())); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	s.index()
	return s, nil
}

func (s *DNSScript) line(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	f := strings.Fields(line)
	if len(f) < 2 {
		return fmt.Errorf("%q: want name type data", line)
	}
	if _, ok := dns.IsDomainName(f[0]); !ok {
		return fmt.Errorf("%q: not a domain name", f[0])
	}
	name := s.at(dns.CanonicalName(f[0]))
	arg := ""
	if len(f) == 3 {
		arg = f[2]
	}
	switch f[1] {
	case "delay":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return fmt.Errorf("delay: %w", err)
		}
		name.acts = append(name.acts, dnsAct{verb: "delay", delay: d})
	case "noise", "drop", "servfail", "refused", "formerr", "notimp", "nxdomain", "nodata", "lame",
		"truncate", "tcpdrop", "noedns", "wrongid", "wrongname", "garbage", "answer":
		a := dnsAct{verb: f[1]}
		if len(f) > 2 {
			n, err := strconv.Atoi(arg)
			if err != nil || n < 1 {
				return fmt.Errorf("%s: %q is not a number of queries", f[1], arg)
			}
			a.times = n
		}
		name.acts = append(name.acts, a)
	case "records":
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > 4000 {
			return fmt.Errorf("records: %q is not a number from 1 to 4000", arg)
		}
		for i := range n {
			a := i + 2
			name.rrs = append(name.rrs, &dns.A{
				Hdr: dns.RR_Header{Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
				A:   net.IPv4(127, 0, byte(a>>8), byte(a)),
			})
		}
	case "text":
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > 65000 {
			return fmt.Errorf("text: %q is not a number from 1 to 65000", arg)
		}
		rr := &dns.TXT{Hdr: dns.RR_Header{Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600}}
		for ; n > 0; n -= 255 {
			rr.Txt = append(rr.Txt, strings.Repeat("x", min(n, 255)))
		}
		name.rrs = append(name.rrs, rr)
	default:
		if len(f) < 3 {
			return fmt.Errorf("%q: want name type data", line)
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			return err
		}
		if rr == nil {
			return fmt.Errorf("%q: no record", line)
		}
		name.rrs = append(name.rrs, rr)
	}
	return nil
}

func (s *DNSScript) at(name string) *dnsName {
	n := s.names[name]
	if n == nil {
		n = new(dnsName)
		s.names[name] = n
	}
	return n
}

// dnsParents returns name's wildcards, the closest first: *.example. and *.
// for a.example.
func dnsParents(name string) []string {
	var ps []string
	for i, end := 0, false; !end; {
		if i, end = dns.NextLabel(name, i); end {
			break
		}
		ps = append(ps, "*."+name[i:])
	}
	return append(ps, "*.")
}

// records returns the records of a name, and whether the name exists.
func (s *DNSScript) records(name string) ([]dns.RR, bool) {
	if n := s.names[name]; n != nil && n.rrs != nil {
		return n.rrs, true
	}
	for _, p := range dnsParents(name) {
		if n := s.names[p]; n != nil && n.rrs != nil {
			return n.rrs, true
		}
	}
	return nil, s.inner[name] // an empty non-terminal exists
}

// index makes inner. It comes after the last change of names.
func (s *DNSScript) index() {
	s.inner = make(map[string]bool)
	for name, n := range s.names {
		if n.rrs == nil {
			continue
		}
		s.inner["."] = true
		for _, p := range dnsParents(name) {
			s.inner[strings.TrimPrefix(p, "*.")] = true
		}
	}
}

// answer fills in m's answer and authority sections and response code.
func (s *DNSScript) answer(m *dns.Msg, q dns.Question) {
	name := q.Name
	for range 16 {
		rrs, exists := s.records(dns.CanonicalName(name))
		if !exists && name == "." && q.Qtype == dns.TypeNS {
			m.Answer = append(m.Answer, &dns.NS{
				Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 3600},
				Ns:  "a.root-servers.net.",
			})
			return
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		next := ""
		found := false
		for _, rr := range rrs {
			if t := rr.Header().Rrtype; t != q.Qtype && t != dns.TypeCNAME {
				continue
			}
			rr = dns.Copy(rr)
			rr.Header().Name = name
			m.Answer = append(m.Answer, rr)
			if c, ok := rr.(*dns.CNAME); ok && q.Qtype != dns.TypeCNAME {
				next = c.Target
			} else {
				found = true
			}
		}
		if next == "" || found {
			if !found {
				m.Ns = s.soa(name)
			}
			return
		}
		name = next
	}
}

func (s *DNSScript) soa(name string) []dns.RR {
	name = dns.CanonicalName(name)
	for i, end := 0, false; ; i, end = dns.NextLabel(name, i) {
		at := name[i:]
		if end {
			at = "."
		}
		if n := s.names[at]; n != nil {
			for _, rr := range n.rrs {
				if rr.Header().Rrtype == dns.TypeSOA {
					return []dns.RR{dns.Copy(rr)}
				}
			}
		}
		if end {
			return nil
		}
	}
}

// plan returns what the script does with the nth query of a name and type.
func (s *DNSScript) plan(name string, n int) (verb string, delay time.Duration, noise bool) {
	var haveDelay bool
	for _, p := range append([]string{name}, dnsParents(name)...) {
		d := s.names[p]
		if d == nil {
			continue
		}
		for _, a := range d.acts {
			if a.times != 0 && n > a.times {
				continue
			}
			switch {
			case a.verb == "delay":
				if !haveDelay {
					delay, haveDelay = a.delay, true
				}
			case a.verb == "noise":
				noise = true
			case verb == "":
				verb = a.verb
			}
		}
	}
	return verb, delay, noise
}

// A DNSQuery is one query as it came in. Name is in lower case without the
// final dot, Net "udp" or "tcp".
type DNSQuery struct {
	Time   time.Time
	Name   string
	Type   string
	ID     uint16
	EDNS   bool
	Net    string
	Client netip.AddrPort
}

// dnsLogSize bounds the log of a server that runs for long.
const dnsLogSize = 200000

// A DNS is a scripted DNS server on one port of UDP and TCP. It may be used
// from several goroutines.
type DNS struct {
	// Addr is where it listens.
	Addr netip.AddrPort

	udp, tcp *dns.Server
	done     chan struct{}
	close    sync.Once

	mu     sync.Mutex
	script *DNSScript
	counts map[dnsQuestion]int
	log    []DNSQuery
}

type dnsQuestion struct{ name, typ string }

// NewDNS starts a server on a free port of 127.0.0.1. It ends with the test.
func NewDNS(t testing.TB, script string) *DNS {
	t.Helper()
	d, err := StartDNS("127.0.0.1:0", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// StartDNS starts a server on an address and port; port 0 is a free one.
func StartDNS(addr, script string) (*DNS, error) {
	s, err := ParseDNSScript(script)
	if err != nil {
		return nil, err
	}
	var pc net.PacketConn
	var l net.Listener
	for range 10 { // the free port of UDP may be taken on TCP
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			return nil, err
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		return nil, err
	}
	pc.(*net.UDPConn).SetReadBuffer(4 << 20)
	d := &DNS{
		Addr:   pc.LocalAddr().(*net.UDPAddr).AddrPort(),
		done:   make(chan struct{}),
		script: s,
		counts: make(map[dnsQuestion]int),
	}
	d.udp = &dns.Server{PacketConn: pc, Handler: d}
	d.tcp = &dns.Server{Listener: l, Handler: d}
	var started sync.WaitGroup
	for _, srv := range []*dns.Server{d.udp, d.tcp} {
		started.Add(1)
		srv.NotifyStartedFunc = started.Done
		go srv.ActivateAndServe()
	}
	started.Wait()
	return d, nil
}

// Close ends the server; delayed answers are not sent.
func (d *DNS) Close() {
	d.close.Do(func() {
		close(d.done)
		d.udp.Shutdown()
		d.tcp.Shutdown()
	})
}

// Set replaces the script. The counts, and so behaviours with a number, go on.
func (d *DNS) Set(script string) error {
	s, err := ParseDNSScript(script)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.script = s
	d.mu.Unlock()
	return nil
}

// Add adds lines to the script.
func (d *DNS) Add(script string) error {
	add, err := ParseDNSScript(script)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &DNSScript{names: maps.Clone(d.script.names)}
	for name, n := range add.names {
		at := new(dnsName)
		if old := s.names[name]; old != nil {
			at.rrs = append(at.rrs, old.rrs...)
			at.acts = append(at.acts, old.acts...)
		}
		at.rrs = append(at.rrs, n.rrs...)
		at.acts = append(at.acts, n.acts...)
		s.names[name] = at
	}
	s.index()
	d.script = s
	return nil
}

// Count returns the number of queries for a name and type ("A", "TXT", ...).
func (d *DNS) Count(name, typ string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[dnsQuestion{dnsPlain(name), typ}]
}

// Total returns the number of all queries.
func (d *DNS) Total() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, c := range d.counts {
		n += c
	}
	return n
}

// Queries returns the first 200,000 queries, the oldest first.
func (d *DNS) Queries() []DNSQuery {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]DNSQuery(nil), d.log...)
}

// Reset forgets counts and log.
func (d *DNS) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.counts)
	d.log = nil
}

func dnsPlain(name string) string {
	return strings.TrimSuffix(dns.CanonicalName(name), ".")
}

// ServeDNS answers one query; it is there for miekg/dns.
func (d *DNS) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) != 1 {
		return
	}
	q := req.Question[0]
	opt := req.IsEdns0()
	entry := DNSQuery{
		Time: time.Now(), Name: dnsPlain(q.Name), Type: dns.TypeToString[q.Qtype],
		ID: req.Id, EDNS: opt != nil, Net: w.LocalAddr().Network(),
	}
	switch a := w.RemoteAddr().(type) {
	case *net.UDPAddr:
		entry.Client = a.AddrPort()
	case *net.TCPAddr:
		entry.Client = a.AddrPort()
	}

	d.mu.Lock()
	if len(d.log) < dnsLogSize {
		d.log = append(d.log, entry)
	}
	key := dnsQuestion{entry.Name, entry.Type}
	d.counts[key]++
	n := d.counts[key]
	script := d.script // never changed once it is here
	d.mu.Unlock()

	verb, delay, noise := script.plan(dns.CanonicalName(q.Name), n)
	// What is there when the time has come has only to be sent.
	packets := dnsReply(req, entry.Net, script, verb, noise)
	send := func() {
		for _, b := range packets {
			w.Write(b)
		}
	}
	if delay <= 0 {
		send()
		return
	}
	sent := make(chan struct{})
	t := time.AfterFunc(delay, func() {
		defer close(sent)
		select {
		case <-d.done:
		default:
			send()
		}
	})
	// A connection ends with this call; of datagrams thousands may be waiting.
	if entry.Net == "tcp" {
		select {
		case <-sent:
		case <-d.done:
			t.Stop()
		}
	}
}

// dnsReply returns the packets that answer req.
func dnsReply(req *dns.Msg, network string, script *DNSScript, verb string, noise bool) (packets [][]byte) {
	add := func(m *dns.Msg) {
		if b, err := m.Pack(); err == nil {
			packets = append(packets, b)
		}
	}
	q := req.Question[0]
	opt := req.IsEdns0()
	m := new(dns.Msg)
	m.SetReply(req)
	m.RecursionAvailable = true
	size := dns.MinMsgSize
	if opt != nil {
		size = int(opt.UDPSize())
		m.SetEdns0(1232, false)
	}
	if noise {
		packets = append(packets, dnsGarbage(req.Id))
		bad := m.Copy()
		bad.Id++
		add(bad)
		add(dnsOther(m))
	}
	rcode, isRcode := dnsRcodes[verb]
	switch {
	case verb == "drop", verb == "tcpdrop" && network == "tcp":
		return packets
	case verb == "garbage":
		return append(packets, dnsGarbage(req.Id))
	case isRcode:
		m.Rcode = rcode
		if rcode == dns.RcodeNameError {
			m.Ns = script.soa(q.Name)
		}
	case verb == "noedns" && opt != nil:
		m.Rcode = dns.RcodeFormatError
		m.Extra = nil
	case verb == "nodata":
		m.Ns = script.soa(q.Name)
	case verb == "lame":
		m.RecursionAvailable = false
		m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 3600}, Ns: "ns.invalid."}}
	default:
		script.answer(m, q)
	}
	switch verb {
	case "wrongid":
		m.Id++
	case "wrongname":
		m = dnsOther(m)
	}
	if network == "udp" {
		m.Compress = true
		if verb == "truncate" || verb == "tcpdrop" || m.Len() > size {
			m.Truncated = true
			m.Answer, m.Ns = nil, nil
		}
	}
	add(m)
	return packets
}

// dnsOther returns an answer to a question that was not asked.
func dnsOther(m *dns.Msg) *dns.Msg {
	m = m.Copy()
	m.Question[0].Name = "other.invalid."
	m.Answer = []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: "other.invalid.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
		A:   net.IPv4(203, 0, 113, 66),
	}}
	return m
}

func dnsGarbage(id uint16) []byte {
	b := []byte{byte(id >> 8), byte(id), 0x81, 0x80, 0, 1, 0xff, 0xff, 0, 0, 0, 0}
	return append(b, strings.Repeat("\xc0\x0c\xff", 20)...)
}
