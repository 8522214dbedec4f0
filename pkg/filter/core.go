package filter

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
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
	ctx context.Context
	log *slog.Logger

	mu      sync.Mutex
	works   int                  // under way, some past their time
	clients map[netip.Prefix]int // of them for transactions, by client
	said    map[string]*said

	count counters
}

// What is counted.
var (
	requestsTotal = metrics.Desc{Name: "filter_requests_total",
		Help: "Questions of smtpd, by phase.", Labels: []string{"phase"}}
	expiredTotal = metrics.Desc{Name: "filter_requests_expired_total",
		Help: "Questions of smtpd that were answered with proceed, because no decision was there in time."}
	skippedTotal = metrics.Desc{Name: "filter_lines_skipped_total",
		Help: "Lines of smtpd that were not understood."}
	busyTotal = metrics.Desc{Name: "filter_work_refused_total",
		Help: "Work that was not begun, because too much of it was under way for the client or in all."}
	panicsTotal = metrics.Desc{Name: "filter_panics_total",
		Help: "Faults of the program that were caught; each is in the log with its place."}
)

type counters struct {
	requests [proto.NumPhases]*metrics.Counter
	panics   *metrics.Counter
	expired  *metrics.Counter
	skipped  *metrics.Counter
	busy     *metrics.Counter
}

func newCounters(m *metrics.Set) counters {
	c := counters{
		panics:  m.Counter(panicsTotal),
		expired: m.Counter(expiredTotal),
		skipped: m.Counter(skippedTotal),
		busy:    m.Counter(busyTotal),
	}
	for p := proto.Connect; p < proto.NumPhases; p++ {
		c.requests[p] = m.Counter(requestsTotal, p.String())
	}
	return c
}

// Bounds of work, see ErrBusy. A session has one or two works under way, for
// what it gives anew ends what it gave before, and smtpd has some thousand
// sessions at most: so what comes near maxWork does not end when it should. The
// reader does not wait for any of it.
//
// Work for a session does not count for its client: nobody shall be let pass for
// coming with many connections at once.
const (
	maxWork       = 8192
	maxClientWork = 64 // for transactions of one client
)

// clientOf returns whose work it is: an IPv4 address or an IPv6 /64. That of
// the local socket is nobody's.
func clientOf(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.WithZone("").Prefix(bits) // not valid if addr is not
	return p
}

// enter counts new work of a client, and reports whether it may start.
func (c *core) enter(client netip.Prefix) bool {
	if !c.admit(client) {
		c.count.busy.Inc()
		c.complain("too much work under way", "client", client)
		return false
	}
	return true
}

func (c *core) admit(client netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.works >= maxWork || c.clients[client] >= maxClientWork {
		return false
	}
	c.works++
	if client.IsValid() {
		c.clients[client]++
	}
	return true
}

// leave counts work that has ended.
func (c *core) leave(client netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.works--
	if n := c.clients[client]; n > 1 {
		c.clients[client] = n - 1
	} else {
		delete(c.clients, client)
	}
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
