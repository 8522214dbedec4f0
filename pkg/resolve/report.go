package resolve

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/miekg/dns"

	"opensmtpd-filters/pkg/metrics"
)

type counters struct {
	queries  map[uint16]*metrics.Counter
	hits     *metrics.Counter
	shared   *metrics.Counter
	timeouts *metrics.Counter
	failures *metrics.Counter
	overload *metrics.Counter
	ignored  *metrics.Counter
	sockets  *metrics.Counter
	tcp      *metrics.Counter
	seconds  *metrics.Histogram
}

func newCounters(m *metrics.Set) counters {
	c := counters{
		queries:  make(map[uint16]*metrics.Counter),
		hits:     m.Counter("resolve_cache_hits_total"),
		shared:   m.Counter("resolve_shared_total"),
		timeouts: m.Counter(`resolve_errors_total{kind="timeout"}`),
		failures: m.Counter(`resolve_errors_total{kind="failure"}`),
		overload: m.Counter(`resolve_errors_total{kind="overload"}`),
		ignored:  m.Counter("resolve_ignored_packets_total"),
		sockets:  m.Counter("resolve_socket_errors_total"),
		tcp:      m.Counter("resolve_tcp_total"),
		seconds:  m.Histogram("resolve_seconds"),
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypePTR, dns.TypeTXT} {
		c.queries[t] = m.Counter(`resolve_queries_total{type="` + dns.TypeToString[t] + `"}`)
	}
	return c
}

// socketTrouble counts and logs an error of a socket, EMFILE above all.
func (r *Resolver) socketTrouble(err error) {
	r.count.sockets.Inc()
	r.log.warn("socket error", slog.Any("err", err))
}

// A limitedLog writes a message at most once a minute, with the number of
// those left out.
type limitedLog struct {
	log *slog.Logger

	mu   sync.Mutex
	next map[string]time.Time
	left map[string]int
}

// warn takes a constant message: each has its own minute.
func (l *limitedLog) warn(msg string, attrs ...slog.Attr) {
	now := time.Now()
	l.mu.Lock()
	if l.next == nil {
		l.next, l.left = make(map[string]time.Time), make(map[string]int)
	}
	if now.Before(l.next[msg]) {
		l.left[msg]++
		l.mu.Unlock()
		return
	}
	l.next[msg] = now.Add(time.Minute)
	if n := l.left[msg]; n > 0 {
		attrs = append(attrs, slog.Int("suppressed", n))
		l.left[msg] = 0
	}
	l.mu.Unlock()
	l.log.LogAttrs(context.Background(), slog.LevelWarn, msg, attrs...)
}
