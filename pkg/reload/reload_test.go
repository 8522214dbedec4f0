package reload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

type words []string

func (w words) Len() int { return len(w) }

// Parse takes a word a line; one in capitals is bad.
func parse(r io.Reader, name string) (words, []error) {
	var w words
	var errs []error
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		if s := sc.Text(); s != strings.ToLower(s) {
			errs = append(errs, fmt.Errorf("%s:%d: %s is loud", name, n, s))
		} else if s != "" {
			w = append(w, s)
		}
	}
	return w, errs
}

func merge(ws ...words) words { return slices.Concat(ws...) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("good"), "a\nb\n")
	write(t, path("mixed"), "c\nLOUD\n")
	write(t, path("invalid"), "LOUD\nLOUDER\n")
	write(t, path("empty"), "")
	write(t, path("huge"), "a\n")
	if err := os.Truncate(path("huge"), MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		files string
		want  string // the words, or the error
		bad   int
	}{
		{"", "[]", 0},
		{"good", "[a b]", 0},
		{"empty", "[]", 0},
		{"mixed", "[c]", 1},
		{"mixed good mixed", "[c a b c]", 2},
		{"invalid", "no valid line, the first: DIR/invalid:1: LOUD is loud", 0},
		{"none", "[]", 1},
		{"pipe", "[]", 1},
		{".", "[]", 1},
		{"huge", "[]", 1},
		{"good none pipe mixed", "[a b c]", 3},
		{"good none invalid invalid", "no valid line, the first: DIR/invalid:1: LOUD is loud\nno valid line, the first: DIR/invalid:1: LOUD is loud", 0},
	} {
		o := Options[words]{Parse: parse, Merge: merge}
		for _, name := range strings.Fields(tt.files) {
			o.Paths = append(o.Paths, path(name))
		}
		f, err := Open(o)
		got := fmt.Sprint(f.Value())
		if err != nil {
			got = strings.ReplaceAll(err.Error(), dir, "DIR")
		}
		if got != tt.want || len(f.Bad()) != tt.bad {
			t.Errorf("%s: got %s, %d bad, want %s, %d", tt.files, got, len(f.Bad()), tt.want, tt.bad)
		}
	}
	if _, err := Open(Options[words]{Paths: []string{path("good"), path("mixed")}, Parse: parse}); err == nil {
		t.Error("two files without Merge")
	}
	var none *File[words]
	none.Watch(t.Context())
}

func TestLimited(t *testing.T) {
	for _, tt := range []struct {
		size int
		left int64
		ok   bool
	}{{10, 10, true}, {11, 10, false}, {0, 0, true}} {
		l := &limited{r: strings.NewReader(strings.Repeat("x", tt.size)), left: tt.left}
		_, err := io.Copy(io.Discard, l)
		if (err == nil) != tt.ok || (l.err == nil) != tt.ok {
			t.Errorf("%+v: %v, %v", tt, err, l.err)
		}
	}
	bad := errors.New("input/output error")
	l := &limited{r: iotest.ErrReader(bad), left: 1}
	if io.ReadAll(l); l.err != bad {
		t.Errorf("forgot %v", l.err)
	}
}

// A buffer is written by Watch and read by the test.
type buffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

// Take returns what was written since the last time.
func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := string(b.b)
	b.b = nil
	return s
}

