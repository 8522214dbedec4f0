package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/proto"
)

// state is what is kept of a session.
type state struct {
	inquiry  *dnsbl.Inquiry           // nil: the lists are not asked
	early    map[dnsbl.Subject]string // names that were asked about and have not been needed yet
	idle     bool                     // one never was
	refused  string                   // line of a list file that refuses the client, "" if none does
	reported string                   // the decision as it was last logged
}

// filter returns the filter with its handlers.
func (c *checker) filter() *filter.Filter[state] {
	f := filter.New[state](filter.Options{
		Log: c.log, Metrics: c.metrics,
		Deadline: max(15*time.Second, c.flags.Timeout.Value+5*time.Second),
	})
	f.OnSession(c.begin)
	if c.asks(dnsbl.Helo) {
		f.OnReport(proto.LinkIdentify, c.identified)
	}
	if c.asks(dnsbl.From) {
		f.OnReport(proto.TxMail, c.mailed)
	}
	f.Decide(c.flags.phase, c.decide)
	if c.flags.scoreHeader {
		f.SetHeader("X-DNSBL-Score", c.headerValue)
	}
	return f
}

func (c *checker) asks(s dnsbl.Subject) bool {
	return slices.ContainsFunc(c.flags.lists, func(l dnsbl.List) bool { return l.Ask&s != 0 })
}

// begin asks the lists about a new client.
func (c *checker) begin(s *filter.Session[state]) {
	addr := s.Src.Addr()
	v := c.exempt(addr, s.RDNS, s.FCrDNS)
	if v.Reject {
		s.Local.refused = v.By
		return
	}
	why := v.By
	if v.Exempt {
		c.log.Debug(s.ID, "filter", "dnsbl", "action", "proceed", "addr", addr, "why", why)
		return
	}
	s.Local.inquiry = c.dnsbl.Begin(c.ctx, addr)
	s.Local.inquiry.Domain(c.ctx, dnsbl.RDNS, s.RDNS)
}

// exempt says whether the lists are asked about a client: by lines of files, and
// by its address.
func (c *checker) exempt(addr netip.Addr, name string, confirmed bool) exempt.Verdict {
	if !addr.IsValid() {
		return exempt.Verdict{Exempt: true, By: "local socket"}
	}
	if !confirmed {
		name = ""
	}
	m, ok := c.allow.Value().Lookup(addr, name)
	if !ok {
		m, ok = c.deny.Value().Lookup(addr, name)
	}
	switch {
	case ok && m.Action == exempt.Permit:
		return exempt.Verdict{Exempt: true, By: m.String()}
	case ok && m.Action == exempt.Reject:
		return exempt.Verdict{Reject: true, By: m.String()}
	case ipset.Private(addr):
		return exempt.Verdict{Exempt: true, By: "local or private"}
	}
	return exempt.Verdict{}
}

func (c *checker) identified(s *filter.Session[state], _ *proto.Line) {
	c.early(s, dnsbl.Helo, s.Helo)
}

func (c *checker) mailed(s *filter.Session[state], _ *proto.Line) {
	c.early(s, dnsbl.From, domainOf(s.Tx.From))
}

// early asks the lists about a name before the decision, so that nobody waits. A
// client may give names without end and need the answer to none: once it has
// done so, only those are asked about that are decided by.
func (c *checker) early(s *filter.Session[state], subject dnsbl.Subject, name string) {
	before, asked := s.Local.early[subject]
	if s.Local.inquiry == nil || s.User != "" || asked && before == name {
		return
	}
	if s.Local.idle = s.Local.idle || asked; s.Local.idle {
		return
	}
	if s.Local.early == nil {
		s.Local.early = make(map[dnsbl.Subject]string)
	}
	s.Local.early[subject] = name
	s.Local.inquiry.Domain(c.ctx, subject, name)
}

