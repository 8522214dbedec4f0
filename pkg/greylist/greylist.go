// Package greylist decides who has to come again.
//
// Mail that can be vouched for passes at once, see Attempt. The first attempt of
// any other unknown origin is refused with a temporary error, its retry is
// accepted (RFC 6647). An attempt has several origins, the domain that SPF proves,
// the registered domain of the client's name, its address and network, and is
// accepted when any of them is known or waited long enough: so a retry may come
// from another machine of a pool, and a DNS that does not answer once makes nobody
// wait twice. Only what was noted can be a retry, and everything is noted.
//
//	g := greylist.New(greylist.Options{Store: greylist.NewMemory(0)})
//	d, err := g.Decide(ctx, greylist.Attempt{Time: t, Client: client, Sender: from, Rcpts: rcpts, SPF: spf})
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
	"sync"
	"time"

	"opensmtpd-filters/pkg/metrics"
)

// A Policy has the times and numbers of the decision. Zero fields have the
// given defaults.
type Policy struct {
	PassTime time.Duration // minimum age of a retry; 60 s
	GreyExp  time.Duration // a retry after that is a first attempt; 24 h
	WhiteExp time.Duration // a pass lives that long after its last use; 36 days
	TrapTime time.Duration // how long an address is refused that wrote to a trap; 24 h
	Mask4    int           // bits of the network that stands for an IPv4 address; 24
	Mask6    int           // the same for IPv6; 64
	All      bool          // mail that is vouched for waits like any other, but for clients that are Listed

	// While more attempts of an address, or IPv6 /64, wait, and for GreyExp
	// after, a retry does not free it; 64.
	MaxPerClient int

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
	setDefault(&p.MaxPerClient, 64)
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

	Providers []string     // that may be the origin of mail
	Metrics   *metrics.Set // nil: none
}

// A Greylist takes decisions. It may be used by any number of goroutines.
type Greylist struct {
	store  Store
	cache  Cache // nil: none
	policy Policy
	clear  bool
	secret func() ([]byte, error)
	names  []string // of providers
	tally  *tally
	notes  *notes

	mu     sync.Mutex
	hasher *hasher
}

