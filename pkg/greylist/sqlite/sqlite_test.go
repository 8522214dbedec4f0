package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/storetest"
)

var backend = storetest.Backend{
	Open: func(place string, maxGrey int) (greylist.Store, error) {
		return Open(Options{Path: place, MaxGrey: maxGrey}), nil
	},
	Place:  func(t *testing.T) string { return filepath.Join(t.TempDir(), "greylist.db") },
	Shared: true,
}

func TestMain(m *testing.M) {
	if !backend.Child() {
		os.Exit(m.Run())
	}
}

func TestStore(t *testing.T) { backend.Run(t) }

// A logbook keeps what is logged.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func open(t *testing.T, path string) (*Store, *logbook) {
	l := new(logbook)
	s := Open(Options{Path: path, Log: slog.New(slog.NewTextHandler(l, nil))})
	t.Cleanup(func() { s.Close() })
	return s, l
}

func key(kind greylist.Kind, n uint64) (k greylist.Key) {
	r := rand.New(rand.NewPCG(n, uint64(kind)))
	binary.BigEndian.PutUint64(k[:], r.Uint64())
	binary.BigEndian.PutUint64(k[8:], r.Uint64())
	k[15] = byte(kind)
	return k
}

// put stores a grey record. The caller's limit is that of a decision.
func put(s *Store, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	return s.Update(ctx, []greylist.Key{key(greylist.KindAttempt, uint64(n))}, func(recs []greylist.Record) {
		recs[0] = greylist.Record{State: greylist.Grey, Tries: n + 1, First: int64(n)}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 300 {
		if f() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("never: " + what)
}

func works(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "works", func() bool { return put(s, 0) == nil })
}

func count(t *testing.T, s *Store) (n int) {
	t.Helper()
	for _, err := range s.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestUpgrade(t *testing.T) {
	b, err := os.ReadFile("testdata/v1.db")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "greylist.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, log := open(t, path)
	k, err := greylist.ParseKey("10112233445566778899aabbccddee02")
	if err != nil {
		t.Fatal(err)
	}
	want := greylist.Record{
		State: greylist.Grey, Tries: 2, First: 1_700_000_000_000, Last: 1_700_000_030_000,
		Origin: "net:192.0.2.0/24", Sender: "alice@s.example", Rcpt: "bob@rcpt.example",
	}
	recs, err := s.Get(t.Context(), []greylist.Key{k})
	if err != nil || recs[0] != want || count(t, s) != 3 {
		t.Errorf("%+v, %v", recs, err)
	}
	if n := greyCount(t, s); n != 2 {
		t.Errorf("%d grey records counted", n)
	}
	works(t, s)
	if log.String() != "" {
		t.Error(log)
	}
}

// greyCount returns the number as stored, and checks it.
func greyCount(t *testing.T, s *Store) (n int) {
	t.Helper()
	r, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var really int
	if err := r.db.QueryRow("SELECT n, (SELECT count(*) FROM rec WHERE state = 1) FROM counter WHERE name = ''").Scan(&n, &really); err != nil {
		t.Fatal(err)
	}
	if n != really {
		t.Errorf("%d grey records, counted %d", really, n)
	}
	return n
}

func TestNewerVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	works(t, s)
	s.Close()
	exec(t, path, "PRAGMA user_version = 99")
	s, _ = open(t, path)
	eventually(t, "refused", func() bool {
		err := put(s, 0)
		return err != nil && strings.Contains(err.Error(), "newer version")
	})
	if names, _ := filepath.Glob(path + ".corrupt*"); names != nil {
		t.Error(names)
	}
}

func exec(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, 100))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(text); err != nil {
		t.Fatal(err)
	}
}

