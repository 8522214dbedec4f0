package resolve

import (
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxCacheBytes bounds the cache by what is in it: anybody who sends mail can
// make us ask for his own records, of 64 kB each.
const maxCacheBytes = 32 << 20

// What has expired is looked for so often, and among so many answers for each
// that comes in.
const (
	sweepEvery = time.Minute
	sweepStep  = 16
)

// A cache keeps the answers asked for last.
type cache struct {
	lru *lru.Cache[key, *answer]

	mu    sync.Mutex // held by writers
	bytes int
	sweep []key // still to be looked at
	swept time.Time
}

func newCache(size int) *cache {
	c := new(cache)
	// The only error is a size that is not positive.
	c.lru, _ = lru.NewWithEvict(size, func(k key, a *answer) { c.bytes -= footprint(k, a) })
	return c
}

// get returns nil when there is no answer or it has expired.
func (c *cache) get(k key, now time.Time) *answer {
	if a, ok := c.lru.Get(k); ok && now.Before(a.expires) {
		return a
	}
	return nil
}

func (c *cache) put(k key, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(k) // Add would replace without a call of the evict function
	c.bytes += footprint(k, a)
	c.lru.Add(k, a)
	for c.bytes > maxCacheBytes {
		c.lru.RemoveOldest()
	}
	c.dropExpired(time.Now())
}

// dropExpired drops some of what has expired. Most names are asked for once,
// and would else stay until the cache is full.
func (c *cache) dropExpired(now time.Time) {
	if len(c.sweep) == 0 {
		if now.Sub(c.swept) < sweepEvery {
			return
		}
		c.sweep, c.swept = c.lru.Keys(), now
	}
	n := min(len(c.sweep), sweepStep)
	for _, k := range c.sweep[:n] {
		if a, ok := c.lru.Peek(k); ok && !now.Before(a.expires) {
			c.lru.Remove(k)
		}
	}
	if c.sweep = c.sweep[n:]; len(c.sweep) == 0 {
		c.sweep = nil
	}
}

func (c *cache) drop(k key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(k)
}

// dropBelow drops what is known of a name and all names below it.
func (c *cache) dropBelow(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.lru.Keys() {
		if k.name == name || strings.HasSuffix(k.name, "."+name) {
			c.lru.Remove(k)
		}
	}
}

func (c *cache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Purge()
}

// footprint is roughly the memory an entry takes, in bytes.
func footprint(k key, a *answer) int {
	n := 400 + len(k.name) + 24*len(a.addrs)
	for _, s := range a.strs {
		n += 16 + len(s)
	}
	for _, mx := range a.mx {
		n += 32 + len(mx.Host)
	}
	return n
}
