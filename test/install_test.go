//go:build linux

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Make install only copies, and neither it nor make uninstall touches a file of a
// package, unless it is forced to.
func TestInstall(t *testing.T) {
	noteSources(t)
	for _, tool := range []string{"make", "dpkg-query"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	theirs := filepath.Join(dir, "libexec/filter-senderscore")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What dpkg knows of the system.
	write(dir+"/dpkg/status", "Package: opensmtpd-filter-senderscore\nStatus: install ok installed\nMaintainer: nobody\nArchitecture: all\nVersion: 1\nDescription: filter\n\n")
	write(dir+"/dpkg/info/opensmtpd-filter-senderscore.list", "/.\n"+theirs+"\n")
	write(dir+"/dpkg/info/format", "1\n")
	run := func(args ...string) (string, error) {
		cmd := exec.Command("make", append([]string{"GO=false", "BIN=" + os.Getenv(binEnv), "LIBEXECDIR=" + dir + "/libexec", "SBINDIR=" + dir + "/sbin",
			"MANDIR=" + dir + "/man", "STATEDIR=" + dir + "/state", fmt.Sprint("FILTERUSER=", os.Getuid())}, args...)...)
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "DPKG_ADMINDIR="+dir+"/dpkg")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	installed := func() (n int) {
		for _, pattern := range []string{"libexec/*", "sbin/*", "man/man*/*"} {
			names, _ := filepath.Glob(filepath.Join(dir, pattern))
			n += len(names)
		}
		return n
	}
	ours := 2*len(filters()) + 2 + 2 // with their pages, filterctl, and those of section 7
	if out, err := run("install"); err != nil || installed() != ours {
		t.Fatalf("install: %v, %d files, want %d\n%s", err, installed(), ours, out)
	}
	if fi, err := os.Stat(dir + "/state/filter-greylist"); err != nil || !fi.IsDir() {
		t.Error(err)
	}
	if out, err := run("uninstall"); err != nil || installed() != 1 || !strings.Contains(out, theirs+" belongs to the package opensmtpd-filter-senderscore") {
		t.Errorf("uninstall: %v, %d files are left, want that of the package\n%s", err, installed(), out)
	}
	write(theirs, "theirs")
	if out, err := run("install"); err == nil || installed() != 1 || !strings.Contains(out, "nothing was installed") {
		t.Errorf("install over a file of a package: %v, %d files\n%s", err, installed(), out)
	}
	if text, err := os.ReadFile(theirs); string(text) != "theirs" {
		t.Errorf("the file of the package was overwritten: %v", err)
	}
	if out, err := run("install", "FORCE=yes"); err != nil || installed() != ours {
		t.Errorf("install FORCE=yes: %v, %d files, want %d\n%s", err, installed(), ours, out)
	}
	if out, err := run("uninstall", "FORCE=yes"); err != nil || installed() != 0 {
		t.Errorf("uninstall FORCE=yes: %v, %d files\n%s", err, installed(), out)
	}
	if out, err := run("install", "BIN="+dir+"/none"); err == nil || !strings.Contains(out, "run make first") {
		t.Errorf("install of nothing: %v\n%s", err, out)
	}
}
