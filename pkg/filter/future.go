package filter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrBusy is the error of a future whose work was not started, because too much
// of it does not end.
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
	wake  []func()
}

// Go starts work for a session, in a goroutine of its own, and returns at once.
// The work has the given time: then its context ends, and a little later the future is done with
// context.DeadlineExceeded if the work goes on. A panic is logged
// and makes an error. The work must not touch the session; what it needs it is
// given before.
func Go[T, S any](s *Session[S], timeout time.Duration, work func(context.Context) T) *Future[T] {
	f := &Future[T]{}
	c := s.run
	var zero T
	if !c.enter() {
		f.resolve(zero, ErrBusy)
		return f
	}
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	// Whichever comes first ends the future; a late result is dropped.
	late := time.AfterFunc(timeout+lateness, func() {
		if f.resolve(zero, context.DeadlineExceeded) {
			c.abandon()
		}
	})
	go func() {
		defer cancel()
		v, err := recovered(ctx, s.ID, c, work)
		late.Stop()
		c.leave(f.resolve(v, err))
	}()
	return f
}

func recovered[T any](ctx context.Context, id string, c *core, work func(context.Context) T) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.panicked(id, p)
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return work(ctx), nil
}

// resolve ends the future, and reports whether it had not ended before.
func (f *Future[T]) resolve(v T, err error) bool {
	f.mu.Lock()
	if f.done {
		f.mu.Unlock()
		return false
	}
	f.done, f.value, f.err = true, v, err
	wake := f.wake
	f.wake = nil
	f.mu.Unlock()
	for _, w := range wake {
		w()
	}
	return true
}

// ready reports whether the future is done; if it is not, wake is called when
// it is.
func (f *Future[T]) ready(wake func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.wake = append(f.wake, wake)
	}
	return f.done
}

// Await is the answer that then gives once f is done. It is called like a
// handler, with the result of the work or the error that f ended with:
// context.DeadlineExceeded, ErrBusy or a panic. If that takes longer than the
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
	ready func(wake func()) bool
	then  func() Response
}