func domainOf(sender string) string {
	sender = strings.TrimSuffix(strings.TrimPrefix(sender, "<"), ">")
	return sender[strings.LastIndexByte(sender, '@')+1:]
}

// decide answers when the time has come.
func (c *checker) decide(s *filter.Session[state], req filter.Request) filter.Response {
	if s.User != "" {
		c.log.Debug(s.ID, "filter", "dnsbl", "action", "proceed", "addr", s.Src.Addr(), "why", "authenticated")
		return filter.Proceed()
	}
	if s.Local.refused != "" {
		return c.conclude(s, req, dnsbl.Result{Verdict: dnsbl.Block}, nil)
	}
	q := s.Local.inquiry
	if q == nil {
		return filter.Proceed()
	}
	// The request that is decided may be the one that brings the name.
	helo, from := s.Helo, s.Tx.From
	switch req.Phase {
	case filter.Helo, filter.Ehlo:
		helo = req.Arg
	case filter.MailFrom:
		from = req.Arg
	}
	if c.asks(dnsbl.Helo) {
		q.Domain(c.ctx, dnsbl.Helo, helo)
	}
	if c.asks(dnsbl.From) {
		q.Domain(c.ctx, dnsbl.From, domainOf(from))
	}
	s.Local.early = nil
	// The verdict keeps its deadline by itself.
	verdict := filter.Go(s, c.flags.Timeout.Value+time.Second, q.Verdict)
	return filter.Await(verdict, func(res dnsbl.Result, err error) filter.Response {
		if errors.Is(err, filter.ErrBusy) {
			res, err = q.Now(), nil
		}
		return c.conclude(s, req, res, err)
	})
}

// actions are the words of the log for verdicts.
func actions() [3]string {
	return [...]string{dnsbl.Pass: "proceed", dnsbl.Junk: "junk", dnsbl.Block: "block"}
}

// conclude logs the decision and returns the answer.
func (c *checker) conclude(s *filter.Session[state], req filter.Request, res dnsbl.Result, err error) filter.Response {
	addr := s.Src.Addr()
	if err != nil {
		c.decided[dnsbl.Pass].Inc()
		c.log.Warn(s.ID, "filter", "dnsbl", "action", "proceed", "addr", addr, "err", err)
		return filter.Proceed()
	}
	action := actions()[res.Verdict]
	late := req.Phase == filter.Commit && res.Verdict == dnsbl.Junk
	c.decided[res.Verdict].Inc()
	attrs := []any{"filter", "dnsbl", "action", action, "addr", addr}
	if s.Local.refused != "" {
		attrs = append(attrs, "why", s.Local.refused)
	} else {
		attrs = append(attrs, "score", res.Score)
	}
	for _, h := range res.Hits {
		attrs = append(attrs, h.Label, h.Weight)
	}
	for _, h := range res.Hits {
		attrs = append(attrs, "code", h.Label+":"+codes(h.Codes, "/"))
		if h.Domain != "" {
			attrs = append(attrs, "name", h.Label+":"+h.Domain)
		}
		if h.Alone {
			attrs = append(attrs, "why", h.Label+"+"+action)
		}
		if h.Text != "" {
			attrs = append(attrs, "txt", h.Label+": "+h.Text)
		}
	}
	if res.Untested != nil {
		attrs = append(attrs, "untested", strings.Join(res.Untested, ","))
	}
	if res.Silent != nil {
		attrs = append(attrs, "silent", strings.Join(res.Silent, ","))
	}
	switch {
	case c.flags.DryRun:
		attrs = append(attrs, "dryRun", true)
	case late:
		attrs = append(attrs, "note", "too late to junk")
	}
	if line := fmt.Sprint(attrs...); line != s.Local.reported {
		s.Local.reported = line
		c.log.Info(s.ID, append(attrs, "t", res.Took.Round(time.Millisecond))...)
	}
	switch {
	case c.flags.DryRun || late:
		return filter.Proceed()
	case res.Verdict == dnsbl.Block:
		r := c.reply(addr, res)
		return filter.Reject(r.Code, r.Enhanced, r.Text)
	case res.Verdict == dnsbl.Junk:
		return filter.Junk()
	}
	return filter.Proceed()
}

