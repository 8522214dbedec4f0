package senderscore

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// start runs a client with a state file until the function it returns is
// called.
func start(path string, z *zone) (c *Client, stop func()) {
	c, _ = client(Options{Resolver: z, Quota: 1000, StateFile: path})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		c.Run(ctx)
		close(done)
	}()
	synctest.Wait()
	return c, func() {
		cancel()
		<-done
	}
}

// ask asks n times for what is not known.
func ask(c *Client, z *zone, n int) {
	for range n {
		look(c, z.count())
	}
	time.Sleep(time.Second) // the file is written
	synctest.Wait()
}

func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		z := newZone(nil)
		want := 0
		for _, n := range []int{0, 3, 49, 50, 51, 120} {
			c, stop := start(path, z)
			if c.Used() != want {
				t.Fatalf("%d queries known at the start, want %d", c.Used(), want)
			}
			ask(c, z, n)
			if want += n; c.Used() != want {
				t.Errorf("%d queries after %d more, want %d", c.Used(), n, want)
			}
			stop()
		}

		// Killed: nothing is forgotten, and the reserve at most is lost.
		for _, n := range []int{0, 1, 49, 50, 51, 120} {
			c, stop := start(path, z)
			want = c.Used()
			ask(c, z, n)
			left, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			stop()
			if err := os.WriteFile(path, left, 0o644); err != nil {
				t.Fatal(err)
			}
			c, stop = start(path, z)
			if want += n; c.Used() < want || c.Used() > want+reserve {
				t.Errorf("%d queries known after a kill, want %d to %d", c.Used(), want, want+reserve)
			}
			stop()
		}
	})
	if files, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

// Two processes count into one file.
func TestShareFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		za, zb := newZone(nil), newZone(nil)
		a, stopA := start(path, za)
		b, stopB := start(path, zb)
		for range 10 {
			ask(a, za, 20)
			ask(b, zb, 30)
		}
		stopA()
		stopB()
		c, stop := start(path, za)
		defer stop()
		if c.Used() != 500 {
			t.Errorf("%d queries, want 500", c.Used())
		}
	})
}

func TestFileTrouble(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "state")
	synctest.Test(t, func(t *testing.T) {
		// There is no folder, nor is one made. Then there is.
		z := newZone(nil)
		c, stop := start(path, z)
		ask(c, z, 10)
		if c.Used() != 10 {
			t.Errorf("%d queries, want 10", c.Used())
		}
		if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * retryState)
		synctest.Wait()
		if days, err := readState(path); err != nil || days[today()] != 10+reserve {
			t.Errorf("not written again: %v, %v", days, err)
		}
		// It goes, or is overwritten: what is known stays.
		for _, spoil := range []func() error{
			func() error { return os.Remove(path) },
			func() error { return os.WriteFile(path, []byte("nonsense\n"), 0o644) },
			func() error { return os.WriteFile(path, nil, 0o644) },
		} {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			ask(c, z, 2*reserve)
		}
		stop()
		if days, err := readState(path); err != nil || days[today()] != 10+6*reserve {
			t.Errorf("at the end: %v, %v", days, err)
		}
	})
}

// What is old, or what a wrong clock has left, does not count.
func TestWindow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) { // on 2000-01-01
		text := "# a comment\n1999-12-01 1\n\n1999-12-02 2\n1999-12-31 4 # another\n2000-01-01 8\n2000-01-31 16\n2000-02-01 32\n1999-12-31 64\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, stop := start(path, newZone(nil))
		if c.Used() != 2+4+8+16+64 {
			t.Errorf("%d queries", c.Used())
		}
		time.Sleep(24 * time.Hour)
		if c.Used() != 4+8+16+32+64 {
			t.Errorf("%d queries a day later", c.Used())
		}
		stop()
		got, err := os.ReadFile(path)
		const want = "1999-12-01 1\n1999-12-02 2\n1999-12-31 68\n2000-01-01 8\n2000-01-31 16\n2000-02-01 32\n"
		if _, lines, _ := strings.Cut(string(got), "\n"); err != nil || lines != want {
			t.Errorf("%s%v", got, err)
		}
	})
}

