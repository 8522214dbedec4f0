package sqlite

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// together has steps done as one transaction, in their order.
func together(t *testing.T, s *Store, jobs ...*job) (errs []error) {
	t.Helper()
	if _, err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, free := make(chan bool), make(chan bool)
	go s.do(context.Background(), nil, func(*writer) error { held <- true; <-free; return nil })
	<-held
	for _, j := range jobs {
		s.jobs <- j
	}
	close(free)
	for _, j := range jobs {
		errs = append(errs, <-j.err)
	}
	return errs
}

func step(ctx context.Context, keys []greylist.Key, f func([]greylist.Record)) *job {
	return &job{ctx: ctx, keys: keys, do: func(w *writer) error { return w.update(keys, f) }, err: make(chan error, 1)}
}

// The steps of a transaction see each other as if each were one of its own;
// those that fail, or that nobody waits for, leave no trace.
func TestTogether(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db")})
	defer s.Close()
	m := greylist.NewMemory(0)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := rand.New(rand.NewPCG(1, 2))
	all := make([]greylist.Key, 600)
	for i := range all {
		all[i] = key(greylist.Kind(1+i%6), uint64(i))
	}
	sizes := []int{0, 1, 2, 7, 15, 16, 17, 31, 255, 256, 257, 513}
	for round := range 20 {
		var jobs []*job
		var fails []bool
		for range 30 {
			n := sizes[r.IntN(len(sizes))]
			keys := slices.Clone(all)
			r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
			keys = keys[:n]
			kind, seed := r.IntN(6), r.Uint64()
			f := func(recs []greylist.Record) {
				r := rand.New(rand.NewPCG(seed, 0))
				for i := range recs {
					old := &recs[i]
					switch r.IntN(4) {
					case 0:
						*old = greylist.Record{}
					case 1: // not there either, whatever else it says
						old.State, old.Tries = greylist.Absent, old.Tries+1
					case 2:
						*old = greylist.Record{State: greylist.State(1 + r.IntN(2)), Tries: old.Tries + 1, First: old.Last + 1, Last: int64(r.IntN(99)), Nets: strings.Repeat("n", 4*r.IntN(3)), Origin: "o", Sender: old.Sender + "s", Rcpt: "r"}
					}
				}
			}
			ctx, bad := t.Context(), kind < 2
			switch kind {
			case 0:
				ctx = gone
			case 1:
				whole := f
				f = func(recs []greylist.Record) { whole(recs); panic("no") }
			}
			if !bad {
				if err := m.Update(t.Context(), keys, f); err != nil {
					t.Fatal(err)
				}
			}
			jobs, fails = append(jobs, step(ctx, keys, f)), append(fails, bad)
		}
		for i, err := range together(t, s, jobs...) {
			if (err != nil) != fails[i] {
				t.Errorf("round %d, step %d: %v", round, i, err)
			}
		}
		want, _ := m.Get(t.Context(), all)
		got, err := s.Get(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		stored := 0
		for i := range all {
			if got[i] != want[i] {
				t.Fatalf("round %d: %+v, want %+v", round, got[i], want[i])
			}
			if want[i].State != greylist.Absent {
				stored++
			}
			if all[i].Kind() == greylist.KindOrigin {
				if recs, ok := s.Peek(all[i : i+1]); ok && recs[0] != want[i] {
					t.Fatalf("round %d: at hand %+v, want %+v", round, recs[0], want[i])
				}
			}
		}
		if n := count(t, s); n != stored {
			t.Fatalf("round %d: %d records, want %d", round, n, stored)
		}
		greyCount(t, s)
	}
}

// A transaction that fails as a whole leaves nothing, neither stored nor at hand.
func TestTogetherFails(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db")})
	defer s.Close()
	keys := []greylist.Key{key(greylist.KindOrigin, 1)}
	pass := func(tries int) func([]greylist.Record) {
		return func(recs []greylist.Record) {
			recs[0] = greylist.Record{State: greylist.Pass, Tries: tries}
		}
	}
	if err := s.Update(t.Context(), keys, pass(1)); err != nil {
		t.Fatal(err)
	}
	broken := &job{ctx: t.Context(), err: make(chan error, 1), do: func(w *writer) error {
		_, err := w.conn.ExecContext(background(), "SELECT nothing")
		return err
	}}
	for i, err := range together(t, s, step(t.Context(), keys, pass(2)), broken, step(t.Context(), keys, pass(3))) {
		if err == nil {
			t.Errorf("step %d done", i)
		}
	}
	eventually(t, "opened again", func() bool {
		return s.Update(t.Context(), keys, func(recs []greylist.Record) {
			if recs[0].Tries != 1 {
				t.Errorf("%+v", recs[0])
			}
		}) == nil
	})
	if recs, ok := s.Peek(keys); ok && recs[0].Tries != 1 {
		t.Errorf("at hand: %+v", recs[0])
	}
}

// What a sweep removes last is not taken off the count twice.
func TestSweepCounts(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db")})
	defer s.Close()
	for _, total := range []int{900, 1000, 2500} {
		var keys []greylist.Key
		for n := range total {
			keys = append(keys, key(greylist.KindAttempt, uint64(n)))
		}
		if err := s.Update(t.Context(), keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, First: int64(i)}
			}
		}); err != nil {
			t.Fatal(err)
		}
		for done := false; !done; {
			var err error
			if _, done, err = s.Sweep(t.Context(), func(greylist.Key, greylist.Record) bool { return true }); err != nil {
				t.Fatal(err)
			}
		}
		if n := greyCount(t, s); n != 0 {
			t.Errorf("%d of %d left", n, total)
		}
	}
}

