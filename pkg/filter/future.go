package filter

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
)

// ErrBusy is the error of a future whose work was not started, because too much
// is under way: 64 works of one client (an IPv4 address or IPv6 /64) for its
// transactions, or 8,192 in all. It says as much as a server that does not
// answer.
var ErrBusy = errors.New("too much work under way")

var errNoWork = errors.New("no work was started")

// lateness is what work may take to notice that its time is over. Work that does
// has its result counted: it knows best what to say without an answer.
const lateness = 100 * time.Millisecond

// A Future is the result of work that a handler has started and does not wait
// for.
type Future[T any] struct {
	mu    sync.Mutex
	done  bool
	value T
	err   error
	wake  []func() (lead func())
}

// Go starts work for a session, in a goroutine of its own, and returns at once.
// The work has the given time: then its context ends, and a little later the
// future is done with context.DeadlineExceeded if the work goes on. When the
// session ends first, so does the context, and the future is done with
// context.Canceled. A panic is logged and makes an error. The work must not
// touch the session; what it needs it is given before.
//
// Use it for work of which a session has one at a time. A HELO name may be given
// again and again: look up the first with Go when it is reported
// (proto.LinkIdentify), another one only where it is awaited, with GoTx.
func Go[T, S any](s *Session[S], timeout time.Duration, work func(context.Context) T) *Future[T] {
	return begin(s, &s.life, netip.Prefix{}, timeout, work)
}

// GoTx is Go for the transaction: the work ends with it, by RSET, another MAIL
// FROM, the end of the message or of the session. It is for what a client gives
// in MAIL FROM and after, which it may give again and again; so it counts for
// the client, see ErrBusy. Of the reports it needs tx-reset.
func GoTx[T, S any](s *Session[S], timeout time.Duration, work func(context.Context) T) *Future[T] {
	return begin(s, &s.txLife, clientOf(s.Src.Addr()), timeout, work)
}

// GoOn is Go for work that is done even if the session ends, such as keeping a
// record of it.
func GoOn[T, S any](s *Session[S], timeout time.Duration, work func(context.Context) T) *Future[T] {
	return begin(s, nil, netip.Prefix{}, timeout, work)
}

// Done returns a future that is done, for what is known without waiting: it costs
// nothing, while Go starts a goroutine and timers.
func Done[T any](v T) *Future[T] { return &Future[T]{done: true, value: v} }

// Promise returns a future that is done when done is called, the first time. It is
// for what is waited for and not worked at, such as something that one task of
// the program sees to for all sessions: it costs no goroutine, does not count for
// ErrBusy, and the deadline of the request is its only limit. Done is called by
// any goroutine, but by a handler only before the future is awaited.
func Promise[T any]() (f *Future[T], done func(T)) {
	f = &Future[T]{}
	return f, func(v T) {
		if lead := f.resolve(v, nil); lead != nil {
			go lead() // whoever calls may hold a lock
		}
	}
}

func begin[T, S any](s *Session[S], l *life, client netip.Prefix, timeout time.Duration, work func(context.Context) T) *Future[T] {
	f := &Future[T]{}
	c := s.run
	var zero T
	if !c.enter(client) {
		f.resolve(zero, ErrBusy)
		return f
	}
	bound := l.context(c.ctx)
	ctx, cancel := context.WithTimeout(bound, timeout)
	// Whichever comes first ends the future; a late result is dropped.
	end := func(v T, err error) {
		if lead := f.resolve(v, err); lead != nil {
			lead()
		}
	}
	late := time.AfterFunc(timeout+lateness, func() { end(zero, context.DeadlineExceeded) })
	unbind := context.AfterFunc(bound, func() { end(zero, context.Canceled) })
	id := s.ID
	go func() {
		var v T
		err := guard.Call(func() error { v = work(ctx); return nil })
		c.panicked(id, err)
		late.Stop()
		unbind()
		cancel()
		c.leave(client)
		end(v, err) // it may not return
	}()
	return f
}

// A life is a time that work is bound to. When it ends, another begins.
type life struct {
	mu     sync.Mutex // a handler that was left behind may start work too
	ctx    context.Context
	cancel context.CancelFunc
}

// context returns one that ends with the life, or with parent if there is none.
func (l *life) context(parent context.Context) context.Context {
	if l == nil {
		return parent
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancel(parent)
	}
	return l.ctx
}

func (l *life) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx != nil {
		l.cancel()
		l.ctx, l.cancel = nil, nil
	}
}

// resolve ends the future, if it has not ended before. If somebody awaits it, the
// caller is to call lead, or have it called: see engine.lead.
func (f *Future[T]) resolve(v T, err error) (lead func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return nil
	}
	f.done, f.value, f.err = true, v, err
	for _, wake := range f.wake {
		lead = wake()
	}
	f.wake = nil
	return lead
}

// ready reports whether the future is done; if it is not, wake is called when
// it is, and leaves a note.
func (f *Future[T]) ready(wake func() (lead func())) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.wake = append(f.wake, wake)
	}
	return f.done
}

// Await is the answer that then gives once f is done. It is called like a
// handler, with the result of the work or the error that f ended with:
// context.DeadlineExceeded, context.Canceled, ErrBusy or a panic. If that takes longer than the
// deadline of the request, the answer is Proceed and then is not called.
//
// A nil future, of a session whose OnSession did not come that far, is an error
// too.
func Await[T any](f *Future[T], then func(T, error) Response) Response {
	if f == nil {
		f = &Future[T]{done: true, err: errNoWork}
	}
	return Response{later: &later{
		ready: f.ready,
		then:  func() Response { return then(f.value, f.err) },
	}}
}

// later is an answer that cannot be given yet.
type later struct {
	ready func(wake func() (lead func())) bool
	then  func() Response
}
