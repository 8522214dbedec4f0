//go:build linux

// Package mixed is a small run of everything that happens to mail: taken, junked,
// refused and deferred, by each filter and by smtpd, local and relayed. It keeps
// an account of what each client was told.
package mixed

import (
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// The clients.
const (
	Good     = "203.0.113.80" // a mail server with a name and an SPF record
	Good6    = "2001:db8:1::80"
	Listed   = "198.51.100.66"
	Listed2  = "198.51.100.67"
	Doubtful = "198.51.100.70" // on a list that junks, has a name and SPF
	Grey     = "198.51.100.71" // on that list, without a name
	Dynamic  = "203.0.113.20"
	Nameless = "192.88.99.10" // comes again
	Other    = "192.88.100.10"
	Gone     = "192.88.101.10" // does not
	Gone2    = "192.88.102.10"
	Rude     = "192.88.103.10" // talks nonsense
)

var zone = smtpdtest.Host(Good, "mx.good.example") +
	smtpdtest.Host(Good6, "mx6.good.example") +
	smtpdtest.Host(Doubtful, "mail.doubtful.example") +
	smtpdtest.Host(Dynamic, "p203-0-113-20.dip.provider.example") +
	"good.example TXT \"v=spf1 a:mx.good.example a:mx6.good.example -all\"\n" +
	"doubtful.example TXT \"v=spf1 a:mail.doubtful.example -all\"\n" +
	listed(Listed, "bl.example") + listed(Listed2, "bl.example") + listed(Doubtful, "grey.example") + listed(Grey, "grey.example") +
	listed("127.0.0.2", "bl.example") + listed("127.0.0.2", "grey.example")

func listed(addr, list string) string {
	return strings.TrimSuffix(smtpdtest.Reverse(addr), "in-addr.arpa") + list + " A 127.0.0.2\n"
}

// PassTime is how long greylisted mail waits, GreyExp when it is given up.
const (
	PassTime = 3 * time.Second
	GreyExp  = time.Minute
)

// Users are all that get mail.
var Users = strings.Fields("ann bob carol dave erin frank postmaster")

// Config is the mail server of the run, with the common list of the programs.
func Config(r smtpdtest.Release, common string) smtpdtest.Config {
	list := " -commonList " + smtpdtest.Dir + "/filters.list"
	return smtpdtest.Config{
		Release: r,
		Zone:    zone,
		Users:   Users,
		Relay:   "smtp://" + relay,
		TLS:     r.TLS,
		Files:   map[string]string{"filters.list": common},
		Filters: []smtpdtest.Filter{
			{Name: "trial", Command: "filter-dyndns -dryRun -phase helo -none refuse" + list},
			{Name: "dyndns", Command: "filter-dyndns" + list},
			{Name: "dnsbl", Command: "filter-dnsbl -blockAt 5 -junkAt 3 bl.example*5 grey.example*3" + list},
			{Name: "greylist", Command: "filter-greylist -passTime " + PassTime.String() + " -greyExp " + GreyExp.String() +
				" -store sqlite:" + smtpdtest.State + "/greylist.db -metrics " + smtpdtest.State + "/greylist.prom" + list},
		},
	}
}

// A Fate is what became of a mail, as its client was told, and whose doing it was.
type Fate struct {
	Mail   smtpdtest.Mail
	Result smtpdtest.Result
	By     string // trial, dnsbl ...: who refused or deferred it; "smtpd"; "" if it was taken
	Junk   string // who junked it, by the list of what the clients are
	Waited bool   // taken after it had been deferred
	More   bool   // refused in a transaction of which a recipient was refused before
	Conn   int    // which connection it was
}

// A Run is an account.
type Run struct {
	Server      *smtpdtest.Server
	Fates       []Fate
	Connections int // over the network
	Local       int // mails handed in on the machine
	TLS, Auth   int // connections
	BadCommands int
	NoRetry     int // mails that will be given up, once GreyExp is over
	Waits       []time.Duration
	Begun       time.Time
}

// Send sends a mail and adds its fate to the account. By is who may refuse it.
func (r *Run) Send(m smtpdtest.Mail, by, junk string) (Fate, error) {
	res, err := r.Server.Send(m)
	if err != nil {
		return Fate{}, fmt.Errorf("mail from %s by %s to %s: %w", m.Sender, m.Src, m.To, err)
	}
	r.Connections++
	f := Fate{Mail: m, Result: res, By: by, Junk: junk, Conn: r.Connections}
	if res.Accepted() {
		f.By = ""
	} else {
		f.Junk = ""
	}
	r.Fates = append(r.Fates, f)
	return f, nil
}

// expect sends a mail that must be answered so: step and code.
func (r *Run) expect(want string, m smtpdtest.Mail, by, junk string) error {
	f, err := r.Send(m, by, junk)
	if err != nil {
		return err
	}
	if got := fmt.Sprint(f.Result.Step, " ", f.Result.Reply.Code); got != want {
		return fmt.Errorf("mail from %s by %s to %s: %v, want %s", m.Sender, m.Src, m.To, f.Result, want)
	}
	return nil
}

// retry sends a mail that is deferred now, and taken when it has waited.
func (r *Run) retry(m smtpdtest.Mail, junk string) error {
	first := time.Now()
	if err := r.deferred(m); err != nil {
		return err
	}
	for {
		time.Sleep(PassTime / 2)
		f, err := r.Send(m, "greylist", junk)
		if err != nil {
			return err
		}
		if f.Result.Accepted() {
			r.Fates[len(r.Fates)-1].Waited = true
			r.Waits = append(r.Waits, time.Since(first))
			return nil
		}
		if f.Result.Reply.Code != 451 || time.Since(first) > GreyExp {
			return fmt.Errorf("mail from %s by %s to %s: %v, want it greylisted or taken", m.Sender, m.Src, m.To, f.Result)
		}
	}
}

// deferred sends a mail that greylisting defers: at DATA, or if that answer was
// that it is junk, at the end of the message.
func (r *Run) deferred(m smtpdtest.Mail) error {
	f, err := r.Send(m, "greylist", "")
	if err == nil && f.Result.Reply.Code != 451 {
		err = fmt.Errorf("mail from %s by %s to %s: %v, want it greylisted", m.Sender, m.Src, m.To, f.Result)
	}
	return err
}

// Ready waits until the programs can do what they are for.
func Ready(s *smtpdtest.Server) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err := s.Run("./filter-greylist -store sqlite:" + smtpdtest.State + "/greylist.db list -json")
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Do sends all mail of the run.
func Do(s *smtpdtest.Server, tls bool) (*Run, error) {
	r := &Run{Server: s, Begun: time.Now()}
	if err := Ready(s); err != nil {
		return r, err
	}
	relayed := make(chan struct{}, 10)
	stop, err := receive(relayed)
	if err != nil {
		return r, err
	}
	defer stop()
	mail := func(src, from, to string) smtpdtest.Mail { return smtpdtest.Mail{Src: src, Sender: from, To: to} }
	steps := []func() error{
		// Those who do not come again, first: they have longest to be given up.
		func() error { return r.deferred(mail(Gone, "offer@gone.example", "ann")) },
		func() error { return r.deferred(mail(Gone2, "prvs=1234=o'brien@gone.example", "bob")) },
		func() error { r.NoRetry = 2; return nil },
		// Good ones.
		func() error { return r.expect("message 250", mail(Good, "alice@good.example", "ann"), "", "") },
		func() error { return r.expect("message 250", mail(Good, "alice@good.example", "bob"), "", "") },
		func() error { return r.expect("message 250", mail(Good6, "alice@good.example", "carol"), "", "") },
		// Greylisted, and come again.
		func() error { return r.retry(mail(Nameless, "shop@sender.example", "dave"), "") },
		func() error { return r.expect("message 250", mail(Nameless, "other@sender.example", "ann"), "", "") },
		func() error { return r.retry(mail(Other, "news@other.example", "carol"), "") },
		// Junked at MAIL, and deferred by the next.
		func() error { return r.retry(mail(Dynamic, "home@provider.example", "erin"), "dyndns") },
		// Junked at DATA, and deferred by the next at the end of the message.
		func() error { return r.retry(mail(Grey, "who@grey.example", "frank"), "dnsbl") },
		func() error { return r.deferred(mail(Doubtful, "info@doubtful.example", "erin")) },
		// Refused.
		func() error { return r.expect("RCPT 550", mail(Listed, "spam@spammer.example", "ann"), "dnsbl", "") },
		func() error { return r.expect("RCPT 550", mail(Listed, "spam@spammer.example", "bob"), "dnsbl", "") },
		func() error { return r.expect("RCPT 550", mail(Listed2, "spam@spammer.example", "bob"), "dnsbl", "") },
		func() error {
			return r.expect("RCPT 550", mail(Good, "alice@good.example", "nobody-here"), "smtpd", "")
		},
		// Exempt.
		func() error {
			return r.expect("message 250", mail(Listed, "spam@spammer.example", "postmaster"), "", "")
		},
		r.several,
		r.rude,
		r.aborted,
		func() error { return r.local("root@example.org", "ann@example.org") },
		func() error { return r.local("ann@example.org", "friend@elsewhere.example") },
	}
	if tls {
		steps = append(steps, func() error {
			m := mail(Nameless, "alice@example.org", "friend@elsewhere.example")
			m.Login = true
			r.TLS++
			r.Auth++
			return r.expect("message 250", m, "", "")
		})
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return r, err
		}
	}
	for range 1 + r.Auth {
		select {
		case <-relayed:
		case <-time.After(time.Minute):
			return r, errors.New("no mail is relayed")
		}
	}
	return r, nil
}

