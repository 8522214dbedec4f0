package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// A postgrey is Debian's, as it is installed, but with the clock of the simulation.
type postgrey struct {
	cmd   *exec.Cmd
	clock string // the file that libfaketime reads
	conn  net.Conn
	in    *bufio.Reader
	now   string
}

// besidePostgrey shows a simulation to postgrey, or says what is missing.
func besidePostgrey(s *simulation) error {
	p, err := startPostgrey()
	if err != nil {
		fmt.Printf("postgrey not shown: %v; on Debian, as root: test/install.sh bench\n", err)
		return nil
	}
	defer p.stop()
	if err := s.run(p); err != nil {
		return err
	}
	fmt.Printf("postgrey --delay=60, otherwise as it is installed; a twentieth of the mail\n")
	s.print()
	return nil
}

func startPostgrey() (*postgrey, error) {
	path := "/usr/sbin/postgrey"
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	libs, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(libs) == 0 {
		return nil, errors.New("no libfaketime")
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "postgrey")
	if err != nil {
		return nil, err
	}
	p := &postgrey{clock: filepath.Join(dir, "clock")}
	if err := p.set(time.Now().Add(-11 * day)); err != nil {
		return nil, err
	}
	// What it keeps has to outlive nothing here.
	if err := os.WriteFile(filepath.Join(dir, "DB_CONFIG"), []byte("set_flags DB_TXN_NOSYNC\n"), 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "socket")
	p.cmd = exec.Command(path, "--unix="+socket, "--dbdir="+dir, "--user="+me.Username, "--group="+group.Name, "--delay=60")
	p.cmd.Env = append(os.Environ(), "LD_PRELOAD="+libs[0], "FAKETIME_TIMESTAMP_FILE="+p.clock, "FAKETIME_NO_CACHE=1", "TZ=UTC")
	if err := p.cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	for range 200 {
		if p.conn, err = net.Dial("unix", socket); err == nil {
			p.in = bufio.NewReader(p.conn)
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.stop()
	return nil, err
}

// set moves its clock.
func (p *postgrey) set(t time.Time) error {
	now := t.UTC().Format(time.DateTime)
	if now == p.now {
		return nil
	}
	p.now = now
	return os.WriteFile(p.clock, []byte(now+"\n"), 0o600)
}

// accept asks for each recipient, as Postfix does, and reports whether all may come.
func (p *postgrey) accept(_ context.Context, a greylist.Attempt) (bool, error) {
	if err := p.set(a.Time); err != nil {
		return false, err
	}
	name, sender := a.Client.Name, strings.Trim(a.Sender, "<>")
	if name == "" {
		name = "unknown"
	}
	in := true
	for i, rcpt := range a.Rcpts {
		_, err := fmt.Fprintf(p.conn, "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address=%s\nclient_name=%s\n"+
			"sender=%s\nrecipient=%s\ninstance=%d.%d\n\n", a.Client.Addr, name, sender, rcpt, a.Time.UnixNano(), i)
		if err != nil {
			return false, err
		}
		action, err := p.in.ReadString('\n')
		if err == nil {
			_, err = p.in.ReadString('\n')
		}
		if err != nil {
			return false, fmt.Errorf("postgrey: %w", err)
		}
		in = in && !strings.HasPrefix(action, "action=DEFER_IF_PERMIT ")
	}
	return in, nil
}

func (p *postgrey) stop() {
	if p.conn != nil {
		p.conn.Close()
	}
	p.cmd.Process.Kill()
	p.cmd.Wait()
	os.RemoveAll(filepath.Dir(p.clock))
}
