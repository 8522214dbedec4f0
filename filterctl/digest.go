package main

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"

	"opensmtpd-filters/pkg/maillog"
)

// A digest is what became of a session. It has parts of the session's lines.
type digest struct {
	*maillog.Session
	addr, name []byte // of the client, as the filters write them: name - for none, ? before one not confirmed
	local      bool   // of this machine
	connected  bool   // the beginning is in the log
	user       []byte
	said       []byte // how it ended

	decisions  []decision
	failures   []failure
	messages   []message
	envelopes  []envelope
	deliveries []delivery
}

// A decision is a line of a filter.
type decision struct {
	time                                  time.Time
	filter, program, action, reason, by   []byte
	addr, name, from, rcpt, would, spf    []byte
	more                                  int // further recipients, of which this line only tells how many
	delay                                 time.Duration
	greylisted, disconnect, dryRun, noted bool
	coded                                 bool // a DNS list has answered
	event                                 maillog.Event
	failure                               int // index of what the client was told, -1 for none
}

// A failure is what a client was told instead of a 2xx.
type failure struct {
	time            time.Time
	command, result []byte
	by              int // index of the decision, -1: smtpd or a filter of others
}

type message struct {
	time time.Time
	id   uint32
	from []byte
	junk bool
}

type envelope struct {
	id       uint32
	from, to []byte
}

type delivery struct {
	time                                time.Time
	id                                  uint32
	to, rcpt, result, stat, relay, user []byte
	delay                               time.Duration
}

// read takes a session apart.
func (d *digest) read(s *maillog.Session) {
	*d = digest{Session: s, decisions: d.decisions[:0], failures: d.failures[:0], messages: d.messages[:0],
		envelopes: d.envelopes[:0], deliveries: d.deliveries[:0]}
	for at, e := range s.Events() {
		switch e.Kind {
		case maillog.Connected:
			d.connected = true
			d.addr, d.name = e.Get("address"), e.Get("host")
			d.local = string(d.addr) == "local"
			d.addr = bytes.Trim(bytes.TrimPrefix(d.addr, []byte("IPv6:")), "[]")
			if string(d.name) == "<unknown>" {
				d.name = []byte("-")
			}
		case maillog.Disconnected:
			d.said = e.Get("reason")
		case maillog.Auth:
			if string(e.Get("result")) == "ok" {
				d.user = e.Get("user")
			}
		case maillog.Failed:
			d.failures = append(d.failures, failure{time: at, command: e.Get("command"), result: e.Get("result"), by: -1})
		case maillog.Message:
			d.messages = append(d.messages, message{time: at, id: messageID(e)})
		case maillog.Envelope:
			d.envelopes = append(d.envelopes, envelope{id: messageID(e), from: unbracket(e.Get("from")), to: unbracket(e.Get("to"))})
		case maillog.Decision:
			d.decisions = append(d.decisions, readDecision(at, e))
		case maillog.Delivery:
			d.deliveries = append(d.deliveries, readDelivery(at, messageID(e), e))
		}
	}
	// smtpd puts an address that does not resolve back into host; the filters know.
	for i := range d.decisions {
		if v := &d.decisions[i]; len(v.name) > 0 {
			d.name = v.name
			if len(d.addr) == 0 {
				d.addr = v.addr
			}
			break
		}
	}
	d.local = d.local || string(d.addr) == "local"
	d.blame()
	d.junk()
}

func readDecision(at time.Time, e maillog.Event) decision {
	v := decision{time: at, filter: e.Filter, program: e.Program, event: e, failure: -1}
	for f := e.Fields(); f.Next(); {
		switch string(f.Key) {
		case "action":
			v.action = f.Value()
		case "reason":
			v.reason = f.Value()
		case "by":
			v.by = f.Value()
		case "addr":
			v.addr = f.Value()
		case "name":
			v.name = f.Value()
		case "from":
			v.from, v.noted = unbracket(f.Value()), true
		case "rcpt":
			v.rcpt = unbracket(f.Value())
		case "would":
			v.would = f.Value()
		case "spf":
			v.spf = f.Value()
		case "code":
			v.coded = true
		case "dryRun":
			v.dryRun = true
		case "disconnect":
			v.disconnect = true
		case "more":
			v.more, _ = strconv.Atoi(string(f.Value()))
			v.more = max(v.more, 0)
		case "delay":
			v.delay, _ = time.ParseDuration(string(f.Value()))
		}
	}
	v.greylisted = string(v.program) == "greylist"
	return v
}

