package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/spf"
)

// What is counted, beside the decisions.
var (
	exemptTotal = metrics.Desc{Name: "filter_greylist_exempt_total",
		Help: "Messages that were not greylisted, by why: ours, or what is exempt.", Labels: []string{"by"}}
	storeErrorsTotal = metrics.Desc{Name: "filter_greylist_store_errors_total",
		Help: "Messages that passed, or were not learned from, because the records could not be used."}
)

// storeTimeout is what a message waits for the store before it passes.
const storeTimeout = 200 * time.Millisecond

// trapTime is how long a client is refused that has written to a trap.
const trapTime = 24 * time.Hour

// learnTimeout is for what no client waits for.
const learnTimeout = 5 * time.Second

// state is what is kept of a session.
type state struct {
	host   string // as smtpd greets
	spf    *filter.Future[spf.Result]
	client *filter.Future[greylist.Client] // nil if who is known, or nobody has asked
	who    greylist.Client
	known  bool
	junked scope
	trap   string // the line of -trap that the transaction has met, if it springs it only at DATA
	header string // what X-Greylist says of the present message
}

// filter returns the filter with its handlers.
func (c *checker) filter() *filter.Filter[state] {
	f := filter.New[state](filter.Options{
		Log: c.log, Metrics: c.metrics,
		Deadline: max(15*time.Second, c.flags.Timeout.Value+5*time.Second),
	})
	f.OnReport(proto.TxMail, c.mailed)
	f.OnReport(proto.TxReset, c.ended)
	f.OnReport(proto.FilterResponse, c.taken)
	f.OnReport(proto.TxRcpt, c.accepted)
	if len(c.flags.traps) > 0 {
		f.On(filter.RcptTo, c.trap)
	}
	f.Decide(c.flags.phase, c.decide)
	if c.flags.learn {
		f.OnReport(proto.TxCommit, c.committed)
	}
	if c.flags.header {
		f.OnReport(proto.LinkGreeting, c.greeted)
		f.SetHeader("X-Greylist", func(s *filter.Session[state]) string { return s.Local.header })
	}
	return f
}

func (c *checker) greeted(s *filter.Session[state], l *proto.Line) {
	s.Local.host = string(l.Fields)
}

// mailed begins a transaction: while the client names its recipients, the DNS is
// asked about the sender.
func (c *checker) mailed(s *filter.Session[state], _ *proto.Line) {
	if _, _, ok := c.exempt(s.Src.Addr(), s.User, s.RDNS, s.FCrDNS); ok || s.Tx.ID == "" {
		return
	}
	c.client(s)
	if c.flags.spf == "off" {
		return
	}
	addr, from, helo := s.Src.Addr(), s.Tx.From, s.Helo
	s.Local.spf = filter.GoTx(s, c.flags.Timeout.Value, func(ctx context.Context) spf.Result {
		return c.spf.Check(ctx, spf.Query{Addr: addr, Helo: helo, Sender: from})
	})
}

// ended forgets a transaction: of the next smtpd may not tell, see decide.
func (c *checker) ended(s *filter.Session[state], _ *proto.Line) {
	s.Local.spf, s.Local.header, s.Local.trap = nil, "", ""
	if s.Local.junked == transaction {
		s.Local.junked = nothing
	}
}

// ours reports whether it is for us to deliver what a client sends.
func (c *checker) ours(addr netip.Addr, user string) (why string, ok bool) {
	switch {
	case !addr.IsValid():
		return "local socket", true
	case user != "":
		return "authenticated", true
	}
	v := c.flags.trusted.Verdict(addr)
	return v.By, v.Exempt
}

// exempt reports whether a client is never greylisted: with why, and a word for
// that in metrics and headers.
func (c *checker) exempt(addr netip.Addr, user, name string, fcrdns bool) (word, why string, ok bool) {
	if why, ok := c.ours(addr, user); ok {
		return "ours", why, true
	}
	if !fcrdns {
		name = ""
	}
	if m, ok := c.clients.Value().Lookup(addr, name); ok && m.Action == exempt.Permit {
		return "client", "-allowClients " + m.String(), true
	}
	return "", "", false
}

