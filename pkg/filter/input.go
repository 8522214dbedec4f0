package filter

import (
	"bytes"
	"io"
)

// maxLine bounds lines. smtpd sends at most 65.6 KB a line. Of a longer one this
// much is read and the rest skipped, so that even it is answered.
const maxLine = 32 << 20

// input takes lines from a reader, as many as are there.
type input struct {
	r          io.Reader
	buf        []byte
	begin, end int   // what has come and was not taken is buf[begin:end]
	seen       int   // up to here there is no LF in it
	skip       bool  // it is a line that is too long, the rest of which is skipped
	err        error // of the last read, after which there is nothing more
}

func newInput(r io.Reader) *input { return &input{r: r, buf: make([]byte, bufferSize)} }

// next takes a line, without its LF. It is valid until fill.
func (in *input) next() (line []byte, ok bool) {
	if in.skip {
		return nil, false
	}
	i := bytes.IndexByte(in.buf[in.seen:in.end], '\n')
	if i < 0 {
		in.seen = in.end
		return nil, false
	}
	line = in.buf[in.begin : in.seen+i]
	in.begin = in.seen + i + 1
	in.seen = in.begin
	return line, true
}

// rest is what has come and was not taken: without an LF, once next gives no more.
func (in *input) rest() []byte { return in.buf[in.begin:in.end] }

// fill reads once, and waits for it.
func (in *input) fill() {
	in.makeRoom()
	var n int
	n, in.err = in.r.Read(in.buf[in.end:])
	if in.skip {
		lf := bytes.IndexByte(in.buf[in.end:in.end+n], '\n')
		if lf < 0 {
			return
		}
		n = copy(in.buf[in.end:], in.buf[in.end+lf:in.end+n])
		in.skip = false
	}
	in.end += n
}

// makeRoom moves what was not taken to the front, and sees to it that there is room
// for more.
func (in *input) makeRoom() {
	rest := in.rest()
	if len(rest) == 0 && len(in.buf) > 4*bufferSize {
		in.buf = make([]byte, bufferSize) // one long line shall not cost memory for ever
	}
	if in.begin > 0 {
		in.seen -= in.begin
		in.begin, in.end = 0, copy(in.buf, rest)
	}
	if in.end >= maxLine { // and it is one line
		in.skip = true
		in.end, in.seen = maxLine, maxLine
	}
	if len(in.buf)-in.end < bufferSize/2 {
		more := max(bufferSize, min(len(in.buf), maxLine-len(in.buf)))
		in.buf = append(in.buf, make([]byte, more)...)
	}
}

// clone returns an input that goes on in its place, while somebody may still use a
// line of it.
func (in *input) clone() *input {
	c := *in
	c.buf = make([]byte, len(in.buf))
	copy(c.buf[in.begin:], in.rest())
	return &c
}
