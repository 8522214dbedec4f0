package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/peek"
	"opensmtpd-filters/pkg/program"
)

// fake is a looker that sees what it is told, by the client's address.
type fake struct {
	mu   sync.Mutex
	sees map[string]peek.Seen
	errs error
}

func (f *fake) Look(c *peek.Conn) (peek.Seen, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sees[c.Client.Addr().String()], f.errs
}

func (f *fake) set(addr string, s peek.Seen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sees[addr] = s
}

// buffer is a writer that is read meanwhile.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.b.String()
	b.b.Reset()
	return s
}

// A play is the filter at work, with smtpd and the kernel in our hands.
type play struct {
	t        *testing.T
	looks    *fake
	in       io.Writer
	out, log *buffer
}

// run plays against the filter with these flags. A nil looker is a system that
// tells nothing.
func run(t *testing.T, looks *fake, flags string, script func(p *play)) {
	t.Helper()
	// What watches for signals must not begin within the bubble.
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	defer signal.Stop(c)
	synctest.Test(t, func(t *testing.T) {
		in, w := io.Pipe()
		p := &play{t: t, looks: looks, in: w, out: new(buffer), log: new(buffer)}
		s := spec
		s.New = func(p *program.Program) func() (program.Check, error) {
			open := newCheck(p)
			return func() (program.Check, error) {
				made, err := open()
				c := made.(*check)
				c.Close()
				c.looker, c.blind = nil, nil
				if looks != nil {
					c.looker = looks
				}
				return made, err
			}
		}
		ended := make(chan int)
		go func() {
			args := append([]string{"-commonList", "", "-resolver", "127.0.0.1:9"}, strings.Fields(flags)...)
			ended <- program.Run(s, args, program.Streams{In: in, Out: p.out, Err: p.log})
		}()
		p.lines("config|ready")
		p.out.take()
		script(p)
		w.Close()
		if status := <-ended; status != 0 {
			t.Errorf("status %d\n%s", status, p.log.take())
		}
	})
}

func (p *play) lines(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Fatal(err)
	}
	synctest.Wait()
}

func stamp() string {
	now := time.Now()
	return fmt.Sprintf("%d.%06d", now.Unix(), now.Nanosecond()/1000)
}

func (p *play) report(id int, event, fields string) {
	p.t.Helper()
	p.lines(fmt.Sprintf("report|0.7|%s|smtp-in|%s|%016x|%s", stamp(), event, id, fields))
}

func (p *play) ask(id int, phase, arg string) {
	p.t.Helper()
	p.lines(fmt.Sprintf("filter|0.7|%s|smtp-in|%s|%016x|00000000000000aa|%s", stamp(), phase, id, arg))
}

// connect brings a client as far as the question whether it is greeted.
func (p *play) connect(id int, addr string, to ...string) {
	p.t.Helper()
	src, dst := addr+":40000", "192.0.2.25:25"
	if strings.Contains(addr, ":") {
		src, dst = "["+addr+"]:40000", "[2001:db8::25]:25"
	}
	if to != nil {
		dst = to[0]
	}
	p.report(id, "link-connect", "<unknown>|fail|"+src+"|"+dst)
	p.ask(id, "connect", "<unknown>|"+addr)
}

// leave ends a session.
func (p *play) leave(id int) {
	p.t.Helper()
	p.lines(fmt.Sprintf("report|0.7|%s|smtp-in|link-disconnect|%016x", stamp(), id))
}

// want checks all answers since the last time: "ID answer", in their order.
func (p *play) want(answers ...string) {
	p.t.Helper()
	synctest.Wait()
	var got []string
	for line := range strings.Lines(p.out.take()) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 4)
		got = append(got, strings.TrimLeft(f[1], "0")+" "+f[3])
	}
	if g, w := strings.Join(got, "\n"), strings.Join(answers, "\n"); g != w {
		p.t.Helper()
		p.t.Errorf("answers:\n%s\nwant:\n%s\nlog:\n%s", g, w, p.log.take())
	}
}

