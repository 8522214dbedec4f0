package greylist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/net/publicsuffix"
)

// Notes are records that are made beside decisions: who was vouched for, and which
// domains are ours. They are written at most once a day each, soon, and some may be
// lost when the process is killed.
type notes struct {
	mu      sync.Mutex
	written *lru.Cache[Key, int64] // and when, in milliseconds since the epoch
	waiting map[Key]Record
}

const (
	notesWritten = 16 << 10
	notesWaiting = 4 << 10
	notesStep    = 100
)

func newNotes() *notes {
	c, _ := lru.New[Key, int64](notesWritten)
	return &notes{written: c, waiting: make(map[Key]Record)}
}

// add notes an entry as used now.
func (n *notes) add(e Entry, now int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at, ok := n.written.Get(e.Key); ok && at <= now && now-at < day || len(n.waiting) >= notesWaiting {
		return
	}
	r := e.Record
	r.State, r.Tries, r.First, r.Last = Pass, 1, now, now
	n.waiting[e.Key] = r
	n.written.Add(e.Key, now)
}

// has reports whether an entry was noted within a day, be it written yet or not.
func (n *notes) has(k Key, now int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.written.Get(k)
	return ok && now-at < day
}

// take returns what waits.
func (n *notes) take() map[Key]Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	waiting := n.waiting
	n.waiting = make(map[Key]Record)
	return waiting
}

// forget has notes made again that could not be written.
func (n *notes) forget(keys []Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range keys {
		n.written.Remove(k)
	}
}

