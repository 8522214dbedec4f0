package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
)

// state is what is kept of a session.
type state struct {
	program.Visit
	inquiry *dnsbl.Inquiry           // nil: the lists are not asked
	early   map[dnsbl.Subject]string // names that were asked about and have not been needed yet
	idle    bool                     // one never was
	from    string                   // sender of the last MAIL FROM
}

// Filter returns the filter with its handlers.
func (c *check) Filter() program.Runner {
	f := filter.New[state](filter.Options{
		Log: c.Log, Metrics: c.Metrics,
		Deadline: max(15*time.Second, c.Timeout.Value+5*time.Second),
	})
	c.gate = &program.Gate[state]{
		Program: c.Program,
		Visit:   func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
		Judge:   c.decide,
	}
	c.gate.Handle(f)
	f.OnSession(c.begin)
	// Lists that are read again may ask about names.
	f.OnReport(proto.LinkIdentify, func(s *filter.Session[state], _ *proto.Line) { c.foresee(s, dnsbl.Helo, s.Helo) })
	f.OnReport(proto.TxMail, func(s *filter.Session[state], _ *proto.Line) { c.foresee(s, dnsbl.From, domainOf(s.Tx.From)) })
	if c.Phase > filter.MailFrom && c.asksSenders() {
		f.On(filter.MailFrom, func(s *filter.Session[state], r filter.Request) filter.Response {
			s.Local.from = r.Arg
			return filter.Proceed()
		})
	}
	if c.Header {
		f.SetHeader(spec.Field, c.headerValue)
	}
	return f
}

// asksSenders reports whether a list is asked about the domain of senders. Smtpd
// tells nothing of a sender of over 255 bytes, so that it has to be asked for.
func (c *check) asksSenders() bool {
	return slices.ContainsFunc(c.lists.Value().all(), func(l dnsbl.List) bool { return l.Ask&dnsbl.From != 0 })
}

// begin asks the lists about a new client.
func (c *check) begin(s *filter.Session[state]) {
	c.renew()
	if c.gate.Begin(s) && !c.rejected(s).Reject {
		c.inquire(s)
	}
}

func (c *check) inquire(s *filter.Session[state]) {
	s.Local.inquiry = c.dnsbl.Begin(context.Background(), s.Src.Addr())
	s.Local.inquiry.Domain(context.Background(), dnsbl.RDNS, s.RDNS)
}

// rejected says whether a line of a list refuses the client.
func (c *check) rejected(s *filter.Session[state]) exempt.Verdict {
	return c.Exempt.Client(program.ClientOf(s))
}

// foresee asks the lists about a name before the decision, so that nobody waits. A
// client may give names without end and need the answer to none: once it has
// done so, only those are asked about that are decided by.
func (c *check) foresee(s *filter.Session[state], subject dnsbl.Subject, name string) {
	before, asked := s.Local.early[subject]
	if s.Local.inquiry == nil || s.User != "" || asked && before == name || !s.Local.inquiry.Asks(subject) {
		return
	}
	if s.Local.idle = s.Local.idle || asked; s.Local.idle {
		return
	}
	if s.Local.early == nil {
		s.Local.early = make(map[dnsbl.Subject]string)
	}
	s.Local.early[subject] = name
	s.Local.inquiry.Domain(context.Background(), subject, name)
}

func domainOf(sender string) string {
	sender = strings.TrimSuffix(strings.TrimPrefix(sender, "<"), ">")
	return sender[strings.LastIndexByte(sender, '@')+1:]
}

// decide says what is to be done when the time has come.
func (c *check) decide(s *filter.Session[state], r filter.Request, then func(program.Verdict) filter.Response) filter.Response {
	if v := c.rejected(s); v.Reject {
		return then(program.Verdict{Action: cli.Action{Name: cli.Refuse}, Reply: c.replyTo(s.Src.Addr(), dnsbl.Result{}), Reason: "list", By: v.By})
	}
	if s.Local.inquiry == nil { // it was exempt when it came
		c.inquire(s)
	}
	q := s.Local.inquiry
	// The request that is decided may be the one that brings the name.
	helo, from := s.Helo, s.Tx.From
	if s.Tx.ID == "" {
		from = s.Local.from
	}
	switch r.Phase {
	case filter.Helo, filter.Ehlo:
		helo = r.Arg
	case filter.MailFrom:
		from = r.Arg
	}
	q.Domain(context.Background(), dnsbl.Helo, helo)
	q.Domain(context.Background(), dnsbl.From, domainOf(from))
	s.Local.early = nil
	if res, ok := q.Known(context.Background()); ok {
		return then(c.verdict(s.Src.Addr(), res))
	}
	// The verdict keeps its deadline by itself.
	verdict := filter.Go(s, c.Timeout.Value+time.Second, q.Verdict)
	return filter.Await(verdict, func(res dnsbl.Result, err error) filter.Response {
		if errors.Is(err, filter.ErrBusy) {
			res, err = q.Now(), nil
		}
		if err != nil {
			return then(program.Verdict{Reason: "error", Keys: []any{"err", err}})
		}
		return then(c.verdict(s.Src.Addr(), res))
	})
}