// said checks that the log since the last time has as many lines as there are
// arguments, each with all words of its argument.
func (p *play) said(lines ...string) {
	p.t.Helper()
	synctest.Wait()
	log := p.log.take()
	all := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	if log == "" {
		all = nil
	}
	ok := len(all) == len(lines)
	for i := 0; ok && i < len(lines); i++ {
		for _, w := range strings.Fields(lines[i]) {
			ok = ok && strings.Contains(all[i]+" ", w)
		}
	}
	if !ok {
		p.t.Errorf("log:\n%s\nwant:\n%s", log, strings.Join(lines, "\n"))
	}
}

const (
	refused = " disconnect|554 5.5.1 you spoke before the greeting (RFC 5321 section 4.3.1)"
	passed  = " proceed"
)

func seeing(clients map[string]peek.Seen) *fake { return &fake{sees: clients} }

func TestEarly(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.7": spoke, "198.51.100.8": silent, "2001:db8::7": spoke})
	run(t, looks, "", func(p *play) {
		p.connect(1, "198.51.100.7")
		p.want("1" + refused)
		p.said("0000000000000001 filter=greet action=refuse disconnect=true reason=early addr=198.51.100.7 name=- saw=early bytes=6 t=0s")
		p.connect(2, "2001:db8::7")
		p.want("2" + refused)
		p.connect(3, "198.51.100.8")
		time.Sleep(700 * time.Millisecond)
		looks.set("198.51.100.8", spoke)
		p.want()
		time.Sleep(150 * time.Millisecond)
		p.want("3" + refused)
	})
}

// A client that has waited is not held again, until -remember is over or it
// speaks too early.
func TestRemember(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.8": silent, "2001:db8::7": silent, "2001:db8::8": silent})
	run(t, looks, "-wait 1s -remember 1h", func(p *play) {
		waits := func(id int, addr string) {
			p.t.Helper()
			p.connect(id, addr)
			time.Sleep(999 * time.Millisecond)
			p.want()
			time.Sleep(time.Millisecond)
			p.want(fmt.Sprintf("%x%s", id, passed))
			p.said("action=proceed reason=waited saw=nothing t=1s addr=" + addr)
		}
		waits(1, "198.51.100.8")
		p.connect(2, "198.51.100.8")
		p.want("2" + passed)
		p.said("action=proceed reason=remembered saw=nothing")
		looks.set("198.51.100.8", spoke)
		p.connect(3, "198.51.100.8")
		p.want("3" + refused)
		p.said("reason=early")
		looks.set("198.51.100.8", silent)
		waits(4, "198.51.100.8")

		waits(5, "2001:db8::7")
		p.connect(6, "2001:db8::8")
		p.want("6" + passed)
		time.Sleep(time.Hour)
		p.log.take()
		waits(7, "2001:db8::8")
	})
	run(t, looks, "-wait 1s -remember 0", func(p *play) {
		for id := range 3 {
			p.connect(id+1, "198.51.100.8")
			p.want()
			time.Sleep(time.Second)
			p.want(fmt.Sprintf("%x%s", id+1, passed))
		}
	})
}

// Who leaves is let go, and not remembered.
func TestGone(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.8": silent})
	run(t, looks, "-wait 1s", func(p *play) {
		p.connect(1, "198.51.100.8")
		looks.set("198.51.100.8", left)
		time.Sleep(99 * time.Millisecond)
		p.want()
		time.Sleep(time.Millisecond)
		p.want("1" + passed)
		p.said("action=proceed reason=gone saw=gone t=100ms")
		looks.set("198.51.100.8", silent)
		p.connect(2, "198.51.100.8")
		p.want()
		time.Sleep(time.Second)
		p.want("2" + passed)
	})
}

func TestActions(t *testing.T) {
	const addr = "198.51.100.7"
	for _, tt := range []struct{ flags, answer, said string }{
		{"-early refuse", refused, "action=refuse"},
		{"-early reject", refused, "action=refuse"},
		{"-early junk", " junk", "action=junk reason=early"},
		{"-early proceed", passed, "action=proceed reason=early saw=early"},
		{"-dryRun", passed, "action=proceed reason=early would=refuse dryRun=true"},
		{"-early junk -dryRun", passed, "action=proceed would=junk dryRun=true"},
	} {
		run(t, seeing(map[string]peek.Seen{addr: spoke}), tt.flags, func(p *play) {
			p.connect(1, addr)
			p.want("1" + tt.answer)
			p.said(tt.said)
		})
	}
}

