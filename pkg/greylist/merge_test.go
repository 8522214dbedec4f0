package greylist

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Whatever hosts have made of one record, in whatever order that is merged and
// how often, one record comes of it.
func TestMergeAnyOrder(t *testing.T) {
	policy := Policy{}
	record := rapid.Custom(func(t *rapid.T) Record {
		at := rapid.Int64Range(0, 40*day)
		r := Record{State: State(rapid.IntRange(0, 2).Draw(t, "state"))}
		if r.State == Absent {
			return r
		}
		r.First = at.Draw(t, "first")
		r.Last = r.First + rapid.Int64Range(0, day).Draw(t, "last")
		r.Tries = rapid.IntRange(0, 100_000).Draw(t, "tries")
		r.Net = rapid.SampledFrom([]string{"", "12345678"}).Draw(t, "net")
		r.Sender = rapid.SampledFrom([]string{"", "a@a.example"}).Draw(t, "sender")
		for range rapid.IntRange(0, maxNets).Draw(t, "nets") {
			r.Nets = addNet(r.Nets, rapid.StringOfN(rapid.SampledFrom([]rune("abcd")), netLen, netLen, netLen).Draw(t, "net of pair"))
		}
		if r.State == Pass {
			r.Nets, r.Net = "", ""
		}
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		key := Key{15: byte(rapid.SampledFrom(Kinds()).Draw(t, "kind"))}
		if key.Kind() != KindPair {
			record = rapid.Map(record, func(r Record) Record { r.Nets = ""; return r })
		}
		now := rapid.Int64Range(0, 80*day).Draw(t, "now")
		all := rapid.SliceOfN(record, 1, 6).Draw(t, "records")
		merge := func(recs []Record) (m Record) {
			for _, r := range recs {
				m = policy.Merge(key, now, m, r)
			}
			return m
		}
		want := merge(all)
		again := slices.Concat(all, all)
		shuffled := rapid.Permutation(again).Draw(t, "order")
		if d := cmp.Diff(want, merge(shuffled)); d != "" {
			t.Fatal(d)
		}
		// In two heaps, as by two hosts, and the heaps merged.
		n := rapid.IntRange(0, len(shuffled)).Draw(t, "heap")
		if d := cmp.Diff(want, policy.Merge(key, now, merge(shuffled[:n]), merge(shuffled[n:]))); d != "" {
			t.Fatal(d)
		}
	})
}

func TestMerge(t *testing.T) {
	const minute = int64(time.Minute / time.Millisecond)
	pair := func(tries int, nets string) Record {
		return Record{State: Grey, Tries: tries, First: minute, Last: 2 * minute, Nets: nets}
	}
	for _, tt := range []struct {
		name       string
		kind       Kind
		now        int64
		a, b, want Record
	}{
		{"none", KindAttempt, 0, Record{}, Record{}, Record{}},
		{"one", KindAttempt, minute, Record{}, Record{State: Grey, Tries: 1}, Record{State: Grey, Tries: 1}},
		{"earliest first, latest use, most tries", KindAttempt, 9 * minute,
			Record{State: Grey, Tries: 3, First: 2 * minute, Last: 4 * minute}, Record{State: Grey, Tries: 1, First: minute, Last: minute},
			Record{State: Grey, Tries: 3, First: minute, Last: 4 * minute}},
		{"a pass beats grey", KindAttempt, 9 * minute,
			Record{State: Pass, Tries: 2, First: minute, Last: 3 * minute}, Record{State: Grey, Tries: 1, First: 4 * minute, Last: 4 * minute},
			Record{State: Pass, Tries: 2, First: minute, Last: 4 * minute}},
		{"not one that has expired", KindAttempt, 40 * day,
			Record{State: Pass, Tries: 2, First: minute, Last: minute}, Record{State: Grey, Tries: 1, First: 40 * day, Last: 40 * day},
			Record{State: Grey, Tries: 1, First: 40 * day, Last: 40 * day}},
		{"an attempt that is too old is none", KindAttempt, 2 * day,
			Record{State: Grey, Tries: 5, First: minute, Last: minute}, Record{State: Grey, Tries: 1, First: 2 * day, Last: 2 * day},
			Record{State: Grey, Tries: 1, First: 2 * day, Last: 2 * day}},
		{"networks unite and count", KindPair, 9 * minute, pair(1, "bbbb"), pair(1, "aaaa"), pair(2, "aaaabbbb")},
		{"the same network once", KindPair, 9 * minute, pair(2, "aaaabbbb"), pair(1, "bbbb"), pair(2, "aaaabbbb")},
		{"a trap is written to again", KindTrap, 9 * minute,
			Record{State: Grey, Tries: 1, First: minute, Last: minute}, Record{State: Grey, Tries: 1, First: 5 * minute, Last: 5 * minute},
			Record{State: Grey, Tries: 1, First: 5 * minute, Last: 5 * minute}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := Key{15: byte(tt.kind)}
			if d := cmp.Diff(tt.want, Policy{}.Merge(k, tt.now, tt.a, tt.b)); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.want, Policy{}.Merge(k, tt.now, tt.b, tt.a)); d != "" {
				t.Error("the other way round:", d)
			}
		})
	}
}

// A record is kept as long as the decision heeds it, and no shorter.
func TestLife(t *testing.T) {
	const hour = time.Hour
	for _, tt := range []struct {
		kind Kind
		r    Record
		want time.Duration
	}{
		{KindAttempt, Record{State: Grey, First: 0, Last: hour.Milliseconds()}, 23 * hour},
		{KindAttempt, Record{State: Pass, First: 0, Last: hour.Milliseconds()}, 36 * 24 * hour},
		{KindAttempt, Record{State: Grey, First: 0, Last: 30 * hour.Milliseconds()}, 0},
		{KindExpect, Record{State: Pass, Tries: 3600}, hour},
		{KindClient, Record{State: Grey, First: hour.Milliseconds(), Tries: 1}, 24 * hour},
	} {
		if got := (Policy{}).Life(Key{15: byte(tt.kind)}, tt.r); got != tt.want {
			t.Errorf("%s %+v: %s, want %s", tt.kind, tt.r, got, tt.want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	a, b := Fingerprint([]byte("0123456789abcdef")), Fingerprint([]byte("0123456789abcdeg"))
	if len(a) != 16 || a == b || a != Fingerprint([]byte("0123456789abcdef")) {
		t.Error(a, b)
	}
}
