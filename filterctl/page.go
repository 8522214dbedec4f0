package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"opensmtpd-filters/pkg/maillog"
)

//go:embed page.html
var pageText string

// A story is a session as the page has it for its search.
type story struct {
	ID      string   `json:"id"`
	Time    string   `json:"t"`
	Verdict string   `json:"v"`
	Addr    string   `json:"a"`
	Name    string   `json:"n"`
	From    string   `json:"f"`
	Rcpts   []string `json:"r"`
	Why     string   `json:"w"` // in one sentence
	Steps   []string `json:"s"`
	Waited  bool     `json:"d,omitempty"` // was deferred, or came again
}

// stories are the sessions that are kept, the newest first.
func (s *summary) stories(m *mask) []story {
	all := []story{}
	var d digest
	next := map[mail]*maillog.Session{} // in which a mail came again: they are told from the newest on
	for _, session := range s.kept.newest() {
		d.read(session)
		of := mailOf(&d)
		all = append(all, d.story(m, next[of]))
		if of != (mail{}) {
			next[of] = session
		}
	}
	return all
}

func (d *digest) story(m *mask, next *maillog.Session) story {
	from, rcpts := d.envelope()
	s := story{
		ID: fmt.Sprintf("%016x", d.ID), Verdict: d.verdict(), Addr: m.addr(string(d.addr)), Name: m.host(string(d.name)),
		From: m.mail(from), Rcpts: []string{}, Steps: []string{},
	}
	if !d.Begin.IsZero() {
		s.Time = d.Begin.Format("2006-01-02 15:04:05")
	}
	for i, r := range rcpts {
		if i == 5 {
			s.Rcpts = append(s.Rcpts, fmt.Sprintf("and %d more", len(rcpts)-i))
			break
		}
		s.Rcpts = append(s.Rcpts, m.mail(r))
	}
	for i, step := range d.steps(m != nil) {
		if i == 40 {
			s.Steps = append(s.Steps, "and more")
			break
		}
		at := ""
		if !step.time.IsZero() {
			at = step.time.Format("15:04:05 ")
		}
		s.Steps = append(s.Steps, at+step.text)
	}
	s.Why, s.Waited = d.answer(next)
	return s
}

// answer says in one sentence why what happened did, and whether mail had to wait.
func (d *digest) answer(next *maillog.Session) (text string, waited bool) {
	by := func(action string) string {
		for i := range d.decisions {
			if v := &d.decisions[i]; string(v.action) == action {
				return fmt.Sprintf(" by %s: %s", v.filter, v.reason)
			}
		}
		for i := range d.failures {
			if f := &d.failures[i]; f.by < 0 && !f.broken() {
				return fmt.Sprintf(" by smtpd, answer %d to %s", f.code(), f.verb())
			}
		}
		return ""
	}
	again := ""
	if next != nil && len(d.messages) == 0 {
		again = fmt.Sprintf("; came again in session %016x", next.ID)
		if !next.Begin.IsZero() && !d.Begin.IsZero() {
			again = fmt.Sprintf("; came again %s later, in session %016x", roundTime(next.Begin.Sub(d.Begin)), next.ID)
		}
	}
	wait := ""
	for i := range d.decisions {
		if v := &d.decisions[i]; v.greylisted && v.delay > 0 {
			wait = fmt.Sprintf(" after it had waited %s for greylisting", v.delay)
		}
	}
	switch d.verdict() {
	case refused:
		return "Refused" + by("refuse") + again, wait != ""
	case deferred:
		return "Told to wait" + by("defer") + again, true
	case junked:
		return "Taken as junk" + by("junk") + wait, wait != ""
	case accepted:
		for _, v := range d.decisions {
			if v.dryRun && len(v.would) > 0 && wait == "" {
				return fmt.Sprintf("Taken; %s would %s it (dry run): %s", v.filter, v.would, v.reason), false
			}
		}
		for _, v := range d.deliveries {
			if !strings.EqualFold(string(v.result), "ok") && wait == "" {
				return "Taken, but not delivered: " + string(v.result), false
			}
		}
		return "Taken" + wait, wait != ""
	}
	return "No mail", false
}

// page writes the report as one HTML page, which needs nothing else.
func (r *figures) page(w io.Writer, stories []story) error {
	page := template.Must(template.New("page").Funcs(template.FuncMap{
		"n": func(n int) string { return thousands(n) }, "n64": func(n int64) string { return thousands(n) },
		"seconds": seconds, "percent": percent, "first": func(n int, all any) any { return firstOf(n, all) },
		"listed": func(all []counted) string { return inWords(all, 6) }, "named": named,
	}).Parse(pageText))
	return page.Execute(w, struct {
		*figures
		Span    string
		Notes   []string
		Charts  []chart
		Stories []story
		Most    int
		Made    string
		Hidden  bool
	}{r, r.span(), r.notes(), r.charts(), stories, keptSessions, time.Now().Format("2 January 2006 15:04"), r.mask != nil})
}

