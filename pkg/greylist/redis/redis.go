// Package redis keeps the records of a greylist on a Redis or Valkey server, or
// on several of them with Sentinel or as a Cluster, so that any number of mail
// servers have one greylist.
//
// A decision is a function of records, and is taken here, not by the server. A
// step guesses what the server holds: what it was when this process last met it,
// or nothing. One script carries the guess and what comes of it. If the guess was
// right the script writes; if not it writes nothing and returns what is there,
// and the step is taken again. So what is new, and who was met before, cost one
// round trip. In a cluster there is a script for each shard, and all are sent
// together. What one of them has written on a guess that another found wrong is
// set right in the next round.
//
// The server removes what has expired, and bounds what it holds.
//
// While the server does not answer, does not write, or refuses this client, steps
// are taken with the records at hand and what was decided meanwhile, which is
// handed in when the server is back: see away.go.
package redis

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/redis/go-redis/v9"
)

// Options are the settings of a Store.
type Options struct {
	Location *Location
	Policy   greylist.Policy

	// Wait is what a step has for the server, all round trips together; 150 ms,
	// so that with what is done then an answer takes no more than 200.
	Wait time.Duration

	MaxGrey int // a tenth of it bounds what waits to be handed in; 0: greylist.DefaultMaxGrey

	// Secret returns what keys are made with. Of it the server gets a
	// fingerprint, so that a host with another one notices; nil: it does not.
	Secret func() ([]byte, error)

	// Operator is for the operator's command: it does nothing by itself, and
	// what the server does not do is an error. Wait is 10 s then.
	Operator bool

	Log     *slog.Logger // nil: no log
	Metrics *metrics.Set // nil: none
}

const (
	handSize     = 100_000 // records at hand
	poolSize     = 16      // connections to one server
	dialTime     = 2 * time.Second
	operatorWait = 10 * time.Second
	closeTime    = 2 * time.Second
	pageSize     = 1000    // names that the server is asked for at a time
	maxSeen      = 1 << 18 // names by which All knows what it has returned
)

// What is counted.
var (
	upGauge = metrics.Desc{Name: "filter_greylist_store_up",
		Help: "Whether the server of the records has done what it was last asked."}
	breakerGauge = metrics.Desc{Name: "filter_greylist_store_breaker_open",
		Help: "Whether decisions are taken without the server of the records."}
	backlogGauge = metrics.Desc{Name: "filter_greylist_store_backlog",
		Help: "Records that wait to be handed in to the server."}
	tripsTotal = metrics.Desc{Name: "filter_greylist_store_round_trips_total",
		Help: "Round trips to the server of the records."}
	tripSeconds = metrics.Desc{Name: "filter_greylist_store_seconds",
		Help: "Time of a round trip to the server of the records.", Buckets: []float64{.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5}}
	aloneTotal = metrics.Desc{Name: "filter_greylist_store_alone_total",
		Help: "Steps taken without the server of the records, because it did not answer in time or not at all."}
)

// A Store is a greylist.Store.
type Store struct {
	opts   Options
	log    *slog.Logger
	names  names
	client redis.UniversalClient

	hand    *lru.Cache[greylist.Key, string] // values as they were last met
	turns   [64]chan struct{}                // of those that want the same record
	pending pending
	health  health

	trips, aloneSteps *metrics.Counter
	seconds           *metrics.Histogram
	trouble           guard.Complaints

	greeted sync.Once // by the operator
	quit    chan struct{}
	ended   <-chan struct{}
	stop    sync.Once
	closed  atomic.Bool
}

