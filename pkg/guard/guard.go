// Package guard holds what every part of a filter needs so that nothing it meets
// ends the filter, floods the log, or does harm to a file that is not its own:
//
//   - a goroutine, or a call, whose panic is logged and ends nothing else: Go,
//     Keep, Run, Call, AfterFunc;
//   - a complaint that is logged at most once a minute: Complaints;
//   - a file replaced as a whole, or opened, that is never another one: Replace,
//     Open, Owner.
package guard

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Pauses of Keep.
const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// Go calls f in a goroutine of its own. A panic of f is logged under the name
// what, a session id or some words such as "metrics", and ends f only. Log may be
// nil.
func Go(log *slog.Logger, what string, f func()) {
	go Run(log, what, f)
}

// Keep is Go for what has to run as long as ctx: after a panic f is called again,
// after a second, and after longer up to a minute if that happens again and
// again. When f returns it is not. The channel is closed when f is never called
// again.
func Keep(ctx context.Context, log *slog.Logger, what string, f func(context.Context)) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pause := firstPause
		for {
			began := time.Now()
			if Run(log, what, func() { f(ctx) }) {
				return
			}
			if time.Since(began) > maxPause {
				pause = firstPause
			}
			wait := time.NewTimer(pause)
			select {
			case <-wait.C:
			case <-ctx.Done():
				wait.Stop()
				return
			}
			pause = min(2*pause, maxPause)
		}
	}()
	return ended
}

// AfterFunc is time.AfterFunc with a function whose panic is logged as that of
// Go.
func AfterFunc(log *slog.Logger, d time.Duration, what string, f func()) *time.Timer {
	return time.AfterFunc(d, func() { Run(log, what, f) })
}

// Run calls f here. A panic is logged as that of Go. It reports whether f has
// returned without one.
func Run(log *slog.Logger, what string, f func()) (ok bool) {
	err := Call(func() error { f(); return nil })
	if p, ok := err.(*Panic); ok {
		Log(log, what, p)
	}
	return err == nil
}

// Call returns the error of f. If f panics that is a *Panic, which is not logged.
func Call(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &Panic{p, frames()}
		}
	}()
	return f()
}

// A Panic is one that was recovered.
type Panic struct {
	Value any
	Stack string // the functions it came from, innermost first, on one line
}

// Error returns what the panic says.
func (p *Panic) Error() string { return "panic: " + p.text() }

// text survives a value that panics when it is printed: fmt sees to that.
func (p *Panic) text() string { return fmt.Sprint(p.Value) }

// Log logs a panic as an error. Log may be nil.
func Log(log *slog.Logger, what string, p *Panic) {
	if log != nil {
		log.Error(what, "panic", p.text(), "stack", p.Stack)
	}
}

// frames returns the functions between a panic and its recovery, short enough for
// one line of log.
func frames() string {
	var pcs [64]uintptr
	next := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	var list []string
	below := false // past runtime.gopanic
	for {
		f, more := next.Next()
		if below && !strings.HasPrefix(f.Function, "runtime.") {
			name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]
			if name == "guard.Call" {
				return strings.Join(list, ", ")
			}
			list = append(list, fmt.Sprintf("%s %s:%d", name, filepath.Base(f.File), f.Line))
		}
		below = below || f.Function == "runtime.gopanic"
		if !more || len(list) == 6 {
			return strings.Join(list, ", ")
		}
	}
}
