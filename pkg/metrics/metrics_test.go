package metrics

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

var (
	aTotal = Desc{Name: "filter_a_total", Help: "A, as they come."}
	bTotal = Desc{Name: "filter_b_total", Help: "B \\ and\nmore.", Labels: []string{"zone", "kind"}}
	level  = Desc{Name: "filter_level", Help: "How high.", Labels: []string{"of"}}
	wait   = Desc{Name: "filter_wait_seconds", Help: "How long.", Labels: []string{"type"}, Buckets: []float64{.001, 1, 60}}
)

// text returns what s writes, without what every program has.
func text(t *testing.T, s *Set) string {
	t.Helper()
	b, err := s.text()
	if err != nil {
		t.Error(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, buildInfo.Name) && !strings.Contains(line, startTime.Name) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestText(t *testing.T) {
	s := New(Options{Filter: "dnsbl", Instance: "strict\xff"})
	s.Counter(aTotal).Add(-1)
	for range 2 {
		s.Counter(bTotal, "a \"\\\n}{\xff", "é").Inc()
	}
	s.Counter(bTotal, "", "").Add(3)
	s.Gauge(level, func() float64 { return 2.5 }, "sea")
	s.Gauge(level, func() float64 { return 3.5 }, "sea")
	s.Gauge(level, func() float64 { panic("gauge") }, "land")
	h := s.Histogram(wait, "A")
	for _, v := range []float64{0, .001, .0011, 61, -1, math.NaN(), math.Inf(1)} {
		h.Update(v)
	}
	want := `# HELP filter_a_total A, as they come.
# TYPE filter_a_total counter
filter_a_total{filter="dnsbl",filter_instance="strict?"} 0
# HELP filter_b_total B \\ and\nmore.
# TYPE filter_b_total counter
filter_b_total{filter="dnsbl",filter_instance="strict?",kind="",zone=""} 3
filter_b_total{filter="dnsbl",filter_instance="strict?",kind="é",zone="a \"\\\n}{?"} 2
# HELP filter_level How high.
# TYPE filter_level gauge
filter_level{filter="dnsbl",filter_instance="strict?",of="land"} NaN
filter_level{filter="dnsbl",filter_instance="strict?",of="sea"} 2.5
# HELP filter_wait_seconds How long.
# TYPE filter_wait_seconds histogram
filter_wait_seconds_bucket{filter="dnsbl",filter_instance="strict?",type="A",le="0.001"} 2
filter_wait_seconds_bucket{filter="dnsbl",filter_instance="strict?",type="A",le="1"} 3
filter_wait_seconds_bucket{filter="dnsbl",filter_instance="strict?",type="A",le="60"} 3
filter_wait_seconds_bucket{filter="dnsbl",filter_instance="strict?",type="A",le="+Inf"} 4
filter_wait_seconds_sum{filter="dnsbl",filter_instance="strict?",type="A"} 61.0021
filter_wait_seconds_count{filter="dnsbl",filter_instance="strict?",type="A"} 4
`
	if got := text(t, s); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for series, want := range map[string]float64{
		`filter_a_total`:                      0,
		`filter_b_total{kind="",zone=""}`:     3,
		`filter_level{of="sea"}`:              2.5,
		`filter_wait_seconds{type="A"}`:       4,
		`filter_wait_seconds{type="AAAA"}`:    0,
		`filter_build_info`:                   0,
		`filter_b_total{zone="",kind=""}`:     0,
		`filter_b_total{kind="",zone="x"}`:    0,
		`filter_a_total{filter="dnsbl"}`:      0,
		`filter_wait_seconds_count{type="A"}`: 0,
	} {
		if got := s.Value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
}

// What every program writes.
func TestCommon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Filter: "x", File: "/var/lib/prometheus/x.strict.prom", Version: "1.0"})
		s.Files(fakeFiles{"/etc/list": time.Now().Add(time.Second)}, fakeFiles{"/etc/none": {}, "/etc/list": {}})
		s.Decision("refuse").Inc()
		b, err := s.text()
		if err != nil {
			t.Error(err)
		}
		for _, want := range []string{
			`filter_start_time_seconds{filter="x",filter_instance="x.strict"} 9.466848e+08`,
			`filter_file_read_time_seconds{file="/etc/list",filter="x",filter_instance="x.strict"} 9.46684801e+08`,
			`filter_file_read_time_seconds{file="/etc/none",filter="x",filter_instance="x.strict"} 0`,
			`filter_decisions_total{action="refuse",filter="x",filter_instance="x.strict"} 1`,
			`version="1.0"} 1`,
		} {
			if !strings.Contains(string(b), want+"\n") {
				t.Errorf("no %s in\n%s", want, b)
			}
		}
		problems, err := promlint.New(bytes.NewReader(b)).Lint()
		if err != nil || problems != nil {
			t.Error(problems, err)
		}
	})
	s := New(Options{DryRun: true})
	s.Decision("refuse").Inc()
	if got := text(t, s); strings.Contains(got, "filter_decisions_total") || s.Value(`filter_dry_run_decisions_total{action="refuse"}`) != 1 {
		t.Errorf("in a dry run\n%s", got)
	}
}

