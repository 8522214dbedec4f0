package maillog

import (
	"bytes"
	"time"
)

// A clock understands the times of a log.
type clock struct {
	written time.Time
	zone    *time.Location

	// The last hour seen: its text, and when it began.
	hour  [24]byte
	width int
	begun time.Time

	head []byte // host and program of the last line of smtpd
}

// header takes a line apart: its time, and what is behind program and process id if
// that is smtpd; else what is behind the time. It is false for what cannot be of
// smtpd.
func (c *clock) header(b []byte) (t time.Time, rest []byte, smtpd, ok bool) {
	if len(b) > 0 && b[0] == '<' { // the priority, as in RFC 5424 and of some syslogds
		i := bytes.IndexByte(b[:min(len(b), 24)], '>')
		if i < 0 {
			return t, nil, false, false
		}
		if b = b[i+1:]; len(b) > 2 && isDigit(b[0]) && b[1] == ' ' {
			return c.rfc5424(b[2:])
		}
		b = bytes.TrimLeft(b, " ")
	}
	t, rest, ok = c.time(b)
	if !ok {
		// smtpd -d
		return time.Time{}, b, len(b) > 0, len(b) > 0
	}
	if n := len(c.head); n > 0 && len(rest) > n && string(rest[:n]) == string(c.head) && rest[n] != ' ' {
		return t, rest[n:], true, true // as the line before
	}
	at := rest
	for range 3 { // host, facility.level, program
		word, after, found := bytes.Cut(at, []byte(" "))
		if isProgram(word) && found {
			c.head = append(c.head[:0], rest[:len(rest)-len(after)]...)
			return t, bytes.TrimLeft(after, " "), true, true
		}
		at = after
	}
	return t, rest, false, true
}

// isProgram reports whether a word is smtpd: or smtpd[123]:.
func isProgram(word []byte) bool {
	pid, ok := bytes.CutPrefix(word, []byte("smtpd"))
	if !ok || len(pid) == 0 || pid[len(pid)-1] != ':' {
		return false
	}
	pid = pid[:len(pid)-1]
	return len(pid) == 0 || pid[0] == '[' && pid[len(pid)-1] == ']'
}

// rfc5424 takes a line apart from its time on: TIME HOST APP PROCID MSGID DATA TEXT.
func (c *clock) rfc5424(b []byte) (t time.Time, rest []byte, smtpd, ok bool) {
	t, b, ok = c.time(b)
	if !ok {
		return t, nil, false, false
	}
	for i := range 4 {
		word, after, found := bytes.Cut(b, []byte(" "))
		if !found {
			return t, nil, false, true
		}
		smtpd = smtpd || i == 1 && string(word) == "smtpd"
		b = after
	}
	if rest, ok := bytes.CutPrefix(b, []byte("-")); ok {
		b = rest
	} else {
		b = afterData(b)
	}
	b = bytes.TrimPrefix(bytes.TrimLeft(b, " "), []byte("\xef\xbb\xbf"))
	return t, bytes.TrimLeft(b, " "), smtpd, true
}

// afterData returns what is behind [structured data][more of it].
func afterData(b []byte) []byte {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case b[i] == ']' && !quoted && (i+1 == len(b) || b[i+1] != '['):
			return b[i+1:]
		}
	}
	return nil
}

// time reads the time at the beginning, and the space behind it: Dec  1 15:57:37
// or 2026-12-01T15:57:37.853+01:00.
func (c *clock) time(b []byte) (t time.Time, rest []byte, ok bool) {
	switch {
	case len(b) > 16 && b[3] == ' ' && b[6] == ' ' && b[9] == ':' && b[12] == ':' && b[15] == ' ':
		minute, ok1 := two(b[10:])
		second, ok2 := two(b[13:])
		if !ok1 || !ok2 || minute > 59 || second > 60 || !c.isHour(b[:9], nil) && !c.setHour(b[:9]) {
			return t, nil, false
		}
		return c.begun.Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second), b[16:], true
	case len(b) > 20 && b[4] == '-' && b[7] == '-' && (b[10] == 'T' || b[10] == ' ') && b[13] == ':' && b[16] == ':':
		return c.rfc3339(b)
	}
	return t, nil, false
}

