package filter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/proto"
)

// peer is smtpd's end of a filter that runs under synctest.
type peer struct {
	t    *testing.T
	in   *io.PipeWriter
	out  buffer
	log  buffer
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// take returns what has come since the last call.
func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.b.String()
	b.b.Reset()
	return s
}

// play runs a filter in a bubble of synctest, past its registrations.
func play[S any](t *testing.T, f func(Options) *Filter[S], script func(p *peer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &peer{t: t, done: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		p.stop = stop
		in, w := io.Pipe()
		p.in = w
		filter := f(Options{Log: slog.New(slog.NewTextHandler(&p.log, nil))})
		go func() {
			p.err = filter.Run(ctx, in, &p.out)
			in.Close()
			close(p.done)
		}()
		p.send("config|ready")
		if s := p.out.take(); !strings.HasSuffix(s, "register|ready\n") {
			t.Fatalf("registration: %q", s)
		}
		script(p)
		p.in.Close()
		<-p.done
		stop()
		time.Sleep(time.Hour) // work that goes on although nobody waits for it
	})
}

// send writes lines and waits until the filter has nothing more to do at once.
func (p *peer) send(lines ...string) {
	p.t.Helper()
	for _, l := range lines {
		if _, err := io.WriteString(p.in, l+"\n"); err != nil {
			p.t.Fatalf("writing %q: %v", l, err)
		}
	}
	synctest.Wait()
}

// want checks the answers that have come since the last call.
func (p *peer) want(lines ...string) {
	p.t.Helper()
	synctest.Wait()
	got := strings.Split(strings.TrimSuffix(p.out.take(), "\n"), "\n")
	if len(got) == 1 && got[0] == "" {
		got = nil
	}
	// Sessions are answered in any order, the lines of one in theirs.
	bySession := func(a, b string) int { return strings.Compare(a[:32], b[:32]) }
	slices.SortStableFunc(got, bySession)
	slices.SortStableFunc(lines, bySession)
	if !slices.Equal(got, lines) {
		p.t.Fatalf("answers:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// said checks that the log has a line with all of the texts, since the last call.
func (p *peer) said(texts ...string) {
	p.t.Helper()
	log := p.log.take()
	for line := range strings.Lines(log) {
		all := true
		for _, s := range texts {
			all = all && strings.Contains(line, s)
		}
		if all {
			return
		}
	}
	p.t.Fatalf("no line of the log has %q:\n%s", texts, log)
}

// Sessions are numbered, tokens are those of the phase.

func session(n int) string { return fmt.Sprintf("%016x", n) }

func token(p proto.Phase) string { return fmt.Sprintf("%016x", 0xa0+int(p)) }

func report(n int, e proto.Event, fields string) string {
	s := fmt.Sprintf("report|0.7|1795322216.000000|smtp-in|%s|%s", e, session(n))
	if fields != "" {
		s += "|" + fields
	}
	return s
}

func connect(n int) string {
	return report(n, proto.LinkConnect, "mail.sender.example|pass|198.51.100.7:35341|192.0.2.25:25")
}

func ask(n int, p proto.Phase, arg string) string {
	return fmt.Sprintf("filter|0.7|1795322216.000000|smtp-in|%s|%s|%s|%s", p, session(n), token(p), arg)
}

func result(n int, p proto.Phase, answer string) string {
	return "filter-result|" + session(n) + "|" + token(p) + "|" + answer
}

func data(n int, line string) string {
	return "filter-dataline|" + session(n) + "|" + token(proto.DataLine) + "|" + line
}

type none = struct{}

// on returns a filter with one handler.
func on[S any](p Phase, h func(*Session[S], Request) Response) func(Options) *Filter[S] {
	return func(o Options) *Filter[S] {
		f := New[S](o)
		f.On(p, h)
		return f
	}
}

func TestRegistration(t *testing.T) {
	f := New[none](Options{})
	f.SetHeader("X-Test", func(*Session[none]) string { return "" })
	f.OnReport(proto.TxCommit, func(*Session[none], *proto.Line) {})
	f.On(Quit, func(*Session[none], Request) Response { return Proceed() })
	f.Decide(Helo, func(*Session[none], Request) Response { return Proceed() })
	var out bytes.Buffer
	if err := f.Run(t.Context(), strings.NewReader("config|smtpd-version|x\nconfig|new|y\nconfig|ready\nconfig|ready\n"), &out); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, s := range []string{
		"link-connect", "link-identify", "link-tls", "link-auth", "link-disconnect",
		"tx-mail", "tx-rcpt", "tx-commit", "tx-reset",
	} {
		want.WriteString("register|report|smtp-in|" + s + "\n")
	}
	for _, s := range []string{"helo", "ehlo", "mail-from", "rcpt-to", "data", "data-line", "commit", "quit"} {
		want.WriteString("register|filter|smtp-in|" + s + "\n")
	}
	want.WriteString("register|ready\n")
	if out.String() != want.String() {
		t.Errorf("registered:\n%swant:\n%s", out.String(), want.String())
	}

	// Who needs little may ask for little.
	g := New[none](Options{Reports: []proto.Event{proto.LinkDisconnect, proto.LinkConnect}})
	out.Reset()
	if err := g.Run(t.Context(), strings.NewReader("config|ready\n"), &out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "register|report|smtp-in|link-connect\nregister|report|smtp-in|link-disconnect\nregister|ready\n" {
		t.Errorf("registered:\n%s", got)
	}
}

// Whatever a handler answers, smtpd gets a line that it survives.
func TestAnswersAreSafe(t *testing.T) {
	long := strings.Repeat("x", 600)
	tests := []struct {
		phase Phase
		r     Response
		want  string
	}{
		{MailFrom, Response{}, "proceed"},
		{MailFrom, Proceed(), "proceed"},
		{MailFrom, Junk(), "junk"},
		{Commit, Junk(), "proceed"},
		{Connect, Junk(), "junk"},
		{Connect, Reject(550, "5.7.1", "no"), "disconnect|550 5.7.1 no"},
		{RcptTo, Reject(550, "", "no | really"), "reject|550 no | really"},
		{RcptTo, Reject(250, "", "ok"), "reject|451 ok"},
		{RcptTo, Reject(600, "", "ok"), "reject|451 ok"},
		{RcptTo, Reject(550, "", " \r\n"), "reject|550 refused"},
		{RcptTo, Reject(550, "", ""), "reject|550 refused"},
		{RcptTo, Reject(550, "", "a\r\nb\tc\x00d\xffe"), "reject|550 a  b c?d?e"},
		{RcptTo, Reject(550, "", long), "reject|550 " + long[:496]},
		{Data, Disconnect(421, "4.3.2", "later"), "disconnect|421 4.3.2 later"},
		{Ehlo, Rewrite("mail.example.org"), "rewrite|mail.example.org"},
		{MailFrom, Rewrite("a@example.org"), "rewrite|<a@example.org>"},
		{MailFrom, Rewrite(""), "rewrite|<>"},
		{RcptTo, Rewrite("<a@example.org> NOTIFY=NEVER"), "rewrite|<a@example.org> NOTIFY=NEVER"},
		{RcptTo, Rewrite(""), "proceed"},
		{RcptTo, Rewrite("a\nfilter-result"), "proceed"},
		{Data, Rewrite("x"), "proceed"},
		{Commit, Rewrite("x"), "proceed"},
		{MailFrom, Rewrite(strings.Repeat("x", 70_000)), "proceed"},
	}
	for _, tt := range tests {
		play(t, on(tt.phase, func(*Session[none], Request) Response { return tt.r }), func(p *peer) {
			p.send(connect(1), ask(1, tt.phase, "x"))
			p.want(result(1, tt.phase, tt.want))
		})
	}
}

// A session that waits holds up neither the others nor itself for ever.
func TestWork(t *testing.T) {
	type state struct{ f *Future[string] }
	var work func(context.Context) string
	f := func(o Options) *Filter[state] {
		f := New[state](o)
		f.OnSession(func(s *Session[state]) {
			if s.ID != session(2) {
				s.Local.f = Go(s, 3*time.Second, work)
			}
		})
		f.On(MailFrom, func(s *Session[state], _ Request) Response {
			if s.Local.f == nil {
				return Proceed()
			}
			return Await(s.Local.f, func(v string, err error) Response {
				if err != nil {
					return Reject(451, "", err.Error())
				}
				return Reject(550, "", v)
			})
		})
		return f
	}
	other := func(p *peer) {
		p.t.Helper()
		p.send(connect(2), ask(2, MailFrom, ""))
		p.want(result(2, MailFrom, "proceed"))
	}

	work = func(ctx context.Context) string { time.Sleep(2 * time.Second); return "done" }
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, MailFrom, "a"))
		p.want()
		other(p)
		time.Sleep(1900 * time.Millisecond)
		p.want()
		time.Sleep(200 * time.Millisecond)
		p.want(result(1, MailFrom, "reject|550 done"))
		// The result is there for the next request.
		p.send(ask(1, MailFrom, "b"))
		p.want(result(1, MailFrom, "reject|550 done"))
	})

	block := make(chan struct{})
	work = func(ctx context.Context) string { <-block; return "late" }
	play(t, f, func(p *peer) {
		block = make(chan struct{})
		p.send(connect(1), ask(1, MailFrom, "a"))
		other(p)
		time.Sleep(3100 * time.Millisecond)
		p.want(result(1, MailFrom, "reject|451 context deadline exceeded"))
		close(block)
		p.want()
	})

	work = func(ctx context.Context) string { panic("work") }
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, MailFrom, "a"))
		p.want(result(1, MailFrom, "reject|451 panic: work"))
		p.said(session(1), "panic=work", "stack=")
		other(p)
	})

	// The client has left before the answer: it still comes, once.
	work = func(ctx context.Context) string { time.Sleep(time.Second); return "done" }
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, MailFrom, "a"), report(1, proto.LinkDisconnect, ""))
		p.want()
		time.Sleep(2 * time.Second)
		p.want(result(1, MailFrom, "reject|550 done"))
		p.send(ask(1, MailFrom, "b"))
		p.want(result(1, MailFrom, "proceed")) // the session is unknown now
	})
}

