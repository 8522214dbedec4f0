package cli

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPhase(t *testing.T) {
	for _, tt := range []struct {
		of       []string
		in, want string
	}{
		{nil, "connect", "connect"},
		{nil, "ehlo", "helo"},
		{nil, "data", "data"},
		{nil, "later", "not one of connect, helo, mail-from, rcpt-to, data"},
		{nil, "", "not one of connect, helo, mail-from, rcpt-to, data"},
		{nil, "Connect", "not one of connect, helo, mail-from, rcpt-to, data"},
		{[]string{"data", "rcpt-to"}, "ehlo", "not one of data, rcpt-to"},
		{[]string{"helo", "ehlo", "quit"}, "ehlo", "ehlo"},
	} {
		p := &Phase{Value: "before", Of: tt.of}
		var got string
		if err := p.Set(tt.in); err != nil {
			if got = err.Error(); p.Value != "before" {
				t.Errorf("%q: is %q after an error", tt.in, p.Value)
			}
		} else {
			got = p.String()
		}
		if got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "[192.0.2.1]": "192.0.2.1", "192.0.2.1:25": "192.0.2.1", "[192.0.2.1]:25": "192.0.2.1",
		"2001:db8::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:25": "2001:db8::1",
		"[IPv6:2001:db8::1]": "2001:db8::1", "IPv6:2001:db8::1": "2001:db8::1", "[ipv6:2001:db8::1]:4711": "2001:db8::1",
		"::ffff:192.0.2.1": "192.0.2.1", "[::ffff:192.0.2.1]:25": "192.0.2.1", "fe80::1%em0": "fe80::1", "[fe80::1%em0]:25": "fe80::1",
		"": "", "nowhere": "", "192.0.2": "", "192.0.2.1:": "", "192.0.2.1:smtp": "", "192.0.2.1:123456": "", "192.0.2.0/24": "",
		"[192.0.2.1": "", "192.0.2.1]": "", "[192.0.2.1]x": "", "[192.0.2.1]:": "", "[]": "", "[]:25": "", "2001:db8::1]:25": "", ":25": "", "mx.example.com:25": "",
	} {
		a, err := ParseAddr(in)
		if (err == nil) != (want != "") || err == nil && a.String() != want {
			t.Errorf("%q: got %v, %v, want %q", in, a, err, want)
		}
	}
	var a Addr
	if a.String() != "" || a.Set("[192.0.2.1]:25") != nil || a.Set("x") == nil || a.String() != "192.0.2.1" {
		t.Errorf("flag %v", a)
	}
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"[192.0.2.1]:25", "IPv6:2001:db8::1", "192.0.2.1:25"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddr(s)
		if err != nil {
			return
		}
		if a.Zone() != "" || a.Is4In6() {
			t.Errorf("%q is %v", s, a)
		}
		for _, form := range []string{a.String(), "[" + a.String() + "]", "[" + a.String() + "]:25"} {
			if b, err := ParseAddr(form); err != nil || b != a {
				t.Errorf("%q: %v, %v", form, b, err)
			}
		}
	})
}

func TestAction(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"proceed", "proceed"}, {"junk", "junk"}, {"defer", "defer"}, {"refuse", "refuse"}, {"disconnect", "disconnect"},
		{"reject", "refuse"}, {"tempfail", "defer"}, {"slow:3", "slow:3s"}, {"slow:1m", "slow:1m"}, {"slow:30s", "slow:30s"},
		{"slow:2m", "want slow:TIME with at most 1m"}, {"slow:0", "want slow:TIME with at most 1m"},
		{"slow", "not a time such as 5s, 1h30m, 30d or 300 (seconds)"}, {"junk:3s", "junk takes no time"}, {"reject:", "refuse takes no time"},
		{"block", "not one of proceed, junk, defer, refuse, disconnect, slow:TIME"}, {"", "not one of proceed, junk, defer, refuse, disconnect, slow:TIME"},
	} {
		if zero := new(Action); zero.String() != Proceed || zero.Refuses() {
			t.Errorf("zero is %s", zero)
		}
		a := &Action{MaxDelay: time.Minute}
		got := ""
		if err := a.Set(tt.in); err != nil {
			got = err.Error()
		} else if got = a.String(); (&Action{MaxDelay: time.Minute}).Set(got) != nil {
			t.Errorf("%s is not read again", got)
		}
		if got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.in, got, tt.want)
		}
		if refuses := strings.Contains("defer refuse disconnect", a.Name) && a.Name != ""; a.Refuses() != refuses {
			t.Errorf("%q refuses: %v", tt.in, a.Refuses())
		}
	}
	if err := new(Action).Set("slow:3s"); err == nil || err.Error() != "not one of proceed, junk, defer, refuse, disconnect" {
		t.Errorf("slow without a limit: %v", err)
	}
}