// With -early late it may go on up to the recipient, where more is known of it.
func TestLate(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.7": spoke, "198.51.100.8": silent})
	mail := func(p *play, id int, answer string) {
		p.t.Helper()
		p.report(id, "link-identify", "EHLO|client.example.net")
		p.report(id, "tx-mail", "0000000a|ok|ann@example.net")
		p.ask(id, "rcpt-to", "bob@example.org")
		p.want(fmt.Sprintf("%x%s", id, answer))
	}
	run(t, looks, "-wait 1s -early late", func(p *play) {
		p.connect(1, "198.51.100.7")
		p.want("1" + passed)
		mail(p, 1, " reject|550 5.5.1 you spoke before the greeting (RFC 5321 section 4.3.1)")
		p.said("action=refuse reason=early addr=198.51.100.7 from=<ann@example.net> rcpt=<bob@example.org> saw=early bytes=6")
		p.ask(1, "rcpt-to", "postmaster@example.org")
		p.want("1" + passed)

		p.connect(2, "198.51.100.8")
		p.want()
		time.Sleep(time.Second)
		p.want("2" + passed)
		mail(p, 2, passed)
		p.said()
		p.report(2, "tx-rcpt", "0000000a|ok|bob@example.org")
		p.ask(2, "data", "")
		p.want("2" + passed)
		p.said("action=proceed reason=waited from=<ann@example.net> rcpt=<bob@example.org> saw=nothing t=1s")

		// Own users may do as they like.
		p.connect(3, "198.51.100.7")
		p.want("3" + passed)
		p.report(3, "link-auth", "pass|ann")
		mail(p, 3, passed)
	})
}

// Other ports, clients that are exempt and mail of the host itself are neither
// held nor looked at.
func TestUntested(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.7": spoke, "10.0.0.7": spoke, "127.0.0.1": spoke, "2001:db8:1::7": spoke})
	clients := t.TempDir() + "/clients"
	if err := os.WriteFile(clients, []byte("2001:db8:1::/48\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, looks, "-allowClients "+clients, func(p *play) {
		p.connect(1, "198.51.100.7", "192.0.2.25:465")
		p.want("1" + passed)
		p.connect(2, "10.0.0.7")
		p.want("2" + passed)
		p.connect(3, "127.0.0.1")
		p.want("3" + passed)
		p.report(4, "link-connect", "mx.example.org|pass|unix:/var/run/smtpd.sock|unix:/var/run/smtpd.sock")
		p.ask(4, "connect", "mx.example.org|local")
		p.want("4" + passed)
		p.said()
		p.connect(5, "2001:db8:1::7")
		p.want("5" + passed)
		p.said("action=proceed by= -allowClients")
	})
	run(t, looks, "-ports 465,26", func(p *play) {
		p.connect(1, "198.51.100.7", "192.0.2.25:465")
		p.want("1" + refused)
		p.connect(2, "198.51.100.7")
		p.want("2" + passed)
	})
}

