package program

import (
	"cmp"
	"context"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/spf"
)

// A Gate asks a check for its verdict at the phase of -phase, or at the next one
// that smtpd asks at, unless the client, its sender or the recipient is exempt;
// and answers, logs and counts what it says.
//
//	connect, helo           once for the session
//	mail-from               once for a transaction; authenticated users pass
//	rcpt-to                 each recipient by itself; junk and delay are for data
//	data                    once for a message
//
// A message that is not refused has one line of the log, at its last phase. Of the
// recipients of a transaction that are refused the first has a line, the others
// are counted in another at the end.
type Gate[S any] struct {
	*Program
	// Only has clients judged at this phase, which is before rcpt-to, and at no
	// later one in its place: nothing else is asked of smtpd.
	Only bool
	// Visit returns where the Gate keeps what it needs to know of a session.
	Visit func(*filter.Session[S]) *Visit
	// Judge returns then(verdict), or an Await of what has to be known first. The
	// phase is that of r, -phase or a later one. What r is about is in r.Arg: the
	// session has the HELO name and the sender once smtpd has accepted them.
	Judge func(s *filter.Session[S], r filter.Request, then func(Verdict) filter.Response) filter.Response

	// These may be nil.
	Recipient func(addr string) exempt.Verdict                      // who is exempt beside those of the lists
	Exempted  func(s *filter.Session[S], v exempt.Verdict)          // is told of an exempt message, once its recipients are known
	SPF       func(s *filter.Session[S]) *filter.Future[spf.Result] // of the sender, if the program asks anyway; nil if it does not

	spf *spf.Checker
}

// A Visit is a Gate's part of the state of a session.
type Visit struct {
	delayed bool // the session has waited

	// Of the transaction.
	judged  bool   // it was, or the client was before it
	done    bool   // the message has its answer
	from    string // the sender that spf and sender are about
	asked   bool   // sender is known
	sender  exempt.Verdict
	unclear bool // whether it is exempt: SPF could not be had
	spf     *filter.Future[spf.Result]
	untold  int    // recipients that are not exempt, that smtpd may take and not tell of
	counted string // the newest of them
	refused int    // recipients
	line    []any  // of the log, for the first of them
}

// Refused reports whether a recipient of the transaction was refused, or would have
// been.
func (v *Visit) Refused() bool { return v.refused > 0 }

// Handle sets the handlers of the gate: those of the phases and, if the phase is
// mail-from or later, that of tx-reset. A program that sets its own for tx-reset
// calls Reset there.
func (g *Gate[S]) Handle(f *filter.Filter[S]) {
	if g.Phase >= filter.MailFrom {
		f.OnReport(proto.TxReset, func(s *filter.Session[S], _ *proto.Line) { g.Reset(s) })
	}
	if g.Only {
		f.On(g.Phase, g.decide)
		return
	}
	if g.Phase < filter.RcptTo {
		f.Decide(g.Phase, g.decide)
		return
	}
	f.On(filter.RcptTo, g.Rcpt)
	f.On(filter.Data, g.message)
	f.On(filter.Commit, g.message)
}

// Begin reports whether a new client will be judged, as far as can be known: if
// not, nothing needs to be looked up for it.
func (g *Gate[S]) Begin(s *filter.Session[S]) bool {
	return !g.client(s).Exempt
}

// Exemption goes on with whether somebody is exempt at a request: the client; from
// mail-from on the sender; at rcpt-to the recipient, and at data and commit all of
// them.
func (g *Gate[S]) Exemption(s *filter.Session[S], r filter.Request, then func(exempt.Verdict) filter.Response) filter.Response {
	v, from := g.client(s), s.Tx.From
	if !v.Exempt {
		switch r.Phase {
		case filter.MailFrom:
			from = r.Arg
			g.Reset(s)
		case filter.RcptTo:
			v = g.recipient(s, r.Arg)
		case filter.Data, filter.Commit:
			v = g.recipients(s)
		default:
			return then(v)
		}
	}
	if v.Exempt {
		return then(v)
	}
	return g.Sender(s, from, then)
}

