package resolve

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"opensmtpd-filters/pkg/guard"
)

const (
	ednsSize   = 1232 // bytes: what passes everywhere without fragments (DNS flag day 2020)
	headerSize = 12
	maxName    = 255 // RFC 1035 section 2.3.4
	optSize    = 11  // an OPT record without options, RFC 6891 section 6.1.2
	maxChain   = 16  // CNAME records followed
)

var (
	errForeign   = errors.New("not an answer to the query")
	errTruncated = errors.New("truncated answer")

	errFormat  error = rcodeError("server does not understand the query")
	errRefused error = rcodeError("a later server is refused by the list")
)

// An rcodeError is a server's statement that it cannot help.
type rcodeError string

func (e rcodeError) Error() string { return string(e) }

// A query is a question, ready to be sent.
type query struct {
	key
	wire []byte // id 0, with an OPT record at the end
}

func newQuery(k key) (*query, error) {
	name := k.name + "."
	if k.name == "" {
		name = "."
	}
	if _, ok := dns.IsDomainName(name); !ok || k.name == "" && k.typ != dns.TypeNS {
		return nil, errors.New("not a domain name")
	}
	b := make([]byte, headerSize, headerSize+len(name)+1+4+optSize)
	b[2] = 1           // recursion desired
	b[5], b[11] = 1, 1 // a question, and an additional record
	end, err := dns.PackDomainName(name, b[:cap(b)], headerSize, nil, false)
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint16(b[:end], k.typ)
	b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
	b = append(b, 0) // OPT: the root as name
	b = binary.BigEndian.AppendUint16(b, dns.TypeOPT)
	b = binary.BigEndian.AppendUint16(b, ednsSize)
	b = append(b, 0, 0, 0, 0, 0, 0) // extended code, version, flags, length
	q := &query{k, b}
	if len(q.question()) > maxName+4 { // the library lets one byte more pass
		return nil, errors.New("name too long")
	}
	return q, nil
}

// packet returns the bytes to send.
func (q *query) packet(id uint16, edns bool) []byte {
	b := slices.Clone(q.wire)
	binary.BigEndian.PutUint16(b, id)
	if !edns {
		b = b[:len(b)-optSize]
		b[11] = 0 // ARCOUNT
	}
	return b
}

func (q *query) question() []byte { return q.wire[headerSize : len(q.wire)-optSize] }

// asked tells whether b repeats the question, in whatever case.
func (q *query) asked(b []byte) bool {
	want := q.question()
	if len(b) < len(want) {
		return false
	}
	n := len(want) - 4 // type and class
	for i, c := range want[:n] {
		if lower(b[i]) != lower(c) {
			return false
		}
	}
	return string(b[n:len(want)]) == string(want[n:])
}

// decode reads a packet as the reply to q sent with this id. The error is
// errForeign for anything that is not one: such packets are ignored.
func decode(b []byte, q *query, id uint16) (ans *answer, err error) {
	if len(b) < headerSize || binary.BigEndian.Uint16(b) != id {
		return nil, errForeign
	}
	const qr, opcode, aa, tc, ra = 0x8000, 0x7800, 0x0400, 0x0200, 0x0080
	flags := binary.BigEndian.Uint16(b[2:])
	if flags&qr == 0 || flags&opcode != 0 {
		return nil, errForeign
	}
	rcode := int(flags & 0xf)
	bad := rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError
	switch questions := binary.BigEndian.Uint16(b[4:]); {
	case questions == 1 && q.asked(b[headerSize:]):
	case questions == 0 && bad: // some servers send a header only
	default:
		return nil, errForeign
	}
	switch {
	case rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented:
		return nil, errFormat
	case bad:
		return nil, rcodeText(rcode)
	case flags&tc != 0:
		return nil, errTruncated
	}

	var m dns.Msg
	if m.Unpack(b) != nil || len(m.Question) != 1 ||
		// The library forgives a packet that was cut between two records.
		len(m.Answer) != int(binary.BigEndian.Uint16(b[6:])) || len(m.Ns) != int(binary.BigEndian.Uint16(b[8:])) {
		return nil, errForeign
	}
	switch {
	case m.Rcode == dns.RcodeBadVers:
		return nil, errFormat
	case m.Rcode != rcode:
		return nil, rcodeText(m.Rcode)
	case rcode == dns.RcodeSuccess && len(m.Answer) == 0 && flags&(aa|ra) == 0:
		return nil, rcodeError("server does not recurse")
	}
	return collect(&m, q), nil
}

