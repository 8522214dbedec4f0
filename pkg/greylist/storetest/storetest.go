// Package storetest has the tests that every greylist.Store passes.
//
// A store that is shared between processes is tested with copies of the test
// binary, so its package needs
//
//	func TestMain(m *testing.M) {
//		if !backend.Child() {
//			os.Exit(m.Run())
//		}
//	}
package storetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"

	"github.com/google/go-cmp/cmp"
)

// A Backend is a store to be tested.
type Backend struct {
	// Open opens the store at a place. MaxGrey is as in the store's options.
	Open func(place string, maxGrey int) (greylist.Store, error)

	// Place returns a new empty place.
	Place func(t *testing.T) string

	// Shared: what is stored at a place is there for other processes and after
	// the end of this one.
	Shared bool

	// Expires: what is stored expires, and is bounded, by other means.
	Expires bool
}

func (b Backend) open(t *testing.T, place string, maxGrey int) greylist.Store {
	t.Helper()
	s, err := b.Open(place, maxGrey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Run runs all tests.
func (b Backend) Run(t *testing.T) {
	t.Run("Update", b.testUpdate)
	t.Run("Goroutines", b.testGoroutines)
	t.Run("Replace", b.testReplace)
	t.Run("All", b.testAll)
	t.Run("Find", b.testFind)
	if !b.Expires {
		t.Run("Sweep", b.testSweep)
		t.Run("MaxGrey", b.testMaxGrey)
		t.Run("Blast", b.testBlast)
		t.Run("Bounded", b.testBounded)
	}
	t.Run("Count", b.testCount)
	t.Run("Context", b.testContext)
	t.Run("Cache", b.testCache)
	t.Run("Decisions", b.testDecisions)
	t.Run("Exchange", b.testExchange)
	if b.Shared {
		t.Run("Reopen", b.testReopen)
		t.Run("Processes", b.testProcesses)
		t.Run("OtherProcess", b.testOtherProcess)
		t.Run("Kill", b.testKill)
	}
}

// key returns one of many keys of a kind, spread like hashes.
func key(kind greylist.Kind, n int) (k greylist.Key) {
	r := rand.New(rand.NewPCG(uint64(n), uint64(kind)))
	binary.BigEndian.PutUint64(k[:], r.Uint64())
	binary.BigEndian.PutUint64(k[8:], r.Uint64())
	k[15] = byte(kind)
	return k
}

func update(t *testing.T, s greylist.Store, keys []greylist.Key, f func([]greylist.Record)) {
	t.Helper()
	if err := s.Update(t.Context(), keys, f); err != nil {
		t.Fatal(err)
	}
}

func set(t *testing.T, s greylist.Store, k greylist.Key, r greylist.Record) {
	t.Helper()
	update(t, s, []greylist.Key{k}, func(recs []greylist.Record) { recs[0] = r })
}

func get(t *testing.T, s greylist.Store, keys ...greylist.Key) []greylist.Record {
	t.Helper()
	recs, err := s.Get(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	return recs
}

func all(t *testing.T, s greylist.Store) map[greylist.Key]greylist.Record {
	t.Helper()
	m := make(map[greylist.Key]greylist.Record)
	for e, err := range s.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := m[e.Key]; ok {
			t.Errorf("%v came twice", e.Key)
		}
		m[e.Key] = e.Record
	}
	return m
}

func (b Backend) testUpdate(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	full := greylist.Record{
		State: greylist.Pass, Tries: 7, First: 1_000_000_000_001, Last: 1_000_000_000_002, Nets: "\x00\xff\n'",
		Net: "\x00\xff345678", Origin: "net:192.0.2.0/24", Sender: "o'brien|\x00\xff@x.example", Rcpt: "bob@rcpt.example",
		Client: "192.0.2.1 mx.x.example",
	}
	// More keys than any store takes at once.
	var keys []greylist.Key
	for n := range 40 {
		keys = append(keys, key(greylist.KindAttempt, n))
	}
	update(t, s, keys, func(recs []greylist.Record) {
		for i := range recs {
			if recs[i] != (greylist.Record{}) {
				t.Errorf("%d is there: %+v", i, recs[i])
			}
			if i%2 == 0 {
				recs[i] = full
				recs[i].Tries = i
			}
		}
	})
	check := func(recs []greylist.Record) {
		for i, r := range recs {
			want := greylist.Record{}
			if i%2 == 0 {
				want = full
				want.Tries = i
			}
			if d := cmp.Diff(want, r); d != "" {
				t.Errorf("%d: %s", i, d)
			}
		}
	}
	check(get(t, s, keys...))
	update(t, s, keys, check)
	update(t, s, keys[:3], func(recs []greylist.Record) {
		recs[0] = greylist.Record{}
		recs[1] = greylist.Record{State: greylist.Grey, First: 5}
	})
	got := get(t, s, keys[:3]...)
	if got[0].State != greylist.Absent || got[1] != (greylist.Record{State: greylist.Grey, First: 5}) || got[2].Tries != 2 {
		t.Errorf("%+v", got)
	}
}

func (b Backend) testGoroutines(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	keys := []greylist.Key{key(greylist.KindAttempt, 1), key(greylist.KindPair, 2)}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				if err := s.Update(t.Context(), keys, increment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range get(t, s, keys...) {
		if r.Tries != 1000 {
			t.Errorf("%d of 1000 steps counted", r.Tries)
		}
	}
}

func increment(recs []greylist.Record) {
	for i := range recs {
		recs[i].State = greylist.Grey
		recs[i].Tries++
	}
}

func (b Backend) testAll(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	if n := len(all(t, s)); n != 0 {
		t.Fatalf("%d records in a new store", n)
	}
	want := make(map[greylist.Key]greylist.Record)
	var keys []greylist.Key
	for n := range 3000 {
		kinds := greylist.Kinds()
		k := key(kinds[n%len(kinds)], n)
		keys = append(keys, k)
		want[k] = greylist.Record{State: greylist.State(n%2 + 1), Tries: n}
	}
	for start := 0; start < len(keys); start += 100 {
		update(t, s, keys[start:start+100], func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = want[keys[start+i]]
			}
		})
	}
	if d := cmp.Diff(want, all(t, s)); d != "" {
		t.Error(d)
	}
	n := 0
	for e, err := range s.All(t.Context()) { // remove while looking
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > 10 {
			break
		}
		set(t, s, e.Key, greylist.Record{})
	}
	if n := len(all(t, s)); n != 2990 {
		t.Errorf("%d records, want 2990", n)
	}
}

// What is written is what is there: less tries, a shorter life and other networks
// as well, however large they are.
func (b Backend) testReplace(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	for _, kind := range []greylist.Kind{greylist.KindExpect, greylist.KindProvider, greylist.KindClient} {
		k := key(kind, 1)
		for _, r := range []greylist.Record{
			{State: greylist.Pass, Tries: 3600, First: 2_000_000, Last: 2_000_000, Nets: strings.Repeat("\x00\xff", 32<<10), Origin: "x.example"},
			{State: greylist.Pass, Tries: 60, First: 1_000_000, Last: 1_000_000, Nets: "\n", Rcpt: "bob@b.example"},
			{State: greylist.Grey, Tries: 1, First: 3_000_000, Last: 3_000_000},
			{},
			{State: greylist.Pass, Tries: 2, First: 1, Last: 1},
		} {
			set(t, s, k, r)
			if d := cmp.Diff(r, get(t, s, k)[0]); d != "" {
				t.Errorf("%s: %.1000s", kind, d)
			}
		}
	}
}

// Find returns of All what matches.
func (b Backend) testFind(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	text := []string{"", "a@a.example", "b@a.example", "A", "o'b%r_i*en@a.example", "\x00\xff|a", "über@a.example", "net:192.0.2.0/24", "192.0.2.1 mx.a.example"}
	r := rand.New(rand.NewPCG(3, 4))
	some := func() string { return text[r.IntN(len(text))] }
	kinds := greylist.Kinds()
	for start := range 30 { // more than any store hands out at once
		keys := make([]greylist.Key, 100)
		for i := range keys {
			keys[i] = key(kinds[r.IntN(len(kinds))], start*100+i)
		}
		update(t, s, keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.State(1 + i%2), Tries: i, Origin: some(), Sender: some(), Rcpt: some(), Client: some()}
			}
		})
	}
	stored := all(t, s)
	queries := []greylist.Query{{}, {Kind: greylist.KindExpect}, {Kind: greylist.KindAttempt, Sender: "@a.example"}}
	for range 60 {
		q := greylist.Query{Client: some(), Sender: some(), Rcpt: some()}
		switch r.IntN(3) {
		case 0:
			q.Client, q.Rcpt = "", ""
		case 1:
			q.Sender, q.Kind = "", kinds[r.IntN(len(kinds))]
		}
		queries = append(queries, q)
	}
	found := 0
	for _, q := range queries {
		want := make(map[greylist.Key]greylist.Record)
		for k, r := range stored {
			if q.Matches(greylist.Entry{Key: k, Record: r}) {
				want[k] = r
			}
		}
		got := make(map[greylist.Key]greylist.Record)
		for e, err := range greylist.Find(t.Context(), s, q) {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := got[e.Key]; ok {
				t.Errorf("%+v: %v came twice", q, e.Key)
			}
			got[e.Key] = e.Record
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%+v: %.1000s", q, d)
		}
		found += len(got)
	}
	if found < 2*len(stored) {
		t.Errorf("only %d found", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range greylist.Find(ctx, s, greylist.Query{Sender: "nobody"}) {
		if err == nil {
			t.Error("found after the end of its context")
		}
		return
	}
	t.Error("no error after the end of its context")
}

func (b Backend) testSweep(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	const total = 20_000
	var keys []greylist.Key
	for n := range total {
		keys = append(keys, key(greylist.KindAttempt, n))
	}
	for start := 0; start < total; start += 500 {
		update(t, s, keys[start:start+500], func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, Tries: start + i}
			}
		})
	}
	expired := func(_ greylist.Key, r greylist.Record) bool { return r.Tries%4 != 0 }
	sum := 0
	for steps := 0; ; steps++ {
		n, done, err := s.Sweep(t.Context(), expired)
		if err != nil {
			t.Fatal(err)
		}
		if n > 5000 {
			t.Errorf("%d removed in one step", n)
		}
		if sum += n; done {
			break
		}
		if steps > total {
			t.Fatal("sweeping does not end")
		}
	}
	if left := all(t, s); sum != total*3/4 || len(left) != total/4 {
		t.Errorf("%d removed, %d left", sum, len(left))
	}
}