func (c *clock) isHour(text, zone []byte) bool {
	n := len(text) + len(zone)
	return n == c.width && string(c.hour[:len(text)]) == string(text) && string(c.hour[len(text):n]) == string(zone)
}

func (c *clock) keepHour(text, zone []byte, begun time.Time) {
	if len(text)+len(zone) > len(c.hour) {
		return
	}
	c.begun = begun
	c.width = copy(c.hour[:], text)
	c.width += copy(c.hour[c.width:], zone)
}

// setHour reads "Dec  1 15". The year is the last in which that is not more than a
// day after the log was written.
func (c *clock) setHour(text []byte) bool {
	at, err := time.Parse("Jan _2 15", string(text)) // in the year 0, which has a 29th of February
	if err != nil {
		return false
	}
	year := c.written.Year() + 1
	for {
		t := time.Date(year, at.Month(), at.Day(), at.Hour(), 0, 0, 0, c.zone)
		if t.Sub(c.written) <= 24*time.Hour && t.Day() == at.Day() || year < c.written.Year()-8 {
			c.keepHour(text, nil, t)
			return true
		}
		year--
	}
}

// rfc3339 reads such a time; the zone may also be +0100, or missing.
func (c *clock) rfc3339(b []byte) (t time.Time, rest []byte, ok bool) {
	end := bytes.IndexByte(b[11:min(len(b), 48)], ' ')
	if end < 0 {
		return t, nil, false
	}
	rest = b[11+end+1:]
	text := b[:11+end]
	minute, ok1 := two(text[14:])
	second, ok2 := two(text[17:])
	if len(text) < 19 || !ok1 || !ok2 || minute > 59 || second > 60 {
		return t, nil, false
	}
	tail := text[19:]
	var nanos time.Duration
	if len(tail) > 0 && (tail[0] == '.' || tail[0] == ',') {
		unit := 100 * time.Millisecond
		for tail = tail[1:]; len(tail) > 0 && isDigit(tail[0]); tail = tail[1:] {
			nanos += time.Duration(tail[0]-'0') * unit
			unit /= 10
		}
	}
	if hour := text[:13]; !c.isHour(hour, tail) && !c.setHourRFC3339(hour, tail) {
		return t, nil, false
	}
	return c.begun.Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second + nanos), rest, true
}

// setHourRFC3339 reads "2026-12-01T15" and a zone.
func (c *clock) setHourRFC3339(text, zone []byte) bool {
	year1, ok1 := two(text[0:])
	year2, ok2 := two(text[2:])
	month, ok3 := two(text[5:])
	day, ok4 := two(text[8:])
	hour, ok5 := two(text[11:])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 {
		return false
	}
	at := c.zone
	switch {
	case len(zone) == 0:
	case string(zone) == "Z":
		at = time.UTC
	default: // +01:00, +0100
		h, ok1 := two(zone[1:])
		m, ok2 := two(bytes.TrimPrefix(zone[min(3, len(zone)):], []byte(":")))
		if !ok1 || !ok2 || zone[0] != '+' && zone[0] != '-' {
			return false
		}
		offset := (h*60 + m) * 60
		if zone[0] == '-' {
			offset = -offset
		}
		at = time.FixedZone("", offset)
	}
	c.keepHour(text, zone, time.Date(year1*100+year2, time.Month(month), day, hour, 0, 0, 0, at).In(c.zone))
	return true
}

// two reads two digits, of which the first may be a space.
func two(b []byte) (int, bool) {
	if len(b) < 2 || !isDigit(b[1]) || !isDigit(b[0]) && b[0] != ' ' {
		return 0, false
	}
	n := int(b[1] - '0')
	if b[0] != ' ' {
		n += 10 * int(b[0]-'0')
	}
	return n, true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