// New returns a Greylist.
func New(o Options) *Greylist {
	g := &Greylist{store: o.Store, policy: o.Policy.withDefaults(), clear: o.Clear, secret: o.Secret, names: o.Providers, notes: newNotes()}
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

// made is hash, but nil if the key has yet to be read.
func (g *Greylist) made() *hasher {
	if !g.mu.TryLock() {
		return nil
	}
	defer g.mu.Unlock()
	return g.hasher
}

// A Reason says why an attempt is accepted or refused.
type Reason string

// What Decide answers.
const (
	Unseen   Reason = "new"      // refused: not seen before
	Early    Reason = "early"    // refused: seen less than PassTime ago
	Late     Reason = "late"     // refused: seen more than GreyExp ago, so it counts as new
	Trapped  Reason = "trapped"  // refused: the client has written to a trap
	Retry    Reason = "retry"    // accepted: the retry that was waited for
	Known    Reason = "known"    // accepted: an origin is free, or the same has passed before
	Paired   Reason = "pair"     // accepted: sender and recipient are known to each other, or have tried long enough
	Expected Reason = "expected" // accepted: somebody expects it
	Vouched  Reason = "vouched"  // accepted: the mail is vouched for
	Exempted Reason = "exempt"   // accepted: Attempt.Exempt says so
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{Unseen, Early, Late, Trapped, Retry, Known, Paired, Expected, Vouched, Exempted}
}

// A Decision is the answer to an attempt and what led to it.
type Decision struct {
	Accept  bool
	Reason  Reason
	Suspect Mark          // why the mail is not vouched for
	By      string        // Exempted, Vouched, Expected: what says so
	Left    time.Duration // refused: until a retry will be accepted, whole seconds, at least one
	Trapped time.Duration // Trapped: until it is forgotten; of this the client is not told
	Delay   time.Duration // Retry, and Paired for the first time: since the first attempt
	First   bool          // accepted, and the first such: Delay counts
	Tries   int           // attempts seen, this one counted; 0 if that is not known
	Crowded bool          // more attempts of the client wait, or did, than MaxPerClient

	Origin  string   // the origin that decided, or else the client
	Key     Key      // of the record that decided; zero if none did
	Origins []string // all of the attempt
	Sender  string   // normalised
	Rcpt    string   // normalised: the one that decided, or the first
}

// atOnce accepts what needs no record.
func (g *Greylist) atOnce(a *Attempt) (Decision, bool) {
	by, suspect := a.vouch()
	reason := Vouched
	if a.Exempt != "" {
		reason, by = Exempted, a.Exempt
	}
	if by == "" || reason == Vouched && g.policy.All && a.Client.Listed == "" {
		return Decision{}, false
	}
	return Decision{
		Accept: true, Reason: reason, Suspect: suspect, By: by,
		Origin: hostOrigin(a.Client.Addr.Unmap().WithZone(""), g.policy.Mask6),
		Sender: NormalizeSender(a.Sender, first(a.Rcpts)), Rcpt: NormalizeRcpt(first(a.Rcpts)),
	}, true
}

// Decide answers an attempt and stores it. When it returns an error nothing is
// known, and the message should pass.
func (g *Greylist) Decide(ctx context.Context, a Attempt) (Decision, error) {
	if d, ok := g.exempted(&a); ok {
		return d, nil
	}
	h, err := g.hash()
	if err != nil {
		return Decision{}, err
	}
	p := g.plan(h, &a)
	now := a.Time.UnixMilli()
	d, ok := g.atHand(p, now)
	if !ok {
		if d, err = g.update(ctx, p, now, (*table).decide); err != nil {
			return Decision{}, err
		}
	}
	g.tally.add(d, a.Time)
	return d, nil
}

// DecideAtHand is Decide for an attempt that waits for nothing: it is accepted
// without a record, or by one that the store has at hand.
func (g *Greylist) DecideAtHand(a Attempt) (Decision, bool) {
	h := g.made()
	if h == nil {
		return Decision{}, false
	}
	if d, ok := g.exempted(&a); ok || g.cache == nil {
		return d, ok
	}
	d, ok := g.atHand(g.plan(h, &a), a.Time.UnixMilli())
	if ok {
		g.tally.add(d, a.Time)
	}
	return d, ok
}

// exempted is atOnce, and takes note of it.
func (g *Greylist) exempted(a *Attempt) (Decision, bool) {
	d, ok := g.atOnce(a)
	if ok {
		if d.Reason == Vouched {
			g.remember(a)
		}
		g.tally.add(d, a.Time)
	}
	return d, ok
}

// update decides by what is stored. The store may call more than once.
func (g *Greylist) update(ctx context.Context, p *plan, now int64, decide func(*table) Decision) (Decision, error) {
	d := new(Decision)
	err := g.store.Update(ctx, p.keys(), func(recs []Record) {
		*d = decide(&table{p, &g.policy, now, recs})
	})
	if err != nil {
		return Decision{}, err
	}
	return *d, nil
}

// atHand answers without the store if an origin is known to be free.
func (g *Greylist) atHand(p *plan, now int64) (Decision, bool) {
	if g.cache == nil {
		return Decision{}, false
	}
	recs, ok := g.cache.Peek(p.keys()[:p.free])
	if !ok {
		return Decision{}, false
	}
	for i, r := range recs {
		if r.clamp(now); !g.policy.passes(KindOrigin, r, now) {
			continue
		}
		var renew []Key
		for _, s := range p.slots {
			switch s.role {
			case roleFree, roleAttempt, rolePair, roleLearned:
				renew = append(renew, s.key)
			}
		}
		if !g.cache.Renew(renew, now, now-g.policy.WhiteExp.Milliseconds()) {
			return Decision{}, false
		}
		return p.accept(Known, &p.slots[i]), true
	}
	return Decision{}, false
}

// A Found record is one that an attempt looks at, and what it is about, which its key
// alone does not tell: an origin, or what is expected; empty if that is sender and
// recipient.
type Found struct {
	Entry
	Of   string
	Rcpt string // normalised; empty if it is about all
}

// Explain returns what Decide would answer, and the records that it would look
// at as they are. It stores nothing.
func (g *Greylist) Explain(ctx context.Context, a Attempt) (Decision, []Found, error) {
	h, err := g.hash()
	if err != nil {
		return Decision{}, nil, err
	}
	p := g.plan(h, &a)
	recs, err := g.store.Get(ctx, p.keys())
	if err != nil {
		return Decision{}, nil, err
	}
	var entries []Found
	for i, r := range recs {
		if r.State != Absent {
			entries = append(entries, Found{Entry{p.slots[i].key, r}, p.slots[i].name, p.slots[i].rcpt})
		}
	}
	d, ok := g.atOnce(&a)
	if ok {
		d.Origins = p.origins
	} else {
		d = (&table{p, &g.policy, a.Time.UnixMilli(), recs}).decide()
	}
	return d, entries, nil
}

// Trap is Decide for an attempt that names a trap, before all of its recipients
// are known. What it does not refuse it does not store or count either: that is
// for Decide, when the message is about to come.
func (g *Greylist) Trap(ctx context.Context, a Attempt) (Decision, error) {
	a.Trap = true
	if d, ok := g.atOnce(&a); ok || !a.springs() {
		d.Accept = true
		return d, nil
	}
	h, err := g.hash()
	if err != nil {
		return Decision{}, err
	}
	d, err := g.update(ctx, g.plan(h, &a), a.Time.UnixMilli(), (*table).atTrap)
	if err == nil && !d.Accept {
		g.tally.add(d, a.Time)
	}
	return d, err
}

// Expired reports whether a record means nothing any more.
func (g *Greylist) Expired(t time.Time) func(Key, Record) bool {
	now := t.UnixMilli()
	return func(k Key, r Record) bool { return now > g.policy.expiry(k.Kind(), r) }
}