// percent is a part of a whole, for the width of a bar.
func percent(part, whole int) string {
	if whole <= 0 {
		return "0"
	}
	return fmt.Sprintf("%.2f", 100*float64(part)/float64(whole))
}

func firstOf(n int, all any) any {
	switch all := all.(type) {
	case []clientReport:
		return all[:min(n, len(all))]
	case []rcptReport:
		return all[:min(n, len(all))]
	case []listReport:
		return all[:min(n, len(all))]
	case []neverReport:
		return all[:min(n, len(all))]
	case []counted:
		return all[:min(n, len(all))]
	}
	return all
}

// A chart is of stacked bars, in units of its view box: 1000 by 100.
type chart struct {
	Title string
	Bars  []bar
	Top   string // of the scale
	Half  string
	Marks []string // below it, evenly spaced
	Words []string // for what the colours stand
}

type bar struct {
	X, Width float64
	Title    string
	Parts    []part
}

type part struct {
	Class     string
	Y, Height float64
}

// stack returns a chart of rows of counts, each with a title.
func stack(title string, words []string, titles []string, rows [][]int) chart {
	c := chart{Title: title, Words: words}
	most := 1
	for _, row := range rows {
		n := 0
		for _, v := range row {
			n += v
		}
		most = max(most, n)
	}
	top := nice(most)
	c.Top = thousands(top)
	if top%2 == 0 { // of 5 there is no half
		c.Half = thousands(top / 2)
	}
	step := 1000 / float64(max(len(rows), 1))
	for i, row := range rows {
		b := bar{X: float64(i)*step + step*0.1, Width: step * 0.8, Title: titles[i]}
		y := 100.0
		for k, v := range row {
			if v == 0 {
				continue
			}
			h := 100 * float64(v) / float64(top)
			y -= h
			b.Parts = append(b.Parts, part{words[k], y, h})
			b.Title += fmt.Sprintf("\n%s %s", thousands(v), words[k])
		}
		c.Bars = append(c.Bars, b)
	}
	return c
}

// nice is the next number that makes a good scale.
func nice(n int) int {
	for unit := 1; ; unit *= 100 {
		for _, m := range []int{2, 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100} {
			if m*unit >= n {
				return m * unit
			}
		}
	}
}

// Most is the longest bar of the waits.
func (g greylistReport) Most() (n int) {
	for _, w := range g.Waits {
		n = max(n, w.Count)
	}
	return n
}

// Shown are the waits from the first to the last that there were.
func (g greylistReport) Shown() []waitReport {
	first, last := len(g.Waits), 0
	for i, w := range g.Waits {
		if w.Count > 0 {
			first, last = min(first, i), i+1
		}
	}
	return g.Waits[min(first, last):last]
}

func (r *figures) charts() []chart {
	words := []string{accepted, junked, deferred, refused}
	var titles []string
	var messages, connections [][]int
	form := "Mon 2 Jan 15:04"
	if r.Width >= 86400 {
		form = "Mon 2 Jan 2006"
	}
	for _, t := range r.Times {
		titles = append(titles, t.Time.Format(form))
		m, c := t.Messages, t.Connections
		messages = append(messages, []int{m.Accepted, m.Junked, m.Deferred, m.Refused})
		connections = append(connections, []int{c.Accepted, c.Junked, c.Deferred, c.Refused, t.Nothing})
	}
	charts := []chart{
		stack("Mail", words, titles, messages),
		stack("Connections", append(words[:4:4], nothing), titles, connections),
	}
	if len(titles) == 0 {
		return nil
	}
	for i := range charts {
		charts[i].Marks = r.marks()
	}
	return charts
}

// marks are the times at the left, in the middle and at the right.
func (r *figures) marks() []string {
	first, last := r.Times[0].Time, r.Times[len(r.Times)-1].Time.Add(time.Duration(r.Width)*time.Second)
	form := "2 Jan"
	switch {
	case last.Sub(first) <= 26*time.Hour:
		form = "15:04"
	case last.Sub(first) <= 4*24*time.Hour:
		form = "2 Jan 15:04"
	case last.Sub(first) > 300*24*time.Hour:
		form = "Jan 2006"
	}
	middle := first.Add(last.Sub(first) / 2)
	return []string{first.Format(form), middle.Format(form), last.Format(form)}
}
