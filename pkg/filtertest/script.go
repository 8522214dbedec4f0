package filtertest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Main runs the tests, with the commands installed as programs in PATH that are this test binary. It does not return.
func Main(m testscript.TestingM, commands map[string]func()) { testscript.Main(m, commands) }

// Params returns what testscript.Run needs for the scripts of a folder, with these commands:
//
//	dialogue FILE -- COMMAND...   plays a dialogue with a filter; its environment is PATH, HOME, TMPDIR and DNS
//	dns FILE                      starts a DNS server with a DNSScript, in $DNS its address and port; a second call
//	                              replaces the script
//	dnscount NAME TYPE N          so many queries have come for a name and type
//
// A Setup of one's own must call the one that is returned.
func Params(dir string) testscript.Params {
	return testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			env.Values[dnsKey{}] = new(dnsServer)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"dialogue": cmdDialogue,
			"dns":      cmdDNS,
			"dnscount": cmdDNSCount,
		},
	}
}

type dnsKey struct{}

// A dnsServer is the script's server once there is one.
type dnsServer struct{ *DNS }

func cmdDNS(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := ts.Value(dnsKey{}).(*dnsServer)
	if neg || !ok || len(args) != 1 {
		ts.Fatalf("usage: dns file")
	}
	script := ts.ReadFile(args[0])
	if s.DNS != nil {
		ts.Check(s.Set(script))
		return
	}
	d, err := StartDNS("127.0.0.1:0", script)
	ts.Check(err)
	ts.Defer(d.Close)
	s.DNS = d
	ts.Setenv("DNS", d.Addr.String())
}

func cmdDNSCount(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := ts.Value(dnsKey{}).(*dnsServer)
	if neg || !ok || s.DNS == nil || len(args) != 3 {
		ts.Fatalf("usage: dnscount name type n, after dns")
	}
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	if n := s.Count(args[0], args[1]); n != want {
		ts.Fatalf("%d queries for %s %s, want %d", n, args[0], args[1], want)
	}
}

func cmdDialogue(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || args[1] != "--" {
		ts.Fatalf("usage: dialogue file -- command [arg...]")
	}
	p := Program{Cmd: slices.Clone(args[2:]), Dir: ts.MkAbs(".")}
	if !strings.Contains(p.Cmd[0], "/") {
		for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
			file := filepath.Join(dir, p.Cmd[0])
			if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
				p.Cmd[0] = file
				break
			}
		}
	}
	// smtpd started at boot has hardly any environment either.
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "DNS", "GOCOVERDIR", "GORACE"} {
		if v := ts.Getenv(name); v != "" {
			p.Env = append(p.Env, name+"="+v)
		}
	}
	var dns *DNS
	if s, ok := ts.Value(dnsKey{}).(*dnsServer); ok {
		dns = s.DNS
	}
	log, err := p.play(ts.ReadFile(args[0]), dns)
	if err != nil {
		ts.Fatalf("%s: %v\n%s", args[0], err, log)
	}
}

// play runs a filter through a whole dialogue. It returns what was said.
func (p Program) play(text string, dns *DNS) (transcript string, err error) {
	steps, err := parseDialogue(text)
	if err != nil {
		return "", err
	}
	if len(steps) > 0 && steps[0].op == "version" {
		p.Version = steps[0].arg[0]
	}
	c, err := p.start(false)
	if err != nil {
		return "", err
	}
	defer c.stop()
	if err := c.hello(); err != nil {
		return c.transcript(), err
	}
	d := newDialogue(c, p.Dir)
	d.dns = dns
	err = d.run(steps)
	if err == nil && !d.exited {
		err = finish(c, 0)
	}
	if err == nil {
		err = d.rest()
	}
	return c.transcript(), err
}

// A step is one line of a dialogue.
type step struct {
	line int
	op   string
	arg  []string
}

var sessionName = regexp.MustCompile(`^([a-z0-9]{1,8}|[0-9a-f]{16})$`)

