//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// A kind is one way in which clients behave.
type kind struct {
	name   string
	weight int // in how many of all sessions
	waits  bool
	run    func(*session)
}

var kinds = []kind{
	{"good", 300, false, (*session).good},
	{"listed", 80, false, (*session).listed},
	{"dynamic", 80, false, (*session).dynamic},
	{"newcomer", 120, false, (*session).newcomer},
	{"nameless", 60, false, (*session).nameless},
	{"abort", 80, false, (*session).abort},
	{"rset", 15, false, (*session).rsets},
	{"hundred", 5, false, (*session).hundred},
	{"big", 10, false, (*session).big},
	{"long", 40, false, (*session).long},
	{"pipeline", 20, false, (*session).pipeline},
	{"garbage", 30, false, (*session).garbage},
	{"repeat", 20, false, (*session).repeat},
	{"idle", 4, true, (*session).idle},
}

// answerTime is for how long a client waits for an answer. It is no limit of
// speed: what has not come then never will.
const answerTime = 10 * time.Minute

// mailboxes is the number of users who get mail.
const mailboxes = 200

// A crowd is all clients of one run of smtpd.
type crowd struct {
	server *smtpdtest.Server
	ledger *ledger
	seed   uint64
	retry  time.Duration // a refused mail server comes again after about this time; 0: never

	stop     chan struct{} // closed when no session begins any more
	running  sync.WaitGroup
	sessions atomic.Int64 // ever begun
	mu       sync.Mutex
	open     map[*session]bool
	counts   crowdCounts
	faults   []string
}

type crowdCounts struct {
	sessions   int // ended
	answers    int
	slowest    time.Duration // answer
	unanswered int
}

func newCrowd(s *smtpdtest.Server, l *ledger, seed uint64) *crowd {
	return &crowd{server: s, ledger: l, seed: seed, stop: make(chan struct{}), open: map[*session]bool{}}
}

// pick chooses a kind; waiting says whether it may be one that mostly waits.
func pick(rng *rand.Rand, waiting bool) kind {
	total := 0
	for _, k := range kinds {
		if waiting || !k.waits {
			total += k.weight
		}
	}
	n := rng.IntN(total)
	for _, k := range kinds {
		if !waiting && k.waits {
			continue
		}
		if n -= k.weight; n < 0 {
			return k
		}
	}
	panic("weights")
}

// start lets one more client come, and calls ended after it has left.
func (c *crowd) start(waiting bool, ended func()) {
	n := c.sessions.Add(1)
	rng := rand.New(rand.NewPCG(c.seed, uint64(n)))
	k := pick(rng, waiting)
	c.launch(&session{crowd: c, kind: k.name, n: int(n), rng: rng}, k.run, ended)
}

func (c *crowd) launch(s *session, run func(*session), ended func()) {
	c.mu.Lock()
	c.open[s] = true
	c.mu.Unlock()
	c.running.Go(func() {
		run(s)
		s.leave()
		c.mu.Lock()
		delete(c.open, s)
		c.counts.sessions++
		c.mu.Unlock()
		ended()
	})
}

func (c *crowd) inFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// take returns the counts since it was last called.
func (c *crowd) take() crowdCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := c.counts
	c.counts = crowdCounts{}
	return counts
}

// finish waits until all clients have left, and gives up on answers that have
// not come for long.
func (c *crowd) finish() {
	close(c.stop)
	left := make(chan struct{})
	go func() { c.running.Wait(); close(left) }()
	for answers, last := -1, time.Now(); ; {
		select {
		case <-left:
			return
		case <-time.After(time.Second):
		}
		c.mu.Lock()
		if c.counts.answers != answers {
			answers, last = c.counts.answers, time.Now()
		}
		if time.Since(last) > 2*time.Minute {
			for s := range c.open {
				s.hurry()
			}
		}
		c.mu.Unlock()
	}
}

