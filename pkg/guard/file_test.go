package guard

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// tricks are what may be at a path instead of a file. Each returns the file that
// must stay as it is, if there is one.
var tricks = map[string]func(t *testing.T, path string) (victim string){
	"symlink": func(t *testing.T, path string) string {
		v := victimAt(t, path)
		must(t, os.Symlink(v, path))
		return v
	},
	"dangling symlink": func(t *testing.T, path string) string {
		must(t, os.Symlink(path+".nothing", path))
		return ""
	},
	"hard link": func(t *testing.T, path string) string {
		v := victimAt(t, path)
		must(t, os.Link(v, path))
		return v
	},
	"pipe":      func(t *testing.T, path string) string { must(t, syscall.Mkfifo(path, 0o666)); return "" },
	"directory": func(t *testing.T, path string) string { must(t, os.Mkdir(path, 0o755)); return "" },
	"device": func(t *testing.T, path string) string {
		must(t, os.Symlink(os.DevNull, path))
		return ""
	},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func victimAt(t *testing.T, path string) string {
	t.Helper()
	v := path + ".victim"
	must(t, os.WriteFile(v, []byte("precious"), 0o640))
	return v
}

func untouched(t *testing.T, victim string) {
	t.Helper()
	if victim == "" {
		return
	}
	text, err := os.ReadFile(victim)
	if err != nil || string(text) != "precious" {
		t.Errorf("the other file is %q, %v", text, err)
	}
	fi, err := os.Stat(victim)
	must(t, err)
	if uid, gid := owner(fi); uid != os.Getuid() || gid != os.Getgid() || fi.Mode() != 0o640 {
		t.Errorf("the other file has mode %v, owner %d:%d", fi.Mode(), uid, gid)
	}
}

func TestOpenTricks(t *testing.T) {
	for name, trick := range tricks {
		for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_CREATE | os.O_EXCL} {
			path := filepath.Join(t.TempDir(), "file")
			victim := trick(t, path)
			f, err := Open(path, flag, 0o600)
			if err == nil {
				f.Close()
				t.Errorf("%s, flags %#x: opened", name, flag)
			} else if !strings.Contains(err.Error(), path) {
				t.Errorf("%s, flags %#x: %v", name, flag, err)
			}
			if Check(path) == nil {
				t.Errorf("%s: checked", name)
			}
			untouched(t, victim)
			if _, err := os.Stat(path + ".nothing"); err == nil {
				t.Errorf("%s, flags %#x: a link was followed", name, flag)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	must(t, Check(path))
	if _, err := Open(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
		t.Error("opened with O_TRUNC")
	}
	f, err := Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	f.Close()
	must(t, Check(path))
}

// While others replace a file it opens, one or the other.
func TestOpenReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, Replace(path, 0o600, []byte("0")))
	stop, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				if err := Replace(path, 0o600, []byte("1")); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}()
	for range 500 {
		f, err := Open(path, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	close(stop)
	<-ended
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	defer syscall.Umask(syscall.Umask(0o077))
	for _, text := range []string{"one", "two"} {
		must(t, Replace(path, 0o644, []byte(text)))
		got, err := os.ReadFile(path)
		must(t, err)
		fi, err := os.Stat(path)
		must(t, err)
		if string(got) != text || fi.Mode() != 0o644 {
			t.Errorf("%q, mode %v", got, fi.Mode())
		}
	}
	r, err := BeginReplace(path, 0o644)
	must(t, err)
	r.WriteString("three")
	r.Drop()
	if got, _ := os.ReadFile(path); string(got) != "two" {
		t.Errorf("%q after a replacement that was dropped", got)
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestReplaceTricks(t *testing.T) {
	for name, trick := range tricks {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			victim := trick(t, path)
			err := Replace(path, 0o644, []byte("new"))
			if (err == nil) != (name == "hard link") { // there the name is taken from the other one
				t.Error(err)
			}
			untouched(t, victim)
		})
		t.Run("temporary "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "file")
				victim := trick(t, path+".tmp")
				must(t, Replace(path, 0o644, []byte("new"))) // what is left there is removed in time
				if got, err := os.ReadFile(path); string(got) != "new" {
					t.Errorf("%q, %v", got, err)
				}
				if err := Check(path); err != nil {
					t.Error(err)
				}
				untouched(t, victim)
			})
		})
	}
}

// Two that replace a file wait for each other, and what a killed one has left is
// removed in time.
func TestReplaceTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		r, err := BeginReplace(path, 0o644)
		must(t, err)
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			if err := r.Commit(); err != nil {
				t.Error(err)
			}
		}()
		must(t, Replace(path, 0o644, []byte("second")))
		if d := time.Since(began); d < time.Second || d > 2*time.Second {
			t.Errorf("waited %v for the other", d)
		}
		if got, _ := os.ReadFile(path); string(got) != "second" {
			t.Errorf("%q", got)
		}
		if _, err := BeginReplace(path, 0o644); err != nil { // and is killed
			t.Fatal(err)
		}
		began = time.Now()
		must(t, Replace(path, 0o644, []byte("third")))
		if d := time.Since(began); d < replaceWait || d > 2*replaceWait {
			t.Errorf("waited %v for one that was killed", d)
		}
		if _, err := BeginReplace(path, 0o644); err != nil { // and was killed long ago
			t.Fatal(err)
		}
		began = time.Now()
		must(t, os.Chtimes(path+".tmp", began, began.Add(-time.Minute)))
		must(t, Replace(path, 0o644, []byte("fourth")))
		if d := time.Since(began); d != 0 {
			t.Errorf("waited %v for one that was killed long ago", d)
		}
	})
}

