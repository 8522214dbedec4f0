// Package sqlite keeps the records of a greylist in a file, beside which any
// number of processes may work: a second filter, or the operator's command.
//
// One goroutine writes. It takes what waits, up to some hundred steps at a
// time, as one transaction, and answers when that is committed: what was
// answered survives the end of the process, and all but the last moments
// survive a power cut.
//
// Nothing that is wrong with the file ends the store or keeps it from
// starting. Steps fail meanwhile, and the file is tried again every second. A
// file that is corrupt is set aside, one that was replaced is opened anew.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/guard"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Options are the settings of a Store.
type Options struct {
	Path    string
	MaxGrey int // grey records; past it those of the network with most go, the oldest, more or less. 0: greylist.DefaultMaxGrey

	// Existing is for the operator's command: a file that is not there is not
	// made, and a corrupt one left where it is.
	Existing bool

	Log *slog.Logger // nil: no log
}

const (
	maxBatch   = 256     // steps of one transaction
	maxRows    = 512     // read or written by it, but that one step may have more
	maxWaiting = 4096    // steps that wait
	maxRenewed = 2000    // passes that wait to be renewed
	cacheSize  = 8 << 10 // records of origins at hand

	// The journal, in pages of 4 KB: beside the writer it is copied to the file
	// from the first number on, past the second the writer waits for that. A
	// transaction adds no more than maxRows, give or take those that change the
	// form of the tree: it stays below 4 MB, whatever the disk.
	checkpointEvery = 256
	maxJournal      = 448
	journalPause    = time.Second

	pollEvery  = 250 * time.Millisecond // while the store is used
	restEvery  = 10 * time.Second       // once it has not been for restAfter
	restAfter  = 2 * time.Second
	stale      = time.Second // past which nothing is at hand
	retryEvery = time.Second // of opening
	openTime   = 5 * time.Second
	lockTime   = 2 * time.Second
	closeTime  = 2 * time.Second
	pageRows   = 1000 // read at a time by All and Sweep
	maxAside   = 30   // files set aside that are kept, journals among them
)

// A Store is a greylist.Store and a greylist.Cache.
type Store struct {
	opts  Options
	log   *slog.Logger
	jobs  chan *job
	quit  chan struct{}
	ended chan struct{}
	kick  chan struct{} // there is something to checkpoint
	stop  sync.Once

	reader atomic.Pointer[reader] // nil: not open
	used   atomic.Int64           // when something was last asked, in nanoseconds
	wake   chan struct{}          // ends the rest of the writer
	polled atomic.Int64           // when the cache was known to be right, in nanoseconds

	mu      sync.Mutex // guards cache as a whole and renew
	cache   *lru.Cache[greylist.Key, greylist.Record]
	renew   map[greylist.Key]renewal
	sweepMu sync.Mutex
	swept   greylist.Key
	found   int64 // grey records up to there

	// Of the writing goroutine.
	w       *writer // nil: not open
	tried   time.Time
	openErr error
	space   space
	trouble guard.Complaints

	journal atomic.Int64 // its pages that may be in no other place, about
	copying sync.Mutex   // held while it is copied
}

type renewal struct{ now, since int64 }

// A job is a step that waits to be written. Do is nil if the file has only to
// be open.
type job struct {
	ctx  context.Context
	keys []greylist.Key // that it reads
	do   func(*writer) error
	err  chan error
}

// A jobError is an error that spoils one job, not the transaction.
type jobError struct{ error }

// Open returns a store. The file is opened in the background; what is wrong
// with it is logged, and the error of each step.
func Open(o Options) *Store {
	if o.MaxGrey <= 0 {
		o.MaxGrey = greylist.DefaultMaxGrey
	}
	s := &Store{
		opts: o, log: o.Log,
		jobs: make(chan *job, maxWaiting), quit: make(chan struct{}), ended: make(chan struct{}), kick: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		renew: make(map[greylist.Key]renewal),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.trouble.Log = s.log
	s.cache, _ = lru.New[greylist.Key, greylist.Record](cacheSize)
	guard.Go(s.log, "greylist database", s.run)
	guard.Keep(context.Background(), s.log, "greylist database", func(context.Context) { s.checkpoints() })
	return s
}

// Close writes what waits, and closes the file. It takes no longer than two
// seconds.
func (s *Store) Close() error {
	s.stop.Do(func() { close(s.quit) })
	select {
	case <-s.ended:
		return nil
	case <-time.After(closeTime):
		return fmt.Errorf("%s: still busy", s.opts.Path)
	}
}

func (s *Store) do(ctx context.Context, keys []greylist.Key, f func(*writer) error) error {
	j := &job{ctx: ctx, keys: keys, do: f, err: make(chan error, 1)}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.quit:
		return greylist.ErrClosed
	}
	select {
	case err := <-j.err:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		select {
		case err := <-j.err:
			return err
		default:
			return greylist.ErrClosed
		}
	}
}