func (b Backend) testMaxGrey(t *testing.T) {
	s := b.open(t, b.Place(t), 100)
	for n := range 300 {
		set(t, s, key(greylist.KindAttempt, n), greylist.Record{State: greylist.Grey, Tries: 1, First: int64(1000 + n)})
		set(t, s, key(greylist.KindOrigin, n), greylist.Record{State: greylist.Pass, Last: 1})
	}
	// What became a pass is not counted, and does not go.
	set(t, s, key(greylist.KindAttempt, 250), greylist.Record{State: greylist.Pass, First: 1})
	set(t, s, key(greylist.KindAttempt, 300), greylist.Record{State: greylist.Grey, Tries: 1, First: 2000})
	grey, pass, oldest := 0, 0, int64(1<<62)
	for _, r := range all(t, s) {
		if r.State == greylist.Pass {
			pass++
		} else {
			grey++
			oldest = min(oldest, r.First)
		}
	}
	if grey != 100 || pass != 301 || oldest != 1200 {
		t.Errorf("%d grey, want 100; %d passes, want 301; oldest %d, want 1200", grey, pass, oldest)
	}
}

// A blast pushes out itself: of the network that has most the oldest go, and what
// counts its attempts last.
func (b Backend) testBlast(t *testing.T) {
	const most, blast = 400, 3000
	s := b.open(t, b.Place(t), most)
	attempt := func(net byte, n int) greylist.Key {
		k := key(greylist.KindAttempt, n)
		copy(k[:8], bytes.Repeat([]byte{net}, 8))
		return k
	}
	// Older ones of many networks, half of them under another neighbourhood.
	var innocent []greylist.Key
	for n := range 200 {
		k := attempt(byte(n%20), n)
		r := greylist.Record{State: greylist.Grey, Tries: 1, First: int64(n)}
		if n%2 == 0 {
			k = key(greylist.KindAttempt, n)
			r.Net = string(bytes.Repeat([]byte{byte(n % 20)}, 8))
		}
		innocent = append(innocent, k)
		set(t, s, k, r)
	}
	counter := key(greylist.KindClient, 1)
	copy(counter[:8], bytes.Repeat([]byte{0xbb}, 8))
	set(t, s, counter, greylist.Record{State: greylist.Grey, Tries: blast, First: 900})
	for start := 0; start < blast; start += 100 {
		var keys []greylist.Key
		var recs []greylist.Record
		for n := start; n < start+100; n++ {
			k, r := attempt(0xbb, 1000+n), greylist.Record{State: greylist.Grey, Tries: 1, First: int64(1000 + n)}
			if n%3 == 0 {
				k, r.Net = key(greylist.KindAttempt, 1000+n), string(bytes.Repeat([]byte{0xbb}, 8))
			}
			keys, recs = append(keys, k), append(recs, r)
		}
		update(t, s, keys, func(old []greylist.Record) { copy(old, recs) })
	}
	left := all(t, s)
	for n, k := range innocent {
		if left[k].State == greylist.Absent {
			t.Errorf("%d was pushed out", n)
		}
	}
	if left[counter].State == greylist.Absent {
		t.Error("the counter was pushed out")
	}
	newest := left[attempt(0xbb, 1000+blast-2)].State
	if len(left) > most || len(left) < most*9/10 || newest == greylist.Absent {
		t.Errorf("%d records, at most %d; the newest is %s", len(left), most, newest)
	}
}

