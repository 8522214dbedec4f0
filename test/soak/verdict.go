//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// What may rise from the middle third of a run to its last, by a factor and by
// a summand. It is the least in each third that counts: what leaks never comes
// down again.
const (
	moreMemory, plusMemory   = 1.15, 6 << 20 // bytes
	moreFDs, plusFDs         = 1.25, 8
	moreThreads, plusThreads = 1.25, 4
	moreCPU, plusCPU         = 1.3, 200 * time.Microsecond // a session, besides what all programs need more
	moreCPUOfAll             = 1.5                         // likewise, besides what smtpd needs more
)

// warm is the length of a run from which on memory and processor time are compared:
// until then caches fill.
const warm = 15 * time.Minute

// third sums up a third of a run.
func third(samples []sample, from, to time.Duration) (low map[string]use, sessions int) {
	spent := map[string]time.Duration{}
	for _, s := range samples {
		if s.at <= from || s.at > to {
			continue
		}
		low = lower(low, s.low)
		sessions += s.clients.sessions
		for name, u := range s.low {
			spent[name] += u.cpu
		}
	}
	for name, u := range low {
		u.cpu = spent[name] / time.Duration(max(sessions, 1))
		low[name] = u
	}
	return low, sessions
}

// rises says what has grown.
func rises(samples []sample, run time.Duration) (bad []string) {
	before, n1 := third(samples, run/3, run*2/3)
	after, n2 := third(samples, run*2/3, run)
	if n1 == 0 || n2 == 0 {
		return []string{"no sessions in the last thirds of the run"}
	}
	// On a machine that has become slower, all are.
	slower := func(name string) float64 { return float64(after[name].cpu) / float64(max(before[name].cpu, 1)) }
	var all []float64
	for _, n := range names() {
		all = append(all, slower(n))
	}
	slices.Sort(all)
	machine := min(moreCPU*all[len(all)/2], moreCPUOfAll*max(1, slower("smtpd")))
	for _, p := range programs {
		b, a := before[p.name], after[p.name]
		if b.rss == 0 || a.rss == 0 {
			bad = append(bad, p.name+" was not seen")
			continue
		}
		for _, r := range []struct {
			what          string
			before, after float64
			limit         float64
		}{
			{"memory (MB)", float64(b.rss) / 1e6, float64(a.rss) / 1e6, (moreMemory*float64(b.rss) + plusMemory) / 1e6},
			{"descriptors", float64(b.fds), float64(a.fds), moreFDs*float64(b.fds) + plusFDs},
			{"threads", float64(b.threads), float64(a.threads), moreThreads*float64(b.threads) + plusThreads},
			{"processor time a session (ms)", ms(b.cpu), ms(a.cpu), machine*ms(b.cpu) + ms(plusCPU)},
		} {
			if judged := run >= warm || r.what == "descriptors" || r.what == "threads"; judged && r.after > r.limit {
				bad = append(bad, fmt.Sprintf("%s: %s rose from %.2f in the middle third to %.2f in the last", p.name, r.what, r.before, r.after))
			}
		}
	}
	return bad
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// names are the programs in a table, smtpd first.
func names() []string {
	all := []string{"smtpd"}
	for _, p := range programs {
		all = append(all, p.name)
	}
	return all
}

// tableHead writes the lines over those of a table.
func tableHead(w io.Writer) {
	fmt.Fprintf(w, "%66s", "")
	for _, n := range names() {
		fmt.Fprintf(w, " |%-21s", strings.TrimPrefix(n, "filter-"))
	}
	fmt.Fprintf(w, "\n%7s %-5s %-4s %7s %8s %9s %5s %6s %7s", "time", "dns", "disk", "clients", "accepted", "delivered", "open", "unansw", "slowest")
	for range names() {
		fmt.Fprintf(w, " |%5s %4s %4s %5s", "MB", "fd", "thr", "ms")
	}
	fmt.Fprintln(w)
}

// row writes a line of a table.
func (s sample) row(w io.Writer) {
	disk := "ok"
	if s.full {
		disk = "full"
	}
	fmt.Fprintf(w, "%7s %-5s %-4s %7d %8d %9d %5d %6d %6.1fs", s.at.Round(time.Second), s.weather, disk,
		s.clients.sessions, s.mails.accepted, s.mails.delivered, s.open, s.clients.unanswered, s.clients.slowest.Seconds())
	for _, n := range names() {
		u, ok := s.low[n]
		if !ok {
			fmt.Fprintf(w, " |%21s", "")
			continue
		}
		fmt.Fprintf(w, " |%5.1f %4d %4d %5.2f", float64(u.rss)/1e6, u.fds, u.threads, ms(u.cpu)/float64(max(s.clients.sessions, 1)))
	}
	if s.skipped > 0 {
		fmt.Fprintf(w, "  %d too many", s.skipped)
	}
	fmt.Fprintln(w)
}