// The context of work ends with its time.
func TestWorkContext(t *testing.T) {
	var took time.Duration
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.OnSession(func(s *Session[none]) {
			Go(s, time.Second, func(ctx context.Context) none {
				start := time.Now()
				<-ctx.Done()
				took = time.Since(start)
				return none{}
			})
		})
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1))
		time.Sleep(5 * time.Second)
	})
	if took != time.Second {
		t.Errorf("the context ended after %v, want 1s", took)
	}
}

// A request has a deadline, whatever its work does.
func TestDeadline(t *testing.T) {
	f := on(Data, func(s *Session[none], _ Request) Response {
		slow := func(ctx context.Context) none { <-ctx.Done(); return none{} }
		return Await(Go(s, 10*time.Second, slow), func(none, error) Response {
			return Await(Go(s, 10*time.Second, slow), func(none, error) Response { return Reject(550, "", "never") })
		})
	})
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, Data, ""))
		time.Sleep(14 * time.Second)
		p.want()
		time.Sleep(2 * time.Second)
		p.want(result(1, Data, "proceed"))
		p.said(session(1), "no answer in time", "phase=data")
		// The work ends now; that must not answer the next request.
		p.send(ask(1, Data, ""))
		time.Sleep(14 * time.Second)
		p.want()
		time.Sleep(2 * time.Second)
		p.want(result(1, Data, "proceed"))
	})
	// Each request has a deadline of its own.
	g := on(Data, func(s *Session[none], _ Request) Response {
		return Await(Go(s, 12*time.Second, func(context.Context) none { time.Sleep(11 * time.Second); return none{} }),
			func(_ none, err error) Response { return Reject(550, "", fmt.Sprint(err)) })
	})
	play(t, g, func(p *peer) {
		p.send(connect(1), ask(1, Data, ""), ask(1, Data, ""))
		time.Sleep(30 * time.Second)
		p.want(result(1, Data, "reject|550 <nil>"), result(1, Data, "reject|550 <nil>"))
	})
	// So has a handler that finds ever more to wait for, though all of it is there.
	h := on(Data, func(s *Session[none], _ Request) Response {
		done := Go(s, time.Second, func(context.Context) none { return none{} })
		var again func(none, error) Response
		again = func(none, error) Response { return Await(done, again) }
		return Await(done, again)
	})
	play(t, h, func(p *peer) {
		p.send(connect(1), ask(1, Data, ""))
		p.want(result(1, Data, "proceed"))
	})
}

// Work that ends when its time is over has its say.
func TestWorkNotices(t *testing.T) {
	f := on(Data, func(s *Session[none], _ Request) Response {
		return Await(Go(s, 2*time.Second, func(ctx context.Context) string { <-ctx.Done(); return "unclear" }),
			func(v string, err error) Response { return Reject(451, "", fmt.Sprint(v, err)) })
	})
	for range 20 {
		play(t, f, func(p *peer) {
			p.send(connect(1), ask(1, Data, ""))
			time.Sleep(3 * time.Second)
			p.want(result(1, Data, "reject|451 unclear<nil>"))
		})
	}
	// Also after a signal.
	g := on(Data, func(s *Session[none], _ Request) Response {
		return Await(Go(s, 2*time.Second, func(ctx context.Context) error {
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
			}
			return ctx.Err()
		}), func(v, err error) Response { return Reject(451, "", fmt.Sprint(v, err)) })
	})
	play(t, g, func(p *peer) {
		p.send(connect(1), ask(1, Data, ""))
		p.stop()
		<-p.done
		p.want(result(1, Data, "reject|451 <nil> <nil>"))
	})
}