// Kinds with a bound of their own keep those used last.
func (b Backend) testBounded(t *testing.T) {
	s := b.open(t, b.Place(t), 10)
	const more = 500
	most := greylist.KindOurs.Most()
	var keys []greylist.Key
	for n := range most + more {
		keys = append(keys, key(greylist.KindOurs, n))
	}
	use := func(keys []greylist.Key, last int) {
		for start := 0; start < len(keys); start += 500 {
			update(t, s, keys[start:min(start+500, len(keys))], func(recs []greylist.Record) {
				for i := range recs {
					recs[i].State, recs[i].Last = greylist.Pass, int64(last+start+i)
				}
			})
		}
	}
	use(keys[:most], 0)
	use(keys[:100], most) // again
	use(keys[most:], most+1000)
	left := all(t, s)
	if len(left) > most || len(left) < most-more {
		t.Errorf("%d records, want %d", len(left), most)
	}
	for n, k := range keys {
		used := n < 100 || n >= 2*more
		if used && left[k].State == greylist.Absent {
			t.Fatalf("%d has gone", n)
		}
	}
}

func (b Backend) testCount(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	for _, add := range []map[string]int64{{"a": 1, "b b": 5}, {"a": 2}, {"": 0}, nil} {
		if _, err := s.Count(t.Context(), add); err != nil {
			t.Fatal(err)
		}
	}
	set(t, s, key(greylist.KindAttempt, 1), greylist.Record{State: greylist.Grey})
	got, err := s.Count(t.Context(), nil)
	delete(got, "")
	if d := cmp.Diff(map[string]int64{"a": 3, "b b": 5}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	got, err = s.Count(t.Context(), map[string]int64{"a": -3, "b b": -7})
	if got["a"] != 0 || got["b b"] != -2 || err != nil {
		t.Error(got, err)
	}
}

func (b Backend) testContext(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := key(greylist.KindAttempt, 1)
	if err := s.Update(ctx, []greylist.Key{k}, increment); !errors.Is(err, context.Canceled) {
		t.Errorf("Update: %v", err)
	}
	if _, err := s.Get(ctx, []greylist.Key{k}); err == nil {
		t.Error("Get: no error")
	}
	if r := get(t, s, k)[0]; r.Tries != 0 {
		t.Errorf("%+v", r)
	}
}

func (b Backend) testCache(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	c, ok := s.(greylist.Cache)
	if !ok {
		t.Skip("has none")
	}
	pass, none, late := key(greylist.KindOrigin, 1), key(greylist.KindOrigin, 2), key(greylist.KindOrigin, 3)
	keys := []greylist.Key{pass, none, late}
	if _, ok := c.Peek(keys); ok {
		t.Error("at hand, though never asked for")
	}
	update(t, s, keys, func(recs []greylist.Record) {
		recs[0] = greylist.Record{State: greylist.Pass, First: 10, Last: 1000}
		recs[2] = greylist.Record{State: greylist.Pass, First: 10, Last: 100}
	})
	eventually(t, func() bool { _, ok := c.Peek(keys); return ok })
	pair, grey := key(greylist.KindPair, 4), key(greylist.KindPair, 5) // never at hand
	set(t, s, pair, greylist.Record{State: greylist.Pass, Last: 1500})
	set(t, s, grey, greylist.Record{State: greylist.Grey, Last: 1500})
	if !c.Renew([]greylist.Key{pass, none, late, pair, grey}, 2000, 900) {
		t.Fatal("not renewed")
	}
	if recs, ok := c.Peek(keys); ok && (recs[0].Last != 2000 || recs[1].State != greylist.Absent || recs[2].Last != 100) {
		t.Errorf("at hand: %+v", recs)
	}
	// The next step sees them.
	update(t, s, []greylist.Key{pass, none, late, pair, grey}, func(recs []greylist.Record) {
		for i, want := range []int64{2000, 0, 100, 2000, 1500} {
			if recs[i].Last != want {
				t.Errorf("%d: last %d, want %d", i, recs[i].Last, want)
			}
		}
		recs[0] = greylist.Record{}
	})
	if recs, ok := c.Peek(keys); ok && recs[0].State != greylist.Absent {
		t.Error("still at hand after it was removed")
	}
	for range 20_000 {
		if !c.Renew([]greylist.Key{key(greylist.KindPair, rand.Int())}, 1, 0) {
			return
		}
	}
	t.Error("renews without bound")
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never")
}

func (b Backend) testReopen(t *testing.T) {
	place := b.Place(t)
	s := b.open(t, place, 0)
	k := key(greylist.KindOrigin, 1)
	r := greylist.Record{State: greylist.Pass, First: 1, Last: 2, Origin: "192.0.2.1"}
	set(t, s, k, r)
	s.Count(t.Context(), map[string]int64{"a": 1})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), []greylist.Key{k}, increment); err == nil {
		t.Error("works after Close")
	}
	s = b.open(t, place, 0)
	if got := get(t, s, k)[0]; got != r {
		t.Errorf("%+v", got)
	}
	if n, _ := s.Count(t.Context(), nil); n["a"] != 1 {
		t.Errorf("counters %v", n)
	}
}

