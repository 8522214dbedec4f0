package greylist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
)

// Names of the stored counters: decisions by reason and by mark, and first passes
// by the least bound their delay, in seconds, is not over.
const (
	reasonPrefix = "reason "
	markPrefix   = "suspect "
	delayPrefix  = "delay "
	delayMore    = delayPrefix + "more"
)

// The same are counted by the hour and by the day, with the number of it since the
// epoch before the name. Others than the last go.
const (
	hourPrefix = 'h'
	dayPrefix  = 'd'
	hourMillis = int64(time.Hour / time.Millisecond)
	keepHours  = 3 * 24
	keepDays   = 400
)

func timed(prefix byte, n int64, name string) string {
	return string(prefix) + strconv.FormatInt(n, 10) + " " + name
}

// parseTimed reads what timed returns.
func parseTimed(s string) (prefix byte, n int64, name string, ok bool) {
	head, name, ok := strings.Cut(s, " ")
	if !ok || head == "" || head[0] != hourPrefix && head[0] != dayPrefix {
		return 0, 0, "", false
	}
	n, err := strconv.ParseInt(head[1:], 10, 64)
	return head[0], n, name, err == nil
}

var delayBounds = [...]int64{60, 120, 300, 600, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600}

// DelayBounds are the bounds of Stats.Delays.
func DelayBounds() []time.Duration {
	var bounds []time.Duration
	for _, s := range delayBounds {
		bounds = append(bounds, time.Duration(s)*time.Second)
	}
	return bounds
}

// What is counted.
var (
	decisionsTotal = metrics.Desc{Name: "filter_greylist_decisions_total",
		Help: "Greylisting decisions, by reason as the log has it.", Labels: []string{"reason"}}
	suspectsTotal = metrics.Desc{Name: "filter_greylist_suspects_total",
		Help: "Greylisting decisions on mail that cannot be vouched for, by the reason of that.", Labels: []string{"suspect"}}
	delaySeconds = metrics.Desc{Name: "filter_greylist_delay_seconds",
		Help: "Time from the first attempt to the one that passed.", Buckets: delaySecondsBuckets()}
	unretriedTotal = metrics.Desc{Name: "filter_greylist_unretried_total",
		Help: "Attempts that were refused and expired without a retry."}
	recordsHeld = metrics.Desc{Name: "filter_greylist_records",
		Help: "Records that have not expired, by state: grey has not passed, pass lets through. It is some minutes old if there are many.", Labels: []string{"state"}}
)

func delaySecondsBuckets() []float64 {
	var bounds []float64
	for _, s := range delayBounds {
		bounds = append(bounds, float64(s))
	}
	return bounds
}

// tally counts decisions, for the metrics, and until they are stored.
type tally struct {
	decisions map[Reason]*metrics.Counter
	suspects  map[Mark]*metrics.Counter
	delays    *metrics.Histogram
	unretried *metrics.Counter
	records   *census

	mu     sync.Mutex
	counts map[counted]int64
	pruned int64 // the hour in which old counters were last removed
}

// counted is what a counter of an hour is about.
type counted struct {
	hour int64 // since the epoch
	name string
}

func newTally(set *metrics.Set) *tally {
	t := &tally{
		decisions: make(map[Reason]*metrics.Counter),
		suspects:  make(map[Mark]*metrics.Counter),
		delays:    set.Histogram(delaySeconds),
		unretried: set.Counter(unretriedTotal),
		records:   newCensus(set),
		counts:    make(map[counted]int64),
	}
	for _, r := range Reasons() {
		t.decisions[r] = set.Counter(decisionsTotal, string(r))
	}
	for _, m := range Marks() {
		t.suspects[m] = set.Counter(suspectsTotal, string(m))
	}
	return t
}

// A census counts records while they are swept.
type census struct {
	round [Pass + 1]int64         // so far, by state
	total [Pass + 1]atomic.Uint64 // of the last round that came to its end: bits of a float64
}

func newCensus(set *metrics.Set) *census {
	c := new(census)
	for _, s := range []State{Grey, Pass} {
		c.total[s].Store(math.Float64bits(math.NaN())) // not counted yet
		set.Gauge(recordsHeld, func() float64 { return math.Float64frombits(c.total[s].Load()) }, s.String())
	}
	return c
}

// add counts the records of one step of the sweep.
func (c *census) add(step [Pass + 1]int64, done bool) {
	for s, n := range step {
		c.round[s] += n
		if done {
			c.total[s].Store(math.Float64bits(float64(c.round[s])))
			c.round[s] = 0
		}
	}
}

