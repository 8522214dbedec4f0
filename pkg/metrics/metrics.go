// Package metrics counts what a filter does and writes it as Prometheus text to
// a file, for node_exporter's textfile collector or for an operator's eyes.
// There is no server.
//
// Names are PACKAGE_WHAT_UNIT, as in resolve_queries_total: a counter ends in
// _total, a histogram in _seconds. They may carry labels, best made with Label:
//
//	queries := set.Counter(`resolve_queries_total{type="A"}`)
//	hits := set.Counter(metrics.Label("dnsbl_hits_total", "zone", zone))
//
// In the file every name begins with filter_ and carries the label
// filter="NAME", so that several filters of one host can be collected together:
//
//	filter_resolve_queries_total{filter="dnsbl",type="A"} 17
//
// A nil *Set gives nil instruments, and the methods of those do nothing: a
// package that counts needs no if. Every distinct name stays in memory for the
// life of the Set: a label must come from the program or its configuration,
// never from the network.
package metrics

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	vm "github.com/VictoriaMetrics/metrics"
)

// Interval is the time between two writes of Run.
const Interval = 15 * time.Second

// A Set, made by New, holds instruments by name. It is safe for concurrent use.
type Set struct {
	// Filter is the value of the label filter, "dnsbl" for filter-dnsbl. It is
	// set before the first write; when empty the label is left out.
	Filter string

	set *vm.Set
	bad atomic.Pointer[error] // the first name that was refused
}

// A Counter is a number that only grows.
type Counter vm.Counter

// A Histogram counts durations by size.
type Histogram struct {
	buckets [len(bounds)]*vm.Counter
	count   *vm.Counter
	sum     *vm.FloatCounter
}

// The upper bounds of the buckets in seconds: from an answer out of a cache to
// a day of greylisting. The same for every histogram, so that they compare.
var bounds = [...]float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 3600, 86400, math.Inf(1)}

// New returns an empty Set.
func New() *Set {
	return &Set{set: vm.NewSet()}
}

// Label returns name with one more label, its value escaped.
func Label(name, label, value string) string {
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	return extend(name, "", label+`="`+r.Replace(strings.ToValidUTF8(value, "?"))+`"`)
}

// Extend adds a suffix to the name proper and puts label before the others. No
// name is longer than its line.
func extend(name, suffix, label string) string {
	name = strings.ReplaceAll(name, "\n", `\n`)
	ident, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
	if labels != "" && label != "" {
		label += ","
	}
	if label += labels; label != "" {
		label = "{" + label + "}"
	}
	return ident + suffix + label
}

// Refuse turns the library's panic over a name that is not valid, or that is
// in use for another kind, into an error of the next WriteFile: such a name is
// a mistake in the program, but not one to lose a mail server for.
func (s *Set) refuse(name string) {
	if r := recover(); r != nil {
		err := fmt.Errorf("metric %q left out: %v", name, r)
		s.bad.CompareAndSwap(nil, &err)
	}
}

// Counter returns the counter of that name and makes it when it is new. It is
// nil when s is nil or the name is not valid.
func (s *Set) Counter(name string) (c *Counter) {
	if s == nil {
		return nil
	}
	defer s.refuse(name)
	return (*Counter)(s.set.GetOrCreateCounter(extend(name, "", "")))
}

// Inc adds one.
func (c *Counter) Inc() { c.Add(1) }

// Add adds n; a negative n is ignored.
func (c *Counter) Add(n int) {
	if c != nil && n > 0 {
		(*vm.Counter)(c).Add(n)
	}
}

// Get returns the present value.
func (c *Counter) Get() uint64 {
	if c == nil {
		return 0
	}
	return (*vm.Counter)(c).Get()
}

// Histogram returns the histogram of that name and makes it when it is new. It
// is nil when s is nil or the name is not valid. Its buckets, from 1 ms to a
// day, are cumulative, as Prometheus wants them (the library's own are not).
func (s *Set) Histogram(name string) (h *Histogram) {
	if s == nil {
		return nil
	}
	defer s.refuse(name)
	n := Histogram{
		count: s.set.GetOrCreateCounter(extend(name, "_count", "")),
		sum:   s.set.GetOrCreateFloatCounter(extend(name, "_sum", "")),
	}
	for i, b := range bounds {
		le := `le="` + strconv.FormatFloat(b, 'f', -1, 64) + `"`
		n.buckets[i] = s.set.GetOrCreateCounter(extend(name, "_bucket", le))
	}
	return &n
}

// Update counts a duration of so many seconds. What is not a number, infinite
// or negative (a clock was set back) is ignored.
func (h *Histogram) Update(seconds float64) {
	if h == nil || math.IsNaN(seconds) || math.IsInf(seconds, 0) || seconds < 0 {
		return
	}
	h.count.Inc()
	h.sum.Add(seconds)
	for i := len(bounds) - 1; i >= 0 && seconds <= bounds[i]; i-- {
		h.buckets[i].Inc()
	}
}

// Gauge writes what f returns at that moment. F must not wait, and must be safe
// for concurrent use; when it panics the value is NaN. The first f given for a
// name stays.
func (s *Set) Gauge(name string, f func() float64) {
	if s == nil || f == nil {
		return
	}
	defer s.refuse(name)
	s.set.GetOrCreateGauge(extend(name, "", ""), func() (v float64) {
		defer func() {
			if recover() != nil {
				v = math.NaN()
			}
		}()
		return f()
	})
}

// Text returns all samples in the Prometheus text format, sorted by name.
func (s *Set) text() []byte {
	var in, out bytes.Buffer
	s.set.WritePrometheus(&in)
	label := ""
	if s.Filter != "" {
		label = Label("", "filter", s.Filter)
		label = label[1 : len(label)-1]
	}
	for line := range strings.Lines(in.String()) {
		i := strings.LastIndexByte(line, ' ') // before the value
		name := extend(line[:i], "", label)
		if !strings.HasPrefix(name, "filter_") {
			out.WriteString("filter_")
		}
		out.WriteString(name)
		out.WriteString(line[i:])
	}
	return out.Bytes()
}

// WriteFile replaces the file by the present values. A reader sees the old file
// or the new one: the text is written to path.tmp, mode 0644, and renamed.
func (s *Set) WriteFile(path string) error {
	if s == nil {
		return nil
	}
	if err := replace(path, s.text()); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if err := s.bad.Load(); err != nil {
		return fmt.Errorf("metrics: %w", *err)
	}
	return nil
}

func replace(path string, text []byte) error {
	tmp := path + ".tmp"
	// What a killed process left behind goes. O_EXCL follows no link that
	// somebody placed in a shared directory.
	os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if e := f.Chmod(0o644); err == nil { // whatever the umask
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// Run writes the file at once, every Interval, and a last time when ctx ends;
// then it returns. A write that fails is logged once, until it works again.
// Without a path it returns at once. Log may be nil.
func (s *Set) Run(ctx context.Context, path string, log *slog.Logger) {
	if s == nil || path == "" {
		return
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	failed := false
	for {
		err := s.WriteFile(path)
		if err != nil && !failed {
			log.Warn("metrics file not complete, trying on", "file", path, "err", err)
		} else if err == nil && failed {
			log.Info("metrics file complete again", "file", path)
		}
		failed = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.WriteFile(path)
			return
		}
	}
}
