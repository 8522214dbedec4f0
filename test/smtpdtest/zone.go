//go:build linux

package smtpdtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Host returns lines of a Config.Zone that give an address a name, and the
// name the address.
func Host(addr, name string) string {
	kind := "A"
	if netip.MustParseAddr(addr).Is6() {
		kind = "AAAA"
	}
	return Pointer(addr, name) + fmt.Sprintf("%s %s %s\n", name, kind, addr)
}

// Pointer returns the line of a Config.Zone that gives an address a name.
func Pointer(addr, name string) string {
	return fmt.Sprintf("%s PTR %s.\n", Reverse(addr), name)
}

// Reverse returns the name of an address below in-addr.arpa or ip6.arpa.
func Reverse(addr string) string {
	a := netip.MustParseAddr(addr)
	parts, zone := strings.Split(a.StringExpanded(), "."), "in-addr.arpa"
	if a.Is6() {
		parts, zone = strings.Split(strings.ReplaceAll(a.StringExpanded(), ":", ""), ""), "ip6.arpa"
	}
	slices.Reverse(parts)
	return strings.Join(append(parts, zone), ".")
}
