package filtertest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limit is how long a filter may take for one thing. It ends tests of filters that hang; it measures nothing.
const limit = 30 * time.Second

// A Program says which filter to run, and as whose filter.
type Program struct {
	Cmd     []string // name and arguments; the name is looked up in PATH
	Env     []string // environment, the test's own if nil
	Dir     string   // working directory, the test's own if empty
	Version string   // protocol version smtpd speaks: 0.4 to 0.7; 0.7 if empty

	// Func, if set, is the filter, run in this process instead of Cmd. It should return when stdin ends.
	Func func(stdin io.Reader, stdout io.Writer)

	Edits bool // the filter changes messages; see Checker.Edits
}

// handshake is what smtpd of a protocol version writes first.
var handshake = map[string]string{
	"0.4": "smtpd-version|6.6.4p1 smtp-session-timeout|300 ready",
	"0.5": "smtpd-version|6.6.0 smtp-session-timeout|300 ready",
	"0.6": "smtpd-version|6.8.0p2 smtp-session-timeout|300 subsystem|smtp-in admd|mx.example.org ready",
	"0.7": "smtpd-version|7.8.0-portable protocol|0.7 smtp-session-timeout|300 subsystem|smtp-in admd|mx.example.org ready",
}

// A conn is a running filter.
type conn struct {
	version string
	minor   int
	stdin   io.WriteCloser // of the filter
	kill    func()
	signal  func(os.Signal) error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when anything below changes
	check   Checker
	queue   []string // not yet written to the filter; smtpd queues without limit
	eof     bool     // nothing more will be queued
	outs    map[string][]out
	log     []string // what was said, for error messages
	stderr  []string
	exited  bool
	status  int
}

// An out is one line of the filter that answers something.
type out struct {
	phase, text string // decision and parameter, or the data line
	raw         string
}

func (p Program) start(ahead bool) (*conn, error) {
	c := &conn{version: p.Version, changed: make(chan struct{}), outs: make(map[string][]out)}
	c.check.Ahead, c.check.Edits = ahead, p.Edits
	if c.version == "" {
		c.version = "0.7"
	}
	var ok bool
	if c.minor, ok = parseMinor(c.version); !ok || handshake[c.version] == "" {
		return nil, fmt.Errorf("unknown protocol version %q", c.version)
	}
	var stdout io.Reader
	var wait func() int
	if p.Func != nil {
		stdout, wait = c.startFunc(p.Func)
	} else {
		var err error
		if stdout, wait, err = c.startCmd(p); err != nil {
			return nil, err
		}
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	go c.read(stdout, func() int {
		<-written
		return wait()
	})
	return c, nil
}

func (c *conn) startFunc(f func(io.Reader, io.Writer)) (io.Reader, func() int) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	c.stdin = inW
	c.kill = func() {
		inW.CloseWithError(io.ErrUnexpectedEOF)
		outR.Close()
	}
	go func() {
		f(inR, outW)
		inR.Close()
		outW.Close()
	}()
	return outR, func() int { return 0 }
}

// startCmd gives the process one socket as standard input and output, as smtpd does.
func (c *conn) startCmd(p Program) (io.Reader, func() int, error) {
	if len(p.Cmd) == 0 {
		return nil, nil, errors.New("no command")
	}
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		syscall.ForkLock.RUnlock()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	syscall.ForkLock.RUnlock()
	ours, theirs := os.NewFile(uintptr(fds[0]), "smtpd"), os.NewFile(uintptr(fds[1]), "filter")
	defer theirs.Close()
	nc, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, nil, err
	}
	sock := nc.(*net.UnixConn)

	cmd := exec.Command(p.Cmd[0], p.Cmd[1:]...)
	cmd.Env, cmd.Dir = p.Env, p.Dir
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if !slices.ContainsFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "GORACE=") }) {
		// A program built with -race sleeps for a second before it exits.
		cmd.Env = append(slices.Clone(cmd.Env), "GORACE=atexit_sleep_ms=10")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, &lineWriter{line: c.stderrLine}
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, nil, err
	}
	c.stdin = halfCloser{sock}
	c.kill = func() { cmd.Process.Kill() }
	c.signal = cmd.Process.Signal
	return sock, func() int {
		cmd.Wait()
		sock.Close()
		return cmd.ProcessState.ExitCode()
	}, nil
}