// A session is one connection of a client at a time.
type session struct {
	crowd *crowd
	kind  string
	n     int
	rng   *rand.Rand

	mu     sync.Mutex // for conn, whose wait hurry ends
	conn   *smtpdtest.Client
	bye    bool // the server may close
	wanted bool // to refuse this client for good is wrong in any weather
}

var errClosed = errors.New("the connection is closed")

// hurry ends a wait for an answer.
func (s *session) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.SetDeadline(time.Unix(1, 0))
	}
}

// connect opens a connection and waits for the greeting.
func (s *session) connect(src string) error {
	s.leave()
	conn, err := s.crowd.server.Dial(src)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return errClosed // smtpd has too much to do to take connections
	}
	if err != nil {
		return s.failed("connect", err)
	}
	conn.Patience = answerTime
	s.mu.Lock()
	s.conn, s.bye = conn, false
	s.mu.Unlock()
	_, err = s.reply("connect")
	return err
}

// leave closes the connection, if there is one.
func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// do says something and waits for the answer. A refusal is no error.
func (s *session) do(line string) (smtpdtest.Reply, error) {
	step, _, _ := strings.Cut(line, " ")
	return s.say(step, []byte(line+"\r\n"))
}

func (s *session) say(step string, text []byte) (smtpdtest.Reply, error) {
	if _, err := s.conn.Write(text); err != nil {
		return smtpdtest.Reply{}, s.failed(step, err)
	}
	return s.reply(step)
}

// reply waits for an answer.
func (s *session) reply(step string) (smtpdtest.Reply, error) {
	begin := time.Now()
	r, err := s.conn.Reply()
	if err != nil {
		return r, s.failed(step, err)
	}
	s.answered(step, r, time.Since(begin))
	return r, nil
}

// answered counts an answer.
func (s *session) answered(step string, r smtpdtest.Reply, took time.Duration) {
	s.bye = r.Code == 221 || r.Code == 421 || r.Code >= 500
	c := s.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.answers++
	c.counts.slowest = max(c.counts.slowest, took)
	if s.wanted && r.Code >= 500 && slices.Contains([]string{"connect", "EHLO", "MAIL", "RCPT", "DATA", "message"}, step) {
		c.fault(fmt.Sprintf("session %d (%s): %s was refused: %v", s.n, s.kind, step, r))
	}
}

// failed counts what has gone wrong with a connection.
func (s *session) failed(step string, err error) error {
	c := s.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	fault := fmt.Sprintf("session %d (%s): %s: %v", s.n, s.kind, step, err)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.counts.unanswered++
	case s.bye:
		return errClosed
	}
	c.fault(fault)
	return errClosed
}

// fault takes note of what should not happen. The caller holds mu.
func (c *crowd) fault(text string) {
	if len(c.faults) < 20 {
		c.faults = append(c.faults, text)
	}
}

// identify opens a connection and says hello.
func (s *session) identify(src, helo string) error {
	if err := s.connect(src); err != nil {
		return err
	}
	r, err := s.do("EHLO " + helo)
	if err == nil && r.Code != 250 {
		err = errClosed
	}
	return err
}

// A mail is what a client wants to send.
type mail struct {
	sender string
	rcpts  []string // mailboxes
	fields string   // more of the header, lines ending in CRLF
	raw    []byte   // likewise, sent without dot-stuffing
	text   []byte   // of the body, not dot-stuffed
	id     uint64
	data   []byte // all of it as it is sent, with the last dot
}

// user returns a mailbox.
func (s *session) user() string { return fmt.Sprint("u", s.rng.IntN(mailboxes)) }

// mail makes a short mail.
func (s *session) mail(sender string) *mail {
	m := &mail{sender: sender, text: []byte("hello\r\n..\r\n.dot\r\n")}
	for range 1 + s.rng.IntN(3) {
		if u := s.user(); !slices.Contains(m.rcpts, u) {
			m.rcpts = append(m.rcpts, u)
		}
	}
	return m
}

