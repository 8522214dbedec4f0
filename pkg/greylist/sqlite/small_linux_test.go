package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// smallDisk returns the directory of a file system of so many megabytes.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", megabytes))
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skip("only root can mount a small file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// decide asks about n messages, 32 at a time, and returns how many questions
// failed. It looks at the journal meanwhile.
func decide(t *testing.T, s *Store, path string, from, n int) (failed int64) {
	t.Helper()
	g := greylist.New(greylist.Options{Store: s, Clear: true, Secret: (&greylist.KeyFile{Path: path + ".key", Create: true}).Secret})
	var bad, biggest atomic.Int64
	var wg sync.WaitGroup
	work := make(chan int64)
	for range 32 {
		wg.Go(func() {
			for i := range work {
				d, err := g.Decide(context.Background(), greylist.Attempt{
					Time:   time.Unix(1_700_000_000+i, 0),
					Client: greylist.Client{Addr: netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}), Class: greylist.NoName},
					Sender: fmt.Sprintf("someone.%s@sender.example", letters(i)), Rcpts: []string{"somebody@rcpt.example"},
				})
				if err != nil {
					bad.Add(1)
				} else if d.Accept {
					t.Error("accepted")
				}
				if fi, err := os.Stat(path + "-wal"); err == nil && fi.Size() > biggest.Load() {
					biggest.Store(fi.Size())
				}
			}
		})
	}
	for i := range n {
		work <- int64(from + i)
	}
	close(work)
	wg.Wait()
	if biggest.Load() > 4<<20 {
		t.Errorf("the journal had %d bytes", biggest.Load())
	}
	return bad.Load()
}

// On a disk that does not hold all that comes, greylisting goes on all the same:
// the oldest attempts make room for new ones.
func TestSmallDisk(t *testing.T) {
	for _, megabytes := range []int{4, 6} {
		t.Run(fmt.Sprint(megabytes, " MB"), func(t *testing.T) {
			path := filepath.Join(smallDisk(t, megabytes), "greylist.db")
			s, log := open(t, path)
			works(t, s)
			if n := decide(t, s, path, 0, 20_000); n > 0 {
				t.Errorf("%d of 20,000 decisions failed: %v", n, log)
			}
			if n := count(t, s); n < 2000 {
				t.Errorf("%d records", n)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			s, log = open(t, path)
			if n := decide(t, s, path, 20_000, 1000); n > 0 {
				t.Errorf("%d decisions failed after a restart: %v", n, log)
			}
		})
	}
}

// A disk that others have filled: whatever the state of the file then, it works
// again when there is room, by itself, and says so when it does and not before.
func TestDiskOfOthers(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			dir := smallDisk(t, 16)
			path := filepath.Join(dir, "greylist.db")
			s, log := open(t, path)
			works(t, s)
			decide(t, s, path, 0, 3000)
			rest := filepath.Join(dir, "rest")
			fill(t, rest)
			if n := decide(t, s, path, 10_000, 3000); n == 0 {
				t.Log("all found room")
			}
			fill(t, rest)
			failed := decide(t, s, path, 20_000, 3000)
			if restart {
				s.Close()
				s, log = open(t, path)
				failed = decide(t, s, path, 30_000, 500)
			}
			if failed > 0 && strings.Count(log.String(), "works again") > strings.Count(log.String(), "not usable") {
				t.Error(log)
			}
			if err := os.Remove(rest); err != nil {
				t.Fatal(err)
			}
			works(t, s)
			time.Sleep(retryEvery)
			if n := decide(t, s, path, 40_000, 3000); n > 0 {
				t.Errorf("%d decisions failed though there is room: %v", n, log)
			}
			if strings.Contains(log.String(), "not usable") && !strings.HasSuffix(strings.TrimSpace(log.String()), "works again\" file="+path) {
				t.Error(log)
			}
		})
	}
}

// fill takes all that is free.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
}

// To read is no sign that writing works.
func TestWorksAgain(t *testing.T) {
	s, log := open(t, filepath.Join(t.TempDir(), "greylist.db"))
	works(t, s)
	db := s.reader.Load().db
	err := s.do(t.Context(), nil, func(w *writer) error {
		_, err := w.conn.ExecContext(background(), "PRAGMA max_page_count = 1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	inTheWay, stop := reading(t, s)
	defer stop()
	n := 0
	for ; n < 10_000 && put(s, n) == nil; n++ {
	}
	for range 3 {
		if _, err := s.Get(t.Context(), []greylist.Key{key(greylist.KindAttempt, 1)}); err != nil {
			t.Error(err)
		}
		// A step that reads only.
		if err := s.Update(t.Context(), []greylist.Key{key(greylist.KindAttempt, 1)}, func([]greylist.Record) {}); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "a complaint", func() bool { return strings.Contains(log.String(), "not usable") })
	if inTheWay.Err() != nil || n == 10_000 || strings.Contains(log.String(), "works again") {
		t.Errorf("after %d: %v", n, log)
	}
	if s.reader.Load().db != db {
		t.Error("opened again for want of room")
	}
	s.do(t.Context(), nil, func(w *writer) error {
		_, err := w.conn.ExecContext(background(), "PRAGMA max_page_count = 1000000")
		return err
	})
	stop()
	eventually(t, "something written", func() bool { n++; return put(s, n) == nil })
	if !strings.Contains(log.String(), "works again") {
		t.Error(log)
	}
}

// reading reads from the file until stop is called, so that the journal cannot be
// emptied.
func reading(t *testing.T, s *Store) (rows *sql.Rows, stop func()) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(s.opts.Path, 100))
	if err != nil {
		t.Fatal(err)
	}
	if rows, err = db.Query("SELECT k FROM rec"); err != nil || !rows.Next() {
		t.Fatal(err)
	}
	return rows, func() { rows.Close(); db.Close() }
}

// Who reads for long keeps the journal from being emptied, but nobody waiting.
func TestLongReader(t *testing.T) {
	s, log := open(t, filepath.Join(t.TempDir(), "greylist.db"))
	works(t, s)
	_, stop := reading(t, s)
	defer stop()
	s.journal.Store(10 * maxJournal)
	waits := 0
	err := s.do(t.Context(), nil, func(*writer) error { return nil }) // the first one may
	for range 50 {
		err = errors.Join(err, s.do(t.Context(), nil, func(w *writer) error {
			if s.space.again.Before(time.Now()) {
				waits++
			}
			return nil
		}))
	}
	if err != nil || waits > 5 || log.String() != "" {
		t.Errorf("%v, %d waits, %v", err, waits, log)
	}
}