// exemptSender reports whether a message is let through for its sender, as far
// as SPF has proved it.
func (c *checker) exemptSender(from string, r spf.Result) (word, why string, ok bool) {
	proven := origin(r) != ""
	if at, ok := c.senders.Value().Lookup(from, proven); ok {
		return "sender", "-allowSenders " + at.String(), true
	}
	if c.flags.spf == "skip" && proven {
		return "spf", "SPF pass for " + r.Domain, true
	}
	return "", "", false
}

// exemptMail reports whether a message is let through for its sender or all of
// its recipients.
func (c *checker) exemptMail(from string, rcpts []string, r spf.Result) (word, why string, ok bool) {
	if word, why, ok := c.exemptSender(from, r); ok {
		return word, why, true
	}
	for _, rcpt := range rcpts {
		if why, ok = c.exemptRcpt(rcpt); !ok {
			return "", "", false
		}
	}
	return "recipient", why, ok
}

func (c *checker) exemptRcpt(rcpt string) (why string, ok bool) {
	if at, ok := c.rcpts.Value().Lookup(rcpt); ok {
		return "-allowRecipients " + at.String(), true
	}
	if len(c.flags.onlyRecipients) > 0 { // which may be empty, or become so
		if _, ok := c.only.Value().Lookup(rcpt); !ok {
			return "not in -onlyRecipients", true
		}
	}
	return "", false
}

// decide answers when the envelope is known.
func (c *checker) decide(s *filter.Session[state], req filter.Request) filter.Response {
	c.saw(s.Time())
	if _, ok := c.ours(s.Src.Addr(), s.User); !ok {
		c.nat.saw(s.Src.Addr(), false, s.Time())
	}
	if word, why, ok := c.exempt(s.Src.Addr(), s.User, s.RDNS, s.FCrDNS); ok {
		return c.letPass(s, word, why)
	}
	rcpts := s.Tx.Rcpts
	switch {
	case req.Phase == filter.RcptTo:
		// Callouts come with the null sender and go before DATA, and
		// recipients that are exempt decide for nobody else.
		if _, ok := c.exemptRcpt(req.Arg); ok || s.Tx.From == "" {
			return filter.Undecided()
		}
		rcpts = []string{req.Arg}
	case len(rcpts) == 0:
		// smtpd takes addresses of over 255 bytes and does not tell of them:
		// nobody shall pass by writing long ones.
		rcpts = []string{""}
	}
	return c.withAttempt(s, rcpts, func(a greylist.Attempt, r spf.Result) filter.Response {
		if word, why, ok := c.exemptMail(s.Tx.From, rcpts, r); ok {
			return c.letPass(s, word, why)
		}
		return ask(c, s, func(ctx context.Context) (greylist.Decision, error) {
			return c.greylist.Decide(ctx, a)
		}, func(d greylist.Decision) filter.Response {
			if d.Reason == greylist.Trapped && s.Local.trap != "" {
				return c.conclude(s, a, d, "spf", c.shownSPF(r), "by", "-trap "+s.Local.trap)
			}
			return c.conclude(s, a, d, "spf", c.shownSPF(r))
		})
	})
}

// ask goes on with what the records say. If they are not there in time the
// message passes.
func ask[T any](c *checker, s *filter.Session[state], work func(context.Context) (T, error), then func(T) filter.Response) filter.Response {
	type answer struct {
		value T
		err   error
	}
	return filter.Await(filter.Go(s, storeTimeout, func(ctx context.Context) answer {
		v, err := work(ctx)
		return answer{v, err}
	}), func(a answer, err error) filter.Response {
		if err = cmp.Or(err, a.err); err != nil {
			return c.noStore(s, err)
		}
		return then(a.value)
	})
}

// withSPF goes on when it is known what SPF says, or that it will not be.
func (c *checker) withSPF(s *filter.Session[state], then func(spf.Result) filter.Response) filter.Response {
	if s.Local.spf == nil {
		return then(spf.Result{}) // off, or smtpd has not told of the sender
	}
	return filter.Await(s.Local.spf, func(r spf.Result, err error) filter.Response {
		if err != nil {
			r = spf.Result{Status: spf.TempError}
		}
		return then(r)
	})
}

