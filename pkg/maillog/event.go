package maillog

import (
	"bytes"
	"strconv"
)

// A Kind is what a line tells of.
type Kind uint8

// What smtpd and its filters tell.
const (
	Other        Kind = iota
	Connected         // address host; address is local for sendmail(8)
	Disconnected      // reason
	TLS               // ciphers
	Auth              // user result
	Message           // msgid size nrcpt proto: smtpd has taken it
	Envelope          // evpid from to
	Failed            // command result: what was refused, by smtpd or a filter
	Delivery          // evpid from to rcpt delay result stat
	Decision          // of a filter: action reason by addr name from rcpt ...
	Notice            // of a filter: event ...
	Trouble           // of a filter: a warning or an error
)

// An Event is one line, taken apart as far as it is the same for all.
type Event struct {
	Kind    Kind
	Session uint64 // 0: of none
	Filter  []byte // the name that smtpd.conf gives the filter
	Program []byte // the value of filter=, dnsbl for filter-dnsbl
	Text    []byte // the keys and values, or what trouble there is
}

// kindOf tells a line of smtpd by what follows the session id, "smtp connected ",
// and returns the rest.
func kindOf(b []byte) (Kind, []byte) {
	if len(b) < 6 || b[4] != ' ' && b[3] != ' ' {
		return Other, b
	}
	part, rest, _ := bytes.Cut(b, []byte(" "))
	word, after, ok := bytes.Cut(rest, []byte(" "))
	kind := Other
	switch string(part) {
	case "smtp":
		switch string(word) {
		case "connected":
			kind = Connected
		case "disconnected":
			kind = Disconnected
		case "failed-command":
			kind = Failed
		case "message":
			kind = Message
		case "envelope":
			kind = Envelope
		case "tls":
			kind = TLS
		case "authentication":
			kind = Auth
		}
	case "mda", "mta":
		if string(word) == "delivery" {
			kind = Delivery
		}
	}
	if kind == Other || !ok {
		return Other, b
	}
	return kind, after
}

// Parse takes the text of a line apart. The event has parts of text, and its Text
// is the end of it.
func Parse(text []byte) Event {
	if id, rest, ok := session(text); ok {
		kind, rest := kindOf(rest)
		return Event{Kind: kind, Session: id, Text: rest}
	}
	i := bytes.IndexByte(text, ':')
	if i <= 0 || i+2 > len(text) || text[i+1] != ' ' || bytes.IndexByte(text[:i], ' ') >= 0 {
		return Event{Text: text}
	}
	e := Event{Filter: text[:i], Text: text[i+2:]}
	if id, rest, ok := session(e.Text); ok {
		e.Session, e.Text = id, rest
	}
	if rest, ok := bytes.CutPrefix(e.Text, []byte("filter=")); ok {
		e.Program, rest, _ = bytes.Cut(rest, []byte(" "))
		switch {
		case e.Session != 0 && bytes.HasPrefix(rest, []byte("action=")):
			e.Kind, e.Text = Decision, rest
		case bytes.HasPrefix(rest, []byte("event=")):
			e.Kind, e.Text = Notice, rest
		}
		return e
	}
	if bytes.HasPrefix(e.Text, []byte("warning: ")) || bytes.HasPrefix(e.Text, []byte("error: ")) {
		e.Kind = Trouble
	}
	return e
}

// session reads the id at the beginning of a line, 16 hexadecimal digits and a space.
func session(b []byte) (id uint64, rest []byte, ok bool) {
	if len(b) < 17 || b[16] != ' ' {
		return 0, nil, false
	}
	id, ok = hex(b[:16])
	return id, b[17:], ok
}

// hex reads lower case hexadecimal digits.
func hex(b []byte) (n uint64, ok bool) {
	for _, c := range b {
		switch {
		case c-'0' <= 9:
			n = n<<4 | uint64(c-'0')
		case c-'a' <= 5:
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// MessageID returns the id of the message of an event of kind Message, Envelope or
// Delivery.
func (e Event) MessageID() (id uint32, ok bool) {
	key := "evpid"
	if e.Kind == Message {
		key = "msgid"
	}
	v := e.Get(key)
	if len(v) < 8 {
		return 0, false
	}
	n, ok := hex(v[:8])
	return uint32(n), ok
}

// Get returns the value of a key, nil if there is none.
func (e Event) Get(key string) []byte {
	f := e.Fields()
	for f.Next() {
		if string(f.Key) == key {
			return f.Value()
		}
	}
	return nil
}

// Fields returns the keys and values of an event.
func (e Event) Fields() *Fields { return &Fields{rest: e.Text, ours: e.Filter != nil} }

// Fields are keys and values in their order.
type Fields struct {
	Key   []byte
	value []byte
	rest  []byte
	ours  bool
}

// Next reads the next key, and reports whether there is one.
func (f *Fields) Next() bool {
	f.rest = bytes.TrimLeft(f.rest, " ")
	n := keyLen(f.rest)
	for n == 0 { // no key: go on with the next word
		i := bytes.IndexByte(f.rest, ' ')
		if i < 0 {
			return false
		}
		f.rest = bytes.TrimLeft(f.rest[i:], " ")
		n = keyLen(f.rest)
	}
	f.Key, f.rest = f.rest[:n], f.rest[n+1:]
	switch {
	case len(f.rest) > 0 && f.rest[0] == '"' && f.ours:
		n = goQuoted(f.rest)
	case len(f.rest) > 0 && f.rest[0] == '"':
		n = quoted(f.rest)
	case f.ours:
		n = bytes.IndexByte(f.rest, ' ')
	default:
		n = unquoted(f.rest)
	}
	if n < 0 {
		n = len(f.rest)
	}
	f.value, f.rest = f.rest[:n], f.rest[n:]
	return true
}

// Value returns the value of the key.
func (f *Fields) Value() []byte {
	v := f.value
	if len(v) < 2 || v[0] != '"' || v[len(v)-1] != '"' {
		return v
	}
	if f.ours && bytes.IndexByte(v, '\\') >= 0 {
		if s, err := strconv.Unquote(string(v)); err == nil {
			return []byte(s)
		}
	}
	return v[1 : len(v)-1]
}

// keyLen returns the length of the word before a =, 0 if there is none.
func keyLen(b []byte) int {
	for i, c := range b {
		switch {
		case c == '=':
			return i
		case c <= ' ' || c == '"' || c == '<':
			return 0
		}
	}
	return 0
}

// goQuoted returns the length of a string quoted as in Go, -1 if it does not end.
func goQuoted(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// quoted returns the length of a string of smtpd, which escapes nothing: it ends at
// a quote before another key or the end of the line.
func quoted(b []byte) int {
	for i := 1; i < len(b); i++ {
		if b[i] == '"' && (i+1 == len(b) || b[i+1] == ' ' && keyLen(b[i+2:]) > 0) {
			return i + 1
		}
	}
	return -1
}

// unquoted returns the length of a value of smtpd without quotes, which may have
// spaces: it ends before another key.
func unquoted(b []byte) int {
	for i := 0; i < len(b); i++ {
		j := bytes.IndexByte(b[i:], ' ')
		if j < 0 {
			return -1
		}
		if i += j; keyLen(b[i+1:]) > 0 {
			return i
		}
	}
	return -1
}