func (t *tally) add(d Decision, at time.Time) {
	t.decisions[d.Reason].Inc()
	if c := t.suspects[d.Suspect]; c != nil {
		c.Inc()
	}
	if d.First {
		t.delays.Update(d.Delay.Seconds())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	hour := at.UnixMilli() / hourMillis
	t.counts[counted{hour, reasonPrefix + string(d.Reason)}]++
	if d.Suspect != Proper {
		t.counts[counted{hour, markPrefix + string(d.Suspect)}]++
	}
	if d.First {
		t.counts[counted{hour, delayName(d.Delay)}]++
	}
}

func delayName(d time.Duration) string {
	for _, s := range delayBounds {
		if d <= time.Duration(s)*time.Second {
			return fmt.Sprint(delayPrefix, s)
		}
	}
	return delayMore
}

// Flush stores what was noted and counted, which Run does too.
func (g *Greylist) Flush(ctx context.Context) error {
	return errors.Join(g.writeNotes(ctx), g.flush(ctx))
}

// flush stores what was counted.
func (g *Greylist) flush(ctx context.Context) error {
	t := g.tally
	t.mu.Lock()
	counts := t.counts
	t.counts = make(map[counted]int64)
	t.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	add := make(map[string]int64)
	var last int64
	for c, n := range counts {
		add[c.name] += n
		add[timed(hourPrefix, c.hour, c.name)] += n
		add[timed(dayPrefix, c.hour/24, c.name)] += n
		last = max(last, c.hour)
	}
	all, err := g.store.Count(ctx, add)
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		for c, n := range counts {
			t.counts[c] += n
		}
		return err
	}
	if last = min(last, time.Now().UnixMilli()/hourMillis); last > t.pruned {
		t.pruned = last
		if old := outdated(all, last); len(old) > 0 {
			_, err = g.store.Count(ctx, old)
		}
	}
	return err
}

// outdated returns what makes the counters of hours and days long gone zero.
func outdated(counts map[string]int64, hour int64) map[string]int64 {
	old := make(map[string]int64)
	for name, n := range counts {
		prefix, at, _, ok := parseTimed(name)
		if ok && n != 0 && (prefix == hourPrefix && at < hour-keepHours || prefix == dayPrefix && at < hour/24-keepDays) {
			old[name] = -n
		}
	}
	return old
}

// maxAhead is how far the time of an attempt may be ahead of the process's clock for
// records to be removed by it: one wrong clock must not delete what was learned.
const maxAhead = time.Hour

// Times of Run.
const (
	sweepEvery = time.Second
	flushEvery = time.Minute
	stepTime   = 5 * time.Second
)

// Run removes expired records step by step, and stores what was noted and
// counted, until ctx ends. Now returns the time of the last attempt; while it is
// zero, or more than an hour ahead of the clock, nothing expires. It logs attempts that expire without a retry, and trouble once, until
// it ends, a panic of the store among it; log may be nil.
func (g *Greylist) Run(ctx context.Context, now func() time.Time, log *slog.Logger) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	trouble, ahead, rekeyed := false, false, false
	next := time.Now().Add(flushEvery)
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepEvery)
			guard.Call(func() error { return g.Flush(last) })
			cancel()
			return
		case <-tick.C:
		}
		err := guard.Call(func() error {
			if !rekeyed {
				if err := g.rekey(ctx); err != nil {
					return err
				}
				rekeyed = true
			}
			ctx, cancel := context.WithTimeout(ctx, stepTime)
			defer cancel()
			if err := g.writeNotes(ctx); err != nil {
				return err
			}
			t := now()
			by := time.Until(t)
			if far := by > maxAhead; far != ahead {
				if ahead = far; far {
					log.Warn("the time of mail is ahead of the clock: nothing is removed meanwhile", "ahead", by.Round(time.Second))
				}
			}
			if _, ok := g.store.(Expiring); !ok && !t.IsZero() && !ahead {
				if err := g.sweep(ctx, t, log); err != nil {
					return err
				}
			}
			if time.Now().Before(next) {
				return nil
			}
			next = time.Now().Add(flushEvery)
			return g.flush(ctx)
		})
		if errors.Is(err, ErrAway) {
			continue
		}
		if (err != nil) != trouble && ctx.Err() == nil {
			trouble = err != nil
			if trouble {
				log.Warn("greylist store not swept", "err", err)
			} else {
				log.Info("greylist store swept again")
			}
		}
	}
}

// sweep removes some of what has expired. An attempt that was refused and never
// came again is logged: once, for its network, if the store has that in clear.
func (g *Greylist) sweep(ctx context.Context, t time.Time, log *slog.Logger) error {
	expired := g.Expired(t)
	gone := make(map[Key]Record) // the store may ask twice
	var step [Pass + 1]int64
	_, done, err := g.store.Sweep(ctx, func(k Key, r Record) bool {
		if !expired(k, r) {
			if r.State <= Pass {
				step[r.State]++
			}
			return false
		}
		if k.Kind() == KindAttempt && r.State == Grey && (r.Origin == "" || strings.HasPrefix(r.Origin, "net:")) {
			gone[k] = r
		}
		return true
	})
	if err != nil {
		return err
	}
	g.tally.records.add(step, done)
	g.tally.unretried.Add(len(gone))
	for k, r := range gone {
		what := []any{"key", k}
		if r.Origin != "" {
			addr, name, _ := strings.Cut(cmp.Or(r.Client, strings.TrimPrefix(r.Origin, "net:")), " ")
			what = []any{"addr", addr, "name", cmp.Or(name, "-"), "from", bracket(r.Sender), "rcpt", bracket(r.Rcpt), "origin", r.Origin}
		}
		log.Info("filter=greylist", append([]any{"event", "noretry"}, append(what, "tries", r.Tries, "first", time.UnixMilli(r.First).UTC().Format(time.RFC3339))...)...)
	}
	return nil
}

// bracket encloses an address; the null sender is so already.
func bracket(addr string) string {
	if addr == NullSender {
		return addr
	}
	return "<" + addr + ">"
}