// origin is the domain that SPF proves, of which what holds for one machine
// holds for all.
func origin(r spf.Result) string {
	if r.Status != spf.Pass || r.PerAddress {
		return ""
	}
	return r.Domain
}

// saw takes note of the time of a line. A clock that was ahead, and was put
// right, must not make all that is new look old.
func (c *checker) saw(t time.Time) {
	c.latest.Store(t.UnixMicro())
}

// conclude logs a decision and returns the answer.
func (c *checker) conclude(s *filter.Session[state], a greylist.Attempt, d greylist.Decision, more ...any) filter.Response {
	action := "refuse"
	if d.Accept {
		action = "accept"
	}
	c.metrics.Decision(action).Inc()
	attrs := []any{"filter", "greylist", "action", action, "reason", d.Reason, "addr", s.Src.Addr(), "name", a.Client.Shown,
		"from", "<" + s.Tx.From + ">", "rcpt", d.Rcpt}
	if d.Suspect != greylist.Proper {
		attrs = append(attrs, "suspect", d.Suspect)
	}
	attrs = append(attrs, "origin", d.Origin)
	if d.By != "" {
		attrs = append(attrs, "by", d.By)
	}
	if !d.Accept {
		attrs = append(attrs, "left", seconds(d.Left))
	}
	if d.First {
		attrs = append(attrs, "delay", seconds(d.Delay))
	}
	if d.Tries > 0 {
		attrs = append(attrs, "tries", d.Tries)
	}
	if d.Crowded {
		attrs = append(attrs, "note", "client over -maxPerClient")
	}
	attrs = append(attrs, more...)
	if c.flags.DryRun {
		attrs = append(attrs, "dryRun", true)
	}
	c.log.Info(s.ID, attrs...)
	switch {
	case d.First:
		c.setHeader(s, fmt.Sprintf("delayed %d seconds", int64(d.Delay/time.Second)))
	case d.Reason == greylist.Vouched:
		c.setHeader(s, "not delayed (vouched for by "+d.By+")")
	case d.Reason == greylist.Expected:
		c.setHeader(s, "not delayed (expected)")
	case d.Reason == greylist.Paired:
		c.setHeader(s, "not delayed (sender is known)")
	case d.Accept:
		c.setHeader(s, "not delayed ("+d.Origin+" is known)")
	default:
		c.setHeader(s, fmt.Sprintf("not delayed (dry run, would be refused as %s)", d.Reason))
	}
	if d.Accept || c.flags.DryRun {
		return filter.Proceed()
	}
	r := c.reply(s.Src.Addr(), d)
	return filter.Reject(r.Code, r.Enhanced, r.Text)
}

// seconds is a time as replies and X-Greylist have it.
func seconds(d time.Duration) string { return fmt.Sprint(int64(d/time.Second), "s") }

// shownSPF is the result with what it is about.
func (c *checker) shownSPF(r spf.Result) string {
	status := r.Status.String()
	switch {
	case c.flags.spf == "off":
		status = "off"
	case r.Everybody:
		status = "everyone"
	}
	if r.Domain == "" {
		return status
	}
	return status + ":" + r.Domain
}

// letPass logs that a message is not greylisted, and lets it pass.
func (c *checker) letPass(s *filter.Session[state], word, why string) filter.Response {
	c.metrics.Counter(exemptTotal, word).Inc()
	attrs := []any{"filter", "greylist", "action", "proceed", "addr", addrOf(s), "from", "<" + s.Tx.From + ">", "why", why}
	if word == "ours" {
		if a := s.Src.Addr(); a.IsValid() && s.User == "" && c.nat.saw(a, a.IsPrivate() || a.IsLoopback(), s.Time()) {
			c.log.Warn("all clients have one private address, so nothing is greylisted: smtpd does not see who they are; have the addresses handed on, or see -trusted none", "addr", a)
		}
		c.log.Debug(s.ID, attrs...)
		return filter.Proceed()
	}
	c.metrics.Decision("accept").Inc()
	c.log.Info(s.ID, attrs...)
	if word != "spf" {
		why = word + " on a list"
	}
	c.setHeader(s, "not delayed ("+why+")")
	return filter.Proceed()
}

