//go:build linux

package test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/peek"
	"opensmtpd-filters/test/smtpdtest"
)

// Waits that must be awaited to the end are short. Where something must happen
// before the end they are so long that no machine is too slow: nothing waits for
// that end.
const (
	shortWait = "-wait 1s "
	longWait  = "-wait 30s -v "
)

func greet(r smtpdtest.Release, args string, more ...smtpdtest.Filter) smtpdtest.Config {
	return smtpdtest.Config{
		Release: r,
		Filters: append(more, smtpdtest.Filter{Name: "greet", Command: "filter-greet " + args}),
	}
}

// A greeted client is one that the filter may hold.
type greeted struct {
	*smtpdtest.Client
	t   *testing.T
	src string
}

func (s server) connect(src string) *greeted {
	s.t.Helper()
	addr, to := netip.MustParseAddr(src), smtpdtest.Addr4
	if addr.Is6() {
		to = smtpdtest.Addr6
	}
	return s.connectTo(netip.AddrPortFrom(addr, 0), netip.AddrPortFrom(netip.MustParseAddr(to), 25))
}

func (s server) connectTo(src, dst netip.AddrPort) *greeted {
	s.t.Helper()
	c, err := smtpdtest.Dial(src, dst)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return &greeted{c, s.t, src.Addr().String()}
}

func (c *greeted) write(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// reply reads a reply, which must have this code.
func (c *greeted) reply(code int) {
	c.t.Helper()
	if r, err := c.Reply(); err != nil || r.Code != code {
		c.t.Errorf("from %s: %v, %v, want %d", c.src, r, err, code)
	}
}

func (c *greeted) do(line string, code int) {
	c.t.Helper()
	if r, err := c.Do(line); err != nil || r.Code != code {
		c.t.Errorf("from %s, %s: %v, %v, want %d", c.src, line, r, err, code)
	}
}

// noted waits for a line of the filter or, with "warning:", about it.
func (s server) noted(words ...string) {
	s.t.Helper()
	if _, err := s.WaitLog(append(words, "greet: ")...); err != nil {
		s.t.Error(err)
	}
}

const greetRefusal = "554 5.5.1 you spoke before the greeting (RFC 5321 section 4.3.1)"

// Who sends anything before the greeting does not get one, and who leaves is let
// go. The clock says nothing here: the wait is longer than the test.
func TestGreetEarly(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, greet(r, longWait))
		for i, tt := range []struct{ name, src, text string }{
			{"EHLO", "198.51.100.1", "EHLO client.example.net\r\n"},
			{"a byte without a line end", "198.51.100.2", "E"},
			{"a blob", "198.51.100.3", "EHLO x\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"},
			{"HTTP", "198.51.100.4", "GET / HTTP/1.1\r\nHost: mx.example.org\r\n\r\n"},
			{"IPv6", "2001:db8:5::1", "EHLO client.example.net\r\n"},
			{"the same again", "198.51.100.1", "EHLO client.example.net\r\n"},
		} {
			c := s.connect(tt.src)
			c.write(tt.text)
			if r, err := c.Reply(); err != nil || r.String() != greetRefusal {
				t.Errorf("%s: %v, %v, want %s", tt.name, r, err, greetRefusal)
			}
			s.noted("action=refuse", "disconnect=true", "reason=early", "addr="+tt.src+" ", fmt.Sprintf("bytes=%d ", len(tt.text)))
			// It is also refused when it speaks later.
			src := fmt.Sprintf("203.0.113.%d", i+1)
			c = s.connect(src)
			s.noted("event=held", "addr="+src+" ")
			c.write(tt.text)
			if r, err := c.Reply(); err != nil || r.String() != greetRefusal {
				t.Errorf("%s, later: %v, %v, want %s", tt.name, r, err, greetRefusal)
			}
		}
		for src, leave := range map[string]func(c *greeted){
			"198.51.100.11": func(c *greeted) { c.Client.Conn.(*net.TCPConn).CloseWrite() },
			"198.51.100.12": func(c *greeted) { c.Close() },
			"198.51.100.13": func(c *greeted) { c.Client.Conn.(*net.TCPConn).SetLinger(0); c.Close() },
			"2001:db8:5::2": func(c *greeted) { c.Client.Conn.(*net.TCPConn).CloseWrite() },
		} {
			c := s.connect(src)
			s.noted("event=held", "addr="+src+" ")
			leave(c)
			s.noted("action=proceed", "reason=gone", "saw=gone", "addr="+src+" ")
			if src == "198.51.100.11" {
				c.reply(220) // the FIN is no word
			}
		}
	})
}