// Update is part of greylist.Store.
func (s *Store) Update(ctx context.Context, keys []greylist.Key, f func([]greylist.Record)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	keys = slices.Clone(keys)
	return s.do(ctx, keys, func(w *writer) error { return w.update(keys, f) })
}

// Get is part of greylist.Store.
func (s *Store) Get(ctx context.Context, keys []greylist.Key) ([]greylist.Record, error) {
	r, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return r.get(ctx, keys)
}

// open waits until the file is open.
func (s *Store) open(ctx context.Context) (*reader, error) {
	for {
		if r := s.reader.Load(); r != nil {
			return r, nil
		}
		if err := s.do(ctx, nil, nil); err != nil {
			return nil, err
		}
	}
}

// All is part of greylist.Store.
func (s *Store) All(ctx context.Context) iter.Seq2[greylist.Entry, error] {
	return func(yield func(greylist.Entry, error) bool) {
		r, err := s.open(ctx)
		if err != nil {
			yield(greylist.Entry{}, err)
			return
		}
		pages(yield, func(after greylist.Key) ([]greylist.Entry, error) { return r.page(ctx, after, pageRows) })
	}
}

// Find is part of greylist.Finder.
func (s *Store) Find(ctx context.Context, q greylist.Query) iter.Seq2[greylist.Entry, error] {
	return func(yield func(greylist.Entry, error) bool) {
		r, err := s.open(ctx)
		if err != nil {
			yield(greylist.Entry{}, err)
			return
		}
		if q.Kind.Most() == 0 {
			pages(yield, func(after greylist.Key) ([]greylist.Entry, error) { return r.find(ctx, q, after, pageRows) })
			return
		}
		all, err := r.find(ctx, q, greylist.Key{}, 0)
		if err != nil {
			yield(greylist.Entry{}, err)
			return
		}
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// pages yields what comes in pages, each of those that follow a key.
func pages(yield func(greylist.Entry, error) bool, page func(after greylist.Key) ([]greylist.Entry, error)) {
	var after greylist.Key
	for {
		entries, err := page(after)
		if err != nil {
			yield(greylist.Entry{}, err)
			return
		}
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
			after = e.Key
		}
		if len(entries) < pageRows {
			return
		}
	}
}

// Sweep is part of greylist.Store.
func (s *Store) Sweep(ctx context.Context, expired func(greylist.Key, greylist.Record) bool) (removed int, done bool, err error) {
	s.sweepMu.Lock()
	defer s.sweepMu.Unlock()
	r, err := s.open(ctx)
	if err != nil {
		return 0, false, err
	}
	page, err := r.page(ctx, s.swept, pageRows)
	if isCorrupt(err) {
		s.swept, s.found = greylist.Key{}, 0
		// The writer sees to it, if it still has this file.
		return 0, false, s.do(ctx, nil, func(w *writer) error {
			if w.reader != r {
				return nil
			}
			return err
		})
	}
	if err != nil {
		return 0, false, err
	}
	found := s.found
	var keys []greylist.Key
	for _, e := range page {
		if expired(e.Key, e.Record) {
			keys = append(keys, e.Key)
		} else if waits(e) {
			found++
		}
	}
	done = len(page) < pageRows
	n := new(int) // the step may still be done after it has failed
	if keys != nil || done {
		err = s.do(ctx, keys, func(w *writer) error {
			*n = 0
			was := found // and what goes now
			if err := w.update(keys, func(recs []greylist.Record) {
				for i := range recs {
					if recs[i].State != greylist.Absent && expired(keys[i], recs[i]) {
						if waits(greylist.Entry{Key: keys[i], Record: recs[i]}) {
							was++
						}
						recs[i] = greylist.Record{}
						*n++
					}
				}
			}); err != nil {
				return err
			}
			w.shrink = w.shrink || keys != nil
			if done {
				return w.recount(was)
			}
			return nil
		})
		if err != nil {
			return 0, false, err
		}
	}
	s.swept, s.found = greylist.Key{}, 0
	if !done {
		s.swept, s.found = page[len(page)-1].Key, found
	}
	return *n, done, nil
}

// Count is part of greylist.Store.
func (s *Store) Count(ctx context.Context, add map[string]int64) (map[string]int64, error) {
	add = maps.Clone(add)
	if len(add) == 0 {
		r, err := s.open(ctx)
		if err != nil {
			return nil, err
		}
		return counters(ctx, r.db)
	}
	// What has been added is no error any more.
	counts := new(map[string]int64)
	err := s.do(ctx, nil, func(w *writer) (err error) {
		if err = w.count(add); err == nil {
			*counts, err = counters(background(), w.conn)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return *counts, nil
}

// Peek is part of greylist.Cache.
func (s *Store) Peek(keys []greylist.Key) ([]greylist.Record, bool) {
	now := time.Now().UnixNano()
	s.used.Store(now)
	if now-s.polled.Load() > int64(stale) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
		return nil, false
	}
	recs := make([]greylist.Record, len(keys))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range keys {
		r, ok := s.cache.Get(k)
		if !ok {
			return nil, false
		}
		recs[i] = r
	}
	return recs, true
}

// Renew is part of greylist.Cache.
func (s *Store) Renew(keys []greylist.Key, now, since int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.renew)+len(keys) > maxRenewed {
		return false
	}
	for _, k := range keys {
		r, ok := s.cache.Get(k)
		switch {
		case !ok:
		case r.State != greylist.Pass || r.Last < since:
			continue // nothing there to renew
		default:
			r.Last = now
			s.cache.Add(k, r)
		}
		n := renewal{now, since}
		if old, ok := s.renew[k]; ok {
			n.since = min(n.since, old.since) // or it would seem to have lapsed
		}
		s.renew[k] = n
	}
	return true
}

// remember puts what a transaction has read and written at hand.
func (s *Store) remember(rows map[greylist.Key]*row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, row := range rows {
		if k.Kind() != greylist.KindOrigin {
			continue
		}
		r := row.now
		if n, ok := s.renew[k]; ok && r.State == greylist.Pass && r.Last >= n.since {
			r.Last = n.now // since the transaction began
		}
		s.cache.Add(k, r)
	}
}

// takeRenewed returns passes to be renewed, up to n.
func (s *Store) takeRenewed(n int) map[greylist.Key]renewal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.renew) <= n {
		all := s.renew
		s.renew = make(map[greylist.Key]renewal)
		return all
	}
	some := make(map[greylist.Key]renewal, n)
	for k, r := range s.renew {
		if len(some) == n {
			break
		}
		some[k] = r
		delete(s.renew, k)
	}
	return some
}

