package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"opensmtpd-filters/pkg/greylist"

	"github.com/redis/go-redis/v9"
)

//go:embed write.lua
var writeText string

var writeScript = redis.NewScript(writeText)

const (
	maxRounds = 64                    // of one step; mostly it has one or two
	maxPause  = 16 * time.Millisecond // between two of them
	moreLife  = time.Minute           // who comes a little late is told that it was late
)

// A row is a record of a step.
type row struct {
	key     greylist.Key
	name    string
	waiting greylist.Record // what is to be handed in
	held    string          // the value that the server is thought to hold
	rec     greylist.Record // what f is to see
	next    string          // the value that f has made
	life    time.Duration   // of next
}

// see sets the value that the server is thought, or known, to hold.
func (s *Store) see(r *row, held string) {
	r.held, r.rec = held, decode(held)
	if r.waiting.State != greylist.Absent {
		r.rec = s.opts.Policy.Merge(r.key, s.pending.latest(), r.rec, r.waiting)
	}
}

// guess is see with what was last met.
func (s *Store) guess(r *row) {
	held, _ := s.hand.Get(r.key)
	s.see(r, held)
}

// keep notes what a name holds.
func (s *Store) keep(k greylist.Key, held string) {
	if held == "" {
		s.hand.Remove(k)
	} else {
		s.hand.Add(k, held)
	}
}

// A shard is the rows of a step that are on one server.
type shard struct {
	rows []*row
	done bool // the server holds what f has made, of what it held before
	err  error
}

var errContended = errors.New("others write the same records all the time")

// step carries out an Update.
func (s *Store) step(ctx context.Context, keys []greylist.Key, f func([]greylist.Record)) error {
	waiting := s.pending.get(keys)
	rows := make([]*row, len(keys))
	for i, k := range keys {
		rows[i] = &row{key: k, name: s.names.of(k), waiting: waiting[i]}
		s.guess(rows[i])
	}
	shards := s.split(rows)
	leave := func() {}
	defer func() { leave() }()
	for round := range maxRounds {
		loose := s.apply(rows, f)
		wrong, err := s.write(ctx, shards, loose)
		if err != nil {
			return err
		}
		if wrong == nil {
			s.pending.done(keys, waiting)
			return nil
		}
		// Whoever wants the same record in this process waits for its turn, and
		// then guesses right. Against other processes a pause of random length
		// helps.
		if round == 1 {
			if leave, err = s.turn(ctx, wrong); err != nil {
				return err
			}
		} else if round > 3 {
			if err := sleep(ctx, rand.N(min(maxPause, time.Millisecond<<(round/4)))); err != nil {
				return err
			}
		}
	}
	return errContended
}

// apply calls f. It reports whether what f has changed is the time of the last use
// alone.
func (s *Store) apply(rows []*row, f func([]greylist.Record)) (loose bool) {
	recs := make([]greylist.Record, len(rows))
	for i, r := range rows {
		recs[i] = r.rec
	}
	f(recs)
	loose = true
	for i, r := range rows {
		if r.next = encode(recs[i]); r.next == r.held {
			continue
		}
		loose = loose && sameButLast(r.next, r.held)
		r.life = s.opts.Policy.Life(r.key, recs[i]) + moreLife
	}
	return loose
}

// turn waits until nobody else in this process has its turn with the first of the
// records that were other than was thought.
func (s *Store) turn(ctx context.Context, wrong []*shard) (leave func(), err error) {
	turn := s.turns[int(wrong[0].rows[0].key[8])%len(s.turns)]
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return func() {}, ctx.Err()
	}
	for _, sh := range wrong {
		for _, r := range sh.rows {
			s.guess(r)
		}
	}
	return func() { <-turn }, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// split returns the shards of rows. Where there is one server, that is one.
func (s *Store) split(rows []*row) []*shard {
	if s.opts.Location.mode != cluster {
		return []*shard{{rows: rows}}
	}
	var shards []*shard
	by := make(map[[2]byte]*shard)
	for _, r := range rows {
		of := r.key.Shard()
		if by[of] == nil {
			by[of] = new(shard)
			shards = append(shards, by[of])
		}
		by[of].rows = append(by[of].rows, r)
	}
	return shards
}

// write sends the shards that are not as f has made them, and returns those that
// were not as was thought. Loose: but for the time of the last use.
func (s *Store) write(ctx context.Context, shards []*shard, loose bool) (wrong []*shard, err error) {
	var ask []*shard
	for _, sh := range shards {
		for _, r := range sh.rows {
			sh.done = sh.done && r.next == r.held
		}
		if !sh.done {
			ask = append(ask, sh)
		}
	}
	for script := (*redis.Script).EvalSha; len(ask) > 0; script = (*redis.Script).Eval {
		if err := s.call(namesOf(ask), func() error { return s.send(ctx, ask, loose, script) }); err != nil {
			return nil, err
		}
		var unknown []*shard
		for _, sh := range ask {
			switch {
			case redis.HasErrorPrefix(sh.err, "NOSCRIPT"): // the server has begun anew
				unknown = append(unknown, sh)
			case !sh.done:
				wrong = append(wrong, sh)
			}
		}
		ask = unknown
	}
	return wrong, nil
}

// send makes one round trip: one script for each shard. The error is the first
// that is not one of those after which the same is done again.
func (s *Store) send(ctx context.Context, shards []*shard, loose bool, script func(*redis.Script, context.Context, redis.Scripter, []string, ...any) *redis.Cmd) error {
	cmds := make([]*redis.Cmd, len(shards))
	if len(shards) == 1 {
		names, args := shards[0].script(loose)
		cmds[0] = script(writeScript, ctx, s.client, names, args...)
	} else {
		_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, sh := range shards {
				names, args := sh.script(loose)
				cmds[i] = script(writeScript, ctx, p, names, args...)
			}
			return nil
		})
		if err != nil && cmds[0] == nil {
			return err
		}
	}
	var failed error
	for i, sh := range shards {
		if err := s.result(sh, cmds[i]); err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

func namesOf(shards []*shard) map[[2]byte]bool {
	m := make(map[[2]byte]bool)
	for _, sh := range shards {
		m[sh.rows[0].key.Shard()] = true
	}
	return m
}

// script returns what the script needs to know of a shard.
func (sh *shard) script(loose bool) (names []string, args []any) {
	for _, r := range sh.rows {
		names = append(names, r.name)
		args = append(args, r.held)
	}
	flag := "0"
	if loose {
		flag = "1"
	}
	args = append(args, flag)
	for i, r := range sh.rows {
		if r.next != r.held {
			args = append(args, i+1, r.next, r.life.Milliseconds())
		}
	}
	return names, args
}

// result takes note of what the script says.
func (s *Store) result(sh *shard, cmd *redis.Cmd) error {
	v, err := cmd.Result()
	sh.err = err
	switch have := v.(type) {
	case int64:
		sh.done = true
		for _, r := range sh.rows {
			r.held = r.next
			s.keep(r.key, r.held)
		}
		return nil
	case []any:
		if len(have) != len(sh.rows) {
			return fmt.Errorf("%d values of %d", len(have), len(sh.rows))
		}
		for i, r := range sh.rows {
			held, _ := have[i].(string)
			s.keep(r.key, held)
			s.see(r, held)
		}
		return nil
	}
	switch {
	case redis.HasErrorPrefix(err, "NOSCRIPT"), redis.HasErrorPrefix(err, "TRYAGAIN"): // the shard is on its way to another server
		return nil
	case err == nil:
		return fmt.Errorf("script answered %T", v)
	}
	return err
}