// A step changes files, and then one look at them is taken.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "a\n")
	write(t, b, "b\n")
	synctest.Test(t, func(t *testing.T) {
		var log buffer
		f, err := Open(Options[words]{
			Paths: []string{a, b}, Parse: parse, Merge: merge,
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			f.Watch(ctx)
			close(done)
		}()
		mtime := time.Unix(1e9, 0)
		replace := func(path, text string) {
			write(t, path+".new", text)
			if err := os.Chtimes(path+".new", mtime, mtime); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		step := func(name, want string, lines ...string) {
			t.Helper()
			time.Sleep(Interval)
			synctest.Wait()
			log := log.take()
			if got := fmt.Sprint(f.Value()); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
			if strings.Count(log, "\n") != len(lines) {
				t.Errorf("%s: want %d log lines, got\n%s", name, len(lines), log)
			}
			for _, want := range lines {
				if !strings.Contains(log, want) {
					t.Errorf("%s: no %q in\n%s", name, want, log)
				}
			}
		}
		keep, again := "keeping what was read before", "file read again"

		step("no change", "[a b]")
		write(t, a, "aa\n")
		step("size changed", "[aa b]", again)
		replace(a, "ab\n")
		step("replaced by rename", "[ab b]", again)
		replace(a, "ac\n")
		step("other inode, same size and time", "[ac b]", again)
		mtime = mtime.Add(time.Second)
		write(t, a, "ad\n")
		os.Chtimes(a, mtime, mtime)
		step("other time", "[ad b]", again)
		write(t, a, "x\nLOUD\ny\n")
		step("bad line", "[x y b]", a+":2: LOUD is loud", again+`" file=`+a+" entries=2 bad=1")
		if len(f.Bad()) != 1 {
			t.Errorf("bad lines %v", f.Bad())
		}
		write(t, a, strings.Repeat("LOUD\n", 20))
		step("wholly invalid", "[x y b]", keep)
		step("still invalid", "[x y b]")
		if bad := fmt.Sprint(f.Bad()); bad != fmt.Sprintf("[%[1]s:2: LOUD is loud no valid line, the first: %[1]s:1: LOUD is loud]", a) {
			t.Errorf("bad: %v, want what is in force and what is not", bad)
		}
		write(t, b, "bb\n")
		step("the other file", "[x y bb]", again+`" file=`+b)
		os.Rename(a, a+".away")
		step("gone", "[x y bb]", keep)
		step("still gone", "[x y bb]")
		write(t, a, "")
		step("back and empty", "[x y bb]")
		step("still empty", "[bb]", again)
		os.Remove(a)
		os.Mkdir(a, 0o755)
		step("a folder", "[bb]", keep)
		step("still a folder", "[bb]")
		os.Remove(a)
		write(t, a, strings.Repeat("LOUD\n", 20)+"z\n")
		step("many bad lines", "[z bb]", append(slices.Repeat([]string{"bad line skipped"}, maxLogged), "lines=10", again)...)
		os.Rename(a, a+".away")
		step("away", "[z bb]", keep)
		os.Rename(a+".away", a)
		step("the same file back", "[z bb]", append(slices.Repeat([]string{"bad line skipped"}, maxLogged), "lines=10", again)...)
		os.Remove(a)
		step("gone again", "[z bb]", keep)

		f.check(true)
		if log := log.take(); !strings.Contains(log, keep) || !strings.Contains(log, again+`" file=`+b) {
			t.Errorf("a reload says too little:\n%s", log)
		}
		cancel()
		<-done
	})
}

// ReadAt is the time of the last reading that had no error.
func TestReadAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, "a\n")
	began := time.Now()
	f, err := Open(Options[words]{Paths: []string{path}, Parse: parse})
	if err != nil {
		t.Fatal(err)
	}
	first := f.ReadAt(path)
	if first.Before(began) || first.After(time.Now()) {
		t.Errorf("read at %v, opened at %v", first, began)
	}
	write(t, path, "LOUD\n")
	f.check(true)
	if at := f.ReadAt(path); !at.Equal(first) {
		t.Errorf("read at %v though it is wholly invalid", at)
	}
	write(t, path, "b\n")
	f.check(true)
	if at := f.ReadAt(path); !at.After(first) {
		t.Errorf("read again at %v, before at %v", at, first)
	}
	var none *File[words]
	if none.Paths() != nil || !none.ReadAt(path).IsZero() {
		t.Error("no file was read")
	}
}

func TestHangup(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	write(t, a, "x\n")
	f, err := Open(Options[words]{Paths: []string{a}, Parse: parse})
	if err != nil {
		t.Fatal(err)
	}
	// Before Watch listens it ends nothing, and is not forgotten.
	write(t, a, "x\ny\n")
	syscall.Kill(os.Getpid(), syscall.SIGHUP)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.Watch(ctx); close(done) }()
	for len(f.Value()) != 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}

// A look at files every Interval, with the log of each.
type watched struct {
	*testing.T
	file *File[words]
	log  buffer
}

