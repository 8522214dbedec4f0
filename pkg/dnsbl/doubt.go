package dnsbl

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/resolve"
)

const (
	doubtAfter = 50 // networks in a row, all listed
	samples    = 16 // random entries
	worldAt    = 15 // of them are listed: the world
)

// A doubt is whether a list has come to list everybody, its test entries aside. A
// botnet raises it as well, so it takes nothing: it makes the test ask for random
// entries.
type doubt struct {
	networks map[string]bool // listed in a row
	open     bool
	world    bool      // found to be; ends only when random entries are not listed
	asked    time.Time // for a test
}

// note takes an answer about a network. It reports whether a test is to begin.
func (d *doubt) note(network string, listed bool, now time.Time) bool {
	if !listed {
		clear(d.networks)
		return false
	}
	if d.networks == nil {
		d.networks = make(map[string]bool)
	}
	if len(d.networks) < doubtAfter {
		d.networks[network] = true
	}
	if !d.open && len(d.networks) < doubtAfter || now.Sub(d.asked) < freshTest {
		return false
	}
	d.open, d.asked = true, now
	clear(d.networks)
	return true
}

// wide reports whether a test is to ask for random entries.
func (d *doubt) wide() bool { return d.open || d.world }

// judge takes how many of the random entries are listed, and how many are not. It
// reports whether the list lists the world.
func (d *doubt) judge(listed, not int) bool {
	switch {
	case listed >= worldAt:
		d.open, d.world = false, true
	case not > samples-worldAt:
		d.open, d.world = false, false
	}
	return d.world
}

// sample returns random entries of a zone, far from each other.
func (p *part) sample() []string {
	list := make([]string, samples)
	for i := range list {
		switch p.family {
		case inet:
			list[i] = name(p.zone.name, sample4(i))
		case inet6:
			list[i] = name(p.zone.name, sample6(i))
		default:
			list[i] = resolve.RandomLabel() + "." + topLevels()[i] + "." + p.zone.name
		}
	}
	return list
}

// sample4 returns a public address in the i-th sixteenth of 1.0.0.0 to
// 223.255.255.255.
func sample4(i int) netip.Addr {
	const first, size = 1 << 24, 223 << 24 / samples
	for {
		n := first + uint32(i)*size + rand.Uint32N(size)
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if !ipset.Private(a) {
			return a
		}
	}
}

// sample6 returns an address in one of the ranges that registries give out.
func sample6(i int) netip.Addr {
	ranges := []netip.Prefix{
		netip.MustParsePrefix("2001::/16"), netip.MustParsePrefix("2400::/12"), netip.MustParsePrefix("2600::/12"),
		netip.MustParsePrefix("2800::/12"), netip.MustParsePrefix("2a00::/12"), netip.MustParsePrefix("2c00::/12"),
	}
	r := ranges[i%len(ranges)]
	a := r.Addr().As16()
	for b := range a {
		free := byte(0xff)
		switch fixed := r.Bits() - 8*b; {
		case fixed >= 8:
			free = 0
		case fixed > 0:
			free = 0xff >> fixed
		}
		a[b] |= byte(rand.Uint32()) & free
	}
	return netip.AddrFrom16(a)
}

func topLevels() [samples]string {
	return [samples]string{"com", "net", "org", "info", "biz", "de", "fr", "nl", "it", "pl", "ru", "eu", "us", "ch", "se", "cz"}
}