func addrOf(s *filter.Session[state]) string {
	if s.Unix() {
		return "local"
	}
	return s.Src.Addr().String()
}

// noStore lets a message pass that the store has no answer to.
func (c *checker) noStore(s *filter.Session[state], err error) filter.Response {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", storeTimeout)
	}
	c.metrics.Counter(storeErrorsTotal).Inc()
	c.metrics.Decision("accept").Inc()
	c.trouble.Say(slog.LevelWarn, "store", s.ID, "filter", "greylist", "action", "proceed", "addr", s.Src.Addr(), "from", "<"+s.Tx.From+">", "why", "store", "err", err)
	c.setHeader(s, "not delayed (no access to the records)")
	return filter.Proceed()
}

// setHeader sets what X-Greylist says of the present message.
func (c *checker) setHeader(s *filter.Session[state], what string) {
	host := s.Local.host
	if host == "" {
		host, _ = os.Hostname()
	}
	s.Local.header = fmt.Sprintf("%s by filter-greylist at %s; %s", what, host, s.Time().Format(time.RFC1123Z))
}

// reply is what a refused client is told.
func (c *checker) reply(addr netip.Addr, d greylist.Decision) cli.Reply {
	_, domain, _ := strings.Cut(d.Rcpt, "@")
	return c.flags.reply.Expand(
		"%s", fmt.Sprint(int64(d.Left/time.Second)),
		"%m", fmt.Sprint(int64(math.Ceil(d.Left.Minutes()))),
		"%i", addr.String(), "%o", d.Origin, "%d", domain)
}

// trap refuses a client that writes to somebody who does not exist, and
// remembers it. Whoever is known is let alone, and so are bounces and callouts:
// spam is also sent in the name of traps, and good servers answer it.
func (c *checker) trap(s *filter.Session[state], req filter.Request) filter.Response {
	at, ok := c.traps.Value().Lookup(req.Arg)
	if !ok || s.Tx.ID != "" && s.Tx.From == "" {
		return filter.Proceed()
	}
	if _, _, ok := c.exempt(s.Src.Addr(), s.User, s.RDNS, s.FCrDNS); ok {
		return filter.Proceed()
	}
	c.saw(s.Time())
	return c.withAttempt(s, []string{req.Arg}, func(a greylist.Attempt, r spf.Result) filter.Response {
		if _, _, ok := c.exemptSender(s.Tx.From, r); ok {
			return filter.Proceed()
		}
		// A mail server may verify a sender, for which it goes no further.
		if a.Client.Name != "" && a.Client.Class == greylist.Proper {
			s.Local.trap = at.String()
			return filter.Proceed()
		}
		return ask(c, s, func(ctx context.Context) (greylist.Decision, error) {
			return c.greylist.Trap(ctx, a)
		}, func(d greylist.Decision) filter.Response {
			if d.Accept {
				return filter.Proceed()
			}
			return c.conclude(s, a, d, "by", "-trap "+at.String())
		})
	})
}

// committed learns to whom our users write.
func (c *checker) committed(s *filter.Session[state], _ *proto.Line) {
	if _, ok := c.ours(s.Src.Addr(), s.User); !ok || s.Tx.From == "" || len(s.Tx.Rcpts) == 0 {
		return
	}
	c.saw(s.Time())
	id, from := s.ID, s.Tx.From
	l := greylist.Letter{Time: s.Time(), From: from, To: s.Tx.Rcpts, Relayed: !s.Unix() && s.User == ""}
	filter.GoOn(s, learnTimeout, func(ctx context.Context) error {
		n, err := c.greylist.Learn(ctx, l)
		if err != nil {
			c.metrics.Counter(storeErrorsTotal).Inc()
			c.trouble.Say(slog.LevelWarn, "store", id, "filter", "greylist", "why", "recipients not learned", "err", err)
			return err
		}
		c.log.Debug(id, "filter", "greylist", "learned", n, "from", "<"+from+">")
		return nil
	})
}