// A polite client is held once, and its mail delivered.
func TestGreetPolite(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, greet(r, shortWait))
		for i, src := range []string{"198.51.100.1", "2001:db8:5::1"} {
			to := fmt.Sprint("bob", i)
			begin := time.Now()
			s.deliver(smtpdtest.Mail{Src: src, To: to})
			if took := time.Since(begin); took < time.Second {
				t.Errorf("from %s: greeted after %v, want at least 1s", src, took)
			}
			s.noted("action=proceed", "reason=waited", "saw=nothing", "addr="+src+" ")
			s.deliver(smtpdtest.Mail{Src: src, To: to + "-again"})
			s.noted("action=proceed", "reason=remembered", "saw=nothing", "addr="+src+" ")
		}
		// Whoever is remembered must not speak early; the kernel may not have
		// it yet when it is looked at, once.
		for tries := 0; ; tries++ {
			c := s.connect("198.51.100.1")
			c.write("EHLO client.example.net\r\n")
			if r, err := c.Reply(); err == nil && r.String() == greetRefusal {
				break
			} else if err != nil || tries == 100 {
				t.Fatalf("remembered and early, %d times: %v, %v", tries+1, r, err)
			}
			c.Close()
		}
		begin := time.Now()
		s.deliver(smtpdtest.Mail{Src: "198.51.100.1", To: "carol"})
		if took := time.Since(begin); took < time.Second {
			t.Errorf("after it was early: greeted after %v, want at least 1s", took)
		}
	})
}

// Mail of the host and of private networks is not held.
func TestGreetLocal(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greet(r, longWait+"-allowClients "+smtpdtest.Dir+"/clients")
		c.Files = map[string]string{"clients": "203.0.113.0/24\n"}
		s := start(t, c)
		for i, src := range []string{"10.0.0.7", "127.0.0.9", "203.0.113.7"} {
			s.deliver(smtpdtest.Mail{Src: src, To: fmt.Sprint("bob", i)})
			s.noted("action=proceed", "by=", "addr="+src+" ")
		}
		if _, err := s.Run(`printf 'Subject: hello\n\nhello\n' | /usr/sbin/sendmail -f dave@example.org bob@example.org`); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WaitMail("bob", 1); err != nil {
			t.Error(err)
		}
		if strings.Contains(s.Log(), "event=held") {
			t.Error("somebody was held")
		}
	})
}

// ownAddrs gives the host addresses, for the rest of the test: listeners for all
// addresses have only such.
func ownAddrs(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		if out, err := exec.Command("ip", "addr", "add", a, "dev", "lo", "nodad").CombinedOutput(); err != nil {
			t.Fatalf("ip addr add %s: %v\n%s", a, err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", a, "dev", "lo").Run() })
	}
}

func TestGreetWildcard(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		ownAddrs(t, smtpdtest.Addr4+"/32", "192.0.2.26/32", smtpdtest.Addr6+"/128")
		conf := greet(r, shortWait+"-v")
		conf.Listen = []string{"0.0.0.0 port 25", ":: port 25"}
		s := start(t, conf)
		for i, src := range []string{"198.51.100.1", "2001:db8:5::1"} {
			c := s.connect(src)
			c.write("E")
			c.reply(554)
			polite := []string{"198.51.100.2", "2001:db8:6::2"}[i]
			s.deliver(smtpdtest.Mail{Src: polite, To: fmt.Sprint("bob", i)})
			s.noted("action=proceed", "saw=nothing", "addr="+polite+" ")
		}

		// From one port to two of the addresses, before anybody looks: which
		// of them speaks is not known.
		on := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), 25) }
		src := netip.MustParseAddrPort("198.51.100.3:40000")
		if err := s.Signal("filter-greet", syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		one, two := s.connectTo(src, on(smtpdtest.Addr4)), s.connectTo(src, on("192.0.2.26"))
		one.write("EHLO client.example.net\r\n")
		kernel, err := peek.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer kernel.Close()
		for addr, want := range map[string]peek.State{smtpdtest.Addr4: peek.Early, "192.0.2.26": peek.Silent} {
			s.eventually("the kernel has both", func() bool {
				seen, err := kernel.Look(&peek.Conn{Client: src, Listener: on(addr)})
				return err == nil && seen.State == want
			})
		}
		if err := s.Signal("filter-greet", syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		one.reply(220)
		two.reply(220)
		s.noted("action=proceed", "saw=unknown", "addr=198.51.100.3 ")
	})
}

