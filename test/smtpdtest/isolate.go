//go:build linux

// Package smtpdtest runs a real smtpd with filters and talks SMTP to it from
// any source address. Everything happens in network, mount, process and host
// name spaces of its own: nothing on the machine changes, and whatever was
// started ends with the program. It needs Linux, root, and what
// test/install.sh installs.
package smtpdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

const namespaces = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS

const insideEnv = "SMTPDTEST_INSIDE"

// Inside reports whether the program is in its name spaces already.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Isolate runs the program once more, with the same arguments, in name
// spaces of its own, and returns its exit status. The inner program calls
// Setup.
func Isolate() (status int, err error) {
	runtime.LockOSThread() // Pdeathsig watches the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: namespaces,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The terminal sends these to the inner program too; wait for its end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	err = cmd.Run()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return max(e.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, fmt.Errorf("name spaces: %w", err)
	}
	return 0, nil
}

// Setup prepares the name spaces: every IPv4 and IPv6 address is local, so a
// client may have any, and the host is mx.example.org.
func Setup() error {
	syscall.Umask(0o022) // smtpd's users are to read what is written
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := syscall.Sethostname([]byte(Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"route", "add", "local", "0.0.0.0/0", "dev", "lo"},
		{"-6", "route", "add", "local", "::/0", "dev", "lo"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	for name, value := range map[string]string{
		"ipv6/ip_nonlocal_bind": "1", // IPv6 has no "route add local" for bind(2)
		// smtpd lets five connections wait for it. With cookies Linux makes more
		// of them than that, and resets or forgets them.
		"ipv4/tcp_syncookies": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value+"\n"), 0); err != nil {
			return err
		}
	}
	return nil
}
