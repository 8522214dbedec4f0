package filter

import (
	"fmt"
	"strings"
	"time"

	"opensmtpd-filters/pkg/proto"
)

// A Response is what a handler answers to a request. The zero value is
// Proceed. Handlers return it; nothing else can answer, so no request is
// answered twice.
type Response struct {
	decision  proto.Decision
	param     string
	delay     time.Duration
	undecided bool
	later     *later // set by Await
}

// Proceed passes the request to the next filter of the chain and then to smtpd.
func Proceed() Response { return Response{} }

// Undecided is Proceed from a handler that wants to be asked again, at the next
// phase. It is for handlers set by Decide.
func Undecided() Response { return Response{undecided: true} }

// Junk lets the mail pass, marked: smtpd adds "X-Spam: Yes" and a maildir with
// the junk option delivers into .Junk. Up to and including mail-from it holds
// for every later message of the connection, at rcpt-to and data for this one.
// smtpd knows no junk at commit; there it is Proceed.
func Junk() Response { return Response{decision: proto.Junk} }

// Reject refuses the command with a code from 400 to 599, an enhanced status
// code (RFC 3463; may be empty) and a text. The client stays connected; at
// connect, where smtpd would leave it hanging, Reject is Disconnect. The reply
// is one line: what is not printable ASCII becomes a question mark, what is
// over 500 bytes is cut.
func Reject(code int, enhanced, text string) Response {
	return Response{decision: proto.Reject, param: reply(code, enhanced, text)}
}

// Disconnect is Reject, after which smtpd closes the connection.
func Disconnect(code int, enhanced, text string) Response {
	return Response{decision: proto.Disconnect, param: reply(code, enhanced, text)}
}

// Rewrite replaces the name given at helo and ehlo, or the address at mail-from
// and rcpt-to. Elsewhere it is Proceed.
func Rewrite(param string) Response {
	return Response{decision: proto.Rewrite, param: param}
}

// After delays the answer. What is over MaxDelay is cut; see there for the
// other bounds.
func (r Response) After(d time.Duration) Response {
	r.delay = min(d, MaxDelay)
	return r
}

// Bounds of delayed answers. A delayed client costs a connection of smtpd, and
// smtpd does not tell that it has left before it is answered.
const (
	MaxDelay        = 30 * time.Second // of one answer
	maxDelaySession = 5 * time.Minute  // of one session in all
	maxDelayed      = 100              // sessions at once; further ones are not delayed
)

const (
	maxReply   = 500  // bytes
	maxRewrite = 1000 // bytes; an SMTP command has at most 2047 in smtpd
)

// reply makes a reply line that smtpd takes: "[45]dd text". smtpd disconnects
// with "421 Internal server error" for any other.
func reply(code int, enhanced, text string) string {
	if code < 400 || code > 599 {
		code = 451
	}
	if enhanced != "" {
		text = enhanced + " " + text
	}
	text = strings.TrimSpace(printable(text))
	if text == "" {
		text = "refused"
	}
	s := fmt.Sprintf("%d %s", code, text)
	return s[:min(len(s), maxReply)]
}

// printable returns s in printable ASCII: blanks for TAB, CR and LF, question
// marks for other bytes that are not.
func printable(s string) string {
	ok := func(c byte) bool { return ' ' <= c && c <= '~' }
	i := 0
	for i < len(s) && ok(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	b := []byte(s)
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\t' || c == '\r' || c == '\n':
			b[i] = ' '
		case !ok(c):
			b[i] = '?'
		}
	}
	return string(b)
}

// maxTurns bounds the handlers called for one answer.
const maxTurns = 100