// proxyHeader is that of the PROXY protocol, version 2.
func proxyHeader(src, dst netip.AddrPort) string {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c")
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return string(append(b, byte(src.Port()>>8), byte(src.Port()), byte(dst.Port()>>8), byte(dst.Port())))
}

// Behind a proxy nobody can be seen: clients wait, pass and are not remembered.
func TestGreetProxy(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		conf := greet(r, shortWait)
		conf.Listen = []string{smtpdtest.Addr4 + " port 25", "192.0.2.26 port 25 proxy-v2"}
		s := start(t, conf)
		proxy, to := netip.MustParseAddrPort("10.0.0.1:0"), netip.MustParseAddrPort("192.0.2.26:25")
		for range 2 {
			c := s.connectTo(proxy, to)
			c.write(proxyHeader(netip.MustParseAddrPort("198.51.100.1:40000"), to))
			c.reply(220)
			c.do("EHLO client.example.net", 250)
			c.do("QUIT", 221)
		}
		s.noted("warning:", "listener=192.0.2.26:25", "could not be seen")
		s.eventually("both are held", func() bool {
			return strings.Count(s.Log(), "reason=waited addr=198.51.100.1 name=- saw=unknown") == 2
		})
		if n := strings.Count(s.Log(), "could not be seen"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
	})
}

// On other ports the filter does nothing; with smtps the client has to speak first.
func TestGreetPorts(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		conf := greet(r, longWait)
		conf.Listen = []string{smtpdtest.Addr4 + " port 25", smtpdtest.Addr4 + " port 587"}
		if r.TLS {
			conf.TLS = true
			conf.Listen = append(conf.Listen, smtpdtest.Addr4+` port 465 smtps pki "mx"`)
		}
		s := start(t, conf)
		on := func(port uint16) *greeted {
			return s.connectTo(netip.MustParseAddrPort("198.51.100.1:0"), netip.AddrPortFrom(netip.MustParseAddr(smtpdtest.Addr4), port))
		}
		c := on(587)
		c.write("EHLO client.example.net\r\n")
		c.reply(220)
		c.reply(250)
		s.noted("action=proceed", "reason=untested", "addr=198.51.100.1 ")
		if !r.TLS {
			t.Logf("OpenSMTPD %s has no working TLS with OpenSSL 3: smtps not tried", r.Version)
			return
		}
		c = on(465)
		if err := c.TLS(); err != nil {
			t.Fatal(err)
		}
		c.reply(220)
		c.do("EHLO client.example.net", 250)
	})
}

