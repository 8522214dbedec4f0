//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// A guest is a client that is to wait for the greeting.
type guest struct {
	what, addr string
	says       string        // before it
	after      time.Duration // it has connected
}

var guests = []guest{
	{what: "mail server", addr: "198.51.100.10"},
	{what: "bot", addr: "203.0.113.66", says: "EHLO pc\r\n"},
	{what: "bot, sends by the clock", addr: "203.0.113.67", says: "EHLO pc\r\nMAIL FROM:<winner@lottery.example>\r\n", after: time.Second},
	{what: "bot, only a byte", addr: "2001:db8:2f0f::66", says: "E"},
}

// showGreet shows who waits for the greeting, side by side, and then the one who
// did once more.
func showGreet(w io.Writer, release smtpdtest.Release, bin string) (err error) {
	conf := smtpdtest.Config{
		Release: release,
		Bin:     bin,
		Filters: []smtpdtest.Filter{{Name: "greet", Command: "filter-greet"}},
	}
	fmt.Fprintf(w, "\nsmtpd.conf:\n\n%s\n", indent(conf.String()))
	s, err := smtpdtest.Start(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT\tADDRESS\tSAYS\tAFTER\tGREETING\tAFTER")
	rows, errs := make([]string, len(guests)), make([]error, len(guests)+1)
	var wg sync.WaitGroup
	for i, g := range guests {
		wg.Go(func() { rows[i], errs[i] = g.visit(s) })
	}
	wg.Wait()
	again := guests[0]
	again.what += ", again"
	row, err := again.visit(s)
	errs[len(guests)] = err
	for _, r := range append(rows, row) {
		fmt.Fprintln(table, r)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintf(w, "What the filter wrote to smtpd's log:\n\n")
	for line := range strings.Lines(s.Log()) {
		if strings.HasPrefix(line, "greet: ") {
			fmt.Fprint(w, "    ", line)
		}
	}
	fmt.Fprintln(w)
	if err := table.Flush(); err != nil {
		return err
	}
	return s.Check()
}

// visit connects, and returns a row of the table.
func (g guest) visit(s *smtpdtest.Server) (row string, err error) {
	begin := time.Now()
	c, err := s.Dial(g.addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	says, after := "-", "-"
	if g.says != "" {
		time.Sleep(g.after)
		says, after = fmt.Sprintf("%.12q", g.says), g.after.String()
		if _, err := io.WriteString(c, g.says); err != nil {
			return "", err
		}
	}
	r, err := c.Reply()
	if err != nil {
		return "", fmt.Errorf("%s from %s: %w", g.what, g.addr, err)
	}
	took := time.Since(begin).Round(100 * time.Millisecond)
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%v\t%v", g.what, g.addr, says, after, r, took), nil
}
