package main

import (
	"cmp"
	"context"
	"fmt"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/senderscore"
)

// Explain looks a client up and says what would be done.
func (c *check) Explain(ctx context.Context, q program.Query, t *program.Table) error {
	f := c.known(q.Addr)
	if f.reason == "" {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout.Value)
		f = found(c.scores.Lookup(ctx, q.Addr))
		cancel()
		c.scores.Run(ctx) // the query counts
	}
	t.Row("score", "%s", f.shown())
	t.Row("reason", "%s", cmp.Or(f.by, f.reason))
	if f.Err != nil {
		t.Row("error", "%v", f.Err)
	}
	answer, reply := cli.Proceed, ""
	for _, d := range []struct {
		below  int
		at     filter.Phase
		action string
	}{{c.blockBelow, c.Phase, cli.Disconnect}, {c.junkBelow, c.junkPhase(), cli.Junk}} {
		if f.Status != senderscore.Known || f.Score >= d.below {
			continue
		}
		if by, ok := c.ExplainMail(ctx, q, d.at, t); ok && d.at != filter.Quit { // the mail is over then
			answer = cli.Proceed + ", exempt: " + by
			continue
		}
		answer = fmt.Sprintf("%s at %s", d.action, d.at)
		if d.action == cli.Disconnect {
			reply = c.reply.Value.Expand().String()
		}
		break
	}
	t.Row("answer", "%s", answer)
	if reply != "" {
		t.Row("reply", "%s", reply)
	}
	if d := c.delay(f.Score); d > 0 && f.Status == senderscore.Known {
		t.Row("delay", "%s of every answer", d)
	}
	return nil
}

// Config shows the delays, and what is known of the list and the quota.
func (c *check) Config(t *program.Table) {
	for _, score := range []int{0, 50, 100} {
		if d := c.delay(score); d > 0 {
			t.Row(fmt.Sprint("delay for score ", score), "%s", d)
		}
	}
	t.Row("entries of -allowlist", "%d", c.allowlist.Value().Len())
	if c.scores != nil {
		t.Row("queries in 30 days", "%d", c.scores.Used())
	}
}

// warn says what is hardly meant.
func (c *check) warn() {
	for _, w := range senderscore.Warnings(c.blockBelow, c.junkBelow) {
		c.Warn("%s", w)
	}
	if c.blockBelow > 0 && c.Phase < filter.MailFrom && len(c.Lists.Senders) > 0 {
		c.Warn("-allowSenders does not keep -blockBelow from refusing at %s: the sender is not known yet", c.Phase)
	}
	if c.blockBelow > 0 && c.Phase < filter.RcptTo && len(c.Lists.Recipients) > 0 {
		c.Warn("-allowRecipients does not keep -blockBelow from refusing at %s: recipients are not known yet", c.Phase)
	}
	if c.CheckOnly && c.stateFile != "" {
		if err := cli.CheckWritable(c.stateFile); err != nil {
			c.Warn("queries cannot be counted in the state file: %v", err)
		}
	}
}

// Close ends what was begun when the program was made.
func (c *check) Close() error {
	c.restore()
	return nil
}
