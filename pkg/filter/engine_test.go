package filter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/proto"
)

// Whatever a session waits for, a line is kept or answered, and the wait ends.
func TestMachine(t *testing.T) {
	for s := idle; s < numStates; s++ {
		waits := s != idle && s != lost
		if step := machine[s][said]; step == ignore || waits != (step == queue) {
			t.Errorf("state %d: step %d for a line", s, step)
		}
		if ends := machine[s][expired] != ignore; ends != waits {
			t.Errorf("state %d ends with time: %v", s, ends)
		}
		for _, e := range []event{ready, due, returned} {
			if !waits && machine[s][e] != ignore {
				t.Errorf("state %d: something is done about event %d, which it does not wait for", s, e)
			}
		}
	}
}

// writes takes time for each write, and counts them.
type writes struct {
	takes time.Duration
	mu    sync.Mutex
	n     int
	text  strings.Builder
}

func (w *writes) Write(b []byte) (int, error) {
	time.Sleep(w.takes)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.text.Write(b)
}

func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// When Run returns all is written, however long that takes.
func TestRunEndsAfterItsWrites(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := on(Noop, func(s *Session[none], _ Request) Response {
				return Await(Go(s, time.Minute, func(context.Context) none { time.Sleep(after); return none{} }),
					func(none, error) Response { return Junk() })
			})(Options{Log: slog.New(slog.DiscardHandler)})
			out := &writes{takes: 1500 * time.Millisecond}
			in := "config|ready\n" + connect(1) + "\n" + ask(1, Noop, "") + "\n"
			if err := f.Run(t.Context(), strings.NewReader(in), out); err != nil {
				t.Error(err)
			}
			text, n := out.text.String(), out.count()
			time.Sleep(time.Minute)
			if out.count() != n || !strings.HasSuffix(text, "|junk\n") {
				t.Errorf("%d writes before Run returned, %d in all:\n%s", n, out.count(), text)
			}
		})
	}
}

// What comes at once is answered with one write.
func TestOneWrite(t *testing.T) {
	const n = 100
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		f := on(Noop, func(s *Session[none], r Request) Response {
			if r.Arg == "" {
				return Proceed()
			}
			return Await(Go(s, time.Minute, func(context.Context) none { <-release; return none{} }),
				func(none, error) Response { return Junk() })
		})(Options{Log: slog.New(slog.DiscardHandler)})
		in, w := io.Pipe()
		out := &writes{takes: time.Millisecond} // meanwhile others are done
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Run(t.Context(), in, out)
		}()
		say := func(line func(i int) string) {
			var all strings.Builder
			for i := range n {
				all.WriteString(line(i) + "\n")
			}
			io.WriteString(w, all.String())
			time.Sleep(time.Second)
		}
		io.WriteString(w, "config|ready\n")
		say(func(i int) string { return connect(i) })
		before := out.count()
		say(func(i int) string { return ask(i, Noop, "") })
		if got := out.count() - before; got != 1 {
			t.Errorf("%d writes for %d answers that are known at once", got, n)
		}
		say(func(i int) string { return ask(i, Noop, "later") })
		before = out.count()
		close(release)
		time.Sleep(time.Second)
		if got := out.count() - before; got > 2 {
			t.Errorf("%d writes for the results of %d works that end together", got, n)
		}
		w.Close()
		<-ended
		if got := strings.Count(out.text.String(), "filter-result"); got != 2*n {
			t.Errorf("%d answers, want %d", got, 2*n)
		}
	})
}

// Who keeps a promise may hold a lock that the handlers want, and may be a handler.
func TestPromiseIsKeptUnderALock(t *testing.T) {
	var mu sync.Mutex
	var kept func(string)
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.On(Ehlo, func(s *Session[none], _ Request) Response {
			p, done := Promise[string]()
			kept = done
			return Await(p, func(v string, _ error) Response {
				mu.Lock()
				defer mu.Unlock()
				return Reject(550, "", v)
			})
		})
		f.On(Quit, func(*Session[none], Request) Response { kept("in a handler"); return Proceed() })
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, Ehlo, "x"))
		p.want()
		done := make(chan struct{})
		go func() {
			mu.Lock()
			kept("under a lock")
			mu.Unlock()
			close(done)
		}()
		<-done
		p.want(result(1, Ehlo, "reject|550 under a lock"))
		p.send(ask(1, Ehlo, "x"), connect(2), ask(2, Quit, ""))
		p.want(result(1, Ehlo, "reject|550 in a handler"), result(2, Quit, "proceed"))
	})
}