func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.Purge()
}

func (s *Store) run() {
	defer close(s.ended)
	next := time.NewTimer(pollEvery)
	defer next.Stop()
	idle := func() {
		s.safely(s.idle)
		// Who does nothing shall not wake the machine four times a second.
		pause := pollEvery
		if s.w != nil && time.Now().UnixNano()-s.used.Load() > int64(restAfter) {
			pause = restEvery
		}
		next.Reset(pause)
	}
	idle()
	for {
		select {
		case j := <-s.jobs:
			rested := time.Now().UnixNano()-s.used.Load() > int64(restAfter)
			s.used.Store(time.Now().UnixNano())
			if rested {
				idle() // the file may be another one
			}
			s.safely(func() { s.batch(s.more(j)) })
		case <-s.wake:
			idle()
		case <-next.C:
			idle()
		case <-s.quit:
			for jobs := s.more(); jobs != nil; jobs = s.more() {
				s.safely(func() { s.batch(jobs) })
			}
			s.safely(s.idle)
			s.safely(s.shut)
			return
		}
	}
}

// checkpoints copies what the writer has written to its place: beside it, for
// that waits for the disk.
func (s *Store) checkpoints() {
	for {
		select {
		case <-s.kick:
			r := s.reader.Load()
			if r == nil {
				continue
			}
			s.copying.Lock()
			pages, copied, err := r.checkpoint()
			s.copying.Unlock()
			if err != nil {
				continue // if not now, then another time
			}
			if pages == copied {
				s.journal.Store(0)
			}
			if pages < maxJournal {
				continue
			}
			// It is written from its beginning again only when all of it has
			// been copied. While this goroutine is slower than the writer,
			// that is for the writer to do.
			select {
			case <-time.After(journalPause):
			case <-s.quit:
				return
			}
		case <-s.quit:
			return
		}
	}
}

