package filter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/proto"
)

const (
	grace       = time.Second // for what is unanswered when the input ends
	stallAfter  = time.Second // a handler that takes longer is left behind
	maxHeld     = 64 << 20    // bytes of lines that wait for their session
	maxSessions = 100_000
	maxTurns    = 100 // handlers called for one answer
)

// loop is a run of a filter. One goroutine, the leader, does everything: it
// takes lines from the reader and notes from futures and timers, calls the
// handlers and fills the buffer for the writer. If a handler does not return,
// another goroutine takes the lead.
type loop[S any] struct {
	*Filter[S]
	core     core
	in       *reader
	out      *writer
	notes    chan note[S]
	quit     chan struct{} // closed when nobody takes notes any more
	finished chan struct{} // closed when the leader is done
	err      error         // valid once finished is closed

	sessions   map[proto.ID]*Session[S]
	registered bool
	busy       map[*Session[S]]bool // those in state waiting or stuck
	draining   *Session[S]          // whose queue is being handled
	held       int                  // bytes in the queues of sessions
	delayed    int                  // sessions whose answer is delayed
	ended      bool                 // nothing more is read
	hurry      <-chan time.Time     // after the end: the grace is over
	hurrying   bool
	stop       <-chan struct{} // ends the run like the end of the input

	chunk []byte // lines from the reader
	rest  []byte // those not handled yet
	line  *proto.Line
	put   []byte // answers for the writer
	lines *Lines

	// The turn is odd while a handler runs. Whoever changes an odd turn has
	// the lead: the goroutine that called the handler, when it returns, or
	// watch, which leaves it behind.
	turn  atomic.Uint64
	cur   *Session[S]
	watch *watch
}

// note tells the leader that a session may go on.
type note[S any] struct {
	s    *Session[S]
	gen  uint32 // of the wait that it ends
	what what
	r    Response // returned: the late answer
}

type what uint8

const (
	ready    what = iota // the future is done
	due                  // the delay is over
	expired              // the deadline has passed
	returned             // the handler has come back
)

func newLoop[S any](ctx context.Context, f *Filter[S]) *loop[S] {
	l := &loop[S]{
		Filter:   f,
		in:       newReader(),
		out:      newWriter(),
		notes:    make(chan note[S]),
		quit:     make(chan struct{}),
		finished: make(chan struct{}),
		sessions: make(map[proto.ID]*Session[S]),
		busy:     make(map[*Session[S]]bool),
		line:     new(proto.Line),
		put:      make([]byte, 0, bufferSize),
		lines:    &Lines{},
	}
	l.core.ctx = ctx
	l.core.log = f.opt.Log
	l.core.clients = make(map[netip.Prefix]int)
	l.core.said = make(map[string]*said)
	l.core.count = newCounters(f.opt.Metrics)
	l.watch = newWatch(&l.turn, l.takeOver)
	return l
}

func (l *loop[S]) run(in io.Reader, out io.Writer) error {
	// What is under way when the signal comes may end.
	work, cancel := context.WithCancel(context.WithoutCancel(l.core.ctx))
	stop := l.core.ctx.Done()
	l.stop = stop
	l.core.ctx = work
	go l.in.run(in, l.quit)
	go l.out.run(out)
	go l.lead()
	select {
	case <-l.finished:
	case <-stop:
		select {
		case <-l.finished:
		case <-time.After(10 * grace): // the output is blocked
		}
	}
	cancel()
	l.watch.off()
	close(l.quit)
	select {
	case <-l.out.ended:
	case <-time.After(grace):
	}
	return l.err
}

// lead is the loop itself.
func (l *loop[S]) lead() {
	l.handleRest() // what a leader before this one has left
	for !l.ended || len(l.busy) > 0 {
		l.flush()
		full := l.in.full
		if l.ended || l.held > maxHeld {
			full = nil
		}
		l.watch.off()
		select {
		case chunk, ok := <-full:
			l.watch.on()
			if !ok {
				l.endOfInput()
				break
			}
			l.chunk, l.rest = chunk, chunk
			l.handleRest()
		case n := <-l.notes:
			l.watch.on()
			l.take(n)
		case <-l.stop:
			l.stop = nil
			l.end()
		case <-l.hurry:
			l.watch.on()
			l.hurrying = true
			l.settleAll()
		case <-l.out.failed:
			// smtpd has gone.
			l.ended = true
			clear(l.busy)
		}
	}
	l.flush()
	close(l.out.full)
	close(l.finished)
}