// Lines of a waiting session keep their order.
func TestOrder(t *testing.T) {
	var seen []string
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.On(RcptTo, func(s *Session[none], r Request) Response {
			seen = append(seen, r.Arg+" of "+s.Tx.From)
			return Await(Go(s, time.Minute, func(context.Context) none { time.Sleep(time.Second); return none{} }),
				func(none, error) Response { return Reject(550, "", r.Arg) })
		})
		f.OnReport(proto.TxReset, func(s *Session[none], _ *proto.Line) { seen = append(seen, "reset") })
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), report(1, proto.TxMail, "00000001|ok|a@x.example"), ask(1, RcptTo, "1"), ask(1, RcptTo, "2"),
			report(1, proto.TxReset, "00000001"), report(1, proto.TxMail, "00000002|ok|b@x.example"), ask(1, RcptTo, "3"))
		time.Sleep(5 * time.Second)
		p.want(result(1, RcptTo, "reject|550 1"), result(1, RcptTo, "reject|550 2"), result(1, RcptTo, "reject|550 3"))
	})
	if got := strings.Join(seen, ", "); got != "1 of a@x.example, 2 of a@x.example, reset, 3 of b@x.example" {
		t.Errorf("seen: %s", got)
	}
}

func TestPanic(t *testing.T) {
	f := func(o Options) *Filter[int] {
		f := New[int](o)
		f.OnSession(func(s *Session[int]) {
			panic("session")
		})
		f.OnClose(func(s *Session[int]) { panic("close") })
		f.OnReport(proto.TxReset, func(s *Session[int], _ *proto.Line) { panic("report") })
		f.On(Ehlo, func(s *Session[int], _ Request) Response { panic("ehlo") })
		f.On(MailFrom, func(s *Session[int], _ Request) Response {
			return Await(Go(s, time.Second, func(context.Context) none { return none{} }), func(none, error) Response { panic("then") })
		})
		f.OnDataLine(func(s *Session[int], line []byte, out *Lines) {
			out.Put([]byte("half"))
			panic("line")
		})
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(9))
		p.said("panic=session", "TestPanic")
		p.send(ask(9, Ehlo, "x"))
		p.want(result(9, Ehlo, "proceed"))
		p.said(session(9), "panic=ehlo")
		p.send(ask(9, MailFrom, "x"))
		p.want(result(9, MailFrom, "proceed"))
		p.said("panic=then")
		p.send(ask(9, proto.DataLine, "Subject: x"), ask(9, proto.DataLine, "."))
		p.want(data(9, "Subject: x"), data(9, "."))
		p.said("panic=line")
		p.send(report(9, proto.TxReset, "00000001"))
		p.said("panic=report")
		p.send(report(9, proto.LinkDisconnect, ""))
		p.said("panic=close")
		p.send(connect(1), ask(1, Quit, ""))
		p.want(result(1, Quit, "proceed"))
		p.send(report(1, proto.LinkDisconnect, ""))
	})
}

// What OnSession was to start may not be there.
func TestAwaitNothing(t *testing.T) {
	f := func(o Options) *Filter[*Future[none]] {
		f := New[*Future[none]](o)
		f.OnSession(func(s *Session[*Future[none]]) { panic("session") })
		f.On(Data, func(s *Session[*Future[none]], _ Request) Response {
			return Await(s.Local, func(_ none, err error) Response { return Reject(451, "", fmt.Sprint(err)) })
		})
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, Data, ""))
		p.want(result(1, Data, "reject|451 no work was started"))
	})
}

// Whatever handler does not return, and whenever, the filter goes on and ends.
func TestStuckAnywhere(t *testing.T) {
	block := make(chan struct{})
	stuck := map[string]func(f *Filter[int]){
		"OnSession": func(f *Filter[int]) {
			f.OnSession(func(s *Session[int]) {
				if s.ID == session(1) {
					<-block
				}
			})
		},
		"OnClose":  func(f *Filter[int]) { f.OnClose(func(*Session[int]) { <-block }) },
		"OnReport": func(f *Filter[int]) { f.OnReport(proto.TxReset, func(*Session[int], *proto.Line) { <-block }) },
		"then": func(f *Filter[int]) {
			f.On(Noop, func(s *Session[int], _ Request) Response {
				return Await(Go(s, time.Second, func(context.Context) none { return none{} }), func(none, error) Response { <-block; return Junk() })
			})
		},
		"On before Decide": func(f *Filter[int]) {
			f.On(RcptTo, func(*Session[int], Request) Response { <-block; return Proceed() })
		},
		"header": func(f *Filter[int]) { f.SetHeader("X-Test", func(*Session[int]) string { <-block; return "x" }) },
	}
	for name, set := range stuck {
		for _, released := range []bool{false, true} {
			t.Run(fmt.Sprint(name, released), func(t *testing.T) {
				calls := 0
				f := func(o Options) *Filter[int] {
					f := New[int](o)
					f.Decide(RcptTo, func(*Session[int], Request) Response { calls++; return Reject(550, "", "no") })
					f.OnDataLine(func(_ *Session[int], line []byte, out *Lines) { calls++; out.Put(line) })
					set(f)
					return f
				}
				play(t, f, func(p *peer) {
					block = make(chan struct{})
					p.send(connect(1), report(1, proto.TxReset, "x"), ask(1, Noop, ""), ask(1, RcptTo, "a"),
						ask(1, proto.DataLine, "A: x"), ask(1, proto.DataLine, "."), report(1, proto.LinkDisconnect, ""), connect(1), ask(1, Quit, ""))
					if released {
						time.Sleep(5 * time.Second)
						close(block)
					}
					time.Sleep(time.Minute)
					out := p.out.take()
					if n := strings.Count(out, "filter-result|"+session(1)); n != 3 {
						t.Errorf("%d answers, want 3:\n%s", n, out)
					}
					if n := strings.Count(out, "filter-dataline|"+session(1)); n < 2 || !strings.HasSuffix(strings.Split(out, "|.\n")[0], token(proto.DataLine)) {
						t.Errorf("data lines:\n%s", out)
					}
					p.send(report(1, proto.TxReset, "x"), connect(2), ask(2, RcptTo, "a"), ask(2, proto.DataLine, "A: x"))
					time.Sleep(time.Minute)
					if out := p.out.take(); strings.Count(out, session(2)) < 2 {
						t.Errorf("another session: %q", out)
					}
					start := time.Now()
					p.in.Close()
					<-p.done
					if d := time.Since(start); d > 8*time.Second {
						t.Errorf("the filter ended after %v", d)
					}
					if !released {
						close(block)
					}
				})
			})
		}
	}
}

