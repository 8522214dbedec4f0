// Package metrics counts what a filter does and writes it as Prometheus text to
// a file, for node_exporter's textfile collector or for an operator's eyes.
// There is no server.
//
// Each package declares at its top what it counts, with the text that explains
// it, and makes instruments of that in the Set it is given:
//
//	var queriesTotal = metrics.Desc{Name: "filter_resolve_queries_total",
//		Help: "Questions sent to DNS servers.", Labels: []string{"type"}}
//
//	queries := set.Counter(queriesTotal, "A")
//	queries.Inc()
//
// Names are those of the file: filter_PACKAGE_WHAT_UNIT, where a counter ends in
// _total and a histogram in _seconds. Each series of the file also has the labels
// filter, which is "dnsbl" for filter-dnsbl, and filter_instance, without which
// node_exporter would drop the series of the second filter of one kind. (A label
// instance is that of the host: Prometheus would rename ours.)
//
//	filter_resolve_queries_total{filter="dnsbl",filter_instance="strict",type="A"} 17
//
// A nil *Set gives nil instruments, and the methods of those do nothing: a
// package that counts needs no if. Every series stays in memory for the life of
// the Set: the value of a label must come from the program or its configuration,
// never from the network.
package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"opensmtpd-filters/pkg/guard"
)

var (
	buildInfo = Desc{Name: "filter_build_info",
		Help: "Always 1; the labels say which release of the filter runs, and which Go it was built with.", Labels: []string{"version", "goversion"}}
	decisionsTotal = Desc{Name: "filter_decisions_total",
		Help: "Decisions about clients, senders or messages, by action as the log has it.", Labels: []string{"action"}}
	dryRunTotal = Desc{Name: "filter_dry_run_decisions_total",
		Help: "Decisions that were not carried out, because of -dryRun, by action.", Labels: []string{"action"}}
	startTime = Desc{Name: "filter_start_time_seconds",
		Help: "When the filter was started, in seconds since the epoch."}
	fileReadTime = Desc{Name: "filter_file_read_time_seconds",
		Help: "When a file was last read without error, in seconds since the epoch; what was read then is in force.", Labels: []string{"file"}}
)

const (
	// Interval is the time between two looks of Run at the values.
	Interval = 15 * time.Second

	// Refresh is the time after which Run writes the file though nothing has
	// changed: its age tells whether the filter is alive.
	Refresh = 5 * time.Minute
)

// The labels of all series.
const (
	filterLabel   = "filter"
	instanceLabel = "filter_instance"
)

// A Desc declares a metric. It is a constant of a package but for Go's types.
type Desc struct {
	Name    string    // filter_..., of lower case letters, digits and _
	Help    string    // one sentence; the same for a name in all programs
	Labels  []string  // names
	Buckets []float64 // of a histogram: upper bounds in seconds, rising
}

// DNSBuckets are the bounds in seconds for times of DNS answers: from one out of
// a neighbour's cache to the longest that a filter waits.
func DNSBuckets() []float64 {
	return []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}
}

// Options are what a Set says of its program. All may be empty.
type Options struct {
	Filter   string // "dnsbl" for filter-dnsbl
	Instance string // tells filters of one kind apart; default: the name of File, without .prom
	Version  string // of the program
	File     string // what Run writes
	DryRun   bool   // decisions are not carried out
}

// A Set, made by New, holds instruments. It is safe for concurrent use.
type Set struct {
	file     string
	dryRun   bool
	labels   prometheus.Labels // of all series
	registry *prometheus.Registry

	mu       sync.Mutex
	families map[string]*family // by name
	bad      error              // the first instrument that could not be made
}

// A family is what was made of a Desc. One of the vectors is there, none for
// gauges.
type family struct {
	desc       Desc
	kind       kind
	counters   *prometheus.CounterVec
	histograms *prometheus.HistogramVec
}

type kind string

const (
	counter   kind = "counter"
	histogram kind = "histogram"
	gauge     kind = "gauge"
)

// A Counter is a number that only grows.
type Counter struct{ c prometheus.Counter }

// A Histogram counts durations by size.
type Histogram struct{ o prometheus.Observer }

