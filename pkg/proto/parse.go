package proto

import (
	"bytes"
	"errors"
)

// Line is a line from smtpd, taken apart up to its fields. Key and Fields
// refer to the bytes that were parsed.
type Line struct {
	Kind    Kind
	Version Version // report, request
	Micros  int64   // report, request: microseconds since the epoch
	Out     bool    // report: of subsystem smtp-out
	Event   Event   // report
	Phase   Phase   // request
	Session ID      // report, request
	Token   ID      // request
	Key     []byte  // config
	Fields  []byte  // what follows, its bars included
}

// What is wrong with a line. All but ErrSyntax may come from a newer smtpd.
var (
	ErrSyntax  = errors.New("malformed line")
	ErrKind    = errors.New("unknown kind of line")
	ErrVersion = errors.New("unsupported protocol version")
	ErrEvent   = errors.New("unknown event")
	ErrPhase   = errors.New("unknown phase")
)

// Parse takes a line without its LF apart. Versions before 0.4 and other major
// versions are ErrVersion; a later minor version is read like the latest known.
func (l *Line) Parse(b []byte) error {
	*l = Line{}
	kind, b, ok := cut(b)
	if !ok {
		return ErrSyntax
	}
	switch string(kind) {
	case "filter":
		l.Kind = Request
	case "report":
		l.Kind = Report
	case "config":
		l.Kind = Config
		l.Key, l.Fields, _ = cut(b)
		return nil
	default:
		return ErrKind
	}

	version, b, ok1 := cut(b)
	micros, b, ok2 := cut(b)
	subsystem, b, ok3 := cut(b)
	name, b, ok4 := cut(b)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return ErrSyntax
	}
	if l.Version, ok = parseVersion(version); !ok {
		return ErrSyntax
	}
	if l.Version.Major != 0 || l.Version.Before(V04) {
		return ErrVersion
	}
	if l.Micros, ok = parseMicros(micros); !ok {
		return ErrSyntax
	}
	switch string(subsystem) {
	case "smtp-in":
	case "smtp-out":
		if l.Kind == Request {
			return ErrSyntax
		}
		l.Out = true
	default:
		return ErrSyntax
	}

	if l.Kind == Report {
		if l.Event = parseEvent(name); l.Event == 0 {
			return ErrEvent
		}
		// A report without fields ends with its session.
		id, fields, _ := cut(b)
		l.Fields = fields
		return l.Session.parse(id)
	}
	if l.Phase = parsePhase(name); l.Phase == 0 {
		return ErrPhase
	}
	id, b, _ := cut(b)
	token, fields, _ := cut(b)
	l.Fields = fields
	if err := l.Session.parse(id); err != nil {
		return err
	}
	return l.Token.parse(token)
}

// cut splits b at its first bar. Without a bar all of it is the first field.
func cut(b []byte) (field, rest []byte, ok bool) {
	if i := bytes.IndexByte(b, '|'); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

// cutLast splits b at its last bar.
func cutLast(b []byte) (rest, field []byte, ok bool) {
	if i := bytes.LastIndexByte(b, '|'); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return nil, b, false
}

func (id *ID) parse(b []byte) error {
	if len(b) != len(id) {
		return ErrSyntax
	}
	for _, c := range b {
		if !isHex(c) {
			return ErrSyntax
		}
	}
	copy(id[:], b)
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func parseVersion(b []byte) (v Version, ok bool) {
	major, minor, found := bytes.Cut(b, []byte{'.'})
	ma, ok1 := parseUint(major, 4)
	mi, ok2 := parseUint(minor, 4)
	return Version{uint16(ma), uint16(mi)}, found && ok1 && ok2
}

// parseMicros reads seconds with up to six decimals.
func parseMicros(b []byte) (int64, bool) {
	seconds, fraction, found := bytes.Cut(b, []byte{'.'})
	s, ok := parseUint(seconds, 12)
	if !found {
		return s * 1e6, ok
	}
	f, ok2 := parseUint(fraction, 6)
	for range 6 - len(fraction) {
		f *= 10
	}
	return s*1e6 + f, ok && ok2
}

// parseUint reads one to max decimal digits.
func parseUint(b []byte, max int) (n int64, ok bool) {
	if len(b) == 0 || len(b) > max {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
