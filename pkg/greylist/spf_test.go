package greylist

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// zone answers TXT queries from a map; "silent" never answers and "broken"
// has a temporary error.
type zone struct {
	txt     map[string]string
	queries atomic.Int64
}

func (z *zone) LookupTXT(ctx context.Context, name string) ([]string, error) {
	z.queries.Add(1)
	for len(name) > 0 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	switch v, ok := z.txt[name]; {
	case !ok:
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	case v == "silent":
		<-ctx.Done()
		return nil, &net.DNSError{Err: "timeout", Name: name, IsTimeout: true, IsTemporary: true}
	case v == "broken":
		return nil, &net.DNSError{Err: "server failure", Name: name, IsTemporary: true}
	case v == "panic":
		panic("broken")
	default:
		return []string{v}, nil
	}
}

func (z *zone) LookupMX(context.Context, string) ([]*net.MX, error)        { return nil, nil }
func (z *zone) LookupIPAddr(context.Context, string) ([]net.IPAddr, error) { return nil, nil }
func (z *zone) LookupAddr(ctx context.Context, a string) ([]string, error) { return nil, nil }

func newZone() *zone {
	return &zone{txt: map[string]string{
		"s.example":       "v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:5::/48 -all",
		"all.example":     "v=spf1 +all",
		"all4.example":    "v=spf1 ip4:0.0.0.0/0 -all",
		"doc.example":     "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/24 -all",
		"soft.example":    "v=spf1 ~all",
		"silent.example":  "silent",
		"broken.example":  "broken",
		"panic.example":   "panic",
		"include.example": "v=spf1 include:broken.example ip4:198.51.100.0/24 -all",
		"mx.s.example":    "v=spf1 ip4:198.51.100.7 -all",
	}}
}

func TestSPF(t *testing.T) {
	for _, tt := range []struct{ addr, sender, helo, status, origin string }{
		{"198.51.100.7", "a@S.example", "", "pass", "s.example"},
		{"::ffff:198.51.100.7", "a@s.example.", "", "pass", "s.example"},
		{"2001:db8:5::1", "a@s.example", "", "pass", "s.example"},
		{"203.0.113.1", "a@s.example", "", "fail", ""},
		{"198.51.100.7", "a@all.example", "", "pass", ""},              // everyone
		{"198.51.100.7", "a@all4.example", "", "pass", "all4.example"}, // not IPv6
		{"198.51.100.7", "a@doc.example", "", "pass", "doc.example"},
		{"198.51.100.7", "a@soft.example", "", "softfail", ""},
		{"198.51.100.7", "a@none.example", "", "none", ""},
		{"198.51.100.7", "a@broken.example", "", "temperror", ""},
		{"198.51.100.7", "a@include.example", "", "temperror", ""},
		{"198.51.100.7", "a@panic.example", "", "temperror", ""},
		{"198.51.100.7", "", "MX.s.example", "pass", "mx.s.example"},
		{"198.51.100.7", "<>", "mx.s.example", "pass", "mx.s.example"},
		{"198.51.100.7", "", "[198.51.100.7]", "none", ""},
		{"198.51.100.7", "", "localhost", "none", ""},
		{"198.51.100.7", "a", "mx.s.example", "none", ""},
		{"198.51.100.7", "a@x\x00y.example", "mx.s.example", "none", ""},
	} {
		r := NewSPF(newZone(), 0).Check(t.Context(), netip.MustParseAddr(tt.addr), tt.sender, tt.helo)
		if r.Status != tt.status || r.Origin() != tt.origin {
			t.Errorf("%+v: got %+v", tt, r)
		}
	}
	if r := NewSPF(newZone(), 0).Check(t.Context(), netip.Addr{}, "a@s.example", ""); r.Status != "none" {
		t.Errorf("%+v", r)
	}
}

func TestSPFOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		s := NewSPF(z, 5*time.Second)
		addr := netip.MustParseAddr("198.51.100.7")
		for range 10 {
			go s.Check(t.Context(), addr, "a@s.example", "h.example")
		}
		synctest.Wait()
		n := z.queries.Load()
		s.Check(t.Context(), addr, "other@s.example", "h.example")
		if z.queries.Load() != n {
			t.Error("asked again")
		}
		time.Sleep(spfKeep)
		s.Check(t.Context(), addr, "a@s.example", "h.example")
		if z.queries.Load() == n {
			t.Error("kept for ever")
		}

		// The deadline is the caller's, or ours.
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if r := s.Check(ctx, addr, "a@silent.example", ""); r.Status != "temperror" || time.Since(begin) != time.Second {
			t.Errorf("%+v after %v", r, time.Since(begin))
		}
		if r := s.Check(t.Context(), addr, "a@silent.example", ""); r.Status != "temperror" || time.Since(begin) != 5*time.Second {
			t.Errorf("%+v after %v", r, time.Since(begin))
		}
		n = z.queries.Load()
		s.Check(t.Context(), addr, "a@silent.example", "")
		if z.queries.Load() != n {
			t.Error("a silent server was asked again at once")
		}
		time.Sleep(spfKeepError)
		s.Check(t.Context(), addr, "a@silent.example", "")
		if z.queries.Load() == n {
			t.Error("an error is kept for ever")
		}
	})
}
