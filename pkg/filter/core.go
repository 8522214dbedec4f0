package filter

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/proto"
)

// core is what the engine shares with those who are not inside.
type core struct {
	ctx        context.Context
	log        *slog.Logger
	complaints guard.Complaints
	count      counters
	lead       func() // that of the engine

	mu      sync.Mutex
	works   int                  // under way, some past their time
	clients map[netip.Prefix]int // of them for transactions, by client
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
		c.complaints.Warn("too much work under way", "client", client)
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
