package greylist

import (
	"context"
	"net/netip"
	"time"
)

// Networks are those from which a large mail provider sends, as its domain publishes
// them.
type Networks struct {
	Provider string
	Nets     []netip.Prefix
	Walked   time.Time // when they were found; zero: never
	Tried    time.Time // when they were last looked for
	Failures int       // in a row since they were found
}

const (
	maxNetworks = 8 << 10            // bytes of a record
	keepOld     = 7 * 24 * time.Hour // that is whole is better than a new part
)

// Networks returns what is stored of providers, in that order.
func (g *Greylist) Networks(ctx context.Context, providers []string) ([]Networks, error) {
	h, err := g.hash()
	if err != nil {
		return nil, err
	}
	all := make([]Networks, len(providers))
	keys := make([]Key, len(providers))
	for i, p := range providers {
		all[i].Provider = p
		keys[i] = h.entry(KindProvider, providerOrigin(p), "", "").Key
	}
	recs, err := g.store.Get(ctx, keys)
	if err != nil {
		return nil, err
	}
	for i, r := range recs {
		if r.State == Absent {
			continue
		}
		all[i].Nets, all[i].Failures, all[i].Tried = parseNetworks(r.Nets), r.Tries, time.UnixMilli(r.Last)
		if r.First > 0 {
			all[i].Walked = time.UnixMilli(r.First)
		}
	}
	return all, nil
}

// SetNetworks stores the networks of a provider that were found at a time, and
// returns what is known now. If not all could be found out, or there are none, those
// found before stay; but once they are a week old a part is better.
func (g *Greylist) SetNetworks(ctx context.Context, t time.Time, provider string, nets []netip.Prefix, complete bool) (Networks, error) {
	h, err := g.hash()
	if err != nil {
		return Networks{}, err
	}
	e := h.entry(KindProvider, providerOrigin(provider), "", "")
	now := t.UnixMilli()
	var n Networks
	err = g.store.Update(ctx, []Key{e.Key}, func(recs []Record) {
		r := &recs[0]
		if r.State == Absent {
			*r = e.Record // a provider is nobody, and in clear
		}
		old := r.Nets == "" || now-r.First > keepOld.Milliseconds()
		r.State, r.Last = Pass, now
		switch text := networksText(nets); {
		case complete && text != "":
			r.First, r.Tries, r.Nets = now, 0, text
		case text != "" && old:
			r.First, r.Nets = now, text
			r.Tries++
		default:
			r.Tries++
		}
		n = Networks{Provider: provider, Nets: parseNetworks(r.Nets), Tried: t, Failures: r.Tries}
		if r.First > 0 {
			n.Walked = time.UnixMilli(r.First)
		}
	})
	return n, err
}

func providerOrigin(name string) string { return "provider:" + name }

// networksText is how networks are stored: of each the number of bits, 64 more for
// IPv6, and the address. Of too many the first count.
func networksText(nets []netip.Prefix) string {
	var b []byte
	for _, n := range nets {
		bits := byte(n.Bits())
		if n.Addr().Is6() {
			bits += 64
		}
		one := append([]byte{bits}, n.Addr().AsSlice()...)
		if len(b)+len(one) > maxNetworks {
			break
		}
		b = append(b, one...)
	}
	return string(b)
}

func parseNetworks(text string) (nets []netip.Prefix) {
	for len(text) > 0 {
		bits, size := int(text[0]), 4
		if bits >= 64 {
			bits, size = bits-64, 16
		}
		if len(text) <= size {
			return nets
		}
		a, _ := netip.AddrFromSlice([]byte(text[1 : 1+size]))
		if p, err := a.Prefix(bits); err == nil {
			nets = append(nets, p)
		}
		text = text[1+size:]
	}
	return nets
}
