package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/program"
)

// A tally is what was counted of a list.
type tally struct {
	asked, hits, shared, decisive, late, failed float64
}

// Command prints what each list was good for, by files of -metrics.
func (c *check) Command(args []string) error {
	files := args[1:]
	if len(files) == 0 {
		return errors.New("stats: want files of -metrics")
	}
	lists := make(map[string]*tally)
	var errs []error
	for _, file := range files {
		if err := add(lists, file); err != nil {
			errs = append(errs, err)
		}
	}
	t := new(program.Table)
	t.Columns("list", "asked", "hits", "decisive", "shared", "late", "errors")
	byWorth := func(a, b string) int {
		return cmp.Or(cmp.Compare(lists[b].decisive, lists[a].decisive), cmp.Compare(lists[b].hits, lists[a].hits), cmp.Compare(a, b))
	}
	for _, l := range slices.SortedFunc(maps.Keys(lists), byWorth) {
		n := lists[l]
		shared := "-"
		if n.hits > 0 {
			shared = fmt.Sprintf("%.0f%%", 100*n.shared/n.hits)
		}
		t.Columns(l, count(n.asked), count(n.hits), count(n.decisive), shared, count(n.late), count(n.failed))
	}
	return errors.Join(append(errs, t.Write(c.Out))...)
}

func count(n float64) string { return fmt.Sprintf("%.0f", n) }

// add adds the counters of a file.
func add(lists map[string]*tally, path string) error {
	samples, err := metrics.ReadCounters(path)
	if err != nil {
		return err
	}
	found := false
	for _, s := range samples {
		t := lists[s.Labels["zone"]]
		if t == nil {
			t = new(tally)
		}
		field := t.field(s)
		if field == nil {
			continue
		}
		*field += s.Value
		lists[s.Labels["zone"]], found = t, true
	}
	if !found {
		return fmt.Errorf("%s: no counters of lists", path)
	}
	return nil
}

// field returns what a counter is added to, nil for none.
func (t *tally) field(s metrics.Sample) *float64 {
	switch s.Name {
	case "filter_dnsbl_asked_total":
		return &t.asked
	case "filter_dnsbl_hits_total":
		return &t.hits
	case "filter_dnsbl_shared_hits_total":
		return &t.shared
	case "filter_dnsbl_decisive_total":
		return &t.decisive
	case "filter_dnsbl_errors_total":
		if s.Labels["kind"] == "timeout" {
			return &t.late
		}
		return &t.failed
	}
	return nil
}
