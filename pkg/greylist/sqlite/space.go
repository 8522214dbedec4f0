package sqlite

import (
	"fmt"
	"path/filepath"
	"time"
)

// Bytes that are free on a disk.
const (
	lowSpace   = 8 << 20 // below it transactions and journal are small
	tightSpace = 1 << 20 // below it the file does not grow, so that the journal always can: old grey records go instead
	lookEvery  = time.Second

	emptyTries = 5 // of 100 ms
	roomTries  = 4 // to remove some hundred records

	minPages = 64 // of a file that does not grow
	maxPages = 1<<32 - 2

	lowRows     = 64
	lowJournal  = 64
	commitPages = 3 // of a transaction, beside its rows
)

// space is what the writing goroutine knows of the disk.
type space struct {
	looked time.Time
	again  time.Time // when to try again to empty the journal
	low    bool
	tight  bool
	full   bool  // a transaction has failed, and the journal was not emptied since
	most   int64 // grey records since that, 0: no bound
}

func (d *space) maxRows() int {
	if d.low {
		return lowRows
	}
	return maxRows
}

// evict returns how often a transaction may look for old records.
func (d *space) evict() int {
	if d.low {
		return 1
	}
	return 2
}

func (d *space) maxJournal() int64 {
	if d.low {
		return lowJournal
	}
	return maxJournal
}

func (d *space) maxGrey(n int) int {
	if d.most > 0 {
		return int(min(d.most, int64(n)))
	}
	return n
}

// freeSpace is replaced in tests.
var freeSpace = available

// look sees how much is free: once a second, or each time while it is little.
func (s *Store) look() {
	d := &s.space
	if !d.low && time.Since(d.looked) < lookEvery {
		return
	}
	d.looked = time.Now()
	free, ok := freeSpace(filepath.Dir(s.opts.Path))
	if !ok {
		return
	}
	d.low = free < lowSpace
	switch {
	case s.opts.Existing: // nothing goes because somebody looks
	case free > 2*tightSpace:
		d.most = 0
		if d.tight && s.w.maxPages(maxPages) == nil {
			d.tight = false
		}
	case !d.tight && free < tightSpace:
		s.empty()
		n, err := s.w.pages()
		d.tight = err == nil && s.w.maxPages(max(n, minPages)) == nil
	}
}

// emptyIf empties the journal if it is time. While somebody reads for long, and is
// in the way, not every transaction waits for him.
func (s *Store) emptyIf(wanted bool) {
	if wanted && time.Now().After(s.space.again) {
		s.empty()
	}
}

// empty empties the journal, when what copies it beside the writer has done. While
// there is little room it insists: who reads will soon have done too.
func (s *Store) empty() (done bool) {
	s.copying.Lock()
	defer s.copying.Unlock()
	var err error
	for range emptyTries {
		if done, err = s.w.checkpoint(); done || err != nil && !isBusy(err) || !s.space.low && !s.space.full {
			break
		}
	}
	if isFull(err) {
		s.space.full = true
		s.complain(fmt.Errorf("%s: %w", s.opts.Path, err))
	}
	if done {
		s.space.full = false
		s.journal.Store(0)
	} else {
		s.space.again = time.Now().Add(journalPause)
	}
	return done
}

// makeRoom is called when a transaction has failed because there was no room. It
// reports whether there may be some now.
func (s *Store) makeRoom() bool {
	s.space.full = true
	if !s.empty() {
		return false
	}
	if s.opts.Existing {
		return true
	}
	n, err := s.w.greyNow()
	if err != nil {
		return false
	}
	for range roomTries { // each is small, as is the journal
		if s.w.begin() != nil {
			return false
		}
		if err := s.w.commit(int(n-n/8), 1, true); err != nil {
			s.w.rollback()
			return false
		}
		s.empty()
	}
	// What comes then takes the place of those that are removed for it.
	n, err = s.w.greyNow()
	s.space.most = max(n, 1)
	return err == nil
}