// decodeSafely is decode for bytes from the network: should the library panic
// on some, they are ignored.
func decodeSafely(b []byte, q *query, id uint16) (ans *answer, err error) {
	var p *guard.Panic
	if err = guard.Call(func() (err error) { ans, err = decode(b, q, id); return err }); errors.As(err, &p) {
		return nil, errForeign
	}
	return ans, err
}

func rcodeText(rcode int) rcodeError {
	if s := dns.RcodeToString[rcode]; s != "" {
		return rcodeError("server answers " + s)
	}
	return "server answers with an error"
}

// collect takes the records of q's type at the end of the chain of CNAME
// records that begins with the question.
func collect(m *dns.Msg, q *query) *answer {
	a := new(answer)
	a.ttl = maxRecordTTL
	owner := m.Question[0].Name
	ended := true // the chain of CNAME records
	if m.Rcode == dns.RcodeSuccess {
		for range maxChain {
			ended = false
			next := ""
			found := false
			for _, rr := range m.Answer {
				h := rr.Header()
				if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, owner) {
					continue
				}
				if c, ok := rr.(*dns.CNAME); ok {
					next = c.Target
				} else if h.Rrtype != q.typ || !a.add(rr) {
					continue
				} else {
					found = true
				}
				a.ttl = min(a.ttl, recordTTL(h.Ttl))
			}
			if found {
				slices.SortStableFunc(a.mx, func(x, y net.MX) int { return int(x.Pref) - int(y.Pref) })
				return a
			}
			if next == "" {
				ended = true
				break
			}
			owner = next
		}
	}
	// RFC 2308 section 5: the time is in the SOA record; without one the
	// answer should not be kept.
	ttl := time.Duration(0)
	authority := false
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			authority = true
			ttl = min(a.ttl, recordTTL(soa.Hdr.Ttl), recordTTL(soa.Minttl))
		}
	}
	// Records that lead nowhere are no clear answer.
	if !ended || m.Rcode == dns.RcodeSuccess && !authority && len(m.Answer)+len(m.Ns) > 0 {
		a := temporary(q.name, "answer without an end")
		if len(m.Answer) == 0 { // or a resolver that has removed the answer
			a.err.UnwrapErr = ErrNoData
		}
		return a
	}
	a = notFound(q.name)
	if m.Rcode == dns.RcodeSuccess {
		a = noData(q.name)
	}
	a.ttl = ttl
	return a
}

// add takes the data of one record.
func (a *answer) add(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A:
		ip, ok := netip.AddrFromSlice(rr.A)
		if !ok {
			return false
		}
		a.addrs = append(a.addrs, ip.Unmap())
	case *dns.AAAA:
		ip, ok := netip.AddrFromSlice(rr.AAAA)
		if !ok || !ip.Is6() {
			return false
		}
		a.addrs = append(a.addrs, ip)
	case *dns.PTR:
		a.strs = append(a.strs, rr.Ptr)
	case *dns.NS:
		a.strs = append(a.strs, rr.Ns)
	case *dns.TXT:
		a.strs = append(a.strs, unescape(strings.Join(rr.Txt, "")))
	case *dns.MX:
		a.mx = append(a.mx, net.MX{Host: rr.Mx, Pref: rr.Preference})
	default:
		return false
	}
	return true
}

const maxRecordTTL = (1<<31 - 1) * time.Second

// recordTTL reads a TTL; RFC 2181 section 8: one with the highest bit set is 0.
func recordTTL(seconds uint32) time.Duration {
	if d := time.Duration(seconds) * time.Second; d <= maxRecordTTL {
		return d
	}
	return 0
}

// unescape undoes the library's \" \\ and \DDD.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' && i+1 < len(s) {
			i++
			c = s[i]
			if digit(c) && i+2 < len(s) && digit(s[i+1]) && digit(s[i+2]) {
				c = (c-'0')*100 + (s[i+1]-'0')*10 + s[i+2] - '0'
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
