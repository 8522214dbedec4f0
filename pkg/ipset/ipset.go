// Package ipset reads lists of addresses and networks from files and says which
// line of which file names an address.
//
// A file has one address or network in CIDR form a line, IPv4 or IPv6. A # begins
// a comment; blank lines, blanks around the address, CR before LF and a UTF-8
// byte order mark are ignored.
package ipset

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/gaissmai/bart"
)

// MaxErrors is how many bad lines Parse describes. The rest is only counted, so
// that a file of another kind, given by mistake, does not fill memory and log.
const MaxErrors = 100

// A Set is a set of networks, each with the line that names it. The zero value
// and nil are empty. A Set does not change once it is made, so it is safe for
// concurrent use.
type Set struct {
	table bart.Table[line]
}

type line struct {
	file string
	n    int
}

// A Match says why an address is in a Set.
type Match struct {
	File   string
	Line   int          // the first is 1
	Prefix netip.Prefix // in canonical form, /32 or /128 for an address
}

// String returns "file:line", as it appears in logs.
func (m Match) String() string {
	return fmt.Sprintf("%s:%d", m.File, m.Line)
}

// Parse reads a list. File is its name in matches and errors. A bad line gives
// an error "file:line: reason" and is skipped; the other lines count. After
// MaxErrors such errors comes one that says how many more there were. When
// reading fails the Set holds what came before. Parse never returns a nil Set.
func Parse(r io.Reader, file string) (*Set, []error) {
	s := new(Set)
	var errs []error
	more := 0
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		text, err := readLine(br)
		if err != nil && err != io.EOF {
			text = "" // half a line may look like a whole one
		}
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		text, _, _ = strings.Cut(text, "#")
		if text = strings.TrimSpace(text); text != "" {
			p, bad := ParsePrefix(text)
			switch {
			case bad == nil:
				s.insert(p, line{file, n})
			case len(errs) < MaxErrors:
				errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, bad))
			default:
				more++
			}
		}
		if err != nil {
			if more > 0 {
				errs = append(errs, fmt.Errorf("%s: %d more bad lines", file, more))
			}
			if err != io.EOF {
				errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
			}
			return s, errs
		}
	}
}

// ReadLine returns the next line, cut to the reader's buffer of 4 kB. A line cut
// is made a bad one, unless a comment began before.
func readLine(br *bufio.Reader) (string, error) {
	b, err := br.ReadSlice('\n')
	text := string(b)
	if err == bufio.ErrBufferFull {
		text += "..."
	}
	for err == bufio.ErrBufferFull {
		_, err = br.ReadSlice('\n')
	}
	return text, err
}

// ParsePrefix reads one address or network in CIDR form. An address is the
// network of itself alone, IPv4-mapped IPv6 is IPv4, the zone of an IPv6
// address is dropped. Bits of the host part are cleared, so 192.0.2.5/24 is
// 192.0.2.0/24, but an address other than zero with /0 is an error: that is a
// slip, and it would match every client.
func ParsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%s is not an address or network", quote(s))
		}
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is not an address or network", quote(s))
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%s: an IPv4-mapped network is /96 or longer", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	if p.Bits() == 0 && !p.Addr().IsUnspecified() {
		return netip.Prefix{}, errors.New(s + " would match every address; " + p.Masked().String() + " says so")
	}
	return p.Masked(), nil
}

func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return fmt.Sprintf("%+q", s)
}

// Merge returns a Set of all networks of the given ones. Of two lines that name
// the same network the first counts.
func Merge(sets ...*Set) *Set {
	m := new(Set)
	for _, s := range sets {
		if s == nil {
			continue
		}
		for p, l := range s.table.All() {
			m.insert(p, l)
		}
	}
	return m
}

func (s *Set) insert(p netip.Prefix, l line) {
	s.table.Modify(p, func(old line, ok bool) (line, bool) {
		if ok {
			l = old
		}
		return l, false
	})
}

// Len returns the number of different networks.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.table.Size()
}

// Lookup returns the longest network that contains the address. IPv4-mapped
// IPv6 is looked up as IPv4; a zone is ignored.
func (s *Set) Lookup(a netip.Addr) (Match, bool) {
	if s == nil || !a.IsValid() {
		return Match{}, false
	}
	a = a.Unmap().WithZone("")
	p, l, ok := s.table.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen()))
	return Match{l.file, l.n, p}, ok
}

// Private reports whether no server of the public Internet can have the address,
// so that no list, reverse name or score says anything about it:
//
//	0.0.0.0/8                                  "this network"    RFC 791 section 3.2
//	10/8, 172.16/12, 192.168/16                private           RFC 1918
//	100.64.0.0/10                              carrier-grade NAT RFC 6598
//	127.0.0.0/8, ::1                           loopback          RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3
//	169.254.0.0/16, fe80::/10                  link-local        RFC 3927, RFC 4291 section 2.5.6
//	fc00::/7                                   unique local      RFC 4193
//	224.0.0.0/4, ff00::/8                      multicast         RFC 5771, RFC 4291 section 2.7
//	::                                         unspecified       RFC 4291 section 2.5.2
//
// Documentation networks (RFC 5737, RFC 3849) are not among them. An address
// that is not valid, such as that of a local socket, is private.
func Private(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		if b[0] == 0 || b[0] == 100 && b[1]&0xc0 == 64 {
			return true
		}
	}
	return !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast()
}