// When nobody reads the answers any more, the filter ends.
func TestOutputGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, w := io.Pipe()
		out, closed := io.Pipe()
		done := make(chan error)
		f := on(Noop, func(*Session[none], Request) Response { return Proceed() })(Options{Log: slog.New(slog.DiscardHandler)})
		go func() { done <- f.Run(t.Context(), in, closed); in.Close() }()
		out.Close()
		io.WriteString(w, "config|ready\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	// Or does not read them: a signal ends it all the same.
	synctest.Test(t, func(t *testing.T) {
		in, w := io.Pipe()
		out, blocked := io.Pipe()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		f := on(Noop, func(*Session[none], Request) Response { return Proceed() })(Options{Log: slog.New(slog.DiscardHandler)})
		go func() { done <- f.Run(ctx, in, blocked); in.Close() }()
		go func() {
			io.WriteString(w, "config|ready\n"+connect(1)+"\n")
			for {
				if _, err := io.WriteString(w, ask(1, Noop, "")+"\n"); err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Second)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		out.Close()
	})
}

// A handler that does not return is left behind: the others go on, its request
// and what follows are answered.
func TestStuckHandler(t *testing.T) {
	block := make(chan struct{})
	stuck := func(s *Session[int]) bool { return s.ID == session(1) || s.ID == session(3) }
	f := func(o Options) *Filter[int] {
		f := New[int](o)
		f.On(MailFrom, func(s *Session[int], r Request) Response {
			if stuck(s) {
				<-block
				return Reject(550, "", "late "+r.Arg)
			}
			return Reject(550, "", "no")
		})
		f.OnDataLine(func(s *Session[int], line []byte, out *Lines) {
			if stuck(s) {
				out.Put([]byte("half"))
				<-block
				_ = string(line) // still its own
			}
			out.Put(line)
		})
		return f
	}
	for _, what := range []struct{ ask, passed string }{
		{ask(1, MailFrom, "a"), result(1, MailFrom, "proceed")},
		{ask(1, proto.DataLine, "Subject: a"), data(1, "Subject: a")},
	} {
		play(t, f, func(p *peer) {
			block = make(chan struct{})
			p.send(connect(1), connect(2))
			p.send(what.ask + "\n" + ask(2, MailFrom, "b") + "\n" + ask(1, proto.DataLine, "."))
			time.Sleep(2100 * time.Millisecond)
			p.want(result(2, MailFrom, "reject|550 no"))
			p.said(session(1), "handler does not return")
			p.send(ask(2, MailFrom, "b")) // and again, at once
			p.want(result(2, MailFrom, "reject|550 no"))
			time.Sleep(11 * time.Second)
			p.want()
			time.Sleep(2 * time.Second)
			p.want(what.passed, data(1, "."))
			// Its handlers are not called any more.
			p.send(ask(1, MailFrom, "a"))
			p.want(result(1, MailFrom, "proceed"))
			close(block)
			p.want()
			p.send(report(1, proto.LinkDisconnect, ""), ask(2, MailFrom, "b"))
			p.want(result(2, MailFrom, "reject|550 no"))
		})
		// One that returns in time answers itself.
		play(t, f, func(p *peer) {
			block = make(chan struct{})
			p.send(connect(1), what.ask, ask(1, proto.DataLine, "."))
			time.Sleep(5 * time.Second)
			close(block)
			if strings.Contains(what.ask, "mail-from") {
				p.want(result(1, MailFrom, "reject|550 late a"), data(1, "."))
			} else {
				p.want(what.passed, data(1, "."))
			}
		})
		// Even at the end of the input, and twice.
		play(t, f, func(p *peer) {
			block = make(chan struct{})
			p.send(connect(1), connect(2), connect(3))
			p.send(what.ask + "\n" + ask(3, MailFrom, "c") + "\n" + ask(2, MailFrom, "b"))
			p.in.Close()
			time.Sleep(6 * time.Second)
			p.want(result(2, MailFrom, "reject|550 no"), what.passed, result(3, MailFrom, "proceed"))
			<-p.done
			close(block)
		})
	}
}

func TestDelay(t *testing.T) {
	f := on(Ehlo, func(s *Session[none], r Request) Response {
		d, _ := time.ParseDuration(r.Arg)
		return Reject(550, "", "no").After(d)
	})
	play(t, f, func(p *peer) {
		p.send(connect(1), connect(2), ask(1, Ehlo, "5s"), ask(2, Ehlo, "0s"))
		p.want(result(2, Ehlo, "reject|550 no"))
		time.Sleep(4900 * time.Millisecond)
		p.want()
		time.Sleep(200 * time.Millisecond)
		p.want(result(1, Ehlo, "reject|550 no"))

		// One answer waits at most 30 s, a session 5 minutes in all.
		start := time.Now()
		for n := range 12 {
			p.send(ask(2, Ehlo, "1h"))
			time.Sleep(31 * time.Second)
			p.want(result(2, Ehlo, "reject|550 no"))
			if n == 9 && time.Since(start) != 310*time.Second {
				t.Errorf("ten delays took %v", time.Since(start))
			}
		}
		p.send(ask(2, Ehlo, "1h"))
		p.want(result(2, Ehlo, "reject|550 no"))

		// A hundred sessions wait, the next one does not.
		for n := 100; n < 200; n++ {
			p.send(connect(n), ask(n, Ehlo, "10s"))
		}
		p.want()
		p.send(connect(3), ask(3, Ehlo, "10s"))
		p.want(result(3, Ehlo, "reject|550 no"))
		p.in.Close() // the delayed ones are answered, as decided
		time.Sleep(2 * time.Second)
		if got := strings.Count(p.out.take(), "|reject|550 no\n"); got != 100 {
			t.Errorf("%d answers at the end of the input, want 100", got)
		}
	})
	// A delay may follow work, and a panic of it.
	g := on(Ehlo, func(s *Session[none], r Request) Response {
		return Await(Go(s, time.Second, func(context.Context) none { return none{} }),
			func(none, error) Response { return Proceed().After(time.Second) })
	})
	play(t, g, func(p *peer) {
		p.send(connect(1), ask(1, Ehlo, "x"))
		p.want()
		time.Sleep(2 * time.Second)
		p.want(result(1, Ehlo, "proceed"))
	})
}

// At the end of the input all that was read is answered, within a second.
func TestEnd(t *testing.T) {
	f := on(MailFrom, func(s *Session[none], r Request) Response {
		d, _ := time.ParseDuration(r.Arg)
		return Await(Go(s, time.Minute, func(context.Context) none { time.Sleep(d); return none{} }),
			func(none, error) Response { return Junk() })
	})
	ends := map[string]func(p *peer){
		"end of input": func(p *peer) { p.in.Close() },
		"signal":       func(p *peer) { p.stop() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			play(t, f, func(p *peer) {
				p.send(connect(1), connect(2), ask(1, MailFrom, "10s"), ask(2, MailFrom, "500ms"),
					ask(1, Quit, ""), ask(1, MailFrom, "10s"))
				start := time.Now()
				end(p)
				<-p.done
				if d := time.Since(start); d > time.Second {
					t.Errorf("the filter ended after %v", d)
				}
				if p.err != nil {
					t.Error(p.err)
				}
				p.want(result(2, MailFrom, "junk"), result(1, MailFrom, "proceed"), result(1, Quit, "proceed"), result(1, MailFrom, "proceed"))
			})
		})
	}
}

