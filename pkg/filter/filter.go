package filter

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/proto"
)

// Phase is a point of the SMTP dialogue at which smtpd asks.
type Phase = proto.Phase

// The phases, in the order of the dialogue. Lines of the message have a handler
// of their own, see OnDataLine.
const (
	Connect  = proto.Connect
	Helo     = proto.Helo
	Ehlo     = proto.Ehlo
	StartTLS = proto.StartTLS
	Auth     = proto.Auth // the argument holds the password
	MailFrom = proto.MailFrom
	RcptTo   = proto.RcptTo
	Data     = proto.Data
	Commit   = proto.Commit
	Rset     = proto.Rset
	Quit     = proto.Quit
	Noop     = proto.Noop
)

// Request is what smtpd asks.
type Request struct {
	Phase Phase
	// Arg is the argument of the command: the name at helo and ehlo, the
	// address without < and > at mail-from and rcpt-to. smtpd has checked its
	// syntax and nothing else.
	Arg string
}

// Options are the settings of a filter. The zero value works.
type Options struct {
	Log     *slog.Logger // default: slog.Default()
	Metrics *metrics.Set // default: none

	// Deadline is the longest that one request waits for its answer, delays
	// asked for with After aside. Default 15 s: SMTP clients wait for minutes
	// (RFC 5321 section 4.5.3.2), but everything a filter asks has
	// limits of its own that are far below.
	Deadline time.Duration

	// Reports are the events to register besides link-connect and
	// link-disconnect, instead of all that the fields of Session need. Those of
	// other events stay empty.
	Reports []proto.Event

	// Strict ends Run with an error on a line that would otherwise be logged
	// and skipped. It is for tests: a filter that ends takes smtpd down.
	Strict bool
}

// Filter is a program under smtpd. Set its handlers, then call Main.
//
// A handler runs while no other does, so it needs no lock and must not wait:
// work that waits is started with Go, and its result awaited with Await.
// (A handler that does not return is left behind after one to two seconds, and its
// session is let pass; till then all others wait.)
type Filter[S any] struct {
	opt        Options
	onSession  func(*Session[S])
	onClose    func(*Session[S])
	onReport   [proto.NumEvents]func(*Session[S], *proto.Line)
	on         [proto.NumPhases]func(*Session[S], Request) Response
	onDataLine func(*Session[S], []byte, *Lines)
	fields     []field[S]
	decideAt   Phase
	decide     func(*Session[S], Request) Response
}

// New returns a filter without handlers. S is what the program keeps of a
// session.
func New[S any](opt Options) *Filter[S] {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	if opt.Deadline == 0 {
		opt.Deadline = 15 * time.Second
	}
	return &Filter[S]{opt: opt}
}

// OnSession sets what is called for a new connection, before its connect
// request: the place to start lookups.
func (f *Filter[S]) OnSession(h func(*Session[S])) { f.onSession = h }

// OnClose sets what is called when a connection has ended.
func (f *Filter[S]) OnClose(h func(*Session[S])) { f.onClose = h }

// OnReport sets what is called for an event, in the place of what was set before,
// after the fields of the session have been brought up to date. The line is valid
// during the call.
func (f *Filter[S]) OnReport(e proto.Event, h func(*Session[S], *proto.Line)) {
	f.onReport[e] = h
}

// On sets what answers the requests of a phase.
//
// If an earlier filter of a chain junks, rewrites or refuses a command, later
// filters are not asked for it. What has to be decided should use Decide.
func (f *Filter[S]) On(p Phase, h func(*Session[S], Request) Response) { f.on[p] = h }

// Decide sets the decision of the filter: h is called at the first phase asked
// at or after the given one, which is one of connect, helo, mail-from, rcpt-to,
// data and commit (helo stands for ehlo too). Before mail-from it decides once
// for the session, and whatever the client does next gets the same answer; from
// mail-from on it decides once for each transaction. (A Rewrite is not repeated.) Where there is a handler
// set by On too, that one is called first, and must answer Proceed for h to be.
func (f *Filter[S]) Decide(p Phase, h func(*Session[S], Request) Response) {
	f.decideAt, f.decide = p, h
}

// OnDataLine sets what is called for every line of a message but the dot that
// ends it. The lines given to out take its place: the line itself, others, or
// none. The line is as the client sent it, without its line end and with a
// leading dot doubled; it is valid during the call.
func (f *Filter[S]) OnDataLine(h func(s *Session[S], line []byte, out *Lines)) { f.onDataLine = h }

// SetHeader makes the filter put a header field before the first line of each
// message, unless value gives "", and leave out fields of that name that came
// with the message.
func (f *Filter[S]) SetHeader(name string, value func(*Session[S]) string) {
	f.fields = append(f.fields, field[S]{name: name, value: value})
}

// AddHeader is SetHeader, but fields of that name that came with the message stay.
func (f *Filter[S]) AddHeader(name string, value func(*Session[S]) string) {
	f.fields = append(f.fields, field[S]{name: name, value: value, others: true})
}

// Main is Serve on the standard streams.
func (f *Filter[S]) Main() int { return f.Serve(os.Stdin, os.Stdout) }

// Serve runs the filter under smtpd and returns the exit status. SIGTERM and
// SIGINT end it like the end of the input does.
func (f *Filter[S]) Serve(in io.Reader, out io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// smtpd gives no signal when it ends; writing to it then must not kill us
	// before everything is in order.
	signal.Ignore(syscall.SIGPIPE)
	// SIGHUP is for those who read files again. Nobody may be there to notice.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	in, out = unblocked(in, out)
	if err := f.Run(ctx, in, out); err != nil {
		f.opt.Log.Error(err.Error())
		return 1
	}
	return 0
}

// Run speaks with smtpd until in ends, out is broken or ctx is done; then it
// answers what it has read, for at most a second, and returns nil. It returns
// an error only if the filter is Strict.
//
// All is written when Run returns, but for one case: ctx is done, and a write to
// out does not end within ten seconds, nor when a deadline is set, if out has
// SetWriteDeadline. Then that write goes on, and is the last. A read of in may go
// on too. While out does not take what is written nothing is read either, the
// end of in included.
func (f *Filter[S]) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	return newEngine(ctx, f, out).run(in)
}

// reports returns the events to register.
func (f *Filter[S]) reports() []proto.Event {
	want := f.opt.Reports
	if want == nil {
		want = []proto.Event{
			proto.LinkIdentify, proto.LinkTLS, proto.LinkAuth,
			proto.TxMail, proto.TxRcpt, proto.TxReset,
		}
	}
	var set [proto.NumEvents]bool
	set[proto.LinkConnect], set[proto.LinkDisconnect] = true, true
	for _, e := range want {
		set[e] = true
	}
	for e, h := range f.onReport {
		set[e] = set[e] || h != nil
	}
	var events []proto.Event
	for e, want := range set {
		if want {
			events = append(events, proto.Event(e))
		}
	}
	return events
}

// asked reports whether smtpd is to ask at a phase.
func (f *Filter[S]) asked(p Phase) bool {
	if p == proto.DataLine {
		return f.onDataLine != nil || f.fields != nil
	}
	return f.on[p] != nil || f.decide != nil && f.decides(p)
}

// decides reports whether p is a phase at which Decide's handler may be asked.
func (f *Filter[S]) decides(p Phase) bool {
	switch p {
	case Connect, Helo, Ehlo, MailFrom, RcptTo, Data, Commit:
		return p >= f.decideAt
	}
	return false
}