// writeNotes writes what waits.
func (g *Greylist) writeNotes(ctx context.Context) error {
	waiting := g.notes.take()
	var keys []Key
	for k := range waiting {
		keys = append(keys, k)
	}
	var errs []error
	for step := range slices.Chunk(keys, notesStep) {
		err := g.store.Update(ctx, step, func(recs []Record) {
			for i, k := range step {
				r, now := &recs[i], waiting[k].Last
				switch r.clamp(now); {
				case !g.policy.passes(k.Kind(), *r, now):
					*r = waiting[k]
				case now-r.Last >= day/2: // another process may have done so
					r.Last = now
				}
			}
		})
		if err != nil {
			g.notes.forget(step)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// remember notes who was vouched for with which domain.
func (g *Greylist) remember(a *Attempt) {
	h, err := g.hash()
	if err != nil || a.Client.Listed != "" {
		return
	}
	host := hostOrigin(a.Client.Addr.Unmap().WithZone(""), g.policy.Mask6)
	g.note(h, KindVouched, host, registered(a.senderDomain()), a.Time)
}

// registered is the registered domain of a name, or the name. Who may make names
// in a domain makes no records by it.
func registered(name string) string {
	if d, err := publicsuffix.EffectiveTLDPlusOne(name); err == nil {
		return d
	}
	return name
}

func (g *Greylist) note(h *hasher, kind Kind, origin, sender string, t time.Time) {
	e := h.entry(kind, origin, sender, "")
	if !g.clear {
		e.Record = Record{}
	}
	g.notes.add(e, t.UnixMilli())
}

// Ours notes that the server takes mail for a recipient from strangers, so that
// its domain is ours.
func (g *Greylist) Ours(t time.Time, rcpt string) error {
	h, err := g.hash()
	if err != nil {
		return err
	}
	if domain := rcptDomain(rcpt); domain != "" {
		g.note(h, KindOurs, domain, "", t)
	}
	return nil
}

func rcptDomain(rcpt string) string {
	_, domain := splitAddr(NormalizeRcpt(rcpt))
	return asciiDomain(domain)
}

// A Letter is mail that leaves.
type Letter struct {
	Time time.Time
	From string
	To   []string

	// Relayed: the writer is not known to be a user of this server, but only to
	// come from a trusted network, so From has to be in a domain of ours.
	Relayed bool
}

const (
	learnStep = 16
	maxADay   = 1000 // recipients learned of one writer
)

// Learn remembers to whom a user of this server has written, so that what they
// send back is not delayed, and neither for a week what others of their domain
// send to this user. Mail to our own domains leaves nothing. It returns the number
// of those that were learned.
func (g *Greylist) Learn(ctx context.Context, l Letter) (learned int, err error) {
	if l.From == "" || l.From == NullSender {
		return 0, nil
	}
	h, err := g.hash()
	if err != nil {
		return 0, err
	}
	ours := func(addr string) Key { return h.entry(KindOurs, rcptDomain(addr), "", "").Key }
	writer := NormalizeRcpt(l.From)
	quota := h.entry(KindWriter, writer, "", "")
	now := l.Time.UnixMilli()
	for to := range slices.Chunk(l.To, learnStep) {
		entries := []Entry{{Key: ours(l.From)}, quota}
		seen := map[Key]bool{entries[0].Key: true, quota.Key: true}
		add := func(e Entry) {
			if !seen[e.Key] {
				seen[e.Key] = true
				entries = append(entries, e)
			}
		}
		for _, rcpt := range to {
			add(Entry{Key: ours(rcpt)})
			add(h.entry(KindLearned, "", NormalizeSender(rcpt, l.From), writer))
			add(h.entry(KindReply, rcptDomain(rcpt), "", writer))
		}
		keys := make([]Key, len(entries))
		for i, e := range entries {
			keys[i] = e.Key
		}
		n := new(int)
		err := g.store.Update(ctx, keys, func(recs []Record) {
			*n = g.learn(l, h, now, entries, recs, to, writer)
		})
		if err != nil {
			return learned, err
		}
		learned += *n
	}
	return learned, nil
}

// learn is a step of Learn. The first record is that of the writer's domain, the
// second counts.
func (g *Greylist) learn(l Letter, h *hasher, now int64, entries []Entry, recs []Record, to []string, writer string) (learned int) {
	place := make(map[Key]*Record)
	for i := range recs {
		place[entries[i].Key] = &recs[i]
		recs[i].clamp(now)
	}
	ours := func(k Key) bool { return g.policy.passes(KindOurs, *place[k], now) || g.notes.has(k, now) }
	if l.Relayed && !ours(entries[0].Key) {
		return 0
	}
	set := func(e Entry) {
		r := place[e.Key]
		if !g.policy.passes(e.Key.Kind(), *r, now) {
			*r = Record{}
			if g.clear {
				*r = e.Record
			}
			r.First = now
		}
		r.State, r.Last = Pass, now
		r.Tries++
	}
	count := &recs[1]
	if !g.policy.waits(KindWriter, *count, now) {
		*count = Record{}
		if g.clear {
			*count = entries[1].Record
		}
		count.State, count.First = Grey, now
	}
	for _, rcpt := range to {
		if ours(h.entry(KindOurs, rcptDomain(rcpt), "", "").Key) || count.Tries >= maxADay {
			continue
		}
		count.Tries++
		count.Last = now
		learned++
		set(h.entry(KindLearned, "", NormalizeSender(rcpt, l.From), writer))
		if d := rcptDomain(rcpt); d != "" {
			set(h.entry(KindReply, d, "", writer))
		}
	}
	if count.Tries == 0 {
		*count = Record{}
	}
	return learned
}

const maxExpected = 1000

// Expect has mail accepted at once, until some time has passed, whose sender is
// what, an address or a domain, as far as that is proven, or whose client is what.
// With an empty rcpt that is for all.
func (g *Greylist) Expect(ctx context.Context, t time.Time, what, rcpt string, life time.Duration) error {
	if life < time.Second {
		return fmt.Errorf("%s is less than a second", life)
	}
	e, err := g.expectKey(what, rcpt)
	if err != nil {
		return err
	}
	n := 0
	expired := g.Expired(t)
	for old, err := range Find(ctx, g.store, Query{Kind: KindExpect}) {
		if err != nil {
			return err
		}
		if old.Key != e.Key && !expired(old.Key, old.Record) {
			n++
		}
	}
	if n >= maxExpected {
		return fmt.Errorf("%d are expected already, which is the most; delete some, or wait until they expire", n)
	}
	now := t.UnixMilli()
	if !g.clear {
		e.Record = Record{}
	}
	e.Record.State, e.Record.Tries, e.Record.First, e.Record.Last = Pass, int(life/time.Second), now, now
	return g.store.Update(ctx, []Key{e.Key}, func(recs []Record) { recs[0] = e.Record })
}

func (g *Greylist) expectKey(what, rcpt string) (Entry, error) {
	h, err := g.hash()
	if err != nil {
		return Entry{}, err
	}
	what, rcpt = unbracket(what), NormalizeRcpt(unbracket(rcpt))
	if rcpt != "" && !strings.Contains(rcpt, "@") {
		return Entry{}, fmt.Errorf("%s is not the address of a recipient", quoted(rcpt))
	}
	if addr, err := netip.ParseAddr(strings.Trim(what, "[]")); err == nil {
		what = hostOrigin(addr.Unmap().WithZone(""), g.policy.Mask6)
	} else if local, domain := splitAddr(what); domain != "" {
		if _, err := parseDomain(asciiDomain(domain)); err != nil || local == "" {
			return Entry{}, fmt.Errorf("%s is not an address", quoted(what))
		}
		what = expectedAddress(what)
	} else if what, err = parseDomain(asciiDomain(what)); err != nil || !strings.Contains(what, ".") {
		return Entry{}, fmt.Errorf("%s is not a domain, an address of mail or of a client", quoted(what))
	}
	return h.entry(KindExpect, what, "", rcpt), nil
}
