package filter

import (
	"bytes"

	"opensmtpd-filters/pkg/proto"
)

// Lines takes the lines that come in place of one line of a message.
type Lines struct {
	buf            []byte
	version        proto.Version
	session, token proto.ID
	header         bool
}

// Put writes one line, without its line end. As in the lines that handlers
// get, a leading dot that belongs to the text is doubled (RFC 5321 section
// 4.5.2); a line of a single dot, which would end the message, is doubled here.
// A line longer than smtpd takes is split: at a blank within the header, where
// this is a fold (RFC 5322 section 2.2.3), else wherever the limit is.
// NUL, where smtpd would cut the line, is left out, LF is a blank.
func (o *Lines) Put(line []byte) {
	if bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\n') >= 0 {
		line = bytes.ReplaceAll(line, []byte{0}, nil)
		line = bytes.ReplaceAll(line, []byte{'\n'}, []byte{' '})
	}
	if len(line) == 1 && line[0] == '.' {
		line = []byte("..")
	}
	prefix := "" // of the next piece
	for {
		room := o.version.MaxPayload() - len(prefix)
		if len(line) <= room {
			o.write(prefix, line)
			return
		}
		n := room
		if o.header {
			n = fold(line, room)
		}
		o.write(prefix, line[:n])
		line, prefix = line[n:], ""
		switch {
		case !o.header && line[0] == '.':
			prefix = "."
		case o.header && len(bytes.Trim(line, " \t")) == 0:
			return // a line of blanks would end the header for some readers
		case o.header && !blank(line[0]):
			prefix = " "
		}
	}
}

func (o *Lines) write(prefix string, line []byte) {
	o.buf = proto.AppendDataLine(o.buf, o.version, o.session, o.token, []byte(prefix), line)
}

// fold returns where to split a header line so that the first part has at most
// limit bytes: before the last blank that has text before it.
func fold(line []byte, limit int) int {
	text := 0
	for text < limit && blank(line[text]) {
		text++
	}
	if i := bytes.LastIndexAny(line[text:limit+1], " \t"); i > 0 {
		return text + i
	}
	return limit
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// message is what is kept of a message whose lines pass.
type message struct {
	part     part
	dropping bool // inside a header field that is left out
}

// pass notes that a line has passed. The header ends with an empty line.
func (m *message) pass(line []byte) {
	switch {
	case len(line) == 0:
		m.part = body
	case m.part == start:
		m.part = header
	}
}

type part uint8

const (
	start part = iota // no line yet
	header
	body
)

// field is a header field that the filter sets.
type field[S any] struct {
	name  string
	value func(*Session[S]) string
}

// forged reports whether a line of the header belongs to a field that only the
// filter may set. smtpd removes a dot before it, whatever follows.
func (f *Filter[S]) forged(s *Session[S], line []byte) bool {
	line = bytes.TrimPrefix(line, []byte{'.'})
	if len(line) > 0 && blank(line[0]) {
		return s.msg.dropping
	}
	s.msg.dropping = false
	for _, h := range f.fields {
		n := len(h.name)
		if len(line) > n && bytes.EqualFold(line[:n], []byte(h.name)) {
			rest := bytes.TrimLeft(line[n:], " \t")
			s.msg.dropping = len(rest) > 0 && rest[0] == ':'
		}
		if s.msg.dropping {
			return true
		}
	}
	return false
}
