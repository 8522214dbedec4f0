//go:build linux

package smtpdtest

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Reply is one reply of the server.
type Reply struct {
	Code  int
	Lines []string // without the code
}

// String returns the reply as one line.
func (r Reply) String() string { return fmt.Sprintf("%d %s", r.Code, strings.Join(r.Lines, " / ")) }

// A Client is an SMTP connection. Every read and write has a generous
// deadline. Raw bytes are sent with Write.
type Client struct {
	net.Conn
	Patience time.Duration // limits each wait; Dial sets a minute

	r *bufio.Reader
}

// Dial connects from the source address src. The greeting is still to be
// read.
func (s *Server) Dial(src string) (*Client, error) {
	addr, err := netip.ParseAddr(src)
	if err != nil {
		return nil, err
	}
	return Dial(netip.AddrPortFrom(addr, 0), listener(addr))
}

// Dial connects from src, whose port may be 0 or that of another connection, to
// dst.
func Dial(src, dst netip.AddrPort) (*Client, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(src), Timeout: patience}
	d.Control = func(_, _ string, c syscall.RawConn) (err error) {
		return cmp.Or(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		}), err)
	}
	conn, err := d.Dial("tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return &Client{Conn: conn, Patience: patience, r: bufio.NewReader(conn)}, nil
}

// Reply reads one reply.
func (c *Client) Reply() (Reply, error) {
	if err := c.SetDeadline(time.Now().Add(c.Patience)); err != nil {
		return Reply{}, err
	}
	for r := (Reply{}); ; {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return r, err
		}
		line = strings.TrimRight(line, "\r\n")
		if len(line) < 3 {
			return r, fmt.Errorf("not a reply: %q", line)
		}
		if r.Code, err = strconv.Atoi(line[:3]); err != nil {
			return r, fmt.Errorf("not a reply: %q", line)
		}
		r.Lines = append(r.Lines, strings.TrimLeft(line[3:], "- "))
		if len(line) == 3 || line[3] != '-' {
			return r, nil
		}
	}
}

// Do sends one line and reads the reply.
func (c *Client) Do(line string) (Reply, error) {
	if err := c.SetDeadline(time.Now().Add(c.Patience)); err != nil {
		return Reply{}, err
	}
	if _, err := io.WriteString(c.Conn, line+"\r\n"); err != nil {
		return Reply{}, err
	}
	return c.Reply()
}

// StartTLS is TLS after that command.
func (c *Client) StartTLS() error {
	r, err := c.Do("STARTTLS")
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return fmt.Errorf("STARTTLS: %v", r)
	}
	return c.TLS()
}

// TLS makes the connection an encrypted one, as clients of smtps do. The certificate is
// not verified.
func (c *Client) TLS() error {
	conn := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		return err
	}
	c.Conn, c.r = conn, bufio.NewReader(conn)
	return nil
}

// Rest reads what the server still sends until it closes.
func (c *Client) Rest() (string, error) {
	if err := c.SetDeadline(time.Now().Add(c.Patience)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c.r)
	return string(b), err
}

// A Mail is one mail and the client that sends it.
type Mail struct {
	Src    string // source address
	Helo   string // default "client.example.net"
	Login  bool   // with STARTTLS and AUTH, as User
	Sender string // default "sender@example.net"
	To     string // user of Domain, or an address
	Data   string // header and text, lines ending in CRLF, dot-stuffed, without the last dot; default a short mail
}

// A Result is what became of a mail.
type Result struct {
	Step   string // of the last reply: "greeting", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", or "message" for the whole mail
	Reply  Reply  // the last reply, that refused it or, at "message", took it
	Closed bool   // the server closed the connection by itself
}

// Accepted reports whether the server took the mail.
func (r Result) Accepted() bool { return r.Step == "message" && r.Reply.Code == 250 }

// String returns the result as one line.
func (r Result) String() string {
	if r.Closed {
		return r.Step + ": " + r.Reply.String() + " (closed)"
	}
	return r.Step + ": " + r.Reply.String()
}

// Send sends one mail on a connection of its own and stops at the first
// refusal. It returns an error if the dialogue itself fails, or if the
// server says more than there is to answer.
func (s *Server) Send(m Mail) (Result, error) {
	m.Helo = cmp.Or(m.Helo, "client.example.net")
	m.Sender = cmp.Or(m.Sender, "sender@example.net")
	to := m.To
	if !strings.Contains(to, "@") {
		to += "@" + Domain
	}
	m.Data = cmp.Or(m.Data, "From: <"+m.Sender+">\r\nTo: <"+to+">\r\nSubject: hello\r\n\r\nhello\r\n")
	c, err := s.Dial(m.Src)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = c.Close() }()

	res := Result{Step: "greeting"}
	if res.Reply, err = c.Reply(); err != nil {
		return res, fmt.Errorf("greeting: %w", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("\x00" + User + "\x00" + Password))
	steps := []struct{ name, line string }{
		{"EHLO", "EHLO " + m.Helo},
		{"STARTTLS", ""},
		{"EHLO", "EHLO " + m.Helo},
		{"AUTH", "AUTH PLAIN " + auth},
		{"MAIL", "MAIL FROM:<" + m.Sender + ">"},
		{"RCPT", "RCPT TO:<" + to + ">"},
		{"DATA", "DATA"},
		{"message", m.Data + "."},
	}
	if !m.Login {
		steps = append(steps[:1:1], steps[4:]...)
	}
	for _, step := range steps {
		if res.Reply.Code >= 400 {
			break
		}
		res.Step = step.name
		if step.name == "STARTTLS" {
			err = c.StartTLS()
		} else {
			res.Reply, err = c.Do(step.line)
		}
		if err != nil {
			return res, fmt.Errorf("%s: %w", step.name, err)
		}
	}

	quit, err := c.Do("QUIT")
	switch {
	case err == nil && quit.Code == 221:
	case err == nil:
		return res, fmt.Errorf("QUIT was answered with %v", quit)
	case closed(err):
		res.Closed = true
		return res, nil
	default:
		return res, fmt.Errorf("QUIT: %w", err)
	}
	rest, err := c.Rest()
	if err != nil && !closed(err) {
		return res, fmt.Errorf("after QUIT: %w", err)
	}
	if rest != "" {
		return res, fmt.Errorf("unasked-for replies: %q", rest)
	}
	return res, nil
}

// closed reports whether err says that the server has closed the connection.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
