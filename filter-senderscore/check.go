package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/sandbox"
	"opensmtpd-filters/pkg/senderscore"
)

// state is what is kept of a session.
type state struct {
	program.Visit
	lookup *filter.Future[senderscore.Result] // nil: found is there
	found  finding
	said   rank // of what was logged for the session
	txSaid rank // for the message
}

// A rank tells what is worse: only that is news for the log.
type rank byte

const (
	passed rank = iota + 1
	junked
	refused
)

// logged returns the rank of the worst that was logged.
func (l *state) logged() rank { return max(l.said, l.txSaid) }

// A finding is what is known of a client.
type finding struct {
	senderscore.Result
	reason, by string
}

// phases are all at which the filter may be asked.
var phases = []filter.Phase{
	filter.Connect, filter.Helo, filter.Ehlo, filter.StartTLS, filter.Auth,
	filter.MailFrom, filter.RcptTo, filter.Data, filter.Commit, filter.Quit,
}

// ownState prepares the state file to be written as its owner, and nothing else.
func (c *check) ownState() {
	var err error
	if c.restore, err = guard.BecomeOwner(c.stateFile); err != nil {
		c.Log.Warn("running as root: queries are not counted in the state file", "err", err)
		c.stateFile = ""
	}
	if c.stateFile != "" {
		c.Need(sandbox.Needs{Write: []string{c.stateFile}})
	}
}

// Filter returns the filter with its handlers.
func (c *check) Filter() program.Runner {
	opt := filter.Options{
		Log: c.Log, Metrics: c.Metrics,
		// The DNS may be asked twice for one answer.
		Deadline: max(15*time.Second, 2*c.Timeout.Value+5*time.Second),
		Reports: []proto.Event{
			proto.LinkConnect, proto.LinkIdentify, proto.LinkAuth, proto.LinkDisconnect, proto.TxMail, proto.TxRcpt, proto.TxReset,
		},
	}
	if c.testMode {
		opt.Reports = []proto.Event{proto.LinkConnect, proto.LinkDisconnect}
		opt.Strict = true
	}
	f := filter.New[state](opt)
	c.gate = &program.Gate[state]{
		Program: c.Program,
		Visit:   func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
	}
	f.OnSession(c.begin)
	for _, p := range phases {
		if c.needs(p) {
			f.On(p, c.answer)
		}
	}
	switch {
	case c.testMode: // every line passes as it is
		f.AddHeader(spec.Field, c.headerValue)
		return f
	case c.Header:
		f.SetHeader(spec.Field, c.headerValue)
	}
	f.OnReport(proto.TxReset, c.reset)
	return f
}

// needs reports whether smtpd has to ask at a phase. If an earlier filter of a
// chain has taken the phase of a decision, it falls at a later one. That a message
// passes is said at data.
func (c *check) needs(p filter.Phase) bool {
	switch {
	case c.testMode || c.slowFactor > 0 || p == filter.Data || p == filter.Commit:
		return true
	case p == filter.RcptTo && c.junkBelow > 0 && c.junkPhase() == filter.Data:
		return true // smtpd does not tell of every recipient that it takes
	case p == c.Phase && c.blockBelow > 0:
		return true
	case p == filter.StartTLS || p == filter.Auth || p == filter.Quit:
		return false // not every client comes by there
	}
	header := c.Header && p >= filter.MailFrom
	return c.blockBelow > 0 && p > c.Phase || c.junkBelow > 0 && p >= c.junkPhase() || header
}

// junkPhase is from where on mail is junked: at once, for smtpd tells later filters
// of it; at data if the sender or a recipient may be exempt.
func (c *check) junkPhase() filter.Phase {
	if len(c.Lists.Senders) > 0 || len(c.Lists.Recipients) > 0 {
		return filter.Data
	}
	return filter.Connect
}

// begin looks the score of a new client up, while it still says hello.
func (c *check) begin(s *filter.Session[state]) {
	addr := s.Src.Addr()
	s.Local.found = c.known(addr)
	switch {
	case s.Local.found.reason == ipv6:
		c.sayIPv6.Do(func() { c.Log.Info("IPv6 clients have no sender score, they pass") })
	case s.Local.found.reason == "" && c.gate.Begin(s):
		if r, ok := c.scores.Cached(addr); ok {
			s.Local.lookup = filter.Done(r)
			return
		}
		s.Local.lookup = filter.Go(s, c.Timeout.Value, func(ctx context.Context) senderscore.Result {
			return c.scores.Lookup(ctx, addr)
		})
	}
}

// The reasons of the log that are not those of a lookup.
const (
	ipv6    = "ipv6"
	private = "private"
)

var reasons = map[senderscore.Status]string{
	senderscore.Known: "score", senderscore.NoData: "nodata", senderscore.Failed: "error",
	senderscore.Refused: "unregistered", senderscore.Spent: "quota",
}

func found(r senderscore.Result) finding { return finding{Result: r, reason: reasons[r.Status]} }

// known returns what is known of an address without a query.
func (c *check) known(addr netip.Addr) finding {
	if m, ok := c.allowlist.Value().Lookup(addr); ok {
		f := found(senderscore.Result{Status: senderscore.Known, Score: 100})
		f.by = "-allowlist " + m.String()
		return f
	}
	switch {
	case c.testMode:
		if last := addr.AsSlice(); len(last) == 4 && last[3] != 255 {
			return found(senderscore.Result{Status: senderscore.Known, Score: int(last[3])})
		}
		return found(senderscore.Result{Status: senderscore.NoData})
	case senderscore.Scored(addr):
		return finding{}
	case addr.Is6():
		return finding{reason: ipv6}
	}
	return finding{reason: private}
}

