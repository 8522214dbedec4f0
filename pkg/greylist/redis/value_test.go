package redis

import (
	"strings"
	"testing"

	"opensmtpd-filters/pkg/greylist"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestValue(t *testing.T) {
	text := rapid.StringN(0, 300, 300)
	rapid.Check(t, func(t *rapid.T) {
		r := greylist.Record{
			State: greylist.State(rapid.IntRange(0, 2).Draw(t, "state")),
			Tries: rapid.IntRange(0, 1<<31-1).Draw(t, "tries"),
			First: rapid.Int64Range(0, 1<<47).Draw(t, "first"), Last: rapid.Int64Range(0, 1<<47).Draw(t, "last"),
			Nets: text.Draw(t, "nets"), Net: text.Draw(t, "net"),
			Origin: text.Draw(t, "origin"), Sender: text.Draw(t, "sender"), Rcpt: text.Draw(t, "rcpt"), Client: text.Draw(t, "client"),
		}
		if r.State == greylist.Absent {
			r = greylist.Record{}
		}
		v := encode(r)
		if d := cmp.Diff(r, decode(v)); d != "" {
			t.Fatal(d)
		}
		later := r
		later.Last++
		if r.State != greylist.Absent && !sameButLast(v, encode(later)) {
			t.Fatal("another last use makes another value")
		}
		later.Tries++
		if sameButLast(v, encode(later)) {
			t.Fatal("another number of tries does not make another value")
		}
	})
}

// Values stay small: a server has millions of them.
func TestValueLength(t *testing.T) {
	const now = 1_800_000_000_000
	for _, tt := range []struct {
		name string
		r    greylist.Record
		most int
	}{
		{"attempt", greylist.Record{State: greylist.Grey, Tries: 1, First: now, Last: now}, 14},
		{"attempt from elsewhere", greylist.Record{State: greylist.Grey, Tries: 200, First: now, Last: now, Net: "12345678"}, 24},
		{"pair", greylist.Record{State: greylist.Grey, Tries: 9, First: now, Last: now, Net: "12345678", Nets: strings.Repeat("1234", 8)}, 56},
	} {
		if n := len(encode(tt.r)); n > tt.most {
			t.Errorf("%s: %d bytes, want %d at most", tt.name, n, tt.most)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(greylist.Record{State: greylist.Grey, Tries: 1, First: 5, Last: 6, Nets: "1234", Net: "12345678", Origin: "o", Sender: "s"}))
	f.Add("\x01")
	f.Add("\x05\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00")
	f.Fuzz(func(t *testing.T, v string) {
		r := decode(v)
		if got := decode(encode(r)); got != r {
			t.Errorf("%+v became %+v", r, got)
		}
	})
}

func TestNames(t *testing.T) {
	n := names{"mx"}
	rapid.Check(t, func(t *rapid.T) {
		k := greylist.Key(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
		name := n.of(k)
		if got, ok := n.key(name); got != k || !ok {
			t.Fatalf("%s: %s is %s, %t", k, name, got, ok)
		}
		if len(name) != len("mx:{0123}")+19 || strings.Count(name, "{") != 1 || strings.Count(name, "}") != 1 {
			t.Fatal(name)
		}
	})
	for _, other := range []string{"", "mx:counters", "mx:secret", "mx:{0123}probe", "my" + n.of(greylist.Key{})[2:], n.of(greylist.Key{}) + "A", strings.ToUpper(n.of(greylist.Key{10: 3}))} {
		if k, ok := n.key(other); ok {
			t.Errorf("%q is %s", other, k)
		}
	}
}

func FuzzName(f *testing.F) {
	n := names{"gl"}
	f.Add(n.of(greylist.Key{1, 2, 3}))
	f.Fuzz(func(t *testing.T, name string) {
		if k, ok := n.key(name); ok && n.of(k) != name {
			t.Errorf("%q is %s, which is %q", name, k, n.of(k))
		}
	})
}
