// Package proto reads and writes single lines of the protocol that
// OpenSMTPD's smtpd(8) speaks with its filters, in the versions 0.4 to 0.7
// (OpenSMTPD 6.6 to 7.8; smtpd-filters(7)). It does no I/O and keeps no state.
//
// smtpd writes three kinds of lines:
//
//	config|KEY|VALUE
//	report|VERSION|TIMESTAMP|SUBSYSTEM|EVENT|SESSION[|FIELD...]
//	filter|VERSION|TIMESTAMP|smtp-in|PHASE|SESSION|TOKEN|FIELD...
//
// [Line.Parse] takes them apart up to the fields, which stay bytes: there is no
// escaping and no character set, and a bar in the last field is data. What the
// fields mean depends on event, phase and version; the functions ParseMail,
// ParseAuth and so on know the orders.
//
// A filter writes registrations and answers: [AppendRegister], [AppendResult]
// and [AppendDataLine]. smtpd ends when a line it reads is wrong, so these
// functions are the only place where such lines are made; who calls them sees
// to it that a parameter holds no LF.
package proto

// Version is a protocol version. It stands in every report and request, so it
// need not be known beforehand. Compare the parts as integers: 0.42 is later
// than 0.5.
type Version struct{ Major, Minor uint16 }

// The versions in which a field order changed.
var (
	V04 = Version{0, 4} // answers carry the token before the session
	V05 = Version{0, 5} // tx-mail and tx-rcpt have their result last
	V06 = Version{0, 6} // link-auth has its result last
	V07 = Version{0, 7} // the result comes first everywhere
)

// Before reports whether v is an earlier version than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// MaxPayload is the longest data line, in bytes and without its LF, that a
// peer of version v takes in an answer. smtpd up to 7.3 (protocol 0.6) silently
// cuts longer ones; later ones read lines of at most 65536 bytes, of which
// 51 are "filter-dataline|SESSION|TOKEN|" and the LF.
func (v Version) MaxPayload() int {
	if v.Before(V07) {
		return 1997
	}
	return 65485
}

// ID is a session or a token: 16 hexadecimal digits, kept as they came.
// A token names a filter and phase, not a request: many requests share it.
type ID [16]byte

func (id ID) String() string { return string(id[:]) }

// Kind says what a line is.
type Kind uint8

const (
	Config Kind = iota + 1
	Report
	Request
)

// Event is the event of a report. The zero value is none.
type Event uint8

const (
	LinkConnect Event = iota + 1
	LinkGreeting
	LinkIdentify
	LinkTLS
	LinkAuth
	LinkDisconnect
	TxBegin
	TxMail
	TxRcpt
	TxEnvelope
	TxData
	TxCommit
	TxRollback
	TxReset
	ProtocolClient
	ProtocolServer
	FilterReport
	FilterResponse
	Timeout
	NumEvents // one more than the last event
)

var eventNames = [NumEvents]string{
	LinkConnect:    "link-connect",
	LinkGreeting:   "link-greeting",
	LinkIdentify:   "link-identify",
	LinkTLS:        "link-tls",
	LinkAuth:       "link-auth",
	LinkDisconnect: "link-disconnect",
	TxBegin:        "tx-begin",
	TxMail:         "tx-mail",
	TxRcpt:         "tx-rcpt",
	TxEnvelope:     "tx-envelope",
	TxData:         "tx-data",
	TxCommit:       "tx-commit",
	TxRollback:     "tx-rollback",
	TxReset:        "tx-reset",
	ProtocolClient: "protocol-client",
	ProtocolServer: "protocol-server",
	FilterReport:   "filter-report",
	FilterResponse: "filter-response",
	Timeout:        "timeout",
}

func (e Event) String() string {
	if e < NumEvents {
		return eventNames[e]
	}
	return ""
}

// Phase is a point of the SMTP dialogue at which smtpd asks its filters. The
// zero value is none. The order is that of the dialogue.
type Phase uint8

const (
	Connect Phase = iota + 1
	Helo
	Ehlo
	StartTLS
	Auth
	MailFrom
	RcptTo
	Data
	DataLine
	Commit
	Rset
	Quit
	Noop
	Help // never asked by any known smtpd
	Wiz  // never asked by any known smtpd
	NumPhases
)

var phaseNames = [NumPhases]string{
	Connect:  "connect",
	Helo:     "helo",
	Ehlo:     "ehlo",
	StartTLS: "starttls",
	Auth:     "auth",
	MailFrom: "mail-from",
	RcptTo:   "rcpt-to",
	Data:     "data",
	DataLine: "data-line",
	Commit:   "commit",
	Rset:     "rset",
	Quit:     "quit",
	Noop:     "noop",
	Help:     "help",
	Wiz:      "wiz",
}

func (p Phase) String() string {
	if p < NumPhases {
		return phaseNames[p]
	}
	return ""
}

// ParsePhase returns the phase of that name, 0 if there is none.
func ParsePhase(name string) Phase { return parsePhase([]byte(name)) }

// The commonest come first: most lines of a busy stream are data lines.
func parsePhase(b []byte) Phase {
	if string(b) == "data-line" {
		return DataLine
	}
	for p := Connect; p < NumPhases; p++ {
		if string(b) == phaseNames[p] {
			return p
		}
	}
	return 0
}

func parseEvent(b []byte) Event {
	for e := LinkConnect; e < NumEvents; e++ {
		if string(b) == eventNames[e] {
			return e
		}
	}
	return 0
}
