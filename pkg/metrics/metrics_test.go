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
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestText(t *testing.T) {
	s := New()
	s.Filter = "dnsbl"
	s.Counter("b_total").Add(3)
	s.Counter(`b_total{type="A"}`).Inc()
	s.Counter(`b_total{type="A"}`).Inc()
	s.Counter("filter_a_total").Add(-1)
	s.Counter(Label(Label("c_total", "zone", "a b\"\\\n}{\xff"), "x", "é")).Inc()
	s.Counter("d_total{x=\"a\nb\"}").Inc()
	s.Gauge("g", func() float64 { return 2.5 })
	s.Gauge("p", func() float64 { panic("gauge") })
	want := `filter_b_total{filter="dnsbl"} 3
filter_b_total{filter="dnsbl",type="A"} 2
filter_c_total{filter="dnsbl",x="é",zone="a b\"\\\n}{?"} 1
filter_d_total{filter="dnsbl",x="a\nb"} 1
filter_a_total{filter="dnsbl"} 0
filter_g{filter="dnsbl"} 2.5
filter_p{filter="dnsbl"} NaN
`
	if got := string(s.text()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	s.Filter = ""
	if got := string(s.text()); !strings.Contains(got, "filter_b_total 3\nfilter_b_total{type=\"A\"} 2\n") {
		t.Errorf("without a filter name:\n%s", got)
	}
}

func TestHistogram(t *testing.T) {
	s := New()
	h := s.Histogram(`wait_seconds{q="A"}`)
	for _, v := range []float64{0, .001, .0011, 5, 90000, -1, math.NaN(), math.Inf(1)} {
		h.Update(v)
	}
	got := string(s.text())
	for _, want := range []string{
		`wait_seconds_bucket{le="0.001",q="A"} 2`,
		`wait_seconds_bucket{le="0.002",q="A"} 3`,
		`wait_seconds_bucket{le="2",q="A"} 3`,
		`wait_seconds_bucket{le="5",q="A"} 4`,
		`wait_seconds_bucket{le="86400",q="A"} 4`,
		`wait_seconds_bucket{le="+Inf",q="A"} 5`,
		`wait_seconds_count{q="A"} 5`,
		`wait_seconds_sum{q="A"} 90005.0021`,
	} {
		if !strings.Contains(got, "filter_"+want+"\n") {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

func TestNil(t *testing.T) {
	var s *Set
	c := s.Counter("a_total")
	c.Inc()
	c.Add(2)
	if c != nil || c.Get() != 0 {
		t.Error("a nil Set counts")
	}
	s.Histogram("b_seconds").Update(1)
	s.Gauge("c", func() float64 { return 1 })
	if err := s.WriteFile("/nonexistent/x"); err != nil {
		t.Error(err)
	}
	s.Run(t.Context(), "/nonexistent/x", nil)
	New().Run(t.Context(), "", nil)
}

func TestBadName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	for _, name := range []string{"", "1a", "a b", `a{b}`, `a{b="c}`, "taken"} {
		s := New()
		s.Gauge("taken", func() float64 { return 1 })
		s.Counter("good_total").Inc()
		s.Counter(name).Inc()
		if err := s.WriteFile(path); err == nil || !strings.Contains(err.Error(), "left out") {
			t.Errorf("%q: error %v", name, err)
		}
		if b, _ := os.ReadFile(path); !strings.Contains(string(b), "filter_good_total 1\n") {
			t.Errorf("%q: file is\n%s", name, b)
		}
	}
}

func TestWriteFile(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "m.prom")
	victim := filepath.Join(dir, "victim")
	os.WriteFile(victim, []byte("keep"), 0o600)
	os.Symlink(victim, path+".tmp")
	s := New()
	s.Counter("a_total").Inc()
	for range 2 {
		if err := s.WriteFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if b, _ := os.ReadFile(path); string(b) != "filter_a_total 1\n" {
		t.Errorf("file is %q", b)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "keep" {
		t.Error("wrote through a link")
	}
	os.Mkdir(filepath.Join(dir, "d"), 0o755)
	os.WriteFile(filepath.Join(dir, "d", "x"), nil, 0o600)
	if err := s.WriteFile(filepath.Join(dir, "d")); err == nil {
		t.Error("replaced a folder")
	}
	if _, err := os.Lstat(filepath.Join(dir, "d.tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("left a temporary file behind")
	}
}

func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	path := filepath.Join(dir, "m")
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := New()
		c := s.Counter("a_total")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Run(ctx, path, slog.New(slog.NewTextHandler(&out, nil)))
			close(done)
		}()
		has := func(want string) {
			t.Helper()
			synctest.Wait()
			if b, _ := os.ReadFile(path); string(b) != want {
				t.Errorf("file is %q, want %q", b, want)
			}
		}
		time.Sleep(3*Interval + time.Second)
		has("")
		os.Mkdir(dir, 0o755)
		time.Sleep(Interval)
		has("filter_a_total 0\n")
		c.Inc()
		has("filter_a_total 0\n")
		time.Sleep(Interval)
		has("filter_a_total 1\n")
		c.Inc()
		cancel()
		has("filter_a_total 2\n")
		<-done
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d log lines, want one of trouble and one of its end:\n%s", n, &out)
		}
	})
}

// Whatever is asked for a name or a label, the file keeps one sample a line.
func FuzzName(f *testing.F) {
	f.Add("a_total", "zone", "x")
	f.Add("a{b=\"c\"}", "", "\"} 1\n")
	f.Fuzz(func(t *testing.T, name, label, value string) {
		s := New()
		s.Filter = value
		s.Counter(name).Inc()
		s.Counter(Label(name, label, value)).Inc()
		s.Counter(Label("good_total", "label", value)).Add(7)
		lines := strings.SplitAfter(string(s.text()), "\n")
		good := 0
		for _, l := range lines[:len(lines)-1] {
			if !strings.HasPrefix(l, "filter_") || !strings.HasSuffix(l, " 1\n") && !strings.HasSuffix(l, " 7\n") && !strings.HasSuffix(l, " 2\n") {
				t.Errorf("line %q", l)
			}
			if strings.HasPrefix(l, "filter_good_total{") {
				good++
			}
		}
		if good != 1 {
			t.Errorf("good_total is missing in %q", lines)
		}
	})
}