// A line that is not understood is skipped, a request that can be answered is.
func TestBadInput(t *testing.T) {
	good := ask(1, Quit, "")
	lines := []string{
		"", "\r", "|", "||||||||", "config", "report", "filter|0.7", "hello, world",
		strings.Replace(good, "0.7", "1.0", 1),
		strings.Replace(good, "quit", "nosuch", 1),
		strings.Replace(good, session(1), "x", 1),
		strings.Replace(good, "smtp-in", "smtp-out", 1),
		report(1, proto.LinkConnect, ""), report(1, proto.LinkConnect, "a|b|c|d"), report(1, proto.TxMail, "x"), report(1, proto.LinkAuth, "x"),
		report(7, proto.TxReset, "x"),
		strings.Replace(report(1, proto.TxReset, ""), "tx-reset", "nosuch", 1),
	}
	f := on(Quit, func(s *Session[none], r Request) Response { return Junk() })
	play(t, f, func(p *peer) {
		p.send(connect(1))
		for _, l := range lines {
			p.send(l)
			p.want()
			p.send(good)
			p.want(result(1, Quit, "junk"))
		}
		p.send(strings.Replace(good, "0.7", "0.99", 1))
		p.want(result(1, Quit, "junk"))
		p.send(ask(5, Quit, ""), ask(5, proto.DataLine, "x"), ask(5, proto.DataLine, ".")) // no such session
		p.want(result(5, Quit, "proceed"), data(5, "x"), data(5, "."))
		p.send(ask(1, Rset, ""), ask(1, proto.DataLine, "x")) // no handler
		p.want(result(1, Rset, "proceed"), data(1, "x"))
		p.send(connect(1), good) // the session anew
		p.want(result(1, Quit, "junk"))
		io.WriteString(p.in, "filter|0.7|1795322216.000000|smtp-in|quit|"+session(1)+"|"+token(Quit))
		p.in.Close()
		<-p.done
		p.want()
		if p.err != nil {
			t.Error(p.err)
		}
	})
	// The log is kept short.
	play(t, f, func(p *peer) {
		for range 1000 {
			p.send("hello")
		}
		if n := strings.Count(p.log.take(), "\n"); n != 1 {
			t.Errorf("%d lines of log for 1000 bad lines", n)
		}
		time.Sleep(2 * time.Minute)
		p.send("hello")
		p.said("line skipped", "hello", "more=999")
	})
	// A strict filter ends.
	lines = append(lines, ask(5, Quit, ""), ask(5, proto.DataLine, "x"))
	for _, l := range lines {
		f := New[none](Options{Strict: true, Log: slog.New(slog.DiscardHandler)})
		f.OnReport(proto.TxReset, func(*Session[none], *proto.Line) {})
		var out bytes.Buffer
		err := f.Run(t.Context(), strings.NewReader("config|ready\n"+connect(1)+"\n"+l+"\n"+good+"\n"), &out)
		if l == report(7, proto.TxReset, "x") {
			continue
		}
		if err == nil || strings.Contains(out.String(), "filter-result") {
			t.Errorf("strict filter, %q: %v, %q", l, err, out.String())
		}
	}
}

// Requests that repeat session and token are each answered.
func TestRepeatedRequest(t *testing.T) {
	n := 0
	f := on(RcptTo, func(s *Session[none], r Request) Response { n++; return Reject(550, "", fmt.Sprint(n)) })
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, RcptTo, "a"), ask(1, RcptTo, "a"), ask(1, RcptTo, "a"))
		p.want(result(1, RcptTo, "reject|550 1"), result(1, RcptTo, "reject|550 2"), result(1, RcptTo, "reject|550 3"))
	})
}

func TestVersions(t *testing.T) {
	f := on(Quit, func(s *Session[none], r Request) Response { return Reject(550, "", s.User+" "+s.Tx.From) })
	tests := []struct{ version, auth, mail string }{
		{"0.4", "we|ird|pass", "00000001|a|b@x.example|ok"},
		{"0.6", "we|ird|pass", "00000001|ok|a|b@x.example"},
		{"0.7", "pass|we|ird", "00000001|ok|a|b@x.example"},
	}
	for _, tt := range tests {
		play(t, f, func(p *peer) {
			for _, l := range []string{connect(1), report(1, proto.LinkAuth, tt.auth), report(1, proto.TxMail, tt.mail), ask(1, Quit, "")} {
				p.send(strings.Replace(l, "|0.7|", "|"+tt.version+"|", 1))
			}
			want := result(1, Quit, "reject|550 we|ird a|b@x.example")
			if tt.version == "0.4" {
				want = strings.Replace(want, session(1)+"|"+token(Quit), token(Quit)+"|"+session(1), 1)
			}
			p.want(want)
		})
	}
}

