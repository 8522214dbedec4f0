package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"opensmtpd-filters/pkg/program"
)

// Whatever links the owner of the directory has put there, -check, run by root,
// touches no other file, and leaves none that the filter cannot write.
func TestRootState(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("needs root")
	}
	const user = 32123
	const bait = "2020-01-01 7\n"
	for _, name := range []string{"", ".tmp", "none", "directory"} {
		for kind, link := range map[string]func(string, string) error{"symlink": os.Symlink, "hard link": os.Link} {
			t.Run(fmt.Sprint(kind, " state", name), func(t *testing.T) {
				base, err := os.MkdirTemp("", "senderscore")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(base)
				os.Chmod(base, 0o755)
				dir := filepath.Join(base, "state")
				os.Mkdir(dir, 0o755)
				os.Mkdir(filepath.Join(base, "root"), 0o755)
				victim := filepath.Join(base, "root", "victim")
				os.WriteFile(victim, []byte(bait), 0o640)
				state := filepath.Join(dir, "state")
				switch name {
				case "directory":
					err = os.Symlink(filepath.Dir(victim), state)
					state += "/victim"
				case "none":
				default:
					err = link(victim, state+name)
				}
				if err == nil {
					err = os.Chown(dir, user, user)
				}
				if err != nil {
					t.Fatal(err)
				}
				var out, errs bytes.Buffer
				program.Run(spec, []string{"-stateFile", state, "-resolver", "127.0.0.1:1", "-check", "8.8.8.8"}, program.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
				if os.Geteuid() != 0 {
					t.Fatal("not root again")
				}
				text, _ := os.ReadFile(victim)
				fi, err := os.Lstat(victim)
				if err != nil {
					t.Fatal(err)
				}
				if st := fi.Sys().(*syscall.Stat_t); string(text) != bait || st.Uid != 0 || st.Gid != 0 || fi.Mode() != 0o640 {
					t.Errorf("the other file is %q, %d:%d %v", text, st.Uid, st.Gid, fi.Mode())
				}
				if fi, err := os.Lstat(state); err == nil && fi.Mode().IsRegular() && name != "directory" {
					if st := fi.Sys().(*syscall.Stat_t); st.Nlink == 1 && st.Uid != user {
						t.Errorf("the state file belongs to %d", st.Uid)
					}
				} else if name == "none" {
					t.Errorf("no state file: %s", &errs)
				}
			})
		}
	}
}

// Nothing that came from a file does anything to a terminal.
func TestTerminal(t *testing.T) {
	const nasty = "\x1b[2J\x7f\u009b31m\u202e\x9b\xff"
	dir := t.TempDir()
	list := filepath.Join(dir, "list")
	os.WriteFile(list, []byte("192.0.2.0/24\n"+nasty+"\n"), 0o600)
	for _, args := range [][]string{
		{"-allowlist", list, "-n"}, {"-allowlist", list, "-check", "192.0.2.1"}, {"-zone", nasty}, {"-blockReply", nasty},
		{"-" + nasty}, {nasty}, {"-check", nasty}, {"-stateFile", dir + "/" + nasty, "-resolver", "127.0.0.1:1", "-check", "8.8.8.8"},
	} {
		var out, errs bytes.Buffer
		program.Run(spec, args, program.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
		if text := out.String() + errs.String(); strings.ContainsAny(text, "\x1b\x7f\u009b\u202e") || strings.Contains(text, "\xff") {
			t.Errorf("%q prints %q", args, text)
		}
	}
}