func (l *loop[S]) handleRest() {
	for len(l.rest) > 0 && l.err == nil {
		i := bytes.IndexByte(l.rest, '\n')
		line := l.rest[:i]
		l.rest = l.rest[i+1:]
		l.handle(line)
	}
	if l.chunk != nil {
		l.in.done(l.chunk)
		l.chunk = nil
	}
}

func (l *loop[S]) flush() {
	if len(l.put) > 0 {
		l.put = l.out.swap(l.put)
	}
}

func (l *loop[S]) endOfInput() {
	if l.in.rest > 0 {
		l.skip(nil, errors.New("input ends in the middle of a line"))
	}
	if l.in.err != nil && l.in.err != io.EOF {
		l.core.complain("reading from smtpd", "err", l.in.err)
	}
	l.register() // even if it ended before smtpd was ready: then this is all there is to see
	l.end()
}

// end stops reading. What waits has the grace to end.
func (l *loop[S]) end() {
	if !l.ended {
		l.ended = true
		l.hurry = time.After(grace)
	}
}

// settleAll answers everything that still waits.
func (l *loop[S]) settleAll() {
	for s := range l.busy {
		l.take(note[S]{s: s, gen: s.gen, what: expired})
	}
}

// skip logs a line that is not understood. If the filter is strict it ends.
func (l *loop[S]) skip(line []byte, err error) {
	if l.opt.Strict {
		l.err = fmt.Errorf("%w: %.200q", err, line)
		l.ended = true
		clear(l.busy)
		return
	}
	l.core.count.skipped.Inc()
	l.core.complain("line skipped", "reason", err, "line", fmt.Sprintf("%.80q", line))
}

// handle takes one line, without its LF.
func (l *loop[S]) handle(line []byte) {
	if err := l.line.Parse(line); err != nil {
		l.skip(line, err)
		return
	}
	if l.line.Kind == proto.Config {
		if string(l.line.Key) == "ready" {
			l.register()
		}
		return
	}
	if l.line.Out {
		return
	}
	l.register()
	s := l.sessions[l.line.Session]
	if s != nil && (s.state == waiting || s.state == stuck) {
		s.queue = append(s.queue, slices.Clone(line))
		l.held += len(line)
		return
	}
	switch {
	case l.line.Kind == proto.Report:
		l.report(s)
	case l.line.Phase == proto.DataLine:
		l.dataLine(s)
	default:
		l.request(s)
	}
}

// register tells smtpd what to send, in a fixed order.
func (l *loop[S]) register() {
	if l.registered {
		return
	}
	l.registered = true
	for _, e := range l.reports() {
		l.put = e.AppendRegister(l.put)
	}
	for p := proto.Connect; p < proto.NumPhases; p++ {
		if l.asked(p) {
			l.put = p.AppendRegister(l.put)
		}
	}
	l.put = append(l.put, proto.Ready...)
}

// makeRoom ends the sessions of which nothing has come for longest, so that there
// is room for new ones. None is ended for its age alone: smtpd tells when a session
// ends, and a client can be quiet for days, with commands of which no report tells.
func (l *loop[S]) makeRoom() {
	l.core.complain("too many sessions, the quietest are forgotten", "limit", maxSessions)
	quiet := make([]*Session[S], 0, len(l.sessions))
	for _, s := range l.sessions {
		if s.state == idle || s.state == lost {
			quiet = append(quiet, s)
		}
	}
	slices.SortFunc(quiet, func(a, b *Session[S]) int { return cmp.Compare(a.micros, b.micros) })
	for _, s := range quiet[:min(len(quiet), maxSessions/16)] {
		l.close(s)
	}
}