func TestSessionState(t *testing.T) {
	f := on(Noop, func(s *Session[none], _ Request) Response {
		return Reject(550, "", fmt.Sprintf("%v %v %t %s %t %s %s %s %v %v", s.Src, s.Dst, s.Unix(), s.RDNS, s.FCrDNS, s.Helo, s.TLS, s.User, s.Tx, s.Time().UnixMicro()))
	})
	play(t, f, func(p *peer) {
		want := func(s string) {
			t.Helper()
			p.send(ask(1, Noop, ""))
			p.want(result(1, Noop, "reject|550 "+s+" 1795322216000000"))
		}
		p.send(report(1, proto.LinkConnect, "<unknown>|fail|[fe80::1%em0]:25|[::]:25"))
		want("[fe80::1%em0]:25 [::]:25 false <unknown> false    {  []}")
		p.send(connect(1), report(1, proto.LinkIdentify, "EHLO|a.example"), report(1, proto.LinkTLS, "TLSv1.3:X:256"), report(1, proto.LinkAuth, "fail|eve"))
		want("198.51.100.7:35341 192.0.2.25:25 false mail.sender.example true a.example TLSv1.3:X:256  {  []}")
		p.send(report(1, proto.LinkIdentify, "EHLO|b.example"), report(1, proto.LinkAuth, "pass|bob"), report(1, proto.LinkAuth, "fail|eve"),
			report(1, proto.TxMail, "00000000|permfail|bad@x.example"))
		want("198.51.100.7:35341 192.0.2.25:25 false mail.sender.example true b.example TLSv1.3:X:256 bob {  []}")
		p.send(report(1, proto.TxMail, "00000001|ok|a@x.example"), report(1, proto.TxMail, "00000001|permfail|b@x.example"),
			report(1, proto.TxRcpt, "00000001|ok|1@x.example"), report(1, proto.TxRcpt, "00000002|ok|4@x.example"),
			strings.Replace(report(1, proto.TxRcpt, "00000001|ok|5@x.example"), "smtp-in", "smtp-out", 1), report(1, proto.TxRcpt, "00000001|permfail|2@x.example"), report(1, proto.TxRcpt, "00000001|ok|3@x.example"))
		want("198.51.100.7:35341 192.0.2.25:25 false mail.sender.example true b.example TLSv1.3:X:256 bob {00000001 a@x.example [1@x.example 3@x.example]}")
		p.send(report(1, proto.TxReset, "00000001"))
		want("198.51.100.7:35341 192.0.2.25:25 false mail.sender.example true b.example TLSv1.3:X:256 bob {  []}")
		p.send(report(1, proto.LinkConnect, "mx.example.org|pass|unix:/var/run/smtpd.sock|unix:/var/run/smtpd.sock"))
		want("invalid AddrPort invalid AddrPort true mx.example.org true    {  []}")
	})
}

func TestDecide(t *testing.T) {
	var calls int
	var answer Response
	f := func(at Phase) func(o Options) *Filter[none] {
		return func(o Options) *Filter[none] {
			f := New[none](o)
			f.Decide(at, func(s *Session[none], _ Request) Response {
				calls++
				return Await(Go(s, time.Second, func(context.Context) none { return none{} }), func(none, error) Response { return answer })
			})
			return f
		}
	}
	type step struct {
		phase Phase // 0: the transaction ends
		want  string
		calls int
	}
	reject := "reject|550 no"
	tests := []struct {
		name   string
		at     Phase
		answer Response
		steps  []step
	}{
		{"proceed is said once a session", Connect, Proceed(), []step{
			{Connect, "proceed", 1}, {Ehlo, "proceed", 1}, {MailFrom, "proceed", 1}, {0, "", 1}, {MailFrom, "proceed", 1}}},
		{"or once a transaction", MailFrom, Proceed(), []step{
			{Connect, "proceed", 0}, {Ehlo, "proceed", 0}, {MailFrom, "proceed", 1}, {RcptTo, "proceed", 1}, {0, "", 1}, {MailFrom, "proceed", 2}}},
		{"a refusal is repeated", Helo, Reject(550, "", "no").After(time.Millisecond), []step{
			{Connect, "proceed", 0}, {Ehlo, reject, 1}, {Helo, reject, 1}, {MailFrom, reject, 1}, {Commit, reject, 1}}},
		{"the connect request went to another filter", Connect, Reject(550, "", "no"), []step{
			{Ehlo, reject, 1}, {MailFrom, reject, 1}}},
		{"each transaction is decided", MailFrom, Reject(550, "", "no"), []step{
			{MailFrom, reject, 1}, {RcptTo, reject, 1}, {MailFrom, reject, 2}}},
		{"an earlier filter has taken mail-from", MailFrom, Reject(550, "", "no"), []step{
			{RcptTo, reject, 1}, {RcptTo, reject, 1}, {0, "", 1}, {RcptTo, reject, 2}}},
		{"junk is said once, it holds", Connect, Junk(), []step{
			{Connect, "junk", 1}, {Ehlo, "proceed", 1}, {MailFrom, "proceed", 1}, {0, "", 1}, {MailFrom, "proceed", 1}}},
		{"junk at rcpt-to holds for one message", Connect, Junk(), []step{
			{RcptTo, "junk", 1}, {RcptTo, "proceed", 1}, {Data, "proceed", 1}, {0, "", 1}, {RcptTo, "junk", 1}, {Data, "proceed", 1}}},
		{"junk at data, each time", Data, Junk(), []step{
			{MailFrom, "proceed", 0}, {Data, "junk", 1}, {Commit, "proceed", 1}, {0, "", 1}, {MailFrom, "proceed", 1}, {Data, "junk", 2}}},
		{"junk at mail-from holds for the session", MailFrom, Junk(), []step{
			{MailFrom, "junk", 1}, {RcptTo, "proceed", 1}, {0, "", 1}, {MailFrom, "proceed", 2}, {RcptTo, "proceed", 2}}},
		{"nothing is decided yet", RcptTo, Undecided(), []step{
			{RcptTo, "proceed", 1}, {RcptTo, "proceed", 2}, {Data, "proceed", 3}}},
		{"at commit there is no junk", Data, Junk(), []step{{Commit, "proceed", 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls, answer = 0, tt.answer
			play(t, f(tt.at), func(p *peer) {
				p.send(connect(1))
				for i, s := range tt.steps {
					if s.phase == 0 {
						p.send(report(1, proto.TxReset, "00000001"))
					} else {
						p.send(ask(1, s.phase, ""))
						time.Sleep(time.Second)
						p.want(result(1, s.phase, s.want))
					}
					if calls != s.calls {
						t.Fatalf("step %d: %d calls, want %d", i+1, calls, s.calls)
					}
				}
			})
		})
	}
}

// Where a phase has a handler of its own, Decide's comes after it.
func TestOnAndDecide(t *testing.T) {
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.On(RcptTo, func(_ *Session[none], r Request) Response {
			if r.Arg == "trap" {
				return Reject(550, "", "trap")
			}
			return Proceed()
		})
		f.Decide(RcptTo, func(_ *Session[none], r Request) Response { return Reject(451, "", r.Phase.String()+" "+r.Arg) })
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, RcptTo, "trap"), ask(1, RcptTo, "a"), ask(1, RcptTo, "trap"), ask(1, Data, ""))
		p.want(result(1, RcptTo, "reject|550 trap"), result(1, RcptTo, "reject|451 rcpt-to a"),
			result(1, RcptTo, "reject|550 trap"), result(1, Data, "reject|451 rcpt-to a"))
	})
}

// The decision waits for the handler before it, also if that one waits.
func TestOnWaitsBeforeDecide(t *testing.T) {
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.On(MailFrom, func(s *Session[none], r Request) Response {
			return Await(Go(s, time.Minute, func(context.Context) none { time.Sleep(time.Second); return none{} }),
				func(none, error) Response {
					if r.Arg == "trap" {
						return Reject(550, "", "trap")
					}
					return Proceed().After(2 * time.Second)
				})
		})
		f.Decide(MailFrom, func(s *Session[none], r Request) Response { return Rewrite("b@x.example") })
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, MailFrom, "trap"))
		time.Sleep(1100 * time.Millisecond)
		p.want(result(1, MailFrom, "reject|550 trap"))
		p.send(ask(1, MailFrom, "a"))
		time.Sleep(2900 * time.Millisecond)
		p.want()
		time.Sleep(200 * time.Millisecond)
		p.want(result(1, MailFrom, "rewrite|<b@x.example>"))
		p.send(ask(1, RcptTo, "bob@x.example")) // is not rewritten to it
		p.want(result(1, RcptTo, "proceed"))
	})
}