// New returns a Set that has what is common to all filters: when the program was
// started, and which it is.
func New(o Options) *Set {
	if o.Instance == "" && o.File != "" {
		o.Instance = strings.TrimSuffix(filepath.Base(o.File), ".prom")
	}
	s := &Set{
		file:     o.File,
		dryRun:   o.DryRun,
		labels:   prometheus.Labels{},
		registry: prometheus.NewRegistry(),
		families: make(map[string]*family),
	}
	for name, value := range map[string]string{filterLabel: o.Filter, instanceLabel: o.Instance} {
		if value != "" {
			s.labels[name] = strings.ToValidUTF8(value, "?")
		}
	}
	started := float64(time.Now().UnixMilli()) / 1000
	s.Gauge(startTime, func() float64 { return started })
	s.Gauge(buildInfo, func() float64 { return 1 }, o.Version, runtime.Version())
	return s
}

// Counter returns the counter of d that has the values of d's labels, and makes
// it when it is new. It is nil when s is nil or when d is not valid.
func (s *Set) Counter(d Desc, values ...string) (c *Counter) {
	s.instrument(d, counter, values, func(f *family, values []string) error {
		v, err := f.counters.GetMetricWithLabelValues(values...)
		if err == nil {
			c = &Counter{v}
		}
		return err
	})
	return c
}

// Histogram is the like of Counter, with the buckets of d.
func (s *Set) Histogram(d Desc, values ...string) (h *Histogram) {
	s.instrument(d, histogram, values, func(f *family, values []string) error {
		v, err := f.histograms.GetMetricWithLabelValues(values...)
		if err == nil {
			h = &Histogram{v}
		}
		return err
	})
	return h
}

// Gauge writes what f returns at that moment, NaN if f panics. F must not wait,
// and must be safe for concurrent use. The first f given for a series stays.
func (s *Set) Gauge(d Desc, f func() float64, values ...string) {
	if f == nil {
		return
	}
	s.instrument(d, gauge, values, func(_ *family, values []string) error {
		labels := prometheus.Labels{}
		for i, l := range d.Labels {
			labels[l] = values[i]
		}
		for l, v := range s.labels {
			labels[l] = v
		}
		g := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: d.Name, Help: d.Help, ConstLabels: labels}, func() (v float64) {
			defer func() {
				if recover() != nil {
					v = math.NaN()
				}
			}()
			return f()
		})
		err := s.registry.Register(g)
		if errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return nil
		}
		return err
	})
}

// Decision returns the counter of decisions with the word that the log has as
// action. In a dry run it is another, of what would have been done.
func (s *Set) Decision(action string) *Counter {
	if s != nil && s.dryRun {
		return s.Counter(dryRunTotal, action)
	}
	return s.Counter(decisionsTotal, action)
}

// Files are list files as pkg/reload has them.
type Files interface {
	Paths() []string
	ReadAt(path string) time.Time // zero: never
}

// Files has gauges for when files were last read.
func (s *Set) Files(files ...Files) {
	for _, f := range files {
		for _, path := range f.Paths() {
			s.Gauge(fileReadTime, func() float64 {
				if t := f.ReadAt(path); !t.IsZero() {
					return float64(t.UnixMilli()) / 1000
				}
				return 0
			}, path)
		}
	}
}

// Instrument calls do with the family of d and the values. What is wrong with d is a mistake in the
// program, but not one to lose a mail server for: it is an error of every write.
func (s *Set) instrument(d Desc, k kind, values []string, do func(f *family, values []string) error) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := guard.Call(func() error { // the library panics over some mistakes
		f, err := s.family(d, k)
		if err != nil {
			return err
		}
		if len(values) != len(d.Labels) {
			return fmt.Errorf("%d values for %d labels", len(values), len(d.Labels))
		}
		valid := make([]string, len(values))
		for i, v := range values {
			valid[i] = strings.ToValidUTF8(v, "?")
		}
		return do(f, valid)
	})
	if err != nil && s.bad == nil {
		s.bad = fmt.Errorf("metric %q left out: %w", d.Name, err)
	}
}

// Family returns the family of d, and makes it when it is new. It is called with
// mu held.
func (s *Set) family(d Desc, k kind) (*family, error) {
	if f := s.families[d.Name]; f != nil {
		if f.kind != k || f.desc.Help != d.Help || !slices.Equal(f.desc.Labels, d.Labels) || !slices.Equal(f.desc.Buckets, d.Buckets) {
			return nil, errors.New("declared twice, and not alike")
		}
		return f, nil
	}
	if err := d.check(k); err != nil {
		return nil, err
	}
	f := &family{desc: d, kind: k}
	var err error
	switch k {
	case counter:
		f.counters = prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.Name, Help: d.Help, ConstLabels: s.labels}, d.Labels)
		err = s.registry.Register(f.counters)
	case histogram:
		f.histograms = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.Name, Help: d.Help, ConstLabels: s.labels, Buckets: d.Buckets}, d.Labels)
		err = s.registry.Register(f.histograms)
	}
	if err != nil {
		return nil, err
	}
	s.families[d.Name] = f
	return f, nil
}