func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.db")
	s, _ := open(t, good)
	for n := range 2000 {
		if err := s.Update(t.Context(), []greylist.Key{key(greylist.KindAttempt, uint64(n))}, func(recs []greylist.Record) {
			recs[0] = greylist.Record{State: greylist.Grey, Sender: strings.Repeat("x", 50)}
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	text, err := os.ReadFile(good)
	if err != nil || len(text) < 100_000 {
		t.Fatal(len(text), err)
	}
	garbage := bytes.Repeat([]byte("garbage "), 1000)
	for name, damaged := range map[string][]byte{
		"garbage":     garbage,
		"truncated":   text[:len(text)/2],
		"cut short":   text[:1000],
		"overwritten": append(append(bytes.Clone(text[:4096*2]), bytes.Repeat([]byte{0xff}, len(text)-4096*3)...), text[len(text)-4096:]...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "greylist.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			s, log := open(t, path)
			// It shows when the damaged part is needed.
			eventually(t, "set aside", func() bool {
				for n := range 50 {
					put(s, rand.IntN(1<<20)+n)
				}
				names, _ := filepath.Glob(path + ".corrupt-*")
				return names != nil
			})
			works(t, s)
			if !strings.Contains(log.String(), "CORRUPT") {
				t.Error(log)
			}
		})
		t.Run("swept "+name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "greylist.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			s, _ := open(t, path)
			eventually(t, "set aside", func() bool {
				s.Sweep(t.Context(), func(greylist.Key, greylist.Record) bool { return false })
				names, _ := filepath.Glob(path + ".corrupt-*")
				return names != nil
			})
			works(t, s)
		})
		t.Run("operator "+name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "greylist.db")
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			s := Open(Options{Path: path, Existing: true})
			defer s.Close()
			var failed error
			for _, err := range s.All(t.Context()) {
				failed = errors.Join(failed, err)
			}
			if names, _ := filepath.Glob(path + ".corrupt-*"); names != nil || failed == nil {
				t.Errorf("%v, %v", names, failed)
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "greylist.db")
		os.WriteFile(path, nil, 0o600)
		s, _ := open(t, path)
		works(t, s)
	})
	t.Run("while open", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "greylist.db")
		os.WriteFile(path, text, 0o600)
		s, _ := open(t, path)
		works(t, s)
		if err := os.WriteFile(path, bytes.Repeat(garbage, 50), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "set aside", func() bool {
			for n := range 50 {
				put(s, rand.IntN(1<<20)+n)
			}
			names, _ := filepath.Glob(path + ".corrupt-*")
			return names != nil
		})
		works(t, s)
	})
}

// What keeps the file from being opened does not keep the store from working
// later.
func TestLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	path := filepath.Join(dir, "greylist.db")
	s, log := open(t, path)
	if err := put(s, 1); err == nil {
		t.Error("no error")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not a file", func() bool {
		err := put(s, 1)
		return err != nil && strings.Contains(err.Error(), "regular")
	})
	os.Remove(path)
	works(t, s)
	if n := strings.Count(log.String(), "not usable"); n != 1 || !strings.Contains(log.String(), "works again") {
		t.Errorf("%d lines: %v", n, log)
	}
}

func TestExisting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := Open(Options{Path: path, Existing: true})
	defer s.Close()
	if _, err := s.Get(t.Context(), make([]greylist.Key, 1)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if names, _ := filepath.Glob(path + "*"); names != nil {
		t.Error(names)
	}
}

func TestReadOnly(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o500)
	s, _ := open(t, filepath.Join(dir, "greylist.db"))
	if err := put(s, 1); err == nil {
		t.Error("no error")
	}
	os.Chmod(dir, 0o700)
	works(t, s)
}

