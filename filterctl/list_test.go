package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A list grows at its end, by whole lines, and says nothing twice.
func TestAppendLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "filters.list")
	for _, tt := range []struct {
		line, at string
		added    bool
	}{
		{"permit client=192.0.2.1 # first", "1", true},
		{"permit client=192.0.2.1 # again", "1", false},
		{"reject client=192.0.2.1 # no", "2", true},
		{"permit client=192.0.2.1 # yes", "3", true},
		{"PERMIT CLIENT=192.0.2.1", "3", false},
		{"permit sender=example.com", "4", true},
		{"permit rcpt=example.com", "5", true},
	} {
		at, added, err := appendLine(file, tt.line)
		if at != file+":"+tt.at || added != tt.added || err != nil {
			t.Errorf("%s: %s %v %v, want line %s %v", tt.line, at, added, err, tt.at, tt.added)
		}
	}
	if err := os.WriteFile(file, []byte("# ours\npermit client=192.0.2.9"), 0o640); err != nil {
		t.Fatal(err)
	}
	if at, _, err := appendLine(file, "permit rcpt=a@"); at != file+":3" || err != nil {
		t.Error(at, err)
	}
	text, _ := os.ReadFile(file)
	if string(text) != "# ours\npermit client=192.0.2.9\npermit rcpt=a@\n" {
		t.Errorf("%q", text)
	}
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v %v: the filters' user must be able to read it", fi.Mode(), err)
	}
}

// Who adds at the same time loses nothing.
func TestAppendTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "filters.list")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, _, err := appendLine(file, "permit sender="+strings.Repeat("a", i+1)+".example"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	text, _ := os.ReadFile(file)
	if n := strings.Count(string(text), "\n"); n != 20 {
		t.Errorf("%d lines", n)
	}
}

func TestAllowErrors(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	for _, tt := range []struct{ args, want string }{
		{"allow -list " + list, "filterctl allow: want client=, sender= or rcpt= and who, or an address or network"},
		{"allow -list " + list + " example.com", "filterctl allow: \"example.com\": want one of client=example.com (machines of that name or address), sender=example.com, rcpt=example.com"},
		{"deny -list " + list + " sender=example.com", "filterctl deny: \"sender=example.com\": reject takes client= only"},
		{"deny -f /none -list " + list + " 192.0.2.1", "filterctl deny: stat /none: no such file or directory"},
	} {
		status, out, err := ctl(strings.Fields(tt.args)...)
		if status != 1 || out != "" || err != tt.want+"\n" {
			t.Errorf("%s: %d %q\n%s\nwant\n%s", tt.args, status, out, err, tt.want)
		}
	}
	if _, err := os.Stat(list); err == nil {
		t.Error("there is a list now")
	}
	status, out, _ := ctl("allow", "-f", "/none", "-list", list, "192.0.2.1", "their", "admin", "called")
	text, _ := os.ReadFile(list)
	if status != 0 || !strings.HasPrefix(string(text), "permit client=192.0.2.1 # 20") || !strings.HasSuffix(string(text), ": their admin called\n") || !strings.HasPrefix(out, list+":1: permit") {
		t.Errorf("%d %q\n%s", status, text, out)
	}
}