func (l *loop[S]) report(s *Session[S]) {
	if l.line.Event == proto.LinkConnect {
		l.open(s)
		return
	}
	if s == nil {
		if l.line.Event != proto.LinkDisconnect {
			l.core.complain("report for an unknown session", "event", l.line.Event)
		}
		return
	}
	s.micros = l.line.Micros
	if l.line.Event == proto.LinkDisconnect {
		l.close(s)
		return
	}
	if s.state == lost {
		return
	}
	if err := s.update(l.line); err != nil {
		l.skip(l.line.Append(nil), err)
		return
	}
	if l.line.Event == proto.TxReset {
		s.txLife.end()
		s.endTx(l.decideAt)
	}
	if s.other {
		s.other = false
		s.endTx(l.decideAt)
	}
	if h := l.onReport[l.line.Event]; h != nil {
		s.req = request{}
		line := l.line // what a handler uses is its own: it may be left behind
		l.call(s, func() Response { h(s, line); return Response{} })
	}
}

// open begins a session. The id may be that of an old one.
func (l *loop[S]) open(old *Session[S]) {
	link, err := proto.ParseLink(l.line.Fields)
	if err != nil {
		l.skip(l.line.Append(nil), err)
		return
	}
	if old == nil && len(l.sessions) >= maxSessions {
		l.makeRoom()
	}
	s := &Session[S]{
		ID:     l.line.Session.String(),
		Src:    netip.AddrPortFrom(link.Src.Addr().Unmap(), link.Src.Port()),
		Dst:    netip.AddrPortFrom(link.Dest.Addr().Unmap(), link.Dest.Port()),
		RDNS:   link.RDNS,
		FCrDNS: link.FCrDNS == proto.Pass,
		run:    &l.core,
		key:    l.line.Session,
		micros: l.line.Micros,
	}
	l.sessions[s.key] = s
	if old != nil {
		l.closed(old)
	}
	if l.onSession != nil {
		l.call(s, func() Response { l.onSession(s); return Response{} })
	}
}

func (l *loop[S]) close(s *Session[S]) {
	delete(l.sessions, s.key)
	l.closed(s)
}

func (l *loop[S]) closed(s *Session[S]) {
	s.txLife.end()
	s.life.end()
	if l.onClose != nil && s.state != lost {
		s.req = request{}
		l.call(s, func() Response { l.onClose(s); return Response{} })
	}
}

func (l *loop[S]) request(s *Session[S]) {
	p := l.line.Phase
	l.core.count.requests[p].Inc()
	if s == nil {
		if l.opt.Strict {
			l.skip(l.line.Append(nil), errors.New("request for an unknown session"))
			return
		}
		l.core.complain("request for an unknown session", "phase", p)
		l.put = proto.AppendResult(l.put, l.line.Version, l.line.Session, l.line.Token, proto.Proceed, "")
		return
	}
	s.micros = l.line.Micros
	s.req = request{Request{Phase: p}, l.line.Version, l.line.Token, false}
	switch p {
	case proto.MailFrom:
		s.txLife.end()
	case proto.Data:
		s.msg = message{}
	}
	if s.state == lost {
		l.result(s, Response{})
		return
	}
	s.req.Arg = string(l.line.Fields)
	if p == MailFrom {
		s.asked = s.req.Arg
	}
	req := s.req.Request
	s.req.decide = l.decide != nil && l.decides(p)
	var r Response
	if h := l.on[p]; h != nil {
		r = l.call(s, func() Response { return h(s, req) })
	}
	l.settle(s, r)
}

// decision is what Decide has to say to the request of s.
func (l *loop[S]) decision(s *Session[S]) Response {
	p, d := s.req.Phase, &s.decided
	if p == MailFrom {
		s.endTx(l.decideAt)
	}
	if d.made {
		if p == Commit && d.answer.decision == proto.Junk {
			return Proceed() // it is too late
		}
		return d.answer
	}
	d.made, d.pending = true, true
	req := s.req.Request
	return l.call(s, func() Response { return l.decide(s, req) })
}

