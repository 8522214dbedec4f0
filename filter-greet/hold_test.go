package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/peek"
)

// A script says what is seen of a client from when on.
type script []struct {
	from time.Duration
	seen peek.Seen
}

var (
	silent = peek.Seen{State: peek.Silent}
	left   = peek.Seen{State: peek.Gone}
	spoke  = peek.Seen{State: peek.Early, Bytes: 6}
)

func (s script) at(d time.Duration) (seen peek.Seen) {
	for _, step := range s {
		if d >= step.from {
			seen = step.seen
		}
	}
	return seen
}

// hold1 holds a client and returns what comes of it.
func hold1(h *holds, wait time.Duration) <-chan found {
	c := make(chan found, 1)
	h.begin(peek.Conn{}, wait, func(f found) { c <- f })
	return c
}

func TestHold(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		wait  time.Duration
		sees  script
		want  peek.Seen
		after time.Duration
		looks []time.Duration
	}{
		{"early at once", 3 * time.Second, script{{0, spoke}}, spoke, 0, []time.Duration{0}},
		{"early soon", 3 * time.Second, script{{0, silent}, {40 * ms, spoke}}, spoke, 100 * ms, []time.Duration{0, 100 * ms}},
		{"early later", time.Second, script{{0, silent}, {700 * ms, spoke}}, spoke, 850 * ms,
			[]time.Duration{0, 100 * ms, 350 * ms, 850 * ms}},
		{"early at the end", time.Second, script{{0, silent}, {999 * ms, spoke}}, spoke, time.Second,
			[]time.Duration{0, 100 * ms, 350 * ms, 850 * ms, time.Second}},
		{"polite", 2 * time.Second, script{{0, silent}}, silent, 2 * time.Second,
			[]time.Duration{0, 100 * ms, 350 * ms, 850 * ms, 1350 * ms, 1850 * ms, 2 * time.Second}},
		{"polite, short", 20 * ms, script{{0, silent}}, silent, 20 * ms, []time.Duration{0, 20 * ms}},
		{"leaves", time.Second, script{{0, silent}, {300 * ms, left}}, left, 350 * ms, []time.Duration{0, 100 * ms, 350 * ms}},
		{"unknown", time.Second, nil, peek.Seen{}, time.Second, []time.Duration{0, 100 * ms, 350 * ms, 850 * ms, time.Second}},
		{"found late", time.Second, script{{300 * ms, spoke}}, spoke, 350 * ms, []time.Duration{0, 100 * ms, 350 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				var looks []time.Duration
				var h holds
				h.init(func(*peek.Conn) peek.Seen {
					looks = append(looks, time.Since(begun))
					return tt.sees.at(time.Since(begun))
				})
				go h.run(t.Context())
				synctest.Wait()
				got := <-hold1(&h, tt.wait)
				if got.Seen != tt.want || got.after != tt.after {
					t.Errorf("%+v, want %v after %v", got, tt.want, tt.after)
				}
				synctest.Wait()
				if !slices.Equal(looks, tt.looks) {
					t.Errorf("looks at %v, want %v", looks, tt.looks)
				}
				if n := h.len(); n != 0 {
					t.Errorf("%d wait still", n)
				}
			})
		})
	}
}

// A thousand who come one after another are all looked at in time, in one
// goroutine, and in few rounds.
func TestHoldMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		var mu sync.Mutex
		rounds, last := 0, time.Time{}
		h.init(func(*peek.Conn) peek.Seen {
			mu.Lock()
			defer mu.Unlock()
			if now := time.Now(); now != last {
				rounds, last = rounds+1, now
			}
			return silent
		})
		go h.run(t.Context())
		var all []<-chan found
		begun := time.Now()
		for range 1000 {
			all = append(all, hold1(&h, 3*time.Second))
			time.Sleep(time.Millisecond)
		}
		if n := h.len(); n != 1000 {
			t.Errorf("%d wait, want 1000", n)
		}
		for _, f := range all {
			got := <-f
			if got.Seen != silent || got.after < 3*time.Second || got.after > 3*time.Second+2*pause {
				t.Fatalf("%+v", got)
			}
		}
		// Those who come take a look each.
		if most := 1000 + int(time.Since(begun)/pause); rounds > most {
			t.Errorf("%d rounds, want at most %d", rounds, most)
		}
	})
}

// Who is not held any more is not looked at, and holds nobody up.
func TestHoldDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		var h holds
		h.init(func(*peek.Conn) peek.Seen { looks++; return silent })
		go h.run(t.Context())
		h.drop(h.begin(peek.Conn{}, time.Second, func(found) {}))
		if got := <-hold1(&h, 50*time.Millisecond); got.after != 50*time.Millisecond {
			t.Errorf("%+v", got)
		}
		time.Sleep(2 * time.Second)
		if looks != 3 {
			t.Errorf("%d looks, want 3", looks)
		}
	})
}

// A look that panics ends nothing but itself: run is begun again, and who waits
// comes to an end.
func TestHoldPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		var h holds
		h.init(func(*peek.Conn) peek.Seen {
			if looks++; looks == 3 {
				panic("a fault")
			}
			return silent
		})
		again := func(ctx context.Context) (p any) {
			defer func() { p = recover() }()
			h.run(ctx)
			return nil
		}
		go func() {
			if p := again(t.Context()); fmt.Sprint(p) != "a fault" {
				t.Errorf("ended with %v", p)
			}
			again(t.Context())
		}()
		if got := <-hold1(&h, time.Second); got.Seen != silent {
			t.Errorf("%+v", got)
		}
	})
}