// write makes m.data.
func (s *session) write(m *mail) {
	var body []byte
	m.id, body = s.crowd.ledger.offer(func(id uint64) []byte {
		return append(fmt.Appendf(nil, "%s%d\r\n", mark, id), m.text...)
	})
	head := fmt.Appendf(nil, "From: <%s>\r\nTo: <%s@%s>\r\nSubject: hello\r\nX-Greylist: forged\r\nX-SenderScore: 100\r\n%s", m.sender, m.rcpts[0], smtpdtest.Domain, m.fields)
	stuff := func(text []byte) {
		for line := range bytes.Lines(text) {
			if line[0] == '.' {
				m.data = append(m.data, '.')
			}
			m.data = append(m.data, line...)
		}
	}
	stuff(head)
	m.data = append(m.data, m.raw...)
	stuff(append([]byte("\r\n"), body...))
	m.data = append(m.data, ".\r\n"...)
}

// An outcome is what a client makes of the last answer to a mail.
type outcome int

const (
	taken outcome = iota
	never         // refused for good
	later         // refused for now
	gone          // the connection is
)

func outcomeOf(r smtpdtest.Reply, err error) outcome {
	switch {
	case err != nil:
		return gone
	case r.Code >= 500:
		return never
	case r.Code >= 400:
		return later
	}
	return taken
}

// envelope says MAIL and RCPT, and returns to whom m may go.
func (s *session) envelope(m *mail) (rcpts []string, o outcome) {
	r, err := s.do("MAIL FROM:<" + m.sender + ">")
	if o := outcomeOf(r, err); o != taken {
		return nil, o
	}
	for _, u := range m.rcpts {
		r, err := s.do("RCPT TO:<" + u + "@" + smtpdtest.Domain + ">")
		switch to := outcomeOf(r, err); to {
		case gone:
			return nil, gone
		case taken:
			rcpts = append(rcpts, u)
		default:
			o = to
		}
	}
	if len(rcpts) > 0 {
		o = taken
	}
	return rcpts, o
}

// send sends a mail over the open connection, which is good for another one
// then.
func (s *session) send(m *mail) outcome {
	o := s.transfer(m)
	if o == never || o == later {
		_, _ = s.do("RSET")
	}
	return o
}

func (s *session) transfer(m *mail) outcome {
	rcpts, o := s.envelope(m)
	if o != taken {
		return o
	}
	r, err := s.do("DATA")
	if o := outcomeOf(r, err); o != taken {
		return o
	}
	s.write(m)
	s.crowd.ledger.expect(m.id, rcpts)
	r, err = s.say("message", m.data)
	o = outcomeOf(r, err)
	switch o {
	case taken:
		s.crowd.ledger.settle(m.id, accepted)
	case gone:
		s.crowd.ledger.settle(m.id, unknown)
	default:
		s.crowd.ledger.settle(m.id, refused)
	}
	return o
}

// deliver sends a mail as a mail server does, which comes again when it is
// refused for now.
func (s *session) deliver(src, helo string, m *mail) { s.attempt(src, helo, m, 4) }

func (s *session) attempt(src, helo string, m *mail, tries int) {
	if s.identify(src, helo) != nil {
		return
	}
	o := s.send(m)
	if o == later {
		s.again(src, helo, m, tries-1)
	}
	if o != gone {
		_, _ = s.do("QUIT")
	}
}

// again sends a mail once more, a while later.
func (s *session) again(src, helo string, m *mail, tries int) {
	c := s.crowd
	if tries == 0 || c.retry == 0 {
		return
	}
	next := &session{crowd: c, kind: s.kind, n: s.n, wanted: s.wanted, rng: rand.New(rand.NewPCG(s.rng.Uint64(), uint64(tries)))}
	after := c.retry + time.Duration(s.rng.Int64N(int64(c.retry)))
	copied := *m
	copied.data = nil
	c.running.Go(func() {
		select {
		case <-c.stop:
		case <-time.After(after):
			c.launch(next, func(s *session) { s.attempt(src, helo, &copied, tries) }, func() {})
		}
	})
}

