//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// passTime is what a retry has to wait here; by default it is a minute.
const passTime = 2 * time.Second

// A try is one attempt to deliver a mail.
type try struct {
	what, addr, from string
	to               string        // a user, who gets no other mail
	after            time.Duration // since the first
}

var tries = []try{
	{what: "new mail server", addr: "198.51.100.10", from: "alice@pool.example", to: "bob"},
	{what: "bot, never seen again", addr: "203.0.113.66", from: "winner@lottery.example", to: "bob"},
	{what: "retry, too early", addr: "198.51.100.10", from: "alice@pool.example", to: "bob", after: passTime / 2},
	{what: "retry, from elsewhere in its pool", addr: "203.0.113.10", from: "alice@pool.example", to: "bob", after: passTime},
	{what: "another mail of the pool", addr: "203.0.113.11", from: "carol@pool.example", to: "dave", after: passTime},
	{what: "mail to postmaster", addr: "203.0.113.99", from: "eve@new.example", to: "postmaster", after: passTime},
}

// showGreylist shows who has to come again.
func showGreylist(w io.Writer, release smtpdtest.Release, bin string) (err error) {
	program := fmt.Sprintf("filter-greylist -store sqlite:%s/greylist.db -passTime %s", smtpdtest.State, passTime)
	conf := smtpdtest.Config{
		Release: release,
		Bin:     bin,
		Zone:    "pool.example TXT \"v=spf1 ip4:198.51.100.0/24 ip4:203.0.113.0/28 -all\"\n",
		Filters: []smtpdtest.Filter{{Name: "greylist", Command: program + " -header"}},
	}
	fmt.Fprintf(w, "\nsmtpd.conf:\n\n%s\n", indent(conf.String()))
	s, err := smtpdtest.Start(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT\tADDRESS\tSENDER\tLAST REPLY\tX-GREYLIST")
	start := time.Now()
	for i, t := range tries {
		time.Sleep(time.Until(start.Add(t.after)))
		res, err := s.Send(smtpdtest.Mail{Src: t.addr, Sender: t.from, To: t.to})
		if err != nil {
			return fmt.Errorf("mail from %s: %w", t.addr, err)
		}
		if i == 0 {
			start = time.Now()
		}
		field := ""
		if res.Accepted() {
			mails, err := s.WaitMail(t.to, 1)
			if err != nil {
				return err
			}
			field, _, _ = strings.Cut(strings.Join(mails[0].Header("X-Greylist"), ""), " by ")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", t.what, t.addr, t.from, res, field)
	}
	fmt.Fprintf(w, "What the filter wrote to smtpd's log:\n\n")
	for line := range strings.Lines(s.Log()) {
		if strings.HasPrefix(line, "greylist: ") {
			fmt.Fprint(w, "    ", line)
		}
	}
	fmt.Fprintln(w)
	if err := table.Flush(); err != nil {
		return err
	}
	for _, args := range []string{"list grey", "explain 203.0.113.66 winner@lottery.example bob@example.org"} {
		out, err := s.Run("./" + program + " " + args)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		fmt.Fprintf(w, "\n$ filter-greylist %s\n%s", args, out)
	}
	return s.Check()
}
