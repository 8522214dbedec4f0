package filtertest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Rule names one mistake of a filter.
type Rule string

// The rules. What smtpd does about a mistake is in brackets.
const (
	Stray        Rule = "stray"         // not a register, filter-result or filter-dataline line [dies]
	BeforeReady  Rule = "before-ready"  // anything but register before register|ready [dies]
	Register     Rule = "register"      // registration that smtpd does not know [dies]
	LateRegister Rule = "late-register" // filter registration after register|ready [without effect]
	Field        Rule = "field"         // missing field [dies]
	Hex          Rule = "hex"           // session or token is not 16 hex digits [dies]
	Decision     Rule = "decision"      // unknown decision, wrong case, trailing blank or CR, report [dies]
	Param        Rule = "param"         // parameter missing or too much [dies]
	Text         Rule = "text"          // reply that smtpd replaces by 421, or that is bad SMTP
	Second       Rule = "second"        // second answer to one request [dies]
	Unasked      Rule = "unasked"       // answer for a session that waits for nothing [dies]
	Token        Rule = "token"         // not the token of the request [dies]
	Order        Rule = "order"         // session and token swapped for this protocol version [client hangs]
	Phase        Rule = "phase"         // filter-result in data-line, filter-dataline elsewhere [dies]
	JunkCommit   Rule = "junk-commit"   // junk at commit [dies]
	Connect      Rule = "connect"       // reject at connect: the connection stays without a banner
	Rewrite      Rule = "rewrite"       // rewrite where it breaks the command, or address without <>
	AfterDot     Rule = "after-dot"     // data line after the final dot [dies]
	EarlyDot     Rule = "early-dot"     // final dot before smtpd sent its own [dies at the next line]
	Dot          Rule = "dot"           // line with an unstuffed dot that the message did not have [dot lost]
	DotCR        Rule = "dot-cr"        // ".\r" is not the end [client hangs]
	Header       Rule = "header"        // header section broken by the filter [550]
	NUL          Rule = "nul"           // NUL in a data line [rest of the line is lost]
	Length       Rule = "length"        // line over 65536 bytes with its LF [all clients hang]
	Cut          Rule = "cut"           // data line over 1997 bytes to smtpd before 7.4 [rest is lost]
	Unanswered   Rule = "unanswered"    // request without answer, message without final dot [client hangs]
	Unready      Rule = "unready"       // no register|ready [no client is served]
	Gone         Rule = "gone"          // the filter ended before its input did [dies]
	Lost         Rule = "lost"          // a receiver reads another message than the client sent; see Checker.Edits
	Misuse       Rule = "misuse"        // the test does what smtpd never does

	// Harmless to smtpd; see Checker.Warnings.
	Twice   Rule = "twice"   // report registered twice: every event comes twice
	Unknown Rule = "unknown" // answer for a session that is not known, or is gone
)

// Limits of what smtpd reads, in bytes.
const (
	maxLine    = 65536 - 1 // one line without its LF
	maxOldData = 1997      // payload of filter-dataline before smtpd 7.4
	maxText    = 500       // our own limit for a reply; RFC 5321 section 4.5.3.1.5 says 512 with code and CRLF
	maxField   = 1000      // name of a header field
)

var (
	events = strings.Fields(`link-connect link-disconnect link-greeting link-identify link-tls link-auth
		tx-reset tx-begin tx-mail tx-rcpt tx-envelope tx-data tx-commit tx-rollback
		protocol-client protocol-server filter-report filter-response timeout`)
	phases = strings.Fields(`connect helo ehlo starttls auth mail-from rcpt-to data data-line
		rset quit noop help wiz commit`)
)

// A Problem is one broken rule and the line that breaks it.
type Problem struct {
	Rule Rule
	Line string // the filter's line, or the request that got no answer
	Text string
}

// String returns rule, explanation and the line, quoted and cut to a readable length.
func (p Problem) String() string {
	return fmt.Sprintf("%s: %s: %s", p.Rule, p.Text, brief(p.Line))
}

func brief(s string) string {
	if len(s) > 160 {
		return fmt.Sprintf("%q... (%d bytes)", s[:160], len(s))
	}
	return strconv.Quote(s)
}

