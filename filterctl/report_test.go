package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/maillog"
	"opensmtpd-filters/test/mixed"
)

func reportJSON(t *testing.T, in string, args ...string) (r figures) {
	t.Helper()
	out, bad, status := filterctl(t, in, append([]string{"report", "-json"}, args...)...)
	if status != 0 || bad != "" {
		t.Fatalf("report %q: status %d, %s", args, status, bad)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// madeLog writes a log and returns its path.
func madeLog(t *testing.T, l mixed.Log) (string, mixed.Counts) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "maillog")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counts, err := l.Write(f)
	if err != nil {
		t.Fatal(err)
	}
	return path, counts
}

func TestReportFigures(t *testing.T) {
	for _, l := range []mixed.Log{
		{Lines: 300, Distinct: 5, Seed: 1, Span: 10 * time.Minute},
		{Lines: 30_000, Distinct: 1000, Seed: 2, Span: 400 * 24 * time.Hour},
		{Lines: 100_000, Distinct: 50_000, Seed: 3},
	} {
		path, want := madeLog(t, l)
		r := reportJSON(t, "", path)
		m := fates{want.Accepted, want.Junked, want.Deferred, want.Refused}
		if r.Messages != m || r.Connections.Total != want.Sessions || r.Lines != int64(want.Lines) {
			t.Errorf("messages %+v, connections %+v, %d lines; want %+v, %+v", r.Messages, r.Connections, r.Lines, m, want)
		}
		if r.Greylist.Waited != want.Waited || r.Greylist.Never != want.Never {
			t.Errorf("greylisting %+v, want %+v", r.Greylist, want)
		}
		var sum fates
		for _, at := range r.Times {
			sum.Accepted += at.Messages.Accepted
			sum.Junked += at.Messages.Junked
			sum.Deferred += at.Messages.Deferred
			sum.Refused += at.Messages.Refused
		}
		if sum != m || len(r.Times) > chartBars+1 || len(r.Times) < 4 {
			t.Errorf("%d times with %+v, want %+v", len(r.Times), sum, m)
		}
		if len(r.Inexact) > 0 {
			t.Errorf("not exact: %q", r.Inexact)
		}
	}
}

// A tally is exact up to its limit, and says by how much it is wrong past that.
func TestTally(t *testing.T) {
	for _, tt := range []struct{ limit, names int }{{1000, 900}, {1000, 1000}, {1000, 5000}, {50_000, 40_000}} {
		rng := rand.New(rand.NewPCG(1, uint64(tt.names)))
		y, want := newTally(tt.limit), map[string]*[4]uint32{}
		for range 20 * tt.names {
			n := rng.IntN(1 + rng.IntN(tt.names)) // some far more than others
			name, which := fmt.Sprint("name", n), rng.IntN(4)
			y.add([]byte(name), []byte("note of "+name), which, 1)
			if want[name] == nil {
				want[name] = new([4]uint32)
			}
			want[name][which]++
		}
		sum := func(c [4]uint32) uint64 { return uint64(c[0]) + uint64(c[1]) + uint64(c[2]) + uint64(c[3]) }
		top := y.top(tt.names, sum)
		if tt.names <= tt.limit && (len(top) != len(want) || y.lost != 0) {
			t.Errorf("%+v: %d names, want %d; lost %d", tt, len(top), len(want), y.lost)
		}
		if tt.names > tt.limit && (y.lost == 0 || y.n > tt.limit) {
			t.Errorf("%+v: lost %d, %d names", tt, y.lost, y.n)
		}
		seen := map[string]bool{}
		for i, n := range top {
			w := want[n.name]
			if w == nil || n.weight > sum(*w) || n.weight+uint64(y.lost) < sum(*w) || y.lost == 0 && n.counts != *w {
				t.Fatalf("%+v: %s has %v of %v, lost %d", tt, n.name, n.counts, w, y.lost)
			}
			if n.note != "note of "+n.name || seen[n.name] || i > 0 && n.weight > top[i-1].weight {
				t.Fatalf("%+v: %+v", tt, n)
			}
			seen[n.name] = true
		}
		// Whoever is missing cannot be more than was lost.
		for name, w := range want {
			if !seen[name] && sum(*w) > uint64(y.lost) {
				t.Errorf("%+v: %s with %d is missing, lost %d", tt, name, sum(*w), y.lost)
			}
		}
		if got := y.top(10, sum); !slices.Equal(got, top[:10]) {
			t.Errorf("%+v: top 10 are %v", tt, got)
		}
	}
}

