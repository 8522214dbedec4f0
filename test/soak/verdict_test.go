//go:build linux

package main

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// A run of an hour, each minute as it is given, with noise.
func madeUp(change func(minute float64, u *use), slow func(minute float64) float64) []sample {
	rng := rand.New(rand.NewPCG(1, 2))
	var samples []sample
	for i := range 60 {
		s := sample{at: time.Duration(i+1) * time.Minute, low: map[string]use{}}
		s.clients.sessions = 3000 + rng.IntN(500)
		minute := float64(i)
		cost := func(base time.Duration) time.Duration {
			d := float64(base) * float64(s.clients.sessions) * (0.8 + 0.4*rng.Float64())
			if slow != nil {
				d *= slow(minute)
			}
			return time.Duration(d)
		}
		s.low["smtpd"] = use{rss: 40e6, fds: 80 + rng.IntN(200), threads: 7, cpu: cost(5 * time.Millisecond)}
		for _, p := range programs {
			u := use{rss: 25e6 + rng.Int64N(10e6), fds: 10 + rng.IntN(40), threads: 9, cpu: cost(time.Millisecond)}
			if p.name == "filter-dnsbl" && change != nil {
				change(minute, &u)
			}
			s.low[p.name] = u
		}
		samples = append(samples, s)
	}
	return samples
}

func TestRises(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(minute float64, u *use)
		slow   func(minute float64) float64
		want   string
	}{
		{"flat", nil, nil, ""},
		{"grows until it is warm", func(m float64, u *use) { u.rss += int64(min(m, 20) * 1e6) }, nil, ""},
		{"the machine becomes three times slower", nil, func(m float64) float64 { return 1 + 2*min(1, m/40) }, ""},
		{"a burst", func(m float64, u *use) {
			if m > 50 && m < 53 {
				u.rss += 100e6
				u.fds += 1000
			}
		}, nil, ""},
		{"memory", func(m float64, u *use) { u.rss += int64(m * 1e6) }, nil, "filter-dnsbl: memory"},
		{"descriptors", func(m float64, u *use) { u.fds += int(m) }, nil, "filter-dnsbl: descriptors"},
		{"threads", func(m float64, u *use) { u.threads += int(m / 2) }, nil, "filter-dnsbl: threads"},
		{"processor time", func(m float64, u *use) { u.cpu += time.Duration(m * float64(u.cpu) / 10) }, nil, "filter-dnsbl: processor time"},
		{"processor time, while the machine becomes faster", func(m float64, u *use) { u.cpu += time.Duration(m * float64(u.cpu) / 20) },
			func(m float64) float64 { return 2 - m/60 }, "filter-dnsbl: processor time"},
		{"processor time of a slower machine too", func(m float64, u *use) { u.cpu += time.Duration(m * float64(u.cpu) / 5) },
			func(m float64) float64 { return 1 + m/60 }, "filter-dnsbl: processor time"},
		{"not there", func(_ float64, u *use) { *u = use{} }, nil, "not seen"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(rises(madeUp(tt.change, tt.slow), time.Hour), "; ")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestCycles(t *testing.T) {
	for run, want := range map[time.Duration]time.Duration{
		3 * time.Minute:  time.Minute,
		30 * time.Minute: 10 * time.Minute / 3,
		time.Hour:        4 * time.Minute,
		8 * time.Hour:    4 * time.Minute,
	} {
		if got := cycleOf(run); got != want {
			t.Errorf("%v: cycles of %v, want %v", run, got, want)
		}
	}
}
