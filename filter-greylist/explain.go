package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/spf"
)

// Explain shows what would be done with a message, and why. It changes nothing.
func (c *check) Explain(ctx context.Context, q program.Query, t *program.Table) error {
	if c.good != nil {
		c.good.Test(ctx)
	}
	_ = c.loadProviders(ctx) // of trouble with the records more is said below
	who := c.judge(ctx, q.Addr, q.Name, q.Confirmed)
	at, trap := c.traps.Value().Lookup(q.Rcpt)
	if trap {
		t.Row("trap", "%s", at)
	}
	by, ok := c.ExplainMail(ctx, q, c.Phase, t)
	if v := c.recipient(q.Rcpt); !ok && q.Rcpt != "" && v.Exempt {
		by, ok = v.By, true
	}
	if ok {
		t.Row("answer", "proceed, never judged: %s", by)
		return nil
	}
	r := spf.Result{}
	if c.spfMode != "off" {
		r = c.spf.Check(ctx, spf.Query{Addr: q.Addr, Helo: q.Helo, Sender: q.Sender})
	}
	t.Row("spf", "%s", c.shownSPF(r))
	a := greylist.Attempt{
		Time: time.Now(), Helo: q.Helo, Sender: q.Sender, Rcpts: []string{q.Rcpt}, SPF: spfOf(r, c.spfMode), Trap: trap,
	}
	c.isClient(&a, who, r)
	if a.Client.Provider != "" {
		t.Row("provider", "%s", a.Client.Provider)
	}
	if c.dnswl != "" {
		t.Row("list", "%s", cmp.Or(who.Listed, "not on -dnswl "+c.allows[0].Label+", or that is not well"))
	}
	d, entries, err := c.greylist.Explain(ctx, a)
	if err != nil {
		return cmp.Or(c.usable(), fmt.Errorf("explain: %w", err))
	}
	suspect := "no"
	if d.Suspect != greylist.Proper {
		suspect = string(d.Suspect)
	}
	t.Row("suspect", "%s", suspect)
	t.Row("origins", "%s", strings.Join(d.Origins, " "))
	t.Row("sender", "%s", d.Sender)
	t.Row("recipient", "%s", d.Rcpt)
	for _, e := range entries {
		of := cmp.Or(e.Of, "sender and recipient")
		if e.Of != "" && e.Rcpt != "" {
			of += " to " + e.Rcpt
		}
		t.Row("record", "%s %s of %s, first %s, last %s, tries %d, key %s", e.Key.Kind(), e.Record.State, of,
			shownTime(e.Record.First), shownTime(e.Record.Last), e.Record.Tries, e.Key)
	}
	if len(entries) == 0 {
		t.Row("record", "none")
	}
	switch {
	case d.Accept:
		t.Row("answer", "proceed: %s, by %s", meaning[d.Reason], cmp.Or(d.By, d.Origin))
	case q.Rcpt == "":
		t.Row("answer", "depends on sender and recipient: the client is not known")
	default:
		t.Row("answer", "defer at %s: %s, by %s", c.Phase, meaning[d.Reason], d.Origin)
		t.Row("reply", "%s", c.replyTo(q.Addr, d))
		t.Row("seconds left", "%d", int64(d.Left/time.Second))
		for _, way := range c.ways(&a, d) {
			t.Row("would pass", "%s", way)
		}
	}
	return nil
}

// ways are what would make refused mail pass.
func (c *check) ways(a *greylist.Attempt, d greylist.Decision) (ways []string) {
	add := func(format string, args ...any) { ways = append(ways, fmt.Sprintf(format, args...)) }
	addr := a.Client.Addr.Unmap()
	if d.Reason == greylist.Trapped {
		add("anything of the client in %s, or after: allow %s", d.Trapped.Round(time.Second), addr)
		return ways
	}
	var from []string
	for _, o := range d.Origins {
		if kind, _, ok := strings.Cut(o, ":"); ok && slices.Contains([]string{"spf", "provider", "name", "net"}, kind) {
			from = append(from, o)
		}
	}
	if d.Reason == greylist.Early {
		add("a retry in %d seconds, until %s after the first attempt, from %s", int64(d.Left/time.Second), &c.greyExp, strings.Join(from, " or "))
	} else {
		add("a retry from %s to %s after the first attempt, from %s", &c.passTime, &c.greyExp, strings.Join(from, " or "))
	}
	_, domain, _ := strings.Cut(d.Sender, "@")
	if c.who == "suspects" && !a.Junked {
		var need []string
		if a.Client.Name == "" || a.Client.Class != greylist.Proper {
			need = append(need, "a name of a mail server that resolves to the address")
		}
		switch {
		case d.Sender == greylist.NullSender && a.SPF.Status != greylist.SPFPass:
			need = append(need, "a HELO name in its own domain")
		case a.SPF.Status != greylist.SPFPass && a.SPF.Status != greylist.SPFOff:
			need = append(need, "SPF pass for "+domain)
		}
		if need != nil {
			add("at once, with %s", strings.Join(need, " and "))
		}
	}
	keys := []string{addr.String()}
	if a.SPF.Status == greylist.SPFPass {
		keys = append(keys, "spf:"+a.SPF.Domain)
	}
	if a.Client.Provider != "" {
		keys = append(keys, "provider:"+a.Client.Provider)
	}
	add("at once, after: allow %s", strings.Join(keys, " or "))
	switch {
	case a.SPF.Status == greylist.SPFPass && domain != "":
		add("at once, after: expect %s %s", domain, d.Rcpt)
	case a.Client.Class == greylist.Proper && a.Client.Domain != "":
		add("at once, after: expect %s %s", a.Client.Domain, d.Rcpt)
	default:
		add("at once, after: expect %s %s", addr, d.Rcpt)
	}
	return ways
}

func shownTime(ms int64) string {
	if ms == 0 {
		return "never"
	}
	return time.UnixMilli(ms).Format("2006-01-02 15:04:05")
}

// meaning says in words what a reason is.
var meaning = map[greylist.Reason]string{
	greylist.Unseen:   "not seen before",
	greylist.Early:    "seen, but -passTime has not passed",
	greylist.Late:     "seen, but longer ago than -greyExp, so it counts as new",
	greylist.Trapped:  "the client has written to a trap",
	greylist.Exempted: "on a list",
	greylist.Vouched:  "vouched for",
	greylist.Expected: "expected",
	greylist.Retry:    "the retry that was waited for",
	greylist.Known:    "known",
	greylist.Paired:   "sender and recipient are known to each other",
}