type fakeFiles map[string]time.Time

func (f fakeFiles) Paths() (paths []string) {
	for p := range f {
		paths = append(paths, p)
	}
	return paths
}

func (f fakeFiles) ReadAt(path string) time.Time { return f[path] }

func TestNil(t *testing.T) {
	var s *Set
	c := s.Counter(aTotal)
	c.Inc()
	c.Add(2)
	s.Decision("refuse").Inc()
	if c != nil || s.Value("filter_a_total") != 0 {
		t.Error("a nil Set counts")
	}
	s.Histogram(wait, "A").Update(1)
	s.Gauge(level, func() float64 { return 1 }, "sea")
	s.Files(fakeFiles{"x": {}})
	s.Run(t.Context(), nil)
	New(Options{}).Run(t.Context(), nil)
}

// A mistake in a declaration costs its own series only, and shows.
func TestMistakes(t *testing.T) {
	ok := func(name string) Desc { return Desc{Name: name, Help: "Help."} }
	for what, do := range map[string]func(s *Set){
		"lower case":   func(s *Set) { s.Counter(ok("filter_Big_total")).Inc() },
		"letters":      func(s *Set) { s.Counter(ok("filter_a b_total")).Inc() },
		"not a name":   func(s *Set) { s.Counter(ok("")).Inc() },
		"filter_":      func(s *Set) { s.Counter(ok("a_total")).Inc() },
		"_total":       func(s *Set) { s.Counter(ok("filter_x")).Inc() },
		"nothing else": func(s *Set) { s.Gauge(ok("filter_x_total"), func() float64 { return 1 }) },
		"_seconds":     func(s *Set) { s.Histogram(Desc{Name: "filter_x", Help: "H.", Buckets: []float64{1}}).Update(1) },
		"has buckets":  func(s *Set) { s.Histogram(ok("filter_x_seconds")).Update(1) },
		"increasing": func(s *Set) {
			s.Histogram(Desc{Name: "filter_x_seconds", Help: "H.", Buckets: []float64{2, 1}}).Update(1)
		},
		"no help":    func(s *Set) { s.Counter(Desc{Name: "filter_x_total"}).Inc() },
		`label "le"`: func(s *Set) { s.Counter(Desc{Name: "filter_x_total", Help: "H.", Labels: []string{"le"}}, "").Inc() },
		`label "filter"`: func(s *Set) {
			s.Counter(Desc{Name: "filter_x_total", Help: "H.", Labels: []string{"filter"}}, "").Inc()
		},
		`label "a"`: func(s *Set) {
			s.Gauge(Desc{Name: "filter_x", Help: "H.", Labels: []string{"a", "a"}}, func() float64 { return 1 }, "", "")
		},
		"1 values":  func(s *Set) { s.Counter(bTotal, "one").Inc() },
		"0 values":  func(s *Set) { s.Gauge(level, func() float64 { return 1 }) },
		"not alike": func(s *Set) { s.Counter(Desc{Name: aTotal.Name, Help: "Other."}).Inc() },
		"twice":     func(s *Set) { s.Gauge(Desc{Name: aTotal.Name, Help: aTotal.Help}, func() float64 { return 1 }) },
	} {
		s := New(Options{})
		s.Counter(aTotal).Inc()
		do(s)
		b, err := s.text()
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "left out") {
			t.Errorf("%s: error %v", what, err)
		}
		if !strings.Contains(string(b), "\nfilter_a_total 1\n") || strings.Contains(string(b), "filter_x") {
			t.Errorf("%s: file is\n%s", what, b)
		}
	}
}

