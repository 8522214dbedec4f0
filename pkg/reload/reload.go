// Package reload keeps what was read from a list file, or from several files of
// one kind, up to date. A file is read again when it has changed, seen by a look
// every 30 seconds, and on SIGHUP.
//
// A file that is missing or cannot be read at the start is an empty list until it
// can: a filter that ends takes the mail server down. Whatever is wrong with a
// file later, what was read before stays in force. Both are said once an hour.
//
//	lists, err := reload.Open(reload.Options[*ipset.Set]{Paths: paths, Parse: ipset.Parse, Merge: ipset.Merge, Log: log})
//	...
//	go reload.Watch(ctx, lists, others)
package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/guard"
)

const (
	// Interval is the time between two looks at the files.
	Interval = 30 * time.Second

	// MaxSize is the size in bytes past which a file is refused.
	MaxSize = 64 << 20

	maxLogged = 10 // bad lines of one file in the log
	repeat    = time.Hour
	agreement = 10 * time.Second // until a file is empty that was not
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
	// file that is wholly invalid. A panic of Parse or Merge is logged, and what
	// was read before stays in force.
	Parse func(r io.Reader, name string) (T, []error)

	// Merge makes the value of those of the files, in the order of Paths. It
	// may be nil if there is one path; if it is set it is called even for one
	// or none, and may add what does not come from a file.
	Merge func(...T) T

	Optional bool // a missing file is no reason for a warning

	Log *slog.Logger // nil: no log
}

// A File is a value read from files. A nil *File has the zero value of T.
type File[T List] struct {
	value atomic.Pointer[T]
	opts  Options[T]

	mu    sync.Mutex // held while files are read
	parts []part[T]

	badMu sync.Mutex
	bad   []error  // what Bad returns
	times sync.Map // see ReadAt: time.Time by path

	hup chan os.Signal // SIGHUP, which would else end the program
}

// A part is one file.
type part[T List] struct {
	path    string
	value   T
	has     bool        // value was read from the file
	bad     []error     // lines skipped in what value was read from
	seen    os.FileInfo // of what was read last, also if refused; nil: read it
	trouble error       // what keeps the file from being read, nil for nothing
	logged  time.Time   // when trouble was logged, zero for never
	emptied time.Time   // since when the file has nothing and value has, zero for not
}

// errInvalid marks a file without a valid line.
type errInvalid struct{ error }

// Open reads the files. A file that is wholly invalid is an error; every such
// file is named. One that is missing, or is not a file, or cannot be read, counts
// as empty and is logged: see Bad. Single bad lines are logged and skipped.
// Without paths and Merge the value is the zero value of T.
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
		err := f.read(&p, true)
		if invalid := (errInvalid{}); errors.As(err, &invalid) {
			errs = append(errs, err)
		} else {
			f.note(&p, err, false)
		}
		f.parts = append(f.parts, p)
	}
	if err := f.publish(); err != nil {
		errs = append(errs, err)
	}
	if errs != nil {
		signal.Stop(f.hup)
		return nil, errors.Join(errs...)
	}
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
// in force, and for each file that is missing or cannot be used as it is.
func (f *File[T]) Bad() []error {
	if f == nil {
		return nil
	}
	f.badMu.Lock()
	defer f.badMu.Unlock()
	return slices.Clone(f.bad)
}

// A Watcher is a File of any type, or what has files.
type Watcher interface{ Watch(context.Context) }

// Watch watches all files of a program until ctx ends, and returns then, even if
// a look at one of them hangs, as it may on a file system of another machine.
// Such a look does not delay those at the others.
func Watch(ctx context.Context, files ...Watcher) {
	for _, f := range files {
		guard.Keep(ctx, nil, "", f.Watch) // a File logs its own panics
	}
	<-ctx.Done()
}

// Watch looks at the files every Interval, and reads all of them on SIGHUP,
// until ctx ends.
func (f *File[T]) Watch(ctx context.Context) {
	if f == nil || len(f.parts) == 0 {
		return
	}
	defer signal.Stop(f.hup)
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

// check reads the files that have changed, or all.
func (f *File[T]) check(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var changed []*part[T]
	for i := range f.parts {
		p := &f.parts[i]
		if !all && p.seen != nil {
			if fi, err := os.Stat(p.path); err == nil && same(fi, p.seen) {
				f.note(p, p.trouble, false) // again after an hour
				continue
			}
		}
		err := f.read(p, false)
		if errors.Is(err, errEmptied) {
			continue // another look
		}
		f.note(p, err, all)
		if err == nil {
			changed = append(changed, p)
		}
	}
	if changed == nil {
		f.setBad()
		return
	}
	if err := f.publish(); err != nil {
		return // logged
	}
	for _, p := range changed {
		f.opts.Log.Info("file read again", "file", p.path, "entries", p.value.Len(), "bad", len(p.bad))
	}
}

// note remembers what keeps a file from being read, and says it: when it is new,
// when asked to, and else once an hour.
func (f *File[T]) note(p *part[T], err error, say bool) {
	if err != nil && f.opts.Optional && errors.Is(err, fs.ErrNotExist) && !p.has {
		err = nil
	}
	news := err != nil && (p.trouble == nil || p.trouble.Error() != err.Error())
	p.trouble = err
	switch {
	case err == nil:
		p.logged = time.Time{}
	case news || say || time.Since(p.logged) >= repeat:
		p.logged = time.Now()
		if !p.has {
			f.opts.Log.Warn("file not usable, its list is empty until it is", "file", p.path, "err", err)
		} else {
			f.opts.Log.Warn("file not usable, keeping what was read before", "file", p.path, "entries", p.value.Len(), "err", err)
		}
	}
}

func (f *File[T]) setBad() {
	var errs []error
	for _, p := range f.parts {
		errs = append(errs, p.bad...)
		if p.trouble != nil {
			errs = append(errs, p.trouble)
		}
	}
	f.badMu.Lock()
	defer f.badMu.Unlock()
	f.bad = errs
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// errEmptied is that a file which had entries has none: it may be half written,
// as with > in a shell, so the next look has to see the same.
var errEmptied = errors.New("empty, to be looked at again")

// read reads one file into p, which keeps its value on error. A panic of Parse is
// one: a file that was edited must not end the filter.
func (f *File[T]) read(p *part[T], start bool) error {
	err := guard.Call(func() error { return f.parse(p) })
	if bug := (*guard.Panic)(nil); errors.As(err, &bug) {
		guard.Log(f.opts.Log, "reading "+p.path, bug)
		err = fmt.Errorf("%s: %w", p.path, err)
		if start {
			err = errInvalid{err}
		}
	}
	if !errors.Is(err, errEmptied) {
		p.emptied = time.Time{}
	}
	return err
}

func (f *File[T]) parse(p *part[T]) error {
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
	n := value.Len()
	if len(bad) > 0 && n == 0 {
		p.seen = fi
		return errInvalid{fmt.Errorf("no valid line, the first: %w", bad[0])}
	}
	if n == 0 && p.has && p.value.Len() > 0 {
		if p.emptied.IsZero() {
			p.emptied = time.Now()
		}
		if time.Since(p.emptied) < agreement {
			return errEmptied
		}
	}
	p.seen, p.value, p.has, p.bad = fi, value, true, bad
	f.times.Store(p.path, time.Now())
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

// publish puts in force what the files say.
func (f *File[T]) publish() error {
	err := guard.Call(func() error {
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
		return nil
	})
	if bug := (*guard.Panic)(nil); errors.As(err, &bug) {
		guard.Log(f.opts.Log, "putting lists together", bug)
	}
	f.setBad()
	return err
}
