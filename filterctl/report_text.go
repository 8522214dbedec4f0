package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/metrics"
)

const textRows = 15 // of each table of the text

// text writes the report for a mail.
func (r *figures) text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	title := func(s string) {
		_ = t.Flush()
		fmt.Fprintf(w, "\n%s\n", s)
	}
	fmt.Fprintf(w, "%s, %s lines\n", r.span(), thousands(r.Lines))
	c, m := r.Connections, r.Messages
	title("Mail")
	fmt.Fprintf(t, "\taccepted\tjunked\tdeferred\trefused\tno mail\ttotal\t\n")
	fmt.Fprintf(t, "messages\t%s\t%s\t%s\t%s\t\t%s\t\n", thousands(m.Accepted), thousands(m.Junked), thousands(m.Deferred), thousands(m.Refused), thousands(m.Total()))
	fmt.Fprintf(t, "connections\t%s\t%s\t%s\t%s\t%s\t%s\t\n", thousands(c.Accepted), thousands(c.Junked), thousands(c.Deferred), thousands(c.Refused), thousands(c.Nothing), thousands(c.Total))
	_ = t.Flush()
	for _, n := range r.notes() {
		fmt.Fprintln(w, n)
	}
	if len(r.Filters) > 0 {
		title("Filters")
		fmt.Fprintf(t, "\tproceed\tjunk\tdefer\trefuse\tmore rcpts\t\n")
		for _, f := range r.Filters {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", f.Name, thousands(f.Proceed), thousands(f.Junk), thousands(f.Defer), thousands(f.Refuse), thousands(f.More))
		}
		_ = t.Flush()
		fmt.Fprintln(w)
		for _, f := range r.Filters {
			fmt.Fprintf(w, "  %s: %s\n", f.Name, inWords(f.Reasons, 8))
		}
	}
	if len(r.Server) > 0 {
		title("Refused or deferred by smtpd itself")
		for _, s := range r.Server[:min(len(r.Server), textRows)] {
			fmt.Fprintf(t, "%s\t  %s\n", thousands(s.Count), s.What)
		}
	}
	left := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Clients) > 0 {
		title("Refused most")
		fmt.Fprintf(left, "client\tname\trefused\tdeferred\tjunked\taccepted\n")
		for _, c := range r.Clients[:min(len(r.Clients), textRows)] {
			fmt.Fprintf(left, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Addr, c.Name, thousands(c.Refused), thousands(c.Deferred), thousands(c.Junked), thousands(c.Accepted))
		}
		_ = left.Flush()
	}
	if g := r.Greylist; g.Waited+g.Never > 0 {
		title("Greylisting")
		if g.Waited > 0 {
			fmt.Fprintf(w, "%s mails waited and came again: half of them at most %s, 95%% at most %s\n", thousands(g.Waited), seconds(g.P50), seconds(g.P95))
			for _, b := range g.Waits {
				if b.Count > 0 {
					fmt.Fprintf(t, "%s\t%s\t  %s\n", b.Text, thousands(b.Count), strings.Repeat("#", max(1, b.Count*40/g.Waited)))
				}
			}
			_ = t.Flush()
		}
		if g.Never > 0 {
			fmt.Fprintf(w, "%s never came again; is one of these a mail server of a friend?\n", thousands(g.Never))
			for _, n := range g.NeverBy[:min(len(g.NeverBy), textRows)] {
				fmt.Fprintf(left, "  %s\t%s\t<%s>\t<%s>\ttries %s\n", n.Addr, n.Name, n.From, n.Rcpt, n.Tries)
			}
			_ = left.Flush()
		}
	}
	if len(r.Lists) > 0 {
		title("DNS lists")
		fmt.Fprintf(t, "\thits\tdecided\talone\tasked\tno answer\t95%% within\tstate\t\n")
		for _, l := range r.Lists[:min(len(r.Lists), 40)] {
			asked := "\t\t\t\t"
			if l.Metrics {
				asked = fmt.Sprintf("%s\t%s\t%s\t%s\t", thousands(l.Asked), thousands(l.Failed), seconds(l.P95), l.State())
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", l.List, thousands(l.Hit), thousands(l.Decided), thousands(l.Alone), asked)
		}
		_ = t.Flush()
	}
	if len(r.Recipients) > 0 {
		title("Recipients")
		fmt.Fprintf(left, "recipient\taccepted\tjunked\tdeferred\trefused\n")
		for _, c := range r.Recipients[:min(len(r.Recipients), textRows)] {
			fmt.Fprintf(left, "%s\t%s\t%s\t%s\t%s\n", c.Rcpt, thousands(c.Accepted), thousands(c.Junked), thousands(c.Deferred), thousands(c.Refused))
		}
		_ = left.Flush()
	}
	if len(r.Trouble) > 0 {
		title("Trouble")
		for _, s := range r.Trouble[:min(len(r.Trouble), textRows)] {
			fmt.Fprintf(t, "%s\t  %s\n", thousands(s.Count), s.What)
		}
	}
	return t.Flush()
}

