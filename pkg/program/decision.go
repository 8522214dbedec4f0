package program

import (
	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
)

// A Verdict is what a check says of a client or of its mail.
type Verdict struct {
	Action cli.Action // the zero value is proceed
	Reply  cli.Reply  // of an action that refuses; sent as it is, so for defer it must be one with 4xx: Reply.Temporary
	Reason string     // a word of the program's own, as its page lists them
	By     string     // the line of a list, or the flag, that decided
	Keys   []any      // the program's own keys and values of the log, in their order; after those of every line, action to rcpt

	Rcpt  string // who is refused, if it is one recipient; "" for all so far
	Quiet bool   // log only with -v: mail of our own users

	from *string // the envelope sender, if the session does not have it yet
}

// Respond logs and counts a verdict on a session and returns the answer to a
// request. With -dryRun that is to proceed.
func Respond[S any](p *Program, s *filter.Session[S], r filter.Request, v Verdict) filter.Response {
	late := r.Phase == filter.Commit && v.Action.Name == cli.Junk
	if late {
		v.Action = cli.Action{}
		v.Keys = append(v.Keys, "note", "too late to junk")
	}
	if r.Phase == filter.MailFrom {
		v.from = &r.Arg // smtpd tells of it once we have answered
	}
	Log(p, s, v)
	if p.DryRun {
		return filter.Proceed()
	}
	return Answer(v)
}

// Answer returns what smtpd is told.
func Answer(v Verdict) filter.Response {
	r := filter.Proceed()
	switch v.Action.Name {
	case cli.Junk:
		r = filter.Junk()
	case cli.Defer, cli.Refuse:
		r = filter.Reject(v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
	case cli.Disconnect:
		r = filter.Disconnect(v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
	}
	return r.After(v.Action.Delay)
}

// word is the value of the key action: what became of the mail.
func (v Verdict) word() string {
	switch {
	case v.Action.Name == cli.Junk:
		return "junk"
	case !v.Action.Refuses():
		return "proceed"
	case v.Reply.Code < 500:
		return "defer"
	}
	return "refuse"
}

// Log writes the one line of a decision, session id first, and counts it:
//
//	2b652056ec44d519 filter=dnsbl action=refuse reason=score addr=192.0.2.1 name=mx.example.com from=<a@example.com> rcpt=<bob@example.org> score=7 zen=5 spamcop=2 t=38ms
func Log[S any](p *Program, s *filter.Session[S], v Verdict) {
	p.Metrics.Decision(v.word()).Inc()
	line := p.line(v, who(s, v))
	if v.Quiet {
		p.Log.Debug(s.ID, line...)
		return
	}
	p.Log.Info(s.ID, line...)
}

// line returns the keys and values of a decision.
func (p *Program) line(v Verdict, who []any) []any {
	word := v.word()
	line := []any{"filter", p.short(), "action", word}
	if p.DryRun {
		line[3] = "proceed"
	}
	add := func(key string, value any, ok bool) {
		if ok {
			line = append(line, key, value)
		}
	}
	add("disconnect", true, v.Action.Name == cli.Disconnect)
	add("delay", v.Action.Delay, v.Action.Delay > 0)
	add("reason", v.Reason, v.Reason != "")
	add("by", v.By, v.By != "")
	line = append(append(line, who...), v.Keys...)
	add("would", word, p.DryRun && word != "proceed")
	add("dryRun", true, p.DryRun)
	return line
}

// who returns the keys of the log that say whose mail it is, as far as known.
func who[S any](s *filter.Session[S], v Verdict) []any {
	attrs := []any{"addr", "local", "name", ShownName(s.RDNS, s.FCrDNS)}
	if s.Src.IsValid() {
		attrs[1] = s.Src.Addr()
	}
	switch {
	case v.from != nil:
		attrs = append(attrs, "from", "<"+*v.from+">")
	case s.Tx.ID != "":
		attrs = append(attrs, "from", "<"+s.Tx.From+">")
	}
	switch {
	case v.Rcpt != "":
		attrs = append(attrs, "rcpt", "<"+v.Rcpt+">")
	case len(s.Tx.Rcpts) > 0:
		attrs = append(attrs, "rcpt", "<"+s.Tx.Rcpts[0]+">")
		if n := len(s.Tx.Rcpts); n > 1 {
			attrs = append(attrs, "rcpts", n)
		}
	}
	return attrs
}

// ShownName returns a reverse name as the log has it: with ? before one that is
// not confirmed, - for none.
func ShownName(name string, confirmed bool) string {
	switch {
	case name == "" || name == noName:
		return "-"
	case confirmed:
		return name
	}
	return "?" + name
}