// ops gives the least and most number of arguments, and whether the last takes the rest of the line as it
// is. The first is a session if session is set.
var ops = map[string]struct {
	min, max      int
	rest, session bool
}{
	"version": {1, 1, false, false},
	"at":      {1, 1, false, false},
	">":       {2, 3, true, true},
	"<":       {3, 3, true, true},
	">>":      {1, 1, true, false},
	"<<":      {1, 1, true, false},
	"!":       {1, 1, false, true},
	"~":       {1, 1, true, false},
	"!~":      {1, 1, true, false},
	"dns":     {1, 1, false, false},
	"eof":     {0, 0, false, false},
	"exit":    {1, 1, false, false},

	"connect":  {2, 4, false, true},
	"ehlo":     {2, 2, false, true},
	"helo":     {2, 2, false, true},
	"starttls": {1, 1, false, true},
	"auth":     {2, 3, false, true},
	"mail":     {1, 2, false, true},
	"rcpt":     {2, 3, false, true},
	"message":  {2, 3, false, true},
	"rset":     {1, 1, false, true},
	"quit":     {1, 1, false, true},
	"gone":     {1, 1, false, true},
}

func parseDialogue(text string) ([]step, error) {
	var steps []step
	for i, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		s, err := parseStep(line)
		if err == nil && s.op == "version" && len(steps) > 0 {
			err = errors.New("version must be the first step")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", i+1, brief(line), err)
		}
		s.line = i + 1
		steps = append(steps, s)
	}
	return steps, nil
}

func parseStep(line string) (step, error) {
	op, args, more := strings.Cut(line, " ")
	o, ok := ops[op]
	if !ok {
		return step{}, errors.New("unknown step")
	}
	s := step{op: op}
	if o.rest && more {
		s.arg = strings.SplitN(args, " ", o.max)
	} else if more {
		s.arg = strings.Fields(args)
	}
	if op == "<" && len(s.arg) == 2 && s.arg[1] == "data-line" {
		s.arg = append(s.arg, "") // the empty line
	}
	if len(s.arg) < o.min || len(s.arg) > o.max {
		return step{}, errors.New("wrong number of arguments")
	}
	if o.session && (!sessionName.MatchString(s.arg[0]) || reserved(s.arg[0])) {
		return step{}, fmt.Errorf("%s is no session name", brief(s.arg[0]))
	}
	var err error
	switch op {
	case "version":
		if handshake[s.arg[0]] == "" {
			err = errors.New("unknown version")
		}
	case "at":
		_, err = time.ParseDuration(s.arg[0])
	case "~", "!~":
		_, err = regexp.Compile(expand(s.arg[0], "0.0", "0.0"))
	case "exit":
		_, err = strconv.Atoi(s.arg[0])
	case ">":
		if !slices.Contains(events, s.arg[1]) && !slices.Contains(phases, s.arg[1]) {
			err = errors.New("neither event nor phase")
		}
	case "<":
		if !slices.Contains(phases, s.arg[1]) {
			err = errors.New("unknown phase")
		}
	case "connect":
		if s.arg[1] != "local" {
			_, err = netip.ParseAddr(s.arg[1])
		}
	}
	return s, err
}

func reserved(name string) bool {
	return slices.Contains(phases, name) || name == "version" || name == "now"
}

// sessionID is the name in hex, filled up with zeros: s1 is 7331000000000000.
func sessionID(name string) string {
	if len(name) == 16 {
		return name
	}
	return (fmt.Sprintf("%x", name) + "0000000000000000")[:16]
}

// tokenOf returns the token of a phase. smtpd has one for each filter and phase, the same for all sessions.
func tokenOf(phase string) string {
	return fmt.Sprintf("f17e%012x", slices.Index(phases, phase)+1)
}

var variable = regexp.MustCompile(`\{[a-z][a-z0-9-]*\}`)