// dataLine passes one line of a message through the handlers.
func (l *loop[S]) dataLine(s *Session[S]) {
	raw := l.line.Fields
	if s == nil {
		if l.opt.Strict {
			l.skip(l.line.Append(nil), errors.New("line for an unknown session"))
			return
		}
		s = &Session[S]{key: l.line.Session, state: lost, msg: message{part: body}}
	}
	s.micros = l.line.Micros
	s.req = request{Request{Phase: proto.DataLine}, l.line.Version, l.line.Token, false}
	if s.state != lost && s.msg.part == start {
		l.setFields(s) // of a message without lines too
	}
	if s.state == lost || bytes.Equal(raw, dot) {
		l.echo(s, raw)
		return
	}
	text := clean(raw)
	if s.msg.part != body && l.forged(s, text) {
		s.msg.pass(text)
		return
	}
	if l.onDataLine == nil {
		l.echo(s, raw)
		return
	}
	l.begin(s)
	o, done := l.lines, false
	l.call(s, func() Response {
		l.onDataLine(s, text, o)
		done = true
		return Response{}
	})
	if !done {
		l.echo(s, raw)
		return
	}
	l.put = o.buf
	s.msg.pass(text)
}

// setFields puts the header fields of the filter, before the first line of a
// message.
func (l *loop[S]) setFields(s *Session[S]) {
	for _, f := range l.fields {
		value := ""
		l.call(s, func() Response { value = f.value(s); return Response{} })
		if value != "" {
			l.begin(s)
			l.lines.Put([]byte(f.name + ": " + printable(value)))
			l.put = l.lines.buf
		}
	}
}

// begin makes l.lines take what comes in place of a data line.
func (l *loop[S]) begin(s *Session[S]) {
	*l.lines = Lines{
		buf:     l.put,
		version: s.req.version,
		session: s.key,
		token:   s.req.token,
		header:  s.msg.part != body,
	}
}

// echo passes a data line as it came, or the dot that ends the message.
func (l *loop[S]) echo(s *Session[S], raw []byte) {
	l.begin(s)
	if bytes.Equal(raw, dot) {
		l.lines.end()
		s.msg = message{}
	} else {
		text := clean(raw)
		l.lines.put(text)
		s.msg.pass(text)
	}
	l.put = l.lines.buf
}

// call calls a handler. A panic counts as Proceed. If the handler has been left
// behind when it returns, its goroutine has no more to say than that.
func (l *loop[S]) call(s *Session[S], h func() Response) Response {
	l.cur = s
	turn := l.turn.Add(1)
	r := l.recovered(s, h)
	if !l.turn.CompareAndSwap(turn, turn+1) {
		l.send(note[S]{s: s, what: returned, r: r})
		runtime.Goexit()
	}
	return r
}

func (l *loop[S]) recovered(s *Session[S], h func() Response) (r Response) {
	defer func() {
		if p := recover(); p != nil {
			l.core.panicked(s.ID, p)
			r = Response{}
		}
	}()
	return h()
}

// takeOver leads on when the handler of the present session does not return.
// What that handler may still be using is left to it.
func (l *loop[S]) takeOver() {
	s := l.cur
	l.core.log.Error(s.ID, "err", "handler does not return", "phase", s.req.Phase)
	if s.req.Phase == proto.DataLine {
		s.line = bytes.Clone(l.line.Fields)
	}
	l.line, l.lines, l.put = new(proto.Line), new(Lines), append(make([]byte, 0, bufferSize), l.put...)
	if l.chunk != nil {
		l.chunk = nil
		l.in.done(make([]byte, bufferSize))
	}
	l.watch.on()
	l.wait(s, stuck, expired, max(0, l.opt.Deadline-2*stallAfter))
	if d := l.draining; d != nil {
		l.drain(d)
	}
	if l.hurrying {
		l.settleAll()
	}
	l.lead()
}

// settle brings r to an answer, at once or by a note.
func (l *loop[S]) settle(s *Session[S], r Response) {
	delay := r.delay
	for turns := 0; ; turns++ {
		switch {
		case r.later != nil:
			now := time.Now()
			if s.until.IsZero() {
				s.until = now.Add(l.opt.Deadline)
			}
			if l.hurrying || now.After(s.until) || turns > maxTurns {
				r = Response{}
				continue
			}
			s.gen++
			if !r.later.ready(l.notify(s, ready)) {
				s.later, s.answer = r.later, Response{delay: delay}
				l.wait(s, waiting, expired, s.until.Sub(now))
				return
			}
			r = l.call(s, r.later.then)
		case s.req.decide && r.decision == "":
			s.req.decide = false
			r = l.decision(s)
		default:
			l.delay(s, r, max(delay, r.delay))
			return
		}
		delay = max(delay, r.delay)
	}
}