func TestDiskFull(t *testing.T) {
	s, log := open(t, filepath.Join(t.TempDir(), "greylist.db"))
	works(t, s)
	limit := func(pages int) {
		err := s.do(t.Context(), nil, func(w *writer) error {
			_, err := w.conn.ExecContext(background(), fmt.Sprintf("PRAGMA max_page_count = %d", pages))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(20)
	for n := range 3000 { // those that came first make room
		if err := put(s, n); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%d: %v", n, err)
		}
	}
	if n := count(t, s); n < 100 || n > 2500 {
		t.Errorf("%d records", n)
	}
	limit(1 << 30)
	time.Sleep(lookEvery)
	works(t, s)
	n := count(t, s)
	if err := put(s, 3001); err != nil || count(t, s) != n+1 {
		t.Errorf("%v, %d records, want %d", err, count(t, s), n+1)
	}
	greyCount(t, s)
	if log.String() != "" && !strings.Contains(log.String(), "works again") {
		t.Error(log)
	}
}

func TestRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, log := open(t, path)
	works(t, s)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
	works(t, s)
	s.Close()
	s, _ = open(t, path)
	if n := count(t, s); n != 1 {
		t.Errorf("%d records in the new file", n)
	}
	if !strings.Contains(log.String(), "replaced or removed") {
		t.Error(log)
	}
}

// Who still reads a file that was removed leaves the journal of the new one
// alone.
func TestRemovedWhileRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	for n := range 10 {
		eventually(t, "put", func() bool { return put(s, n) == nil })
	}
	r, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows, err := r.db.Query("SELECT k FROM rec")
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	os.Remove(path)
	eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
	works(t, s)
	wal, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	rows.Close()
	if fi, err := os.Stat(path + "-wal"); err != nil || !os.SameFile(fi, wal) {
		t.Errorf("the journal is gone: %v", err)
	}
}

func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "greylist.db"), filepath.Join(dir, "backup.db")
	s, _ := open(t, other)
	for n := range 10 {
		eventually(t, "put", func() bool { return put(s, n) == nil })
	}
	s.Close()
	if names, _ := filepath.Glob(other + "-*"); names != nil {
		t.Errorf("left behind: %v", names)
	}
	s, _ = open(t, path)
	works(t, s)
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "opened again", func() bool {
		recs, err := s.Get(t.Context(), []greylist.Key{key(greylist.KindAttempt, 9)})
		return err == nil && recs[0].State == greylist.Grey
	})
	eventually(t, "put", func() bool { return put(s, 100) == nil })
	s.Close()
	s, _ = open(t, path)
	if n := count(t, s); n != 11 {
		t.Errorf("%d records", n)
	}
}

// Another process that keeps the file to itself makes nobody wait for longer
// than he wants.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, log := open(t, path)
	works(t, s)
	db, err := sql.Open("sqlite", dsn(path, 100))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	hold := 10 * time.Second
	if testing.Short() {
		hold = 2 * time.Second
	}
	var failed int
	for end := time.Now().Add(hold); time.Now().Before(end); {
		begin := time.Now()
		err := put(s, 1)
		if err == nil {
			t.Fatal("written, though locked")
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("waited %v", d)
		}
		failed++
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	works(t, s)
	if n := strings.Count(log.String(), "not usable"); n != 1 || failed < 2 {
		t.Errorf("%d failed, logged %v", failed, log)
	}
}

// Close leaves nothing behind, and does not wait for who keeps the file locked.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	works(t, s)
	s.Close()
	files, routines := descriptors(t), runtime.NumGoroutine()
	for range 10 {
		s := Open(Options{Path: path})
		works(t, s)
		if _, err := s.Get(t.Context(), make([]greylist.Key, 1)); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "nothing left", func() bool { return runtime.NumGoroutine() <= routines })
	if n := descriptors(t); n > files {
		t.Errorf("%d descriptors, %d before", n, files)
	}

	s, _ = open(t, path)
	works(t, s)
	db, err := sql.Open("sqlite", dsn(path, 100))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	for n := range 300 { // more than one transaction
		go func() {
			failed <- s.Update(context.WithoutCancel(t.Context()), []greylist.Key{key(greylist.KindPair, uint64(n))}, func([]greylist.Record) {})
		}()
	}
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	s.Close()
	if d := time.Since(begin); d > closeTime+5*time.Second {
		t.Errorf("closed after %v", d)
	}
	for range 300 {
		if err := <-failed; err == nil {
			t.Error("written, though locked")
		}
	}
	tx.Rollback()
}

