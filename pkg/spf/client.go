package spf

import (
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// What one client, an address or an IPv6 /64, may cause in queries: at once,
// and then in a second. That is at most 600 in any minute. A hundred new sender
// domains in a minute take half of it.
const (
	clientBurst  = 300
	clientRate   = 5
	clientsKnown = 16384
)

// clients knows what the clients have caused of late.
type clients struct {
	mu    sync.Mutex
	known *lru.Cache[netip.Prefix, *client]
}

type client struct {
	mu   sync.Mutex
	used float64 // of the burst
	at   time.Time
}

func newClients() *clients {
	c := new(clients)
	c.known, _ = lru.New[netip.Prefix, *client](clientsKnown) // the size is positive
	return c
}

// of returns the client with an address.
func (c *clients) of(addr netip.Addr) *client {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the length is right
	c.mu.Lock()
	defer c.mu.Unlock()
	one, ok := c.known.Get(p)
	if !ok {
		one = new(client)
		c.known.Add(p, one)
	}
	return one
}

// take counts a query, and reports whether it may be sent.
func (c *client) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.used = max(0, c.used-clientRate*now.Sub(c.at).Seconds())
	c.at = now
	if c.used > clientBurst-1 {
		return false
	}
	c.used++
	return true
}
