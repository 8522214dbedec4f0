package dnsbl

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Match says which answers of a list count. The zero value is all of
// 127.0.0.0/8.
type Match struct {
	text   string
	octets [4][]span    // a pattern
	prefix netip.Prefix // or a network
	bits   byte         // or bits of the last octet
}

type span struct{ from, to byte }

// ParseMatch reads one of
//
//	127.0.0.2, 127.0.[0..255].[1;3..5]   as in postscreen_dnsbl_sites
//	127.0.0.2/31                         a network
//	bit:16                               any of these bits in the last octet
//
// A match that no answer can meet is an error.
func ParseMatch(s string) (Match, error) {
	m := Match{text: s}
	if bits, ok := strings.CutPrefix(s, "bit:"); ok {
		n, err := strconv.ParseUint(bits, 10, 8)
		if err != nil || n == 0 {
			return Match{}, errors.New("bit: takes a number from 1 to 255")
		}
		m.bits = byte(n)
		return m, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() {
			return Match{}, errors.New("not an IPv4 network")
		}
		if !p.Overlaps(loopback()) {
			return Match{}, errNever()
		}
		m.prefix = p.Masked()
		return m, nil
	}
	rest := s
	for i := range m.octets {
		var part string
		var ok bool
		if strings.HasPrefix(rest, "[") {
			part, rest, ok = strings.Cut(rest[1:], "]")
			if !ok {
				return Match{}, errors.New("[ without ]")
			}
			ok = rest == ""
			if r, dot := strings.CutPrefix(rest, "."); dot {
				rest, ok = r, i < 3
			}
		} else {
			part, rest, ok = strings.Cut(rest, ".")
			ok = ok == (i < 3)
			if strings.ContainsAny(part, ";") {
				ok = false
			}
		}
		if !ok || i == 3 && rest != "" {
			return Match{}, errors.New("not four octets such as 127.0.0.[2..11]")
		}
		for item := range strings.SplitSeq(part, ";") {
			sp, err := parseSpan(item)
			if err != nil {
				return Match{}, err
			}
			m.octets[i] = append(m.octets[i], sp)
		}
	}
	if !within(m.octets[0], 127) {
		return Match{}, errNever()
	}
	return m, nil
}

func loopback() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8) }

func errNever() error { return errors.New("never matches: lists answer within 127.0.0.0/8") }

func parseSpan(s string) (span, error) {
	from, to, ranged := strings.Cut(s, "..")
	if !ranged {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 8)
	b, errB := strconv.ParseUint(to, 10, 8)
	if errA != nil || errB != nil {
		return span{}, fmt.Errorf("%.20q is not an octet or a range of them such as 2..11", s)
	}
	if a > b {
		return span{}, fmt.Errorf("%d..%d is empty", a, b)
	}
	return span{byte(a), byte(b)}, nil
}

func within(spans []span, b byte) bool {
	for _, s := range spans {
		if s.from <= b && b <= s.to {
			return true
		}
	}
	return false
}

// Contains reports whether an answer counts.
func (m Match) Contains(a netip.Addr) bool {
	if !a.Is4() || !loopback().Contains(a) {
		return false
	}
	b := a.As4()
	switch {
	case m.text == "":
		return true
	case m.bits != 0:
		return b[3]&m.bits != 0
	case m.prefix.IsValid():
		return m.prefix.Contains(a)
	}
	for i, spans := range m.octets {
		if !within(spans, b[i]) {
			return false
		}
	}
	return true
}

// some reports whether ok is true of an answer that counts; with first, of those
// within 127.0.0.0/16.
func (m Match) some(ok func(netip.Addr) bool, first bool) bool {
	octet := func(i int) (bs []byte) {
		for b := range 256 {
			switch {
			case m.octets[i] != nil && !within(m.octets[i], byte(b)):
			case i == 1 && first && b > 0:
			case m.bits != 0 && i < 3 && b > 0:
			default:
				bs = append(bs, byte(b))
			}
		}
		return bs
	}
	second, third, fourth := octet(1), octet(2), octet(3)
	for _, b := range second {
		for _, c := range third {
			for _, d := range fourth {
				if a := netip.AddrFrom4([4]byte{127, b, c, d}); m.Contains(a) && ok(a) {
					return true
				}
			}
		}
	}
	return false
}

// String returns the match as it was written.
func (m Match) String() string { return m.text }
