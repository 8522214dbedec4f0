package filter

import (
	"bytes"
	"io"
)

const (
	bufferSize = 128 << 10
	// smtpd sends at most 65.6 KB a line. Of a longer one this much is read
	// and the rest skipped, so that even it is answered.
	maxLine = 32 << 20
)

// reader hands over whole lines, as many as are there, ahead of the loop. Two
// buffers go round: while the lines of one are handled, the other is filled.
type reader struct {
	full chan []byte // closed at the end of the input
	free chan []byte
	rest int   // bytes of a last line without LF, valid once full is closed
	err  error // why the input ended, valid once full is closed
}

func newReader() *reader {
	r := &reader{full: make(chan []byte), free: make(chan []byte, 2)}
	r.free <- make([]byte, bufferSize)
	r.free <- make([]byte, bufferSize)
	return r
}

// run reads until the input ends or quit is closed.
func (r *reader) run(in io.Reader, quit <-chan struct{}) {
	defer close(r.full)
	buf := <-r.free
	n := 0        // bytes in buf
	skip := false // the line in buf is cut, up to its LF bytes are skipped
	for r.err == nil {
		if n == len(buf) {
			if n < maxLine {
				buf = append(buf, make([]byte, len(buf))...)
			} else {
				skip = true
				n -= bufferSize
			}
		}
		var m int
		m, r.err = in.Read(buf[n:])
		last := bytes.LastIndexByte(buf[n:n+m], '\n')
		if skip {
			first := bytes.IndexByte(buf[n:n+m], '\n')
			if first < 0 {
				continue
			}
			m = copy(buf[n:], buf[n+first:n+m])
			last -= first
			skip = false
		}
		if last < 0 {
			n += m
			continue
		}
		end := n + last + 1
		var next []byte
		select {
		case next = <-r.free:
		case <-quit:
			return
		}
		for len(next) < n+m-end+bufferSize/2 {
			next = make([]byte, 2*len(next))
		}
		rest := copy(next, buf[end:n+m])
		select {
		case r.full <- buf[:end]:
		case <-quit:
			return
		}
		buf, n = next, rest
	}
	r.rest = n
}

// done gives a buffer back.
func (r *reader) done(buf []byte) {
	buf = buf[:cap(buf)]
	if len(buf) > 4*bufferSize {
		buf = make([]byte, bufferSize) // one long line shall not cost memory for ever
	}
	r.free <- buf
}

// writer writes what it is given in a goroutine of its own. Two buffers go
// round: one is written while the other is filled.
type writer struct {
	full   chan []byte
	free   chan []byte
	failed chan struct{} // closed when the output is broken
	ended  chan struct{} // closed when all is written
	err    error         // valid once failed is closed
}

func newWriter() *writer {
	w := &writer{
		full:   make(chan []byte, 1),
		free:   make(chan []byte, 2),
		failed: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	w.free <- make([]byte, 0, bufferSize)
	return w
}

// run writes until full is closed.
func (w *writer) run(out io.Writer) {
	defer close(w.ended)
	for buf := range w.full {
		if w.err == nil {
			if _, w.err = out.Write(buf); w.err != nil {
				close(w.failed)
			}
		}
		if cap(buf) > 4*bufferSize {
			buf = make([]byte, 0, bufferSize)
		}
		w.free <- buf[:0]
	}
}

// swap hands over a filled buffer and returns an empty one.
func (w *writer) swap(buf []byte) []byte {
	w.full <- buf
	return <-w.free
}
