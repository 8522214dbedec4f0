package spf

import (
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// What one client, an address or an IPv6 /64, may cause in queries: at once,
// and then in a second. That is at most 600 in any minute; a hundred new sender
// domains in a minute take half of it. A network, an IPv4 /24 or IPv6 /48, may
// cause four times as much.
//
// A query that is not answered keeps resolver and client waiting, and anybody
// can have a zone that never answers: it counts as six.
const (
	clientBurst = 300
	clientRate  = 5
	netFactor   = 4
	unanswered  = 5 // more
	sourceCache = 16384
)

// sources knows what clients and networks have caused of late.
type sources struct {
	mu    sync.Mutex
	known *lru.Cache[netip.Prefix, *budget]
}

func newSources() *sources {
	s := new(sources)
	s.known, _ = lru.New[netip.Prefix, *budget](sourceCache) // the size is positive
	return s
}

// A client is the budgets that a query for it takes from.
type client struct{ own, net *budget }

// of returns the client with an address.
func (s *sources) of(addr netip.Addr) client {
	own, net := 32, 24
	if addr.Is6() {
		own, net = 64, 48
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return client{s.budget(addr, own, 1), s.budget(addr, net, netFactor)}
}

func (s *sources) budget(addr netip.Addr, bits int, factor float64) *budget {
	p, _ := addr.Prefix(bits) // the length is right
	b, ok := s.known.Get(p)
	if !ok {
		b = &budget{factor: factor}
		s.known.Add(p, b)
	}
	return b
}

// take counts a query, and reports whether it may be sent.
func (c client) take() bool { return c.own.take() && c.net.take() }

// charge counts that a query was not answered.
func (c client) charge() {
	c.own.charge()
	c.net.charge()
}

type budget struct {
	factor float64

	mu   sync.Mutex
	used float64 // of the burst
	at   time.Time
}

func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.used = max(0, b.used-b.factor*clientRate*now.Sub(b.at).Seconds())
	b.at = now
	if b.used+1 > b.factor*clientBurst {
		return false
	}
	b.used++
	return true
}

func (b *budget) charge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += unanswered
}
