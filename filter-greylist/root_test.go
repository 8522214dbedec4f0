package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/sqlite"
	"opensmtpd-filters/pkg/program"
)

const filterUser = 32123 // who owns the directory

// run runs the program.
func run(args []string, in io.Reader, out, errs io.Writer) int {
	return program.Run(spec, args, program.Streams{In: in, Out: out, Err: errs})
}

// openDir makes a directory into which every user may go.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "greylist")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// commands are those of the operator that touch the database.
var commands = [][]string{
	{"list"}, {"list", "grey", "-json"}, {"explain", "192.0.2.1", "a@example.org", "b@example.net"},
	{"allow", "192.0.2.1"}, {"delete", "192.0.2.1"}, {"stats"}, {"export"}, {"import"},
}

// A fileState is what a file must still be.
type fileState struct {
	text     string
	uid, gid uint32
	mode     os.FileMode
}

func stateOf(t *testing.T, path string) fileState {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fileState{string(text), st.Uid, st.Gid, fi.Mode()}
}

// makeDatabase makes one with a record, and its key.
func makeDatabase(t *testing.T, path string) {
	t.Helper()
	s := sqlite.Open(sqlite.Options{Path: path})
	g := greylist.New(greylist.Options{Store: s, Clear: true, Secret: (&greylist.KeyFile{Path: path + ".key", Create: true}).Secret})
	for range 100 {
		if _, err := g.Allow(t.Context(), time.Now(), "192.0.2.7"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whatever links the owner of the directory has put there, a command that root
// runs touches no other file, and leaves no file in the directory that its owner
// cannot write.
func TestRootCommands(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("needs root")
	}
	give := func(path string) {
		if err := os.Lchown(path, filterUser, filterUser); err != nil {
			t.Fatal(err)
		}
	}
	type trick func(t *testing.T, dir, victim string) (db string)
	put := func(name string, link func(from, to string) error) trick {
		return func(t *testing.T, dir, victim string) string {
			db := filepath.Join(dir, "greylist.db")
			if name != "" {
				makeDatabase(t, db)
			}
			if name == ".key" {
				os.Remove(db + name)
			}
			if err := link(victim, db+name); err != nil {
				t.Fatal(err)
			}
			return db
		}
	}
	tricks := map[string]trick{
		"directory": func(t *testing.T, dir, victim string) string {
			if err := os.Symlink(filepath.Dir(victim), filepath.Join(dir, "sub")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "sub", filepath.Base(victim))
		},
		"no file in a directory": func(t *testing.T, dir, victim string) string {
			if err := os.Symlink(filepath.Dir(victim), filepath.Join(dir, "sub")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "sub", "new.db")
		},
	}
	for _, name := range []string{"", "-wal", "-shm", "-journal", ".key", ".tmp", ".new-1", ".corrupt-1"} {
		tricks["symlink "+name] = put(name, os.Symlink)
		tricks["hard link "+name] = put(name, os.Link)
	}
	for name, trick := range tricks {
		t.Run(name, func(t *testing.T) {
			base := openDir(t)
			secret := filepath.Join(base, "root")
			dir := filepath.Join(base, "db")
			os.Mkdir(secret, 0o755)
			os.Mkdir(dir, 0o755)
			victim := filepath.Join(secret, "victim.db")
			makeDatabase(t, victim) // the best bait
			os.Chmod(victim, 0o644)
			was := stateOf(t, victim)
			db := trick(t, dir, victim)
			give(dir)
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink == 1 {
					give(filepath.Join(dir, e.Name()))
				}
			}
			for _, c := range commands {
				var out, errs bytes.Buffer
				run(append([]string{"-store", "sqlite:" + db, "-spf", "off", "-resolver", "127.0.0.1:1"}, c...), strings.NewReader(""), &out, &errs)
				if os.Geteuid() != 0 {
					t.Fatal("not root again")
				}
				if now := stateOf(t, victim); now != was {
					t.Fatalf("%v: the other file is %d bytes, %d:%d %v now", c, len(now.text), now.uid, now.gid, now.mode)
				}
			}
			names, _ := filepath.Glob(filepath.Join(secret, "*"))
			if len(names) != 2 { // and its key
				t.Error(names)
			}
			entries, _ = os.ReadDir(dir)
			for _, e := range entries {
				info, err := e.Info()
				if err != nil {
					t.Fatal(err)
				}
				if st := info.Sys().(*syscall.Stat_t); info.Mode().IsRegular() && st.Nlink == 1 && st.Uid != filterUser {
					t.Errorf("%s belongs to %d", e.Name(), st.Uid)
				}
			}
		})
	}
}

// Nor does one that is put there at any moment.
func TestRootRace(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("needs root")
	}
	base := openDir(t)
	dir, secret := filepath.Join(base, "db"), filepath.Join(base, "root")
	os.Mkdir(dir, 0o755)
	os.Mkdir(secret, 0o755)
	victim, db := filepath.Join(secret, "victim.db"), filepath.Join(dir, "greylist.db")
	makeDatabase(t, victim)
	os.Chmod(victim, 0o644)
	was := stateOf(t, victim)
	makeDatabase(t, db)
	good, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, db, db + ".key"} {
		if err := os.Chown(path, filterUser, filterUser); err != nil {
			t.Fatal(err)
		}
	}
	stop, ended := make(chan bool), make(chan bool)
	go func() { // with the rights of the owner, or more
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			next := filepath.Join(dir, "next")
			os.Remove(next)
			switch n % 3 {
			case 0:
				os.Symlink(victim, next)
			case 1:
				os.Link(victim, next)
			case 2:
				os.WriteFile(next, good, 0o600)
				os.Chown(next, filterUser, filterUser)
			}
			os.Rename(next, db+[]string{"", "-wal", "-shm", "-journal"}[n/3%4])
		}
	}()
	for range 5 {
		for _, c := range [][]string{{"list"}, {"allow", "192.0.2.1"}, {"delete", "192.0.2.1"}} {
			var out, errs bytes.Buffer
			run(append([]string{"-store", "sqlite:" + db, "-spf", "off", "-resolver", "127.0.0.1:1"}, c...), strings.NewReader(""), &out, &errs)
		}
	}
	close(stop)
	<-ended
	if now := stateOf(t, victim); now != was {
		t.Errorf("the other file is %d bytes, %d:%d %v now", len(now.text), now.uid, now.gid, now.mode)
	}
}

