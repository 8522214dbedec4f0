package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/senderscore"
)

// state is what is kept of a session.
type state struct {
	lookup *filter.Future[senderscore.Result] // nil: result is there, or there is none
	result senderscore.Result
	said   string // the action as last logged
	headed bool   // in -testMode: the message has its field
}

// phases are all at which the filter may be asked.
var phases = []filter.Phase{
	filter.Connect, filter.Helo, filter.Ehlo, filter.StartTLS, filter.Auth,
	filter.MailFrom, filter.RcptTo, filter.Data, filter.Commit, filter.Quit,
}

// filter returns the filter with its handlers.
func (c *checker) filter() *filter.Filter[state] {
	opt := filter.Options{
		Log:      c.log,
		Metrics:  c.metrics,
		Deadline: max(15*time.Second, c.flags.Timeout.Value+5*time.Second),
		Reports:  []proto.Event{proto.LinkConnect, proto.LinkAuth, proto.LinkDisconnect, proto.TxReset},
	}
	if c.flags.testMode {
		opt.Reports = []proto.Event{proto.LinkConnect, proto.LinkDisconnect}
		opt.Strict = true
	}
	f := filter.New[state](opt)
	f.OnSession(c.begin)
	for _, p := range phases {
		if c.needs(p) {
			f.On(p, c.answer)
		}
	}
	switch {
	case c.flags.testMode:
		f.OnDataLine(c.dataLine)
	case c.flags.header:
		f.SetHeader("X-SenderScore", c.headerValue)
	}
	return f
}

// needs reports whether smtpd has to ask at a phase. If an earlier filter of a
// chain has taken the phase of a decision, it falls at a later one.
func (c *checker) needs(p filter.Phase) bool {
	f := c.flags
	if f.testMode || f.slowFactor > 0 {
		return true
	}
	if f.blockBelow <= 0 && f.junkBelow <= 0 && !f.header {
		return p == filter.Connect // for the log
	}
	later := p != filter.StartTLS && p != filter.Auth && p != filter.Quit // not every client comes by there
	block := f.blockBelow > 0 && (p == f.phase || p > f.phase && later)
	junk := f.junkBelow > 0 && later && p != filter.Commit
	header := f.header && (p == filter.MailFrom || p == filter.RcptTo || p == filter.Data)
	return block || junk || header
}

// begin looks the score of a new client up, while it still says hello.
func (c *checker) begin(s *filter.Session[state]) {
	addr := s.Src.Addr().Unmap()
	result, why := c.known(addr)
	s.Local.result = result
	switch {
	case why != "":
		c.log.Debug(s.ID, "filter", "senderscore", "addr", addr, "score", show(result), "why", why)
		if addr.Is6() && result.Status != senderscore.Known && !c.saidIPv6 {
			c.saidIPv6 = true
			c.log.Info("IPv6 clients have no sender score, they pass")
		}
	case !c.flags.testMode:
		s.Local.lookup = filter.Go(s, c.flags.Timeout.Value, func(ctx context.Context) senderscore.Result {
			return c.scores.Lookup(ctx, addr)
		})
	}
}

// known returns what is known of an address without a query, and why none is
// needed.
func (c *checker) known(addr netip.Addr) (r senderscore.Result, why string) {
	if m, ok := c.allowlist.Value().Lookup(addr); ok {
		return senderscore.Result{Status: senderscore.Known, Score: 100}, "allowlist " + m.String()
	}
	if c.flags.testMode {
		if last := addr.AsSlice(); len(last) == 4 && last[3] != 255 {
			r = senderscore.Result{Status: senderscore.Known, Score: int(last[3])}
		}
		return r, ""
	}
	if !senderscore.Scored(addr) {
		return r, "not a public IPv4 address"
	}
	return r, ""
}

// answer answers at every phase, once the score is there.
func (c *checker) answer(s *filter.Session[state], r filter.Request) filter.Response {
	if r.Phase == filter.Data {
		s.Local.headed = false
	}
	if s.Local.lookup == nil {
		return c.conclude(s, r.Phase)
	}
	return filter.Await(s.Local.lookup, func(res senderscore.Result, err error) filter.Response {
		if err != nil {
			res = senderscore.Result{Status: senderscore.Failed, Err: err}
		}
		s.Local.result = res
		return c.conclude(s, r.Phase)
	})
}

