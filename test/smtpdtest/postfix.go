//go:build linux

package smtpdtest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// postfixRoot is where test/install.sh puts postfix, which cannot be installed
// beside OpenSMTPD.
const postfixRoot = "/var/cache/opensmtpd-filters/postfix"

// A Postfix is a mail server that sends, and tries again every second or two.
type Postfix struct {
	dir string
	cmd *exec.Cmd
}

// Users and groups are those of any Debian system.
const mainCF = `compatibility_level = 3.6
queue_directory = @DIR@/spool
data_directory = @DIR@/data
daemon_directory = @ROOT@/usr/lib/postfix/sbin
command_directory = @ROOT@/usr/sbin
shlib_directory = no
meta_directory = @DIR@
mail_owner = mail
setgid_group = staff
import_environment = MAIL_CONFIG LD_LIBRARY_PATH
export_environment = MAIL_CONFIG LD_LIBRARY_PATH
maillog_file = @DIR@/log
maillog_file_prefixes = @DIR@
myhostname = @NAME@
mydestination =
inet_interfaces = loopback-only
inet_protocols = ipv4
smtp_bind_address = @SRC@
smtp_dns_support_level = disabled
relayhost = [` + Addr4 + `]:25
minimal_backoff_time = 2s
maximal_backoff_time = 2s
queue_run_delay = 1s
`

const masterCF = `pickup  unix  n  -  n  1  1  pickup
cleanup unix  n  -  n  -  0  cleanup
qmgr    unix  n  -  n  1  1  qmgr
rewrite unix  -  -  n  -  -  trivial-rewrite
bounce  unix  -  -  n  -  0  bounce
defer   unix  -  -  n  -  0  bounce
trace   unix  -  -  n  -  0  bounce
smtp    unix  -  -  n  -  -  smtp
error   unix  -  -  n  -  -  error
retry   unix  -  -  n  -  -  error
postlog unix-dgram  n  -  n  -  1  postlogd
`

// PostfixReady returns an error if postfix is not there.
func PostfixReady() error {
	if _, err := os.Stat(postfixRoot); err != nil {
		return fmt.Errorf("postfix is missing; run test/install.sh as root (%w)", err)
	}
	return nil
}

// StartPostfix starts postfix as the host of that name. It sends everything to
// the server from the address src.
func StartPostfix(name, src string) (*Postfix, error) {
	dir, err := os.MkdirTemp("", "postfix")
	if err != nil {
		return nil, err
	}
	p := &Postfix{dir: dir}
	if err := p.prepare(name, src); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	p.cmd = p.command("usr/lib/postfix/sbin/master", "-c", dir, "-d")
	if err := p.cmd.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return p, nil
}

func (p *Postfix) prepare(name, src string) error {
	if err := os.Chmod(p.dir, 0o755); err != nil {
		return err
	}
	conf := strings.NewReplacer("@DIR@", p.dir, "@ROOT@", postfixRoot, "@NAME@", name, "@SRC@", src).Replace(mainCF)
	for file, text := range map[string]string{"main.cf": conf, "master.cf": masterCF} {
		if err := os.WriteFile(filepath.Join(p.dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	const mail, staff = 8, 50
	dirs := []struct {
		name     string
		mode     os.FileMode
		uid, gid int
	}{
		{"data", 0o700, mail, mail},
		{"spool", 0o755, 0, 0},
		{"spool/pid", 0o755, 0, 0},
		{"spool/public", 0o710, mail, staff},
		{"spool/maildrop", 0o730 | os.ModeSticky, mail, staff},
	}
	for _, q := range strings.Fields("active bounce corrupt defer deferred flush hold incoming private saved trace") {
		dirs = append(dirs, dirs[0])
		dirs[len(dirs)-1].name = "spool/" + q
	}
	for _, d := range dirs {
		path := filepath.Join(p.dir, d.name)
		err := cmp.Or(os.Mkdir(path, 0o700), os.Chown(path, d.uid, d.gid), os.Chmod(path, d.mode))
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Postfix) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(postfixRoot, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LD_LIBRARY_PATH=" + postfixRoot + "/usr/lib/postfix"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// Submit hands a mail in. It is sent in the background.
func (p *Postfix) Submit(from string, to ...string) error {
	cmd := p.command("usr/sbin/sendmail", append([]string{"-C", p.dir, "-i", "-f", from, "--"}, to...)...)
	cmd.Stdin = strings.NewReader("Subject: hello\n\nhello\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("sendmail: %w\n%s", err, out)
	}
	return nil
}

// Log returns what postfix has logged.
func (p *Postfix) Log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(b)
}

// Delivered waits until n recipients have been sent their mail, and returns how
// often one was deferred.
func (p *Postfix) Delivered(n int) (deferred int, err error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		log := p.Log()
		if strings.Count(log, "status=sent") >= n {
			return strings.Count(log, "status=deferred"), nil
		}
		if strings.Contains(log, "status=bounced") {
			return 0, errors.New("postfix has returned a mail")
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("postfix has not sent %d mails in %v", n, patience)
		}
	}
}

// Stop ends postfix; what it has not sent is lost.
func (p *Postfix) Stop() error {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM) // the group
	_ = p.cmd.Wait()
	return os.RemoveAll(p.dir)
}

// PostfixParameters returns the names of postfix's parameters that begin with
// prefix.
func PostfixParameters(prefix string) (names []string, err error) {
	if err := PostfixReady(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "postfix")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.cf"), nil, 0o644); err != nil {
		return nil, err
	}
	out, err := (&Postfix{}).command("usr/sbin/postconf", "-c", dir, "-d", "-H").Output()
	for _, name := range strings.Fields(string(out)) {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, err
}