func watch(t *testing.T, o Options[words]) *watched {
	w := &watched{T: t}
	o.Parse, o.Merge, o.Log = parse, merge, slog.New(slog.NewTextHandler(&w.log, nil))
	f, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	w.file = f
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Watch(ctx, f); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// After waits, and returns how many warnings there were.
func (w *watched) after(d time.Duration, want string) int {
	w.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := fmt.Sprint(w.file.Value()); got != want {
		w.Errorf("got %s, want %s", got, want)
	}
	return strings.Count(w.log.take(), "level=WARN")
}

// A list whose file is not there is empty, and says so once an hour, until the
// file comes.
func TestMissing(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, Options[words]{Paths: []string{a}})
		if n := w.after(time.Second, "[]"); n != 1 {
			t.Errorf("%d warnings at the start", n)
		}
		if n := w.after(59*time.Minute, "[]"); n != 0 {
			t.Errorf("%d warnings within the hour", n)
		}
		if n := w.after(5*time.Hour, "[]"); n != 5 {
			t.Errorf("%d warnings in five hours", n)
		}
		if len(w.file.Bad()) != 1 {
			t.Errorf("bad: %v", w.file.Bad())
		}
		write(t, a, "LOUD\n") // now it is there, and nothing of it can be used
		if n := w.after(Interval, "[]"); n != 1 || len(w.file.Bad()) != 1 {
			t.Errorf("%d warnings, bad: %v", n, w.file.Bad())
		}
		write(t, a, "a\n")
		if n := w.after(Interval, "[a]"); n != 0 || len(w.file.Bad()) != 0 {
			t.Errorf("%d warnings, bad: %v", n, w.file.Bad())
		}
		os.Remove(a)
		if n := w.after(Interval, "[a]"); n != 1 || len(w.file.Bad()) != 1 {
			t.Errorf("%d warnings, bad: %v", n, w.file.Bad())
		}
		if n := w.after(5*time.Hour, "[a]"); n != 5 {
			t.Errorf("%d warnings in five hours", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := a + "b"
		w := watch(t, Options[words]{Paths: []string{b}, Optional: true})
		if n := w.after(5*time.Hour, "[]"); n != 0 || len(w.file.Bad()) != 0 {
			t.Errorf("%d warnings about an optional file, bad: %v", n, w.file.Bad())
		}
		write(t, b, "b\n")
		w.after(Interval, "[b]")
		os.Remove(b)
		if n := w.after(Interval, "[b]"); n != 1 {
			t.Errorf("%d warnings about a file that is gone", n)
		}
	})
}

// A file with nothing in it may be one that is being written.
func TestEmptied(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	write(t, a, "x\ny\n")
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, Options[words]{Paths: []string{a}})
		write(t, a, "")
		w.file.check(true) // as on SIGHUP, and again at once
		w.file.check(true)
		w.after(0, "[x y]")
		write(t, a, "x\n")
		w.after(Interval, "[x]")
		write(t, a, "")
		w.after(Interval, "[x]")
		w.after(Interval, "[]")
		write(t, a, "z\n")
		w.after(Interval, "[z]")
		write(t, a, "")
		w.after(Interval, "[z]")
		os.Remove(a)
		w.after(Interval, "[z]")
		write(t, a, "")
		w.after(Interval, "[z]")
		w.after(Interval, "[]")
	})
}

// Watch ends with its context though a look hangs, and other files are looked at.
func TestWatchHangs(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	write(t, a, "x\n")
	synctest.Test(t, func(t *testing.T) {
		f, err := Open(Options[words]{Paths: []string{a}, Parse: parse})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		never, ended := make(chan struct{}), make(chan struct{})
		go func() { Watch(ctx, hangs{never}, f); close(ended) }()
		write(t, a, "x\ny\n")
		time.Sleep(Interval)
		synctest.Wait()
		if len(f.Value()) != 2 {
			t.Errorf("value %v", f.Value())
		}
		cancel()
		<-ended
		close(never)
	})
}

type hangs struct{ never chan struct{} }

func (h hangs) Watch(context.Context) { <-h.never }

// Should Merge panic, what was in force stays.
func TestMergePanics(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	write(t, a, "x\n")
	f, err := Open(Options[words]{Paths: []string{a}, Parse: parse, Merge: func(ws ...words) words {
		if len(ws[0]) > 1 {
			panic("merge")
		}
		return ws[0]
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, a, "x\ny\n")
	f.check(true)
	if got := fmt.Sprint(f.Value()); got != "[x]" {
		t.Errorf("value %s", got)
	}
	if _, err := Open(Options[words]{Paths: []string{a}, Parse: parse, Merge: f.opts.Merge}); err == nil {
		t.Error("no error at start")
	}
}

// A parser that panics keeps what was read before.
func TestPanic(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	write(t, a, "x\n")
	bad := false
	f, err := Open(Options[words]{Paths: []string{a}, Parse: func(r io.Reader, name string) (words, []error) {
		if bad {
			panic("parse")
		}
		return parse(r, name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	bad = true
	f.check(true)
	if got := fmt.Sprint(f.Value()); got != "[x]" {
		t.Errorf("value %s", got)
	}
	if _, err := Open(Options[words]{Paths: []string{a}, Parse: f.opts.Parse}); err == nil {
		t.Error("no error at start")
	}
}