// What a step does wrong is its own trouble.
func TestPanic(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "greylist.db"))
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			err := s.Update(t.Context(), []greylist.Key{key(greylist.KindAttempt, uint64(n))}, func(recs []greylist.Record) {
				if recs[0].State = greylist.Grey; n%2 == 0 {
					panic("no")
				}
			})
			if (err != nil) != (n%2 == 0) {
				t.Errorf("%d: %v", n, err)
			}
		})
	}
	wg.Wait()
	if n := count(t, s); n != 10 {
		t.Errorf("%d records", n)
	}
}

// A library that breaks ends nothing: the file is opened again.
func TestBroken(t *testing.T) {
	s, log := open(t, filepath.Join(t.TempDir(), "greylist.db"))
	works(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.do(ctx, nil, func(*writer) error { panic("broken") }); err == nil {
		t.Error("no error")
	}
	time.Sleep(retryEvery)
	works(t, s)
	if n := count(t, s); n == 0 {
		t.Error("what was stored before is gone")
	}
	if !strings.Contains(log.String(), "panic: broken") {
		t.Errorf("%s", log)
	}
}

// Of more records than are looked at together, the oldest go, more or less.
func TestEvict(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db"), MaxGrey: 10_000})
	defer s.Close()
	const total = 30_000
	for start := 0; start < total; start += 250 {
		var keys []greylist.Key
		for n := range 250 {
			keys = append(keys, key(greylist.KindAttempt, uint64(start+n)))
		}
		if err := s.Update(t.Context(), keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, First: int64(start + i)}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if start%2500 != 0 {
			continue
		}
		if n := greyCount(t, s); n > 10_000 {
			t.Fatalf("%d records", n)
		}
	}
	old, young := 0, 0
	for e := range s.All(t.Context()) {
		switch {
		case e.Record.First < total-12_500:
			old++
		case e.Record.First >= total-7500:
			young++
		}
	}
	if old > 100 || young < 7400 {
		t.Errorf("%d old ones are there, and %d of 7500 young ones", old, young)
	}
}

// Records that somebody else removed make no room for new ones scarce.
func TestRecount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := Open(Options{Path: path, MaxGrey: 500})
	defer s.Close()
	for n := range 490 {
		eventually(t, "put", func() bool { return put(s, n) == nil })
	}
	exec(t, path, "DELETE FROM rec")
	for done := false; !done; {
		var err error
		if _, done, err = s.Sweep(t.Context(), func(greylist.Key, greylist.Record) bool { return false }); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 50 {
		eventually(t, "put", func() bool { return put(s, n) == nil })
	}
	if n := count(t, s); n != 50 {
		t.Errorf("%d records of 50 are there", n)
	}
	greyCount(t, s)
}

// A bound that was lowered is kept after some steps, each of which removes some.
func TestEvictMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	const total = 5000
	var keys []greylist.Key
	for n := range total {
		keys = append(keys, key(greylist.KindAttempt, uint64(n)))
	}
	grey := func(recs []greylist.Record) {
		for i := range recs {
			recs[i] = greylist.Record{State: greylist.Grey, First: int64(i)}
		}
	}
	if err := s.Update(t.Context(), keys, grey); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = Open(Options{Path: path, MaxGrey: 3000})
	defer s.Close()
	for n, before := 0, total; before > 3000; n++ {
		if err := s.Update(t.Context(), []greylist.Key{key(greylist.KindPair, uint64(n))}, grey); err != nil {
			t.Fatal(err)
		}
		left := greyCount(t, s)
		if left >= before {
			t.Fatalf("step %d: %d records, %d before", n, left, before)
		}
		before = left
	}
}