// span is from when to when.
func (r *figures) span() string {
	if r.From.IsZero() {
		return "At an unknown time"
	}
	const form = "Mon 2 Jan 2006 15:04"
	to := r.To.Format(form)
	if r.From.Format(time.DateOnly) == r.To.Format(time.DateOnly) {
		to = r.To.Format("15:04")
	}
	return r.From.Format(form) + " to " + to
}

// notes are what else there is to say of mail and connections.
func (r *figures) notes() (notes []string) {
	c := r.Connections
	for _, n := range []struct {
		n         int
		one, more string
	}{
		{c.Local, "session of this machine itself", "sessions of this machine itself"},
		{c.Authenticated, "connection of a user that logged in", "connections of users that logged in"},
		{c.Cut, "session that began before the log, not among the connections", "sessions that began before the log, not among the connections"},
		{r.BadCommands, "command that smtpd did not understand", "commands that smtpd did not understand"},
	} {
		switch {
		case n.n == 1:
			notes = append(notes, "1 "+n.one)
		case n.n > 1:
			notes = append(notes, thousands(n.n)+" "+n.more)
		}
	}
	if len(r.Deliveries) > 0 {
		notes = append(notes, "deliveries: "+inWords(r.Deliveries, 6))
	}
	for _, i := range r.Inexact {
		notes = append(notes, "not exact: "+i)
	}
	return notes
}

// inWords writes counts in one line.
func inWords(all []counted, most int) string {
	var parts []string
	rest := 0
	for i, c := range all {
		if i < most {
			parts = append(parts, c.What+" "+thousands(c.Count))
		} else {
			rest += c.Count
		}
	}
	if rest > 0 {
		parts = append(parts, "others "+thousands(rest))
	}
	return strings.Join(parts, ", ")
}

// seconds writes a time with what matters of it.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		d = d.Round(time.Millisecond)
	case d < time.Minute:
		d = d.Round(100 * time.Millisecond)
	case d < time.Hour:
		d = d.Round(time.Second)
	default:
		d = d.Round(time.Minute)
	}
	return (&cli.Duration{Value: d}).String()
}

// State is how a list is.
func (l listReport) State() string {
	switch {
	case !l.Metrics:
		return ""
	case l.Sick:
		return "sick"
	case l.P95 > slowList:
		return "slow"
	}
	return "well"
}

const slowList = 2 // seconds

// addMetrics adds what the programs count of DNS lists.
func (r *figures) addMetrics(files []string) error {
	lists := map[string]*listReport{}
	for _, l := range r.Lists {
		lists[l.List] = &l
	}
	for _, path := range files {
		samples, err := metrics.Read(path)
		if err != nil {
			return err
		}
		for _, s := range samples {
			label := s.Labels["zone"]
			if label == "" || !strings.HasPrefix(s.Name, "filter_dnsbl_") {
				continue
			}
			l := lists[label]
			if l == nil {
				l = &listReport{List: label}
				lists[label] = l
			}
			l.Metrics = true
			switch strings.TrimPrefix(s.Name, "filter_dnsbl_") {
			case "asked_total":
				l.Asked += int(s.Value)
			case "errors_total":
				l.Failed += int(s.Value)
			case "list_good":
				l.Sick = l.Sick || s.Value == 0
			case "answer_seconds":
				q := s.Quantile(0.95)
				for _, b := range s.Buckets { // of what took longer it is only known that it did
					if math.IsInf(q, 1) && !math.IsInf(b.Bound, 1) {
						l.P95 = max(l.P95, b.Bound)
					}
				}
				if !math.IsInf(q, 1) {
					l.P95 = max(l.P95, q)
				}
			}
		}
	}
	r.Lists = nil
	for _, l := range lists {
		r.Lists = append(r.Lists, *l)
	}
	r.sortLists()
	return nil
}