// client says whether the client is exempt.
func (g *Gate[S]) client(s *filter.Session[S]) exempt.Verdict {
	return g.Exempt.Client(ClientOf(s))
}

// ClientOf returns who is connected, for the lists.
func ClientOf[S any](s *filter.Session[S]) exempt.Client {
	c := exempt.Client{Addr: s.Src.Addr(), User: s.User, Local: s.Unix()}
	if s.FCrDNS {
		c.Name = s.RDNS
	}
	return c
}

// Judged reports whether the present message, or its client, was judged and not
// exempt: whether there is something to say of it in a header field. If not, the
// function given to Filter.SetHeader returns "".
func (g *Gate[S]) Judged(s *filter.Session[S]) bool {
	return g.Visit(s).judged && !g.client(s).Exempt
}

// Reset ends what holds for a transaction: at tx-reset, and at MAIL FROM, for of
// one that was refused smtpd tells nothing.
func (g *Gate[S]) Reset(s *filter.Session[S]) {
	v := g.Visit(s)
	if v.refused > 1 {
		g.Log.Info(s.ID, append(v.line, "more", v.refused-1)...)
	}
	*v = Visit{delayed: v.delayed}
}

// decide answers before recipients are known.
func (g *Gate[S]) decide(s *filter.Session[S], r filter.Request) filter.Response {
	if c := g.client(s); c.Exempt {
		return Respond(g.Program, s, r, Verdict{By: c.By, Quiet: c.Own})
	}
	if r.Phase < filter.MailFrom {
		return g.judge(s, r, "")
	}
	from := s.Tx.From
	if r.Phase == filter.MailFrom {
		g.Reset(s) // of one that was refused there is no tx-reset
		from = r.Arg
	}
	return g.Sender(s, from, func(v exempt.Verdict) filter.Response {
		if v.Exempt {
			return Respond(g.Program, s, r, Verdict{By: v.By})
		}
		return g.judge(s, r, "")
	})
}

func (g *Gate[S]) judge(s *filter.Session[S], r filter.Request, rcpt string) filter.Response {
	return g.Judge(s, r, func(v Verdict) filter.Response {
		v.Rcpt = rcpt
		g.Visit(s).judged = true
		g.once(s, &v)
		return Respond(g.Program, s, r, g.Soften(s, v))
	})
}

// once takes the delay from all but the first verdict on a session.
func (g *Gate[S]) once(s *filter.Session[S], v *Verdict) {
	visit := g.Visit(s)
	if visit.delayed {
		v.Action.Delay = 0
	}
	visit.delayed = visit.delayed || v.Action.Delay > 0
}

// Soften returns a refusal for now in the place of one for good, if the sender would
// be exempt and only the DNS could not tell: it comes again when that can. It is
// for programs that answer by themselves; the Gate does so by itself.
func (g *Gate[S]) Soften(s *filter.Session[S], v Verdict) Verdict {
	if g.Visit(s).unclear && v.Action.Refuses() {
		v.Action.Name, v.Reply = cli.Defer, v.Reply.Temporary()
		v.Keys = append(v.Keys, "note", "SPF of a listed sender is not known")
	}
	return v
}

// Sender goes on when it is known whether the sender is exempt. SPF is asked only
// where it matters for that; if it does not answer in time the sender is not, and
// is refused for now at most.
func (g *Gate[S]) Sender(s *filter.Session[S], from string, then func(exempt.Verdict) filter.Response) filter.Response {
	v := g.Visit(s)
	if v.from != from {
		v.from, v.asked, v.unclear, v.spf = from, false, false, nil
	}
	if v.asked {
		return then(v.sender)
	}
	keep := func(sender exempt.Verdict) filter.Response {
		v.asked, v.sender = true, sender
		return then(sender)
	}
	if !g.Exempt.SenderNeedsSPF(from) {
		return keep(g.Exempt.Sender(from, false))
	}
	if v.spf == nil && g.SPF != nil {
		v.spf = g.SPF(s)
	}
	if v.spf == nil {
		if g.spf == nil {
			g.spf = g.Program.spf()
		}
		q := spf.Query{Addr: s.Src.Addr(), Helo: s.Helo, Sender: from}
		v.spf = filter.GoTx(s, g.timeout(), func(ctx context.Context) spf.Result { return g.spf.Check(ctx, q) })
	}
	return filter.Await(v.spf, func(r spf.Result, err error) filter.Response {
		v.unclear = err != nil || r.Status == spf.TempError
		return keep(g.Exempt.Sender(from, err == nil && r.Status == spf.Pass))
	})
}