// The days nearest to today are kept: a clock that is far ahead or behind for a
// while costs nothing, and what it has left goes.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) { // on 2000-01-01
		now := today()
		for _, right := range []day{now - 20000, now + 20000} {
			file := make(map[day]int)
			for i := range window + 1 {
				file[right-day(i)] = 1
			}
			if err := os.WriteFile(path, formatState(file), 0o644); err != nil {
				t.Fatal(err)
			}
			c, stop := start(path, newZone(nil))
			ask(c, newZone(nil), 1)
			stop()
			if n, _ := newCount(path, nil).used(right); n != window+1 {
				t.Errorf("%d queries known on %v after a day on %v, want %d", n, right, now, window+1)
			}
		}

		file := make(map[day]int)
		for i := range day(300) {
			file[now+10-i] = 1
			file[now-20000-i] = 1
		}
		if err := os.WriteFile(path, formatState(file), 0o644); err != nil {
			t.Fatal(err)
		}
		_, stop := start(path, newZone(nil))
		stop()
		days, err := readState(path)
		first := slices.Min(slices.Collect(maps.Keys(days)))
		if err != nil || len(days) != keep || first != now-keep+11 {
			t.Errorf("%d days, the first is %v, %v", len(days), first, err)
		}
	})
}

// Any number of processes may write at a time.
func TestShareMoment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			c := newCount(path, slog.New(slog.DiscardHandler))
			wg.Go(func() {
				for range 10 {
					c.take(today(), 0)
					if err := c.save(0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if days, err := readState(path); err != nil || days[today()] != 80 {
			t.Errorf("%v, %v, want 80", days, err)
		}
	})
}

// What a killed process has left is in the way for some seconds only.
func TestLeftOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("2000-01-01 7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, leave := range map[string]func() error{
		"file":  func() error { return os.WriteFile(path+".tmp", []byte("2000-01-0"), 0o644) },
		"link":  func() error { return os.Symlink(other, path+".tmp") },
		"stale": func() error { return os.Symlink("nosuch", path+".tmp") },
	} {
		if err := leave(); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			c := newCount(path, slog.New(slog.DiscardHandler))
			begin := time.Now()
			c.take(today(), 0)
			if err := c.save(0); err != nil || time.Since(begin) > 5*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(begin))
			}
		})
	}
	if days, err := readState(path); err != nil || days[10957] != 3 {
		t.Errorf("%v, %v", days, err)
	}
	if text, err := os.ReadFile(other); err != nil || string(text) != "2000-01-01 7\n" {
		t.Errorf("followed a link: %q, %v", text, err)
	}
}

// A file that root writes stays the filter's, whatever root's umask.
func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	if err := os.Chown(dir, 65534, 65533); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "state")
	for _, want := range []int{65534, 65532} { // of the folder, then of the file
		c := newCount(path, slog.New(slog.DiscardHandler))
		c.take(today(), 0)
		if err := c.save(0); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != want || fi.Mode() != 0o644 {
			t.Errorf("uid %d, mode %v, want %d, 0644", st.Uid, fi.Mode(), want)
		}
		if err := os.Chown(path, 65532, 65532); err != nil {
			t.Fatal(err)
		}
	}
}

// What is not a file is left alone, and nobody waits for it.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, dir, "/dev/null"} {
		c := newCount(path, slog.New(slog.DiscardHandler))
		c.take(today(), 0)
		if err := c.save(0); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestParseState(t *testing.T) {
	for text, bad := range map[string]string{
		"":                                "",
		"2026-11-22 5\n":                  "",
		"2026-11-22 -5\n":                 "line 1: not a date and a number",
		"2026-13-22 5\n":                  "line 1: not a date and a number",
		"2026-11-22\n":                    "line 1: not a date and a number",
		"2026-11-22 5\n2026-11-22 5 5":    "line 2: not a date and a number",
		"2026-11-22 99999999999999999999": "line 1: not a date and a number",
		strings.Repeat("x", 1<<17):        "bufio.Scanner: token too long",
	} {
		_, err := parseState(strings.NewReader(text))
		if err == nil && bad != "" || err != nil && err.Error() != bad {
			t.Errorf("%.40q: %v, want %s", text, err, bad)
		}
	}
}

// What is read and written again is the same.
func FuzzState(f *testing.F) {
	f.Add("# Queries\n2026-11-22 5\n2026-11-23 7\n")
	f.Add("2026-11-22 5\r\n\x00\n9999-12-31 1073741823\n0000-01-01 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		days, _ := parseState(strings.NewReader(text))
		for d, n := range days {
			if n < 0 {
				t.Fatalf("%v: %d", d, n)
			}
			if n >= 1<<30 { // of several lines
				return
			}
		}
		written := formatState(days)
		if len(written) > maxState {
			return
		}
		again, err := parseState(bytes.NewReader(written))
		if err != nil || !maps.Equal(days, again) {
			t.Errorf("%v, read again %v, %v", days, again, err)
		}
	})
}
