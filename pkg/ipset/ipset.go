// Package ipset reads lists of addresses and networks from files and says which
// line of which file names an address; it knows what is private, and how an
// address is written in the DNS.
//
// A list has one address or network a line, as ParsePrefix takes them; see
// package listfile for comments.
package ipset

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"

	"opensmtpd-filters/pkg/listfile"
)

// A Set is a set of networks, each with the line that names it. The zero value
// and nil are empty. A Set does not change once it is made, so it is safe for
// concurrent use.
type Set struct {
	table bart.Table[listfile.Place]
}

// A Match says why an address is in a Set. Its String is "file:line".
type Match struct {
	listfile.Place
	Prefix netip.Prefix // in canonical form, /32 or /128 for an address
}

// Parse reads a list. File is its name in matches and errors. A bad line gives
// an error "file:line: reason" and is skipped, see listfile.Each. When reading
// fails the Set holds what came before. Parse never returns a nil Set.
func Parse(r io.Reader, file string) (*Set, []error) {
	s := new(Set)
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		p, err := ParsePrefix(e.Text)
		if err == nil {
			s.insert(p, e.Place)
		}
		return err
	})
	return s, errs
}

// ParsePrefix reads one address or network, in any of these forms:
//
//	192.0.2.1  2001:db8::1        an address: the network of itself alone
//	192.0.2.0/24  2001:db8::/32   CIDR; bits of the host part are cleared
//	[2001:db8::1]  [2001:db8::]/64  [192.0.2.1]   as Postfix and Postgrey write them
//	195.235.39  195.235           two or three octets: a /24 or /16, as in Postgrey
//	10/8  192.168/16              missing octets are zero, as in pf.conf(5)
//
// IPv4-mapped IPv6 is IPv4, the zone of an IPv6 address is dropped. An address
// other than zero with /0 is an error: that is a slip, and it would match every
// client. So is one octet alone.
func ParsePrefix(s string) (netip.Prefix, error) {
	bad := fmt.Errorf("%s is not an address or network", listfile.Quote(s))
	host, bits, network := strings.Cut(s, "/")
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Prefix{}, bad
		}
	} else if octets := 1 + strings.Count(host, "."); octets < 4 && strings.Trim(host, "0123456789.") == "" {
		if !network && octets == 1 {
			return netip.Prefix{}, bad
		}
		host += strings.Repeat(".0", 4-octets)
		if !network {
			bits, network = strconv.Itoa(8*octets), true
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}, bad
	}
	if !network {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := strconv.Atoi(bits)
	if err != nil || n < 0 || n > a.BitLen() || bits != strconv.Itoa(n) || a.Zone() != "" {
		return netip.Prefix{}, bad
	}
	if a.Is4In6() {
		if n < 96 {
			return netip.Prefix{}, fmt.Errorf("%s: an IPv4-mapped network is /96 or longer", s)
		}
		a, n = a.Unmap(), n-96
	}
	p := netip.PrefixFrom(a, n)
	if n == 0 && !a.IsUnspecified() {
		return netip.Prefix{}, errors.New(s + " would match every address; " + p.Masked().String() + " says so")
	}
	return p.Masked(), nil
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

func (s *Set) insert(p netip.Prefix, l listfile.Place) {
	s.table.Modify(p, func(old listfile.Place, ok bool) (listfile.Place, bool) {
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
	return Match{l, p}, ok
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

// ReverseName returns the name under a zone that stands for an address: the
// octets of an IPv4 address in reverse order (RFC 5782 section 2.1), the 32
// nibbles of an IPv6 one (section 2.4). It has no final dot unless the zone has
// one, and is empty for an address that is not valid. The address is taken as it
// stands: of IPv4-mapped IPv6 the nibbles are written, see netip.Addr.Unmap.
func ReverseName(addr netip.Addr, zone string) string {
	switch {
	case addr.Is4():
		a := addr.As4()
		b := make([]byte, 0, len("255.255.255.255.")+len(zone))
		for i := len(a) - 1; i >= 0; i-- {
			b = strconv.AppendUint(b, uint64(a[i]), 10)
			b = append(b, '.')
		}
		return string(append(b, zone...))
	case addr.Is6():
		const hex = "0123456789abcdef"
		a := addr.As16()
		b := make([]byte, 0, 4*len(a)+len(zone))
		for i := len(a) - 1; i >= 0; i-- {
			b = append(b, hex[a[i]&15], '.', hex[a[i]>>4], '.')
		}
		return string(append(b, zone...))
	}
	return ""
}