// From half of -maxWaiting on clients are held for a second, above it not at all,
// but looked at.
func TestCrowd(t *testing.T) {
	sees := map[string]peek.Seen{"203.0.113.1": spoke}
	for i := range 10 {
		sees[fmt.Sprintf("198.51.100.%d", i)] = silent
	}
	run(t, seeing(sees), "-wait 5s -maxWaiting 4", func(p *play) {
		for i := range 6 {
			p.connect(i+1, fmt.Sprintf("198.51.100.%d", i))
		}
		p.want("5"+passed, "6"+passed)
		p.said("reason=crowded saw=nothing addr=198.51.100.4", "reason=crowded saw=nothing")
		p.connect(7, "203.0.113.1")
		p.want("7" + refused)
		p.log.take()
		time.Sleep(time.Second)
		p.out.take() // 3 and 4, in any order
		p.said("reason=crowded t=1s", "reason=crowded t=1s")
		time.Sleep(4 * time.Second)
		p.said("reason=waited t=5s", "reason=waited t=5s")
		p.out.take()
		// Only who has waited all the time is remembered.
		for i, reason := range []string{"remembered", "remembered", "waited"} {
			p.connect(i+11, fmt.Sprintf("198.51.100.%d", i))
			time.Sleep(5 * time.Second)
			p.said("reason=" + reason)
		}
		p.out.take()
		// There is room again when clients go, whatever becomes of them.
		for i := range 4 {
			p.report(i+21, "link-connect", fmt.Sprintf("<unknown>|fail|203.0.113.%d:40000|192.0.2.25:25", i+2))
			p.leave(i + 21)
		}
		p.connect(31, "198.51.100.9")
		p.want()
		time.Sleep(5 * time.Second)
		p.said("reason=waited")
		p.out.take()
	})
	run(t, seeing(sees), "-maxWaiting 0", func(p *play) {
		p.connect(1, "198.51.100.1")
		p.want("1" + passed)
	})
	run(t, seeing(sees), "-wait 0", func(p *play) {
		p.connect(1, "198.51.100.1")
		p.connect(2, "203.0.113.1")
		p.want("1"+passed, "2"+refused)
	})
}

// If an earlier filter of a chain junks at connect we are not asked, the client
// is greeted, and what it sends then is not early, whenever we look.
func TestGreetedByOther(t *testing.T) {
	for _, flags := range []string{"", "-early late", "-early junk", "-commands refuse"} {
		looks := seeing(map[string]peek.Seen{"198.51.100.7": silent})
		run(t, looks, flags, func(p *play) {
			p.report(1, "link-connect", "<unknown>|fail|198.51.100.7:40000|192.0.2.25:25")
			looks.set("198.51.100.7", spoke)
			time.Sleep(time.Second)
			p.report(1, "protocol-client", "EHLO client.example.net")
			p.report(1, "link-identify", "EHLO|client.example.net")
			for _, phase := range []string{"ehlo", "mail-from", "rcpt-to", "data"} {
				p.ask(1, phase, "a@example.net")
				p.want("1" + passed)
			}
		})
	}
}

// Behind a proxy nobody is seen: all wait, none is remembered, and that is said
// once for each listener. That somebody left before the first look is nothing.
func TestUnknown(t *testing.T) {
	run(t, seeing(map[string]peek.Seen{}), "-wait 1s", func(p *play) {
		visit := func(id int, addr, to string, speaks bool) {
			p.t.Helper()
			p.connect(id, addr, to)
			p.want()
			time.Sleep(time.Second)
			p.want(fmt.Sprintf("%x%s", id, passed))
			if speaks {
				p.report(id, "protocol-client", "EHLO client.example.net")
			}
			p.leave(id)
		}
		visit(1, "198.51.100.7", "192.0.2.25:25", false)
		p.said("reason=waited saw=unknown t=1s")
		visit(2, "198.51.100.7", "192.0.2.25:25", true)
		p.said("saw=unknown", "warning: listener=192.0.2.25:25 addr=198.51.100.7")
		visit(3, "198.51.100.7", "192.0.2.25:25", true)
		p.said("saw=unknown")
		visit(4, "198.51.100.8", "192.0.2.26:25", true)
		p.said("saw=unknown", "warning: listener=192.0.2.26:25")
	})
}

// Trouble with looking is no reason to refuse.
func TestLookFails(t *testing.T) {
	looks := &fake{errs: syscall.EMFILE}
	run(t, looks, "-wait 1s", func(p *play) {
		p.connect(1, "198.51.100.7")
		p.want()
		p.said("warning: could not be looked at too many open files")
		time.Sleep(time.Second)
		p.want("1" + passed)
		p.said("reason=waited saw=unknown")
	})
}

