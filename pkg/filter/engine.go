package filter

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/proto"
)

const (
	bufferSize  = 128 << 10
	grace       = time.Second // for what is unanswered when the input ends
	maxHeld     = 64 << 20    // bytes of lines that wait for their session
	maxSessions = 100_000
)

// engine is a run of a filter. There is no goroutine of its own that does the work:
// whoever has something to do enters, does it, writes what smtpd is to get, and
// leaves. One goroutine is inside at a time.
//
//   - The reader enters with the lines it has read, and handles them (handle.go).
//   - Work that is done, and a timer, leave a note and enter if nobody is inside
//     (lead). If somebody is, it sees to the note before it leaves.
//   - Watch enters in the place of a goroutine whose handler does not return
//     (watch.go).
//
// So nobody waits to get in but the reader, and a line is read, handled and
// answered by one goroutine.
type engine[S any] struct {
	*Filter[S]
	core core
	out  io.Writer

	inside   chan struct{} // holds a token while somebody is inside
	quit     chan struct{} // closed when Run returns
	finished chan struct{} // closed when all is answered and written
	over     atomic.Bool   // Run has returned: nothing is written any more

	notesMu sync.Mutex
	notes   []func() // to be called inside

	// All below is for who is inside.

	in         *input // the reader's, if it is the reader
	sessions   map[proto.ID]*Session[S]
	lines      uint64 // how many were handled
	registered bool
	busy       map[*Session[S]]bool // those that wait for a note
	draining   *Session[S]          // whose queue is being handled
	held       int                  // bytes in the queues of sessions
	room       chan struct{}        // the reader waits until it is closed, if it is not nil
	delayed    int                  // sessions whose answer is delayed
	ended      bool                 // nothing more is read
	hurried    bool                 // nothing is waited for any more
	broken     bool                 // smtpd does not take what is written
	err        error                // of a filter that is strict

	line *proto.Line
	put  []byte      // what smtpd is to get
	data *Lines      // what comes in place of a data line
	cur  *Session[S] // whose handler is called

	watch watch
}

func newEngine[S any](ctx context.Context, f *Filter[S], out io.Writer) *engine[S] {
	e := &engine[S]{
		Filter:   f,
		out:      out,
		inside:   make(chan struct{}, 1),
		quit:     make(chan struct{}),
		finished: make(chan struct{}),
		sessions: make(map[proto.ID]*Session[S]),
		busy:     make(map[*Session[S]]bool),
		line:     new(proto.Line),
		data:     new(Lines),
	}
	e.core = core{
		ctx: ctx, log: f.opt.Log, lead: e.lead,
		complaints: guard.Complaints{Log: f.opt.Log},
		clients:    make(map[netip.Prefix]int),
		count:      newCounters(f.opt.Metrics),
	}
	e.watch.init(e.takeOver)
	return e
}

func (e *engine[S]) run(in io.Reader) error {
	stop := e.core.ctx.Done()
	// What is under way when the signal comes may end.
	work, cancel := context.WithCancel(context.WithoutCancel(e.core.ctx))
	e.core.ctx = work
	go e.read(newInput(in))
	select {
	case <-e.finished:
	case <-stop:
		e.post(e.end)
		go e.lead() // not this one: it may be left behind
		select {
		case <-e.finished:
		case <-time.After(10 * grace): // a write does not end
			if out, ok := e.out.(interface{ SetWriteDeadline(time.Time) error }); ok && out.SetWriteDeadline(time.Now()) == nil {
				select {
				case <-e.finished:
				case <-time.After(grace):
				}
			}
		}
	}
	e.over.Store(true)
	e.watch.off()
	cancel()
	close(e.quit)
	return e.err
}

// enter waits until nobody else is inside.
func (e *engine[S]) enter() { e.inside <- struct{}{} }

func (e *engine[S]) tryEnter() bool {
	select {
	case e.inside <- struct{}{}:
		return true
	default:
		return false
	}
}

// leave sees to what has been noted meanwhile, writes what smtpd is to get, and lets
// the next one in.
func (e *engine[S]) leave() {
	in := e.in
	for {
		for f := e.note(); f != nil; f = e.note() {
			f()
		}
		e.flush()
		if e.ended && len(e.busy) == 0 {
			e.finish()
		}
		e.in = nil
		<-e.inside
		// Who noted something before that has found us inside.
		if !e.noted() || !e.tryEnter() {
			return
		}
		e.in = in
	}
}

// post leaves a note. Whoever does must not be inside, or lead afterwards.
func (e *engine[S]) post(f func()) {
	e.notesMu.Lock()
	defer e.notesMu.Unlock()
	e.notes = append(e.notes, f)
}

// lead sees to it that notes are seen to. It calls handlers, so it is for a
// goroutine that holds no lock and may be left behind: then it does not return.
func (e *engine[S]) lead() {
	if !e.over.Load() && e.tryEnter() {
		e.leave()
	}
}

// note takes the next note. They are taken one by one, for the first may call a
// handler that does not return.
func (e *engine[S]) note() (f func()) {
	e.notesMu.Lock()
	defer e.notesMu.Unlock()
	if len(e.notes) == 0 {
		return nil
	}
	f = e.notes[0]
	if e.notes = e.notes[1:]; len(e.notes) == 0 {
		e.notes = nil
	}
	return f
}

func (e *engine[S]) noted() bool {
	e.notesMu.Lock()
	defer e.notesMu.Unlock()
	return len(e.notes) > 0
}

// read is the reader.
func (e *engine[S]) read(in *input) {
	for {
		e.enter()
		e.in = in
		e.handleLines()
		ended, room := e.ended, e.room
		e.leave()
		if room != nil {
			select {
			case <-room:
			case <-e.quit:
			}
		}
		if ended {
			return
		}
		in.fill()
	}
}

// handleLines handles what the reader has read.
func (e *engine[S]) handleLines() {
	for !e.ended {
		line, ok := e.in.next()
		if !ok {
			if e.in.err != nil {
				e.endOfInput()
			}
			return
		}
		e.handle(line)
		if len(e.put) >= bufferSize {
			e.flush()
		}
	}
}

// flush writes what smtpd is to get. If it is not taken, nobody goes on: so nothing
// grows while smtpd does not read.
func (e *engine[S]) flush() {
	if len(e.put) == 0 {
		return
	}
	if !e.broken && !e.over.Load() {
		if _, err := e.out.Write(e.put); err != nil {
			e.giveUp() // smtpd has gone
			e.broken = true
		}
	}
	if e.put = e.put[:0]; cap(e.put) > 4*bufferSize {
		e.put = nil // one long line shall not cost memory for ever
	}
}

// end stops reading. What waits has the grace to end.
func (e *engine[S]) end() {
	if e.ended {
		return
	}
	e.ended = true
	time.AfterFunc(grace, func() {
		e.post(e.hurry)
		e.lead()
	})
}

// hurry answers everything that still waits.
func (e *engine[S]) hurry() {
	e.hurried = true
	for s := range e.busy {
		e.happen(s, s.gen, expired, Response{})
	}
}

// giveUp ends the run at once.
func (e *engine[S]) giveUp() {
	e.ended = true
	clear(e.busy)
}

func (e *engine[S]) finish() {
	select {
	case <-e.finished:
	default:
		close(e.finished)
	}
}