// Open returns a store, whose servers are met in the background; what is wrong
// with them is logged. The error is that of a file that the location names.
func Open(o Options) (*Store, error) {
	if o.Wait <= 0 {
		o.Wait = 150 * time.Millisecond
		if o.Operator {
			o.Wait = operatorWait
		}
	}
	if o.MaxGrey <= 0 {
		o.MaxGrey = greylist.DefaultMaxGrey
	}
	client, err := o.Location.connect()
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts: o, log: o.Log, names: names{o.Location.Prefix}, client: client,
		pending: pending{records: greylist.NewMemory(max(1, o.MaxGrey/10))},
		trips:   o.Metrics.Counter(tripsTotal), aloneSteps: o.Metrics.Counter(aloneTotal), seconds: o.Metrics.Histogram(tripSeconds),
		quit: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.trouble.Log = s.log
	s.hand, _ = lru.New[greylist.Key, string](handSize)
	for i := range s.turns {
		s.turns[i] = make(chan struct{}, 1)
	}
	o.Metrics.Gauge(upGauge, func() float64 { return number(s.health.up.Load()) })
	o.Metrics.Gauge(breakerGauge, func() float64 { return number(s.health.isOpen()) })
	o.Metrics.Gauge(backlogGauge, func() float64 { return float64(s.pending.count()) })
	if !o.Operator {
		s.ended = guard.Keep(context.Background(), s.log, "greylist server", func(context.Context) { s.run() })
	}
	return s, nil
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Close hands in what waits, and ends the use of the store. It takes no longer
// than two seconds.
func (s *Store) Close() error {
	var err error
	s.stop.Do(func() {
		s.closed.Store(true)
		close(s.quit)
		if s.ended != nil {
			select {
			case <-s.ended:
			case <-time.After(closeTime):
				err = fmt.Errorf("%s: still busy", s.opts.Location)
			}
		}
		err = errors.Join(err, s.client.Close())
	})
	return err
}

// Expires is part of greylist.Expiring.
func (s *Store) Expires() {}

// Update is part of greylist.Store.
func (s *Store) Update(ctx context.Context, keys []greylist.Key, f func([]greylist.Record)) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	var err error
	if !s.health.isOpen() {
		// Whoever asks may be gone before the answer is there, but a connection
		// whose answer nobody reads is of no more use.
		within, cancel := s.within(context.WithoutCancel(ctx), ctx)
		defer cancel()
		if err = s.step(within, keys, f); err == nil {
			return nil
		}
	}
	if s.opts.Operator {
		return s.named(err)
	}
	return s.alone(keys, f)
}

// begin is called before anything is done.
func (s *Store) begin(ctx context.Context) error {
	if s.closed.Load() {
		return greylist.ErrClosed
	}
	if s.opts.Operator {
		s.greeted.Do(func() { s.greet() })
	}
	return ctx.Err()
}

// within bounds a context to what a step may take, and the deadline of another.
func (s *Store) within(ctx, other context.Context) (context.Context, context.CancelFunc) {
	end := time.Now().Add(s.opts.Wait)
	if t, ok := other.Deadline(); ok && t.Before(end) {
		end = t
	}
	return context.WithDeadline(ctx, end)
}

func (s *Store) named(err error) error {
	if err == nil || errors.Is(err, greylist.ErrAway) {
		return err
	}
	return fmt.Errorf("%s: %w", s.opts.Location, err)
}

// call has the servers asked something, and takes note of whether they answer.
func (s *Store) call(shards map[[2]byte]bool, ask func() error) error {
	began := time.Now()
	err := ask()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	if redis.IsReadOnlyError(err) {
		s.opts.Location.leave()
	}
	s.trips.Inc()
	s.seconds.Update(time.Since(began).Seconds())
	if s.health.note(err, shards) {
		s.sayAway(err)
	}
	return err
}

// ask is call for what is no decision: nothing is asked while the server is away.
func (s *Store) ask(ctx context.Context, keys []greylist.Key, do func(context.Context) error) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	if s.health.isOpen() && !s.opts.Operator {
		return fmt.Errorf("%s: %w", s.opts.Location, greylist.ErrAway)
	}
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	return s.named(s.call(shardsOf(keys), func() error { return do(ctx) }))
}

func shardsOf(keys []greylist.Key) map[[2]byte]bool {
	m := make(map[[2]byte]bool)
	for _, k := range keys {
		m[k.Shard()] = true
	}
	return m
}