// Check holds d to the conventions of https://prometheus.io/docs/practices/naming/
// as far as promtool does not.
func (d Desc) check(k kind) error {
	switch {
	case !model.LegacyValidation.IsValidMetricName(d.Name) || d.Name != strings.ToLower(d.Name):
		return errors.New("not a name of lower case letters, digits and _")
	case !strings.HasPrefix(d.Name, "filter_"):
		return errors.New("the name does not begin with filter_")
	case (k == counter) != strings.HasSuffix(d.Name, "_total"):
		return errors.New("a counter, and nothing else, ends in _total")
	case k == histogram && !strings.HasSuffix(d.Name, "_seconds"):
		return errors.New("a histogram ends in _seconds")
	case (k == histogram) != (len(d.Buckets) > 0):
		return errors.New("a histogram, and nothing else, has buckets")
	case strings.TrimSpace(d.Help) == "":
		return errors.New("no help text")
	}
	for i, l := range d.Labels {
		if !model.LegacyValidation.IsValidLabelName(l) || l == filterLabel || l == instanceLabel || l == "le" || slices.Contains(d.Labels[:i], l) {
			return fmt.Errorf("bad label %q", l)
		}
	}
	return nil
}

// Inc adds one. It takes no lock and allocates nothing.
func (c *Counter) Inc() {
	if c != nil {
		c.c.Inc()
	}
}

// Add adds n; a negative n is ignored.
func (c *Counter) Add(n int) {
	if c != nil && n > 0 {
		c.c.Add(float64(n))
	}
}

// Update counts a duration of so many seconds. What is not a number, infinite
// or negative (a clock was set back) is ignored. It allocates nothing.
func (h *Histogram) Update(seconds float64) {
	if h == nil || math.IsNaN(seconds) || math.IsInf(seconds, 0) || seconds < 0 {
		return
	}
	h.o.Observe(seconds)
}

// Value returns the present value of a counter or gauge, or the number of what a
// histogram has counted; 0 if there is no such series. Series is as in the file,
// without the labels that all have: filter_resolve_queries_total{type="A"}. It is
// slow.
func (s *Set) Value(series string) float64 {
	if s == nil {
		return 0
	}
	families, _ := s.registry.Gather()
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() { // sorted by name
				if n := l.GetName(); n != filterLabel && n != instanceLabel {
					labels = append(labels, fmt.Sprintf("%s=%q", n, l.GetValue()))
				}
			}
			name := f.GetName()
			if labels != nil {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			if name == series {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

// Text returns all series in the Prometheus text format, sorted by name, and what
// is missing in it as an error.
func (s *Set) text() ([]byte, error) {
	families, err := s.registry.Gather()
	var out bytes.Buffer
	for _, f := range families {
		if _, e := expfmt.MetricFamilyToText(&out, f); err == nil {
			err = e
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.bad
	}
	return out.Bytes(), err
}

// Run writes the file at once, every Interval if something has changed, at least
// every Refresh, and a last time when ctx ends; then it returns. Anybody may read
// the file, and finds the old values or the new ones. Trouble is logged once a
// minute. Without a file Run returns at once. Log may be nil.
func (s *Set) Run(ctx context.Context, log *slog.Logger) {
	if s == nil || s.file == "" {
		return
	}
	trouble := guard.Complaints{Log: log}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	w := writer{set: s}
	for {
		if err := guard.Call(w.write); err != nil {
			trouble.Warn("metrics file not complete, trying on", "file", s.file, "err", err)
		} else {
			trouble.Over("metrics file complete again", "file", s.file)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			guard.Run(log, "metrics", func() { w.write() })
			return
		}
	}
}

// A writer remembers what it wrote.
type writer struct {
	set  *Set
	text []byte
	at   time.Time
}

func (w *writer) write() error {
	text, bad := w.set.text()
	if !bytes.Equal(text, w.text) || time.Since(w.at) >= Refresh {
		if err := guard.Replace(w.set.file, 0o644, text); err != nil {
			return err
		}
		w.text, w.at = text, time.Now()
	}
	return bad
}
