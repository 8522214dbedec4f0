package dnsbl

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"opensmtpd-filters/pkg/metrics"
)

const (
	testInterval = 15 * time.Minute
	testTimeout  = 5 * time.Second // of one query of a test
	maxFailures  = 5               // in a row, and a zone is not asked
	firstProbe   = 30 * time.Second
	lastProbe    = 30 * time.Minute
)

// What is counted.
var (
	hitsTotal = metrics.Desc{Name: "filter_dnsbl_hits_total",
		Help: "Answers of a DNS list that counted, by label of the list.", Labels: []string{"zone"}}
	errorsTotal = metrics.Desc{Name: "filter_dnsbl_errors_total",
		Help: "Questions that a DNS list did not answer, by label of the list and kind: timeout or failure.", Labels: []string{"zone", "kind"}}
	answerSeconds = metrics.Desc{Name: "filter_dnsbl_answer_seconds",
		Help: "Time of questions to a DNS list until the answer or the end of patience, by label of the list.", Labels: []string{"zone"}, Buckets: metrics.DNSBuckets()}
	listGood = metrics.Desc{Name: "filter_dnsbl_list_good",
		Help: "Whether a DNS list is well: 1, or 0 if it does not answer, answers nonsense, is not tested or is dead.", Labels: []string{"zone"}}
)

// A zone is a list as it is asked, with its health. Several entries may share
// it.
type zone struct {
	name     string
	label    string // of the first entry
	info     known
	ask      Subject
	v4, v6   bool // addresses are asked about
	resolver Resolver
	log      *slog.Logger
	errors   *metrics.Counter
	timeouts *metrics.Counter
	seconds  *metrics.Histogram
	patience time.Duration // with a question

	tripped chan struct{} // tells run that the zone is off
	wanted  chan struct{} // tells run that a test is overdue

	mu       sync.Mutex
	tested   time.Time // when a self-test last answered, zero if none has
	warned   bool      // that tests are not complete
	off      bool      // does not answer
	sick     *fault    // answers nonsense
	used     bool      // since the last test
	missing  bool      // its test entry; said already
	failures int       // in a row
}

// state is what a zone's answers are worth.
type state byte

const (
	good     state = iota
	untested       // no listing counts towards block
	useless        // is not asked
)

func (z *zone) state() state {
	z.mu.Lock()
	defer z.mu.Unlock()
	switch {
	case z.off || z.sick != nil:
		return useless
	case z.stale():
		return untested
	}
	return good
}

// stale reports whether the last test says nothing any more: a zone that
// nobody wants is not tested. It is called with mu held.
func (z *zone) stale() bool { return z.tested.IsZero() || time.Since(z.tested) > 2*testInterval }

// use is state for a zone that is wanted.
func (z *zone) use() state {
	z.mu.Lock()
	z.used = true
	overdue := !z.tested.IsZero() && z.stale()
	z.mu.Unlock()
	if overdue {
		select {
		case z.wanted <- struct{}{}:
		default:
		}
	}
	return z.state()
}

// health says the state in words.
func (z *zone) health() string {
	z.mu.Lock()
	defer z.mu.Unlock()
	switch {
	case z.sick != nil:
		return "sick: " + z.sick.why
	case z.off:
		return "off: does not answer"
	case z.stale():
		return "not tested"
	case z.missing:
		return "good, without a test entry"
	}
	return "good"
}

// failed notes a query without a clear answer.
func (z *zone) failed(timeout bool) {
	if timeout {
		z.timeouts.Inc()
	} else {
		z.errors.Inc()
	}
	z.mu.Lock()
	z.failures++
	trips := !z.off && z.failures >= maxFailures
	z.off = z.off || trips
	z.mu.Unlock()
	if trips {
		z.log.Warn("list does not answer, it is not asked until it does", "list", z.label, "remedy", z.remedy())
		select {
		case z.tripped <- struct{}{}:
		default:
		}
	}
}

// answered notes a query with one.
func (z *zone) answered() {
	z.mu.Lock()
	z.failures = 0
	z.mu.Unlock()
}

// take makes a reply of what the resolver says. Only queries count for the
// health of a zone, not what is remembered of them.
func (z *zone) take(ctx context.Context, a *ask, answer []netip.Addr, fresh bool, err error) reply {
	answered := err == nil || notListed(err)
	if fresh && ctx.Err() == nil {
		took := time.Since(a.start)
		z.seconds.Update(took.Seconds())
		if late := took > z.patience; late || !answered {
			z.failed(late || timedOut(err))
		} else {
			z.answered()
		}
	}
	if !answered {
		return reply{failure: reason(err)}
	}
	codes, f := z.info.decode(answer, a.subject)
	if f != nil {
		z.fall(f)
	}
	switch z.state() {
	case good:
		return reply{codes: codes, trusted: true}
	case useless:
		return reply{}
	}
	return reply{codes: codes}
}

