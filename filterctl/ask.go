package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/smtpdconf"
)

// askTime is how long a filter may take for -n or explain.
const askTime = time.Minute

// An answer is what a filter has printed.
type answer struct {
	text []string // lines of its output
	errs []string // of its errors
	ok   bool     // it ended with status 0
}

// row returns the value of a row of a table that a filter prints, "" if there is
// none, or nothing in it.
func (a answer) row(name string) string {
	for _, line := range a.text {
		if n, value, ok := strings.Cut(line, "  "); ok && n == name {
			if value = strings.TrimSpace(value); value != "-" {
				return value
			}
		}
	}
	return ""
}

// rows returns all values of rows of a name.
func (a answer) rows(name string) (values []string) {
	for _, line := range a.text {
		if n, value, ok := strings.Cut(line, "  "); ok && n == name {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// ask runs a filter as smtpd would, with more words at the end of its command.
func (c *conf) ask(ctx context.Context, p *smtpdconf.Proc, words ...string) (answer, error) {
	command := p.Command
	if i := smtpdconf.End(command); i >= 0 {
		command = command[:i]
	}
	if !strings.HasPrefix(command, "/") {
		command = c.folder + "/" + command
	}
	if n := len("exec " + command); n > smtpdconf.MaxCommand {
		return answer{}, fmt.Errorf("the command has %d bytes, and smtpd has room for %d", n, smtpdconf.MaxCommand)
	}
	return c.run(ctx, p, "/bin/sh", append([]string{"-c", `exec ` + command + ` "$@"`, "sh"}, words...)...)
}

// isOurs asks a program of one of our names whether it is ours: others have had
// these names before.
func (c *conf) isOurs(ctx context.Context, p *smtpdconf.Proc) (bool, error) {
	a, err := c.run(ctx, p, c.path(p), "-version")
	if err != nil {
		return false, err
	}
	return a.ok && len(a.text) == 1 && strings.HasPrefix(a.text[0], smtpdconf.Program(p.Command)+" "), nil
}

// run runs a program as the user of a filter.
func (c *conf) run(ctx context.Context, p *smtpdconf.Proc, program string, args ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errs // smtpd runs in /
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if os.Geteuid() == 0 {
		who, err := credential(p)
		if err != nil {
			return answer{}, err
		}
		cmd.SysProcAttr.Credential, cmd.SysProcAttr.Chroot = who, p.Chroot
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return answer{}, fmt.Errorf("no answer in %s", askTime)
	}
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		return answer{}, err
	}
	return answer{lines(&out), lines(&errs), err == nil}, nil
}

// lines are those that hold something, of at most a few kilobytes.
func lines(b *bytes.Buffer) (lines []string) {
	for line := range strings.Lines(string(b.Next(1 << 20))) {
		if line = strings.TrimRight(line, "\r\n "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// credential is the user and the one group that smtpd gives a filter.
func credential(p *smtpdconf.Proc) (*syscall.Credential, error) {
	u, err := filterUser(p)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{uint32(gid)}}, errors.Join(err, err2)
}

// filterUser is the user of a filter, with its group.
func filterUser(p *smtpdconf.Proc) (*user.User, error) {
	u, err := cli.SMTPDUser()
	if p.User != "" {
		if u, err = user.Lookup(p.User); err != nil {
			err = fmt.Errorf("user %s: there is no such user, and smtpd would end", p.User)
		}
	}
	if err != nil || p.Group == "" {
		return u, err
	}
	g, err := user.LookupGroup(p.Group)
	if err != nil {
		return nil, fmt.Errorf("group %s: there is no such group, and smtpd would end", p.Group)
	}
	with := *u
	with.Gid = g.Gid
	return &with, nil
}
