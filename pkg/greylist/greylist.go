// Package greylist decides who has to come again.
//
// The first attempt of an unknown origin is refused with a temporary error, its
// retry is accepted (RFC 6647). An attempt has several origins, the domain that
// SPF proves, the address and its network, and is accepted when any of them is
// known or waited long enough: so a retry may come from another machine of a
// pool, and a DNS that does not answer once makes nobody wait twice.
//
//	g := greylist.New(greylist.Options{Store: greylist.NewMemory(0)})
//	d, err := g.Decide(ctx, greylist.Attempt{Time: t, Addr: addr, Sender: from, Rcpt: rcpt, SPF: domain})
//	if err != nil || d.Accept {
//		... // let it pass
//	}
//
// Nothing here reads the clock for a decision: the time is that of the attempt.
package greylist

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/metrics"
)

// A Policy has the times and numbers of the decision. Zero fields have the
// given defaults.
type Policy struct {
	PassTime  time.Duration // minimum age of a retry; 60 s
	GreyExp   time.Duration // a retry after that is a first attempt; 24 h
	WhiteExp  time.Duration // a pass lives that long after its last use; 36 days
	TrapTime  time.Duration // how long an address is refused that wrote to a trap; 24 h
	Mask4     int           // bits of the network that stands for an IPv4 address; 24
	Mask6     int           // the same for IPv6; 64
	MaxPerNet int           // new attempts of a network within GreyExp, past which it counts as a whole, to about a fifth; 256

	// An attempt is accepted when it is at least the PairTries-th of its
	// sender and recipient, PairSpan after the first, and PairNets networks
	// have been seen: 3, 15 min, 2. With a negative number of tries only what
	// was learned or allowed passes so.
	PairTries, PairNets int
	PairSpan            time.Duration
}

