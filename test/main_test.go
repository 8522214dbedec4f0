//go:build linux

// Package test holds the tests of the whole suite: built filters under real
// mail servers.
package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"opensmtpd-filters/test/smtpdtest"
)

// binEnv names the folder of the built filters.
const binEnv = "SMTPDTEST_BIN"

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// filters returns the names of the suite's filters.
func filters() []string { return programs("../filter-*") }

// programs returns the names of the programs in the folders of a pattern.
func programs(pattern string) []string {
	dirs, _ := filepath.Glob(pattern)
	for i, d := range dirs {
		dirs[i] = filepath.Base(d)
	}
	return dirs
}

// run runs the tests in name spaces of their own if there is a mail server
// to run. Programs are built before, while there is a network.
func run(m *testing.M) (status int, err error) {
	if smtpdtest.Inside() {
		if err := smtpdtest.Setup(); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}
	bin, err := os.MkdirTemp("", "filters")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	build := []string{"./test/scripted", "./test/denied", "./filterctl"}
	for _, f := range filters() {
		build = append(build, "./"+f)
	}
	if err := smtpdtest.Build(bin, build...); err != nil {
		return 1, err
	}
	if err := os.Setenv(binEnv, bin); err != nil {
		return 1, err
	}
	ready := false
	for _, r := range smtpdtest.Releases() {
		ready = ready || r.Ready() == nil
	}
	if !ready {
		return m.Run(), nil // each test of smtpd says what it misses
	}
	return smtpdtest.Isolate()
}

// forEachSMTPD runs test with each release of smtpd. One that is not
// installed is skipped by name, and is an error where CI is set.
func forEachSMTPD(t *testing.T, test func(t *testing.T, r smtpdtest.Release)) {
	t.Helper()
	forReleases(t, smtpdtest.Releases(), test)
}

// onNewest runs a test of what is the same with every release.
func onNewest(t *testing.T, test func(t *testing.T, r smtpdtest.Release)) {
	t.Helper()
	all := smtpdtest.Releases()
	forReleases(t, all[len(all)-1:], test)
}

func forReleases(t *testing.T, releases []smtpdtest.Release, test func(t *testing.T, r smtpdtest.Release)) {
	t.Helper()
	noteSources(t)
	for _, r := range releases {
		t.Run("smtpd-"+r.Version, func(t *testing.T) {
			if err := r.Ready(); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			test(t, r)
		})
	}
}

// noteSources looks at the sources of the filters, so that go test does not
// report a cached result after they have changed.
func noteSources(t *testing.T) {
	t.Helper()
	roots := []string{"../pkg", "../filterctl", "scripted"}
	for _, f := range filters() {
		roots = append(roots, "../"+f)
	}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// noise matches the lines of smtpd.log about smtpd's own start and end.
var noise = regexp.MustCompile(`(?m)^(debug: |setup_|info: loading).*\n`)

// A server is a mail server of one test. What goes wrong in its methods ends
// the test.
type server struct {
	*smtpdtest.Server
	t *testing.T
}

// start starts smtpd for the rest of the test. At its end smtpd must be
// alive and no filter may have died.
func start(t *testing.T, c smtpdtest.Config) server {
	t.Helper()
	c.Bin = os.Getenv(binEnv)
	s, err := smtpdtest.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Check(); err != nil {
			t.Error(err)
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("smtpd.conf:\n%s\nsmtpd.log:\n%s", c, noise.ReplaceAllString(s.Log(), ""))
		}
	})
	return server{s, t}
}

// send sends a mail and returns what became of it.
func (s server) send(m smtpdtest.Mail) smtpdtest.Result {
	s.t.Helper()
	res, err := s.Send(m)
	if err != nil {
		s.t.Fatalf("mail from %s to %s: %v", m.Src, m.To, err)
	}
	return res
}

// deliver sends a mail that must be taken, and returns it as delivered. It
// must be the first one for its user.
func (s server) deliver(m smtpdtest.Mail) smtpdtest.Message {
	s.t.Helper()
	if res := s.send(m); !res.Accepted() {
		s.t.Fatalf("mail from %s to %s was refused: %v", m.Src, m.To, res)
	}
	all, err := s.WaitMail(m.To, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(all) != 1 {
		s.t.Fatalf("%d mails for %s, want 1", len(all), m.To)
	}
	if spam := strings.Join(all[0].Header("X-Spam"), ","); all[0].Junk != (spam == "Yes") {
		s.t.Errorf("mail for %s: in .Junk %v, X-Spam %q", m.To, all[0].Junk, spam)
	}
	return all[0]
}
