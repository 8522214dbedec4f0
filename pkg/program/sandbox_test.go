package program_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/sandbox"
)

// A probe is a filter that tries what it is told with -try, and says what came of
// it on the standard output.
var probeSpec = program.Spec{
	Name: "filter-probe",
	New: func(p *program.Program) func() (program.Check, error) {
		try := p.String("try", "", "WORD:ARGUMENT, ...")
		state := p.String("state", "", "state `FILE`")
		socket := p.String("socket", "", "`PATH`")
		hold := p.Bool("hold", false, "try again for each line that comes")
		return func() (program.Check, error) {
			p.OpenResolver(resolve.Options{})
			if *state != "" {
				p.Need(sandbox.Needs{Write: []string{*state}})
			}
			if *socket != "" {
				p.Need(sandbox.Needs{Unix: []string{*socket}})
			}
			return &probe{toy{p, nil}, strings.Split(*try, ","), *hold}, nil
		}
	},
}

type probe struct {
	toy
	try  []string
	hold bool
}

func (c *probe) Filter() program.Runner { return c }

func (c *probe) Serve(in io.Reader, out io.Writer) int {
	line := make([]byte, 1)
	for {
		for _, t := range c.try {
			fmt.Fprintf(out, "%s %s\n", t, onThreads(t))
		}
		if !c.hold {
			return 0
		}
		if _, err := in.Read(line); err != nil {
			return 0
		}
	}
}

// onThreads tries on several threads at once, as all are to be in the sandbox.
func onThreads(what string) string {
	const n = 8
	var results [n]string
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			runtime.LockOSThread() // and the thread ends
			err := attempt(what)
			switch {
			case err == nil:
				results[i] = "ok"
			case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EPERM):
				results[i] = "denied"
			default:
				results[i] = err.Error()
			}
		})
	}
	all.Wait()
	slices.Sort(results[:])
	return strings.Join(slices.Compact(results[:]), "|")
}

func attempt(what string) error {
	verb, arg, _ := strings.Cut(what, ":")
	switch verb {
	case "read":
		_, err := os.ReadFile(arg)
		return err
	case "list":
		_, err := os.ReadDir(arg)
		return err
	case "write":
		f, err := os.OpenFile(arg, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			f.Close()
		}
		return err
	case "truncate":
		return os.Truncate(arg, 0)
	case "make":
		f, err := os.CreateTemp(arg, "made")
		if err != nil {
			return err
		}
		f.Close()
		err = os.Rename(f.Name(), f.Name()+".new")
		return errors.Join(err, os.Remove(f.Name()+".new"))
	case "mkdir":
		dir, err := os.MkdirTemp(arg, "made")
		os.Remove(dir)
		return err
	case "remove":
		return os.Remove(arg)
	case "exec":
		return exec.Command(arg).Run()
	case "tcp", "unix":
		c, err := net.Dial(verb, arg)
		if err == nil {
			c.Close()
		}
		return err
	case "udp":
		c, err := net.Dial(verb, arg)
		if err == nil {
			_, err = c.Write([]byte("x"))
			c.Close()
		}
		return err
	case "signal":
		var pid int
		fmt.Sscan(arg, &pid)
		return syscall.Kill(pid, 0)
	}
	return errors.New("no such try")
}