func readDelivery(at time.Time, id uint32, e maillog.Event) delivery {
	v := delivery{time: at, id: id}
	for f := e.Fields(); f.Next(); {
		switch string(f.Key) {
		case "to":
			v.to = unbracket(f.Value())
		case "rcpt":
			v.rcpt = unbracket(f.Value())
		case "result":
			v.result = f.Value()
		case "stat":
			v.stat = f.Value()
		case "relay":
			v.relay = f.Value()
		case "user":
			v.user = f.Value()
		case "delay":
			v.delay = smtpdTime(f.Value())
		}
	}
	return v
}

// smtpdTime reads a time of smtpd: 1d2h3m4s.
func smtpdTime(b []byte) (t time.Duration) {
	n := time.Duration(0)
	for _, c := range b {
		unit := time.Duration(0)
		switch c {
		case 'd':
			unit = 24 * time.Hour
		case 'h':
			unit = time.Hour
		case 'm':
			unit = time.Minute
		case 's':
			unit = time.Second
		default:
			if c >= '0' && c <= '9' && n < 1e6 {
				n = n*10 + time.Duration(c-'0')
			}
			continue
		}
		t, n = t+n*unit, 0
	}
	return t
}

// refuses reports whether a filter has refused with this line, or deferred.
func (v *decision) refuses() bool {
	return string(v.action) == "refuse" || string(v.action) == "defer"
}

// blame finds out which failures are the doing of filters: smtpd logs each reply
// that is no success, whoever it is by.
func (d *digest) blame() {
	for i := range d.decisions {
		v := &d.decisions[i]
		if !v.refuses() {
			continue
		}
		if v.more > 0 { // the same as in an earlier line, for other recipients
			d.blameMore(i)
			continue
		}
		best, found := 0, -1
		for n := range d.failures {
			f := &d.failures[n]
			if fit := f.fits(v); f.by < 0 && fit > best {
				best, found = fit, n
			}
		}
		if v.failure = found; found >= 0 {
			d.failures[found].by = i
		}
	}
}

// fits says how well what the client was told goes with a decision, 0 for not.
func (f *failure) fits(v *decision) int {
	code, verb := f.code(), f.verb()
	if code/100 != 5 && string(v.action) == "refuse" || code/100 != 4 && string(v.action) == "defer" {
		return 0
	}
	switch {
	case verb == "RCPT" && len(v.rcpt) > 0 && bytes.EqualFold(f.address(), v.rcpt):
		return 4
	case verb == "RCPT" && v.greylisted, verb == "RCPT" && len(v.rcpt) == 0:
		return 1
	case code >= 500 && code <= 504: // a command that smtpd does not understand
		return 0
	case verb == "RCPT":
		return 1
	case verb == "MAIL" && v.noted && len(v.rcpt) == 0:
		return 3
	case !v.noted && (verb == "" || verb == "EHLO" || verb == "HELO"):
		return 3
	}
	return 2
}

func (d *digest) blameMore(i int) {
	v := &d.decisions[i]
	var first *decision
	for n := range d.decisions[:i] {
		if o := &d.decisions[n]; o.refuses() && o.more == 0 && bytes.Equal(o.filter, v.filter) && bytes.Equal(o.rcpt, v.rcpt) && o.failure >= 0 {
			first = o
		}
	}
	left := v.more
	for n := range d.failures {
		f := &d.failures[n]
		if left > 0 && f.by < 0 && f.verb() == "RCPT" && (first == nil || d.failures[first.failure].code() == f.code()) &&
			(first == nil || bytes.Equal(d.failures[first.failure].result, f.result)) {
			f.by = i
			left--
		}
	}
}

// junk finds out which messages were taken as junk: those of the sender that a
// filter has junked, or all if it has done so before there was one.
func (d *digest) junk() {
	for i := range d.messages {
		m := &d.messages[i]
		for _, e := range d.envelopes {
			if e.id == m.id {
				m.from = e.from
			}
		}
	}
	for i := range d.decisions {
		v := &d.decisions[i]
		if string(v.action) != "junk" {
			continue
		}
		// As often as this filter has junked this sender, the last of its messages:
		// the ones before were refused or are not in the log.
		n := 0
		for _, o := range d.decisions {
			if string(o.action) == "junk" && bytes.Equal(o.filter, v.filter) && bytes.EqualFold(o.from, v.from) {
				n++
			}
		}
		for k := len(d.messages) - 1; k >= 0; k-- {
			m := &d.messages[k]
			if !v.noted {
				m.junk = true
			} else if n > 0 && bytes.EqualFold(m.from, v.from) {
				m.junk = true
				n--
			}
		}
	}
}