var secret = []byte("0123456789abcdef0123456789abcdef")

func newList(s greylist.Store) *greylist.Greylist {
	return greylist.New(greylist.Options{
		Store: s, Clear: true,
		Secret: func() ([]byte, error) { return secret, nil },
		Policy: greylist.Policy{MaxPerClient: 5, WhiteExp: 10 * 24 * time.Hour},
	})
}

var epoch = time.Date(2024, 2, 28, 23, 0, 0, 0, time.UTC)

// randomAttempt is one of few, so that they meet each other.
func randomAttempt(r *rand.Rand, t time.Time) greylist.Attempt {
	a := greylist.Attempt{
		Time: t,
		Client: greylist.Client{
			Addr:  netip.AddrFrom4([4]byte{192, 0, byte(r.IntN(3)), byte(r.IntN(4))}),
			Class: greylist.NoName,
		},
		Sender: fmt.Sprintf("u%c@%c.example", 'a'+r.IntN(3), 'a'+r.IntN(3)),
		Junked: r.IntN(4) == 0,
		Trap:   r.IntN(50) == 0,
	}
	for range 1 + r.IntN(3) {
		a.Rcpts = append(a.Rcpts, fmt.Sprintf("r%c@b.example", 'a'+r.IntN(3)))
	}
	switch r.IntN(4) {
	case 0:
		a.SPF = greylist.SPFResult{Status: greylist.SPFPass, Domain: "a.example", Frees: r.IntN(2) == 0}
	case 1:
		a.SPF = greylist.SPFResult{Status: greylist.SPFTempError}
	}
	switch r.IntN(6) {
	case 0:
		a.Client.Name, a.Client.Domain, a.Client.Class = "mx.pool.example", "pool.example", greylist.Proper
	case 1:
		a.Client.Name, a.Client.Domain, a.Client.Class = "h1.pool.example", "pool.example", greylist.Generic
	case 2:
		a.Client.Provider, a.Client.ProviderDomain = "big", "big.example"
	case 3:
		a.Client.Class = greylist.DNSFail
	}
	return a
}