// good is a mail server that is known, with up to three mails.
func (s *session) good() {
	i := s.rng.IntN(goodHosts)
	src, helo := goodHost(i), fmt.Sprintf("mail%d.hosts.example", i)
	s.wanted = true
	if s.identify(src, helo) != nil {
		return
	}
	for range 1 + s.rng.IntN(3) {
		m := s.mail(s.sender(i))
		switch s.send(m) {
		case gone:
			return
		case later:
			s.again(src, helo, m, 3)
		}
		if s.rng.IntN(4) == 0 {
			if _, err := s.do([]string{"RSET", "NOOP", "VRFY x", "HELP"}[s.rng.IntN(4)]); err != nil {
				return
			}
		}
	}
	_, _ = s.do("QUIT")
}

// sender returns an address of one of a few domains, or none.
func (s *session) sender(i int) string {
	switch i % 8 {
	case 0:
		return fmt.Sprintf("news-%d@%c.senders.example", s.n, 'a'+i%26)
	case 1:
		return "user@friend.example"
	case 2:
		return fmt.Sprintf("a@d%d.strict.senders.example", i)
	case 3:
		if s.rng.IntN(4) == 0 {
			return ""
		}
	}
	return fmt.Sprintf("user%d@d%d.%c.senders.example", s.rng.IntN(1000), i, 'a'+i%26)
}

func (s *session) listed() {
	i := s.rng.IntN(listedHosts)
	s.deliver(listedHost(i), "localhost.example", s.mail(fmt.Sprintf("x%d@spam%d.example", s.n, i)))
}

func (s *session) dynamic() {
	i := s.rng.IntN(dynamicHosts)
	s.deliver(dynamicHost(i), "[127.0.0.1]", s.mail(fmt.Sprintf("x@spam%d.example", s.n)))
}

// newcomer is a mail server nobody has seen for a while.
func (s *session) newcomer() {
	i := s.rng.IntN(newcomerHosts)
	s.deliver(newcomerHost(i), fmt.Sprintf("mx%d.hosts.example", i), s.mail(fmt.Sprintf("user@n%d.%c.senders.example", s.n, 'a'+i%26)))
}

// nameless has an address that nobody will have again.
func (s *session) nameless() {
	src := anyAddress(s.n)
	if s.n%4 == 0 {
		src = fmt.Sprintf("2a01:1:%x:%x::%x", s.n>>16, s.n&0xffff, s.n%999)
	}
	s.deliver(src, "client.example", s.mail(fmt.Sprintf("x@n%d.silent.example", s.n)))
}

// abort leaves at any step, with or without a word, and with a reset too.
func (s *session) abort() {
	i := s.rng.IntN(goodHosts)
	at := s.rng.IntN(9)
	defer func() {
		if s.conn == nil {
			return
		}
		switch tcp, _ := s.conn.Conn.(*net.TCPConn); s.rng.IntN(3) {
		case 0:
			_ = tcp.SetLinger(0) // a reset
		case 1:
			_ = tcp.CloseWrite()
		}
	}()
	if at == 0 {
		conn, err := s.crowd.server.Dial(goodHost(i))
		if err != nil {
			_ = s.failed("connect", err)
			return
		}
		s.conn = conn
		return
	}
	if s.identify(goodHost(i), "mail.hosts.example") != nil || at == 1 {
		return
	}
	m := s.mail(s.sender(i))
	if at == 2 {
		_, _ = s.conn.Write([]byte("MAIL FROM:<" + m.sender + ">\r\n"))
		return
	}
	rcpts, o := s.envelope(m)
	if o != taken || at == 3 {
		return
	}
	if at == 4 {
		_, _ = s.conn.Write([]byte("DATA\r\n"))
		return
	}
	if r, err := s.do("DATA"); outcomeOf(r, err) != taken || at == 5 {
		return
	}
	s.write(m)
	s.crowd.ledger.expect(m.id, rcpts)
	defer s.crowd.ledger.settle(m.id, unknown)
	switch at {
	case 6:
		_, _ = s.conn.Write(m.data[:s.rng.IntN(len(m.data)-3)])
	case 7:
		_, _ = s.conn.Write(m.data[:len(m.data)-1])
	case 8:
		_, _ = s.conn.Write(m.data)
	}
}

