package greylist

import (
	"cmp"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// Life returns how long a record means something after it was written, if it is
// not used again.
func (p Policy) Life(k Key, r Record) time.Duration {
	p = p.withDefaults()
	return time.Duration(max(0, p.expiry(k.Kind(), r)-max(r.First, r.Last))) * time.Millisecond
}

// Merge makes one record of two that two hosts have made under one key, each
// without the other: the earliest first attempt, the latest use, a pass rather
// than what waits, and the greater number of attempts. What has expired at now, in
// milliseconds since the epoch, is no record, and of what a host makes as a whole,
// as the networks of a provider, the newer is right. Merged in any order, and any
// number of times, records make the same one. An attempt that only one of them has
// counted may be missing: then one more is waited for.
func (p Policy) Merge(k Key, now int64, a, b Record) Record {
	p = p.withDefaults()
	gone := func(r Record) bool { return r.State == Absent || now > p.expiry(k.Kind(), r) }
	switch {
	case gone(a) && gone(b):
		return Record{}
	case gone(a):
		return b
	case gone(b):
		return a
	}
	m := Record{
		State: max(a.State, b.State), Tries: max(a.Tries, b.Tries), First: min(a.First, b.First), Last: max(a.Last, b.Last),
		Net: max(a.Net, b.Net), Origin: max(a.Origin, b.Origin), Sender: max(a.Sender, b.Sender), Rcpt: max(a.Rcpt, b.Rcpt),
		Client: max(a.Client, b.Client),
	}
	switch k.Kind() {
	case KindTrap:
		m.First = max(a.First, b.First) // each time it is written to the day begins again
	case KindExpect:
		later := a
		if cmp.Or(cmp.Compare(p.expiry(KindExpect, a), p.expiry(KindExpect, b)), cmp.Compare(a.First, b.First)) < 0 {
			later = b
		}
		m.First, m.Tries = later.First, later.Tries
	case KindProvider:
		if newest(a, b) < 0 {
			return b
		}
		return a
	case KindPair:
		m.Nets = uniteNets(a.Nets, b.Nets)
		m.Tries = max(m.Tries, len(m.Nets)/netLen)
	}
	if m.State == Pass {
		m.Nets, m.Net = "", ""
	}
	return m
}

// newest compares records of which the newer is right as a whole.
func newest(a, b Record) int {
	return cmp.Or(cmp.Compare(a.Last, b.Last), cmp.Compare(a.First, b.First), cmp.Compare(a.State, b.State), cmp.Compare(a.Tries, b.Tries),
		cmp.Compare(a.Nets, b.Nets), cmp.Compare(a.Net, b.Net), cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Sender, b.Sender),
		cmp.Compare(a.Rcpt, b.Rcpt), cmp.Compare(a.Client, b.Client))
}

// uniteNets returns the networks of two pairs, those that come first if they are
// too many.
func uniteNets(a, b string) string {
	var nets []string
	for _, s := range []string{a, b} {
		for ; len(s) >= netLen; s = s[netLen:] {
			nets = append(nets, s[:netLen])
		}
	}
	slices.Sort(nets)
	nets = slices.Compact(nets)
	return strings.Join(nets[:min(len(nets), maxNets)], "")
}

// Fingerprint tells secrets apart and does not give them away.
func Fingerprint(secret []byte) string {
	k := newHasher(secret).key(0, "fingerprint", "", "", "")
	return hex.EncodeToString(k[:8])
}