type halfCloser struct{ *net.UnixConn }

func (h halfCloser) Close() error { return h.CloseWrite() }

// A lineWriter hands on what is written to it line by line, without LF. An incomplete last line is kept back, as smtpd does.
type lineWriter struct {
	buf  []byte
	line func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	for {
		i := bytes.IndexByte(w.buf, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.line(string(w.buf[:i]))
		w.buf = w.buf[i+1:]
	}
}

// change runs f with the lock and wakes all waiters.
func (c *conn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *conn) stderrLine(l string) {
	c.change(func() {
		c.stderr = append(c.stderr, l)
		c.note("~ ", l)
	})
}

// note keeps the last things said.
func (c *conn) note(mark, line string) {
	if len(line) > 300 {
		line = fmt.Sprintf("%s... (%d bytes)", line[:300], len(line))
	}
	c.log = append(c.log, mark+line)
	if len(c.log) > 400 {
		c.log = slices.Delete(c.log, 0, 200)
	}
}

// write passes the queue on to the filter.
func (c *conn) write() {
	for {
		c.mu.Lock()
		queue, eof, changed := c.queue, c.eof, c.changed
		c.queue = nil
		c.mu.Unlock()
		if len(queue) > 0 {
			if _, err := io.WriteString(c.stdin, strings.Join(queue, "")); err != nil {
				c.change(func() { c.gone("input left unread: " + err.Error()) })
				return
			}
			continue
		}
		if eof {
			c.stdin.Close()
			return
		}
		<-changed
	}
}

// read follows the filter's output to its end.
func (c *conn) read(stdout io.Reader, wait func() int) {
	br := bufio.NewReader(stdout)
	for {
		line, err := br.ReadString('\n')
		if err == nil {
			c.change(func() { c.got(line[:len(line)-1]) })
			continue
		}
		if errors.Is(err, syscall.ECONNRESET) {
			c.change(func() { c.gone("input left unread") })
			continue // its output is still there
		}
		c.change(func() {
			if line != "" {
				c.check.problem(Stray, line, "output ends inside a line")
			}
			if !c.eof {
				c.gone("output ended before the input did")
			}
			c.eof = true
		})
		break
	}
	status := wait()
	c.change(func() { c.exited, c.status = true, status })
}

// gone notes once that the filter did not wait for the end of its input.
func (c *conn) gone(text string) {
	if !slices.ContainsFunc(c.check.problems, func(p Problem) bool { return p.Rule == Gone }) {
		c.check.problem(Gone, "", "%s", text)
	}
}

func (c *conn) got(line string) {
	c.note("< ", line)
	c.check.Got(line)
	r := c.check.lastFound
	if r == nil {
		return
	}
	_, rest, _ := strings.Cut(line, "|")
	text := strings.SplitN(rest, "|", 3)[2]
	c.outs[r.session] = append(c.outs[r.session], out{r.phase, text, line})
}

// wait returns when cond, called with the lock, holds. It gives up when the filter ended, or after the limit.
func (c *conn) wait(what string, cond func() bool) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		c.mu.Lock()
		ok, exited, status, changed := cond(), c.exited, c.status, c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		if exited {
			return fmt.Errorf("the filter ended (exit status %d) before %s", status, what)
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("%s: nothing for %v", what, limit)
		}
	}
}

