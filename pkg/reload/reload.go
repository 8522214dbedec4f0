// Package reload keeps what was read from a list file, or from several files of
// one kind, up to date. A file is read again when it has changed, seen by a look
// every 30 seconds, and on SIGHUP. Whatever is wrong with
// a file then, what was read before stays in force and the log says so.
package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Interval is the time between two looks at the files.
	Interval = 30 * time.Second

	// MaxSize is the size in bytes past which a file is refused.
	MaxSize = 64 << 20

	maxLogged = 10 // bad lines of one file in the log
)

var errSize = fmt.Errorf("larger than %d MB", MaxSize>>20)

// A List is what a file is read into. Len returns the number of entries; it is
// called on whatever Parse returned.
type List interface {
	Len() int
}

// Options say what a File reads.
type Options[T List] struct {
	Paths []string

	// Parse reads one file. Each bad line is skipped and gives an error that
	// begins with name and line number. No entry, and at least one error, is a
	// file that is wholly invalid.
	Parse func(r io.Reader, name string) (T, []error)

	// Merge makes the value of those of the files, in the order of Paths. It
	// may be nil if there is one path; if it is set it is called even for one
	// or none, and may add what does not come from a file.
	Merge func(...T) T

	Log *slog.Logger // nil: no log
}

// A File is a value read from files. A nil *File has the zero value of T.
type File[T List] struct {
	value atomic.Pointer[T]
	opts  Options[T]

	mu    sync.Mutex
	parts []part[T]

	hup chan os.Signal // SIGHUP, which would else end the program
}

// A part is one file.
type part[T List] struct {
	path    string
	value   T
	bad     []error     // lines skipped in what value was read from
	seen    os.FileInfo // of what was read last, also if refused; nil: read it
	trouble string      // as last logged, "" for none
}

// Open reads the files. A file that cannot be read or is wholly invalid is an
// error; every such file is named. Single bad lines are logged and skipped: see
// Bad. Without paths and Merge the value is the zero value of T.
func Open[T List](o Options[T]) (*File[T], error) {
	if len(o.Paths) > 1 && o.Merge == nil {
		return nil, fmt.Errorf("%s: only one file can be given", o.Paths[1])
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &File[T]{opts: o, hup: make(chan os.Signal, 1)}
	if len(o.Paths) > 0 {
		signal.Notify(f.hup, syscall.SIGHUP)
	}
	var errs []error
	for _, path := range o.Paths {
		p := part[T]{path: path}
		if err := f.read(&p); err != nil {
			errs = append(errs, err)
		}
		f.parts = append(f.parts, p)
	}
	if errs != nil {
		signal.Stop(f.hup)
		return nil, errors.Join(errs...)
	}
	f.publish()
	return f, nil
}

// Value returns the value in force. It is cheap and takes no lock.
func (f *File[T]) Value() (v T) {
	if f != nil {
		if p := f.value.Load(); p != nil {
			v = *p
		}
	}
	return v
}

// Bad returns an error for each line that was skipped in the files as they are
// in force.
func (f *File[T]) Bad() []error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, p := range f.parts {
		errs = append(errs, p.bad...)
	}
	return errs
}

// Watch looks at the files every Interval, and reads all of them on SIGHUP,
// until ctx ends. What is wrong with a file is logged once, until it changes.
func (f *File[T]) Watch(ctx context.Context) {
	if f == nil || len(f.parts) == 0 {
		return
	}
	defer signal.Stop(f.hup)
	f.watch(ctx)
}

func (f *File[T]) watch(ctx context.Context) {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.check(false)
		case <-f.hup:
			f.check(true)
		case <-ctx.Done():
			return
		}
	}
}

func (f *File[T]) check(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := false
	for i := range f.parts {
		p := &f.parts[i]
		if !all && p.seen != nil {
			if fi, err := os.Stat(p.path); err == nil && same(fi, p.seen) {
				continue
			}
		}
		if err := f.read(p); err != nil {
			if all || err.Error() != p.trouble {
				f.opts.Log.Warn("file not usable, keeping what was read before", "file", p.path, "entries", p.value.Len(), "err", err)
			}
			p.trouble = err.Error()
			continue
		}
		p.trouble = ""
		changed = true
		f.opts.Log.Info("file read again", "file", p.path, "entries", p.value.Len(), "bad", len(p.bad))
	}
	if changed {
		f.publish()
	}
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Read reads one file into p, which keeps its value on error. A panic of Parse is
// one: a file that was edited must not end the filter.
func (f *File[T]) read(p *part[T]) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: panic: %v", p.path, r)
		}
	}()
	p.seen = nil
	// O_NONBLOCK: to open a pipe must not wait for a writer.
	file, err := os.OpenFile(p.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	fi, err := file.Stat() // before the text, so that a later change shows
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", p.path)
	}
	if fi.Size() > MaxSize {
		return fmt.Errorf("%s: %w", p.path, errSize)
	}
	r := &limited{r: file, left: MaxSize} // it may still grow
	value, bad := f.opts.Parse(r, p.path)
	if r.err != nil {
		return fmt.Errorf("%s: %w", p.path, r.err)
	}
	p.seen = fi
	if len(bad) > 0 && value.Len() == 0 {
		return fmt.Errorf("no valid line, the first: %w", bad[0])
	}
	p.value, p.bad = value, bad
	for i, err := range bad {
		if i == maxLogged {
			f.opts.Log.Warn("more bad lines skipped", "file", p.path, "lines", len(bad)-i)
			break
		}
		f.opts.Log.Warn("bad line skipped", "err", err)
	}
	return nil
}

// A limited reader fails past so many bytes, and remembers why it failed.
type limited struct {
	r    io.Reader
	left int64
	err  error
}

func (l *limited) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		n, err = 0, errSize
	}
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

func (f *File[T]) publish() {
	var v T
	values := make([]T, len(f.parts))
	for i, p := range f.parts {
		values[i] = p.value
	}
	switch {
	case f.opts.Merge != nil:
		v = f.opts.Merge(values...)
	case len(values) == 1:
		v = values[0]
	}
	f.value.Store(&v)
}
