package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/spf"
)

// Explain shows what would be done with a message, and why. It changes nothing.
func (c *check) Explain(ctx context.Context, q program.Query, t *program.Table) error {
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
		Time: time.Now(), Client: who, Helo: q.Helo, Sender: q.Sender, Rcpts: []string{q.Rcpt},
		SPF: spfOf(r, c.spfMode), Exempt: c.skips(r), Trap: trap,
	}
	d, entries, err := c.greylist.Explain(ctx, a)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
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
		t.Row("record", "%s %s, first %s, last %s, tries %d, key %s", e.Key.Kind(), e.Record.State,
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
	}
	return nil
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
