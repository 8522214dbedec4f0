package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/maillog"
)

// makeReport says what happened.
func makeReport(k *call) func() error {
	l := newLogs(k, 24*time.Hour)
	html := k.String("html", "", "write one HTML page to `FILE`, - for standard output")
	asJSON := k.Bool("json", false, "write JSON")
	hide := k.Bool("anonymise", false, "put other words in the place of addresses and names, the same for the same, to show the report to others")
	var files cli.Strings
	k.Var(&files, "metrics", "add what the programs count in `FILE`; may be given more than once")
	return func() error {
		if *html != "" && *asJSON {
			return errors.New("-html and -json: only one of them")
		}
		// Little of the memory has pointers, and there is little to collect.
		debug.SetGCPercent(50)
		debug.SetMemoryLimit(180 << 20)
		// A pattern of the shell gives several at once.
		names := slices.DeleteFunc(k.args, func(name string) bool {
			prom := strings.HasSuffix(name, ".prom")
			if prom {
				files = append(files, name)
			}
			return prom
		})
		s := newSummary()
		sink, wait := beside(s.sink())
		j := maillog.NewJoiner(sink)
		err := l.read(names, j.Add)
		j.Close()
		if err = errors.Join(err, wait()); err != nil {
			return err
		}
		if l.lines == 0 {
			return errors.New("the log is empty")
		}
		r := s.report(l, newMask(*hide))
		if err := r.addMetrics(files); err != nil {
			return err
		}
		switch {
		case *asJSON:
			e := json.NewEncoder(k.raw)
			e.SetIndent("", "  ")
			e.SetEscapeHTML(false)
			return e.Encode(r)
		case *html == "-":
			return r.page(k.raw, s.stories(r.mask))
		case *html != "":
			return r.writePage(*html, s.stories(r.mask))
		}
		return r.text(k.out)
	}
}

// writePage writes a file as a whole, or leaves what is there. Its pages say who
// writes to whom, so only their owner may read them.
func (r *figures) writePage(path string, stories []story) error {
	f, err := guard.BeginReplace(path, 0o600)
	if err != nil {
		return err
	}
	defer f.Drop()
	if err := r.page(f, stories); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Commit()
}

// Figures are what -json writes, and what the text and the page are made of.
type figures struct {
	From    time.Time `json:"from"` // of the first line, in RFC 3339
	To      time.Time `json:"to"`
	Lines   int64     `json:"lines"`   // of the logs, those of other programs included
	Inexact []string  `json:"inexact"` // what is not exact, and by how much

	Connections connections    `json:"connections"`
	Messages    fates          `json:"messages"`
	BadCommands int            `json:"badCommands"` // that smtpd did not understand
	Deliveries  []counted      `json:"deliveries"`  // by result, as smtpd calls it
	Filters     []filterReport `json:"filters"`
	Server      []counted      `json:"server"` // what smtpd itself has refused or deferred, or a filter that is none of ours
	Clients     []clientReport `json:"clients"`
	Recipients  []rcptReport   `json:"recipients"`
	Lists       []listReport   `json:"lists"`
	Greylist    greylistReport `json:"greylist"`
	Trouble     []counted      `json:"trouble"` // warnings and errors of filters
	Width       int64          `json:"width"`   // seconds of one of Times
	Times       []timeReport   `json:"times"`

	mask *mask
}

// Connections are those over the network, by what became of them.
type connections struct {
	Total         int `json:"total"`
	Accepted      int `json:"accepted"` // with a mail that was taken, and nothing refused
	Junked        int `json:"junked"`
	Deferred      int `json:"deferred"`
	Refused       int `json:"refused"`
	Nothing       int `json:"nothing"` // neither mail nor refusal
	Local         int `json:"local"`   // of this machine, not among them
	Authenticated int `json:"authenticated"`
	Cut           int `json:"cut"` // that began before the log
}

// Fates count mails: taken ones as messages, others once for each time that a
// filter, or smtpd itself, said no.
type fates struct {
	Accepted int `json:"accepted"` // but not as junk
	Junked   int `json:"junked"`
	Deferred int `json:"deferred"`
	Refused  int `json:"refused"`
}

func (f fates) Total() int { return f.Accepted + f.Junked + f.Deferred + f.Refused }

type counted struct {
	What  string `json:"what"`
	Count int    `json:"count"`
}

type filterReport struct {
	Name    string    `json:"name"`    // in smtpd.conf
	Program string    `json:"program"` // dnsbl for filter-dnsbl
	Proceed int       `json:"proceed"`
	Junk    int       `json:"junk"`
	Defer   int       `json:"defer"`
	Refuse  int       `json:"refuse"`
	More    int       `json:"more"`  // recipients refused or deferred beside the first of a mail
	Would   []counted `json:"would"` // in a dry run
	Reasons []counted `json:"reasons"`
}