func (z *zone) remedy() string {
	if z.info.remedy != "" {
		return z.info.remedy
	}
	return "none, unless it lasts: then remove it"
}

// fall makes the zone sick.
func (z *zone) fall(f *fault) {
	z.mu.Lock()
	was := z.sick
	z.sick = f
	z.mu.Unlock()
	if was == nil || was.why != f.why {
		z.log.Warn("list is sick, it counts nothing until a test of it is good", "list", z.label, "why", f.why, "remedy", f.remedy)
	}
}

// run tests the zone at once, every 15 minutes if it is in use, and more often
// while it does not answer, until ctx ends.
func (z *zone) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	probe := firstProbe
	for {
		select {
		case <-ctx.Done():
			return
		case <-z.tripped:
			timer.Reset(firstProbe)
			probe = 2 * firstProbe
			continue
		case <-z.wanted:
		case <-timer.C:
		}
		answered := false
		due := z.due()
		if due {
			guard(z.log, func() { answered = z.test(ctx) })
			z.log.Debug("list tested", "list", z.label, "health", z.health())
		}
		switch {
		case !due:
			timer.Reset(testInterval)
		case answered:
			probe = firstProbe
			timer.Reset(testInterval)
		default:
			timer.Reset(probe)
			probe = min(2*probe, lastProbe)
		}
		select {
		case <-z.tripped: // by the test itself
		default:
		}
	}
}

// due reports whether there is reason for a test: none yet, trouble, or use.
func (z *zone) due() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	due := z.tested.IsZero() || z.off || z.used
	z.used = false
	return due
}

// test is that of RFC 5782 section 5: an entry that every list has, and one that
// none may have. It reports whether the zone has answered.
func (z *zone) test(ctx context.Context) bool {
	listed, unlisted := z.testNames()
	var sick *fault
	all, some := true, false
	for _, n := range unlisted {
		codes, f, ok := z.probe(ctx, n)
		all = all && ok
		some = some || ok
		switch {
		case f != nil:
			sick = f
		case len(codes) > 0:
			sick = &fault{"lists the world: an entry that no list may have is listed", "remove the list"}
		}
	}
	found := 0
	for _, n := range listed {
		codes, f, ok := z.probe(ctx, n)
		all = all && ok
		some = some || ok
		found += len(codes)
		if f != nil && sick == nil {
			sick = f
		}
	}
	if sick != nil {
		z.fall(sick)
	}
	z.mu.Lock()
	warn := some && !all && !z.warned
	z.warned = some && !all
	well := z.sick == nil && !z.off && !z.stale()
	z.mu.Unlock()
	if warn {
		z.log.Warn("list answers some of its tests only, its hits do not count towards -blockAt", "list", z.label)
	}
	if !all {
		return false
	}
	if !well && sick == nil {
		// What it answered before is not to be believed now.
		z.resolver.Forget(z.name)
	}
	z.mu.Lock()
	ill := z.sick != nil || z.off
	if sick == nil {
		z.sick = nil
	}
	z.off, z.tested = false, time.Now()
	missing := found == 0 && sick == nil
	newly := missing && !z.missing
	z.missing = missing
	z.mu.Unlock()
	if ill && sick == nil {
		z.log.Info("list is well again", "list", z.label)
	}
	if newly {
		z.log.Warn("list lacks the test entry that every list has; it may be empty", "list", z.label)
	}
	return true
}

// testNames returns the names that must and must not be listed.
func (z *zone) testNames() (listed, unlisted []string) {
	if z.ask&^IP != 0 {
		test := z.info.test
		if test == "" {
			test = "test"
		}
		listed = append(listed, test+"."+z.name)
		unlisted = append(unlisted, "invalid."+z.name)
	}
	if z.v4 {
		listed = append(listed, name(z.name, netip.AddrFrom4([4]byte{127, 0, 0, 2})))
		unlisted = append(unlisted, name(z.name, netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	}
	if z.v6 {
		// Many lists of both families have the IPv4 entry only.
		if !z.v4 {
			listed = append(listed, name(z.name, netip.MustParseAddr("::ffff:127.0.0.2")))
		}
		unlisted = append(unlisted, name(z.name, netip.MustParseAddr("::ffff:127.0.0.1")))
	}
	return listed, unlisted
}

func (z *zone) probe(ctx context.Context, name string) (codes []netip.Addr, f *fault, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	answer, err := z.resolver.FreshA(ctx, name)
	if err != nil && !notListed(err) {
		if ctx.Err() != context.Canceled {
			z.failed(ctx.Err() != nil || timedOut(err))
		}
		return nil, nil, false
	}
	z.answered()
	about := IP
	if z.ask&IP == 0 {
		about = z.ask
	}
	codes, f = z.info.decode(answer, about)
	return codes, f, true
}

// guard calls f and logs a panic: it must not end a filter. It reports whether f
// has returned.
func guard(log *slog.Logger, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "panic", fmt.Sprint(p))
		}
	}()
	f()
	return true
}
