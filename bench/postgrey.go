package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A postgrey is one at work. It writes a log record of its database for each
// answer, and waits until that is on the disk (it opens Berkeley DB with
// DB_INIT_TXN and DB_AUTO_COMMIT, without DB_TXN_NOSYNC).
type postgrey struct {
	name     string
	config   string // of Berkeley DB
	survives string // what an answer does
	limit    string // of the ratio, as printed

	conns   []peer
	depth   int
	how     string // it is asked
	samples []sample
	stops   []func()
}

func postgreyPath() (string, error) {
	if path, err := exec.LookPath("postgrey"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/postgrey")
}

// start starts it, and makes the first attempts in each way that it can be
// asked, to find the fastest.
func (p *postgrey) start(ctx context.Context, dir string, attempts int) error {
	path, err := postgreyPath()
	if err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "DB_CONFIG"), []byte(p.config), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	tmp, err := os.MkdirTemp("", "postgrey") // the path of a socket must be short
	if err != nil {
		return err
	}
	p.stops = append(p.stops, func() { os.RemoveAll(tmp) })
	socket := filepath.Join(tmp, "socket")
	c := exec.CommandContext(ctx, path, "--unix="+socket, "--dbdir="+dir, "--user="+me.Username, "--group="+group.Name)
	c.Stderr = log
	if err := c.Start(); err != nil {
		return err
	}
	p.stops = append(p.stops, func() { c.Process.Kill(); c.Wait() })

	var conns []peer
	for until := time.Now().Add(10 * time.Second); len(conns) < greyOpen; {
		c, err := net.Dial("unix", socket)
		if err != nil && time.Now().After(until) {
			return fmt.Errorf("postgrey: %w; it says: %s", err, lastLine(log.Name()))
		}
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		p.stops = append(p.stops, func() { c.Close() })
		conns = append(conns, &postgreyConn{in: bufio.NewWriterSize(c, postgreyRead), out: bufio.NewReader(c)})
	}
	ways := []struct {
		how          string
		conns, depth int
	}{
		{"1 connection", 1, 1},
		{"1 connection, 20 at a time", 1, 20}, // less than postgreyRead
		{fmt.Sprint(greyOpen, " connections"), greyOpen, 1},
	}
	const rounds = 2 // as others use the machine
	best, first, n := 0.0, 0, attempts/rounds/len(ways)
	for range rounds {
		for _, w := range ways {
			s, err := load(conns[:w.conns], w.depth, first, n)
			if err != nil {
				return err
			}
			if s.rate > best {
				best, p.conns, p.depth, p.how = s.rate, conns[:w.conns], w.depth, w.how
			}
			first += n
		}
	}
	return nil
}

func (p *postgrey) stop() {
	for _, f := range slices.Backward(p.stops) {
		f()
	}
}

// postgreyRead is how much it reads at a time. Of several requests it forgets
// the one that is cut.
const postgreyRead = 8 << 10

// A postgreyConn speaks as Postfix does, see SMTPD_POLICY_README.
type postgreyConn struct {
	in   *bufio.Writer
	out  *bufio.Reader
	open []int // attempts, in order
}

func (c *postgreyConn) send(i int) {
	a := attempt(i, time.Time{})
	fmt.Fprintf(c.in, "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address=%s\nclient_name=unknown\n"+
		"sender=%s\nrecipient=%s\ninstance=%x\n\n", a.Client.Addr, a.Sender, a.Rcpts[0], i)
	c.open = append(c.open, i)
}

func (c *postgreyConn) flush() error { return c.in.Flush() }

func (c *postgreyConn) more() bool { return c.out.Buffered() > 0 }

func (c *postgreyConn) answer() (int, bool, error) {
	action, err := c.out.ReadString('\n')
	if err == nil {
		_, err = c.out.ReadString('\n')
	}
	if err != nil {
		return 0, false, fmt.Errorf("postgrey: %w", err)
	}
	i := c.open[0]
	c.open = c.open[1:]
	return i, strings.HasPrefix(action, "action=DEFER_IF_PERMIT "), nil
}