func (f filterReport) Fates() fates { return fates{f.Proceed, f.Junk, f.Defer, f.Refuse} }

type clientReport struct {
	Addr string `json:"addr"`
	Name string `json:"name"`
	fates
}

type rcptReport struct {
	Rcpt string `json:"rcpt"`
	fates
}

type listReport struct {
	List    string `json:"list"`
	Hit     int    `json:"hit"`
	Decided int    `json:"decided"` // hit where mail was refused or junked
	Alone   int    `json:"alone"`   // of these, where no other list hit

	Metrics bool    `json:"metrics"` // the rest is known, since the program was started
	Asked   int     `json:"asked,omitempty"`
	Failed  int     `json:"failed,omitempty"` // questions without an answer
	P95     float64 `json:"p95,omitempty"`    // seconds until the answer, of 95% at most
	Sick    bool    `json:"sick,omitempty"`
}

type greylistReport struct {
	Waited  int           `json:"waited"` // mails that were deferred first, then taken
	P50     float64       `json:"p50"`    // seconds
	P95     float64       `json:"p95"`
	Waits   []waitReport  `json:"waits"`
	Never   int           `json:"never"`   // mails that did not come again
	NeverBy []neverReport `json:"neverBy"` // the newest of them
}

type waitReport struct {
	Below int64  `json:"below"` // seconds; 0: longer
	Text  string `json:"text"`
	Count int    `json:"count"`
}

type neverReport struct {
	Time  time.Time `json:"time"`
	Addr  string    `json:"addr"`
	Name  string    `json:"name"`
	From  string    `json:"from"`
	Rcpt  string    `json:"rcpt"`
	Tries string    `json:"tries"`
}

type timeReport struct {
	Time        time.Time `json:"time"`
	Messages    fates     `json:"messages"`
	Connections fates     `json:"connections"`
	Nothing     int       `json:"nothing"` // connections
}

const (
	topNames  = 100 // of clients and recipients
	chartBars = 72
)

// report makes a report of what was counted.
func (s *summary) report(l *logs, m *mask) *figures {
	c := s.connections
	r := &figures{
		From: l.first, To: l.last, Lines: l.lines, mask: m,
		Connections: connections{
			Total:    c[isAccepted] + c[isJunked] + c[isDeferred] + c[isRefused] + c[4],
			Accepted: c[isAccepted], Junked: c[isJunked], Deferred: c[isDeferred], Refused: c[isRefused], Nothing: c[4],
			Local: s.local, Authenticated: s.auth, Cut: s.partial,
		},
		Messages:    fates{s.messages[isAccepted], s.messages[isJunked], s.messages[isDeferred], s.messages[isRefused]},
		BadCommands: s.broken,
		Deliveries:  sorted(s.delivered), Server: sorted(s.server), Trouble: sorted(s.troubles),
	}
	for name, f := range s.filters {
		r.Filters = append(r.Filters, filterReport{
			Name: name, Program: f.program,
			Proceed: f.actions.of("proceed"), Junk: f.actions.of("junk"), Defer: f.actions.of("defer"), Refuse: f.actions.of("refuse"),
			More: f.recipients, Would: sorted(f.would), Reasons: sorted(f.reasons),
		})
	}
	slices.SortFunc(r.Filters, func(a, b filterReport) int { return strings.Compare(a.Name, b.Name) })
	for _, t := range s.clients.top(topNames, unwelcome) {
		r.Clients = append(r.Clients, clientReport{m.addr(t.name), m.host(t.note), fatesOf(t.counts)})
	}
	for _, t := range s.rcpts.top(topNames, func(c [4]uint32) uint64 { return uint64(c[0]) + uint64(c[1]) + uint64(c[2]) + uint64(c[3]) }) {
		r.Recipients = append(r.Recipients, rcptReport{m.mail(t.name), fatesOf(t.counts)})
	}
	for label, n := range s.lists {
		r.Lists = append(r.Lists, listReport{List: label, Hit: n.hit, Decided: n.decided, Alone: n.alone})
	}
	r.sortLists()
	r.Greylist = s.greylist(m)
	r.Width, r.Times = s.times.report(l.first, l.last)
	r.inexact(s)
	return r
}

// unwelcome weighs what is said no to, refusals first.
func unwelcome(c [4]uint32) uint64 {
	return uint64(c[isRefused])<<32 + uint64(c[isDeferred])<<8 + uint64(c[isJunked])
}

