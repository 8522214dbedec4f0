package filter

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/proto"
)

// core is what the loop shares with other goroutines.
type core struct {
	ctx   context.Context
	log   *slog.Logger
	freed chan struct{} // work has ended after the loop found too much of it

	mu        sync.Mutex
	working   int // works within their time
	abandoned int // works past it
	full      bool
	said      map[string]*said

	count counters
}

type counters struct {
	requests [proto.NumPhases]*metrics.Counter
	panics   *metrics.Counter
	expired  *metrics.Counter
	skipped  *metrics.Counter
}

func newCounters(m *metrics.Set) counters {
	c := counters{
		panics:  m.Counter("filter_panics_total"),
		expired: m.Counter("filter_requests_expired_total"),
		skipped: m.Counter("filter_lines_skipped_total"),
	}
	for p := proto.Connect; p < proto.NumPhases; p++ {
		c.requests[p] = m.Counter(fmt.Sprintf("filter_requests_total{phase=%q}", p))
	}
	return c
}

// Bounds of work. The loop reads no further while maxWork is under way; one
// buffer of lines may start more of it.
const (
	maxWork      = 4096
	maxAbandoned = 4096
)

// enter counts new work, and reports whether it may start.
func (c *core) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned >= maxAbandoned || c.working >= 2*maxWork {
		return false
	}
	c.working++
	return true
}

// abandon counts work that has not ended in time.
func (c *core) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working--
	c.abandoned++
	c.wake()
}

// leave counts work that has ended, in time or not.
func (c *core) leave(inTime bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if inTime {
		c.working--
	} else {
		c.abandoned--
	}
	c.wake()
}

func (c *core) wake() {
	if c.full && c.working < maxWork {
		c.full = false
		select {
		case c.freed <- struct{}{}:
		default:
		}
	}
}

// overloaded reports whether there is too much work to read on.
func (c *core) overloaded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.full = c.working >= maxWork
	return c.full
}

// panicked logs a panic that has been recovered, and where it came from.
func (c *core) panicked(id string, p any) {
	c.count.panics.Inc()
	c.log.Error(id, "panic", fmt.Sprint(p), "stack", frames())
}

// frames returns the functions between a panic and the loop, innermost first,
// short enough for one line of log.
func frames() string {
	var pcs [64]uintptr
	next := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	var list []string
	below := false // past runtime.gopanic
	for {
		f, more := next.Next()
		if below && !strings.HasPrefix(f.Function, "runtime.") {
			name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]
			list = append(list, fmt.Sprintf("%s %s:%d", name, filepath.Base(f.File), f.Line))
		}
		below = below || f.Function == "runtime.gopanic"
		if !more || len(list) == 6 {
			return strings.Join(list, ", ")
		}
	}
}

// said is what has been kept back of one kind of complaint.
type said struct {
	next time.Time
	kept int
}

// complain logs what is wrong with the input, each text at most once a minute.
func (c *core) complain(text string, args ...any) {
	c.mu.Lock()
	now := time.Now()
	s := c.said[text]
	if s == nil {
		s = &said{}
		c.said[text] = s
	}
	if now.Before(s.next) {
		s.kept++
		c.mu.Unlock()
		return
	}
	if s.kept > 0 {
		args = append(args, "more", s.kept)
	}
	*s = said{next: now.Add(time.Minute)}
	c.mu.Unlock()
	c.log.Warn(text, args...)
}