// conclude logs what is done about the client, if that is news, and returns the
// answer.
func (c *checker) conclude(s *filter.Session[state], p filter.Phase) filter.Response {
	res := s.Local.result
	if res.Status == "" {
		return filter.Proceed()
	}
	if s.User != "" {
		c.logAction(s, "proceed", "why", "authenticated")
		return filter.Proceed()
	}
	if res.Status != senderscore.Known {
		attrs := []any{"why", res.Status}
		if res.Err != nil {
			attrs = append(attrs, "err", res.Err)
		}
		c.logAction(s, "proceed", attrs...)
		return filter.Proceed()
	}

	r, action := filter.Proceed(), "proceed"
	switch {
	case res.Score < c.flags.blockBelow && c.blocksAt(p):
		r, action = filter.Disconnect(c.flags.reply.Code, c.flags.reply.Enhanced, c.flags.reply.Expand().Text), "disconnect"
	case res.Score < c.flags.junkBelow && c.junksAt(p):
		r, action = filter.Junk(), "junk"
	}
	delay := c.delay(res.Score)
	var attrs []any
	if delay > 0 {
		attrs = append(attrs, "slow", delay)
	}
	if c.flags.DryRun {
		attrs = append(attrs, "dryRun", true)
		r, delay = filter.Proceed(), 0
	}
	c.logAction(s, action, attrs...)
	return r.After(delay)
}

// blocksAt reports whether a client is refused at p: at -blockPhase, or if that
// was not asked, at the next phase.
func (c *checker) blocksAt(p filter.Phase) bool {
	if c.flags.testMode {
		return p == c.flags.phase
	}
	return p == c.flags.phase || p > c.flags.phase && p != filter.Quit
}

// junksAt reports whether a client may be junked at p: smtpd takes it once. In
// -testMode that is at connect only.
func (c *checker) junksAt(p filter.Phase) bool {
	if c.flags.testMode {
		return p == filter.Connect
	}
	return p != filter.Commit && p != filter.Quit
}

// logAction logs and counts what is done, unless it was said before or is less
// than was.
func (c *checker) logAction(s *filter.Session[state], action string, attrs ...any) {
	if action == s.Local.said || action == "proceed" && s.Local.said != "" {
		return
	}
	s.Local.said = action
	c.metrics.Decision(action).Inc()
	c.log.Info(s.ID, append([]any{"filter", "senderscore", "action", action,
		"addr", s.Src.Addr().Unmap(), "score", show(s.Local.result)}, attrs...)...)
}

// show returns a score for people.
func show(r senderscore.Result) string {
	if r.Status == senderscore.Known {
		return fmt.Sprint(r.Score)
	}
	return "none"
}

// headerValue is what X-SenderScore says.
func (c *checker) headerValue(s *filter.Session[state]) string {
	if s.Local.result.Status == senderscore.Known {
		return fmt.Sprint(s.Local.result.Score)
	}
	return ""
}

// dataLine is for -testMode, which passes every line as it is, forged fields
// too.
func (c *checker) dataLine(s *filter.Session[state], line []byte, out *filter.Lines) {
	if v := c.headerValue(s); v != "" && c.flags.header && !s.Local.headed {
		out.Put([]byte("X-SenderScore: " + v))
	}
	s.Local.headed = true
	out.Put(line)
}

// lookup prints what would be done with a client.
func (c *checker) lookup(addr netip.Addr, stdout io.Writer) error {
	addr = addr.Unmap()
	result, why := c.known(addr)
	if why == "" && !c.flags.testMode {
		ctx, cancel := context.WithTimeout(context.Background(), c.flags.Timeout.Value)
		defer cancel()
		if result = c.scores.Lookup(ctx, addr); result.Status != senderscore.Known {
			why = string(result.Status)
		}
		if result.Err != nil {
			why += ", " + result.Err.Error()
		}
		cancel()
		c.scores.Run(ctx) // the query counts
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "address\t%s\n", addr)
	score := show(result)
	if why != "" {
		score += ": " + why
	}
	fmt.Fprintf(w, "score\t%s\n", score)
	action, delay := "proceed", time.Duration(0)
	if result.Status == senderscore.Known {
		delay = c.delay(result.Score)
		switch {
		case result.Score < c.flags.blockBelow:
			action = fmt.Sprintf("disconnect at %s, %s", c.flags.phase, c.flags.reply.Expand())
		case result.Score < c.flags.junkBelow:
			action = "junk"
		}
	}
	fmt.Fprintf(w, "action\t%s\n", action)
	if delay > 0 {
		fmt.Fprintf(w, "delay\t%s of every answer\n", delay)
	}
	return nil
}
