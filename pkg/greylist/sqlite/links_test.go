package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"opensmtpd-filters/pkg/greylist"
)

// plain is a file with what it was when it was looked at.
type plain struct {
	path string
	text []byte
	info fs.FileInfo
}

func look(t *testing.T, path string) plain {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return plain{path, text, fi}
}

func (p plain) check(t *testing.T) {
	t.Helper()
	now := look(t, p.path)
	a, b := p.info.Sys().(*syscall.Stat_t), now.info.Sys().(*syscall.Stat_t)
	if !bytes.Equal(p.text, now.text) || p.info.Mode() != now.info.Mode() || a.Uid != b.Uid || a.Gid != b.Gid || !os.SameFile(p.info, now.info) {
		t.Errorf("%s was touched: %d bytes, %v, %d:%d", p.path, len(now.text), now.info.Mode(), b.Uid, b.Gid)
	}
}

// Whatever the names in the directory mean, no other file is written, and no
// pipe waited for.
func TestLinks(t *testing.T) {
	links := map[string]func(from, to string) error{
		"symlink":   func(from, to string) error { return os.Symlink(to, from) },
		"hard link": func(from, to string) error { return os.Link(to, from) },
		"dangling":  func(from, to string) error { return os.Symlink(to+".nothing", from) },
		"pipe":      func(from, to string) error { return syscall.Mkfifo(from, 0o600) },
		"directory": func(from, to string) error { return os.Mkdir(from, 0o755) },
	}
	for _, name := range []string{"", "-wal", "-shm", "-journal"} {
		for kind, link := range links {
			for _, existing := range []bool{false, true} {
				t.Run(fmt.Sprint("db", name, " ", kind, " existing ", existing), func(t *testing.T) {
					dir := t.TempDir()
					victim := filepath.Join(t.TempDir(), "victim")
					path := filepath.Join(dir, "greylist.db")
					if name != "" { // beside a good file
						s := Open(Options{Path: path})
						works(t, s)
						s.Close()
					}
					// A good database of ours that is another's is the best bait.
					other := Open(Options{Path: victim})
					works(t, other)
					other.Close()
					was := look(t, victim)
					if err := link(path+name, victim); err != nil {
						t.Fatal(err)
					}
					s := Open(Options{Path: path, Existing: existing})
					err := s.Update(t.Context(), []greylist.Key{key(greylist.KindAttempt, 99)}, func(recs []greylist.Record) { recs[0].State = greylist.Grey })
					if err == nil || !strings.Contains(err.Error(), path) {
						t.Error("the error is", err)
					}
					for range 3 {
						s.Sweep(t.Context(), func(greylist.Key, greylist.Record) bool { return true })
					}
					s.Close()
					was.check(t)
					if _, err := os.Lstat(victim + ".nothing"); err == nil {
						t.Error("a link was followed")
					}
					if names, _ := filepath.Glob(victim + "-*"); names != nil {
						t.Error(names)
					}
				})
			}
		}
	}
}

// A database of another program is left as it is, and so is what it has beside it.
func TestForeign(t *testing.T) {
	for name, text := range map[string]string{
		"tables":         "CREATE TABLE contacts (name TEXT); INSERT INTO contacts VALUES ('x')",
		"table rec":      "CREATE TABLE rec (title TEXT)",
		"application id": "PRAGMA application_id = 252006675",
		"version":        "CREATE TABLE t (x); PRAGMA user_version = 1",
		"journal":        "PRAGMA journal_mode = delete; CREATE TABLE t (x)",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "contacts.db")
			db, err := sql.Open("sqlite", path)
			if err == nil {
				_, err = db.Exec(text)
				db.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			was := look(t, path)
			for _, existing := range []bool{true, false} {
				s := Open(Options{Path: path, Existing: existing})
				if err := put(s, 1); err == nil || !strings.Contains(err.Error(), "another program") {
					t.Error("the error is", err)
				}
				s.Close()
				was.check(t)
			}
			if names, _ := filepath.Glob(path + "?*"); names != nil {
				t.Error(names)
			}
		})
	}
}

// One that was made by a version that did not say whose it is, is ours.
func TestClaimed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := Open(Options{Path: path})
	works(t, s)
	s.Close()
	exec(t, path, "PRAGMA application_id = 0")
	s, _ = open(t, path)
	if err := put(s, 7); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s); n != 2 {
		t.Errorf("%d records", n)
	}
	var id int64
	if err := s.reader.Load().db.QueryRow("PRAGMA application_id").Scan(&id); err != nil || id != applicationID {
		t.Errorf("application id %#x, %v", id, err)
	}
}

// Names that are used to make a file, or to set one aside, may be links too.
func TestOtherNames(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	os.WriteFile(victim, []byte("precious"), 0o640)
	was := look(t, victim)
	path := filepath.Join(dir, "greylist.db")
	for _, name := range []string{
		fmt.Sprint(path, newSuffix, os.Getpid()), fmt.Sprint(path, newSuffix, os.Getpid(), "-wal"),
		fmt.Sprint(path, newSuffix, os.Getpid(), "-shm"), path + newSuffix + "x", path + ".corrupt-1", path + ".key.tmp",
	} {
		if err := os.Symlink(victim, name); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := open(t, path)
	works(t, s)
	s.Close()
	os.WriteFile(path, bytes.Repeat([]byte("garbage "), 1000), 0o600)
	s, _ = open(t, path)
	works(t, s)
	was.check(t)
}

// Two processes find no file at the same time, and one of them makes it and works
// with it before the other goes on.
func TestFirstStarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	var first *Store
	was := missing
	defer func() { missing = was }()
	missing = func(string) {
		missing = was
		first, _ = open(t, path)
		for n := range 100 {
			eventually(t, "first", func() bool { return put(first, n) == nil })
		}
	}
	second, log := open(t, path)
	for n := range 100 {
		eventually(t, "second", func() bool { return put(second, 1000+n) == nil })
		if err := put(first, 2000+n); err != nil {
			t.Fatalf("the first one fails: %v", err)
		}
	}
	for name, s := range map[string]*Store{"first": first, "second": second} {
		if n := count(t, s); n != 300 {
			t.Errorf("the %s one sees %d records", name, n)
		}
	}
	if log.String() != "" {
		t.Error(log)
	}
	if names, _ := filepath.Glob(path + newSuffix + "*"); names != nil {
		t.Errorf("left: %v", names)
	}
}

// A process that was killed when it had just given the file its name has left it
// another one.
func TestKilledWhileMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := Open(Options{Path: path})
	works(t, s)
	s.Close()
	if err := os.Link(path, path+newSuffix+"4711"); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, path)
	works(t, s)
	if _, err := os.Lstat(path + newSuffix + "4711"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
