package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/greylist"

	"github.com/redis/go-redis/v9"
)

// While the server is away: a step that has failed, or was not tried, is taken
// alone, with what waits to be handed in and the records at hand. What it has
// made waits, as records, and not as steps: merged with those of others in any
// order, and more than once, they make the same. So a step whose answer was lost
// does no harm either, though the server may have carried it out.
//
// After some failures no step waits for the server any more. Once a second it is
// asked to write; when it does, steps are made with it again. Records that wait
// are handed in by the step that needs them, and the others one after the other.

const (
	maxFails   = 5 // more failures than successes, after which no step waits
	probeEvery = time.Second
	probeTime  = time.Second
	handInStep = 100
	handInRate = 1000 // records a second
	maxShards  = 64   // that are asked whether they are back
)

// alone takes a step without the server.
func (s *Store) alone(keys []greylist.Key, f func([]greylist.Record)) error {
	s.aloneSteps.Inc()
	s.health.alone()
	return s.pending.update(keys, func(recs []greylist.Record) {
		atHand := make([]greylist.Record, len(recs))
		for i, r := range recs {
			if r.State == greylist.Absent {
				held, _ := s.hand.Get(keys[i])
				atHand[i] = decode(held)
				recs[i] = atHand[i]
			}
		}
		f(recs)
		for i, r := range recs {
			if r == atHand[i] {
				recs[i] = greylist.Record{} // nothing new to hand in
			}
		}
	})
}

// pending are records that wait to be handed in.
type pending struct {
	records *greylist.Memory
	newest  atomic.Int64 // time of any of them
}

func (p *pending) count() int { return p.records.Len() }

// latest is the newest time of any record that was made without the server.
func (p *pending) latest() int64 { return p.newest.Load() }

func (p *pending) update(keys []greylist.Key, f func([]greylist.Record)) error {
	return p.records.Update(context.Background(), keys, func(recs []greylist.Record) {
		f(recs)
		for _, r := range recs {
			if at := max(r.First, r.Last); at > p.newest.Load() {
				p.newest.Store(at) // under the lock of the records
			}
		}
	})
}

func (p *pending) get(keys []greylist.Key) []greylist.Record {
	if p.count() == 0 {
		return make([]greylist.Record, len(keys))
	}
	recs, _ := p.records.Get(context.Background(), keys)
	return recs
}

// done forgets records that were handed in, unless they have changed meanwhile.
func (p *pending) done(keys []greylist.Key, was []greylist.Record) {
	if p.count() == 0 {
		return
	}
	p.records.Update(context.Background(), keys, func(recs []greylist.Record) {
		for i := range recs {
			if recs[i] == was[i] {
				recs[i] = greylist.Record{}
			}
		}
	})
}

// health is what is known of the server.
type health struct {
	up atomic.Bool // it did what it was last asked

	mu     sync.Mutex
	fails  int  // how many more than successes
	open   bool // no step waits
	since  time.Time
	steps  int64 // taken alone since then
	shards map[[2]byte]bool
}

func (h *health) isOpen() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// note takes note of a success or failure with some shards, and reports whether
// with it the server counts as away.
func (h *health) note(err error, shards map[[2]byte]bool) (away bool) {
	h.up.Store(err == nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.fails = max(0, h.fails-1)
		return false
	}
	if h.shards == nil {
		h.shards = make(map[[2]byte]bool)
	}
	for shard := range shards {
		if len(h.shards) < maxShards {
			h.shards[shard] = true
		}
	}
	if h.fails++; h.fails < maxFails || h.open {
		return false
	}
	h.open, h.since, h.steps = true, time.Now(), 0
	return true
}

// fail is note for what makes the server count as away at once.
func (h *health) fail(err error) (away bool) {
	h.mu.Lock()
	h.fails = max(h.fails, maxFails-1)
	h.mu.Unlock()
	return h.note(err, nil)
}

func (h *health) alone() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps++
}

// troubled returns the shards to be asked whether they are back, if there was
// trouble of late.
func (h *health) troubled() (shards [][2]byte, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for shard := range h.shards {
		shards = append(shards, shard)
	}
	if len(shards) == 0 {
		shards = append(shards, [2]byte{})
	}
	return shards, h.open || h.fails > 0
}

// back takes note that the server does what it is asked, and returns for how long
// it did not and how many steps were taken alone; zero if it did not count as away.
func (h *health) back() (after time.Duration, steps int64) {
	h.up.Store(true)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails, h.shards = 0, nil
	if !h.open {
		return 0, 0
	}
	h.open = false
	return time.Since(h.since), h.steps
}

