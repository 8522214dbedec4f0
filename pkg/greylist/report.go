package greylist

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Stats is what a store holds and has counted.
type Stats struct {
	Since   time.Time                   `json:"since,omitzero"` // of what is counted; zero: since the store was made
	Records map[string]map[string]int64 `json:"records"`        // by kind and state
	Reasons map[Reason]int64            `json:"reasons"`        // decisions
	Marks   map[Mark]int64              `json:"suspects"`       // those of mail that is not vouched for
	Delays  []int64                     `json:"delays"`         // of first passes, for each of DelayBounds, and over
	Silent  []Silent                    `json:"silent"`         // networks that never retried, those with most attempts first
	By      []Group                     `json:"by,omitempty"`   // those with most attempts first
}

// A Silent network has attempts that were refused and not one retry.
type Silent struct {
	Network  string `json:"network"`
	Attempts int64  `json:"attempts"`
}

// A Group is what the records of attempts say of a client, sender or recipient.
type Group struct {
	Name   string    `json:"name"`
	Waits  int64     `json:"waiting"` // attempts that have not passed
	Never  int64     `json:"never"`   // of them those that might have come again and have not
	Passed int64     `json:"passed"`
	Tries  int64     `json:"tries"`
	Last   time.Time `json:"last"`
}

// A StatsQuery says what Stats are wanted. The zero value wants all.
type StatsQuery struct {
	Since time.Duration // only what was counted or first seen since; 0: whenever
	What  What          // only these records
	By    string        // client, sender or rcpt: group attempts by that; empty: not
}

const (
	maxSilent  = 100
	maxGroups  = 1000
	maxTracked = 100_000
)

// Stats looks at all records. Silent and By need those stored in clear. What is
// counted is known by the hour for three days, by the day for 400.
func (g *Greylist) Stats(ctx context.Context, t time.Time, q StatsQuery) (Stats, error) {
	s := Stats{
		Records: make(map[string]map[string]int64),
		Reasons: make(map[Reason]int64),
		Marks:   make(map[Mark]int64),
		Delays:  make([]int64, len(delayBounds)+1),
	}
	counts, err := g.store.Count(ctx, nil)
	if err != nil {
		return s, err
	}
	var since int64
	if q.Since > 0 {
		counts, s.Since = countsSince(counts, t, q.Since)
		since = t.Add(-q.Since).UnixMilli()
	}
	s.addCounts(counts)
	silent, groups := make(map[string]int64), make(map[string]*Group)
	expired := g.Expired(t)
	for e, err := range g.Find(ctx, q.What) {
		if err != nil {
			return s, err
		}
		if expired(e.Key, e.Record) {
			continue
		}
		kind, state := e.Key.Kind().String(), e.Record.State.String()
		if s.Records[kind] == nil {
			s.Records[kind] = make(map[string]int64)
		}
		s.Records[kind][state]++
		net, ok := strings.CutPrefix(e.Record.Origin, "net:")
		if !ok || e.Key.Kind() != KindAttempt || e.Record.First < since {
			continue // each attempt has one that is of its network
		}
		late := t.UnixMilli()-e.Record.First > g.policy.PassTime.Milliseconds()
		n, known := silent[net]
		switch {
		case !known && len(silent) >= maxTracked:
		case e.Record.Tries > 1 || n < 0:
			silent[net] = -1
		case late:
			silent[net]++
		}
		if q.By != "" {
			addTo(groups, q.By, e.Record, late)
		}
	}
	for net, n := range silent {
		if n > 0 {
			s.Silent = append(s.Silent, Silent{net, n})
		}
	}
	slices.SortFunc(s.Silent, func(a, b Silent) int {
		return cmp.Or(cmp.Compare(b.Attempts, a.Attempts), cmp.Compare(a.Network, b.Network))
	})
	s.Silent = s.Silent[:min(len(s.Silent), maxSilent)]
	for _, one := range groups {
		s.By = append(s.By, *one)
	}
	slices.SortFunc(s.By, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Waits+b.Passed, a.Waits+a.Passed), cmp.Compare(b.Tries, a.Tries), cmp.Compare(a.Name, b.Name))
	})
	s.By = s.By[:min(len(s.By), maxGroups)]
	return s, nil
}

// addTo counts a record of an attempt for its group.
func addTo(groups map[string]*Group, by string, r Record, late bool) {
	name := r.Rcpt
	switch by {
	case "sender":
		name = r.Sender
	case "client":
		if name, _, _ = strings.Cut(r.Client, " "); name == "" {
			name = strings.TrimPrefix(r.Origin, "net:")
		}
	}
	one := groups[name]
	if one == nil {
		if len(groups) >= maxTracked {
			return
		}
		one = &Group{Name: name}
		groups[name] = one
	}
	switch {
	case r.State == Pass:
		one.Passed++
	default:
		one.Waits++
		if r.Tries <= 1 && late {
			one.Never++
		}
	}
	one.Tries += int64(r.Tries)
	if last := time.UnixMilli(r.Last).UTC().Truncate(time.Second); last.After(one.Last) {
		one.Last = last
	}
}

// countsSince returns what was counted since some time before t, in whole hours, or
// days if that is long ago, and when that begins.
func countsSince(counts map[string]int64, t time.Time, since time.Duration) (map[string]int64, time.Time) {
	unit, wanted := hourMillis, byte(hourPrefix)
	if since > keepHours*time.Hour {
		unit, wanted = day, dayPrefix
	}
	from := t.Add(-since).UnixMilli() / unit
	sum := make(map[string]int64)
	for name, n := range counts {
		if prefix, at, rest, ok := parseTimed(name); ok && prefix == wanted && at >= from {
			sum[rest] += n
		}
	}
	return sum, time.UnixMilli(from * unit)
}

// addCounts adds counters to the numbers of decisions.
func (s *Stats) addCounts(counts map[string]int64) {
	for name, n := range counts {
		if r, ok := strings.CutPrefix(name, reasonPrefix); ok {
			s.Reasons[Reason(r)] += n
		}
		if m, ok := strings.CutPrefix(name, markPrefix); ok {
			s.Marks[Mark(m)] += n
		}
	}
	for i, b := range delayBounds {
		s.Delays[i] = counts[fmt.Sprint(delayPrefix, b)]
	}
	s.Delays[len(delayBounds)] = counts[delayMore]
}
