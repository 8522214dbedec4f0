package filter

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"opensmtpd-filters/pkg/proto"
)

// handle takes one line, without its LF.
func (e *engine[S]) handle(text []byte) {
	if err := e.line.Parse(text); err != nil {
		e.skip(text, err)
		return
	}
	if e.line.Kind == proto.Config {
		if string(e.line.Key) == "ready" {
			e.register()
		}
		return
	}
	if e.line.Out {
		return
	}
	e.register()
	e.lines++
	s := e.sessions[e.line.Session]
	if s != nil {
		s.last = e.lines
		switch machine[s.state][said] {
		case queue:
			e.keep(s, text)
			return
		case bypass:
			e.passLine(s)
			return
		}
	}
	switch {
	case e.line.Kind == proto.Report:
		e.report(s)
	case s == nil:
		e.stranger()
	case e.line.Phase == proto.DataLine:
		e.dataLine(s)
	default:
		e.request(s)
	}
}

// skip logs a line that is not understood. If the filter is strict it ends.
func (e *engine[S]) skip(text []byte, err error) {
	if e.opt.Strict {
		e.err = fmt.Errorf("%w: %.200q", err, text)
		e.giveUp()
		return
	}
	e.core.count.skipped.Inc()
	e.core.complaints.Warn("line skipped", "reason", err, "line", fmt.Sprintf("%.80q", text))
}

// keep keeps a line until its session goes on. If there are too many of them the
// reader waits.
func (e *engine[S]) keep(s *Session[S], text []byte) {
	s.queue = append(s.queue, slices.Clone(text))
	e.held += len(text)
	if e.held > maxHeld && e.room == nil {
		e.room = make(chan struct{})
	}
}

func (e *engine[S]) endOfInput() {
	if len(e.in.rest()) > 0 {
		e.skip(nil, errors.New("input ends in the middle of a line"))
	}
	if e.in.err != io.EOF {
		e.core.complaints.Warn("reading from smtpd", "err", e.in.err)
	}
	e.register() // even if it ended before smtpd was ready: then this is all there is to see
	e.end()
}

// register tells smtpd what to send, in a fixed order.
func (e *engine[S]) register() {
	if e.registered {
		return
	}
	e.registered = true
	for _, ev := range e.reports() {
		e.put = ev.AppendRegister(e.put)
	}
	for p := proto.Connect; p < proto.NumPhases; p++ {
		if e.asked(p) {
			e.put = p.AppendRegister(e.put)
		}
	}
	e.put = append(e.put, proto.Ready...)
}

func (e *engine[S]) report(s *Session[S]) {
	if e.line.Event == proto.LinkConnect {
		e.open(s)
		return
	}
	if s == nil {
		if e.line.Event != proto.LinkDisconnect {
			e.core.complaints.Warn("report for an unknown session", "event", e.line.Event)
		}
		return
	}
	s.micros = e.line.Micros
	if e.line.Event == proto.LinkDisconnect {
		e.close(s)
		return
	}
	if err := s.update(e.line); err != nil {
		e.skip(e.line.Append(nil), err)
		return
	}
	if e.line.Event == proto.TxReset {
		s.txLife.end()
		s.endTx(e.decideAt)
	}
	if s.other {
		s.other = false
		s.endTx(e.decideAt)
	}
	if h := e.onReport[e.line.Event]; h != nil {
		s.req = request{}
		l := e.line // what a handler uses is its own: it may be left behind
		e.call(s, func() Response { h(s, l); return Response{} })
	}
}

// open begins a session. The id may be that of an old one.
func (e *engine[S]) open(old *Session[S]) {
	link, err := proto.ParseLink(e.line.Fields)
	if err != nil {
		e.skip(e.line.Append(nil), err)
		return
	}
	if old == nil && len(e.sessions) >= maxSessions {
		e.makeRoom()
	}
	s := &Session[S]{
		ID:     e.line.Session.String(),
		Src:    netip.AddrPortFrom(link.Src.Addr().Unmap(), link.Src.Port()),
		Dst:    netip.AddrPortFrom(link.Dest.Addr().Unmap(), link.Dest.Port()),
		RDNS:   link.RDNS,
		FCrDNS: link.FCrDNS == proto.Pass,
		run:    &e.core,
		key:    e.line.Session,
		last:   e.lines,
		micros: e.line.Micros,
	}
	e.sessions[s.key] = s
	if old != nil {
		e.closed(old)
	}
	if e.onSession != nil {
		e.call(s, func() Response { e.onSession(s); return Response{} })
	}
}