// answer answers at every phase, once it is known who is exempt and what the score
// is.
func (c *check) answer(s *filter.Session[state], r filter.Request) filter.Response {
	if r.Phase == filter.MailFrom {
		s.Local.txSaid = 0
	}
	return c.exempt(s, r, func(v exempt.Verdict) filter.Response {
		if v.Exempt {
			return c.pass(s, r, program.Verdict{By: v.By, Quiet: v.Own})
		}
		if s.Local.lookup == nil {
			return c.conclude(s, r)
		}
		return filter.Await(s.Local.lookup, func(res senderscore.Result, err error) filter.Response {
			if err != nil {
				res = senderscore.Result{Status: senderscore.Failed, Err: err}
			}
			s.Local.found = found(res)
			return c.conclude(s, r)
		})
	})
}

// exempt goes on with whether somebody is exempt. In -testMode only a list makes
// so, and a client: nobody is asked about senders.
func (c *check) exempt(s *filter.Session[state], r filter.Request, then func(exempt.Verdict) filter.Response) filter.Response {
	if !c.testMode {
		return c.gate.Exemption(s, r, then)
	}
	v := c.Exempt.Client(program.ClientOf(s))
	v.Exempt = v.Exempt && !v.Own
	return then(v)
}

// conclude does what the score calls for.
func (c *check) conclude(s *filter.Session[state], r filter.Request) filter.Response {
	v := c.gate.Soften(s, c.verdict(s.Local.found, r.Phase))
	l := &s.Local
	what := refused
	switch {
	case v.Action.Name == cli.Junk:
		what = junked
	case !v.Action.Refuses():
		return c.pass(s, r, v)
	}
	switch {
	case l.logged() >= what: // smtpd takes junk once; or it is a dry run
		if what == junked && r.Phase == filter.Commit {
			v.Action.Name = cli.Proceed
		}
		return c.silent(v)
	case what == refused && r.Phase == filter.RcptTo:
		if slices.ContainsFunc(s.Tx.Rcpts, func(rcpt string) bool { return c.Exempt.Recipient(rcpt).Exempt }) {
			v.Action.Name = cli.Refuse // the mail to that one goes on
		}
		return c.gate.Refuse(s, r, v)
	case c.DryRun && l.Refused(): // all is said
		return filter.Proceed()
	case r.Phase < filter.MailFrom || r.Phase == filter.MailFrom && what == junked:
		l.said = what
	default:
		l.txSaid = what
	}
	return program.Respond(c.Program, s, r, v)
}

// pass lets pass. A message has its line of the log when all recipients are known.
func (c *check) pass(s *filter.Session[state], r filter.Request, v program.Verdict) filter.Response {
	last := r.Phase == filter.Data || r.Phase == filter.Commit
	if !last || s.Local.logged() >= passed || c.DryRun && s.Local.Refused() {
		return c.silent(v)
	}
	s.Local.txSaid = passed
	return program.Respond(c.Program, s, r, v)
}

// silent answers without a line of the log.
func (c *check) silent(v program.Verdict) filter.Response {
	if c.DryRun {
		return filter.Proceed()
	}
	return program.Answer(v)
}

// reset ends what holds for a transaction.
func (c *check) reset(s *filter.Session[state], _ *proto.Line) {
	s.Local.txSaid = 0
	c.gate.Reset(s)
}

// verdict is what is done at a phase about what was found.
func (c *check) verdict(f finding, p filter.Phase) program.Verdict {
	v := program.Verdict{Reason: f.reason, By: f.by, Keys: []any{"score", f.shown()}}
	if f.Err != nil {
		v.Keys = append(v.Keys, "err", f.Err)
	}
	if f.Status != senderscore.Known {
		return v
	}
	v.Action.Delay = c.delay(f.Score)
	switch {
	case f.Score < c.blockBelow && c.blocksAt(p):
		v.Action.Name, v.Reply = cli.Disconnect, c.reply.Value.Expand()
		v.By = cmp.Or(v.By, fmt.Sprint("-blockBelow ", c.blockBelow))
	case f.Score < c.junkBelow && c.junksAt(p):
		v.Action.Name = cli.Junk
		v.By = cmp.Or(v.By, fmt.Sprint("-junkBelow ", c.junkBelow))
	}
	return v
}

// blocksAt reports whether a client is refused at p: at -blockPhase, or if that
// was not asked, at the next phase. Who says farewell is left alone.
func (c *check) blocksAt(p filter.Phase) bool {
	return p == c.Phase || !c.testMode && p > c.Phase && p != filter.Quit
}

// junksAt reports whether a client may be junked at p. In -testMode that is at
// connect only.
func (c *check) junksAt(p filter.Phase) bool {
	if c.testMode {
		return p == filter.Connect
	}
	return p >= c.junkPhase() && p <= filter.Commit
}

// delay returns how long each answer to a client with a score waits: the part of
// -slowFactor that the score falls short of 100, in whole milliseconds.
func (c *check) delay(score int) time.Duration {
	n := min(c.slowFactor, math.MaxInt/100)
	if n <= 0 || score >= 100 { // in -testMode a score may be above 100
		return 0
	}
	ms := min(n*(100-score)/100, int(c.slowMax.Value/time.Millisecond))
	return time.Duration(ms) * time.Millisecond
}

// shown returns a score for people.
func (f finding) shown() string {
	if f.Status == senderscore.Known {
		return fmt.Sprint(f.Score)
	}
	return "none"
}

// headerValue is what X-SenderScore says.
func (c *check) headerValue(s *filter.Session[state]) string {
	if !c.Header || s.Local.found.Status != senderscore.Known {
		return ""
	}
	if !c.testMode && !c.gate.Begin(s) {
		return "" // it is our own user's
	}
	return s.Local.found.shown()
}