// A handler that does not return, called by whomever, holds nobody else up for long.
func TestStuckInTheGoroutineOfWork(t *testing.T) {
	var block chan struct{}
	f := on(Noop, func(s *Session[none], r Request) Response {
		return Await(Go(s, time.Minute, func(context.Context) none { time.Sleep(time.Second); return none{} }),
			func(none, error) Response {
				if r.Arg == "stuck" {
					<-block
				}
				return Junk()
			})
	})
	play(t, f, func(p *peer) {
		block = make(chan struct{})
		p.send(connect(1), connect(2), connect(3), ask(1, Noop, "stuck"), ask(2, Noop, ""), ask(3, Noop, "stuck"))
		time.Sleep(6 * time.Second)
		p.want(result(2, Noop, "junk"))
		p.send(ask(2, Quit, "")) // it is read by the one reader there is
		p.want(result(2, Quit, "proceed"))
		time.Sleep(15 * time.Second)
		p.want(result(1, Noop, "proceed"), result(3, Noop, "proceed"))
		close(block)
		p.want()
	})
}

// Without handlers to watch nothing wakes up.
func TestNothingWakesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := on(Noop, func(*Session[none], Request) Response { return Proceed() })(Options{Log: slog.New(slog.DiscardHandler)})
		in, w := io.Pipe()
		e := newEngine(t.Context(), f, io.Discard)
		ended := make(chan error)
		go func() { ended <- e.run(in) }()
		for range 3 {
			io.WriteString(w, connect(1)+"\n"+ask(1, Noop, "")+"\n")
			synctest.Wait()
			if !e.watch.on.Load() {
				t.Error("a handler is not watched")
			}
			time.Sleep(3 * time.Second)
			if e.watch.on.Load() {
				t.Error("the watch goes on")
			}
		}
		w.Close()
		<-ended
		synctest.Wait()
	})
}

// smtpd speaks over one socket, of which both standard streams are the ends.
func TestSocket(t *testing.T) {
	end := func(fd int) *os.File { return os.NewFile(uintptr(fd), "socket") }
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := syscall.Dup(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	smtpd, in, out := end(pair[0]), end(pair[1]), end(again)
	i, o := unblocked(in, out)
	if i == io.Reader(in) || o == io.Writer(out) {
		t.Error("the socket blocks threads")
	}
	f := New[none](Options{Log: slog.New(slog.DiscardHandler)})
	f.OnDataLine(func(_ *Session[none], line []byte, out *Lines) { out.Put(line) })
	f.On(MailFrom, func(s *Session[none], _ Request) Response {
		return Await(Go(s, time.Minute, func(context.Context) none { return none{} }), func(none, error) Response { return Reject(550, "", "no") })
	})
	ended := make(chan error)
	go func() { ended <- f.Run(t.Context(), i, o) }()
	lines := bufio.NewReaderSize(smtpd, 1<<20)
	hang := time.AfterFunc(time.Minute, func() { syscall.Shutdown(pair[0], syscall.SHUT_RDWR) })
	defer hang.Stop()
	expect := func(want string) {
		t.Helper()
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %.100q: %v", want, err)
			}
			if line == want+"\n" {
				return
			}
		}
	}
	fmt.Fprintln(smtpd, "config|ready")
	expect("register|ready")
	fmt.Fprintln(smtpd, connect(1))
	for range 100 {
		fmt.Fprintln(smtpd, ask(1, MailFrom, "a"))
		expect(result(1, MailFrom, "reject|550 no"))
	}
	// More than the socket takes, both ways.
	long := strings.Repeat("x", 60_000)
	go func() {
		for range 100 {
			fmt.Fprintln(smtpd, ask(1, proto.DataLine, long))
		}
	}()
	for range 100 {
		expect(data(1, long))
	}
	smtpd.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	in.Close()
	out.Close()
}

// Of what is not smtpd's socket alone nothing is changed: others may have it.
func TestOtherStreams(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	defer a.Close()
	defer b.Close()
	for _, tt := range []struct {
		in  io.Reader
		out io.Writer
	}{{r, w}, {a, b}, {r, a}, {a, w}, {strings.NewReader(""), a}, {a, io.Discard}, {os.Stdin, os.Stdout}} {
		if in, out := unblocked(tt.in, tt.out); in != tt.in || out != tt.out {
			t.Errorf("%T and %T: changed", tt.in, tt.out)
		}
	}
	// A blocking socket has not become another.
	if _, err := syscall.Write(pair[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	if _, err := syscall.Read(pair[0], buf); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { syscall.Write(pair[1], []byte("x")) })
	if _, err := syscall.Read(pair[0], buf); errors.Is(err, syscall.EAGAIN) {
		t.Error("the socket does not block any more")
	}
}