// rsets begins a mail again and again, each from another domain.
func (s *session) rsets() {
	if s.identify(newcomerHost(s.n), "mx.hosts.example") != nil {
		return
	}
	for i := range 10 + s.rng.IntN(40) {
		if r, err := s.do(fmt.Sprintf("MAIL FROM:<a@r%d-%d.%s>", s.n, i, []string{"silent.example", "senders.example", "nowhere.example"}[i%3])); err != nil || r.Code == 421 {
			return
		}
		if s.rng.IntN(3) == 0 {
			if _, err := s.do("RCPT TO:<u1@" + smtpdtest.Domain + ">"); err != nil {
				return
			}
		}
		if _, err := s.do([]string{"RSET", "EHLO other.hosts.example"}[s.rng.IntN(8)/7]); err != nil {
			return
		}
	}
	_, _ = s.do("QUIT")
}

// hundred has a mail for a hundred mailboxes.
func (s *session) hundred() {
	s.wanted = true
	i := s.rng.IntN(goodHosts)
	m := s.mail(s.sender(i))
	m.rcpts = nil
	first := s.rng.IntN(mailboxes)
	for u := range 100 {
		m.rcpts = append(m.rcpts, fmt.Sprint("u", (first+u)%mailboxes))
	}
	s.deliver(goodHost(i), "mail.hosts.example", m)
}

func (s *session) big() {
	s.wanted = true
	i := s.rng.IntN(goodHosts)
	m := s.mail(s.sender(i))
	m.rcpts = m.rcpts[:1]
	line := strings.Repeat("0123456789 ", 6+s.rng.IntN(80)) + "\r\n"
	m.text = []byte(strings.Repeat(line, 1<<20/len(line)))
	s.deliver(goodHost(i), "mail.hosts.example", m)
}

// long has lines around and over the lengths that smtpd or the protocol allow
// for one line: 1,997 bytes for filters of protocol 0.6, 65,485 of 0.7. smtpd
// takes no line of more than 65,534 from a client.
func (s *session) long() {
	i := s.rng.IntN(goodHosts)
	m := s.mail(s.sender(i))
	line := func(limit int) string {
		n := s.rng.IntN(limit)
		switch s.rng.IntN(3) {
		case 0:
			n = min(1985+s.rng.IntN(25), limit)
		case 1:
			n = min(65470+s.rng.IntN(60), limit)
		}
		one := []string{".", " ", "\t", "a", "a.", " .", "\t ", ". ", "ab ", "."}
		var b strings.Builder
		for p := 0; b.Len() < n; p++ {
			if p == 0 || s.rng.IntN(3) == 0 {
				b.WriteString(strings.Repeat(one[s.rng.IntN(len(one))], 1+s.rng.IntN(n+1)))
			} else {
				b.WriteString(one[s.rng.IntN(len(one))])
			}
		}
		return b.String()[:n]
	}
	// The last byte of a line is none that ends it, or is taken off its end.
	for range 1 + s.rng.IntN(4) {
		name := []string{"X-Long: ", "Subject: ", "X-Long:", "References: <a@b> "}[s.rng.IntN(4)]
		m.fields += name + "x" + line(65400) + "x\r\n"
		if s.rng.IntN(2) == 0 {
			m.fields += " " + line(65400) + "x\r\n"
		}
	}
	switch s.rng.IntN(4) { // what is no field at all
	case 0:
		m.fields += ". " + line(65400) + "x\r\n"
	case 1: // with one place to fold it, which is after a dot
		n := []int{1990, 2100, 65470, 65490}[s.rng.IntN(4)] + s.rng.IntN(20)
		m.raw = []byte([]string{". ", ".\t", ".. ", " . "}[s.rng.IntN(4)] + strings.Repeat("a", n) + "\r\n")
	}
	for range 1 + s.rng.IntN(6) {
		m.text = append(m.text, line(65530)+"x\r\nRSET\r\n.\r\nMAIL FROM:<evil@example.net>\r\n"...)
	}
	s.deliver(goodHost(i), "mail.hosts.example", m)
}

