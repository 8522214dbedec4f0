package filter

import "time"

// The life of a session, as far as it can be waited for. What happens to it is a
// line of smtpd, or a note of somebody who is not inside the engine; the table says
// what is then done. All of it is done by happen and, for lines, by handle.

// A state says what a session waits for.
type state uint8

const (
	idle     state = iota // for smtpd
	awaiting              // for work that its answer needs
	delayed               // for the time to give its answer
	stuck                 // for a handler that does not return
	lost                  // for smtpd, but it gets no handler any more: one has not returned
	numStates
)

// An event is what happens to a session.
type event uint8

const (
	said     event = iota // smtpd tells or asks something: a line
	ready                 // the work is done
	due                   // the delay is over
	expired               // the deadline of the request has passed, or the run ends
	returned              // the handler has come back, with its answer
	numEvents
)

// A step is what is done then.
type step uint8

const (
	ignore  step = iota // it comes too late
	handle              // the handlers are called
	queue               // the line is kept until the session goes on
	resume              // the request is settled, with the result of the work
	deliver             // the answer that was delayed is given
	proceed             // the request is settled as if it had no handler
	abandon             // the same, and the session is lost
	adopt               // the request is settled with the answer of the handler
	bypass              // the line is answered as if there was no handler
)

var machine = [numStates][numEvents]step{
	idle:     {said: handle},
	awaiting: {said: queue, ready: resume, expired: proceed},
	delayed:  {said: queue, due: deliver, expired: deliver},
	stuck:    {said: queue, expired: abandon, returned: adopt},
	lost:     {said: bypass},
}

// wait puts a session to rest until something happens: what after d, if nothing else
// does before.
func (e *engine[S]) wait(s *Session[S], st state, what event, d time.Duration) {
	s.state = st
	e.busy[s] = true
	n := e.noteOf(s, what)
	s.timer = time.AfterFunc(d, func() {
		e.post(n)
		e.lead()
	})
}

// noteOf returns a note that something happens to the present wait of a session.
func (e *engine[S]) noteOf(s *Session[S], what event) func() {
	gen := s.gen
	return func() { e.happen(s, gen, what, Response{}) }
}

// happen lets a session go on. Gen says which of its waits it is that something has
// happened to.
func (e *engine[S]) happen(s *Session[S], gen uint32, what event, r Response) {
	step := machine[s.state][what]
	if step == ignore || gen != s.gen || e.broken {
		return
	}
	later, answer := s.later, s.answer
	e.wake(s)
	switch step {
	case resume:
		r = e.call(s, later.then)
		r.delay = max(r.delay, answer.delay)
		e.settle(s, r)
	case deliver:
		e.result(s, answer)
	case proceed, abandon:
		e.core.count.expired.Inc()
		e.core.log.Warn(s.ID, "err", "no answer in time, passed", "phase", s.req.Phase)
		if step == abandon {
			s.state = lost
		}
		e.settleLate(s, r)
	case adopt:
		e.settleLate(s, r)
	}
	e.drain(s)
}

// wake ends the present wait of a session.
func (e *engine[S]) wake(s *Session[S]) {
	s.timer.Stop()
	s.gen++
	if s.state == delayed {
		e.delayed--
	}
	s.state, s.later, s.answer = idle, nil, Response{}
	delete(e.busy, s)
}

// drain handles the lines that have come while the session waited.
func (e *engine[S]) drain(s *Session[S]) {
	e.draining = s
	for len(s.queue) > 0 && machine[s.state][said] != queue {
		next := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		e.held -= len(next)
		e.handle(next)
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	if e.room != nil && e.held <= maxHeld {
		close(e.room)
		e.room = nil
	}
	e.draining = nil
}