// GiveUp waits until greylisting has given up those that do not come again, which
// it does when something happens after GreyExp.
func (r *Run) GiveUp() error {
	time.Sleep(time.Until(r.Begun.Add(GreyExp + 5*time.Second)))
	if err := r.expect("message 250", smtpdtest.Mail{Src: Good, Sender: "late@good.example", To: "bob"}, "", ""); err != nil {
		return err
	}
	time.Sleep(5 * time.Second) // once a second it looks
	return nil
}

// several sends one mail to a user, and to postmaster, by a listed client, and to
// somebody who does not exist.
func (r *Run) several() error {
	c, err := r.Server.Dial(Listed2)
	if err != nil {
		return err
	}
	defer c.Close()
	r.Connections++
	if _, err := c.Reply(); err != nil {
		return err
	}
	f := Fate{Mail: smtpdtest.Mail{Src: Listed2, Sender: "more@spammer.example", To: "ann"}, By: "dnsbl", Conn: r.Connections}
	for _, d := range []struct {
		line string
		code int
	}{
		{"EHLO several.example", 250},
		{"MAIL FROM:<more@spammer.example>", 250},
		{"RCPT TO:<ann@example.org>", 550},
		{"RCPT TO:<bob@example.org>", 550},
		{"RCPT TO:<postmaster@example.org>", 250},
		{"DATA", 354},
		{"Subject: hello\r\n\r\nhello\r\n.", 250},
		{"QUIT", 221},
	} {
		rep, err := c.Do(d.line)
		if err != nil {
			return fmt.Errorf("%s: %w", d.line, err)
		}
		if rep.Code != d.code {
			return fmt.Errorf("%s: %v, want %d", d.line, rep, d.code)
		}
		if d.code == 550 {
			f.Result = smtpdtest.Result{Step: "RCPT", Reply: rep}
			r.Fates = append(r.Fates, f)
			f.Mail.To, f.More = "bob", true
		}
		if strings.HasPrefix(d.line, "Subject") {
			r.Fates = append(r.Fates, Fate{Mail: smtpdtest.Mail{Src: Listed2, Sender: "more@spammer.example", To: "postmaster"},
				Result: smtpdtest.Result{Step: "message", Reply: rep}, Conn: r.Connections})
		}
	}
	return nil
}