// delay answers with r after d, within the bounds.
func (l *loop[S]) delay(s *Session[S], r Response, d time.Duration) {
	d = min(d, maxDelaySession-s.delayed)
	if d <= 0 || l.delayed >= maxDelayed || l.hurrying {
		l.result(s, r)
		return
	}
	s.gen++
	s.delayed += d
	l.delayed++
	s.later, s.answer = nil, r
	l.wait(s, waiting, due, d)
}

// wait puts a session to rest until a note comes: w after d, or another.
func (l *loop[S]) wait(s *Session[S], st state, w what, d time.Duration) {
	s.state = st
	l.busy[s] = true
	s.timer = time.AfterFunc(d, l.notify(s, w))
}

// notify returns a function that sends a note for the present wait.
func (l *loop[S]) notify(s *Session[S], w what) func() {
	n := note[S]{s: s, gen: s.gen, what: w}
	return func() { l.send(n) }
}

func (l *loop[S]) send(n note[S]) {
	select {
	case l.notes <- n:
	case <-l.quit:
	}
}

// take lets a session go on.
func (l *loop[S]) take(n note[S]) {
	s := n.s
	was, later := s.state, s.later
	if n.what == returned && was != stuck || n.what != returned && n.gen != s.gen {
		return // too late
	}
	s.timer.Stop()
	s.gen++
	s.state, s.later = idle, nil
	delete(l.busy, s)
	if was == waiting && later == nil {
		l.delayed--
		n.what, n.r = due, s.answer // also when the grace is over
	}
	switch n.what {
	case ready:
		delay := s.answer.delay
		r := l.call(s, later.then)
		r.delay = max(r.delay, delay)
		l.settle(s, r)
	case due:
		l.result(s, n.r)
	case expired:
		l.core.count.expired.Inc()
		l.core.log.Warn(s.ID, "err", "no answer in time, passed", "phase", s.req.Phase)
		if was == stuck {
			s.state = lost
		}
		l.pass(s, n.r)
	case returned:
		l.pass(s, n.r)
	}
	l.drain(s)
}

// pass answers what a handler has not answered in time.
func (l *loop[S]) pass(s *Session[S], r Response) {
	s.req.decide = s.req.decide && s.state == idle
	switch s.req.Phase {
	case 0:
	case proto.DataLine:
		l.echo(s, s.line)
		s.line = nil
	default:
		l.settle(s, r)
	}
}

// drain handles the lines that have come while the session waited.
func (l *loop[S]) drain(s *Session[S]) {
	l.draining = s
	for len(s.queue) > 0 && (s.state == idle || s.state == lost) {
		line := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		l.held -= len(line)
		l.handle(line)
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	l.draining = nil
}

// result writes the answer to the request of s.
func (l *loop[S]) result(s *Session[S], r Response) {
	d, param, err := r.fit(s.req.Phase)
	if err != nil {
		l.core.log.Error(s.ID, "err", err)
	}
	if d == proto.Junk && !s.mark(s.req.Phase) {
		d = proto.Proceed
	}
	s.decided.keep(r)
	l.put = proto.AppendResult(l.put, s.req.version, s.key, s.req.token, d, param)
	s.req, s.until = request{}, time.Time{}
}

// watch calls takeOver when one turn of a handler lasts longer than stallAfter.
type watch struct {
	turn   *atomic.Uint64
	over   func()
	active atomic.Bool
	seen   atomic.Uint64
	timer  *time.Timer
}

func newWatch(turn *atomic.Uint64, over func()) *watch {
	w := &watch{turn: turn, over: over}
	w.timer = time.AfterFunc(stallAfter, w.check)
	return w
}

// on begins to look, off ends it.
func (w *watch) on() {
	w.active.Store(true)
	w.timer.Reset(stallAfter)
}

func (w *watch) off() {
	w.active.Store(false)
	w.timer.Stop()
}

func (w *watch) check() {
	t := w.turn.Load()
	if t%2 == 1 && w.seen.Swap(t) == t && w.turn.CompareAndSwap(t, t+1) {
		w.over()
		return
	}
	if w.active.Load() {
		w.timer.Reset(stallAfter)
	}
}