// raw sends a line as it is.
func (c *conn) raw(line string) (err error) {
	c.change(func() {
		if c.eof {
			err = errors.New("the filter's input has ended")
			return
		}
		c.note("> ", line)
		c.check.Sent(line)
		c.queue = append(c.queue, line+"\n")
	})
	return err
}

// hello does the handshake.
func (c *conn) hello() error {
	for _, l := range strings.Fields(handshake[c.version]) {
		if err := c.raw("config|" + l); err != nil {
			break // it ended; wait says more
		}
	}
	return c.wait("register|ready", func() bool { return c.check.ready })
}

// waiting returns the request that a session waits for. The caller holds the lock.
func (c *conn) waiting(session string) *request {
	if s := c.check.sessions[session]; s != nil && len(s.waiting) > 0 {
		return s.waiting[0]
	}
	return nil
}

// idle waits until a session waits for nothing, apart from the rest of a message if message is set.
func (c *conn) idle(session string, message bool) error {
	return c.wait("an answer for session "+session, func() bool {
		r := c.waiting(session)
		return r == nil || message && r.message()
	})
}

// send sends a line as smtpd would: not at all if the filter did not register it, and not before the
// session's last request was answered. It reports whether the line was sent. Lines that smtpd would
// not write are sent as they are.
func (c *conn) send(line string) (bool, error) {
	if r, ok := parseRequest(line); ok {
		if !c.registered("filter", "smtp-in", r.phase) {
			return false, nil
		}
		err := c.wait("an answer for session "+r.session, func() bool {
			w := c.waiting(r.session)
			return w == nil || w.message() && !w.inDone && r.message()
		})
		if err != nil {
			return false, err
		}
	} else if r, ok := parseReport(line); ok {
		if err := c.idle(r.session, true); err != nil {
			return false, err
		}
		if !c.registered("report", r.subsystem, r.event) {
			if r.event == "link-disconnect" && r.subsystem == "smtp-in" {
				c.change(func() { c.check.Ended(r.session) })
			}
			return false, nil
		}
	}
	if err := c.raw(line); err != nil {
		return false, err
	}
	return true, nil
}

func (c *conn) registered(kind, subsystem, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.check.Registered(kind, subsystem, name)
}

// close ends the filter's input.
func (c *conn) close() { c.change(func() { c.eof = true }) }

// end ends the filter's input, waits for its end and returns what is wrong.
func (c *conn) end() (status int, problems []Problem, err error) {
	c.close()
	if err := c.wait("its end", func() bool { return c.exited }); err != nil {
		return 0, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check.End()
	return c.status, c.check.Problems(), nil
}

// stop ends what is left of the filter.
func (c *conn) stop() {
	c.close()
	c.mu.Lock()
	exited := c.exited
	c.mu.Unlock()
	if !exited {
		c.kill()
		c.wait("its end", func() bool { return c.exited })
	}
}

func (c *conn) transcript() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.log, "\n")
}

// A Peer is smtpd with one running filter. Its methods end the test when they fail.
type Peer struct {
	t     testing.TB
	c     *conn
	d     *dialogue
	ended bool
}

// Start runs a filter as smtpd 7.8 does and waits until it is ready.
func Start(t testing.TB, cmd ...string) *Peer {
	t.Helper()
	return Program{Cmd: cmd}.Start(t)
}

// Start runs the filter and waits until it is ready. At the end of the test the Peer is closed.
func (p Program) Start(t testing.TB) *Peer {
	t.Helper()
	c, err := p.start(false)
	if err != nil {
		t.Fatal(err)
	}
	peer := &Peer{t: t, c: c, d: newDialogue(c, p.Dir)}
	t.Cleanup(func() {
		defer c.stop()
		peer.Close()
	})
	if err := c.hello(); err != nil {
		peer.fatal(err)
	}
	return peer
}

func (p *Peer) fatal(err error) {
	p.t.Helper()
	p.ended = true
	p.t.Fatalf("%v\n%s", err, p.c.transcript())
}

