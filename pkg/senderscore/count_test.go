package senderscore

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
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
	path := filepath.Join(t.TempDir(), "new", "state")
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
		// The folder cannot be made, then it can.
		if err := os.WriteFile(filepath.Join(dir, "sub"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		z := newZone(nil)
		c, stop := start(path, z)
		ask(c, z, 10)
		if c.Used() != 10 {
			t.Errorf("%d queries, want 10", c.Used())
		}
		if err := os.Remove(filepath.Join(dir, "sub")); err != nil {
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
		} {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			ask(c, z, 2*reserve)
		}
		stop()
		if days, err := readState(path); err != nil || days[today()] != 10+4*reserve {
			t.Errorf("at the end: %v, %v", days, err)
		}
	})
}

// What is old goes, what a wrong clock has left does not count.
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
		const want = "1999-12-31 68\n2000-01-01 8\n2000-01-31 16\n2000-02-01 32\n"
		if _, lines, _ := strings.Cut(string(got), "\n"); err != nil || lines != want {
			t.Errorf("%s%v", got, err)
		}
	})
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