// rude talks nonsense and goes.
func (r *Run) rude() error {
	c, err := r.Server.Dial(Rude)
	if err != nil {
		return err
	}
	defer c.Close()
	r.Connections++
	if _, err := c.Reply(); err != nil {
		return err
	}
	for _, line := range []string{"GET / HTTP/1.1", "EHLO x y", "MAIL FROM:<a@rude.example>", "EHLO rude.example", "RCPT TO:<ann@example.org>"} {
		rep, err := c.Do(line)
		if err != nil {
			return err
		}
		if rep.Code >= 500 {
			r.BadCommands++
		}
	}
	_, err = c.Do("QUIT")
	return err
}

// aborted begins a mail and goes without a word.
func (r *Run) aborted() error {
	c, err := r.Server.Dial(Good)
	if err != nil {
		return err
	}
	r.Connections++
	if _, err := c.Reply(); err != nil {
		return err
	}
	for _, line := range []string{"EHLO mx.good.example", "MAIL FROM:<alice@good.example>", "RCPT TO:<ann@example.org>"} {
		if _, err := c.Do(line); err != nil {
			return err
		}
	}
	return c.Close()
}

// local hands a mail in on the machine.
func (r *Run) local(from, to string) error {
	_, err := r.Server.Run(fmt.Sprintf("printf 'Subject: hello\\n\\nhello\\n' | /usr/sbin/sendmail -f %s %s", from, to))
	r.Local++
	return err
}

// relay is the server that gets mail for others.
const relay = "192.0.2.99"

// receive is that server. It takes what it gets, and tells of each mail.
func receive(relayed chan<- struct{}) (stop func(), err error) {
	l, err := net.Listen("tcp", relay+":25")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go take(c, relayed)
			}
		}
	}()
	return func() { _ = l.Close() }, nil
}

func take(c net.Conn, relayed chan<- struct{}) {
	defer c.Close()
	t := textproto.NewConn(c)
	say := func(reply string) { _ = t.PrintfLine("%s", reply) } // smtpd tries again
	say("220 sink.elsewhere.example ESMTP")
	for {
		line, err := t.ReadLine()
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.ToUpper(line), " "); verb {
		case "DATA":
			say("354 go on")
			for line != "." && err == nil {
				line, err = t.ReadLine()
			}
			say("250 2.0.0 taken")
			relayed <- struct{}{}
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}
