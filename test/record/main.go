//go:build linux

// Command record makes the logs in pkg/maillog/testdata anew: a mixed run under
// each release of smtpd, logged by rsyslog in three formats and by
// systemd-journald. As root, from the top folder, after make and test/install.sh;
// it needs rsyslog and systemd of Debian 12, of which no daemon need run.
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/test/mixed"
	"opensmtpd-filters/test/smtpdtest"
)

const (
	bin = "bin"
	out = "pkg/maillog/testdata"
	dir = "/mnt" // a file system of our own
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		status = 1
	}
	os.Exit(status)
}

func run() (status int, err error) {
	for _, p := range []string{"rsyslogd", "journalctl", "/lib/systemd/systemd-journald", bin + "/filter-greylist"} {
		if _, err := exec.LookPath(p); err != nil {
			return 1, err
		}
	}
	if !smtpdtest.Inside() {
		return smtpdtest.Isolate()
	}
	if err := errors.Join(smtpdtest.Setup(), devices()); err != nil {
		return 1, err
	}
	for _, r := range smtpdtest.Releases() {
		if err := r.Ready(); err != nil {
			return 1, err
		}
		version := strings.Join(strings.Split(r.Version, ".")[:2], ".")
		for _, d := range []daemon{rsyslog, journald} {
			if err := record(r, version, d); err != nil {
				return 1, fmt.Errorf("%s: %w", version, err)
			}
		}
	}
	return 0, nil
}

// devices makes a /dev of our own, for there a syslog daemon has its socket, and a
// /run.
func devices() error {
	const dev = dir + "/dev"
	for _, d := range []string{"/run", dir} {
		if err := syscall.Mount("none", d, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("none", dev, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		err := os.WriteFile(filepath.Join(dev, name), nil, 0o644)
		if err == nil {
			err = syscall.Mount("/dev/"+name, filepath.Join(dev, name), "", syscall.MS_BIND, "")
		}
		if err != nil {
			return err
		}
	}
	return syscall.Mount(dev, "/dev", "", syscall.MS_MOVE, "")
}

// A daemon takes what smtpd logs.
type daemon struct {
	name   string
	socket string
	start  func() *exec.Cmd
	files  func(version string) (map[string][]byte, error)
}

const syslogConf = `module(load="imuxsock" SysSock.Name="/dev/log")
action(type="omfile" file="/mnt/log" template="RSYSLOG_TraditionalFileFormat")
action(type="omfile" file="/mnt/iso" template="RSYSLOG_FileFormat")
action(type="omfile" file="/mnt/rfc5424" template="RSYSLOG_SyslogProtocol23Format")
`

var rsyslog = daemon{
	name: "rsyslog", socket: "/dev/log",
	start: func() *exec.Cmd {
		_ = os.WriteFile(dir+"/rsyslog.conf", []byte(syslogConf), 0o644)
		return exec.Command("rsyslogd", "-n", "-f", dir+"/rsyslog.conf", "-i", dir+"/pid")
	},
	files: func(version string) (map[string][]byte, error) {
		files := map[string][]byte{}
		for _, format := range []string{"log", "iso", "rfc5424"} {
			b, err := os.ReadFile(dir + "/" + format)
			if err != nil {
				return nil, err
			}
			files[version+"."+format] = b
		}
		return files, nil
	},
}

var journald = daemon{
	name: "journald", socket: "/run/systemd/journal/dev-log",
	start: func() *exec.Cmd {
		_ = os.MkdirAll("/run/systemd/journal", 0o755)
		return exec.Command("/lib/systemd/systemd-journald")
	},
	files: func(version string) (map[string][]byte, error) {
		b, err := exec.Command("journalctl", "-o", "export").Output()
		return map[string][]byte{version + ".export": b}, err
	},
}

// record makes the files of one release with one daemon.
func record(r smtpdtest.Release, version string, d daemon) (err error) {
	for _, old := range []string{"/dev/log", dir + "/log", dir + "/iso", dir + "/rfc5424", "/run/log", "/run/systemd"} {
		_ = os.RemoveAll(old)
	}
	cmd := d.start()
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(d.socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no socket %s", d.name, d.socket)
		}
	}
	if d.socket != "/dev/log" {
		if err := os.WriteFile("/dev/log", nil, 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(d.socket, "/dev/log", "", syscall.MS_BIND, ""); err != nil {
			return err
		}
		defer func() { _ = syscall.Unmount("/dev/log", 0) }()
	}
	conf := mixed.Config(r, "")
	conf.Bin, conf.Syslog = bin, "/dev/log"
	s, err := smtpdtest.Start(conf)
	if err != nil {
		return err
	}
	account, err := mixed.Do(s, r.TLS)
	time.Sleep(2 * time.Second) // smtpd logs the last deliveries
	if err == nil && d.name == rsyslog.name {
		err = account.GiveUp()
	}
	if err = errors.Join(err, s.Stop()); err != nil {
		return err
	}
	time.Sleep(time.Second) // the daemon writes
	files, err := d.files(version)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s: %d connections\n", version, d.name, account.Connections)
	return write(files)
}

// write writes files: those of the plain format as they are.
func write(files map[string][]byte) error {
	for name, text := range files {
		if !strings.HasSuffix(name, ".log") {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, err := z.Write(text)
			if err = errors.Join(err, z.Close()); err != nil {
				return err
			}
			name, text = name+".gz", b.Bytes()
		}
		if err := os.WriteFile(filepath.Join(out, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
