package metrics

import (
	"fmt"
	"math"
	"os"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A Sample is one series of a file.
type Sample struct {
	Name    string
	Labels  map[string]string
	Value   float64  // of a histogram the number of what was observed
	Buckets []Bucket // of a histogram, rising
}

// A Bucket is how many of what a histogram has observed were Bound or less.
type Bucket struct {
	Bound float64
	Count uint64
}

// Quantile returns the lowest bound that a part q, 0 to 1, of what was observed does
// not exceed: 0 if there is nothing, +Inf past the last bound.
func (s Sample) Quantile(q float64) float64 {
	if s.Value == 0 {
		return 0
	}
	for _, b := range s.Buckets {
		if float64(b.Count) >= q*s.Value {
			return b.Bound
		}
	}
	return math.Inf(1)
}

// ReadCounters returns the counters of a file that a Set has written.
func ReadCounters(path string) ([]Sample, error) {
	return read(path, func(m *dto.Metric) bool { return m.GetCounter() != nil })
}

// Read returns all series of a file that a Set has written.
func Read(path string) ([]Sample, error) {
	return read(path, func(*dto.Metric) bool { return true })
}

func read(path string, wanted func(*dto.Metric) bool) ([]Sample, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var samples []Sample
	for name, family := range families {
		for _, m := range family.GetMetric() {
			if !wanted(m) {
				continue
			}
			s := Sample{Name: name, Labels: make(map[string]string)}
			switch {
			case m.GetCounter() != nil:
				s.Value = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				s.Value = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				s.Value = float64(m.GetHistogram().GetSampleCount())
				for _, b := range m.GetHistogram().GetBucket() {
					s.Buckets = append(s.Buckets, Bucket{b.GetUpperBound(), b.GetCumulativeCount()})
				}
			}
			for _, l := range m.GetLabel() {
				s.Labels[l.GetName()] = l.GetValue()
			}
			samples = append(samples, s)
		}
	}
	return samples, nil
}
