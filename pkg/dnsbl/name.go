package dnsbl

import (
	"net/netip"

	"opensmtpd-filters/pkg/ipset"
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
func name(zone string, addr netip.Addr) string { return ipset.ReverseName(addr, zone) }