// Get is part of greylist.Store.
func (s *Store) Get(ctx context.Context, keys []greylist.Key) ([]greylist.Record, error) {
	var values []string
	err := s.ask(ctx, keys, func(ctx context.Context) (err error) {
		names := make([]string, len(keys))
		for i, k := range keys {
			names[i] = s.names.of(k)
		}
		values, err = s.values(ctx, names)
		return err
	})
	if err != nil {
		return nil, err
	}
	recs := make([]greylist.Record, len(keys))
	for i := range recs {
		recs[i] = decode(values[i])
	}
	return recs, nil
}

// values returns what names hold, "" for nothing.
func (s *Store) values(ctx context.Context, names []string) ([]string, error) {
	values := make([]string, len(names))
	if len(names) == 0 {
		return values, nil
	}
	if s.opts.Location.mode != cluster {
		got, err := s.client.MGet(ctx, names...).Result()
		for i := range got {
			values[i], _ = got[i].(string)
		}
		return values, err
	}
	cmds, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, n := range names {
			p.Get(ctx, n)
		}
		return nil
	})
	for i, c := range cmds {
		v, err := c.(*redis.StringCmd).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, err
		}
		values[i] = v
	}
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return values, err
}

// All is part of greylist.Store. Of more than a hundred thousand records some may
// come twice.
func (s *Store) All(ctx context.Context) iter.Seq2[greylist.Entry, error] {
	return func(yield func(greylist.Entry, error) bool) {
		var servers []redis.Cmdable
		err := s.ask(ctx, nil, func(ctx context.Context) (err error) {
			servers, err = s.servers(ctx)
			return err
		})
		seen := make(map[greylist.Key]bool)
		for _, server := range servers {
			for cursor, more := uint64(0), true; more && err == nil; more = cursor != 0 {
				var page []greylist.Entry
				err = s.ask(ctx, nil, func(ctx context.Context) (err error) {
					page, cursor, err = s.page(ctx, server, cursor, seen)
					return err
				})
				for _, e := range page {
					if err == nil && !yield(e, nil) {
						return
					}
				}
			}
		}
		if err != nil {
			yield(greylist.Entry{}, err)
		}
	}
}

// servers returns those that hold records.
func (s *Store) servers(ctx context.Context) ([]redis.Cmdable, error) {
	c, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return []redis.Cmdable{s.client}, nil
	}
	var mu sync.Mutex
	var servers []redis.Cmdable
	err := c.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		servers = append(servers, c)
		return nil
	})
	return servers, err
}

// page returns the next entries of a server that were not seen yet.
func (s *Store) page(ctx context.Context, server redis.Cmdable, cursor uint64, seen map[greylist.Key]bool) (page []greylist.Entry, next uint64, err error) {
	found, next, err := server.Scan(ctx, cursor, s.names.prefix+":{*", pageSize).Result()
	if err != nil {
		return nil, cursor, err
	}
	var keys []greylist.Key
	var names []string
	for _, name := range found {
		if k, ok := s.names.key(name); ok && !seen[k] {
			keys, names = append(keys, k), append(names, name)
			if seen[k] = true; len(seen) > maxSeen {
				clear(seen)
			}
		}
	}
	values, err := s.values(ctx, names)
	if err != nil {
		return nil, cursor, err
	}
	for i, k := range keys {
		if r := decode(values[i]); r.State != greylist.Absent {
			page = append(page, greylist.Entry{Key: k, Record: r})
		}
	}
	return page, next, nil
}

// Sweep is part of greylist.Store: the server has done so.
func (s *Store) Sweep(ctx context.Context, _ func(greylist.Key, greylist.Record) bool) (removed int, done bool, err error) {
	return 0, true, ctx.Err()
}

// Count is part of greylist.Store.
func (s *Store) Count(ctx context.Context, add map[string]int64) (map[string]int64, error) {
	add = maps.Clone(add)
	counts := make(map[string]int64)
	err := s.ask(ctx, nil, func(ctx context.Context) error {
		name := s.names.prefix + ":counters"
		var all *redis.MapStringStringCmd
		_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for counter, n := range add {
				p.HIncrBy(ctx, name, counter, n)
			}
			all = p.HGetAll(ctx, name)
			return nil
		})
		if err != nil {
			return err
		}
		for counter, text := range all.Val() {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return fmt.Errorf("counter %.40q: %.40q is no number", counter, text)
			}
			counts[counter] = n
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}
