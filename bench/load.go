package main

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A peer answers attempts to deliver a message, which have numbers.
type peer interface {
	send(i int) // perhaps no further than a buffer
	flush() error
	answer() (i int, refused bool, err error)
	more() bool // another answer has come, or a part of it
}

// A sample is what one run has shown.
type sample struct {
	rate            float64 // refusals a second
	refused, passed int
	median, slow    time.Duration // slow is the 99th percentile
}

func (s sample) String() string {
	return fmt.Sprintf("%8.0f %9s %9s", s.rate, s.median.Round(100*time.Microsecond), s.slow.Round(100*time.Microsecond))
}

// middleSample returns the one of the median rate, with what all have let pass.
func middleSample(s []sample) sample {
	slices.SortFunc(s, func(a, b sample) int { return int(a.rate - b.rate) })
	m := s[len(s)/2]
	m.passed = 0
	for _, o := range s {
		m.passed += o.passed
	}
	return m
}

// load has peers answer n attempts, each peer up to depth of them at a time.
func load(peers []peer, depth, first, n int) (sample, error) {
	l := loader{first: first, sent: make([]time.Time, n), took: make([]time.Duration, n)}
	errs := make([]error, len(peers))
	start := time.Now()
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { errs[i] = l.converse(p, depth) })
	}
	wg.Wait()
	elapsed := time.Since(start)
	slices.Sort(l.took)
	refused := int(l.refused.Load())
	return sample{
		rate:    float64(refused) / elapsed.Seconds(),
		refused: refused, passed: n - refused,
		median: l.took[n/2], slow: l.took[n*99/100],
	}, cmp.Or(errs...)
}

type loader struct {
	first         int
	sent          []time.Time
	took          []time.Duration
	next, refused atomic.Int64
}

func (l *loader) converse(p peer, depth int) error {
	for open := 0; ; {
		for ; open < depth; open++ {
			i := int(l.next.Add(1)) - 1
			if i >= len(l.sent) {
				break
			}
			l.sent[i] = time.Now()
			p.send(l.first + i)
		}
		if err := p.flush(); err != nil {
			return err
		}
		if open == 0 {
			return nil
		}
		for again := true; again; again = open > 0 && p.more() {
			i, refused, err := p.answer()
			if err != nil {
				return err
			}
			i -= l.first
			if i < 0 || i >= len(l.sent) || l.took[i] != 0 {
				return fmt.Errorf("an answer to attempt %d, which does not wait for one", l.first+i)
			}
			l.took[i] = time.Since(l.sent[i])
			if refused {
				l.refused.Add(1)
			}
			open--
		}
	}
}
