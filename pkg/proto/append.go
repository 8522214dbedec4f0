package proto

import "strconv"

// Decision is what a filter answers to a request other than data-line.
type Decision string

const (
	Proceed    Decision = "proceed"
	Junk       Decision = "junk"
	Reject     Decision = "reject"     // with a reply
	Disconnect Decision = "disconnect" // with a reply
	Rewrite    Decision = "rewrite"    // with the new parameter
)

// AppendResult appends the answer to a request, with its LF. Proceed and Junk
// take no parameter, the others need one.
func AppendResult(dst []byte, v Version, session, token ID, d Decision, param string) []byte {
	dst = appendIDs(append(dst, "filter-result|"...), v, session, token)
	dst = append(dst, d...)
	if d != Proceed && d != Junk {
		dst = append(dst, '|')
		dst = append(dst, param...)
	}
	return append(dst, '\n')
}

// AppendDataLine appends one line of the message, given in parts, with its LF.
func AppendDataLine(dst []byte, v Version, session, token ID, parts ...[]byte) []byte {
	dst = appendIDs(append(dst, "filter-dataline|"...), v, session, token)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return append(dst, '\n')
}

func appendIDs(dst []byte, v Version, session, token ID) []byte {
	if v.Before(V05) {
		session, token = token, session
	}
	dst = append(dst, session[:]...)
	dst = append(dst, '|')
	dst = append(dst, token[:]...)
	return append(dst, '|')
}

// AppendRegister appends the registration of a report, with its LF.
func (e Event) AppendRegister(dst []byte) []byte {
	dst = append(dst, "register|report|smtp-in|"...)
	dst = append(dst, e.String()...)
	return append(dst, '\n')
}

// AppendRegister appends the registration of a phase, with its LF.
func (p Phase) AppendRegister(dst []byte) []byte {
	dst = append(dst, "register|filter|smtp-in|"...)
	dst = append(dst, p.String()...)
	return append(dst, '\n')
}

// Ready ends the registrations.
const Ready = "register|ready\n"

// Append appends the line without LF, as smtpd writes it. A report has a bar
// before its fields only if it has any; a request always has one.
func (l *Line) Append(dst []byte) []byte {
	name := ""
	switch l.Kind {
	case Config:
		dst = append(dst, "config|"...)
		dst = append(dst, l.Key...)
		if l.Fields != nil {
			dst = append(dst, '|')
		}
		return append(dst, l.Fields...)
	case Report:
		dst = append(dst, "report|"...)
		name = l.Event.String()
	case Request:
		dst = append(dst, "filter|"...)
		name = l.Phase.String()
	}
	dst = strconv.AppendUint(dst, uint64(l.Version.Major), 10)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(l.Version.Minor), 10)
	dst = append(dst, '|')
	dst = appendMicros(dst, l.Micros)
	if l.Out {
		dst = append(dst, "|smtp-out|"...)
	} else {
		dst = append(dst, "|smtp-in|"...)
	}
	dst = append(dst, name...)
	dst = append(dst, '|')
	dst = append(dst, l.Session[:]...)
	if l.Kind == Request {
		dst = append(dst, '|')
		dst = append(dst, l.Token[:]...)
	}
	if l.Kind == Request || l.Fields != nil {
		dst = append(dst, '|')
	}
	return append(dst, l.Fields...)
}

func appendMicros(dst []byte, micros int64) []byte {
	dst = strconv.AppendInt(dst, micros/1e6, 10)
	dst = append(dst, '.')
	for d := int64(1e5); d > 0; d /= 10 {
		dst = append(dst, '0'+byte(micros/d%10))
	}
	return dst
}
