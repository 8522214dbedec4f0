package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/smtpdconf"
)

func TestRow(t *testing.T) {
	a := answer{text: []string{"-phase     rcpt-to", "-allowNames  -", "list  a=1*2  x", "warning  one", "warning  two words"}}
	for name, want := range map[string]string{"-phase": "rcpt-to", "-allowNames": "", "list": "a=1*2  x", "none": "", "-pha": ""} {
		if got := a.row(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if w := a.rows("warning"); len(w) != 2 || w[1] != "two words" {
		t.Error(w)
	}
}

// A command is given to sh as smtpd gives it, and words as they are.
func TestAsk(t *testing.T) {
	dir, err := os.MkdirTemp("", "filters") // t.TempDir is not for other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "filter-dnsbl")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho $# \"$3\"\npwd\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := &conf{folder: dir}
	for command, want := range map[string]string{
		"filter-dnsbl a":                   "3 $x; ' # \"",
		program + " 'a b'":                 "3 $x; ' # \"",
		"filter-dnsbl a # comment":         "3 $x; ' # \"",
		`filter-dnsbl "$HOME" 2>/dev/null`: "3 $x; ' # \"",
	} {
		a, err := c.ask(context.Background(), &smtpdconf.Proc{Command: command, User: "nobody"}, "explain", "$x; ' # \"")
		if err != nil || a.ok || len(a.text) != 2 || a.text[0] != want || a.text[1] != "/" {
			t.Errorf("%s: %+v, %v", command, a, err)
		}
	}
	if _, err := c.ask(context.Background(), &smtpdconf.Proc{Command: "filter-dnsbl " + strings.Repeat("x", smtpdconf.MaxCommand)}, "-n"); err == nil || !strings.Contains(err.Error(), "smtpd has room for 4095") {
		t.Error(err)
	}
}

// What is asked of two forms of sh is the same program.
func TestPath(t *testing.T) {
	c := &conf{folder: "/usr/libexec/opensmtpd"}
	for command, want := range map[string]string{
		"filter-x -a":           "/usr/libexec/opensmtpd/filter-x",
		"sub/filter-x":          "/usr/libexec/opensmtpd/sub/filter-x",
		"/opt/a\\ b/filter-x y": "/opt/a b/filter-x",
		`"filter-x" y`:          "/usr/libexec/opensmtpd/filter-x",
	} {
		if got := c.path(&smtpdconf.Proc{Command: command}); got != want {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
}

func TestFilterFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "smtpd")
	if err := os.WriteFile(file, []byte("\x00x/usr/lib/x/mail.maildir -j\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := filterFolder(file); got != "/usr/lib/x" {
		t.Error(got)
	}
}

// A filter has the group of its line, or that of its user, and no other.
func TestFilterUser(t *testing.T) {
	for _, tt := range []struct {
		user, group string
		uid, gid    uint32
		err         string
	}{
		{"root", "", 0, 0, ""},
		{"nobody", "root", 65534, 0, ""},
		{"nobody-here", "", 0, 0, "user nobody-here: there is no such user, and smtpd would end"},
		{"root", "nobody-here", 0, 0, "group nobody-here: there is no such group, and smtpd would end"},
	} {
		c, err := credential(&smtpdconf.Proc{User: tt.user, Group: tt.group})
		switch {
		case tt.err != "":
			if err == nil || err.Error() != tt.err {
				t.Errorf("%s, %s: %v, want %s", tt.user, tt.group, err, tt.err)
			}
		case err != nil:
			t.Error(err)
		case c.Uid != tt.uid || c.Gid != tt.gid || len(c.Groups) != 1 || c.Groups[0] != tt.gid:
			t.Errorf("%s, %s: %+v", tt.user, tt.group, c)
		}
	}
}