// verdict is what is done about what the lists say.
func (c *check) verdict(addr netip.Addr, res dnsbl.Result) program.Verdict {
	v := program.Verdict{Action: cli.Action{Name: cli.Proceed}, Reason: "score"}
	switch res.Verdict {
	case dnsbl.Block:
		v.Action, v.Reply = cli.Action{Name: cli.Refuse}, c.replyTo(addr, res)
	case dnsbl.Junk:
		v.Action = cli.Action{Name: cli.Junk}
	}
	for _, h := range res.Hits {
		if h.Alone {
			v.Reason, v.By = "alone", h.Label
			break
		}
	}
	v.Keys = []any{"score", res.Score}
	for _, h := range res.Hits {
		v.Keys = append(v.Keys, h.Label, h.Weight)
	}
	for _, h := range res.Hits {
		v.Keys = append(v.Keys, "code", h.Label+":"+codes(h.Codes, "/"))
		if h.Domain != "" {
			v.Keys = append(v.Keys, "domain", h.Label+":"+h.Domain)
		}
		if h.Text != "" {
			v.Keys = append(v.Keys, "txt", h.Label+": "+h.Text)
		}
	}
	if res.Untested != nil {
		v.Keys = append(v.Keys, "untested", strings.Join(res.Untested, ","))
	}
	if res.Silent != nil {
		v.Keys = append(v.Keys, "silent", strings.Join(res.Silent, ","))
	}
	v.Keys = append(v.Keys, "t", res.Took.Round(time.Millisecond))
	return v
}

// replyTo is what a client that is refused is told.
func (c *check) replyTo(addr netip.Addr, res dnsbl.Result) cli.Reply {
	if len(res.Hits) == 0 {
		return c.reply.Expand("%i", addr.String(), "%l", "a local list", "%s", "0", "%r", "")
	}
	var labels []string
	for _, h := range res.Hits {
		if h.Weight >= 0 {
			labels = append(labels, h.Label)
		}
	}
	return c.reply.Expand("%i", addr.String(), "%l", strings.Join(labels, ", "),
		"%s", strconv.Itoa(res.Score), "%r", res.Heaviest().Text)
}

// headerValue is what X-DNSBL-Score says: by the answers that have come until
// now, which may be more than the verdict needed.
func (c *check) headerValue(s *filter.Session[state]) string {
	if s.Local.inquiry == nil || !c.gate.Judged(s) {
		return ""
	}
	res := s.Local.inquiry.Now()
	if len(res.Hits) == 0 {
		return "0"
	}
	var parts []string
	for _, h := range res.Hits {
		parts = append(parts, fmt.Sprintf("%s=%d", h.Label, h.Weight))
	}
	return fmt.Sprintf("%d (%s)", res.Score, strings.Join(parts, ", "))
}

// Explain prints what each list says about a client, or a domain, now.
func (c *check) Explain(ctx context.Context, q program.Query, t *program.Table) error {
	if c.used.Len() == 0 {
		return errors.New("no list given; which to trust is for you to decide")
	}
	c.dnsbl.Test(ctx)
	inquiry := c.dnsbl.Begin(ctx, q.Addr)
	names := map[dnsbl.Subject]string{dnsbl.RDNS: q.Name, dnsbl.Helo: q.Helo, dnsbl.From: domainOf(q.Sender)}
	for s := range names {
		if q.Domain != "" {
			names[s] = q.Domain
		}
		inquiry.Domain(ctx, s, names[s])
	}
	inquiry.Wait(ctx)
	res := inquiry.Verdict(ctx)
	if trouble := c.dnsbl.Trouble(); trouble != "" {
		t.Row("resolver", "%s", trouble)
	}
	t.Columns("list", "answer", "meaning", "weight", "time", "health")
	for _, r := range inquiry.Rows() {
		t.Columns(columns(r)...)
	}
	t.Row("score", "%d", res.Score)
	if q.Exempt != "" {
		return nil
	}
	if v := c.Exempt.Client(exempt.Client{Addr: q.Addr}); q.Addr.IsValid() && v.Reject {
		t.Row("answer", "refuse at %s, whatever the lists say: %s", c.Phase, v.By)
		t.Row("reply", "%s", c.replyTo(q.Addr, dnsbl.Result{}))
		return nil
	}
	if c.blockAt == 0 && c.junkAt == 0 {
		t.Row("answer", "depends on -blockAt and -junkAt")
		return nil
	}
	v := c.verdict(q.Addr, res)
	t.Row("answer", "%s at %s", &v.Action, c.Phase)
	if v.Action.Refuses() {
		t.Row("reply", "%s", v.Reply)
	}
	return nil
}

// columns are those of one list.
func columns(r dnsbl.Row) []string {
	weight, took := fmt.Sprint("(", r.Weight, ")"), fmt.Sprintf("%.1fms", r.Took.Seconds()*1000)
	if r.Hit {
		weight = fmt.Sprint(r.Weight)
	}
	row := func(answer, meaning, took string) []string {
		return []string{r.Label, answer, meaning, weight, took, r.Health}
	}
	switch {
	case !r.Asked:
		return row("not asked", "-", "-")
	case r.Failure != "":
		return row("none", r.Failure, took)
	case len(r.Codes) == 0:
		return row("not listed", "-", took)
	}
	var words []string
	for _, text := range r.Meaning {
		if text != "" && !slices.Contains(words, text) {
			words = append(words, text)
		}
	}
	if len(words) == 0 {
		words = []string{"listed"}
	}
	if !r.Hit {
		words = append(words, "does not match")
	}
	return row(codes(r.Codes, " "), strings.Join(words, "; "), took)
}

// codes are the first few answers of a list.
func codes(answers []netip.Addr, sep string) string {
	var list []string
	for _, a := range answers {
		if len(list) == 4 {
			list = append(list, "...")
			break
		}
		if !slices.Contains(list, a.String()) {
			list = append(list, a.String())
		}
	}
	return strings.Join(list, sep)
}

// Config shows the lists as they are understood.
func (c *check) Config(t *program.Table) {
	for _, l := range c.used.all() {
		text := l.String()
		if l.Dead != "" {
			text += ", not asked: " + l.Dead
		}
		t.Row("list", "%s", text)
	}
}