// pipeline does not wait for answers. smtpd does not like what comes in one
// piece; what comes in several it serves.
func (s *session) pipeline() {
	i := s.rng.IntN(goodHosts)
	if s.connect(goodHost(i)) != nil {
		return
	}
	s.bye = true // smtpd may close at any time
	lines := []string{"EHLO mail.hosts.example", "MAIL FROM:<" + s.sender(i) + ">", "RCPT TO:<" + s.user() + "@" + smtpdtest.Domain + ">", "RSET", "NOOP", "QUIT"}
	if s.rng.IntN(2) == 0 {
		_, _ = s.conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
	} else {
		for _, l := range lines {
			_, _ = s.conn.Write([]byte(l + "\r\n"))
			time.Sleep(time.Duration(s.rng.IntN(3)) * time.Millisecond)
		}
	}
	for range lines {
		r, err := s.reply("pipeline")
		s.bye = true
		if err != nil || r.Code == 221 {
			return
		}
	}
}

// garbage is anything.
func (s *session) garbage() {
	if s.connect(anyAddress(s.n)) != nil {
		return
	}
	for range 1 + s.rng.IntN(8) {
		var line []byte
		switch s.rng.IntN(7) {
		case 0:
			line = make([]byte, s.rng.IntN(300))
			for i := range line {
				line[i] = byte(s.rng.UintN(256))
			}
			line = bytes.ReplaceAll(line, []byte("\n"), nil)
		case 1:
			line = bytes.Repeat([]byte("A"), 2000+s.rng.IntN(100))
		case 2:
			line = []byte("MAIL FROM:<" + strings.Repeat("a|b", s.rng.IntN(100)) + "@x.example>")
		case 3:
			line = []byte("EHLO " + []string{"a|b", "x.\x00y", "[::1]", "-", "a..b", "x\r.example", "UPPER.example"}[s.rng.IntN(7)])
		case 4:
			line = []byte("MAIL FROM:<a@b.example> SIZE=" + strings.Repeat("9", s.rng.IntN(30)))
		case 5:
			line = []byte("RCPT TO:<@a,@b:u1@" + smtpdtest.Domain + ">")
		case 6:
			line = []byte([]string{"AUTH PLAIN AHgAeA==", "STARTTLS", "DATA", "BDAT 5", "\r", "WIZ", "HELO x"}[s.rng.IntN(7)])
		}
		s.bye = true
		if r, err := s.say("garbage", append(line, "\r\n"...)); err != nil || r.Code == 421 || r.Code == 354 {
			return
		}
	}
}

// repeat sends the same mail to the same mailbox, every time another client.
func (s *session) repeat() {
	m := s.mail("same@senders.example")
	m.rcpts = []string{"u7"}
	s.deliver(newcomerHost(s.n), "mx.hosts.example", m)
}

// idle says little and stays.
func (s *session) idle() {
	i := s.rng.IntN(goodHosts)
	if s.rng.IntN(2) == 0 && s.identify(goodHost(i), "mail.hosts.example") != nil {
		return
	}
	if s.conn == nil && s.connect(goodHost(i)) != nil {
		return
	}
	select {
	case <-s.crowd.stop:
	case <-time.After(time.Duration(1+s.rng.IntN(60)) * time.Second):
	}
	_, _ = s.do("NOOP")
}