func TestParsed(t *testing.T) {
	p := NewParsed("192.0.2.1", ParseAddr)
	if err := p.Set("nowhere"); err == nil || p.Value != netip.MustParseAddr("192.0.2.1") || p.String() != "192.0.2.1" {
		t.Errorf("%v, %v", p, err)
	}
	if err := p.Set("[192.0.2.2]"); err != nil || p.Value != netip.MustParseAddr("192.0.2.2") || p.String() != "[192.0.2.2]" {
		t.Errorf("%v, %v", p, err)
	}
	if NewParsed("", ParseAddr).Value.IsValid() {
		t.Error("no default is a value")
	}
	// Package flag makes a zero value of each type, to know which defaults to show.
	f, _ := newFlags()
	f.Var(p, "addr", "`ADDRESS`")
	f.Var(new(Action), "action", "`ACTION`")
	f.Var(&Phase{Value: "data"}, "phase", "`PHASE`")
	f.VisitAll(func(fl *flag.Flag) { _ = fl.Value.String() })
	f.Usage(new(strings.Builder))
	f.PrintDefaults()
}

func TestBadFlag(t *testing.T) {
	for value, want := range map[string]string{
		"later": "-phase later: wrong", "a b": `-phase "a b": wrong`, "": `-phase "": wrong`, "\x1b": `-phase "\x1b": wrong`,
	} {
		if got := BadFlag("phase", value, errors.New("wrong")).Error(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Who may read and write, for accounts other than our own.
func TestAccess(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	file := filepath.Join(dir, "state")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	uid, gid := uint64(os.Getuid()), uint64(os.Getgid())
	for _, tt := range []struct {
		dir, file os.FileMode
		who       account
		rights    os.FileMode
		path      string
		want      string
	}{
		{0o755, 0o644, account{"x", uid + 1, nil}, 4, file, ""},
		{0o755, 0o640, account{"x", uid + 1, nil}, 4, file, "FILE: x may not read it: chgrp x FILE && chmod g+r FILE"},
		{0o755, 0o640, account{"x", uid + 1, map[uint64]bool{gid: true}}, 4, file, ""},
		{0o755, 0o604, account{"x", uid + 1, map[uint64]bool{gid: true}}, 4, file, "FILE: x may not read it: chgrp x FILE && chmod g+r FILE"}, // the group's bits count
		{0o755, 0o644, account{"x", uid + 1, nil}, 6, file, "FILE: x may not write there: chown x FILE"},
		{0o700, 0o666, account{"x", uid + 1, nil}, 6, file, "FILE: x may not enter DIR: chmod o+x DIR"},
		{0o755, 0o600, account{"x", uid + 1, nil}, 3, dir, "DIR: x may not write there: chown x DIR"},
		{0o777, 0o600, account{"x", uid + 1, nil}, 3, dir, ""},
		{0o755, 0o600, account{"x", uid + 1, nil}, 6, filepath.Join(dir, "none"), ""},
	} {
		os.Chmod(dir, tt.dir)
		os.Chmod(file, tt.file)
		got := ""
		if err := tt.who.check(tt.path, tt.rights); err != nil {
			got = strings.ReplaceAll(strings.ReplaceAll(err.Error(), file, "FILE"), dir, "DIR")
		}
		if got != tt.want {
			t.Errorf("%o %o: got %q, want %q", tt.dir, tt.file, got, tt.want)
		}
	}
	os.Chmod(dir, 0o700)
	os.Chmod(file, 0o600)
	who, ok := filterUser()
	none := filepath.Join(dir, "none", "state")
	want := fmt.Sprintf("%s is missing: install -d -m 700 -o %s %[1]s", filepath.Dir(none), who.name)
	if err := CheckWritable(none); ok && (err == nil || err.Error() != want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if os.Geteuid() != 0 {
		for _, err := range []error{CheckReadable(file), CheckWritable(file), CheckReadable(none)} {
			if err != nil {
				t.Error(err)
			}
		}
	} else if ok {
		for _, err := range []error{CheckReadable(file), CheckWritable(file)} {
			if err == nil || !strings.Contains(err.Error(), who.name) {
				t.Errorf("root's own file: %v", err)
			}
		}
	}
}
