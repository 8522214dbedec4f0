package main

import (
	"bytes"
	"slices"
	"strings"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/peek"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
)

// commands are those of SMTP and its extensions (RFC 5321 and the registry of
// RFC 1869), whether smtpd knows them or not.
var commands = []string{
	"HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "VRFY", "EXPN", "HELP", "NOOP", "QUIT",
	"AUTH", "STARTTLS", "BDAT", "ETRN", "ATRN", "TURN", "SEND", "SOML", "SAML", "BURL", "LHLO", "XCLIENT", "XFORWARD",
}

// word returns the first word of a line if it is no command of SMTP.
func word(line []byte) (string, bool) {
	// What is hidden is part of AUTH, the dot ends a message.
	if s := string(line); s == "********" || s == "." {
		return "", false
	}
	w, _, _ := bytes.Cut(line, []byte(" "))
	s := string(w[:min(len(w), 20)])
	return s, !slices.Contains(commands, strings.ToUpper(s))
}

// said hears a line of the client, which it sent when it had the greeting, or
// when it was time.
func (c *check) said(s *filter.Session[state], l *proto.Line) {
	t := &s.Local
	if !t.spoke {
		t.spoke = true
		if t.hold != nil && !t.ended {
			c.waiting.drop(t.hold) // greeted without asking us
		}
		c.there(s)
	}
	if w, ok := word(l.Fields); ok && t.word == "" {
		if t.word = w; w == "" {
			t.word = "-" // an empty line
		}
		c.seen(s, "command", "command:"+t.word)
	}
}

// there learns from a client that it is there: who was not seen could not be.
func (c *check) there(s *filter.Session[state]) {
	t := &s.Local.test
	if !t.ended || t.found.State != peek.Unknown {
		return
	}
	switch {
	case c.looker == nil && t.reason == waited:
		// All that can be known of it: it has waited, then sent one command.
		c.keep(s)
	case c.looker != nil && !c.unseen[s.Dst] && len(c.unseen) < 1000:
		c.unseen[s.Dst] = true
		c.Log.Warn("a client of this listener could not be seen, it waited and passed; behind a proxy that is so for all", "listener", s.Dst, "addr", s.Src.Addr())
	}
}

// answered hears a reply of smtpd: it refuses who sends several commands at once.
func (c *check) answered(s *filter.Session[state], l *proto.Line) {
	t := &s.Local
	if t.spoke || t.piped || !bytes.HasPrefix(l.Fields, []byte("500 ")) || !bytes.Contains(l.Fields, []byte("Pipelining")) {
		return
	}
	t.piped = true
	c.polite.Remove(client(s.Src.Addr()))
	c.seen(s, "pipelining", "pipelining")
}

// seen logs and counts what a client did after the greeting.
func (c *check) seen(s *filter.Session[state], kind, what string) {
	c.Metrics.Counter(talkTotal, kind).Inc()
	c.Log.Info(s.ID, "filter", "greet", "event", "talk", "addr", s.Src.Addr(), "name", program.ShownName(s.RDNS, s.FCrDNS), "saw", what)
}

// command refuses what follows something that was no command.
func (c *check) command(s *filter.Session[state], r filter.Request) filter.Response {
	if s.Local.word == "" || !c.gate.Begin(s) {
		return filter.Proceed()
	}
	return program.Respond(c.Program, s, r, c.noCommand(s))
}

func (c *check) noCommand(s *filter.Session[state]) program.Verdict {
	return program.Verdict{
		Action: cli.Action{Name: cli.Disconnect},
		Reason: "command",
		Keys:   []any{"saw", "command:" + s.Local.word},
		Reply:  cli.Reply{Code: 554, Enhanced: "5.5.1", Text: "you sent what is no SMTP command"},
	}
}
