package proto

import "net/netip"

// Result says how smtpd answered a command: ok for 2xx and 3xx, tempfail for
// 4xx, permfail for 5xx; link-auth has pass, fail and error.
type Result string

const (
	OK       Result = "ok"
	TempFail Result = "tempfail"
	PermFail Result = "permfail"

	Pass  Result = "pass"
	Fail  Result = "fail"
	Error Result = "error"
)

// Addr is one end of a connection: an address and port, or the path of a
// local socket.
type Addr struct {
	netip.AddrPort
	Path string
}

// Local reports whether the connection came through a local socket.
func (a Addr) Local() bool { return a.Path != "" }

func (a Addr) String() string {
	if a.Local() {
		return "unix:" + a.Path
	}
	return a.AddrPort.String()
}

// parseAddr reads "192.0.2.1:25", "[2001:db8::1]:25", "[fe80::1%em0]:25" or
// "unix:/path".
func parseAddr(b []byte) (Addr, error) {
	s := string(b)
	if len(s) > 5 && s[:5] == "unix:" {
		return Addr{Path: s[5:]}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return Addr{}, ErrSyntax
	}
	return Addr{AddrPort: ap}, nil
}

// Link is what link-connect tells of a new connection.
type Link struct {
	// RDNS is the client's reverse name, letter case as in the DNS. It is
	// "<unknown>" if there is none, if it is not a legal host name and for
	// any failure of the DNS; empty if it is the root. Linux cuts it to 64
	// bytes. It may be an address literal.
	RDNS string
	// FCrDNS is pass if a forward address of RDNS is the client's, and fail
	// otherwise, trouble of the DNS included.
	FCrDNS    Result
	Src, Dest Addr // the client, and smtpd's listener
}

// ParseLink reads the fields of link-connect.
func ParseLink(fields []byte) (Link, error) {
	rdns, b, ok1 := cut(fields)
	fcrdns, b, ok2 := cut(b)
	src, dest, ok3 := cut(b)
	if !ok1 || !ok2 || !ok3 {
		return Link{}, ErrSyntax
	}
	l := Link{RDNS: string(rdns), FCrDNS: Result(fcrdns)}
	var err1, err2 error
	l.Src, err1 = parseAddr(src)
	l.Dest, err2 = parseAddr(dest)
	if err1 != nil || err2 != nil {
		return Link{}, ErrSyntax
	}
	return l, nil
}

// Append appends the fields of link-connect.
func (l Link) Append(dst []byte) []byte {
	return join(dst, l.RDNS, string(l.FCrDNS), l.Src.String(), l.Dest.String())
}

// Identity is what link-identify tells: the name the client gave in HELO or
// EHLO.
type Identity struct {
	Method string // HELO or EHLO
	Name   string
}

// ParseIdentity reads the fields of link-identify.
func ParseIdentity(fields []byte) (Identity, error) {
	method, name, ok := cut(fields)
	if !ok {
		return Identity{}, ErrSyntax
	}
	return Identity{string(method), string(name)}, nil
}

// Append appends the fields of link-identify.
func (i Identity) Append(dst []byte) []byte { return join(dst, i.Method, i.Name) }

// Login is what link-auth tells of an attempt to authenticate.
type Login struct {
	Result Result
	User   string // vis(3)-encoded; may hold bars
}

// ParseLogin reads the fields of link-auth: result|user, up to 0.6 user|result.
func ParseLogin(v Version, fields []byte) (Login, error) {
	result, user, ok := cut(fields)
	if v.Before(V07) {
		user, result, ok = cutLast(fields)
	}
	if !ok {
		return Login{}, ErrSyntax
	}
	return Login{Result(result), string(user)}, nil
}

// Append appends the fields of link-auth.
func (l Login) Append(dst []byte, v Version) []byte {
	if v.Before(V07) {
		return join(dst, l.User, string(l.Result))
	}
	return join(dst, string(l.Result), l.User)
}

// Mailbox is what tx-mail and tx-rcpt tell: what smtpd answered to MAIL FROM
// or RCPT TO.
type Mailbox struct {
	Msg     string // 8 hexadecimal digits; 00000000 outside a transaction
	Result  Result
	Address string // as the client wrote it between < and >; may hold bars
}

// ParseMailbox reads the fields of tx-mail and tx-rcpt: msgid|result|address,
// up to 0.5 msgid|address|result.
func ParseMailbox(v Version, fields []byte) (Mailbox, error) {
	msg, b, ok1 := cut(fields)
	result, address, ok2 := cut(b)
	if v.Before(V06) {
		address, result, ok2 = cutLast(b)
	}
	if !ok1 || !ok2 {
		return Mailbox{}, ErrSyntax
	}
	return Mailbox{string(msg), Result(result), string(address)}, nil
}

// Append appends the fields of tx-mail and tx-rcpt.
func (m Mailbox) Append(dst []byte, v Version) []byte {
	if v.Before(V06) {
		return join(dst, m.Msg, m.Address, string(m.Result))
	}
	return join(dst, m.Msg, string(m.Result), m.Address)
}

// Tx is what the other events of a transaction tell. The first field is the
// message id in all of them.
type Tx struct {
	Msg string
	// Value is the envelope id of tx-envelope, the result of tx-data, the
	// size of tx-commit, and empty for tx-begin, tx-rollback and tx-reset.
	Value string
}

// ParseTx reads the fields of tx-begin, tx-envelope, tx-data, tx-commit,
// tx-rollback and tx-reset.
func ParseTx(fields []byte) Tx {
	msg, value, _ := cut(fields)
	return Tx{string(msg), string(value)}
}

// Append appends the fields of the transaction event.
func (t Tx) Append(dst []byte) []byte {
	if t.Value == "" {
		return append(dst, t.Msg...)
	}
	return join(dst, t.Msg, t.Value)
}

// Taken is what filter-response tells: the decision taken at a phase, by
// whichever filter of a chain.
type Taken struct {
	Phase    Phase
	Decision string
	Param    string
}

// ParseTaken reads the fields of filter-response, which calls two phases by
// other names than a request does.
func ParseTaken(fields []byte) (Taken, error) {
	phase, b, ok := cut(fields)
	decision, param, _ := cut(b)
	t := Taken{parsePhase(phase), string(decision), string(param)}
	switch string(phase) {
	case "connected":
		t.Phase = Connect
	case "tls":
		t.Phase = StartTLS
	}
	if !ok || t.Phase == 0 {
		return Taken{}, ErrSyntax
	}
	return t, nil
}

func join(dst []byte, fields ...string) []byte {
	for i, f := range fields {
		if i > 0 {
			dst = append(dst, '|')
		}
		dst = append(dst, f...)
	}
	return dst
}