// safely does a part of the work of the writing goroutine. Should the library
// break on what is in the file, that must not end the program: the file is opened
// again, and the steps that were at work run out of time.
func (s *Store) safely(work func()) {
	if err := guard.Call(func() error { work(); return nil }); err != nil {
		s.openErr = fmt.Errorf("%s: %w", s.opts.Path, err)
		s.complain(s.openErr)
		s.tried = time.Now()
		guard.Call(func() error { s.shut(); return nil })
	}
}

// more adds what waits to jobs, as much as fits into a transaction.
func (s *Store) more(jobs ...*job) []*job {
	rows := 0
	for _, j := range jobs {
		rows += len(j.keys)
	}
	for len(jobs) < maxBatch && rows < s.space.maxRows() {
		select {
		case j := <-s.jobs:
			jobs = append(jobs, j)
			rows += len(j.keys)
		default:
			return jobs
		}
	}
	return jobs
}

// idle does what is to be done between steps: open the file, see whether it is
// still the same, whether others have written it, renew passes.
func (s *Store) idle() {
	if err := s.ensure(); err != nil {
		return
	}
	if s.w.replaced() {
		s.log.Warn("database was replaced or removed, opening it again", "file", s.opts.Path)
		s.shut()
		s.tried = time.Time{}
		if s.ensure() != nil {
			return
		}
	}
	s.look()
	s.emptyIf(s.space.full)
	s.mu.Lock()
	renew := len(s.renew) > 0
	s.mu.Unlock()
	if renew {
		s.batch(nil)
		return
	}
	if err := s.poll(); err != nil {
		s.failed(err)
	}
}

// poll forgets what is at hand if another process has written.
func (s *Store) poll() error {
	changed, err := s.w.changed()
	if err != nil {
		return err
	}
	if changed {
		s.forget()
	}
	s.polled.Store(time.Now().UnixNano())
	return nil
}

// ensure opens the file if it is not open, once a second.
func (s *Store) ensure() error {
	if s.w != nil {
		return nil
	}
	if !s.tried.IsZero() && time.Since(s.tried) < retryEvery {
		return s.openErr
	}
	file, _ := os.Lstat(s.opts.Path)
	w, err := s.connect()
	if isCorrupt(err) && !s.opts.Existing {
		s.setAside(file, err)
		w, err = s.connect()
	}
	s.tried = time.Now()
	if err != nil {
		s.openErr = fmt.Errorf("%s: %w", s.opts.Path, err)
		s.complain(s.openErr)
		return s.openErr
	}
	s.w, s.openErr = w, nil
	s.space = space{}
	s.reader.Store(w.reader)
	s.forget()
	if !s.opts.Existing {
		s.look()
		s.empty() // what was left, perhaps on a disk that is full
	}
	return nil
}

// connect opens the file, however busy others are with it.
func (s *Store) connect() (*writer, error) {
	until := time.Now().Add(openTime)
	for {
		w, err := openWriter(s.opts)
		if !isBusy(err) || time.Now().After(until) {
			return w, err
		}
		select {
		case <-s.quit:
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Store) shut() {
	if s.w == nil {
		return
	}
	s.polled.Store(0)
	s.reader.Store(nil)
	s.w.close()
	s.w = nil
	s.forget()
}

// setAside gives a corrupt file another name, unless another process has done so
// already. The file goes last: as soon as it is gone another may begin a new one.
func (s *Store) setAside(file os.FileInfo, cause error) {
	unlock, err := lock(s.opts.Path)
	if err != nil {
		s.complain(err)
		return
	}
	defer unlock()
	if fi, err := os.Lstat(s.opts.Path); file == nil || err != nil || !os.SameFile(fi, file) {
		return
	}
	to := s.opts.Path + ".corrupt-" + time.Now().UTC().Format("20060102T150405.000Z")
	var errs []error
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(s.opts.Path+suffix, to+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.complain(fmt.Errorf("%s: %w, and cannot be set aside: %w", s.opts.Path, cause, err))
		return
	}
	var names []string // sorted by time
	dir, base := filepath.Split(s.opts.Path)
	entries, _ := os.ReadDir(filepath.Clean(dir))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), base+".corrupt-") {
			names = append(names, e.Name())
		}
	}
	for ; len(names) > maxAside; names = names[1:] {
		os.Remove(filepath.Join(dir, names[0]))
	}
	s.log.Error("DATABASE IS CORRUPT: set aside, a new one begins", "file", s.opts.Path, "aside", to, "err", cause)
}