// landlock returns the kernel's version of it.
func landlock(t *testing.T) (version int) {
	t.Helper()
	fmt.Sscanf(sandbox.By(), "landlock %d", &version)
	if version > 0 {
		return version
	}
	text := "needs a kernel with Landlock, which says: " + sandbox.By()
	if os.Getenv("CI") != "" {
		t.Fatal(text)
	}
	t.Skip(text)
	return 0
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// probed runs the probe and returns what came of each try.
func probed(t *testing.T, args ...string) (results, log string) {
	t.Helper()
	cmd := exec.Command("filter-probe", append([]string{"-commonList", ""}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, &errs)
	}
	return string(out), errs.String()
}

// What the sandbox takes away, and what it leaves. Without it everything that is
// tried here works, but for what the user may not do.
func TestSandbox(t *testing.T) {
	version := landlock(t)
	dir := t.TempDir()
	for _, f := range []string{"lists/allow", "lists/other", "state/db", "prom/m.prom", "else/file", "else/sub/file"} {
		write(t, filepath.Join(dir, f), "192.0.2.1\n")
	}
	listen := func(network, addr string) net.Listener {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		return l
	}
	dns, other := listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	abstract := listen("unix", "@opensmtpd-filters-"+filepath.Base(dir)+fmt.Sprint(os.Getpid()))
	write(t, filepath.Join(dir, "run/x"), "")
	write(t, filepath.Join(dir, "run2/x"), "")
	listen("unix", dir+"/run/socket")
	listen("unix", dir+"/run2/socket")

	type try struct {
		what   string
		denied bool
		since  int // version of Landlock
	}
	tries := []try{
		{"read:DIR/lists/allow", false, 1}, {"read:DIR/lists/other", false, 1}, {"list:DIR/lists", false, 1},
		{"write:DIR/lists/allow", true, 1}, {"truncate:DIR/lists/allow", true, 3}, {"make:DIR/lists", true, 1},
		{"read:DIR/state/db", false, 1}, {"write:DIR/state/db", false, 1}, {"truncate:DIR/state/db", false, 1},
		{"make:DIR/state", false, 1}, {"mkdir:DIR/state", true, 1}, {"make:DIR/prom", false, 1},
		{"read:DIR/else/file", true, 1}, {"read:DIR/else/sub/file", true, 1}, {"list:DIR/else", true, 1}, {"list:/", true, 1},
		{"write:DIR/else/file", true, 1}, {"truncate:DIR/else/file", true, 3}, {"make:DIR/else", true, 1},
		{"make:DIR", true, 1}, {"mkdir:DIR", true, 1}, {"read:/etc/passwd", true, 1}, {"read:/proc/self/environ", true, 1},
		{"exec:/bin/true", true, 1},
		{"tcp:" + dns.Addr().String(), false, 4}, {"tcp:" + other.Addr().String(), true, 4},
		{"udp:127.0.0.1:9", false, 1},
		{"unix:" + abstract.Addr().String(), true, 6}, {"unix:DIR/run/socket", false, 1}, {"unix:DIR/run2/socket", true, 9},
		{fmt.Sprint("signal:", os.Getpid()), true, 6},
		{"remove:DIR/else/file", true, 1}, // last
	}
	var list []string
	for i := range tries {
		tries[i].what = strings.ReplaceAll(tries[i].what, "DIR", dir)
		list = append(list, tries[i].what)
	}
	args := []string{
		"-resolver", dns.Addr().String(), "-allowClients", dir + "/lists/allow", "-state", dir + "/state/db",
		"-metrics", dir + "/prom/m.prom", "-socket", dir + "/run/socket",
		"-try", strings.Join(list[:len(list)-1], ","),
	}
	results, log := probed(t, append(args, "-sandbox=false")...)
	for _, try := range tries[:len(tries)-1] {
		if !strings.Contains(results, try.what+" ok\n") {
			t.Errorf("without a sandbox: %s does not work, so the test shows nothing\n%s", try.what, results)
		}
	}
	if strings.Contains(log, "sandbox") {
		t.Errorf("with -sandbox=false the log has\n%s", log)
	}
	args[len(args)-1] = strings.Join(list, ",")
	results, log = probed(t, args...)
	for _, try := range tries {
		want := "ok"
		if try.denied && version >= try.since {
			want = "denied"
		}
		if !strings.Contains(results, try.what+" "+want+"\n") {
			t.Errorf("%s: want %s\n%s", try.what, want, results)
		}
	}
	want := fmt.Sprintf("sandbox in force by=%q read=%s write=%s sockets=%s tcp=%s\n", sandbox.By(),
		dir+"/lists", dir+"/prom,"+dir+"/state", dir+"/run", dns.Addr().String()[len("127.0.0.1:"):])
	if strings.Count(log, "sandbox") != 1 || !strings.Contains(log, want) {
		t.Errorf("the log has\n%swant one line about the sandbox,\n%s", log, want)
	}
}

// Commands are run by somebody who may do what he asks for; -n shows what would
// be in force.
func TestSandboxOfCommands(t *testing.T) {
	landlock(t)
	dir := t.TempDir()
	write(t, dir+"/lists/allow", "192.0.2.1\n")
	args := []string{"-commonList", "", "-resolver", "127.0.0.1:5353", "-allowClients", dir + "/lists/allow"}
	out, err := exec.Command("filter-probe", append(args, "-n")...).CombinedOutput()
	want := sandbox.By() + ": read " + dir + "/lists, write -, connect to TCP ports 5353\n"
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("-n: %v\n%swant %q", err, out, want)
	}
	out, err = exec.Command("filter-probe", append(args, "-sandbox=false", "-n")...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "TCP ports") {
		t.Errorf("-n: %v\n%s", err, out)
	}
	out, err = exec.Command("filter-probe", append(args, "explain", "192.0.2.1")...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "sandbox") {
		t.Errorf("explain: %v\n%s", err, out)
	}
}