// An Answer is one answered request. Its N counts the requests of that phase in that session from 0;
// data-line has one per message.
type Answer struct {
	Session, Phase string
	N              int
	Decision       string   // "" for data-line
	Param          string   // what follows the decision
	Lines          []string // data-line: what the filter returned, without the final dot
}

// A Checker follows what smtpd and a filter say to each other and notes every line of the filter that would
// end smtpd, hang a client or lose mail. The zero value is ready. It is not safe for concurrent use.
type Checker struct {
	// Ahead says that the input does not wait for answers, as with a recorded session on standard
	// input. A request of a phase that the filter did not register may then be answered, but need not.
	Ahead bool

	// Edits says that the filter changes messages. Otherwise a receiver must read each as the client
	// sent it, apart from header fields of our filters; see SameMessage.
	Edits bool

	ready     bool
	regs      []string
	sessions  map[string]*session
	order     []*session // as they came
	requests  []*request
	byName    map[string]int // "session|phase": requests so far
	answers   []Answer
	problems  []Problem
	warnings  []Problem
	lastFound *request // the request which the last line of the filter answered
}

type session struct {
	id      string
	minor   int // of the protocol, 0.minor
	waiting []*request
	last    *request // answered last
	ended   bool
}

// A request waits for one answer; those of data-line are one request for the whole message.
type request struct {
	session, phase, token, params string
	minor, n                      int
	line                          string

	in, out         []string // data-line, stuffed, without final dot
	inDone, outDone bool
	aborted         bool // the session went on without the end of the message
}

func (r *request) message() bool { return r.phase == "data-line" }

// Problems returns what is wrong so far.
func (c *Checker) Problems() []Problem { return slices.Clone(c.problems) }

// Warnings returns what smtpd ignores, but no filter should do.
func (c *Checker) Warnings() []Problem { return slices.Clone(c.warnings) }

// Answers returns all answers in the order in which they were complete.
func (c *Checker) Answers() []Answer { return slices.Clone(c.answers) }

// Answer returns the answer to request n, counted from 0, of a phase in a session.
func (c *Checker) Answer(session, phase string, n int) (Answer, bool) {
	for _, a := range c.answers {
		if a.Session == session && a.Phase == phase && a.N == n {
			return a, true
		}
	}
	return Answer{}, false
}

// Registrations returns the valid register lines, without "register|" and the last "ready".
func (c *Checker) Registrations() []string { return slices.Clone(c.regs) }

// Ready reports whether the filter has said register|ready.
func (c *Checker) Ready() bool { return c.ready }

// Registered reports whether smtpd sends the filter this phase ("filter") or event ("report") of a
// subsystem ("smtp-in", "smtp-out").
func (c *Checker) Registered(kind, subsystem, name string) bool {
	return slices.Contains(c.regs, kind+"|"+subsystem+"|"+name) ||
		kind == "report" && slices.Contains(c.regs, "report|"+subsystem+"|*")
}

func (c *Checker) problem(r Rule, line, format string, args ...any) {
	c.problems = append(c.problems, Problem{r, line, fmt.Sprintf(format, args...)})
}

func (c *Checker) warn(r Rule, line, format string, args ...any) {
	c.warnings = append(c.warnings, Problem{r, line, fmt.Sprintf(format, args...)})
}

