package main

import (
	"context"
	"sync"
	"time"

	"opensmtpd-filters/pkg/peek"
)

// When a client that is held is looked at, after the first time.
const (
	secondLook = 100 * time.Millisecond
	thirdLook  = 350 * time.Millisecond
	lookEvery  = 500 * time.Millisecond
)

// A found is what became of a wait.
type found struct {
	peek.Seen
	after time.Duration
}

// holds are the clients that are held. One goroutine looks at all of them, and
// nothing is counted as work.
type holds struct {
	look func(*peek.Conn) peek.Seen

	mu   sync.Mutex
	all  map[*hold]bool
	next time.Time     // when run wakes up; zero: only when it is woken
	wake chan struct{} // of one
}

// A hold is a client that is held.
type hold struct {
	conn       peek.Conn
	begun, end time.Time
	due        time.Time // for a look
	done       func(found)
}

func (h *holds) init(look func(*peek.Conn) peek.Seen) {
	h.look, h.all, h.wake = look, make(map[*hold]bool), make(chan struct{}, 1)
}

// len returns how many are held.
func (h *holds) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// begin looks at a client, and holds it unless that decides. Done is called once,
// by begin or by run.
func (h *holds) begin(conn peek.Conn, wait time.Duration, done func(found)) *hold {
	now := time.Now()
	w := &hold{conn: conn, begun: now, end: now.Add(wait), done: done}
	if w.answer(h.look(&w.conn), now) {
		return w
	}
	w.schedule(now)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[w] = true
	if h.next.IsZero() || w.due.Before(h.next) {
		h.next = w.due
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
	return w
}

// drop forgets a client that is not held any more.
func (h *holds) drop(w *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, w)
}

// answer ends the wait if a look decides or time is up.
func (w *hold) answer(s peek.Seen, now time.Time) bool {
	if s.State != peek.Early && s.State != peek.Gone && now.Before(w.end) {
		return false
	}
	w.done(found{s, now.Sub(w.begun)})
	return true
}

// schedule sets the next look: the last is at the end of the wait.
func (w *hold) schedule(now time.Time) {
	due := w.begun.Add(secondLook)
	switch passed := now.Sub(w.begun); {
	case passed >= thirdLook:
		due = now.Add(lookEvery)
	case passed >= secondLook:
		due = w.begun.Add(thirdLook)
	}
	w.due = due
	if due.After(w.end) {
		w.due = w.end
	}
}

// pause is the least time between two rounds of looks: who is due meanwhile is
// looked at in one go.
const pause = 10 * time.Millisecond

// run looks at those who wait, until ctx ends.
func (h *holds) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-timer.C:
		}
		for _, w := range h.due(time.Now()) { // should a look panic, run is called again
			if now := time.Now(); w.answer(h.look(&w.conn), now) {
				h.drop(w)
			}
		}
		h.mu.Lock()
		h.next = time.Time{}
		for w := range h.all {
			if h.next.IsZero() || w.due.Before(h.next) {
				h.next = w.due
			}
		}
		timer.Stop()
		if !h.next.IsZero() {
			timer.Reset(max(time.Until(h.next), pause))
		}
		h.mu.Unlock()
	}
}

// due returns who is to be looked at now, and sets their next time.
func (h *holds) due(now time.Time) (ws []*hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.all {
		if !w.due.After(now) {
			w.schedule(now)
			ws = append(ws, w)
		}
	}
	return ws
}