// code is that of the reply, 0 if there is none.
func (f *failure) code() int {
	if len(f.result) < 3 {
		return 0
	}
	n, _ := strconv.Atoi(string(f.result[:3]))
	return n
}

// verb is the first word of the command, in capitals.
func (f *failure) verb() string {
	verb, _, _ := bytes.Cut(f.command, []byte(" "))
	for _, known := range []string{"RCPT", "MAIL", "DATA", "EHLO", "HELO", "AUTH", "STARTTLS", "."} {
		if bytes.EqualFold(verb, []byte(known)) {
			return known
		}
	}
	return string(bytes.ToUpper(verb[:min(len(verb), 10)]))
}

// address is that of RCPT TO:<address>.
func (f *failure) address() []byte {
	_, a, _ := bytes.Cut(f.command, []byte("<"))
	i := bytes.LastIndexByte(a, '>')
	return a[:max(i, 0)]
}

// broken reports whether smtpd did not understand the client: there is no mail in
// it.
func (f *failure) broken() bool {
	return f.by < 0 && (f.code() >= 500 && f.code() <= 504 || f.verb() != "RCPT" && f.verb() != "MAIL" && f.verb() != "DATA" && f.verb() != "." && f.verb() != "")
}

// What became of a session, or of a mail.
const (
	accepted = "accepted"
	junked   = "junked"
	deferred = "deferred"
	refused  = "refused"
	nothing  = "nothing" // no mail, and nothing was refused
)

// verdict is what became of the session: the worst of what is no success, unless a
// mail was taken and nobody refused.
func (d *digest) verdict() string {
	word := nothing
	for _, m := range d.messages {
		if word = accepted; m.junk {
			word = junked
			break
		}
	}
	for i := range d.failures {
		switch f := &d.failures[i]; {
		case f.broken():
		case f.code()/100 == 5:
			return refused
		case f.code()/100 == 4:
			word = deferred
		}
	}
	// A filter refuses also where smtpd tells of no reply, as when the client has gone.
	for i := range d.decisions {
		switch string(d.decisions[i].action) {
		case "refuse":
			return refused
		case "defer":
			word = deferred
		}
	}
	return word
}

// envelopeOf returns a sender and the recipients of the session, as far as known.
func (d *digest) envelope() (from string, rcpts []string) {
	seen := map[string]bool{}
	add := func(rcpt []byte) {
		if len(rcpt) > 0 && !seen[string(rcpt)] && len(rcpts) < 100 {
			seen[string(rcpt)] = true
			rcpts = append(rcpts, string(rcpt))
		}
	}
	for _, v := range d.decisions {
		if v.noted && from == "" {
			from = string(v.from)
		}
		add(v.rcpt)
	}
	for _, e := range d.envelopes {
		if from == "" {
			from = string(e.from)
		}
		add(e.to)
	}
	for i := range d.failures {
		switch f := &d.failures[i]; f.verb() {
		case "RCPT":
			add(f.address())
		case "MAIL":
			if from == "" {
				from = string(f.address())
			}
		}
	}
	return from, rcpts
}

// allow returns what to give filterctl allow so that such a client or sender is let
// in next time, "" if no filter has said no. The domain of the sender is enough if
// SPF has proven it: nobody else can send in its name.
func (d *digest) allow() string {
	what := ""
	for _, v := range d.decisions {
		if string(v.action) == "proceed" || d.local {
			continue
		}
		addr, err := netip.ParseAddr(string(d.addr))
		if err != nil {
			return ""
		}
		what = "client=" + addr.WithZone("").String()
		_, domain, ok := bytes.Cut(v.from, []byte("@"))
		if !ok || !v.noted {
			return what // decided before the sender was known
		}
		if !d.proven(domain) {
			continue
		}
		return "sender=" + string(bytes.ToLower(domain))
	}
	return what
}

// proven reports whether a filter has seen SPF pass for a domain.
func (d *digest) proven(domain []byte) bool {
	for _, v := range d.decisions {
		if spf, ok := bytes.CutPrefix(v.spf, []byte("pass:")); ok && bytes.EqualFold(spf, domain) {
			return true
		}
	}
	return false
}

func unbracket(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimPrefix(b, []byte("<")), []byte(">"))
}

func messageID(e maillog.Event) uint32 {
	id, _ := e.MessageID()
	return id
}