// settle brings r to an answer, at once or once what it needs has happened.
func (e *engine[S]) settle(s *Session[S], r Response) {
	delay := r.delay
	for turns := 0; ; turns++ {
		switch {
		case r.later != nil:
			now := time.Now()
			if s.until.IsZero() {
				s.until = now.Add(e.opt.Deadline)
			}
			if e.hurried || now.After(s.until) || turns > maxTurns {
				r = Response{}
				continue
			}
			s.gen++
			n := e.noteOf(s, ready)
			if !r.later.ready(func() (lead func()) { e.post(n); return e.core.lead }) {
				s.later, s.answer = r.later, Response{delay: delay}
				e.wait(s, awaiting, expired, s.until.Sub(now))
				return
			}
			r = e.call(s, r.later.then)
		case s.req.decide && r.decision == "":
			s.req.decide = false
			r = e.decision(s)
		default:
			e.delay(s, r, max(delay, r.delay))
			return
		}
		delay = max(delay, r.delay)
	}
}

// settleLate is settle for what a handler has not answered in time.
func (e *engine[S]) settleLate(s *Session[S], r Response) {
	s.req.decide = s.req.decide && s.state == idle
	switch s.req.Phase {
	case 0: // it was no request
	case proto.DataLine:
		e.echo(s, s.line)
		s.line = nil
	default:
		e.settle(s, r)
	}
}

// decision is what Decide has to say to the request of s.
func (e *engine[S]) decision(s *Session[S]) Response {
	p, d := s.req.Phase, &s.decided
	if p == MailFrom {
		s.endTx(e.decideAt)
	}
	if d.made {
		if p == Commit && d.answer.decision == proto.Junk {
			return Proceed() // it is too late
		}
		return d.answer
	}
	d.made, d.pending = true, true
	req := s.req.Request
	return e.call(s, func() Response { return e.decide(s, req) })
}

// delay answers with r after d, within the bounds.
func (e *engine[S]) delay(s *Session[S], r Response, d time.Duration) {
	d = min(d, maxDelaySession-s.delayed)
	if d <= 0 || e.delayed >= maxDelayed || e.hurried {
		e.result(s, r)
		return
	}
	s.gen++
	s.delayed += d
	e.delayed++
	s.answer = r
	e.wait(s, delayed, due, d)
}

// result writes the answer to the request of s.
func (e *engine[S]) result(s *Session[S], r Response) {
	d, param, err := r.fit(s.req.Phase)
	if err != nil {
		e.core.log.Error(s.ID, "err", err)
	}
	if d == proto.Junk && !s.mark(s.req.Phase) {
		d = proto.Proceed
	}
	s.decided.keep(r)
	e.put = proto.AppendResult(e.put, s.req.version, s.key, s.req.token, d, param)
	s.req, s.until = request{}, time.Time{}
}

// fit turns r into an answer that smtpd survives and that does at phase what r
// means. The error tells what a handler should not have answered.
func (r Response) fit(phase proto.Phase) (proto.Decision, string, error) {
	switch r.decision {
	case proto.Junk:
		if phase == proto.Commit {
			return proto.Proceed, "", fmt.Errorf("junk is not possible at commit")
		}
		return proto.Junk, "", nil
	case proto.Reject, proto.Disconnect:
		// After a reject at connect smtpd sends no banner and waits.
		if phase == proto.Connect {
			return proto.Disconnect, r.param, nil
		}
		return r.decision, r.param, nil
	case proto.Rewrite:
		param := r.param
		if param == "" && phase != proto.MailFrom || len(param) > maxRewrite || strings.ContainsAny(param, "\r\n\x00") {
			return proto.Proceed, "", fmt.Errorf("cannot rewrite to %.100q", param)
		}
		switch phase {
		case proto.Helo, proto.Ehlo:
			return proto.Rewrite, param, nil
		case proto.MailFrom, proto.RcptTo:
			if !strings.HasPrefix(param, "<") {
				param = "<" + param + ">"
			}
			return proto.Rewrite, param, nil
		}
		return proto.Proceed, "", fmt.Errorf("rewrite is not possible at %s", phase)
	}
	return proto.Proceed, "", nil
}