func (p Policy) withDefaults() Policy {
	setDefault(&p.PassTime, time.Minute)
	setDefault(&p.GreyExp, 24*time.Hour)
	setDefault(&p.WhiteExp, 36*24*time.Hour)
	setDefault(&p.TrapTime, 24*time.Hour)
	setDefault(&p.Mask4, 24)
	setDefault(&p.Mask6, 64)
	setDefault(&p.MaxPerNet, 256)
	setDefault(&p.PairTries, 3)
	setDefault(&p.PairNets, 2)
	setDefault(&p.PairSpan, 15*time.Minute)
	p.PairNets = min(p.PairNets, maxNets)
	return p
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Options are the settings of a Greylist.
type Options struct {
	Store  Store // default: a new Memory
	Policy Policy

	// Secret returns what keys are made with, see KeyFile. Default: made at
	// random, which serves only a store that lives no longer.
	Secret func() ([]byte, error)

	// Clear has addresses, senders and recipients stored beside the keys.
	Clear bool

	Metrics *metrics.Set // nil: none
}

// A Greylist takes decisions. It may be used by any number of goroutines.
type Greylist struct {
	store  Store
	cache  Cache // nil: none
	policy Policy
	clear  bool
	secret func() ([]byte, error)
	tally  *tally

	mu     sync.Mutex
	hasher *hasher
}

// New returns a Greylist.
func New(o Options) *Greylist {
	g := &Greylist{store: o.Store, policy: o.Policy.withDefaults(), clear: o.Clear, secret: o.Secret}
	if g.store == nil {
		g.store = NewMemory(0)
	}
	g.cache, _ = g.store.(Cache)
	if g.secret == nil {
		b := make([]byte, 32)
		rand.Read(b)
		g.hasher = newHasher(b)
	}
	g.tally = newTally(o.Metrics)
	return g
}

func (g *Greylist) hash() (*hasher, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hasher == nil {
		secret, err := g.secret()
		if err != nil {
			return nil, fmt.Errorf("no key: %w", err)
		}
		g.hasher = newHasher(secret)
	}
	return g.hasher, nil
}

// An Attempt is one try to deliver a message.
type Attempt struct {
	Time   time.Time
	Addr   netip.Addr
	Sender string   // as given; empty or <> is the null sender
	Rcpt   string   // the first accepted recipient, as given
	SPF    string   // the domain that SPF proves, empty if none
	Also   []string // names of further origins, such as provider:NAME
}

// A Reason says why an attempt is accepted or refused.
type Reason string

// What Decide answers.
const (
	Unseen  Reason = "new"     // refused: not seen before
	Early   Reason = "early"   // refused: seen less than PassTime ago
	Late    Reason = "late"    // refused: seen more than GreyExp ago, so it counts as new
	Trapped Reason = "trapped" // refused: the address has written to a trap
	Retry   Reason = "retry"   // accepted: the retry that was waited for
	Known   Reason = "known"   // accepted: an origin is free, or the same has passed before
	Paired  Reason = "pair"    // accepted: sender and recipient are known to each other, or have tried long enough
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{Unseen, Early, Late, Trapped, Retry, Known, Paired}
}

// A Decision is the answer to an attempt and what led to it.
type Decision struct {
	Accept  bool
	Reason  Reason
	Left    time.Duration // refused: until a retry will be accepted, whole seconds, at least one
	Delay   time.Duration // Retry, and Paired for the first time: since the first attempt
	First   bool          // accepted, and the first such: Delay counts
	Tries   int           // attempts seen, this one counted; 0 if Known
	Crowded bool          // the network is past its quota

	Origin  string   // the origin that decided, or else the address
	Key     Key      // of the record that decided
	Origins []string // all of the attempt
	Sender  string   // normalised
	Rcpt    string   // normalised
}

// A plan is what an attempt needs to know: which keys, and what each is for.
type plan struct {
	keys    []Key
	blank   []Record // a new record for each key, without state
	free    []int    // origins that pass as such
	attempt []int    // records of this origin, sender and recipient

	trap, pair, quota, network int // pair is -1 if there is none

	net     string // hash of the network in a pair's record
	origins []string
	sender  string
	rcpt    string
}

const (
	netLen  = 4 // bytes of hash
	maxNets = 8
)

func (g *Greylist) plan(h *hasher, a Attempt) *plan {
	addr := a.Addr.Unmap().WithZone("")
	host := hostOrigin(addr, g.policy.Mask6)
	net := "net:" + netOf(addr, g.policy.Mask4, g.policy.Mask6).String()
	p := &plan{
		sender: NormalizeSender(a.Sender, a.Rcpt),
		rcpt:   NormalizeRcpt(a.Rcpt),
		pair:   -1,
	}
	add := func(kind Kind, origin, sender, rcpt string) int {
		e := h.entry(kind, origin, sender, rcpt)
		if !g.clear {
			e.Record = Record{}
		}
		p.keys = append(p.keys, e.Key)
		p.blank = append(p.blank, e.Record)
		return len(p.keys) - 1
	}
	also := slices.Clone(a.Also)
	if a.SPF != "" {
		also = append(also, "spf:"+strings.TrimSuffix(strings.ToLower(cutTo(a.SPF, 255)), "."))
	}
	// The origins come first: Peek asks for no more.
	for _, o := range also {
		p.free = append(p.free, add(KindOrigin, o, "", ""))
		p.origins = append(p.origins, o)
	}
	p.free = append(p.free, add(KindOrigin, host, "", ""))
	p.origins = append(p.origins, host, net)
	// What the address alone has tried is not kept: its network has tried the
	// same, at least as long ago.
	for _, o := range also {
		sender := p.sender
		if strings.HasPrefix(o, "spf:") {
			sender = "" // proven by its domain
		}
		p.attempt = append(p.attempt, add(KindAttempt, o, sender, p.rcpt))
	}
	p.attempt = append(p.attempt, add(KindAttempt, net, p.sender, p.rcpt))
	// Everybody sends bounces: they prove nothing about the next.
	if p.sender != NullSender {
		p.pair = add(KindPair, "", p.sender, p.rcpt)
	}
	p.trap = add(KindTrap, host, "", "")
	p.quota = add(KindQuota, net, "", "")
	p.network = add(KindNetwork, net, "", "")
	p.net = string(p.keys[p.quota][8 : 8+netLen])
	return p
}

// hostOrigin is the one machine, as far as an address tells: an IPv6 host has
// its /64.
func hostOrigin(a netip.Addr, mask6 int) string {
	if a.Is4() {
		return a.String()
	}
	return netOf(a, 32, max(mask6, 64)).String()
}

// Decide answers an attempt and stores it. When it returns an error nothing is
// known, and the message should pass.
func (g *Greylist) Decide(ctx context.Context, a Attempt) (Decision, error) {
	h, err := g.hash()
	if err != nil {
		return Decision{}, err
	}
	p := g.plan(h, a)
	now := a.Time.UnixMilli()
	if d, ok := g.atHand(p, now); ok {
		g.tally.add(d)
		return d, nil
	}
	d := new(Decision)
	if err := g.store.Update(ctx, p.keys, func(recs []Record) { *d = g.decide(p, now, recs) }); err != nil {
		return Decision{}, err
	}
	g.tally.add(*d)
	return *d, nil
}

// atHand answers without the store if an origin is known to be free.
func (g *Greylist) atHand(p *plan, now int64) (Decision, bool) {
	if g.cache == nil {
		return Decision{}, false
	}
	recs, ok := g.cache.Peek(p.keys[:len(p.free)])
	if !ok {
		return Decision{}, false
	}
	for _, i := range p.free {
		if recs[i].clamp(now); !g.passes(recs[i], now) {
			continue
		}
		renew := append(slices.Clone(p.free), p.attempt...)
		if p.pair >= 0 {
			renew = append(renew, p.pair)
		}
		keys := make([]Key, len(renew))
		for n, j := range renew {
			keys[n] = p.keys[j]
		}
		if !g.cache.Renew(keys, now, now-g.policy.WhiteExp.Milliseconds()) {
			return Decision{}, false
		}
		return p.accept(Known, i), true
	}
	return Decision{}, false
}

// Explain returns what Decide would answer, and the records that it would look
// at as they are. It stores nothing.
func (g *Greylist) Explain(ctx context.Context, a Attempt) (Decision, []Entry, error) {
	h, err := g.hash()
	if err != nil {
		return Decision{}, nil, err
	}
	p := g.plan(h, a)
	recs, err := g.store.Get(ctx, p.keys)
	if err != nil {
		return Decision{}, nil, err
	}
	var entries []Entry
	for i, r := range recs {
		if r.State != Absent {
			entries = append(entries, Entry{p.keys[i], r})
		}
	}
	return g.decide(p, a.Time.UnixMilli(), recs), entries, nil
}

// Trap remembers that an address has written to a trap: until TrapTime has
// passed its attempts are refused. A client of which an origin is free is let
// alone, and trapped is false.
func (g *Greylist) Trap(ctx context.Context, a Attempt) (trapped bool, err error) {
	h, err := g.hash()
	if err != nil {
		return false, err
	}
	p := g.plan(h, a)
	now := a.Time.UnixMilli()
	keys := append(p.keys[:len(p.free):len(p.free)], p.keys[p.trap])
	hit := new(bool)
	err = g.store.Update(ctx, keys, func(recs []Record) {
		*hit = false
		for _, r := range recs[:len(p.free)] {
			if r.clamp(now); g.passes(r, now) {
				return
			}
		}
		*hit = true
		r := &recs[len(p.free)]
		tries := r.Tries
		*r = p.blank[p.trap]
		r.begin(now)
		r.Tries += tries
	})
	return err == nil && *hit, err
}

// Learn remembers that a user of this server has written to some people, so
// that what they send back is not delayed. The time is that of the message.
func (g *Greylist) Learn(ctx context.Context, t time.Time, from string, to []string) error {
	if from == "" || from == NullSender {
		return nil
	}
	h, err := g.hash()
	if err != nil {
		return err
	}
	seen := make(map[Key]bool)
	var keys []Key
	var blank []Record
	for _, rcpt := range to {
		e := h.entry(KindPair, "", NormalizeSender(rcpt, from), NormalizeRcpt(from))
		if seen[e.Key] {
			continue
		}
		seen[e.Key] = true
		if !g.clear {
			e.Record = Record{}
		}
		keys, blank = append(keys, e.Key), append(blank, e.Record)
	}
	now := t.UnixMilli()
	for start := 0; start < len(keys); start += learnStep {
		end := min(start+learnStep, len(keys))
		err := g.store.Update(ctx, keys[start:end], func(recs []Record) {
			for i := range recs {
				r := &recs[i]
				if r.clamp(now); !g.passes(*r, now) {
					*r = blank[start+i]
					r.begin(now)
				}
				r.State, r.Last = Pass, now
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const learnStep = 16

// Expired reports whether a record means nothing any more.
func (g *Greylist) Expired(t time.Time) func(Key, Record) bool {
	now := t.UnixMilli()
	return func(k Key, r Record) bool {
		if r.State == Pass {
			return now-r.Last > g.policy.WhiteExp.Milliseconds()
		}
		return now-r.First > g.life(k.Kind())
	}
}

func (g *Greylist) life(k Kind) int64 {
	if k == KindTrap {
		return g.policy.TrapTime.Milliseconds()
	}
	return g.policy.GreyExp.Milliseconds()
}