// Junk at NOOP holds for the transaction, if there is one.
func TestJunkScope(t *testing.T) {
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		for _, p := range []Phase{Noop, RcptTo, Rset} {
			f.On(p, func(*Session[none], Request) Response { return Junk() })
		}
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, Rset, ""), report(1, proto.TxMail, "00000001|ok|a"), ask(1, Noop, ""), ask(1, RcptTo, ""), report(1, proto.TxReset, "00000001"),
			report(1, proto.TxMail, "00000002|ok|a"), ask(1, RcptTo, ""), report(1, proto.TxReset, "00000002"), ask(1, Noop, ""), ask(1, RcptTo, ""))
		p.want(result(1, Rset, "junk"), result(1, Noop, "junk"), result(1, RcptTo, "proceed"), result(1, RcptTo, "junk"), result(1, Noop, "junk"), result(1, RcptTo, "proceed"))
	})
}

// Work ends with what it was begun for, and its context with it. What is awaited
// has been begun for what is still there.
func TestWorkEnds(t *testing.T) {
	type state struct{ ofSession, ofTx, on *Future[error] }
	running := map[string]int{}
	var mu sync.Mutex
	work := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			mu.Lock()
			running[name]++
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			running[name]--
			return ctx.Err()
		}
	}
	f := func(o Options) *Filter[state] {
		f := New[state](o)
		f.OnSession(func(s *Session[state]) { s.Local.ofSession = Go(s, time.Minute, work("session")) })
		f.OnReport(proto.TxMail, func(s *Session[state], _ *proto.Line) {
			s.Local.ofTx = GoTx(s, time.Minute, work("tx"))
			s.Local.on = GoOn(s, time.Minute, work("on"))
		})
		f.On(MailFrom, func(*Session[state], Request) Response { return Proceed() })
		f.On(Data, func(s *Session[state], _ Request) Response {
			return Await(s.Local.ofTx, func(_ error, err error) Response { return Reject(451, "", fmt.Sprint(err)) })
		})
		return f
	}
	play(t, f, func(p *peer) {
		running = map[string]int{}
		want := func(session, tx, on int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if running["session"] != session || running["tx"] != tx || running["on"] != on {
				t.Fatalf("under way: %v, want %d %d %d", running, session, tx, on)
			}
		}
		mail := func(id string) []string {
			return []string{ask(1, MailFrom, "a@x.example"), report(1, proto.TxBegin, id), report(1, proto.TxMail, id+"|ok|a@x.example")}
		}
		p.send(connect(1))
		p.send(mail("00000001")...)
		want(1, 1, 1)
		p.send(report(1, proto.TxRollback, "00000001"), report(1, proto.TxReset, "00000001"))
		want(1, 0, 1)
		// Pipelined.
		var lines []string
		for i := range 1000 {
			id := fmt.Sprintf("%08x", 2+i)
			lines = append(lines, mail(id)...)
			lines = append(lines, report(1, proto.TxReset, id))
		}
		p.send(strings.Join(lines, "\n"))
		want(1, 0, 1001)
		// A MAIL FROM that was refused leaves no transaction to reset.
		time.Sleep(time.Minute)
		p.out.take()
		p.send(mail("0000fff1")...)
		p.send(ask(1, MailFrom, "b@x.example"))
		want(0, 0, 1)
		p.send(connect(2))
		p.send(mail("0000fff2")...)
		want(1, 1, 2)
		p.send(report(2, proto.LinkDisconnect, ""))
		want(0, 1, 2)
		p.send(report(1, proto.LinkDisconnect, ""))
		want(0, 0, 2)
		time.Sleep(time.Minute)

		// An answer is not lost when its session begins anew.
		p.out.take()
		p.send(connect(1))
		p.send(mail("0000fff3")...)
		p.out.take()
		p.send(ask(1, Data, ""), report(1, proto.LinkDisconnect, ""))
		want(1, 1, 1)
		p.want()
		time.Sleep(10*time.Second + 5*time.Second) // the request's deadline
		p.want(result(1, Data, "proceed"))
		want(0, 0, 1)
	})
}

// client is connect from an address.
func client(n int, addr string) string {
	return report(n, proto.LinkConnect, "mail.sender.example|pass|"+addr+"|192.0.2.25:25")
}

// A client has a bound of work for its transactions, beyond which it gets no more and nobody else
// notices.
func TestWorkOfClient(t *testing.T) {
	busy := map[string]int{}
	f := on(Noop, func(s *Session[none], _ Request) Response {
		who := s.Src.String()
		return Await(GoTx(s, time.Minute, func(ctx context.Context) none { <-ctx.Done(); return none{} }),
			func(_ none, err error) Response {
				if err == ErrBusy {
					busy[who]++
				}
				return Proceed()
			})
	})
	forSession := on(Noop, func(s *Session[none], _ Request) Response {
		return Await(Go(s, time.Second, func(ctx context.Context) none { <-ctx.Done(); return none{} }),
			func(_ none, err error) Response { return Reject(451, "", fmt.Sprint(err)) })
	})
	for _, tt := range []struct {
		name string
		addr func(i int) string
		most int
	}{
		{"address", func(i int) string { return fmt.Sprintf("198.51.100.7:%d", 1024+i) }, maxClientWork},
		{"mapped", func(i int) string { return fmt.Sprintf("[::ffff:198.51.100.7]:%d", 1024+i) }, maxClientWork},
		{"a /64", func(i int) string { return fmt.Sprintf("[2001:db8::%x]:25", 1+i) }, maxClientWork},
		{"three /64s", func(i int) string { return fmt.Sprintf("[2001:db8:0:%x::%x]:25", i%3, 1+i) }, 3 * maxClientWork},
		{"local", func(int) string { return "unix:/var/run/smtpd.sock" }, 1000},
	} {
		play(t, f, func(p *peer) {
			clear(busy)
			for i := range 1000 {
				p.send(client(1+i, tt.addr(i)), ask(1+i, Noop, ""))
			}
			if n := 1000 - strings.Count(p.out.take(), "proceed"); n != tt.most {
				t.Errorf("%s: %d works under way, want %d", tt.name, n, tt.most)
			}
			p.send(client(2000, "203.0.113.1:25"), client(2001, "[2001:db8:1::1]:25"), ask(2000, Noop, ""), ask(2001, Noop, ""))
			p.want()
			time.Sleep(14 * time.Second)
			p.want()
			time.Sleep(2 * time.Second)
			if n := strings.Count(p.out.take(), "proceed"); n != tt.most+2 {
				t.Errorf("%s: %d answers, want %d", tt.name, n, tt.most+2)
			}
			if busy["203.0.113.1:25"]+busy["[2001:db8:1::1]:25"] != 0 {
				t.Errorf("%s: others had to do without", tt.name)
			}
			if tt.most < 1000 {
				p.said("too much work under way")
			}
			for i := range 1000 {
				p.send(report(1+i, proto.LinkDisconnect, ""))
			}
			p.send(client(1, tt.addr(0)), ask(1, Noop, "")) // there is room again
			p.want()
		})
	}
	// Who comes with many connections at once is not let pass for that.
	play(t, forSession, func(p *peer) {
		for i := range 10 * maxClientWork {
			p.send(connect(1+i), ask(1+i, Noop, ""))
		}
		p.want()
		time.Sleep(1050 * time.Millisecond)
		if n := strings.Count(p.out.take(), "451 <nil>"); n != 10*maxClientWork {
			t.Errorf("%d answers, want %d", n, 10*maxClientWork)
		}
	})
}