func TestFile(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "m.prom")
	victim := filepath.Join(dir, "victim")
	os.WriteFile(victim, []byte("keep"), 0o600)
	s := New(Options{File: path})
	c := s.Counter(aTotal)
	w := writer{set: s}
	for range 2 {
		c.Inc()
		if err := w.write(); err != nil {
			t.Fatal(err)
		}
	}
	if b, _ := os.ReadFile(path); !strings.Contains(string(b), "\nfilter_a_total{filter_instance=\"m\"} 2\n") {
		t.Errorf("file is %q", b)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	os.Remove(path)
	os.Symlink(victim, path)
	c.Inc()
	if err := w.write(); err == nil {
		t.Error("replaced a link")
	}
	if b, _ := os.ReadFile(victim); string(b) != "keep" {
		t.Error("wrote through a link")
	}
	if _, err := os.Lstat(path + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("left a temporary file behind")
	}
}

// A buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	path := filepath.Join(dir, "m")
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		s := New(Options{File: path})
		c := s.Counter(aTotal)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Run(ctx, slog.New(slog.NewTextHandler(&out, nil)))
			close(done)
		}()
		has := func(want string) {
			t.Helper()
			synctest.Wait()
			b, _ := os.ReadFile(path)
			if !strings.Contains(string(b), want) {
				t.Errorf("file is %q, want %q", b, want)
			}
		}
		written := func() fs.FileInfo {
			t.Helper()
			synctest.Wait()
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return fi
		}
		time.Sleep(9*Interval + time.Second)
		synctest.Wait()
		if n := strings.Count(out.String(), "level=WARN"); n != 3 {
			t.Errorf("%d warnings in 136 s, want one a minute:\n%s", n, out.String())
		}
		os.Mkdir(dir, 0o755)
		time.Sleep(Interval)
		has("filter_a_total{filter_instance=\"m\"} 0\n")
		c.Inc()
		has("filter_a_total{filter_instance=\"m\"} 0\n")
		time.Sleep(Interval)
		has("filter_a_total{filter_instance=\"m\"} 1\n")
		if n := strings.Count(out.String(), "complete again"); n != 1 {
			t.Errorf("%d lines about its end:\n%s", n, out.String())
		}

		first := written()
		time.Sleep(Refresh - Interval)
		if !os.SameFile(first, written()) {
			t.Error("written though nothing has changed")
		}
		time.Sleep(Interval)
		if os.SameFile(first, written()) {
			t.Error("not written for 5 minutes: is the filter alive?")
		}
		c.Inc()
		cancel()
		<-done
		has("filter_a_total{filter_instance=\"m\"} 2\n")
	})
}

// Whatever is declared, and whatever a label says, others can read the file.
func FuzzText(f *testing.F) {
	f.Add("filter_a_total", "help", "zone", "x")
	f.Add("a{b=\"c\"}", "\n# TYPE", "", "\"} 1\n")
	f.Fuzz(func(t *testing.T, name, help, label, value string) {
		s := New(Options{Filter: value, Instance: help})
		s.Counter(Desc{Name: name, Help: help, Labels: []string{label}}, value).Inc()
		s.Gauge(Desc{Name: name, Help: help}, func() float64 { return 2 })
		s.Counter(bTotal, value, name).Add(7)
		b, _ := s.text()
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err := p.TextToMetricFamilies(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		if m := families[bTotal.Name].GetMetric(); len(m) != 1 || m[0].GetCounter().GetValue() != 7 {
			t.Errorf("%v in\n%s", m, b)
		}
	})
}

func TestAllocs(t *testing.T) {
	s := New(Options{Filter: "x"})
	c, h := s.Counter(aTotal), s.Histogram(wait, "A")
	if n := testing.AllocsPerRun(100, func() { c.Inc(); c.Add(2); h.Update(.5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkInc(b *testing.B) {
	c := New(Options{}).Counter(aTotal)
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}

func BenchmarkText(b *testing.B) {
	s := New(Options{Filter: "dnsbl", Instance: "x"})
	for _, z := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		s.Counter(bTotal, z, "failure")
		s.Histogram(wait, z)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.text()
	}
}