// Random attempts are answered as by a Memory, whether the store is closed in
// between or not.
func (b Backend) testDecisions(t *testing.T) {
	place := b.Place(t)
	s := b.open(t, place, 0)
	m := greylist.NewMemory(0)
	ours, theirs := newList(s), newList(m)
	r := rand.New(rand.NewPCG(1, 2))
	now := epoch
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for n := range steps {
		if b.Shared && n%(steps/4) == steps/8 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = b.open(t, place, 0)
			ours = newList(s)
		}
		switch r.IntN(20) {
		case 0:
			now = now.Add(time.Duration(r.IntN(30)) * time.Hour)
		case 1:
			now = now.Add(-time.Duration(r.IntN(100)) * time.Minute)
		default:
			now = now.Add(time.Duration(r.IntN(60_000)) * time.Millisecond)
		}
		a := randomAttempt(r, now)
		if r.IntN(10) == 0 {
			l := greylist.Letter{Time: now, From: a.Rcpts[0], To: []string{a.Sender, "x@b.example"}, Relayed: r.IntN(2) == 0}
			for _, g := range []*greylist.Greylist{ours, theirs} {
				if _, err := g.Learn(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				if err := g.Ours(now, "x@c.example"); err != nil {
					t.Fatal(err)
				}
				if err := g.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		want, err := theirs.Decide(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ours.Decide(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("step %d: %+v: %s", n, a, d)
		}
	}
	// Whoever renews passes later has done so by the next step.
	update(t, s, []greylist.Key{key(greylist.KindTrap, 1)}, func([]greylist.Record) {})
	if d := cmp.Diff(all(t, m), all(t, s)); d != "" {
		t.Error(d)
	}
}

// What an export has, an import makes again.
func (b Backend) testExchange(t *testing.T) {
	s := b.open(t, b.Place(t), 0)
	g := newList(s)
	for n := range 300 {
		g.Decide(t.Context(), greylist.Attempt{
			Time: epoch.Add(time.Duration(n) * time.Second), Client: greylist.Client{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 7)}), Class: greylist.NoName},
			Sender: fmt.Sprintf("u%d@a.example", n%11), Rcpts: []string{"b@b.example"}, SPF: greylist.SPFResult{Status: greylist.SPFPass, Domain: "a.example"},
		})
	}
	var text bytes.Buffer
	if err := g.Export(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	want := all(t, s)
	s2 := b.open(t, b.Place(t), 0)
	for range 2 {
		_, errs := newList(s2).Import(t.Context(), epoch.Add(time.Hour), bytes.NewReader(text.Bytes()), "export")
		if d := cmp.Diff(want, all(t, s2)); errs != nil || d != "" || len(want) == 0 {
			t.Error(errs, d)
		}
	}
	if _, err := g.Allow(t.Context(), epoch, "198.51.100.1"); err != nil {
		t.Error(err)
	}
	d, err := g.Decide(t.Context(), greylist.Attempt{Time: epoch, Client: greylist.Client{Addr: netip.MustParseAddr("198.51.100.1"), Class: greylist.NoName}, Sender: "x@y.example", Rcpts: []string{"b@b.example"}})
	if err != nil || !d.Accept {
		t.Errorf("allowed, but %v, %v", d, err)
	}
	if n, err := g.Delete(t.Context(), "198.51.100.1"); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	d, err = g.Decide(t.Context(), greylist.Attempt{Time: epoch, Client: greylist.Client{Addr: netip.MustParseAddr("198.51.100.1"), Class: greylist.NoName}, Sender: "x@y.example", Rcpts: []string{"b@b.example"}})
	if err != nil || d.Accept {
		t.Errorf("deleted, but %v, %v", d, err)
	}
}

const (
	envMode  = "GREYLIST_STORETEST"
	envPlace = "GREYLIST_STORETEST_PLACE"
)

// Child does what a test wants of another process, and reports whether this is
// one.
func (b Backend) Child() bool {
	mode := os.Getenv(envMode)
	if mode == "" {
		return false
	}
	s, err := b.Open(os.Getenv(envPlace), 0)
	if err != nil {
		fmt.Println("error", err)
		return true
	}
	ctx := context.Background()
	switch mode {
	case "increment":
		for range 300 {
			if err := s.Update(ctx, []greylist.Key{key(greylist.KindAttempt, 1), key(greylist.KindOrigin, 2)}, increment); err != nil {
				fmt.Println("error", err)
			}
		}
	case "delete":
		if err := s.Update(ctx, []greylist.Key{key(greylist.KindOrigin, 1)}, func(recs []greylist.Record) { recs[0] = greylist.Record{} }); err != nil {
			fmt.Println("error", err)
		}
	case "answer": // until killed
		var mu sync.Mutex
		for worker := range 4 {
			go func() {
				for n := 0; ; n++ {
					id := rand.IntN(1 << 40)
					if err := s.Update(ctx, []greylist.Key{key(greylist.KindAttempt, id)}, increment); err != nil {
						fmt.Println("error", err)
						return
					}
					mu.Lock()
					fmt.Println(id, worker)
					mu.Unlock()
				}
			}()
		}
		select {}
	}
	if err := s.Close(); err != nil {
		fmt.Println("error", err)
	}
	fmt.Println("done")
	return true
}

func child(t *testing.T, mode, place string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envMode+"="+mode, envPlace+"="+place)
	cmd.Stderr = os.Stderr
	return cmd
}