// In a directory without tricks the commands work, and read what only root can.
func TestRootImport(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("needs root")
	}
	base := openDir(t)
	dir := filepath.Join(base, "db")
	os.Mkdir(dir, 0o700)
	db := filepath.Join(dir, "greylist.db")
	makeDatabase(t, db)
	for _, name := range []string{"", "/greylist.db", "/greylist.db.key"} {
		if err := os.Chown(dir+name, filterUser, filterUser); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	if run([]string{"-store", "sqlite:" + db, "export"}, nil, &out, &errs) != 0 || out.Len() == 0 {
		t.Fatalf("%s%s", &out, &errs)
	}
	file := filepath.Join(base, "backup")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if run([]string{"-store", "sqlite:" + db, "import", file, file}, nil, &out, &errs) != 0 || strings.Count(out.String(), "stored") != 2 {
		t.Errorf("%s%s", &out, &errs)
	}
}

// Nothing that came from outside does anything to a terminal.
func TestTerminal(t *testing.T) {
	const nasty = "\x1b[2J\x07\x7f\u009b31m\u202e\x9b\xff"
	dir := t.TempDir()
	db := filepath.Join(dir, "greylist.db")
	makeDatabase(t, db)
	list := filepath.Join(dir, "list")
	os.WriteFile(list, []byte("192.0.2.0/24 # fine\n"+nasty+" is no address\n"), 0o600)
	imported := filepath.Join(dir, "import")
	os.WriteFile(imported, []byte(nasty+"\n{\"key\":\""+nasty+"\"}\n"), 0o600)
	base := []string{"-store", "sqlite:" + db, "-storeAddresses", "-resolver", "127.0.0.1:1", "-timeout", "1s"}
	for _, args := range [][]string{
		{"explain", "192.0.2.1", "a" + nasty + "@example.org", "b@" + nasty + "example.net", nasty},
		{"explain", nasty, "a", "b@c"},
		{"explain", "192.0.2.1", "a", nasty},
		{"allow", nasty},
		{"delete", nasty},
		{"list"}, {"list", "-json"}, {"stats"}, {"stats", "-json"}, {"export"},
		{"list", nasty}, {nasty}, {"list", "-" + nasty},
		{"import", imported}, {"import", dir + "/" + nasty},
	} {
		for _, more := range [][]string{nil, {"-allowClients", list}, {"-allowClients", list, "-n"}, {"-store", "sqlite:" + dir + "/" + nasty}, {"-" + nasty}, {"-passTime", nasty}} {
			var out, errs bytes.Buffer
			all := append(append(base[:len(base):len(base)], more...), args...)
			run(all, strings.NewReader(""), &out, &errs)
			for _, text := range []string{out.String(), errs.String()} {
				for _, bad := range []string{"\x1b", "\x07", "\x7f", "\u009b", "\u202e", "\xff"} {
					if strings.Contains(text, bad) {
						t.Errorf("%q prints %q", all, text)
						break
					}
				}
			}
		}
	}
}