// failed sees to a file on which a transaction failed.
func (s *Store) failed(err error) {
	s.complain(fmt.Errorf("%s: %w", s.opts.Path, err))
	if isBusy(err) || isFull(err) {
		return // it will pass
	}
	file := s.w.file
	s.shut()
	if isCorrupt(err) && !s.opts.Existing {
		s.setAside(file, err)
		s.tried = time.Time{}
	} else {
		s.tried, s.openErr = time.Now(), fmt.Errorf("%s: %w", s.opts.Path, err)
	}
}

func (s *Store) complain(err error) {
	s.trouble.Warn("greylist database not usable", "err", err)
}

// batch does the jobs as one transaction, and renews passes.
func (s *Store) batch(jobs []*job) {
	answer := func(err error) {
		for _, j := range jobs {
			j.err <- err
		}
	}
	if err := s.ensure(); err != nil {
		answer(err)
		return
	}
	s.look()
	s.emptyIf(s.journal.Load() >= s.space.maxJournal())
	if err := s.begin(&jobs); err != nil {
		if err != errNobody && err != greylist.ErrClosed {
			s.failed(err)
		}
		answer(err)
		return
	}
	rows := 0
	for _, j := range jobs {
		rows += len(j.keys)
	}
	renew := s.takeRenewed(max(s.space.maxRows()-rows, 64))

	errs := make([]error, len(jobs))
	err := s.steps(jobs, errs, renew)
	for tries := 0; isFull(err) && tries < 3; tries++ {
		s.w.rollback()
		if !s.makeRoom() || s.w.begin() != nil {
			break
		}
		err = s.steps(jobs, errs, renew)
	}
	if err != nil {
		s.w.rollback()
		s.mu.Lock()
		for k, n := range renew {
			if _, ok := s.renew[k]; !ok && len(s.renew) < maxRenewed {
				s.renew[k] = n
			}
		}
		s.mu.Unlock()
		s.failed(err)
		answer(fmt.Errorf("%s: %w", s.opts.Path, err))
		return
	}
	if s.w.wrote > 0 {
		s.trouble.Over("greylist database works again", "file", s.opts.Path)
	}
	s.remember(s.w.rows)
	if s.journal.Add(int64(s.w.wrote+commitPages)) >= checkpointEvery && !s.space.low {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
	clear(s.w.rows)
	for i, j := range jobs {
		j.err <- errs[i]
	}
	if s.w.shrink {
		s.w.shrink = false
		s.w.vacuum() // if not now, then another time
		s.journal.Add(2 * vacuumPages)
	}
}

// steps does the jobs in a transaction that has begun, and commits it. The errors
// of single jobs are put into errs.
func (s *Store) steps(jobs []*job, errs []error, renew map[greylist.Key]renewal) error {
	err := s.poll()
	if err == nil {
		err = s.w.renew(renew)
	}
	if err == nil {
		var keys []greylist.Key
		for _, j := range jobs {
			keys = append(keys, j.keys...)
		}
		err = s.w.load(keys)
	}
	for i, j := range jobs {
		if err != nil {
			break
		}
		if j.do == nil {
			continue
		}
		if errs[i] = j.ctx.Err(); errs[i] != nil {
			continue
		}
		var own jobError
		if e := j.do(s.w); errors.As(e, &own) {
			errs[i] = own.error
		} else {
			err = e
		}
	}
	if err == nil {
		err = s.w.commit(s.space.maxGrey(s.opts.MaxGrey), s.space.evict(), false)
	}
	return err
}

var errNobody = errors.New("nobody waits any more")

// begin begins a transaction while anybody waits for it.
func (s *Store) begin(jobs *[]*job) error {
	for {
		err := s.w.begin()
		if !isBusy(err) {
			return err
		}
		s.complain(fmt.Errorf("%s: %w", s.opts.Path, err))
		s.poll()
		alive := (*jobs)[:0]
		for _, j := range *jobs {
			if j.ctx.Err() == nil {
				alive = append(alive, j)
			} else {
				j.err <- j.ctx.Err()
			}
		}
		*jobs = alive
		select {
		case <-s.quit:
			return greylist.ErrClosed
		default:
		}
		if len(alive) == 0 {
			return errNobody
		}
	}
}