// With -early late the log has what the client wanted.
func TestGreetLate(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, greet(r, longWait+"-early late"))
		c := s.connect("198.51.100.1")
		c.write("EHLO client.example.net\r\n")
		c.reply(220)
		c.reply(250)
		c.do("MAIL FROM:<ann@example.net>", 250)
		c.do("RCPT TO:<bob@example.org>", 550)
		c.do("RCPT TO:<postmaster@example.org>", 250)
		s.noted("action=refuse", "reason=early", "from=<ann@example.net>", "rcpt=<bob@example.org>")
	})
	t.Run("junk", func(t *testing.T) {
		onNewest(t, func(t *testing.T, r smtpdtest.Release) {
			s := start(t, greet(r, longWait+"-early junk"))
			c := s.connect("198.51.100.1")
			c.write("EHLO client.example.net\r\n")
			c.reply(220)
			c.reply(250)
			c.do("MAIL FROM:<ann@example.net>", 250)
			c.do("RCPT TO:<bob@example.org>", 250)
			c.do("DATA", 354)
			c.do("Subject: x\r\n\r\nx\r\n.", 250)
			if all, err := s.WaitMail("bob", 1); err != nil || !all[0].Junk {
				t.Errorf("%v, %v, want it in .Junk", all, err)
			}
		})
	})
}

// What smtpd itself refuses is logged, and what is no command, which may have
// consequences.
func TestGreetTalk(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, greet(r, "-wait 0 -commands refuse"))
		c := s.connect("198.51.100.1")
		c.reply(220)
		c.write("EHLO x\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<bob@example.org>\r\n")
		c.reply(500)
		s.noted("event=talk", "saw=pipelining", "addr=198.51.100.1 ")

		c = s.connect("198.51.100.2")
		c.reply(220)
		c.do("GET / HTTP/1.1", 500)
		s.noted("event=talk", "saw=command:GET", "addr=198.51.100.2 ")
		c.do("EHLO client.example.net", 554)
		if _, err := c.Rest(); err != nil {
			t.Error(err)
		}
		s.noted("action=refuse", "reason=command", "addr=198.51.100.2 ")
	})
}

// An earlier filter refuses while the greeting is held: at once.
func TestGreetChain(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		conf := greet(r, longWait, smtpdtest.Filter{Name: "dnsbl", Command: "filter-dnsbl -phase connect -blockAt 1 bl.example"})
		conf.Zone = smtpdtest.Host("198.51.100.1", "listed.example") + smtpdtest.Host("198.51.100.2", "good.example") +
			"1.100.51.198.bl.example A 127.0.0.2\n2.0.0.127.bl.example A 127.0.0.2\n"
		s := start(t, conf)
		c := s.connect("198.51.100.1")
		if r, err := c.Reply(); err != nil || r.Code < 500 || strings.Contains(r.String(), "greeting") {
			t.Errorf("listed: %v, %v", r, err)
		}
		c = s.connect("198.51.100.2")
		s.noted("event=held", "addr=198.51.100.2 ")
		c.write("EHLO x\r\n")
		if r, err := c.Reply(); err != nil || r.String() != greetRefusal {
			t.Errorf("early: %v, %v", r, err)
		}
	})
	t.Run("junk", func(t *testing.T) { // then we are not asked
		forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
			s := start(t, greet(r, longWait, smtpdtest.Filter{Name: "other", Command: "scripted connect junk"}))
			if msg := s.deliver(smtpdtest.Mail{Src: "198.51.100.1", To: "bob"}); !msg.Junk {
				t.Error("not junk")
			}
		})
	})
}

// Without netlink sockets clients wait and pass, and that is said once.
func TestGreetDenied(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, smtpdtest.Config{
			Release: r,
			Filters: []smtpdtest.Filter{{Name: "greet", Command: "denied filter-greet " + shortWait}},
		})
		for i := range 2 {
			c := s.connect(fmt.Sprint("198.51.100.", i+1))
			c.write("EHLO client.example.net\r\n")
			c.reply(220)
			c.reply(250)
			s.noted("action=proceed", "reason=waited", "saw=unknown", "addr="+c.src+" ")
		}
		if n := strings.Count(s.Log(), "greet: warning: "); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
	})
}

