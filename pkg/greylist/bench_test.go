package greylist

import (
	"net/netip"
	"testing"
)

// Decisions on mail that is vouched for: no store is asked.
func BenchmarkVouched(b *testing.B) {
	g := New(Options{})
	for i := range b.N {
		a := mail{from: "ann@good.example", addr: "192.0.2.1", name: "mx.good.example", spf: SPFPass}.attempt(0)
		a.Client.Addr = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if d, err := g.Decide(b.Context(), a); err != nil || !d.Accept {
			b.Fatal(d, err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}
