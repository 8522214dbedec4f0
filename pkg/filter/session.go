package filter

import (
	"net/netip"
	"time"

	"opensmtpd-filters/pkg/proto"
)

// A Session is one SMTP connection, as smtpd has told of it so far. Handlers of
// one session never run at the same time; after a handler has returned, its
// session is not to be touched.
type Session[S any] struct {
	ID     string         // as in smtpd's own log: 16 hexadecimal digits
	Src    netip.AddrPort // the client; not valid if it came through a local socket
	Dst    netip.AddrPort // smtpd's listener, which may be one of all addresses, 0.0.0.0 or ::; not valid if Src is not
	RDNS   string         // reverse name, "<unknown>" if there is none or the DNS had trouble; see proto.Link
	FCrDNS bool           // a forward address of RDNS is the client's; false also if the DNS had trouble
	Helo   string         // name given with HELO or EHLO, once smtpd has accepted it: at helo and ehlo it is in Request.Arg
	TLS    string         // version, cipher and bits, if the connection is encrypted
	User   string         // who has authenticated, vis(3)-encoded; empty if nobody has
	Tx     Tx
	Local  S // the program's own

	run     *core
	life    life // of the session
	txLife  life // of the transaction
	key     proto.ID
	last    uint64 // number of the newest line
	micros  int64  // its time
	decided decided
	asked   string // sender of the last mail-from request
	other   bool   // smtpd tells of another sender than asked, or has not taken that one
	junked  scope  // what smtpd was told to junk
	msg     message

	state   state
	req     request
	until   time.Time // the deadline of req, once it is known not to be answered at once
	later   *later    // awaiting: what
	answer  Response  // delayed: what is answered; awaiting: what has been found of it, its delay
	line    []byte    // stuck: the data line that is being handled
	gen     uint32    // counts waits, so that a note of an earlier one is known
	timer   *time.Timer
	delayed time.Duration // in all
	queue   [][]byte      // lines that have come meanwhile
}

// Tx is the transaction under way: what smtpd has accepted of it.
type Tx struct {
	ID    string   // message id, 8 hexadecimal digits; empty outside a transaction
	From  string   // envelope sender as the client wrote it, without < and >; empty for the null sender
	Rcpts []string // accepted recipients, in order
}

// Unix reports whether the session came through smtpd's local socket, as mail
// of sendmail(8) and smtpd's own bounces do.
func (s *Session[S]) Unix() bool { return !s.Src.IsValid() }

// Time returns the time of the line being handled, as smtpd stamped it. Use it
// instead of time.Now wherever a decision depends on it: then a recorded stream
// gives the same decisions again.
func (s *Session[S]) Time() time.Time { return time.UnixMicro(s.micros) }

// request is the request being answered.
type request struct {
	Request // phase 0: none
	version proto.Version
	token   proto.ID
	decide  bool // Decide has not had its say
}

// decided is what is kept of a session for Decide.
type decided struct {
	made    bool     // in this scope
	pending bool     // but not answered yet
	answer  Response // the one that was given
}

// keep takes the answer that is given.
func (d *decided) keep(r Response) {
	if d.pending {
		d.pending = false
		d.made = !r.undecided
		d.answer = r
		d.answer.delay = 0 // a client waits once
		if r.decision == proto.Rewrite {
			d.answer = Proceed() // was for that command
		}
	}
}

// scope is what a decision holds for.
type scope uint8

const (
	nothing scope = iota
	transaction
	connection
)

// mark notes that smtpd is told to junk at phase p, and reports whether that
// says anything new. If not, it would only take the request from the later
// filters of a chain.
func (s *Session[S]) mark(p Phase) bool {
	of := connection
	switch {
	case p == Rset || p == Quit:
		of = nothing // smtpd does nothing
	case p == RcptTo || p == Data || s.Tx.ID != "":
		of = transaction
	}
	if s.junked >= of && s.junked != nothing {
		return false
	}
	s.junked = of
	return true
}

// endTx ends what holds for one transaction: the decision, and a junk mark that
// was given inside of it.
func (s *Session[S]) endTx(decideAt Phase) {
	if decideAt >= MailFrom {
		s.decided.made = false
	}
	if s.junked == transaction {
		s.junked = nothing
	}
}

// update takes over what a report tells. Only what smtpd has accepted counts.
func (s *Session[S]) update(l *proto.Line) error {
	switch l.Event {
	case proto.LinkIdentify:
		id, err := proto.ParseIdentity(l.Fields)
		if err != nil {
			return err
		}
		s.Helo = id.Name
	case proto.LinkTLS:
		s.TLS = string(l.Fields)
	case proto.LinkAuth:
		login, err := proto.ParseLogin(l.Version, l.Fields)
		if err != nil {
			return err
		}
		if login.Result == proto.Pass {
			s.User = login.User
		}
	case proto.TxMail:
		m, err := proto.ParseMailbox(l.Version, l.Fields)
		if err != nil {
			return err
		}
		// A MAIL FROM inside a transaction is refused under its id. One that is
		// refused otherwise has begun none: what was decided of it is void.
		s.other = m.Result == proto.OK && m.Address != s.asked || m.Result != proto.OK && s.Tx.ID == ""
		if m.Result == proto.OK {
			s.Tx = Tx{ID: m.Msg, From: m.Address}
		}
	case proto.TxRcpt:
		m, err := proto.ParseMailbox(l.Version, l.Fields)
		if err != nil {
			return err
		}
		if m.Result == proto.OK && m.Msg == s.Tx.ID {
			s.Tx.Rcpts = append(s.Tx.Rcpts, m.Address)
		}
	case proto.TxReset:
		s.Tx = Tx{}
	}
	return nil
}
