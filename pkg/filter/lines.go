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
// A line longer than smtpd takes is split: at a space within the header, where
// this is a fold (RFC 5322 section 2.2.3), else wherever the limit is.
// NUL, where smtpd would cut the line, is left out, LF is a space.
func (o *Lines) Put(line []byte) { o.put(clean(line)) }

// clean returns a line without the bytes that smtpd takes for its end.
func clean(line []byte) []byte {
	if bytes.IndexByte(line, 0) < 0 && bytes.IndexByte(line, '\n') < 0 {
		return line
	}
	line = bytes.ReplaceAll(line, []byte{0}, nil)
	return bytes.ReplaceAll(line, []byte{'\n'}, []byte{' '})
}

// put writes a clean line, in pieces if it is long. What is split is the text
// that a receiver reads: the dot that is only there to be taken off stays with
// the first piece, so a fold cannot leave it alone.
func (o *Lines) put(line []byte) {
	limit := o.version.MaxPayload()
	if len(line) <= limit {
		o.piece("", line)
		return
	}
	prefix, text := "", line
	if line[0] == '.' {
		prefix, text = ".", line[1:]
	}
	for {
		room := limit - len(prefix)
		if len(text) <= room {
			o.piece(prefix, text)
			return
		}
		n := room
		if o.header {
			n = fold(text, room)
		}
		o.piece(prefix, text[:n])
		text, prefix = text[n:], ""
		switch {
		case !o.header && text[0] == '.':
			prefix = "."
		case o.header && len(bytes.Trim(text, " \t")) == 0:
			return // a line of spaces would end the header for some readers
		case o.header && !space(text[0]):
			prefix = " "
		}
	}
}

// piece writes one line that smtpd will read. It does not end the message,
// whatever it is given: only end does.
func (o *Lines) piece(prefix string, text []byte) {
	if len(prefix)+len(text) == 1 && (prefix == "." || text[0] == '.') {
		prefix, text = ".", dot
	}
	o.buf = proto.AppendDataLine(o.buf, o.version, o.session, o.token, []byte(prefix), text)
}

// end writes the dot that ends the message.
func (o *Lines) end() {
	o.buf = proto.AppendDataLine(o.buf, o.version, o.session, o.token, dot)
}

var dot = []byte{'.'}

// fold returns where to split the text of a header line so that the first part
// has at least one byte and at most limit: before the last space that has
// something else before it.
func fold(text []byte, limit int) int {
	lead := 0
	for lead < limit && space(text[lead]) {
		lead++
	}
	if i := bytes.LastIndexAny(text[lead:limit+1], " \t"); i > 0 {
		return lead + i
	}
	return limit
}

func space(c byte) bool { return c == ' ' || c == '\t' }

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
	name   string
	value  func(*Session[S]) string
	others bool // those that came with the message stay
}

// forged reports whether a line of the header belongs to a field that only the
// filter may set. smtpd removes a dot before it, whatever follows.
func (f *Filter[S]) forged(s *Session[S], line []byte) bool {
	line = bytes.TrimPrefix(line, dot)
	if len(line) > 0 && space(line[0]) {
		return s.msg.dropping
	}
	s.msg.dropping = false
	for _, h := range f.fields {
		n := len(h.name)
		if !h.others && len(line) > n && bytes.EqualFold(line[:n], []byte(h.name)) {
			rest := bytes.TrimLeft(line[n:], " \t")
			s.msg.dropping = len(rest) > 0 && rest[0] == ':'
		}
		if s.msg.dropping {
			return true
		}
	}
	return false
}