// A system that tells nothing: all wait, and who then speaks as it should is
// remembered.
func TestBlind(t *testing.T) {
	run(t, nil, "-wait 1s", func(p *play) {
		waits := func(id int, addr string) {
			p.t.Helper()
			p.connect(id, addr)
			p.want()
			time.Sleep(time.Second)
			p.want(fmt.Sprintf("%x%s", id, passed))
			p.said("reason=waited saw=unknown")
		}
		waits(1, "198.51.100.7")
		p.report(1, "protocol-client", "EHLO client.example.net")
		p.connect(2, "198.51.100.7")
		p.want("2" + passed)
		p.said("reason=remembered")
		// It sends all at once this time.
		p.report(2, "protocol-server", "220 mx.example.org ESMTP")
		p.report(2, "protocol-server", "500 5.5.1 Invalid command: Pipelining not supported")
		p.said("event=talk saw=pipelining addr=198.51.100.7")
		waits(3, "198.51.100.7")
		waits(4, "198.51.100.9") // and says nothing
		p.leave(4)
		waits(5, "198.51.100.9")
	})
}

func TestCommands(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.7": silent})
	for _, tt := range []struct{ line, saw string }{
		{"EHLO client.example.net", ""},
		{"ehlo x", ""},
		{"MAIL FROM:<a@example.net>", ""},
		{"RCPT TO:<b@example.org>", ""},
		{"VRFY bob", ""},
		{"********", ""},
		{".", ""},
		{"GET / HTTP/1.1", "command:GET"},
		{"CONNECT 192.0.2.1:25 HTTP/1.0", "command:CONNECT"},
		{"Subject: x", "command:Subject:"},
		{"SSH-2.0-OpenSSH_9.9", "command:SSH-2.0-OpenSSH_9.9"},
		{"MAILER", "command:MAILER"},
		{"", "command:-"},
		{strings.Repeat("x", 2000), "command:xxxxxxxxxxxxxxxxxxxx"},
		{"\x16\x03\x01", `saw="command:\x16\x03\x01"`},
	} {
		run(t, looks, "-wait 0", func(p *play) {
			p.connect(1, "198.51.100.7")
			p.want("1" + passed)
			p.log.take()
			p.report(1, "protocol-client", tt.line)
			if tt.saw == "" {
				p.said()
				return
			}
			p.said("filter=greet event=talk addr=198.51.100.7 " + tt.saw)
			p.report(1, "protocol-client", "GET / HTTP/1.1") // said once
			p.said()
		})
	}
	for _, flags := range []string{"", "-early late "} {
		run(t, looks, flags+"-wait 0 -commands refuse", func(p *play) {
			for i, phase := range []string{"helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data"} {
				for _, user := range []string{"", "ann"} {
					id := 2*i + len(user) + 1
					p.connect(id, "198.51.100.7")
					p.want(fmt.Sprintf("%x%s", id, passed))
					if user != "" {
						p.report(id, "link-auth", "pass|"+user)
					}
					p.ask(id, phase, "x@example.net")
					p.want(fmt.Sprintf("%x%s", id, passed))
					p.report(id, "tx-reset", "0000000a")
					p.report(id, "protocol-client", "GET / HTTP/1.1")
					p.log.take()
					p.ask(id, phase, "x@example.net")
					if user != "" {
						p.want(fmt.Sprintf("%x%s", id, passed))
					} else {
						p.want(fmt.Sprintf("%x disconnect|554 5.5.1 you sent what is no SMTP command", id))
						p.said("action=refuse disconnect=true reason=command saw=command:GET")
					}
					p.leave(id)
				}
			}
		})
	}
}

// smtpd refuses who sends several commands at once; later it is no matter of the
// greeting.
func TestPipelining(t *testing.T) {
	looks := seeing(map[string]peek.Seen{"198.51.100.7": silent})
	run(t, looks, "-wait 0", func(p *play) {
		p.connect(1, "198.51.100.7")
		p.log.take()
		p.report(1, "protocol-server", "220 mx.example.org ESMTP OpenSMTPD")
		p.said()
		p.report(1, "protocol-server", "500 5.5.1 Invalid command: Pipelining not supported")
		p.said("event=talk saw=pipelining")
		p.connect(2, "198.51.100.7")
		p.log.take()
		p.report(2, "protocol-client", "EHLO x")
		p.report(2, "protocol-server", "500 5.5.1 Invalid command: Pipelining not supported")
		p.said()
		p.out.take()
	})
}