// parseMinor reads "0.minor".
func parseMinor(s string) (int, bool) {
	s, ok := strings.CutPrefix(s, "0.")
	if !ok || !digits(s) || len(s) > 6 {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 4
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func hex16(s string) bool {
	return len(s) == 16 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

func timestamp(s string) bool {
	sec, micro, ok := strings.Cut(s, ".")
	return ok && digits(sec) && len(micro) == 6 && digits(micro)
}

// parseRequest splits a well-formed request line. Anything else a filter has to skip.
func parseRequest(line string) (*request, bool) {
	f := strings.SplitN(line, "|", 8)
	if len(f) < 8 || f[0] != "filter" || f[3] != "smtp-in" {
		return nil, false
	}
	minor, ok := parseMinor(f[1])
	if !ok || !timestamp(f[2]) || !slices.Contains(phases, f[4]) || !hex16(f[5]) || !hex16(f[6]) {
		return nil, false
	}
	return &request{minor: minor, phase: f[4], session: f[5], token: f[6], params: f[7], line: line}, true
}

// A report is a well-formed report line of a known event.
type report struct {
	minor                     int
	subsystem, event, session string
}

func parseReport(line string) (report, bool) {
	f := strings.SplitN(line, "|", 7)
	if len(f) < 6 || f[0] != "report" || f[3] != "smtp-in" && f[3] != "smtp-out" {
		return report{}, false
	}
	minor, ok := parseMinor(f[1])
	if !ok || !timestamp(f[2]) || !slices.Contains(events, f[4]) || !hex16(f[5]) {
		return report{}, false
	}
	return report{minor, f[3], f[4], f[5]}, true
}

func (c *Checker) session(id string, minor int) *session {
	if c.sessions == nil {
		c.sessions = make(map[string]*session)
		c.byName = make(map[string]int)
	}
	s := c.sessions[id]
	if s == nil {
		s = &session{id: id}
		c.sessions[id] = s
		c.order = append(c.order, s)
	}
	s.minor, s.ended = minor, false
	return s
}

// Sent notes a line, without its LF, that the filter is about to read.
func (c *Checker) Sent(line string) {
	if r, ok := parseReport(line); ok && r.subsystem == "smtp-in" {
		if s := c.session(r.session, r.minor); r.event == "link-disconnect" {
			c.end(s)
		}
		return
	}
	r, ok := parseRequest(line)
	if !ok {
		return // nothing that must be answered
	}
	text := r.params
	s := c.session(r.session, r.minor)
	if !c.Ahead && !c.Registered("filter", "smtp-in", r.phase) {
		c.problem(Misuse, line, "phase is not registered")
		return
	}
	var tail *request
	if n := len(s.waiting); n > 0 {
		tail = s.waiting[n-1]
	}
	if r.message() && tail != nil && tail.message() && !tail.inDone && !tail.aborted {
		r = tail
	} else {
		if tail != nil && !c.Ahead {
			c.problem(Misuse, line, "session still waits for %s", tail.phase)
		}
		if tail != nil && !tail.inDone {
			tail.aborted = tail.message()
		}
		key := r.session + "|" + r.phase
		r.n = c.byName[key]
		c.byName[key]++
		s.waiting = append(s.waiting, r)
		c.requests = append(c.requests, r)
	}
	if !r.message() {
		return
	}
	if text != "." {
		r.in = append(r.in, text)
	} else {
		r.inDone = true
		c.finish(s, r)
	}
}

// Ended notes that a session is over without a line that says so, because the filter did not register
// link-disconnect.
func (c *Checker) Ended(session string) {
	if s := c.sessions[session]; s != nil {
		c.end(s)
	}
}

func (c *Checker) end(s *session) {
	s.ended = true
	for _, r := range s.waiting {
		if r.message() && !r.inDone {
			r.aborted = true
		} else if !r.message() && !c.Ahead {
			c.problem(Misuse, r.line, "session ends while it waits for an answer")
		}
	}
	if !c.Ahead {
		s.waiting = nil
	}
}

// Got notes a line, without its LF, that the filter wrote.
func (c *Checker) Got(line string) {
	c.lastFound = nil
	if len(line) > maxLine {
		c.problem(Length, line, "line of %d bytes", len(line)+1)
	}
	kind, rest, _ := strings.Cut(line, "|")
	switch kind {
	case "register":
		c.register(line, rest)
		return
	case "filter-result", "filter-dataline":
	default:
		if !c.ready {
			c.problem(BeforeReady, line, "only register lines may come before register|ready")
		} else {
			c.problem(Stray, line, "not register, filter-result or filter-dataline")
		}
		return
	}
	if !c.ready {
		c.problem(BeforeReady, line, "answer before register|ready")
		return
	}
	f := strings.SplitN(rest, "|", 3)
	if len(f) < 3 {
		c.problem(Field, line, "field missing")
		return
	}
	if !hex16(f[0]) || !hex16(f[1]) {
		c.problem(Hex, line, "session and token must be 16 hex digits")
		return
	}
	data := kind == "filter-dataline"
	var decision, param string
	if !data {
		var ok bool
		if decision, param, ok = c.result(line, f[2]); !ok {
			return
		}
	}

	s, token := c.sessions[f[0]], f[1]
	if t := c.sessions[f[1]]; s == nil && t == nil {
		c.warn(Unknown, line, "session never seen")
		return
	} else if s == nil || s.minor < 5 {
		right := t != nil && t.minor < 5
		if s, token = t, f[0]; !right {
			c.problem(Order, line, "token and session in the wrong order for this protocol version")
			return
		}
	}

	r := c.head(s, data, token)
	switch {
	case r == nil && s.ended && !c.Ahead:
		c.warn(Unknown, line, "session has ended")
	case r == nil && data && s.last != nil && s.last.message():
		c.problem(AfterDot, line, "data line after the final dot")
	case r == nil && s.last != nil && s.last.token == token:
		c.problem(Second, line, "second answer to %s", brief(s.last.line))
	case r == nil:
		c.problem(Unasked, line, "the session waits for nothing")
	case data && !r.message():
		if s.last != nil && s.last.message() {
			c.problem(AfterDot, line, "data line after the final dot")
		} else {
			c.problem(Phase, line, "data line while the session waits for %s", r.phase)
		}
	case !data && r.message():
		c.problem(Phase, line, "result in the data-line phase")
	case !data && token != r.token && s.last != nil && s.last.token == token:
		c.problem(Second, line, "second answer to %s", brief(s.last.line))
	case data:
		if token != r.token {
			c.problem(Token, line, "the request has %s", r.token)
		}
		c.lastFound = r
		c.dataLine(s, r, line, f[2])
	default:
		if token != r.token {
			c.problem(Token, line, "the request has %s", r.token)
		}
		c.lastFound = r
		c.decide(r, line, decision, param)
		c.answers = append(c.answers, Answer{Session: r.session, Phase: r.phase, N: r.n, Decision: decision, Param: param})
		c.done(s)
	}
}

// head returns the request that the session waits for, passing over those that need no answer.
func (c *Checker) head(s *session, data bool, token string) *request {
	for len(s.waiting) > 0 {
		r := s.waiting[0]
		fits := func(r *request) bool { return data == r.message() && token == r.token }
		free := c.Ahead && !c.Registered("filter", "smtp-in", r.phase) ||
			r.aborted && len(s.waiting) > 1
		if fits(r) || !free && (!c.Ahead || !slices.ContainsFunc(s.waiting, fits)) {
			return r
		}
		if !free {
			c.problem(Unanswered, r.line, "a later request is answered")
		}
		s.waiting = s.waiting[1:]
	}
	return nil
}

func (c *Checker) done(s *session) {
	s.last, s.waiting = s.waiting[0], s.waiting[1:]
}

func (c *Checker) register(line, rest string) {
	f := strings.Split(rest, "|")
	if len(f) == 1 && f[0] == "ready" {
		c.ready = true
		return
	}
	bad := len(f) != 3
	if !bad {
		switch f[0] {
		case "report":
			bad = f[1] != "smtp-in" && f[1] != "smtp-out" || f[2] != "*" && !slices.Contains(events, f[2])
		case "filter":
			bad = f[1] != "smtp-in" || !slices.Contains(phases, f[2])
		default:
			bad = true
		}
	}
	switch {
	case bad:
		c.problem(Register, line, "unknown registration")
	case f[0] == "filter" && c.ready:
		c.problem(LateRegister, line, "filter registration after register|ready")
	default:
		if f[0] == "report" && c.Registered(f[0], f[1], f[2]) {
			c.warn(Twice, line, "registered twice, every event comes twice")
		}
		c.regs = append(c.regs, rest)
	}
}

// result checks a decision as far as it can be checked without its request.
func (c *Checker) result(line, s string) (decision, param string, ok bool) {
	decision, param, has := strings.Cut(s, "|")
	switch decision {
	case "proceed", "junk":
		if has {
			c.problem(Param, line, "%s takes no parameter", decision)
			return "", "", false
		}
	case "reject", "disconnect", "rewrite":
		if param == "" {
			c.problem(Param, line, "%s needs a parameter", decision)
			return "", "", false
		}
		if !printable(param) {
			c.problem(Text, line, "character that is not printable ASCII")
		} else if decision != "rewrite" && !replyText(param) {
			c.problem(Text, line, "not a 4xx or 5xx code, one blank and a text")
		}
		if len(param) > maxText {
			c.problem(Text, line, "parameter of %d bytes", len(param))
		}
	default:
		c.problem(Decision, line, "unknown decision %s", brief(decision))
		return "", "", false
	}
	return decision, param, true
}

// printable follows RFC 5321 section 4.2 (textstring), without its tab.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func replyText(s string) bool {
	return len(s) >= 5 && (s[0] == '4' || s[0] == '5') && digits(s[:3]) && s[3] == ' '
}

// decide checks a decision against its request.
func (c *Checker) decide(r *request, line, decision, param string) {
	switch decision {
	case "junk":
		if r.phase == "commit" {
			c.problem(JunkCommit, line, "junk at commit")
		}
	case "reject":
		if r.phase == "connect" && !strings.HasPrefix(param, "421 ") {
			c.problem(Connect, line, "reject at connect must be disconnect")
		}
	case "rewrite":
		switch r.phase {
		case "helo", "ehlo", "noop":
		case "mail-from", "rcpt-to":
			if addr, opts, ok := strings.Cut(param, ">"); !ok || addr[:min(1, len(addr))] != "<" || opts != "" && opts[0] != ' ' {
				c.problem(Rewrite, line, "address must be in <>")
			}
		default:
			c.problem(Rewrite, line, "rewrite at %s breaks the command", r.phase)
		}
	}
}

func (c *Checker) dataLine(s *session, r *request, line, text string) {
	if r.minor < 7 && len(text) > maxOldData {
		c.problem(Cut, line, "data line of %d bytes is cut to %d", len(text), maxOldData)
	}
	if r.outDone {
		c.problem(AfterDot, line, "data line after the final dot")
		return
	}
	if strings.Contains(text, "\x00") && !strings.Contains(strings.Join(r.in, ""), "\x00") {
		c.problem(NUL, line, "NUL ends the line")
	}
	if text == "." {
		if !r.inDone {
			c.problem(EarlyDot, line, "final dot before the end of the message")
		}
		r.outDone = true
		c.finish(s, r)
		return
	}
	if text[:min(1, len(text))] == "." && text[:min(2, len(text))] != ".." &&
		!slices.ContainsFunc(r.in, func(l string) bool { return strings.HasPrefix(l, text) }) {
		if text == ".\r" {
			c.problem(DotCR, line, "dot and CR is not the final dot")
		} else {
			c.problem(Dot, line, "leading dot is not stuffed")
		}
	}
	r.out = append(r.out, text)
}

// finish ends a message of which both sides have seen the final dot.
func (c *Checker) finish(s *session, r *request) {
	if !r.inDone || !r.outDone {
		return
	}
	in, _ := Received(r.in)
	out, _ := Received(r.out)
	if isField(first(in)) && !isField(first(out)) {
		c.problem(Header, first(out), "the first line of the message must be a header field")
	} else if headerOK(in) && !headerOK(out) {
		c.problem(Header, first(out), "neither header field nor continuation in the header")
	}
	if !c.Edits {
		if err := SameMessage(r.minor, r.in, r.out); err != nil {
			c.problem(Lost, "", "session %s message %d: %v", r.session, r.n, err)
		}
	}
	c.answers = append(c.answers, Answer{Session: r.session, Phase: r.phase, N: r.n, Lines: slices.Clone(r.out)})
	c.done(s)
}

func first(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[0]
}

func blank(s string) bool { return s != "" && (s[0] == ' ' || s[0] == '\t') }

// isField reports whether a line begins a header field, RFC 5322 section 2.2.
func isField(s string) bool {
	name, _, ok := strings.Cut(s, ":")
	name = strings.TrimRight(name, " \t") // section 4.5, obsolete but met
	if !ok || name == "" || len(name) > maxField {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}

// headerOK reports whether all lines before the first empty one are fields and their continuations.
func headerOK(lines []string) bool {
	for i, l := range lines {
		if l == "" {
			break
		}
		if !isField(l) && (i == 0 || !blank(l)) {
			return false
		}
	}
	return true
}

// End notes that the filter has ended after its input did: what is not answered now never will be.
func (c *Checker) End() {
	if !c.ready {
		c.problem(Unready, "", "the filter never said register|ready")
	}
	for _, s := range c.order {
		for _, r := range s.waiting {
			switch {
			case r.aborted, c.Ahead && !c.Registered("filter", "smtp-in", r.phase):
			case !r.message():
				c.problem(Unanswered, r.line, "no answer")
			case r.inDone && !r.outDone:
				c.problem(Unanswered, r.line, "message without final dot")
			}
		}
		s.waiting = nil
	}
}