// Two processes and this one race on the same keys.
func (b Backend) testProcesses(t *testing.T) {
	place := b.Place(t)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			out, err := child(t, "increment", place).Output()
			if string(out) != "done\n" || err != nil {
				t.Errorf("%s%v", out, err)
			}
		})
	}
	s := b.open(t, place, 0)
	keys := []greylist.Key{key(greylist.KindAttempt, 1), key(greylist.KindOrigin, 2)}
	for range 300 {
		update(t, s, keys, increment)
	}
	wg.Wait()
	for _, r := range get(t, s, keys...) {
		if r.Tries != 900 {
			t.Errorf("%d of 900 steps counted", r.Tries)
		}
	}
	if n := len(all(t, s)); n != 2 {
		t.Errorf("%d records", n)
	}
}

// What another process removes is not at hand for longer than a second.
func (b Backend) testOtherProcess(t *testing.T) {
	place := b.Place(t)
	s := b.open(t, place, 0)
	k := key(greylist.KindOrigin, 1)
	set(t, s, k, greylist.Record{State: greylist.Pass, Last: 1})
	out, err := child(t, "delete", place).Output()
	if string(out) != "done\n" || err != nil {
		t.Fatalf("%s%v", out, err)
	}
	time.Sleep(time.Second)
	if c, ok := s.(greylist.Cache); ok {
		if recs, ok := c.Peek([]greylist.Key{k}); ok && recs[0].State != greylist.Absent {
			t.Error("still at hand")
		}
	}
	there := false
	update(t, s, []greylist.Key{k}, func(recs []greylist.Record) { there = recs[0].State != greylist.Absent })
	if there {
		t.Error("still there")
	}
}