// makeRoom ends the sessions of which nothing has come for longest, so that there
// is room for new ones. None is ended for its age: smtpd tells when a session ends,
// and a client can be quiet for days, with commands of which no report tells. Nor
// does a clock matter, smtpd's or ours: what counts is the order of lines.
func (e *engine[S]) makeRoom() {
	e.core.complaints.Warn("too many sessions, the quietest are forgotten", "limit", maxSessions)
	quiet := make([]*Session[S], 0, len(e.sessions))
	for _, s := range e.sessions {
		if s.state == idle || s.state == lost {
			quiet = append(quiet, s)
		}
	}
	slices.SortFunc(quiet, func(a, b *Session[S]) int { return cmp.Compare(a.last, b.last) })
	for _, s := range quiet[:min(len(quiet), maxSessions/16)] {
		e.close(s)
	}
}

func (e *engine[S]) close(s *Session[S]) {
	delete(e.sessions, s.key)
	e.closed(s)
}

func (e *engine[S]) closed(s *Session[S]) {
	s.txLife.end()
	s.life.end()
	if e.onClose != nil && s.state != lost {
		s.req = request{}
		e.call(s, func() Response { e.onClose(s); return Response{} })
	}
}

// ask makes the line the request that s waits with for its answer.
func (e *engine[S]) ask(s *Session[S]) {
	s.micros = e.line.Micros
	s.req = request{Request: Request{Phase: e.line.Phase}, version: e.line.Version, token: e.line.Token}
	switch e.line.Phase {
	case proto.DataLine:
		return
	case proto.MailFrom:
		s.txLife.end()
	case proto.Data:
		s.msg = message{}
	}
	e.core.count.requests[e.line.Phase].Inc()
}

func (e *engine[S]) request(s *Session[S]) {
	e.ask(s)
	p := e.line.Phase
	s.req.Arg = string(e.line.Fields)
	if p == MailFrom {
		s.asked = s.req.Arg
	}
	s.req.decide = e.decide != nil && e.decides(p)
	var r Response
	if h := e.on[p]; h != nil {
		req := s.req.Request
		r = e.call(s, func() Response { return h(s, req) })
	}
	e.settle(s, r)
}

// dataLine passes one line of a message through the handlers.
func (e *engine[S]) dataLine(s *Session[S]) {
	raw := e.line.Fields
	e.ask(s)
	if s.msg.part == start {
		e.setFields(s) // of a message without lines too
	}
	if bytes.Equal(raw, dot) {
		e.echo(s, raw)
		return
	}
	text := clean(raw)
	if s.msg.part != body && e.forged(s, text) {
		s.msg.pass(text)
		return
	}
	if e.onDataLine == nil {
		e.echo(s, raw)
		return
	}
	e.begin(s)
	o, done := e.data, false
	e.call(s, func() Response {
		e.onDataLine(s, text, o)
		done = true
		return Response{}
	})
	if !done {
		e.echo(s, raw)
		return
	}
	e.put = o.buf
	s.msg.pass(text)
}

// setFields puts the header fields of the filter, before the first line of a
// message.
func (e *engine[S]) setFields(s *Session[S]) {
	for _, f := range e.fields {
		value := ""
		e.call(s, func() Response { value = f.value(s); return Response{} })
		if value != "" {
			e.begin(s)
			e.data.Put([]byte(f.name + ": " + printable(value)))
			e.put = e.data.buf
		}
	}
}

// begin makes data take what comes in place of a data line.
func (e *engine[S]) begin(s *Session[S]) {
	*e.data = Lines{
		buf:     e.put,
		version: s.req.version,
		session: s.key,
		token:   s.req.token,
		header:  s.msg.part != body,
	}
}

// echo passes a data line as it came, or the dot that ends the message.
func (e *engine[S]) echo(s *Session[S], raw []byte) {
	e.begin(s)
	if bytes.Equal(raw, dot) {
		e.data.end()
		s.msg = message{}
	} else {
		text := clean(raw)
		e.data.put(text)
		s.msg.pass(text)
	}
	e.put = e.data.buf
}

// passLine answers a line of a session as if there was no handler.
func (e *engine[S]) passLine(s *Session[S]) {
	switch {
	case e.line.Kind == proto.Report && e.line.Event == proto.LinkConnect:
		e.open(s)
	case e.line.Kind == proto.Report && e.line.Event == proto.LinkDisconnect:
		e.close(s)
	case e.line.Kind == proto.Report:
	case e.line.Phase == proto.DataLine:
		e.ask(s)
		e.echo(s, e.line.Fields)
	default:
		e.ask(s)
		e.result(s, Response{})
	}
}

// stranger answers a request of a session that smtpd has not told of.
func (e *engine[S]) stranger() {
	if e.opt.Strict {
		e.skip(e.line.Append(nil), errors.New("request for an unknown session"))
		return
	}
	e.core.complaints.Warn("request for an unknown session", "phase", e.line.Phase)
	e.passLine(&Session[S]{key: e.line.Session, state: lost, msg: message{part: body}})
}
