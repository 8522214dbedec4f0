package greylist

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// What was stored by an earlier version is known, and moved once.
func TestRekey(t *testing.T) {
	for version := range keysNow {
		t.Run(fmt.Sprint("from version ", version), func(t *testing.T) { testRekey(t, version) })
	}
}

func testRekey(t *testing.T, version int) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(0)
		m.Count(t.Context(), map[string]int64{keysVersion: int64(version)})
		g := New(Options{Store: m, Clear: true})
		h, _ := g.hash()
		old := func(sender string, r Record) {
			r.Origin, r.Sender, r.Rcpt = "net:192.0.2.0/24", sender, "bob@rcpt.example"
			key := h.key(KindAttempt, sender+"\x00"+r.Rcpt, r.Origin, sender, r.Rcpt)
			if version == 1 { // before there were shards
				key = h.entry(KindAttempt, r.Origin, sender, r.Rcpt).Key
				key[13], key[14] = ^key[13], ^key[14]
			}
			m.Update(t.Context(), []Key{key}, func(recs []Record) { recs[0] = r })
		}
		ms := epoch.UnixMilli()
		old("pass@s.example", Record{State: Pass, Tries: 2, First: ms, Last: ms})
		old("grey@s.example", Record{State: Grey, Tries: 1, First: ms, Last: ms})
		old("again@s.example", Record{State: Grey, Tries: 1, First: ms, Last: ms})
		decide := func(at float64, addr, from string) Reason {
			d, err := g.Decide(t.Context(), step{at: at, addr: addr, from: from}.attempt())
			if err != nil {
				t.Fatal(err)
			}
			return d.Reason
		}
		if r := decide(30, "192.0.2.1", "again@s.example"); r != Unseen {
			t.Error(r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go g.Run(ctx, func() time.Time { return time.Time{} }, nil)
		time.Sleep(5 * time.Second)
		cancel()
		synctest.Wait()
		for addr, tt := range map[string]struct {
			from string
			want Reason
		}{"192.0.2.1": {"pass@s.example", Known}, "192.0.2.2": {"grey@s.example", Retry}, "192.0.2.3": {"again@s.example", Retry}} {
			if r := decide(60, addr, tt.from); r != tt.want {
				t.Errorf("%s: %s, want %s", tt.from, r, tt.want)
			}
		}
		if got, _ := m.Count(t.Context(), nil); got[keysVersion] != keysNow {
			t.Errorf("counters %v", got)
		}
	})
}