// run looks after the server until the store is closed.
func (s *Store) run() {
	met := s.meet()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.quit:
			if !s.health.isOpen() {
				s.handIn(0)
			}
			if n := s.pending.count(); n > 0 {
				s.log.Warn("greylist records are lost that the server has not got", "store", s.opts.Location.String(), "records", n)
			}
			return
		}
		if shards, ok := s.health.troubled(); ok {
			s.probe(shards)
		}
		if !s.health.isOpen() {
			met = met || s.meet()
			s.handIn(time.Second / (handInRate / handInStep))
		}
	}
}

// meet greets the server for the first time.
func (s *Store) meet() bool {
	err := s.greet()
	if err != nil && s.health.fail(err) {
		s.sayAway(err)
	}
	return err == nil
}

// probe asks the server to write something for each of some shards.
func (s *Store) probe(shards [][2]byte) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, shard := range shards {
			p.Set(ctx, fmt.Sprintf("%s:{%x}probe", s.names.prefix, shard), "", time.Minute)
		}
		return nil
	})
	s.trips.Inc()
	if err != nil {
		if redis.IsReadOnlyError(err) {
			s.opts.Location.leave()
		}
		if s.health.note(err, nil) {
			s.sayAway(err)
		}
		if isRefusal(err) {
			s.trouble.Warn("the greylist server refuses this filter", "store", s.opts.Location.String(), "err", err)
		}
		return
	}
	if after, steps := s.health.back(); after > 0 {
		s.log.Info("greylist server is back", "store", s.opts.Location.String(), "after", after.Round(time.Millisecond), "alone", steps)
	}
}

func (s *Store) sayAway(err error) {
	s.log.Warn("greylist server does not answer or does not write, this host decides alone", "store", s.opts.Location.String(), "err", err)
}

// isRefusal reports whether an error is one that somebody has to see to: it does
// not go away by itself.
func isRefusal(err error) bool {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	if errors.As(err, &cert) || errors.As(err, &record) {
		return true
	}
	text := err.Error()
	for _, part := range []string{"WRONGPASS", "NOAUTH", "NOPERM", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH", "tls:", "x509:"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// handIn hands in what waits, in the order of time, with pauses, until it is done,
// the server does not take it, or the store is closed.
func (s *Store) handIn(pause time.Duration) {
	if s.pending.count() == 0 {
		return
	}
	var entries []greylist.Entry
	for e := range s.pending.records.All(context.Background()) {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b greylist.Entry) int { return cmp.Compare(a.Record.Last, b.Record.Last) })
	for part := range slices.Chunk(entries, handInStep) {
		keys := make([]greylist.Key, len(part))
		for i, e := range part {
			keys[i] = e.Key
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		err := s.step(ctx, keys, func([]greylist.Record) {})
		cancel()
		if err != nil {
			return
		}
		if pause == 0 {
			continue
		}
		select {
		case <-time.After(pause):
		case <-s.quit:
			pause = 0
		}
	}
}

// greet learns from the server what can be wrong with it, and says so.
func (s *Store) greet() error {
	ctx, cancel := context.WithTimeout(context.Background(), operatorWait)
	defer cancel()
	if s.opts.Secret != nil {
		secret, err := s.opts.Secret()
		if err != nil {
			return nil // decisions fail of that, and say so
		}
		name, ours := s.names.prefix+":secret", greylist.Fingerprint(secret)
		if err := s.client.SetNX(ctx, name, ours, 0).Err(); err != nil {
			return err
		}
		theirs, err := s.client.Get(ctx, name).Result()
		if err != nil {
			return err
		}
		if theirs != ours {
			s.log.Error("the records of this server were made with another secret, and are of no use here: all hosts need the same -keyFile", "store", s.opts.Location.String(), "fingerprint", ours, "theirs", theirs)
		}
	} else if err := s.client.Ping(ctx).Err(); err != nil {
		return err
	}
	s.checkMemory(ctx)
	return nil
}

// checkMemory warns of a server that removes records when it has no room. Not every
// user may ask.
func (s *Store) checkMemory(ctx context.Context) {
	text, err := s.client.Info(ctx, "memory").Result()
	if err != nil {
		return
	}
	field := func(name string) string {
		_, rest, _ := strings.Cut(text, "\n"+name+":")
		value, _, _ := strings.Cut(rest, "\r\n")
		return value
	}
	if policy := field("maxmemory_policy"); field("maxmemory") != "0" && policy != "" && policy != "noeviction" {
		s.log.Warn("the greylist server forgets records when its memory is full: noeviction is advised", "store", s.opts.Location.String(), "maxmemory-policy", policy)
	}
}
