package maillog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"strconv"
	"time"
)

// maxText is the longest text of a line that is kept, in bytes. smtpd writes up to
// 64 KiB, syslog daemons less.
const maxText = 64 << 10

// A Line is what smtpd has logged at one time.
type Line struct {
	Time  time.Time // zero if the line does not say
	Text  []byte    // without time, host and program; valid until the next line is read
	Count int       // how often it was logged, at least 1; more than once if the syslog daemon says so
}

// A Reader reads the lines of smtpd from a log, and skips those of others. It knows
// the lines of syslogd of the BSDs, of rsyslog and of busybox, with the time as in
// RFC 3164 or RFC 3339; RFC 5424; journalctl -o export, short and short-iso; and
// the standard error of smtpd -d, which has no times.
type Reader struct {
	r       *bufio.Reader
	clock   clock
	line    Line
	last    []byte // text of the last line, if that was one of smtpd
	started bool
	journal bool
	all     int64
	bytes   int64
	err     error
}

// NewReader returns a reader of r. Written is when the log was last written, by
// which a time without a year is understood: it is not more than a day later. Times
// without a zone are local ones.
func NewReader(r io.Reader, written time.Time) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 256<<10), clock: clock{written: written, zone: written.Location()}}
}

// Next reads the next line of smtpd, and reports whether there is one.
func (r *Reader) Next() bool {
	if !r.started {
		r.started = true
		start, _ := r.r.Peek(2)
		r.journal = string(start) == "__"
	}
	for r.err == nil {
		var ok bool
		if r.journal {
			ok = r.entry()
		} else {
			ok = r.text()
		}
		if ok {
			return true
		}
	}
	return false
}

// Line returns the line that Next has read.
func (r *Reader) Line() Line { return r.line }

// Err returns why the log could not be read to its end, nil if it was.
func (r *Reader) Err() error {
	if r.err == io.EOF {
		return nil
	}
	return r.err
}

// Lines returns how many lines were read, those of others included.
func (r *Reader) Lines() int64 { return r.all }

// raw reads one line of the file, of one that is too long its beginning.
func (r *Reader) raw() []byte {
	b, err := r.r.ReadSlice('\n')
	r.bytes += int64(len(b))
	for err == bufio.ErrBufferFull {
		b = bytes.Clone(b[:maxText])
		var rest []byte
		rest, err = r.r.ReadSlice('\n')
		r.bytes += int64(len(rest))
	}
	if r.err = err; len(b) == 0 {
		return nil
	}
	r.all++
	n := len(b)
	for n > 0 && (b[n-1] == '\n' || b[n-1] == '\r') {
		n--
	}
	return b[:n]
}

// text reads a line of a text.
func (r *Reader) text() bool {
	b := r.raw()
	t, rest, ours, ok := r.clock.header(b)
	if !ok {
		r.last = r.last[:0]
		return false
	}
	count := 1
	if ours {
		rest, count = repeated(rest)
		r.last = append(r.last[:0], rest...)
	} else if n := repeats(rest); n > 0 && len(r.last) > 0 {
		rest, count = r.last, n
	} else {
		r.last = r.last[:0]
		return false
	}
	r.line = Line{Time: t, Text: rest[:min(len(rest), maxText)], Count: count}
	return len(rest) > 0
}

// repeated takes rsyslog's "message repeated 3 times: [text]" apart.
func repeated(text []byte) ([]byte, int) {
	if rest, ok := bytes.CutPrefix(text, []byte("message repeated ")); ok {
		number, rest, ok := bytes.Cut(rest, []byte(" times: ["))
		if n, err := strconv.Atoi(string(number)); ok && err == nil && n > 0 && n < maxRepeat {
			return bytes.TrimSpace(bytes.TrimSuffix(rest, []byte("]"))), n
		}
	}
	return text, 1
}

// maxRepeat is more than a syslog daemon counts until it says so.
const maxRepeat = 1_000_000

// repeats returns 3 for "host last message repeated 3 times", or 0.
func repeats(rest []byte) int {
	_, rest, ok := bytes.Cut(rest, []byte("last message repeated "))
	number, end, _ := bytes.Cut(rest, []byte(" "))
	n, err := strconv.Atoi(string(number))
	if !ok || err != nil || n < 1 || n > maxRepeat || !bytes.HasPrefix(end, []byte("time")) {
		return 0
	}
	return n
}

// entry reads an entry of journalctl -o export: fields NAME=text, or NAME, the
// length as 64 bits little endian, and that many bytes.
func (r *Reader) entry() bool {
	r.line = Line{Count: 1}
	r.last = r.last[:0]
	ours, source := false, false
	for n := 0; r.err == nil; n++ {
		b := r.raw()
		if len(b) == 0 {
			if n > 0 || r.err != nil {
				break
			}
			continue
		}
		name, value, ok := bytes.Cut(b, []byte("="))
		if !ok {
			name = bytes.Clone(b)
			value = r.binary()
		}
		switch string(name) {
		case "MESSAGE":
			r.last = append(r.last[:0], value[:min(len(value), maxText)]...)
		case "SYSLOG_IDENTIFIER":
			ours = string(value) == "smtpd"
		case "_SOURCE_REALTIME_TIMESTAMP", "__REALTIME_TIMESTAMP":
			us, err := strconv.ParseInt(string(value), 10, 64)
			own := name[1] != '_'
			if err == nil && us > 0 && (own || !source) {
				r.line.Time = time.UnixMicro(us).In(r.clock.zone)
			}
			source = source || own
		}
	}
	r.line.Text, _, _ = bytes.Cut(r.last, []byte("\n"))
	return ours && len(r.line.Text) > 0
}

// binary reads a field that is not text.
func (r *Reader) binary() []byte {
	var size [8]byte
	if _, r.err = io.ReadFull(r.r, size[:]); r.err != nil {
		r.err = io.EOF
		return nil
	}
	n := binary.LittleEndian.Uint64(size[:])
	value := make([]byte, min(n, maxText))
	if _, r.err = io.ReadFull(r.r, value); r.err == nil && n > maxText {
		_, r.err = io.CopyN(io.Discard, r.r, int64(min(n-maxText, 1<<62)))
	}
	if r.err == nil {
		_, r.err = r.r.ReadByte() // the end of the line
	}
	if r.err != nil {
		r.err = io.EOF
	}
	return value
}