// expand puts in what stands for {names}.
func expand(s, version, now string) string {
	return variable.ReplaceAllStringFunc(s, func(v string) string {
		switch name := v[1 : len(v)-1]; {
		case name == "version":
			return version
		case name == "now":
			return now
		case slices.Contains(phases, name):
			return tokenOf(name)
		case sessionName.MatchString(name):
			return sessionID(name)
		}
		return v
	})
}

// start of all dialogues, in seconds since the epoch: 1 January 2026.
const epoch = 1767225600

// A dialogue is the state of smtpd's side.
type dialogue struct {
	c        *conn
	dir      string
	dns      *DNS
	elapsed  time.Duration
	sessions map[string]*talk // by identifier
	took     map[int]bool     // lines of standard error that a ~ took
	not      []string         // expressions of !~
	txs      int
	exited   bool
	err      error // of the steps that say several things
}

// A talk is one session.
type talk struct {
	name, id string
	read     int      // answers that were checked
	echo     []string // data lines to come back
	quiet    bool     // no answer may come
	over     bool
	msgid    string // of the transaction
	rcpts    int
}

func newDialogue(c *conn, dir string) *dialogue {
	return &dialogue{c: c, dir: dir, sessions: make(map[string]*talk), took: make(map[int]bool)}
}

// now returns the time stamp of the next line. Lines are 1 ms apart.
func (d *dialogue) now() string {
	defer func() { d.elapsed += time.Millisecond }()
	return fmt.Sprintf("%d.%06d", epoch+int64(d.elapsed/time.Second), d.elapsed%time.Second/time.Microsecond)
}

func (d *dialogue) talk(name string) *talk {
	id := sessionID(name)
	t := d.sessions[id]
	if t == nil {
		t = &talk{name: name, id: id}
		d.sessions[id] = t
	}
	return t
}

func (d *dialogue) run(steps []step) error {
	for _, s := range steps {
		err := d.silent()
		if err == nil {
			err = d.step(s)
		}
		if err == nil {
			err = d.err
		}
		if err != nil {
			return fmt.Errorf("line %d: %s: %w", s.line, strings.Join(append([]string{s.op}, s.arg...), " "), err)
		}
	}
	return nil
}

func (d *dialogue) step(s step) error {
	var t *talk
	if ops[s.op].session {
		t = d.talk(s.arg[0])
		t.quiet = false
	}
	switch s.op {
	case "version":
		if s.arg[0] != d.c.version {
			return fmt.Errorf("the filter was started with %s", d.c.version)
		}
	case "at":
		by, err := time.ParseDuration(s.arg[0])
		if err != nil {
			return err
		}
		if s.arg[0][0] == '+' {
			by += d.elapsed
		}
		d.elapsed = max(by, 0)
	case ">":
		return d.send(t, s.arg[1], strings.Join(s.arg[2:], ""))
	case "<":
		return d.expect(t, func(o out) bool { return o.phase == s.arg[1] && o.text == s.arg[2] })
	case ">>":
		return d.c.raw(expand(s.arg[0], d.c.version, d.now()))
	case "<<":
		return d.expectRaw(expand(s.arg[0], d.c.version, ""))
	case "!":
		d.c.mu.Lock()
		waits, early := d.c.waiting(t.id) != nil, len(d.c.outs[t.id]) > t.read
		d.c.mu.Unlock()
		if early {
			return errors.New("there is an answer")
		}
		if !waits {
			return errors.New("nothing was asked")
		}
		t.quiet = true
	case "~":
		return d.logged(s.arg[0])
	case "!~":
		d.not = append(d.not, s.arg[0])
	case "dns":
		if d.dns == nil {
			return errors.New("no DNS server")
		}
		text, err := os.ReadFile(filepath.Join(d.dir, s.arg[0]))
		if err != nil {
			return err
		}
		return d.dns.Set(string(text))
	case "eof":
		d.c.close()
	case "exit":
		status, err := strconv.Atoi(s.arg[0])
		if err != nil {
			return err
		}
		d.exited = true
		return finish(d.c, status)
	default:
		return d.client(t, s)
	}
	return nil
}