// A file that cannot be opened costs one log line and no descriptors.
func TestUnusable(t *testing.T) {
	for name, spoil := range map[string]func(path string){
		"wal":    func(path string) { os.Mkdir(path+"-wal", 0o700) },
		"schema": func(path string) { exec(t, path, "DROP TABLE rec") },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "greylist.db")
			s, _ := open(t, path)
			works(t, s)
			s.Close()
			spoil(path)
			s, log := open(t, path)
			eventually(t, "refused", func() bool {
				err := put(s, 1)
				return err != nil && !errors.Is(err, context.DeadlineExceeded)
			})
			before := descriptors(t)
			for range 4 {
				time.Sleep(retryEvery / 2)
				put(s, 1)
			}
			if n := descriptors(t); n > before {
				t.Errorf("%d descriptors, %d before", n, before)
			}
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%d lines: %v", n, log)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(names)
}

// The index of the journal is in memory shared with the file.
func TestIndexCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	works(t, s)
	if err := os.Truncate(path+"-shm", 0); err != nil {
		t.Fatal(err)
	}
	s.Get(t.Context(), []greylist.Key{key(greylist.KindAttempt, 0)})
	works(t, s)
	if n := count(t, s); n != 1 {
		t.Errorf("%d records", n)
	}
}

// A journal that belongs to no file is no part of a new one.
func TestJournalLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	for n := range 10 {
		eventually(t, "put", func() bool { return put(s, n) == nil })
	}
	wal, err := os.ReadFile(path + "-wal")
	if err != nil || len(wal) == 0 {
		t.Fatal(len(wal), err)
	}
	shm, _ := os.ReadFile(path + "-shm")
	other := filepath.Join(t.TempDir(), "greylist.db")
	os.WriteFile(other+"-wal", wal, 0o600)
	os.WriteFile(other+"-shm", shm, 0o600)
	s, log := open(t, other)
	works(t, s)
	if n := count(t, s); n != 1 || log.String() != "" {
		t.Errorf("%d records, %v", n, log)
	}
}

// Files set aside do not fill the disk.
func TestAsideBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	for n := range 100 {
		os.WriteFile(fmt.Sprintf("%s.corrupt-2024%04d", path, n), nil, 0o600)
	}
	os.WriteFile(path, bytes.Repeat([]byte("garbage "), 1000), 0o600)
	s, _ := open(t, path)
	works(t, s)
	names, _ := filepath.Glob(path + ".corrupt-*")
	if len(names) != maxAside || !strings.HasSuffix(names[len(names)-1], "Z") {
		t.Errorf("%d: %v", len(names), names)
	}
}

func TestVacuum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s, _ := open(t, path)
	for start := 0; start < 15_000; start += 1000 {
		var keys []greylist.Key
		for n := range 1000 {
			keys = append(keys, key(greylist.KindAttempt, uint64(start+n)))
		}
		if err := s.Update(t.Context(), keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, Sender: strings.Repeat("x", 200)}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages := func() (n int64) {
		r, err := s.open(t.Context())
		if err == nil {
			err = r.db.QueryRow("PRAGMA page_count").Scan(&n)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := pages()
	for done := false; !done; {
		var err error
		if _, done, err = s.Sweep(t.Context(), func(greylist.Key, greylist.Record) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	// One more step, so that the last pages have been given back.
	if err := put(s, 1); err != nil {
		t.Fatal(err)
	}
	if after := pages(); after > max(before/3, keepFree+200) {
		t.Errorf("%d pages, %d after all is gone", before, after)
	}
}

// What root makes belongs to the owner of the directory.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	dir := t.TempDir()
	const uid, gid = 12345, 12346
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "greylist.db")
	s, _ := open(t, path)
	works(t, s)
	if _, err := (&greylist.KeyFile{Path: path + ".key", Create: true}).Secret(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(path + "*")
	if len(names) != 4 {
		t.Errorf("%v", names)
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if st.Uid != uid || st.Gid != gid || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d:%d %v", name, st.Uid, st.Gid, fi.Mode())
		}
	}
}