// timeout is that of SPF: what a program without -timeout asks is no more.
func (g *Gate[S]) timeout() time.Duration { return cmp.Or(g.Program.Timeout.Value, 5*time.Second) }

// maxTold is the longest address, in bytes, of which smtpd tells: it takes longer
// ones, and there is no tx-mail and tx-rcpt.
const maxTold = 255

// recipient says whether a recipient is exempt. One that is not, and of which
// smtpd will not tell, is remembered: the message is not for exempt ones only.
func (g *Gate[S]) recipient(s *filter.Session[S], addr string) exempt.Verdict {
	v := g.exemptRcpt(addr)
	if !v.Exempt && len(addr) > maxTold {
		visit := g.Visit(s)
		visit.untold++
		visit.counted = addr
	}
	return v
}

func (g *Gate[S]) exemptRcpt(addr string) exempt.Verdict {
	v := g.Exempt.Recipient(addr)
	if !v.Exempt && g.Recipient != nil {
		v = g.Recipient(addr)
	}
	return v
}

// recipients says whether mail to all recipients is exempt.
func (g *Gate[S]) recipients(s *filter.Session[S]) (v exempt.Verdict) {
	if g.Visit(s).untold > 0 {
		return exempt.Verdict{}
	}
	for _, rcpt := range s.Tx.Rcpts {
		if v = g.exemptRcpt(rcpt); !v.Exempt {
			break
		}
	}
	return v
}

// Rcpt answers for one recipient.
func (g *Gate[S]) Rcpt(s *filter.Session[S], r filter.Request) filter.Response {
	if g.Phase > filter.RcptTo {
		g.recipient(s, r.Arg)
		return filter.Proceed()
	}
	return g.Exemption(s, r, func(v exempt.Verdict) filter.Response {
		if v.Exempt {
			return filter.Proceed() // the message has its line at data
		}
		return g.Judge(s, r, func(v Verdict) filter.Response {
			g.Visit(s).judged = true
			if !v.Action.Refuses() {
				return filter.Proceed() // the message has its delay, too, at data
			}
			return g.Refuse(s, r, g.Soften(s, v))
		})
	})
}

// Refuse refuses a recipient. The first one of a transaction is logged; how many
// more there were, at its end.
func (g *Gate[S]) Refuse(s *filter.Session[S], r filter.Request, v Verdict) filter.Response {
	v.Rcpt = r.Arg
	visit := g.Visit(s)
	if visit.counted != "" && visit.counted == r.Arg && !g.DryRun {
		visit.untold-- // smtpd does not take it
		visit.counted = ""
	}
	if visit.refused++; visit.refused == 1 {
		visit.line = g.line(v, who(s, v))
		return Respond(g.Program, s, r, v)
	}
	g.Metrics.Decision(v.word()).Inc()
	if g.DryRun {
		return filter.Proceed()
	}
	return Answer(v)
}

// message answers when all recipients are known.
func (g *Gate[S]) message(s *filter.Session[S], r filter.Request) filter.Response {
	visit := g.Visit(s)
	if visit.done && r.Phase == filter.Commit {
		return filter.Proceed() // it was answered at data
	}
	visit.done = true
	if g.DryRun && visit.Refused() {
		return filter.Proceed() // all is said
	}
	return g.Exemption(s, r, func(v exempt.Verdict) filter.Response {
		if v.Exempt {
			visit.judged = false
			if g.Exempted != nil {
				g.Exempted(s, v)
			}
			return Respond(g.Program, s, r, Verdict{By: v.By, Quiet: v.Own})
		}
		return g.judge(s, r, "")
	})
}
