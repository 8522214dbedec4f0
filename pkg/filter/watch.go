package filter

import (
	"bytes"
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/proto"
)

// stallAfter is how long a handler may run. One that has not returned a second time
// it is looked at is left behind.
const stallAfter = time.Second

// watch looks once a second whether the handler that runs is the one of the last
// time. It does so only while there are handlers: a filter that has nothing to do
// does not wake up.
type watch struct {
	// turn is odd while a handler runs. Whoever changes an odd turn is inside the
	// engine from then on: the goroutine that called the handler, when it returns,
	// or watch, which leaves it behind.
	turn     atomic.Uint64
	seen     uint64 // the turn of the last time
	on       atomic.Bool
	timer    *time.Timer
	takeOver func()
}

func (w *watch) init(takeOver func()) {
	w.takeOver = takeOver
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
}

func (w *watch) off() { w.timer.Stop() }

// begins notes that a handler is called, and returns its turn.
func (w *watch) begins() uint64 {
	t := w.turn.Add(1)
	if !w.on.Load() && w.on.CompareAndSwap(false, true) {
		w.timer.Reset(stallAfter)
	}
	return t
}

// ends notes that the handler of a turn has returned. It is false if that was left
// behind.
func (w *watch) ends(turn uint64) bool { return w.turn.CompareAndSwap(turn, turn+1) }

func (w *watch) look() {
	t := w.turn.Load()
	if t != w.seen {
		w.seen = t
		w.timer.Reset(stallAfter)
		return
	}
	if t%2 == 1 && w.turn.CompareAndSwap(t, t+1) {
		w.timer.Reset(stallAfter)
		w.takeOver()
		return
	}
	// No handler has run for a second. One that begins now sees that nobody looks,
	// or is seen here.
	w.on.Store(false)
	if w.turn.Load() != t && w.on.CompareAndSwap(false, true) {
		w.timer.Reset(stallAfter)
	}
}

// call calls a handler. A panic counts as Proceed. If the handler has been left
// behind when it returns, its goroutine has no more to say than that.
func (e *engine[S]) call(s *Session[S], h func() Response) (r Response) {
	e.cur = s
	gen := s.gen
	turn := e.watch.begins()
	e.core.panicked(s.ID, guard.Call(func() error { r = h(); return nil }))
	if !e.watch.ends(turn) {
		late := r
		e.post(func() { e.happen(s, gen+1, returned, late) })
		e.lead()
		runtime.Goexit()
	}
	return r
}

// panicked logs a panic that has been recovered, and where it came from.
func (c *core) panicked(id string, err error) {
	if p, ok := errors.AsType[*guard.Panic](err); ok {
		c.count.panics.Inc()
		guard.Log(c.log, id, p)
	}
}

// takeOver goes on in the place of a goroutine whose handler does not return. What
// that handler may still be using is left to it.
func (e *engine[S]) takeOver() {
	s := e.cur
	e.core.log.Error(s.ID, "err", "handler does not return", "phase", s.req.Phase)
	if s.req.Phase == proto.DataLine {
		s.line = bytes.Clone(e.line.Fields)
	}
	e.line, e.data, e.put = new(proto.Line), new(Lines), bytes.Clone(e.put)
	if e.in != nil { // it is the reader
		go e.read(e.in.clone())
		e.in = nil
	}
	s.gen++
	e.wait(s, stuck, expired, max(0, e.opt.Deadline-2*stallAfter))
	if d := e.draining; d != nil {
		e.drain(d)
	}
	if e.hurried {
		e.hurry()
	}
	e.leave()
}
