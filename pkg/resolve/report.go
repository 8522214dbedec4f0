package resolve

import (
	"errors"
	"net"
	"syscall"

	"github.com/miekg/dns"

	"opensmtpd-filters/pkg/metrics"
)

// What is counted.
var (
	queriesTotal = metrics.Desc{Name: "filter_resolve_queries_total",
		Help: "DNS lookups that were not answered from the cache, by type.", Labels: []string{"type"}}
	hitsTotal = metrics.Desc{Name: "filter_resolve_cache_hits_total",
		Help: "DNS lookups that were answered from the cache."}
	sharedTotal = metrics.Desc{Name: "filter_resolve_shared_total",
		Help: "DNS lookups that got the answer of another one for the same name."}
	errorsTotal = metrics.Desc{Name: "filter_resolve_errors_total",
		Help: "DNS lookups without an answer, by kind: timeout, failure of the server, or overload of the filter.", Labels: []string{"kind"}}
	ignoredTotal = metrics.Desc{Name: "filter_resolve_ignored_packets_total",
		Help: "Packets that were no answer to a question asked: forged, late or broken."}
	socketErrorsTotal = metrics.Desc{Name: "filter_resolve_socket_errors_total",
		Help: "Errors of sockets, such as too few file descriptors."}
	tcpTotal = metrics.Desc{Name: "filter_resolve_tcp_total",
		Help: "Questions that were asked by TCP, because the answer did not fit a packet."}
	answerSeconds = metrics.Desc{Name: "filter_resolve_seconds",
		Help: "Time of DNS lookups that were not answered from the cache, until the answer or the end of patience.", Buckets: metrics.DNSBuckets()}
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
		hits:     m.Counter(hitsTotal),
		shared:   m.Counter(sharedTotal),
		timeouts: m.Counter(errorsTotal, "timeout"),
		failures: m.Counter(errorsTotal, "failure"),
		overload: m.Counter(errorsTotal, "overload"),
		ignored:  m.Counter(ignoredTotal),
		sockets:  m.Counter(socketErrorsTotal),
		tcp:      m.Counter(tcpTotal),
		seconds:  m.Histogram(answerSeconds),
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeNS, dns.TypePTR, dns.TypeTXT} {
		c.queries[t] = m.Counter(queriesTotal, dns.TypeToString[t])
	}
	return c
}

// socketTrouble counts and logs an error of a socket, EMFILE above all. That
// nobody is there is said of the server.
func (r *Resolver) socketTrouble(err error) {
	r.count.sockets.Inc()
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, net.ErrClosed) {
		return
	}
	r.log.Warn("socket error", "err", err)
}
