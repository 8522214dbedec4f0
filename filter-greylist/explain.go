package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/spf"
)

// explain prints what would be done with a message, and why. It changes
// nothing.
func (c *checker) explain(args []string, stdout io.Writer) error {
	if len(args) != 3 && len(args) != 4 {
		return usageError("explain")
	}
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return fmt.Errorf("explain: %s is not an address", args[0])
	}
	addr = addr.Unmap().WithZone("")
	unbracket := func(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">") }
	from, rcpt, helo := unbracket(args[1]), unbracket(args[2]), ""
	if len(args) == 4 {
		helo = args[3]
	}
	if !strings.Contains(rcpt, "@") {
		return fmt.Errorf("explain: %s is not the address of a recipient", args[2])
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.flags.Timeout.Value+learnTimeout)
	defer cancel()
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	defer w.Flush()
	row := func(name string, format string, args ...any) {
		text := strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(fmt.Sprintf(format, args...))
		fmt.Fprintf(w, "%s\t%s\n", name, text)
	}
	row("address", "%s", addr)
	name, fcrdns := c.name(ctx, addr)
	if fcrdns || name == unknown {
		row("name", "%s", clean(name))
	} else {
		row("name", "%s, which is not at that address", clean(name))
	}
	who := c.judge(ctx, addr, name, fcrdns)
	if _, why, ok := c.exempt(addr, "", name, fcrdns); ok {
		row("answer", "let through, never greylisted: %s", why)
		return nil
	}
	at, trap := c.traps.Value().Lookup(rcpt)
	if trap {
		row("trap", "%s", at)
	}
	r := spf.Result{}
	if c.flags.spf != "off" {
		r = c.spf.Check(ctx, spf.Query{Addr: addr, Helo: helo, Sender: from})
	}
	row("spf", "%s", c.shownSPF(r))
	if _, why, ok := c.exemptMail(from, []string{rcpt}, r); ok {
		row("answer", "let through, never greylisted: %s", why)
		return nil
	}
	a := greylist.Attempt{
		Time: time.Now(), Client: who, Helo: helo, Sender: from, Rcpts: []string{rcpt},
		SPF: spfOf(r, c.flags.spf), Trap: trap,
	}
	d, entries, err := c.greylist.Explain(ctx, a)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	if d.Suspect == greylist.Proper {
		row("suspect", "no")
	} else {
		row("suspect", "%s", d.Suspect)
	}
	row("origins", "%s", strings.Join(d.Origins, " "))
	row("sender", "%s", clean(d.Sender))
	row("recipient", "%s", clean(d.Rcpt))
	for _, e := range entries {
		row("record", "%s %s, first %s, last %s, tries %d, key %s", e.Key.Kind(), e.Record.State,
			shownTime(e.Record.First), shownTime(e.Record.Last), e.Record.Tries, e.Key)
	}
	if len(entries) == 0 {
		row("record", "none")
	}
	if d.Accept {
		row("answer", "let through: %s, by %s", meaning[d.Reason], d.Origin)
		return nil
	}
	row("answer", "refused: %s, by %s", meaning[d.Reason], d.Origin)
	row("reply", "%s", c.reply(addr, d))
	row("seconds left", "%d", int64(d.Left/time.Second))
	return nil
}

// unknown is what smtpd calls a client without a name.
const unknown = "<unknown>"

// name returns the reverse name of an address, and whether it resolves to it.
func (c *checker) name(ctx context.Context, addr netip.Addr) (name string, fcrdns bool) {
	names, err := c.resolver.PTR(ctx, addr)
	if err != nil || len(names) == 0 {
		return unknown, false
	}
	name = strings.TrimSuffix(names[0], ".")
	addrs, _ := c.resolver.Addrs(ctx, name)
	for _, a := range addrs {
		fcrdns = fcrdns || a.Unmap() == addr
	}
	return name, fcrdns
}

func shownTime(ms int64) string { return time.UnixMilli(ms).Format("2006-01-02 15:04:05") }

// meaning says in words what a reason is.
var meaning = map[greylist.Reason]string{
	greylist.Unseen:   "not seen before",
	greylist.Early:    "seen, but -passtime has not passed",
	greylist.Late:     "seen, but longer ago than -greyexp, so it counts as new",
	greylist.Trapped:  "the client has written to a trap",
	greylist.Exempted: "on a list",
	greylist.Vouched:  "vouched for",
	greylist.Expected: "expected",
	greylist.Retry:    "the retry that was waited for",
	greylist.Known:    "known",
	greylist.Paired:   "sender and recipient are known to each other",
}
