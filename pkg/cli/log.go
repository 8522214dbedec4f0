package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	maxLine  = 1024 // bytes of a line; smtpd takes 64 KiB, syslog daemons less
	maxValue = 512  // bytes of a message or value
	maxQueue = 1024 // lines that wait to be written

	flushTime = 500 * time.Millisecond
)

// Logger returns a log without time, for smtpd adds it: the message, which is a
// session id or a sentence, and key=value pairs.
//
//	2b652056ec44d519 filter=dnsbl action=junk addr=198.51.100.7 score=5 zen=5 t=38ms
//	2b652056ec44d519 error: panic="index out of range"
//	warning: file not usable file=/etc/mail/allow err="permission denied"
//
// Above and below the level info a line is marked error:, warning: or debug:, a
// session id staying first. Debug lines appear only if verbose. A record is one
// line of at most about 1 KB of printable ASCII: values with blanks, quotes or
// anything else are quoted as in Go, long ones cut. Durations are rounded to
// milliseconds.
//
// The log never makes the caller wait. One goroutine writes to w; while w is
// blocked up to 1,024 lines wait, more are dropped, and the next line that can be
// written is preceded by the count.
//
// Flush writes what waits, for half a second at most, and ends the log: what is
// logged later is lost.
func Logger(w io.Writer, verbose bool) (log *slog.Logger, flush func()) {
	q := &queue{
		lines: make(chan []byte, maxQueue),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	go q.run(w)
	h := &handler{q: q}
	if verbose {
		h.level = slog.LevelDebug
	}
	return slog.New(h), sync.OnceFunc(q.flush)
}

// A queue takes lines from many goroutines and writes them from one.
type queue struct {
	lines   chan []byte
	dropped atomic.Int64
	stop    chan struct{} // closed by flush
	done    chan struct{} // closed when run ends
}

func (q *queue) put(line []byte) {
	select {
	case q.lines <- line:
	default:
		q.dropped.Add(1)
	}
}

func (q *queue) run(w io.Writer) {
	defer close(q.done)
	for {
		select {
		case line := <-q.lines:
			q.write(w, line)
		case <-q.stop:
			for {
				select {
				case line := <-q.lines:
					q.write(w, line)
				default:
					q.write(w, nil)
					return
				}
			}
		}
	}
}

func (q *queue) write(w io.Writer, line []byte) {
	lost := q.dropped.Swap(0)
	if lost > 0 {
		line = append(fmt.Appendf(nil, "warning: %d log lines dropped\n", lost), line...)
	} else if line == nil {
		return
	}
	if _, err := w.Write(line); err != nil {
		q.dropped.Add(lost + 1)
	}
}

func (q *queue) flush() {
	close(q.stop)
	limit := time.NewTimer(flushTime)
	defer limit.Stop()
	select {
	case <-q.done:
	case <-limit.C:
	}
}

// A handler formats records for a queue.
type handler struct {
	q      *queue
	level  slog.Level
	attrs  []string // of WithAttrs, formatted
	prefix string   // of WithGroup, each name with a dot
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.level
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = slices.Clip(n.attrs)
	for _, a := range attrs {
		n.attrs = appendAttr(n.attrs, n.prefix, a)
	}
	return &n
}

func (h *handler) WithGroup(name string) slog.Handler {
	n := *h
	if name != "" {
		n.prefix += name + "."
	}
	return &n
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	mark := ""
	switch {
	case r.Level >= slog.LevelError:
		mark = "error:"
	case r.Level >= slog.LevelWarn:
		mark = "warning:"
	case r.Level < slog.LevelInfo:
		mark = "debug:"
	}
	msg := cut(r.Message, maxValue)
	if !plain(r.Message) {
		msg = quote(r.Message, maxValue)
	}
	fields := []string{mark, msg}
	if isSession(r.Message) {
		fields = []string{msg, mark}
	}
	fields = append(fields, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		fields = appendAttr(fields, h.prefix, a)
		return true
	})
	line := make([]byte, 0, 256)
	for _, f := range fields {
		if f == "" {
			continue
		}
		if len(line)+len(f) > maxLine {
			line = append(line, "... "...)
			break
		}
		line = append(line, f...)
		line = append(line, ' ')
	}
	if len(line) == 0 {
		return nil
	}
	line[len(line)-1] = '\n'
	h.q.put(line)
	return nil
}

// IsSession reports whether s is a session id of smtpd: 16 hexadecimal digits.
func isSession(s string) bool {
	return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == ""
}

// AppendAttr appends "key=value", or as many as there are in a group.
func appendAttr(fields []string, prefix string, a slog.Attr) []string {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return fields
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range a.Value.Group() {
			fields = appendAttr(fields, prefix, g)
		}
		return fields
	}
	return append(fields, word(prefix+a.Key)+"="+word(text(a.Value)))
}

func text(v slog.Value) string {
	switch v.Kind() {
	case slog.KindDuration:
		d := v.Duration()
		if d != 0 && d.Abs() < time.Millisecond { // "µs" is not ASCII
			return strconv.FormatFloat(float64(d)/1e6, 'f', -1, 64) + "ms"
		}
		return format(d.Round(time.Millisecond))
	case slog.KindTime:
		return v.Time().Format(time.RFC3339)
	case slog.KindAny:
		return fmt.Sprint(v.Any()) // recovers from a String method that panics
	}
	return v.String()
}

// Word returns s as one word of printable ASCII.
func word(s string) string {
	if s == "" || !plain(s) || strings.ContainsAny(s, ` "`) {
		return quote(s, maxValue)
	}
	return cut(s, maxValue)
}

// Plain reports whether s is printable ASCII and blanks.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// Quote quotes s in ASCII, cut so that it is about n bytes then.
func quote(s string, n int) string {
	b := []byte{'"'}
	var buf [16]byte
	for s != "" {
		_, size := utf8.DecodeRuneInString(s)
		q := strconv.AppendQuoteToASCII(buf[:0], s[:size])
		if q = q[1 : len(q)-1]; len(b)+len(q) > n {
			b = append(b, "..."...)
			break
		}
		b = append(b, q...)
		s = s[size:]
	}
	return string(append(b, '"'))
}
