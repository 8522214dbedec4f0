//go:build linux

package smtpdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Release is an smtpd the tests run against.
type Release struct {
	Version string // as in "OpenSMTPD 6.8.0p2"
	Moving  bool   // a later version will do: its Debian is not released yet
	Root    string // where it is installed, "/" or a root of its own
	TLS     bool   // its server side TLS works, and so AUTH
}

// Releases returns the releases test/install.sh installs. Debian 12's 6.8
// speaks protocol 0.6 and has no working TLS with OpenSSL 3.
func Releases() []Release {
	return []Release{
		{Version: "6.8.0p2", Root: "/"},
		{Version: "7.6.0", Root: "/var/cache/opensmtpd-filters/trixie", TLS: true},
		{Version: "7.9.0", Moving: true, Root: "/var/cache/opensmtpd-filters/forky", TLS: true},
	}
}

// Ready returns an error that says what is missing to run r, and how to get
// it.
func (r Release) Ready() error {
	if os.Getuid() != 0 {
		return errors.New("real smtpd: not root; run as root after test/install.sh")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("real smtpd: ip (iproute2) is missing; run test/install.sh as root")
	}
	cmd := r.command("/usr/sbin/smtpd", "-h")
	cmd.SysProcAttr.Cloneflags = namespaces
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("real smtpd: may not make name spaces; a container needs --privileged (%w)", err)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return fmt.Errorf("real smtpd: OpenSMTPD %s is missing below %s; run test/install.sh as root (%w)", r.Version, r.Root, err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	if !r.is(version) {
		return fmt.Errorf("real smtpd: want OpenSMTPD %s below %s, found %q; test/install.sh installs it on Debian 12", r.Version, r.Root, version)
	}
	return nil
}

// is reports whether the first line of smtpd -h is r's.
func (r Release) is(line string) bool {
	_, found, ok := strings.Cut(line, "OpenSMTPD ")
	if !ok || !r.Moving {
		return strings.HasPrefix(found, r.Version)
	}
	numbers := func(version string) (ns []int) {
		for s := range strings.FieldsFuncSeq(version, func(c rune) bool { return c < '0' || c > '9' }) {
			n, _ := strconv.Atoi(s)
			ns = append(ns, n)
		}
		return ns
	}
	return slices.Compare(numbers(found), numbers(r.Version)) >= 0
}

// command makes a command that runs inside r's root.
func (r Release) command(name string, args ...string) *exec.Cmd {
	cmd := &exec.Cmd{Path: name, Args: append([]string{name}, args...), SysProcAttr: new(syscall.SysProcAttr)}
	if r.Root != "/" {
		cmd.SysProcAttr.Chroot = r.Root
		cmd.Dir = "/"
	}
	return cmd
}

// Build builds packages of this module, given as "./filter-x", into the
// folder bin, as static programs that run below any root.
func Build(bin string, packages ...string) error {
	top, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list -m: %w", err)
	}
	cmd := exec.Command("go", append([]string{"build", "-o", bin + string(filepath.Separator)}, packages...)...)
	cmd.Dir = strings.TrimSpace(string(top))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// CheckConfig lets smtpd check an smtpd.conf, and returns what it says.
func (r Release) CheckConfig(conf string) (output string, err error) {
	return r.CheckFiles(map[string]string{"smtpd.conf": conf})
}

// CheckFiles lets smtpd check a folder of files of which smtpd.conf is the first.
// In them @DIR@ is that folder, which is DIR in what smtpd says.
func (r Release) CheckFiles(files map[string]string) (output string, err error) {
	dir, err := os.MkdirTemp(filepath.Join(r.Root, "tmp"), "smtpd")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	inside := filepath.Join("/tmp", filepath.Base(dir))
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "@DIR@", inside)), 0o644); err != nil {
			return "", err
		}
	}
	out, err := r.command("/usr/sbin/smtpd", "-n", "-f", inside+"/smtpd.conf").CombinedOutput()
	return strings.ReplaceAll(string(out), inside, "DIR"), err
}
