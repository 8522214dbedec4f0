package dnsbl

import (
	"net/netip"
	"strconv"
)

// Name returns the name to ask about an address under a zone: the octets of an
// IPv4 address in reverse order (RFC 5782 section 2.1), the 32 nibbles of an
// IPv6 one (section 2.4). An IPv4 address in IPv6 form is the IPv4 address. The
// name has no final dot; it is empty for the zero Addr.
func Name(zone string, addr netip.Addr) string {
	return name(zone, addr.Unmap())
}

// name is Name for addresses as they stand: ::ffff:7f00:2 is a test entry
// (RFC 5782 section 5).
func name(zone string, addr netip.Addr) string {
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
