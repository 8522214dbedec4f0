package spf

import (
	"context"
	"crypto/hmac"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	probes      = 64
	probeTime   = time.Second // for all
	everybody   = 2           // probes that pass: the record lets everybody send
	proberSize  = 4096
	proberKeeps = time.Hour
)

// A prober finds records that let everybody send, in whatever words: it
// evaluates them for addresses that nobody can foresee, all over the space of
// the client's family. Nobody who sends mail for a domain has addresses
// everywhere.
type prober struct {
	secret [32]byte

	mu    sync.Mutex
	cache *lru.Cache[probeKey, judged]
}

type probeKey struct {
	domain string
	v6     bool
	texts  [sha256.Size]byte // of the records read for the client
}

type judged struct {
	verdict
	until time.Time
}

// A verdict is what the probes say.
type verdict struct {
	everybody  bool
	perAddress bool // not all was, or could be, answered
}

func newProber() *prober {
	p := new(prober)
	crand.Read(p.secret[:])                            // does not fail
	p.cache, _ = lru.New[probeKey, judged](proberSize) // nor this: the size is positive
	return p
}

// judge judges the records of a check that has passed.
func (p *prober) judge(w *walk) verdict {
	k := probeKey{domain: w.id.domain, v6: w.id.addr.Is6()}
	w.texts.Sum(k.texts[:0])
	p.mu.Lock()
	known, ok := p.cache.Get(k)
	p.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known.verdict
	}
	// The client has passed, and does not wait long to learn for how much.
	ctx, cancel := context.WithTimeout(w.ctx, probeTime)
	defer cancel()
	w.ctx, w.probing = ctx, true
	var v verdict
	passed, partial := 0, false
	for _, addr := range p.probes(k.domain, k.v6) {
		if w.ctx.Err() != nil {
			partial = true
			break
		}
		switch w.evaluate(addr) {
		case Pass:
			passed++
		case TempError:
			partial = true
		}
		if passed == everybody {
			v.everybody, partial = true, false
			break
		}
	}
	v.perAddress = w.uses != 0 || partial
	if !partial {
		p.mu.Lock()
		p.cache.Add(k, judged{v, time.Now().Add(proberKeeps)})
		p.mu.Unlock()
	}
	return v
}

// A span is a range of addresses: its first bits, of the first 32.
type span struct{ first, last uint32 }

// spans returns where the addresses of mail servers are: unicast IPv4, and what
// the registries have given out of IPv6.
func spans(v6 bool) []span {
	if !v6 {
		return []span{{0x01000000, 0xdfffffff}}
	}
	return []span{
		{0x20010000, 0x2001ffff},
		{0x24000000, 0x240fffff}, {0x26000000, 0x260fffff}, {0x28000000, 0x280fffff},
		{0x2a000000, 0x2a0fffff}, {0x2c000000, 0x2c0fffff},
	}
}

// probes returns addresses spread evenly over the space, each at random in its
// part.
func (p *prober) probes(domain string, v6 bool) []netip.Addr {
	mac := hmac.New(sha256.New, p.secret[:])
	mac.Write([]byte(domain))
	random := rand.New(rand.NewChaCha8([32]byte(mac.Sum(nil))))
	list := spans(v6)
	addrs := make([]netip.Addr, probes)
	for i := range addrs {
		s := list[i%len(list)]
		parts := uint64((probes - i%len(list) + len(list) - 1) / len(list)) // of this span
		width := (uint64(s.last) - uint64(s.first) + 1) / parts
		var b [16]byte
		for {
			head := uint64(s.first) + uint64(i/len(list))*width + random.Uint64N(width)
			binary.BigEndian.PutUint32(b[:], uint32(head))
			binary.BigEndian.PutUint32(b[4:], random.Uint32())
			binary.BigEndian.PutUint64(b[8:], random.Uint64())
			addrs[i] = netip.AddrFrom16(b)
			if !v6 {
				addrs[i] = netip.AddrFrom4([4]byte(b[:4]))
			}
			// Some name their private networks too.
			if !addrs[i].IsPrivate() && !addrs[i].IsLoopback() {
				break
			}
		}
	}
	return addrs
}