// However much work is under way, the reader reads on.
func TestWorkBound(t *testing.T) {
	release := make(chan struct{})
	busy := 0
	f := on(Noop, func(s *Session[none], _ Request) Response {
		return Await(Go(s, time.Hour, func(context.Context) none { <-release; return none{} }), func(_ none, err error) Response {
			if err == ErrBusy {
				busy++
			}
			return Proceed()
		})
	})
	play(t, f, func(p *peer) {
		release = make(chan struct{})
		n := maxWork + 100
		var lines []string
		for i := range n {
			lines = append(lines, client(i+1, fmt.Sprintf("10.1.%d.%d:25", i>>8, i&255)), ask(i+1, Noop, ""))
		}
		p.send(strings.Join(lines, "\n"))
		if out := p.out.take(); busy != 100 || strings.Count(out, "proceed") != 100 {
			t.Errorf("%d works refused, %d answers, want 100", busy, strings.Count(out, "proceed"))
		}
		p.send(connect(n+1), ask(n+1, Quit, ""))
		p.want(result(n+1, Quit, "proceed"))
		close(release)
		p.send(connect(1), ask(1, Quit, ""))
		if out := p.out.take(); strings.Count(out, "proceed") != maxWork+1 {
			t.Errorf("%d answers, want %d", strings.Count(out, "proceed"), maxWork+1)
		}
	})
}

// What is promised is no work: more sessions than may have work wait for it, none
// has a goroutine, and only the deadline ends it.
func TestPromise(t *testing.T) {
	var kept []func(string)
	f := on(Connect, func(s *Session[none], _ Request) Response {
		p, done := Promise[string]()
		kept = append(kept, done)
		return Await(p, func(v string, err error) Response { return Reject(554, "", fmt.Sprint(v, err)) })
	})
	play(t, f, func(p *peer) {
		kept = nil
		n := maxWork + 100
		before := runtime.NumGoroutine()
		var lines []string
		for i := range n {
			lines = append(lines, client(i+1, fmt.Sprintf("10.1.%d.%d:25", i>>8, i&255)), ask(i+1, Connect, ""))
		}
		p.send(strings.Join(lines, "\n"))
		p.want()
		if more := runtime.NumGoroutine() - before; more > 10 {
			t.Errorf("%d goroutines more", more)
		}
		for _, done := range kept[:n-1] {
			done("said")
			done("twice")
		}
		synctest.Wait()
		if out := p.out.take(); strings.Count(out, "disconnect|554 said<nil>\n") != n-1 {
			t.Errorf("%d answers, want %d", strings.Count(out, "554 said"), n-1)
		}
		time.Sleep(16 * time.Second)
		p.want(result(n, Connect, "proceed"))
		kept[n-1]("late")
	})
	// It may be kept before it is awaited.
	g := on(Connect, func(s *Session[none], _ Request) Response {
		p, done := Promise[string]()
		done("at once")
		return Await(p, func(v string, err error) Response { return Reject(554, "", fmt.Sprint(v, err)) })
	})
	play(t, g, func(p *peer) {
		p.send(connect(1), ask(1, Connect, ""))
		p.want(result(1, Connect, "disconnect|554 at once<nil>"))
	})
}

// While the output is blocked nothing is read but what the buffers hold; lines
// for a session that waits are bounded too.
func TestBounds(t *testing.T) {
	release := make(chan struct{})
	f := on(MailFrom, func(s *Session[none], _ Request) Response {
		return Await(Go(s, 10*time.Second, func(context.Context) none { <-release; return none{} }),
			func(none, error) Response { return Proceed() })
	})
	play(t, f, func(p *peer) {
		release = make(chan struct{})
		p.send(connect(1), ask(1, MailFrom, ""))
		line := ask(1, proto.DataLine, strings.Repeat("x", 60_000)) + "\n"
		sent := 0
		stopped := make(chan struct{})
		go func() {
			for range 2 * maxHeld / len(line) {
				if _, err := io.WriteString(p.in, line); err != nil {
					break
				}
				sent += len(line)
			}
			close(stopped)
		}()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("the filter has read everything")
		default:
		}
		close(release)
		<-stopped
		p.send(ask(1, Quit, ""))
		if out := p.out.take(); strings.Count(out, "filter-dataline") != 2*maxHeld/len(line) {
			t.Errorf("%d data lines have come back of %d", strings.Count(out, "filter-dataline"), sent/len(line))
		}
	})
}

// Work that never ends does not grow without limit.
func TestTooMuchWork(t *testing.T) {
	release := make(chan struct{})
	var busy int
	f := on(Noop, func(s *Session[none], _ Request) Response {
		return Await(Go(s, time.Second, func(context.Context) none { <-release; return none{} }),
			func(_ none, err error) Response {
				if err == ErrBusy {
					busy++
				}
				return Proceed()
			})
	})
	play(t, f, func(p *peer) {
		release = make(chan struct{})
		for round := range 4 {
			n := maxWork / 2
			for i := range n {
				p.send(connect(1+round*n+i), ask(1+round*n+i, Noop, ""))
			}
			time.Sleep(2 * time.Second)
			if got := strings.Count(p.out.take(), "proceed"); got != n {
				t.Fatalf("round %d: %d answers, want %d", round, got, n)
			}
		}
		close(release)
		time.Sleep(time.Second)
		if busy != maxWork {
			t.Errorf("%d works refused, want %d", busy, maxWork)
		}
		p.send(ask(1, Noop, ""))
		p.want(result(1, Noop, "proceed"))
	})
}