// silent checks that nothing came from sessions that must not answer yet.
func (d *dialogue) silent() error {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	for _, t := range d.sessions {
		if o := d.c.outs[t.id]; t.quiet && len(o) > t.read {
			return fmt.Errorf("session %s answered too early: %s %s", t.name, o[t.read].phase, brief(o[t.read].text))
		}
	}
	return nil
}

// plain reports whether an answer may go unmentioned.
func (t *talk) plain(o out) bool {
	if o.phase != "data-line" {
		return o.text == "proceed"
	}
	if len(t.echo) == 0 || t.echo[0] != o.text {
		return o.text == "." && len(t.echo) == 0
	}
	t.echo = t.echo[1:]
	return true
}

// expect waits for an answer of a session that fits, passing over those that may go unmentioned.
func (d *dialogue) expect(t *talk, fits func(out) bool) error {
	for {
		var o out
		asked := true
		err := d.c.wait("an answer in session "+t.name, func() bool {
			if len(d.c.outs[t.id]) > t.read {
				o = d.c.outs[t.id][t.read]
				return true
			}
			asked = d.c.waiting(t.id) != nil
			return !asked
		})
		if err != nil {
			return err
		}
		if !asked {
			return errors.New("no answer is due: nothing was asked, or its phase is not registered")
		}
		t.read++
		if fits(o) {
			if o.phase == "data-line" && o.text == "." {
				t.echo = nil // all lines were named, or echoes
			} else if o.phase == "data-line" && len(t.echo) > 0 && t.echo[0] == o.text {
				t.echo = t.echo[1:]
			}
			return nil
		}
		if !t.plain(o) {
			return fmt.Errorf("got %s %s", o.phase, brief(o.text))
		}
	}
}