// Many at once are all held and all greeted. What that costs is logged.
func TestGreetMany(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		const n = 300
		s := start(t, greet(r, "-v -wait 10s -maxWaiting 700 -metrics "+smtpdtest.State+"/greet.prom"))
		pid := 0
		for p, name := range s.Processes() {
			if name == "filter-greet" {
				pid = p
			}
		}
		before := cpu(t, pid)
		var all []*greeted
		for i := range n {
			c := s.connect(netip.AddrFrom4([4]byte{198, 51, 100 + byte(i>>8), byte(i)}).String())
			all = append(all, c)
			if i%4 == 3 { // smtpd lets five wait to be accepted
				s.noted("event=held", "addr="+c.src+" ")
			}
		}
		for _, c := range all {
			c.reply(220)
		}
		used := cpu(t, pid) - before
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d clients, each held for 10s: %v of processor, %s", n, used, regexp.MustCompile(`VmHWM:.*`).Find(status))
		if log := s.Log(); strings.Count(log, "reason=waited") != n || strings.Count(log, "saw=nothing") != n {
			t.Errorf("not all of %d waited in silence", n)
		}
	})
	t.Run("crowd", func(t *testing.T) {
		onNewest(t, func(t *testing.T, r smtpdtest.Release) {
			// The first five are held while this test goes on.
			s := start(t, greet(r, longWait+"-maxWaiting 10"))
			var held, rest []*greeted
			for i := range 30 {
				c := s.connect(fmt.Sprint("198.51.100.", i+1))
				if i < 5 {
					s.noted("event=held", "addr="+c.src+" ")
					held = append(held, c)
				} else {
					rest = append(rest, c)
				}
			}
			for _, c := range rest {
				c.reply(220)
				s.noted("action=proceed", "reason=crowded", "addr="+c.src+" ")
			}
			for _, c := range held {
				c.write("EHLO x\r\n")
				c.reply(554)
			}
		})
	})
}

// cpu returns the processor time of a process.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	user, err1 := strconv.Atoi(f[12])
	system, err2 := strconv.Atoi(f[13])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	const tick = time.Second / 100
	return time.Duration(user+system) * tick
}

// Real clients are never taken for early ones. GREET=500 makes each send so many
// mails, on a connection each.
func TestGreetRealClients(t *testing.T) {
	n := 60
	if v, err := strconv.Atoi(os.Getenv("GREET")); err == nil {
		n = v
	}
	msmtp, err := exec.LookPath("msmtp")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("msmtp is not installed: run test/install.sh")
	}
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, greet(r, "-wait 400ms -remember 0 -maxWaiting 700"))
		p := startPostfix(t, "mx.sender.example", "198.51.100.1")
		for i := range n {
			if err := p.Submit(fmt.Sprintf("ann%d@sender.example", i), fmt.Sprintf("p%d@example.org", i)); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		begun := make(chan bool, 20)
		for i := range n {
			begun <- true
			wg.Go(func() {
				defer func() { <-begun }()
				cmd := exec.CommandContext(t.Context(), msmtp, "--host="+smtpdtest.Addr4, "--port=25", "--source-ip=198.51.100.2",
					"--domain=client.sender.example", "--from=alice@sender.example", "--tls=off", "--auth=off", fmt.Sprintf("m%d@example.org", i))
				cmd.Stdin = strings.NewReader("Subject: hello\n\nhello\n")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("msmtp: %v\n%s", err, out)
				}
			})
		}
		wg.Wait()
		if deferred, err := p.Delivered(n); err != nil || deferred > 0 {
			t.Errorf("postfix: %d deferred, %v", deferred, err)
		}
		log := s.Log()
		for _, bad := range []string{"action=refuse", "reason=early", "event=talk"} {
			if strings.Contains(log, bad) {
				t.Errorf("a false alarm: %s", bad)
			}
		}
		held := strings.Count(log, "reason=waited")
		t.Logf("%d connections were held", held)
		if held < 2*n {
			t.Errorf("%d connections were held, want %d", held, 2*n)
		}
	})
}

// What the page says of postscreen is complete: as postconf of a real Postfix
// names its parameters.
func TestGreetFromPostscreen(t *testing.T) {
	params, err := smtpdtest.PostfixParameters("postscreen_")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	text := page(t, "filter-greet")
	for _, p := range params {
		if !regexp.MustCompile(`\b` + p + `\b`).MatchString(text) {
			t.Errorf("the page does not name %s", p)
		}
	}
	if len(params) < 40 {
		t.Errorf("only %d parameters", len(params))
	}
}