func TestWaits(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var w waits
	var all []time.Duration
	for range 5000 {
		d := time.Duration(rng.ExpFloat64()*3000) * time.Second
		all = append(all, d)
		w.add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.95, 1} {
		want := all[int(q*float64(len(all))+0.999999)-1]
		if got := w.quantile(q); got != want && !(want >= 24*time.Hour && got == want.Truncate(time.Minute)) {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	w = waits{}
	if w.quantile(0.5) != 0 {
		t.Error("of nothing")
	}
	w.add(1000 * 24 * time.Hour)
	if w.quantile(0.5) < 39*24*time.Hour {
		t.Error("very long")
	}
}

func TestSeconds(t *testing.T) {
	for s, want := range map[float64]string{
		0: "0s", 0.0123: "12ms", 3: "3s", 59.94: "59.9s", 60: "1m", 400: "6m40s", 3599.6: "1h", 7200: "2h", 90061: "1d1h1m",
	} {
		if got := seconds(s); got != want {
			t.Errorf("%v seconds: %s, want %s", s, got, want)
		}
	}
}

func TestReportLimits(t *testing.T) {
	var log strings.Builder
	id := 0
	for i := range 2 * keptWords {
		id++
		fmt.Fprintf(&log, "f%d: %016x filter=dnsbl action=refuse reason=r%d addr=192.0.2.1 name=- from=<a@b.example> rcpt=<c@d.example> l%d=5 code=l%[1]d:127.0.0.2\n", i, id, i, i)
		fmt.Fprintf(&log, "%016x smtp failed-command command=\"RCPT TO:<x@y.example>\" result=\"550 text %d\"\n", id, i)
		fmt.Fprintf(&log, "f: warning: trouble%d err=x\n", i)
		fmt.Fprintf(&log, "g: filter=greylist event=noretry addr=192.0.2.1 name=- from=<a@b.example> rcpt=<c@d.example> tries=1\n")
	}
	for i := range 3 * keptNever {
		fmt.Fprintf(&log, "g: filter=greylist event=noretry addr=192.0.2.%d name=- from=<a@b.example> rcpt=<c@d.example> tries=1\n", i%250)
	}
	r := reportJSON(t, log.String(), "-")
	if len(r.Filters) != keptWords || len(r.Lists) > keptWords || len(r.Trouble) > keptWords+1 || len(r.Server) > keptWords+1 {
		t.Errorf("%d filters, %d lists, %d kinds of trouble, %d of refusals", len(r.Filters), len(r.Lists), len(r.Trouble), len(r.Server))
	}
	if r.Greylist.Never != 3*keptNever+2*keptWords || len(r.Greylist.NeverBy) != keptNever {
		t.Errorf("%d never came, %d are named", r.Greylist.Never, len(r.Greylist.NeverBy))
	}
	if len(r.Inexact) < 2 {
		t.Errorf("not exact: %q", r.Inexact)
	}
}

// Sessions for the search are the newest, and their late deliveries find them.
func TestReportKept(t *testing.T) {
	s := newSummary()
	var log strings.Builder
	at := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for i := range keptSessions + 500 {
		stamp := at.Add(time.Duration(i) * time.Second).Format(time.RFC3339)
		for _, text := range []string{
			fmt.Sprintf("%016x smtp connected address=192.0.2.1 host=<unknown>", i+1),
			fmt.Sprintf("dyndns: %016x filter=dyndns action=junk reason=dynamic addr=192.0.2.1 name=- from=<a@b.example>", i+1),
			fmt.Sprintf("%016x smtp message msgid=%08x size=1 nrcpt=1 proto=ESMTP", i+1, i),
			fmt.Sprintf("%016x smtp envelope evpid=%08x00000000 from=<a@b.example> to=<c@d.example>", i+1, i),
			fmt.Sprintf("%016x smtp disconnected reason=quit", i+1),
		} {
			fmt.Fprintf(&log, "%s mx smtpd[1]: %s\n", stamp, text)
		}
	}
	for i := range keptSessions + 500 {
		fmt.Fprintf(&log, "2026-12-02T00:00:00Z mx smtpd[1]: 0000000000000000 mda delivery evpid=%08x00000000 from=<a@b.example> to=<c@d.example> rcpt=<c@d.example> user=c delay=1s result=Ok stat=Delivered%d\n", i, i)
	}
	k := &call{}
	l := &logs{k: k}
	k.in = strings.NewReader(log.String())
	j := maillog.NewJoiner(s.sink())
	if err := l.read([]string{"-"}, j.Add); err != nil {
		t.Fatal(err)
	}
	j.Close()
	all := s.stories(nil)
	if len(all) != keptSessions {
		t.Fatalf("%d sessions, want %d", len(all), keptSessions)
	}
	for i, story := range all {
		n := keptSessions + 500 - i
		if story.ID != fmt.Sprintf("%016x", n) || !strings.HasSuffix(story.Steps[len(story.Steps)-1], fmt.Sprint("Delivered", n-1)) {
			t.Fatalf("%d: %+v", i, story)
		}
	}
}

func TestAnonymise(t *testing.T) {
	for _, form := range []string{"-json", "-html"} {
		args := []string{"report", "-anonymise", form}
		if form == "-html" {
			args = append(args, "-")
		}
		out, bad, status := filterctl(t, "", append(args, recorded+"7.9.log")...)
		if status != 0 || bad != "" {
			t.Fatalf("status %d, %s", status, bad)
		}
		for _, secret := range []string{"shop", "sender.example", "198.51.100", "192.88", "2001:db8", "ann@", "example.org", "provider", "alice", "gone.example"} {
			if strings.Contains(out, secret) {
				t.Errorf("%s has %s", form, secret)
			}
		}
		if !strings.Contains(out, "client-") || !strings.Contains(out, "domain-") {
			t.Errorf("%s has no other words", form)
		}
	}
	m := newMask(true)
	if m.mail("Bob@Example.org") != m.mail("bob@example.org") || m.addr("192.0.2.1") == m.addr("192.0.2.2") || m.addr("192.0.2.1") == newMask(true).addr("192.0.2.1") {
		t.Error("words are not as they should be")
	}
	if m.mail("") != "" || m.host("-") != "-" || m.host("?a.example")[0] != '?' {
		t.Error("what is nobody's is hidden")
	}
}

func TestReportMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dnsbl.prom")
	const text = `# TYPE filter_dnsbl_asked_total counter
filter_dnsbl_asked_total{zone="bl.example"} 90
filter_dnsbl_asked_total{zone="other.example"} 80
# TYPE filter_dnsbl_errors_total counter
filter_dnsbl_errors_total{kind="timeout",zone="bl.example"} 3
filter_dnsbl_errors_total{kind="failure",zone="bl.example"} 4
# TYPE filter_dnsbl_list_good gauge
filter_dnsbl_list_good{zone="bl.example"} 1
filter_dnsbl_list_good{zone="other.example"} 0
# TYPE filter_dnsbl_answer_seconds histogram
filter_dnsbl_answer_seconds_bucket{zone="bl.example",le="0.1"} 10
filter_dnsbl_answer_seconds_bucket{zone="bl.example",le="5"} 90
filter_dnsbl_answer_seconds_bucket{zone="bl.example",le="+Inf"} 90
filter_dnsbl_answer_seconds_sum{zone="bl.example"} 100
filter_dnsbl_answer_seconds_count{zone="bl.example"} 90
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	lists := map[string]listReport{}
	for _, l := range reportJSON(t, "", "-metrics", path, recorded+"7.9.log").Lists {
		lists[l.List] = l
	}
	want := map[string]listReport{
		"bl.example":    {List: "bl.example", Hit: 4, Decided: 4, Alone: 4, Metrics: true, Asked: 90, Failed: 7, P95: 5},
		"grey.example":  {List: "grey.example", Hit: 4, Decided: 4, Alone: 4},
		"other.example": {List: "other.example", Metrics: true, Asked: 80, Sick: true},
	}
	if !maps.Equal(lists, want) {
		t.Errorf("%+v, want %+v", lists, want)
	}
	if want["bl.example"].State() != "slow" || want["other.example"].State() != "sick" {
		t.Error("states")
	}
	// As the shell gives several.
	out, _, status := filterctl(t, "", "report", "-metrics", path, path, recorded+"7.9.log")
	if status != 0 || !strings.Contains(out, "other.example") {
		t.Errorf("status %d\n%s", status, out)
	}
}

// What strangers write is text in the page, and nothing else.
func TestPageHostile(t *testing.T) {
	const evil = `</script><img src=x onerror=alert(1)>'"<b>`
	log := "5f45b59b1594b3c3 smtp connected address=192.0.2.1 host=" + evil + "\n" +
		"dnsbl: 5f45b59b1594b3c3 filter=dnsbl action=refuse reason=" + `"` + strings.ReplaceAll(evil, `"`, `\"`) + `"` + " addr=192.0.2.1 name=x from=<" + "a@b.example> rcpt=<c@d.example> code=" + evil + ":1\n" +
		"5f45b59b1594b3c3 smtp failed-command command=\"RCPT TO:<c@d.example>\" result=\"550 " + evil + "\"\n"
	path := filepath.Join(t.TempDir(), "page.html")
	out, bad, status := filterctl(t, log, "report", "-html", path, "-")
	if status != 0 || out+bad != "" {
		t.Fatalf("status %d, %s%s", status, out, bad)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(page), "<img") || strings.Count(string(page), "</script>") != 2 {
		t.Errorf("it is in the page:\n%s", page)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestReportErrors(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ args, want string }{
		{"-html x -json " + recorded + "7.9.log", "only one of them"},
		{"-html " + dir + "/none/page " + recorded + "7.9.log", "no such file"},
		{"-metrics " + dir + "/none.prom " + recorded + "7.9.log", "none.prom: no such file"},
		{"-since soon " + recorded + "7.9.log", "-since soon: not a time"},
		{dir, "is a directory"},
		{"-", "the log is empty"},
	} {
		out, bad, status := filterctl(t, "", append([]string{"report"}, strings.Fields(tt.args)...)...)
		if status != 1 || out != "" || !strings.Contains(bad, tt.want) {
			t.Errorf("%s: status %d, %q, %q", tt.args, status, out, bad)
		}
	}
	// -since leaves out what is older.
	if r := reportJSON(t, "", "-since", "1s", recorded+"7.9.log"); r.Connections.Total != 0 {
		t.Errorf("%+v", r.Connections)
	}
}