// reply is what a client that is refused is told.
func (c *checker) reply(addr netip.Addr, res dnsbl.Result) cli.Reply {
	if len(res.Hits) == 0 {
		return c.flags.reply.Expand("%i", addr.String(), "%l", "a local list", "%s", "0", "%r", "")
	}
	var labels []string
	for _, h := range res.Hits {
		if h.Weight >= 0 {
			labels = append(labels, h.Label)
		}
	}
	return c.flags.reply.Expand("%i", addr.String(), "%l", strings.Join(labels, ", "),
		"%s", strconv.Itoa(res.Score), "%r", res.Heaviest().Text)
}

// headerValue is what X-DNSBL-Score says: by the answers that have come until
// now, which may be more than the verdict needed.
func (c *checker) headerValue(s *filter.Session[state]) string {
	if s.Local.inquiry == nil || s.User != "" {
		return ""
	}
	s.Local.early = nil
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

// lookup prints what the lists say about an address now.
func (c *checker) lookup(addr netip.Addr, stdout io.Writer) {
	ctx := context.Background()
	c.dnsbl.Test(ctx)
	q := c.dnsbl.Begin(ctx, addr)
	rdns := ""
	if c.asks(dnsbl.RDNS) {
		if names, err := c.resolver.PTR(ctx, addr); err == nil && len(names) > 0 {
			rdns = names[0]
			q.Domain(ctx, dnsbl.RDNS, rdns)
		}
	}
	q.Wait(ctx)
	res := q.Verdict(ctx)

	fmt.Fprintf(stdout, "address  %s\n", addr)
	if trouble := c.dnsbl.Trouble(); trouble != "" {
		fmt.Fprintf(stdout, "resolver %s\n", trouble)
	}
	if rdns != "" {
		fmt.Fprintf(stdout, "name     %s\n", dnsbl.Clean(rdns))
	}
	fmt.Fprintln(stdout)
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "list\tanswer\tmeaning\tweight\ttime\thealth\n")
	for _, r := range q.Rows() {
		answer, meaning, weight, took := c.row(r)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Label, answer, meaning, weight, took, r.Health)
	}
	w.Flush()

	fmt.Fprintf(stdout, "\nscore    %d\n", res.Score)
	switch v := c.exempt(addr, "", false); {
	case v.Reject:
		fmt.Fprintf(stdout, "verdict  block, whatever the lists say: %s\n", v.By)
	case v.Exempt:
		fmt.Fprintf(stdout, "verdict  pass, whatever the lists say: %s\n", v.By)
	case c.flags.blockAt == 0 && c.flags.junkAt == 0:
		fmt.Fprintf(stdout, "verdict  depends on -blockAt and -junkAt\n")
	default:
		fmt.Fprintf(stdout, "verdict  %s at %s\n", res.Verdict, c.flags.phaseName)
		if res.Verdict == dnsbl.Block {
			fmt.Fprintf(stdout, "reply    %s\n", c.reply(addr, res))
		}
	}
}

// row returns the columns of one list.
func (c *checker) row(r dnsbl.Row) (answer, meaning, weight, took string) {
	weight, took = fmt.Sprint("(", r.Weight, ")"), fmt.Sprintf("%.1fms", r.Took.Seconds()*1000)
	if r.Hit {
		weight = fmt.Sprint(r.Weight)
	}
	switch {
	case !r.Asked:
		return "not asked", "-", weight, "-"
	case r.Failure != "":
		return "none", r.Failure, weight, took
	case len(r.Codes) == 0:
		return "not listed", "-", weight, took
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
	return codes(r.Codes, " "), strings.Join(words, "; "), weight, took
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