// Files may be replaced; a folder that was is named, with what to do.
func TestSandboxReload(t *testing.T) {
	landlock(t)
	dir := t.TempDir()
	write(t, dir+"/lists/allow", "192.0.2.1\n")
	write(t, dir+"/else/allow", "192.0.2.1\n192.0.2.2\n192.0.2.3\n")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "filter-probe", "-commonList", "", "-resolver", "127.0.0.1:9", "-allowClients", dir+"/lists/allow", "-hold")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	log := newLog()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	log.wait(ctx, t, "sandbox in force")
	hup := func(wants ...string) {
		t.Helper()
		for _, w := range wants { // a signal may come before the filter listens
			log.again(ctx, t, w, func() { cmd.Process.Signal(syscall.SIGHUP) })
		}
		log.clear()
	}
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(dir+from, dir+to); err != nil {
			t.Fatal(err)
		}
	}
	hup("entries=1 ")
	write(t, dir+"/lists/new", "192.0.2.1\n192.0.2.2\n")
	rename("/lists/new", "/lists/allow")
	hup("file read again file=" + dir + "/lists/allow entries=2 ")

	os.Remove(dir + "/lists/allow")
	if err := os.Symlink(dir+"/else/allow", dir+"/lists/allow"); err != nil {
		t.Fatal(err)
	}
	hup("file not usable, keeping what was read before file="+dir+"/lists/allow entries=2 ", "restart smtpd, once it is as it will stay folder="+dir+"/else\n")
	os.Remove(dir + "/lists/allow")
	write(t, dir+"/lists/allow", "192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\n")
	hup("entries=4 ")

	rename("/lists", "/old")
	rename("/else", "/lists")
	hup("file not usable, keeping what was read before file="+dir+"/lists/allow entries=4 ", "restart smtpd, once it is as it will stay folder="+dir+"/lists\n")
}

// A logged is the log of a filter, to be waited for.
type logged struct {
	mu   sync.Mutex
	text []byte
}

func newLog() *logged { return new(logged) }

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func (l *logged) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = nil
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func (l *logged) wait(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	l.again(ctx, t, want, func() {})
}

// again does something every second until the log has what is wanted.
func (l *logged) again(ctx context.Context, t *testing.T, want string, do func()) {
	t.Helper()
	for n := 0; !strings.Contains(l.String(), want); n++ {
		if n%50 == 0 {
			do()
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %q in the log:\n%s", want, l)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