// Whatever was answered before a process is killed is there afterwards.
func (b Backend) testKill(t *testing.T) {
	place := b.Place(t)
	kills := 200
	if testing.Short() {
		kills = 10
	}
	var mu sync.Mutex
	answered := make(map[greylist.Key]bool)
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for range kills / 2 {
				cmd := child(t, "answer", place)
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Error(err)
					return
				}
				sc := bufio.NewScanner(out)
				for n, stop := 0, rand.IntN(30); sc.Scan(); n++ {
					var id, w int
					if _, err := fmt.Sscan(sc.Text(), &id, &w); err != nil {
						if strings.HasPrefix(sc.Text(), "error") {
							t.Errorf("worker %d: %s", worker, sc.Text())
						}
						continue // cut short
					}
					mu.Lock()
					answered[key(greylist.KindAttempt, id)] = true
					mu.Unlock()
					if n == stop {
						cmd.Process.Kill()
					}
				}
				cmd.Process.Kill()
				cmd.Wait()
			}
		})
	}
	wg.Wait()
	s := b.open(t, place, 0)
	stored := all(t, s)
	lost := 0
	for k := range answered {
		if stored[k].State == greylist.Absent {
			lost++
		}
	}
	if lost > 0 || len(answered) < kills {
		t.Errorf("%d of %d forgotten", lost, len(answered))
	}
}