// settle waits until a session has its answers, and checks that those not mentioned are plain.
func (d *dialogue) settle(t *talk) error {
	if err := d.c.idle(t.id, true); err != nil {
		return err
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	for ; t.read < len(d.c.outs[t.id]); t.read++ {
		if o := d.c.outs[t.id][t.read]; !t.plain(o) {
			return fmt.Errorf("session %s answered %s %s, which no step expects", t.name, o.phase, brief(o.text))
		}
	}
	return nil
}

func (d *dialogue) expectRaw(line string) error {
	f := strings.SplitN(line, "|", 4)
	if reg, ok := strings.CutPrefix(line, "register|"); ok {
		d.c.mu.Lock()
		defer d.c.mu.Unlock()
		if reg != "ready" && !slices.Contains(d.c.check.regs, reg) {
			return errors.New("not registered")
		}
		return nil
	}
	if len(f) < 4 {
		return errors.New("not a line that a filter may write")
	}
	id := f[1]
	if d.c.minor < 5 {
		id = f[2]
	}
	if !hex16(id) {
		return errors.New("no session identifier")
	}
	return d.expect(d.talk(id), func(o out) bool { return o.raw == line })
}

// logged waits for a line of standard error.
func (d *dialogue) logged(expr string) error {
	re, err := regexp.Compile(expand(expr, d.c.version, ""))
	if err != nil {
		return err
	}
	return d.c.wait("the log line", func() bool {
		for i, l := range d.c.stderr {
			if !d.took[i] && re.MatchString(l) {
				d.took[i] = true
				return true
			}
		}
		return false
	})
}

// rest checks at the end what nobody mentioned.
func (d *dialogue) rest() error {
	if err := d.silent(); err != nil {
		return err
	}
	for _, t := range d.sessions {
		if err := d.settle(t); err != nil {
			return err
		}
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	for _, expr := range d.not {
		re, err := regexp.Compile(expand(expr, d.c.version, ""))
		if err != nil {
			return err
		}
		for _, l := range d.c.stderr {
			if re.MatchString(l) {
				return fmt.Errorf("!~ %s: the filter wrote %s", expr, brief(l))
			}
		}
	}
	return nil
}

// send says one thing. A session that was asked something else before must have answered it as expected.
func (d *dialogue) send(t *talk, name, fields string) error {
	if slices.Contains(events, name) {
		line := strings.Join([]string{"report", d.c.version, d.now(), "smtp-in", name, t.id}, "|")
		if fields != "" {
			line += "|" + fields
		}
		_, err := d.c.send(line)
		return err
	}
	if name != "data-line" {
		if err := d.settle(t); err != nil {
			return err
		}
	}
	_, err := d.ask(t, name, fields)
	return err
}

// ask sends a request. It reports whether the filter gets it.
func (d *dialogue) ask(t *talk, phase, params string) (bool, error) {
	sent, err := d.c.send(strings.Join([]string{"filter", d.c.version, d.now(), "smtp-in", phase, t.id, tokenOf(phase), params}, "|"))
	if sent && phase == "data-line" && params != "." {
		t.echo = append(t.echo, params)
	}
	return sent, err
}

// The rest is what smtpd does when its client does something. The first error stays in d.err and ends the step.

func (d *dialogue) client(t *talk, s step) error {
	if err := d.settle(t); err != nil {
		return err
	}
	if t.over {
		return errors.New("the session has ended")
	}
	arg := func(n int, or string) string {
		if len(s.arg) > n {
			return s.arg[n]
		}
		return or
	}
	switch s.op {
	case "connect":
		d.connect(t, s.arg[1], arg(2, "<unknown>"), arg(3, ""))
	case "ehlo", "helo":
		d.command(t, strings.ToUpper(s.op)+" "+s.arg[1])
		if ok, name := d.verdict(t, s.op, s.arg[1]); ok {
			if name == "" {
				name = s.arg[1]
			}
			d.report(t, "link-identify", strings.ToUpper(s.op)+"|"+name)
			d.reply(t, "250 mx.example.org Hello "+name+", pleased to meet you")
		}
	case "starttls":
		d.command(t, "STARTTLS")
		if ok, _ := d.verdict(t, "starttls", ""); ok {
			d.reply(t, "220 2.0.0 Ready to start TLS")
			d.report(t, "link-tls", "TLSv1.3:TLS_AES_256_GCM_SHA384:256")
		}
	case "auth":
		d.command(t, "AUTH PLAIN ********")
		secret := base64.StdEncoding.EncodeToString([]byte("\x00" + s.arg[1] + "\x00secret"))
		if ok, _ := d.verdict(t, "auth", "PLAIN "+secret); ok {
			d.auth(t, s.arg[1], arg(2, "pass"))
		}
	case "mail":
		d.mail(t, arg(1, ""))
	case "rcpt":
		d.rcpt(t, s.arg[1], arg(2, "ok"))
	case "message":
		return d.message(t, s.arg[1], arg(2, s.arg[1]))
	case "rset":
		d.command(t, "RSET")
		if ok, _ := d.verdict(t, "rset", ""); ok {
			d.reply(t, "250 2.0.0 Reset state", d.rollback(t)...)
		}
	case "quit":
		d.command(t, "QUIT")
		if ok, _ := d.verdict(t, "quit", ""); ok {
			d.reply(t, "221 2.0.0 Bye")
			d.disconnect(t)
		}
	case "gone":
		d.disconnect(t)
	}
	return d.err
}

func (d *dialogue) report(t *talk, event, fields string) {
	if d.err == nil {
		d.err = d.send(t, event, fields)
	}
}

func (d *dialogue) command(t *talk, line string) { d.report(t, "protocol-client", line) }

// reply sends a reply and the transaction's events that belong to it; before 0.6 these come first.
func (d *dialogue) reply(t *talk, line string, tx ...[2]string) {
	if d.c.minor >= 6 {
		d.report(t, "protocol-server", line)
	}
	for _, e := range tx {
		d.report(t, e[0], e[1])
	}
	if d.c.minor < 6 {
		d.report(t, "protocol-server", line)
	}
}

// verdict asks the filter and does what a refusal entails. It returns whether the command goes on,
// and the argument of a rewrite.
func (d *dialogue) verdict(t *talk, phase, params string) (ok bool, rewritten string) {
	if d.err != nil {
		return false, ""
	}
	text := "proceed"
	var sent bool
	if sent, d.err = d.ask(t, phase, params); sent {
		if d.err = d.c.idle(t.id, false); d.err != nil {
			return false, ""
		}
		d.c.mu.Lock()
		if o := d.c.outs[t.id]; len(o) > 0 {
			text = o[len(o)-1].text
		}
		d.c.mu.Unlock()
	}
	decision, param, _ := strings.Cut(text, "|")
	if decision == "reject" && strings.HasPrefix(param, "421 ") {
		decision = "disconnect"
	}
	name := phase
	switch phase {
	case "connect":
		name = "connected"
	case "starttls":
		name = "tls"
	}
	if param != "" {
		d.report(t, "filter-response", name+"|"+decision+"|"+param)
	} else {
		d.report(t, "filter-response", name+"|"+decision)
	}
	switch decision {
	case "reject":
		if phase == "commit" {
			d.reply(t, param, append([][2]string{{"tx-data", t.msgid + "|" + failure(param)}}, d.rollback(t)...)...)
		} else if phase == "rcpt-to" && t.msgid != "" {
			d.reply(t, param, d.txResult(t, "tx-rcpt", failure(param), params))
		} else if phase == "data" {
			d.reply(t, param, [2]string{"tx-data", t.msgid + "|" + failure(param)})
		} else {
			d.reply(t, param)
		}
		return false, ""
	case "disconnect":
		d.reply(t, param)
		d.disconnect(t)
		return false, ""
	case "rewrite":
		return d.err == nil, param
	}
	return d.err == nil, ""
}

// failure is the result that a refusal gives.
func failure(reply string) string {
	if strings.HasPrefix(reply, "4") {
		return "tempfail"
	}
	return "permfail"
}

func (d *dialogue) txResult(t *talk, event, result, addr string) [2]string {
	if d.c.minor < 6 {
		return [2]string{event, t.msgid + "|" + addr + "|" + result}
	}
	return [2]string{event, t.msgid + "|" + result + "|" + addr}
}

// rollback returns the events that end an open transaction.
func (d *dialogue) rollback(t *talk) [][2]string {
	if t.msgid == "" {
		return nil
	}
	id := t.msgid
	t.msgid, t.rcpts = "", 0
	return [][2]string{{"tx-rollback", id}, {"tx-reset", id}}
}

func (d *dialogue) disconnect(t *talk) {
	for _, e := range d.rollback(t) {
		d.report(t, e[0], e[1])
	}
	d.report(t, "link-disconnect", "")
	t.over = true
}

func (d *dialogue) connect(t *talk, addr, rdns, fcrdns string) {
	if fcrdns == "" {
		fcrdns = "pass"
		if rdns == "<unknown>" {
			fcrdns = "fail"
		}
	}
	src, dest := addr+":40000", "192.0.2.25:25"
	if addr == "local" {
		src, dest = "unix:/var/run/smtpd.sock", "unix:/var/run/smtpd.sock"
		if rdns == "<unknown>" {
			rdns, fcrdns = "mx.example.org", "pass"
		}
	} else if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
		src, dest = addr+":40000", "[2001:db8::25]:25"
	}
	d.report(t, "link-connect", rdns+"|"+fcrdns+"|"+src+"|"+dest)
	if ok, _ := d.verdict(t, "connect", rdns+"|"+addr); ok {
		d.report(t, "protocol-server", "220 mx.example.org ESMTP OpenSMTPD")
		d.report(t, "link-greeting", "mx.example.org")
	}
}

func (d *dialogue) auth(t *talk, user, result string) {
	if d.c.minor < 7 {
		d.report(t, "link-auth", user+"|"+result)
	} else {
		d.report(t, "link-auth", result+"|"+user)
	}
	if result == "pass" {
		d.reply(t, "235 2.0.0 Authentication succeeded")
	} else {
		d.reply(t, "535 Authentication failed")
	}
}

func (d *dialogue) mail(t *talk, addr string) {
	d.command(t, "MAIL FROM:<"+addr+">")
	if t.msgid != "" {
		d.reply(t, "503 5.5.1 Invalid command: Already in transaction")
		return
	}
	if ok, _ := d.verdict(t, "mail-from", addr); ok {
		d.txs++
		t.msgid = fmt.Sprintf("%08x", 0xb0000000+d.txs)
		d.reply(t, "250 2.0.0 Ok", [2]string{"tx-begin", t.msgid}, d.txResult(t, "tx-mail", "ok", addr))
	}
}

func (d *dialogue) rcpt(t *talk, addr, result string) {
	d.command(t, "RCPT TO:<"+addr+">")
	if t.msgid == "" {
		d.reply(t, "503 5.5.1 Invalid command: Command not allowed at this point.")
		return
	}
	if ok, _ := d.verdict(t, "rcpt-to", addr); !ok {
		return
	}
	tx := d.txResult(t, "tx-rcpt", result, addr)
	switch result {
	case "ok":
		t.rcpts++
		d.report(t, "tx-envelope", fmt.Sprintf("%s|%s%08x", t.msgid, t.msgid, t.rcpts))
		d.reply(t, "250 2.1.5 Destination address valid: Recipient ok", tx)
	case "tempfail":
		d.reply(t, "421 4.3.0 Temporary Error", tx)
	default:
		d.reply(t, "550 5.1.1 Invalid recipient: <"+addr+">", tx)
	}
}

// message sends DATA and the lines of a file, checks that those of another come back, and asks for the commit.
func (d *dialogue) message(t *talk, in, out string) error {
	lines, err := d.file(in)
	if err != nil {
		return err
	}
	want, err := d.file(out)
	if err != nil {
		return err
	}
	d.command(t, "DATA")
	if t.rcpts == 0 {
		d.reply(t, "503 5.5.1 Invalid command: Command not allowed at this point.")
		return d.err
	}
	if ok, _ := d.verdict(t, "data", ""); !ok {
		return d.err
	}
	size := 0
	for i, l := range lines {
		size += len(l) + 2
		if _, err := d.ask(t, "data-line", l); err != nil {
			return err
		}
		if i == 0 { // seldom earlier
			d.reply(t, `354 Enter mail, end with "." on a line by itself`, [2]string{"tx-data", t.msgid + "|ok"})
		}
	}
	sent, err := d.ask(t, "data-line", ".")
	if err == nil {
		err = d.c.idle(t.id, false)
	}
	if err != nil {
		return err
	}
	if sent {
		var got Answer
		d.c.mu.Lock()
		for _, a := range d.c.check.answers {
			if a.Session == t.id && a.Phase == "data-line" {
				got = a
			}
		}
		d.c.mu.Unlock()
		if !slices.Equal(got.Lines, want) {
			return fmt.Errorf("the filter returned\n%s", strings.Join(got.Lines, "\n"))
		}
		t.echo = got.Lines // for steps that follow
	} else if in != out {
		return errors.New("data-line is not registered")
	}
	d.command(t, ".")
	if ok, _ := d.verdict(t, "commit", ""); ok {
		id := t.msgid
		t.msgid, t.rcpts = "", 0
		d.reply(t, "250 2.0.0 "+id+" Message accepted for delivery",
			[2]string{"tx-commit", fmt.Sprintf("%s|%d", id, size)}, [2]string{"tx-reset", id})
	}
	return d.err
}

// file returns the lines of a message, dot-stuffed.
func (d *dialogue) file(name string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = "." + l
		}
	}
	return lines, nil
}