// What is copied to its place by the store itself is still at hand.
func TestCheckpointKeeps(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db")})
	defer s.Close()
	keys := []greylist.Key{key(greylist.KindOrigin, 1)}
	if err := s.Update(t.Context(), keys, func(recs []greylist.Record) { recs[0].State = greylist.Pass }); err != nil {
		t.Fatal(err)
	}
	r := s.reader.Load()
	pages, copied, err := r.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	if pages == 0 || copied != pages {
		t.Errorf("%d of %d pages copied", copied, pages)
	}
	err = s.do(t.Context(), nil, func(w *writer) error {
		if changed, err := w.changed(); changed || err != nil {
			t.Errorf("changed %v, %v", changed, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Closed is closed, though a checkpoint was under way.
func TestCloseCheckpoint(t *testing.T) {
	for range 3 {
		path := filepath.Join(t.TempDir(), "greylist.db")
		s := Open(Options{Path: path})
		var keys []greylist.Key
		for n := range 4000 {
			keys = append(keys, key(greylist.KindAttempt, uint64(n)))
		}
		if err := s.Update(t.Context(), keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, Sender: strings.Repeat("x", 400)}
			}
		}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := s.Close(); err != nil || time.Since(begin) > closeTime/2 {
			t.Skip("the disk is slow:", err) // so that Close does not wait
		}
		if names, _ := filepath.Glob(path + "-*"); names != nil {
			t.Fatalf("left behind: %v", names)
		}
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		for _, n := range names {
			if to, _ := os.Readlink("/proc/self/fd/" + n.Name()); strings.HasPrefix(to, path) {
				t.Fatalf("open: %s", to)
			}
		}
	}
}

// A journal that has grown is left to the writer for a while: what is copied
// while it writes never ends.
func TestJournalBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := Open(Options{Path: path, MaxGrey: 1 << 30})
	defer s.Close()
	works(t, s)
	db, err := sql.Open("sqlite", dsn(path, 100))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query("SELECT k FROM rec") // in the way of another beginning
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	defer rows.Close()
	for start := 0; ; start += 1000 {
		if fi, err := os.Stat(path + "-wal"); err == nil && fi.Size() > 5000*maxJournal {
			break
		}
		var keys []greylist.Key
		for n := range 1000 {
			keys = append(keys, key(greylist.KindAttempt, uint64(start+n)))
		}
		if err := s.Update(t.Context(), keys, func(recs []greylist.Record) {
			for i := range recs {
				recs[i] = greylist.Record{State: greylist.Grey, Sender: strings.Repeat("x", 3000)}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	for range 3 { // one is at work, one waits
		s.kick <- struct{}{}
	}
	if d := time.Since(begin); d < journalPause {
		t.Errorf("copied again after %v", d)
	}
}

// What has been counted is no error because it cannot be read in time.
func TestCountOnce(t *testing.T) {
	s := Open(Options{Path: filepath.Join(t.TempDir(), "greylist.db")})
	defer s.Close()
	r, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	busy, err := r.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	counts, err := s.Count(ctx, map[string]int64{"a": 1})
	busy.Close()
	if err != nil || counts["a"] != 1 {
		t.Errorf("%v, %v", counts, err)
	}
}