// Send sends a report or request as smtpd would: not at all if the filter did not register it, and not
// before the session's last request was answered. It reports whether the line was sent.
// Lines that smtpd would not write are sent as they are.
func (p *Peer) Send(line string) bool {
	p.t.Helper()
	sent, err := p.c.send(line)
	if err != nil {
		p.fatal(err)
	}
	return sent
}

// Expect waits for the next answer of a session, given by identifier or as in a dialogue: the phase it answers, and the decision with its parameter,
// "reject|550 no", or one data line.
func (p *Peer) Expect(session, phase, answer string) {
	p.t.Helper()
	k := p.d.talk(session)
	var got out
	err := p.c.wait(phase+" "+answer, func() bool {
		ok := len(p.c.outs[k.id]) > k.read
		if ok {
			got = p.c.outs[k.id][k.read]
		}
		return ok
	})
	if err != nil {
		p.fatal(err)
	}
	k.read++
	if got.phase != phase || got.text != answer {
		p.fatal(fmt.Errorf("session %s: got %s %q, want %s %q", session, got.phase, got.text, phase, answer))
	}
}

// Dialogue plays a dialogue in the language of the package comment, without exit at its end.
func (p *Peer) Dialogue(text string) {
	p.t.Helper()
	steps, err := parseDialogue(text)
	if err == nil {
		err = p.d.run(steps)
	}
	if err == nil {
		err = p.d.rest()
	}
	p.ended = p.ended || p.d.exited
	if err != nil {
		p.fatal(err)
	}
}

// Log returns the complete lines that the filter wrote to its standard error.
func (p *Peer) Log() []string {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return slices.Clone(p.c.stderr)
}

// Signal sends the filter a signal.
func (p *Peer) Signal(s os.Signal) error { return p.c.signal(s) }

// EOF ends the filter's input, as smtpd does when it stops.
func (p *Peer) EOF() { p.c.close() }

// Close ends the filter's input and waits for the filter. Exit status other than 0, problems of the Checker
// and requests without answer fail the test.
func (p *Peer) Close() {
	p.t.Helper()
	if p.ended {
		return
	}
	p.ended = true
	if err := finish(p.c, 0); err != nil {
		p.t.Errorf("%v\n%s", err, p.c.transcript())
	}
}

// finish ends a filter and turns everything that is wrong into an error.
func finish(c *conn, status int) error {
	got, problems, err := c.end()
	if err != nil {
		return err
	}
	var errs []error
	if got != status {
		errs = append(errs, fmt.Errorf("exit status %d, want %d", got, status))
	}
	for i, p := range problems {
		if i == 20 {
			errs = append(errs, fmt.Errorf("and %d more", len(problems)-i))
			break
		}
		errs = append(errs, errors.New(p.String()))
	}
	return errors.Join(errs...)
}

// Replay gives a filter a whole recorded session as its standard input. The filter must answer each request
// of a phase that it registered once, return each message whole, keep all rules, and exit with status 0.
func Replay(t testing.TB, file string, cmd ...string) {
	t.Helper()
	Program{Cmd: cmd}.Replay(t, file)
}

// Replay is the function of the same name for this program.
func (p Program) Replay(t testing.TB, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.replay(data); err != nil {
		t.Fatal(err)
	}
}

// replay returns the answers to a stream.
func (p Program) replay(data []byte) ([]Answer, error) {
	c, err := p.start(true)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	lines := strings.SplitAfter(string(data), "\n")
	c.change(func() {
		for _, l := range lines {
			if line, ok := strings.CutSuffix(l, "\n"); ok {
				c.check.Sent(line)
			}
		}
		c.queue = lines
		c.eof = true
	})
	err = finish(c, 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := []error{err}
	for _, w := range c.check.Warnings() {
		errs = append(errs, errors.New(w.String()))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, strings.Join(c.log, "\n"))
	}
	return c.check.Answers(), nil
}