const somebody = 32123 // a user that is not in any list

func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// What root replaces keeps its owner, and a new file gets that of the directory.
func TestReplaceOwner(t *testing.T) {
	asRoot(t)
	for old, want := range map[int]int{-1: somebody, somebody + 1: somebody + 1, 0: 0} {
		dir := t.TempDir()
		must(t, os.Chown(dir, somebody, somebody))
		path := filepath.Join(dir, "file")
		if old >= 0 {
			must(t, os.WriteFile(path, nil, 0o600))
			must(t, os.Chown(path, old, old))
		}
		must(t, Replace(path, 0o600, []byte("new")))
		fi, err := os.Lstat(path)
		must(t, err)
		if uid, gid := owner(fi); uid != want || gid != want {
			t.Errorf("replacing a file of %d in a directory of %d: owner %d:%d", old, somebody, uid, gid)
		}
	}
}

func TestBecomeOwner(t *testing.T) {
	asRoot(t)
	type setup func(t *testing.T, dir string) (path string)
	give := func(t *testing.T, path string) string {
		t.Helper()
		must(t, os.Lchown(path, somebody, somebody))
		return path
	}
	sub := func(t *testing.T, dir string, mode fs.FileMode) string {
		t.Helper()
		d := filepath.Join(dir, "sub")
		must(t, os.Mkdir(d, 0o755))
		must(t, os.Chmod(d, mode))
		return d
	}
	file := func(t *testing.T, path string) string {
		t.Helper()
		must(t, os.WriteFile(path, nil, 0o600))
		return path
	}
	for name, c := range map[string]struct {
		setup setup
		want  int // -1: an error
	}{
		"root's":                {func(t *testing.T, dir string) string { return file(t, dir+"/db") }, 0},
		"none there":            {func(t *testing.T, dir string) string { return dir + "/db" }, 0},
		"another's":             {func(t *testing.T, dir string) string { return file(t, give(t, sub(t, dir, 0o755))+"/db") }, somebody},
		"another's, none there": {func(t *testing.T, dir string) string { return give(t, sub(t, dir, 0o755)) + "/db" }, somebody},
		"below another's": {func(t *testing.T, dir string) string {
			d := give(t, sub(t, dir, 0o755)) + "/below"
			must(t, os.Mkdir(d, 0o755))
			return file(t, d+"/db")
		}, somebody},
		"link of root's to another's": {func(t *testing.T, dir string) string {
			give(t, sub(t, dir, 0o755))
			must(t, os.Symlink("../"+filepath.Base(dir)+"/sub", dir+"/link"))
			return file(t, dir+"/link/db")
		}, somebody},
		"link of another's to root's": {func(t *testing.T, dir string) string {
			must(t, os.Symlink(dir, give(t, sub(t, dir, 0o755))+"/link"))
			return file(t, dir+"/sub/link/db")
		}, somebody},
		"link of another's in a directory for all": {func(t *testing.T, dir string) string {
			must(t, os.Symlink(dir, sub(t, dir, 0o777|fs.ModeSticky)+"/link"))
			give(t, dir+"/sub/link")
			return file(t, dir+"/sub/link/db")
		}, somebody},
		"file of another's in a directory for all": {func(t *testing.T, dir string) string {
			return give(t, file(t, sub(t, dir, 0o777|fs.ModeSticky)+"/db"))
		}, somebody},
		"hard link in a directory for all": {func(t *testing.T, dir string) string {
			d := sub(t, dir, 0o777|fs.ModeSticky)
			must(t, os.Link(file(t, dir+"/other"), d+"/db"))
			return d + "/db"
		}, -1},
		"directory for a group": {func(t *testing.T, dir string) string { return file(t, sub(t, dir, 0o770)+"/db") }, -1},
		"file of another's in a directory for a group": {func(t *testing.T, dir string) string {
			return give(t, file(t, sub(t, dir, 0o770)+"/db"))
		}, somebody},
		"no such directory": {func(t *testing.T, dir string) string { return dir + "/no/db" }, 0},
		"links in a circle": {func(t *testing.T, dir string) string {
			must(t, os.Symlink("link", dir+"/link"))
			return dir + "/link/db"
		}, -1},
		"a file on the way": {func(t *testing.T, dir string) string { return file(t, dir+"/f") + "/db" }, 0},
		"two dots after a link": {func(t *testing.T, dir string) string {
			d := give(t, sub(t, dir, 0o755)) + "/below"
			must(t, os.Mkdir(d, 0o755))
			must(t, os.Symlink(d, dir+"/link"))
			return file(t, dir+"/link/../db")
		}, somebody},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.setup(t, t.TempDir())
			restore, err := BecomeOwner(path)
			got, gotGroup := os.Geteuid(), os.Getegid()
			groups, _ := os.Getgroups()
			restore()
			if os.Geteuid() != 0 || os.Getegid() != 0 {
				t.Fatal("not root again")
			}
			if (err != nil) != (c.want < 0) || got != max(c.want, 0) {
				t.Errorf("user %d, %v", got, err)
			}
			if got != 0 && (gotGroup != somebody || len(groups) != 1 || groups[0] != somebody) {
				t.Errorf("group %d, groups %v", gotGroup, groups)
			}
		})
	}
}