func fatesOf(c [4]uint32) fates {
	return fates{int(c[isAccepted]), int(c[isJunked]), int(c[isDeferred]), int(c[isRefused])}
}

// of returns how often a word was counted.
func (w *words) of(word string) int {
	for _, c := range w.list {
		if c.What == word {
			return c.Count
		}
	}
	return 0
}

// sorted returns counts, the highest first.
func sorted(w words) []counted {
	all := append([]counted{}, w.list...)
	slices.SortFunc(all, func(a, b counted) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		return strings.Compare(a.What, b.What)
	})
	return all
}

func (r *figures) sortLists() {
	slices.SortFunc(r.Lists, func(a, b listReport) int {
		switch {
		case a.Decided != b.Decided:
			return b.Decided - a.Decided
		case a.Hit != b.Hit:
			return b.Hit - a.Hit
		}
		return strings.Compare(a.List, b.List)
	})
}

// waitBounds are those of the histogram.
var waitBounds = []struct {
	below time.Duration
	text  string
}{
	{time.Minute, "under 1 min"}, {2 * time.Minute, "1 to 2 min"}, {5 * time.Minute, "2 to 5 min"}, {10 * time.Minute, "5 to 10 min"},
	{20 * time.Minute, "10 to 20 min"}, {time.Hour, "20 to 60 min"}, {3 * time.Hour, "1 to 3 h"}, {12 * time.Hour, "3 to 12 h"}, {0, "12 h and more"},
}

func (s *summary) greylist(m *mask) greylistReport {
	g := greylistReport{Waited: s.retried, P50: s.waits.quantile(0.5).Seconds(), P95: s.waits.quantile(0.95).Seconds(), Never: s.neverCount}
	for _, b := range waitBounds {
		g.Waits = append(g.Waits, waitReport{Below: int64(b.below / time.Second), Text: b.text})
	}
	s.waits.each(func(d time.Duration, n int) bool {
		i := slices.IndexFunc(waitBounds, func(b struct {
			below time.Duration
			text  string
		}) bool {
			return b.below == 0 || d < b.below
		})
		g.Waits[i].Count += n
		return true
	})
	for _, n := range s.never[max(0, len(s.never)-keptNever):] {
		g.NeverBy = append(g.NeverBy, neverReport{n.Time, m.addr(n.Addr), m.host(n.Name), m.mail(n.From), m.mail(n.Rcpt), n.Tries})
	}
	// Those with a name are rather mail servers.
	slices.SortStableFunc(g.NeverBy, func(a, b neverReport) int {
		if named(a.Name) != named(b.Name) {
			if named(a.Name) {
				return -1
			}
			return 1
		}
		return b.Time.Compare(a.Time)
	})
	return g
}

func named(name string) bool { return name != "" && name != "-" && name[0] != '?' }

// report returns the counts by time, in as many steps as fit a chart.
func (b *buckets) report(from, to time.Time) (width int64, times []timeReport) {
	if len(b.counts) == 0 {
		return 0, nil
	}
	_, zone := from.Zone()
	first, last := from.Unix()+int64(zone), to.Unix()+int64(zone)
	for at := range b.counts { // also what began before
		first, last = min(first, at), max(last, at)
	}
	width = b.width
	for (last-first)/width >= chartBars {
		width = wider(width)
	}
	counts := b.widen(width)
	for at := floor(first, width); at <= last; at += width {
		c := counts[at]
		if c == nil {
			c = new(bucket)
		}
		m, n := c.messages, c.connections
		times = append(times, timeReport{
			Time:     time.Unix(at-int64(zone), 0).In(from.Location()),
			Messages: fatesOf(m), Connections: fatesOf([4]uint32(n[:4])), Nothing: int(n[4]),
		})
	}
	return width, times
}

// inexact says what is not exact.
func (r *figures) inexact(s *summary) {
	r.Inexact = []string{}
	for _, t := range []struct {
		what string
		*tally
	}{{"clients", s.clients}, {"recipients", s.rcpts}} {
		if t.lost > 0 {
			r.Inexact = append(r.Inexact, fmt.Sprintf("there were more than %s %s: a count of one may be too low by %s", thousands(t.limit), t.what, thousands(t.lost)))
		}
	}
	if n := s.times.none; n != (bucket{}) {
		r.Inexact = append(r.Inexact, "a part of the log has no times")
	}
	for what := range s.tooMany {
		r.Inexact = append(r.Inexact, fmt.Sprintf("there were more than %d %s: some are missing", keptWords, what))
	}
	slices.Sort(r.Inexact)
}
