//go:build linux

package test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// greyZone is what the DNS knows of senders. Others have no SPF record.
const greyZone = `pool.example TXT "v=spf1 ip4:203.0.113.0/24 ip4:198.51.100.0/24 ip4:198.18.0.0/16 -all"
all.example TXT "v=spf1 +all"
77.100.51.198.in-addr.arpa PTR relay.host.example
relay.host.example A 198.51.100.77
80.113.0.203.in-addr.arpa PTR mx.good.example
mx.good.example A 203.0.113.80
good.example TXT "v=spf1 a:mx.good.example -all"
*.silent.example drop
`

func greylistFilter(args string) smtpdtest.Filter {
	return smtpdtest.Filter{Name: "greylist", Command: greylistCommand + args}
}

const greylistCommand = "filter-greylist -store sqlite:" + smtpdtest.State + "/greylist.db "

func greylist(r smtpdtest.Release, args string) smtpdtest.Config {
	return smtpdtest.Config{Release: r, Zone: greyZone, Filters: []smtpdtest.Filter{greylistFilter(args)}}
}

// startGreylist starts smtpd, and waits until the filter has a database: what
// comes before passes.
func startGreylist(t *testing.T, c smtpdtest.Config) server {
	t.Helper()
	s := start(t, c)
	s.waitDatabase()
	return s
}

func (s server) waitDatabase() {
	s.t.Helper()
	s.eventually("there is a database", func() bool {
		_, err := s.Run("./" + greylistCommand + "list -json")
		return err == nil
	})
}

// eventually waits until done says so.
func (s server) eventually(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// operator runs a command of the operator.
func (s server) operator(args string) string {
	s.t.Helper()
	out, err := s.Run("./" + greylistCommand + args)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

// logged waits for a line of the filter.
func (s server) logged(words ...string) {
	s.t.Helper()
	if _, err := s.WaitLog(append(words, "filter=greylist ")...); err != nil {
		s.t.Error(err)
	}
}

var greyReply = regexp.MustCompile(`^451 4\.7\.1 Greylisted, please try again in [1-9]\d* seconds$`)

func isGreyed(res smtpdtest.Result) bool {
	return (res.Step == "DATA" || res.Step == "message") && greyReply.MatchString(res.Reply.String()) && !res.Closed
}

// greyed sends a mail that must be refused.
func (s server) greyed(m smtpdtest.Mail) {
	s.t.Helper()
	if res := s.send(m); !isGreyed(res) {
		s.t.Errorf("mail from %s by %s to %s: %v, want it greylisted", m.Sender, m.Src, m.To, res)
	}
}

// accepted sends a mail that must be taken.
func (s server) accepted(m smtpdtest.Mail) {
	s.t.Helper()
	if res := s.send(m); !res.Accepted() {
		s.t.Errorf("mail from %s by %s to %s: %v, want it accepted", m.Sender, m.Src, m.To, res)
	}
}

// retried sends a mail until it is taken.
func (s server) retried(m smtpdtest.Mail) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("mail from %s by %s to %s is accepted", m.Sender, m.Src, m.To), func() bool {
		res := s.send(m)
		if !res.Accepted() && !isGreyed(res) {
			s.t.Fatalf("mail from %s by %s: %v", m.Sender, m.Src, res)
		}
		return res.Accepted()
	})
}

// A talk is an SMTP session. What goes wrong ends the test.
type talk struct {
	*smtpdtest.Client
	t *testing.T
}

// dial makes a session, up to EHLO.
func (s server) dial(src string) talk {
	s.t.Helper()
	c, err := s.Dial(src)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if r, err := c.Reply(); err != nil || r.Code != 220 {
		s.t.Fatalf("greeting: %v, %v", r, err)
	}
	talk := talk{c, s.t}
	talk.do("EHLO client.example.net", 250)
	return talk
}

// do sends a command that must be answered with code.
func (c talk) do(command string, code int) {
	c.t.Helper()
	r, err := c.Do(command)
	if err != nil {
		c.t.Fatalf("%s: %v", command, err)
	}
	if r.Code != code {
		c.t.Fatalf("%s: %v, want %d", command, r, code)
	}
}

const shortMail = "Subject: hello\r\n\r\nhello\r\n."

func TestGreylistFirstMail(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 4s -header"))
		m := smtpdtest.Mail{
			Src: "203.0.113.7", Sender: "news@sender.example", To: "bob",
			Data: "x-greylist: forged\r\nSubject: hello\r\nX-Greylist:\r\n forged\r\n\r\nhello\r\n",
		}
		s.greyed(m)
		out := s.operator("-passTime 4s explain 203.0.113.7 news@sender.example bob@example.org client.example.net")
		if !regexp.MustCompile(`(?m)^seconds left +[1-4]$`).MatchString(out) || !strings.Contains(out, "defer at data: seen, but -passTime has not passed") {
			t.Errorf("explain says\n%s", out)
		}
		s.greyed(m)
		s.retried(m)
		s.logged("action=defer", "reason=new", "addr=203.0.113.7 ", "from=<news@sender.example>", "rcpt=<bob@example.org>", "left=4s", "tries=1", "spf=none:sender.example")
		s.logged("action=defer", "reason=early", "addr=203.0.113.7 ", "tries=2")
		s.logged("action=proceed", "reason=retry", "addr=203.0.113.7 ", "delay=")

		other := m
		other.Sender, other.To = "sales@sender.example", "carol"
		s.accepted(other)
		s.logged("action=proceed", "reason=known", "addr=203.0.113.7 ", "from=<sales@sender.example>")

		for to, want := range map[string]string{
			"bob":   `^delayed ([4-9]|[1-5]\d) seconds by filter-greylist at mx\.example\.org; \w{3}, \d\d? \w{3} \d{4} `,
			"carol": `^not delayed \(203\.0\.113\.7 is known\) by filter-greylist at mx\.example\.org; `,
		} {
			all, err := s.WaitMail(to, 1)
			if err != nil {
				t.Fatal(err)
			}
			got := all[0].Header("X-Greylist")
			if len(all) != 1 || len(got) != 1 || !regexp.MustCompile(want).MatchString(got[0]) {
				t.Errorf("%d mails for %s, the first with X-Greylist %q", len(all), to, got)
			}
		}
		out = s.operator("explain 203.0.113.7 another@sender.example dave@example.org")
		if !strings.Contains(out, "proceed: known") {
			t.Errorf("explain says\n%s", out)
		}
	})
}

// The operator works beside the running filter.
func TestGreylistOperator(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1h"))
		n := 0
		mail := func() smtpdtest.Mail { // of a new sender
			n++
			return smtpdtest.Mail{Src: "203.0.113.7", Sender: string(rune('a'+n)) + "@sender.example", To: "bob"}
		}
		s.greyed(mail())
		for _, list := range []string{"list", "list grey", "list -json", "list grey -json"} {
			if out := s.operator(list); !strings.Contains(out, "net:203.0.113.0/24") || !strings.Contains(out, "b@sender.example") || !strings.Contains(out, "bob@example.org") {
				t.Errorf("%s says\n%s", list, out)
			}
		}
		if out := s.operator("list pass"); strings.Contains(out, "203.0.113") {
			t.Errorf("list pass says\n%s", out)
		}

		// A second may pass before the filter looks again.
		becomes := func(want bool) {
			t.Helper()
			s.eventually(fmt.Sprint("mail is accepted: ", want), func() bool { return s.send(mail()).Accepted() == want })
		}
		s.operator("allow 203.0.113.7")
		becomes(true)
		if out := s.operator("list pass"); !strings.Contains(out, "203.0.113.7") {
			t.Errorf("list pass says\n%s", out)
		}
		s.operator("export > dump")
		s.operator("delete 203.0.113.7")
		becomes(false)
		s.operator("import < dump")
		becomes(true)

		out := s.operator("stats")
		for _, want := range []string{"addresses and domains", "decisions:", "never came again"} {
			if !strings.Contains(out, want) {
				t.Errorf("stats says\n%s", out)
			}
		}
		if out := s.operator("stats -json"); !strings.Contains(out, `"records":{`) {
			t.Errorf("stats -json says\n%s", out)
		}
		if out, err := s.Run("./" + greylistCommand + "delete 198.18.0.1"); err == nil {
			t.Errorf("delete of nothing says %s", out)
		}

		// All of it is still the filter's.
		dir, err := os.Stat(s.Path("state"))
		if err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(s.Path("state/*"))
		for _, f := range files {
			if fi, err := os.Stat(f); err != nil || owner(fi) != owner(dir) || fi.Mode()&0o077 != 0 {
				t.Errorf("%s: owner %d, mode %v, %v", f, owner(fi), fi.Mode(), err)
			}
		}
		if len(files) < 2 {
			t.Errorf("the files are %q", files)
		}
	})
}

func TestGreylistPostfix(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 2s"))
		p := startPostfix(t, "mail.sender.example", "203.0.113.9")
		if err := p.Submit("news@sender.example", "bob@example.org", "carol@example.org"); err != nil {
			t.Fatal(err)
		}
		deferred, err := p.Delivered(2)
		if err != nil {
			t.Fatal(err)
		}
		if deferred < 2 {
			t.Errorf("postfix had to wait %d times", deferred)
		}
		// From now on it is known.
		if err := p.Submit("sales@sender.example", "dave@example.org"); err != nil {
			t.Fatal(err)
		}
		if again, err := p.Delivered(3); err != nil || again != deferred {
			t.Errorf("the second mail had to wait %d times: %v", again-deferred, err)
		}
		for _, to := range []string{"bob", "carol", "dave"} {
			if all, err := s.WaitMail(to, 1); err != nil || len(all) != 1 {
				t.Errorf("%d mails for %s: %v", len(all), to, err)
			}
		}
		s.logged("action=defer", "reason=new", "addr=203.0.113.9 ", "from=<news@sender.example>")
		s.logged("action=proceed", "reason=retry", "addr=203.0.113.9 ", "from=<news@sender.example>")
		s.logged("action=proceed", "reason=known", "addr=203.0.113.9 ", "from=<sales@sender.example>")
	})
}

// startPostfix starts postfix for the rest of the test.
func startPostfix(t *testing.T, name, src string) *smtpdtest.Postfix {
	t.Helper()
	if err := smtpdtest.PostfixReady(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	p, err := smtpdtest.StartPostfix(name, src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("postfix:\n%s", p.Log())
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// A client that leaves it to its user to try again.
func TestGreylistMsmtp(t *testing.T) {
	msmtp, err := exec.LookPath("msmtp")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("msmtp is not installed: run test/install.sh")
	}
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 2s"))
		try := func() (status int, out string) {
			cmd := exec.CommandContext(t.Context(), msmtp, "--host="+smtpdtest.Addr4, "--port=25", "--source-ip=203.0.113.12",
				"--domain=client.sender.example", "--from=alice@sender.example", "--tls=off", "--auth=off", "bob@"+smtpdtest.Domain)
			cmd.Stdin = strings.NewReader("Subject: hello\n\nhello\n")
			b, err := cmd.CombinedOutput()
			if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
				t.Fatal(err)
			}
			return cmd.ProcessState.ExitCode(), string(b)
		}
		if status, out := try(); status == 0 || !strings.Contains(out, "Greylisted, please try again") {
			t.Errorf("first: status %d\n%s", status, out)
		}
		s.eventually("msmtp gets rid of its mail", func() bool { status, _ := try(); return status == 0 })
		if all, err := s.WaitMail("bob", 1); err != nil || len(all) != 1 {
			t.Errorf("%d mails: %v", len(all), err)
		}
	})
}

// Who does not exist is refused for good at once, and callouts are served.
func TestGreylistUnknownUser(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1h")
		c.Users = []string{"bob", "carol"}
		s := startGreylist(t, c)
		if res := s.send(smtpdtest.Mail{Src: "203.0.113.7", Sender: "a@sender.example", To: "nobody-here"}); res.Step != "RCPT" || res.Reply.Code != 550 {
			t.Errorf("unknown user: %v, want 550 at RCPT", res)
		}
		callout := s.dial("203.0.113.7")
		callout.do("MAIL FROM:<>", 250)
		callout.do("RCPT TO:<bob@example.org>", 250)
		callout.do("QUIT", 221)
		if out := s.operator("list -json"); out != "" {
			t.Errorf("stored:\n%s", out)
		}

		// Those that exist count, whichever comes first.
		c2 := s.dial("203.0.113.7")
		c2.do("MAIL FROM:<a@sender.example>", 250)
		c2.do("RCPT TO:<nobody-here@example.org>", 550)
		c2.do("RCPT TO:<carol@example.org>", 250)
		c2.do("RCPT TO:<bob@example.org>", 250)
		c2.do("DATA", 451)
		out := s.operator("list -json")
		if strings.Contains(out, "nobody-here") || !strings.Contains(out, "bob@example.org") || !strings.Contains(out, "carol@example.org") {
			t.Errorf("stored:\n%s", out)
		}
	})
}

func TestGreylistRcptPhase(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s -phase rcpt-to"))
		c := s.dial("203.0.113.7")
		c.do("MAIL FROM:<>", 250)
		c.do("RCPT TO:<bob@example.org>", 250)
		c.do("DATA", 451)
		c.do("RSET", 250)
		c.do("MAIL FROM:<a@sender.example>", 250)
		c.do("RCPT TO:<bob@example.org>", 451)
		c.do("RCPT TO:<carol@example.org>", 451) // the first decides
		c.do("QUIT", 221)
		s.eventually("a retry is accepted", func() bool {
			c := s.dial("203.0.113.7")
			defer c.Close()
			c.do("MAIL FROM:<a@sender.example>", 250)
			r, err := c.Do("RCPT TO:<bob@example.org>")
			if err != nil || r.Code != 250 {
				return false
			}
			c.do("RCPT TO:<carol@example.org>", 250)
			c.do("DATA", 354)
			c.do(shortMail, 250)
			return true
		})
		for _, to := range []string{"bob", "carol"} {
			if all, err := s.WaitMail(to, 1); err != nil || len(all) != 1 {
				t.Errorf("%d mails for %s: %v", len(all), to, err)
			}
		}
	})
}

// The host's own mail and that of its users is not delayed, nor is the answer
// to it.
func TestGreylistLearning(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1h")
		c.TLS = r.TLS
		s := startGreylist(t, c)
		answer := func(from, to string) {
			t.Helper()
			s.eventually("the filter has learned "+from, func() bool { return strings.Contains(s.operator("list pair"), from) })
			s.accepted(smtpdtest.Mail{Src: "198.51.100.77", Sender: from, To: to})
			s.logged("action=proceed", "reason=pair", "from=<"+from+">")
			s.greyed(smtpdtest.Mail{Src: "198.51.100.77", Sender: from, To: "carol"})
			s.greyed(smtpdtest.Mail{Src: "198.51.100.77", Sender: "stranger@far.example", To: to})
		}
		if _, err := s.Run(`printf 'Subject: hello\n\nhello\n' | /usr/sbin/sendmail -f dave@example.org friend@far.example`); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WaitMail("friend", 1); err != nil {
			t.Fatal(err)
		}
		answer("friend@far.example", "dave")
		if r.TLS {
			m := smtpdtest.Mail{Src: "203.0.113.20", Sender: "alice@example.org", To: "pal@far.example", Login: true}
			s.accepted(m)
			m.To, m.Login = "dave", false
			s.greyed(m)
			answer("pal@far.example", "alice")
		}
		if out := s.operator("list pass"); strings.Contains(out, "203.0.113.20") || strings.Contains(out, "198.51.100.77") {
			t.Errorf("addresses are free:\n%s", out)
		}
	})
}

// Mail that is vouched for is taken at once, and leaves nothing; without SPF the same
// server's mail waits once, and so does what an earlier filter has junked.
func TestGreylistVouched(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		s.accepted(smtpdtest.Mail{Src: "203.0.113.80", Sender: "ann@good.example", To: "bob"})
		s.logged("action=proceed", "reason=vouched", "addr=203.0.113.80 ", "name=mx.good.example ")
		if out := s.operator("list"); strings.Contains(out, "good.example") || strings.Contains(out, "203.0.113") {
			t.Errorf("stored:\n%s", out)
		}
		m := smtpdtest.Mail{Src: "203.0.113.80", Sender: "ann@plain.example", To: "bob"}
		s.greyed(m)
		s.logged("action=defer", "reason=new", "addr=203.0.113.80 ", "suspect=nospf ")
		s.retried(m)
	})
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1s")
		c.Zone += "80.113.0.203.bl.example A 127.0.0.2\n"
		junk := smtpdtest.Filter{Name: "dnsbl", Command: "filter-dnsbl -junkAt 1 bl.example"}
		c.Filters = append([]smtpdtest.Filter{junk}, c.Filters...)
		s := startGreylist(t, c)
		s.greyed(smtpdtest.Mail{Src: "203.0.113.80", Sender: "ann@good.example", To: "bob"})
		s.logged("action=defer", "reason=new", "addr=203.0.113.80 ", "suspect=junked ")
	})
}

// Transactions of one session are kept apart.
func TestGreylistOneSession(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		c := s.dial("203.0.113.30")
		c.do("MAIL FROM:<one@sender.example>", 250)
		c.do("RCPT TO:<bob@example.org>", 250)
		c.do("RSET", 250)
		for _, to := range []string{"carol", "dave"} {
			c.do("MAIL FROM:<two@sender.example>", 250)
			c.do("RCPT TO:<"+to+"@example.org>", 250)
			c.do("DATA", 451)
			c.do("RSET", 250)
		}
		// Without RSET smtpd itself says that there is a mail already.
		c.do("MAIL FROM:<three@sender.example>", 250)
		c.do("RCPT TO:<erin@example.org>", 250)
		c.do("DATA", 451)
		c.do("MAIL FROM:<three@sender.example>", 503)
		c.do("RSET", 250)
		out := s.operator("list -json")
		for want, yes := range map[string]bool{"one@": false, "bob@": false, "two@": true, "carol@": true, "dave@": true, "three@": true, "erin@": true} {
			if strings.Contains(out, want) != yes {
				t.Errorf("%s is stored: %v\n%s", want, !yes, out)
			}
		}
		s.eventually("the retry is accepted in the same session", func() bool {
			c.do("MAIL FROM:<two@sender.example>", 250)
			c.do("RCPT TO:<carol@example.org>", 250)
			r, err := c.Do("DATA")
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != 354 {
				c.do("RSET", 250)
				return false
			}
			c.do(shortMail, 250)
			return true
		})
		c.do("MAIL FROM:<one@sender.example>", 250) // the address is known now
		c.do("RCPT TO:<bob@example.org>", 250)
		c.do("DATA", 354)
		c.do(shortMail, 250)
		for _, to := range []string{"bob", "carol"} {
			if all, err := s.WaitMail(to, 1); err != nil || len(all) != 1 {
				t.Errorf("%d mails for %s: %v", len(all), to, err)
			}
		}
	})
}

// Each try comes from another network.
func TestGreylistPool(t *testing.T) {
	pool := []string{"203.0.113.1", "198.51.100.1", "198.18.1.1", "198.18.2.1", "198.18.3.1"}
	t.Run("spf", func(t *testing.T) {
		onNewest(t, func(t *testing.T, r smtpdtest.Release) {
			s := startGreylist(t, greylist(r, "-passTime 1s"))
			m := func(i int) smtpdtest.Mail {
				// Such senders change with every mail.
				return smtpdtest.Mail{Src: pool[i], Sender: fmt.Sprintf("bounce-%d@pool.example", i), To: "bob"}
			}
			s.greyed(m(0))
			s.retried(m(1))
			s.logged("reason=new", "addr=203.0.113.1 ", "spf=pass:pool.example")
			s.logged("reason=retry", "addr=198.51.100.1 ", "origin=spf:pool.example")
			for i := 2; i < len(pool); i++ {
				s.accepted(m(i))
			}
			s.greyed(smtpdtest.Mail{Src: "198.19.0.1", Sender: "bounce@pool.example", To: "bob"})
			s.logged("action=defer", "addr=198.19.0.1 ", "spf=fail:pool.example")
		})
	})
	t.Run("pair", func(t *testing.T) {
		onNewest(t, func(t *testing.T, r smtpdtest.Release) {
			c := greylist(r, "-passTime 1h -pairSpan 1s")
			for i, addr := range pool { // what has a name counts
				a := netip.MustParseAddr(addr).As4()
				c.Zone += fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa PTR mx.d%d.example\nmx.d%d.example A %s\n", a[3], a[2], a[1], a[0], i, i, addr)
			}
			s := startGreylist(t, c)
			m := smtpdtest.Mail{Sender: "news@nospf.example", To: "bob"}
			for _, m.Src = range pool[:2] {
				s.greyed(m)
			}
			time.Sleep(1100 * time.Millisecond)
			m.Src = pool[2]
			s.accepted(m)
			s.logged("action=proceed", "reason=pair", "addr="+m.Src+" ", "tries=3")
			m.Src = pool[3]
			s.accepted(m)
			m.Sender = "other@nospf.example" // no address is free
			s.greyed(m)
		})
	})
	// A record that lets everybody pass proves nothing.
	t.Run("all", func(t *testing.T) {
		onNewest(t, func(t *testing.T, r smtpdtest.Release) {
			s := startGreylist(t, greylist(r, "-passTime 1s"))
			m := smtpdtest.Mail{Src: "203.0.113.1", Sender: "news@all.example", To: "bob"}
			s.greyed(m)
			s.logged("action=defer", "addr=203.0.113.1 ", "spf=everyone:all.example")
			if out := s.operator("list"); strings.Contains(out, "spf:all.example") || !strings.Contains(out, "net:203.0.113.0/24") {
				t.Errorf("stored:\n%s", out)
			}
			time.Sleep(1100 * time.Millisecond)
			m.Src = "198.51.100.1"
			s.greyed(m)
			m.Src = "203.0.113.2"
			s.accepted(m)
			s.logged("reason=retry", "addr=203.0.113.2 ", "origin=net:203.0.113.0/24")
		})
	})
}

// A retry may come from another address of the network, and frees only its own.
func TestGreylistNetworks(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		for i, tt := range []struct{ first, outside, inside string }{
			{"203.0.113.1", "203.0.112.1", "203.0.113.254"},
			{"2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:2:ffff::1"},
		} {
			m := smtpdtest.Mail{Src: tt.first, Sender: "a@sender.example", To: fmt.Sprint("bob", i)}
			s.greyed(m)
			time.Sleep(1100 * time.Millisecond)
			m.Src = tt.outside
			s.greyed(m)
			m.Src = tt.inside
			s.accepted(m)
			s.logged("reason=retry", "addr="+tt.inside+" ", "origin=net:")
			m.Sender = "b@sender.example"
			s.accepted(m)
		}
		// Of a /24 the other addresses are not free; a /64 is one machine.
		s.greyed(smtpdtest.Mail{Src: "203.0.113.1", Sender: "c@sender.example", To: "bob"})
		s.accepted(smtpdtest.Mail{Src: "2001:db8:1:2::1", Sender: "c@sender.example", To: "bob"})
	})
}

func TestGreylistPostmaster(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1h"))
		c := s.dial("203.0.113.7")
		for _, tt := range []struct {
			to   string
			want int
		}{{"postmaster", 354}, {"Abuse", 354}, {"postmaster bob", 451}, {"bob postmaster", 451}, {"postmaster abuse", 354}} {
			c.do("MAIL FROM:<a@sender.example>", 250)
			for to := range strings.FieldsSeq(tt.to) {
				c.do("RCPT TO:<"+to+"@example.org>", 250)
			}
			c.do("DATA", tt.want)
			if tt.want == 354 {
				c.do(shortMail, 250)
			} else {
				c.do("RSET", 250)
			}
		}
	})
}

// Addresses over 255 bytes are good for smtpd, which does not tell filters of
// them.
func TestGreylistLongAddress(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		long := strings.Repeat("a", 245)
		for i, tt := range []struct{ from, to string }{
			{long + "@sender.example", "bob@example.org"},
			{"a@sender.example", "bob+" + long + "@example.org"},
		} {
			try := func() int {
				c := s.dial(fmt.Sprintf("203.0.%d.7", 113+i))
				defer c.Close()
				c.do("MAIL FROM:<"+tt.from+">", 250)
				c.do("RCPT TO:<"+tt.to+">", 250)
				r, err := c.Do("DATA")
				if err != nil {
					t.Fatal(err)
				}
				return r.Code
			}
			if code := try(); code != 451 {
				t.Errorf("mail from %s to %s: %d, want it greylisted", tt.from, tt.to, code)
			}
			s.eventually("the retry is accepted", func() bool { return try() == 354 })
		}
	})
}

// While one client waits for a DNS that is silent, others are served.
func TestGreylistSilentDNS(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1h -timeout 8s"))
		var mu sync.Mutex
		waited := false
		var wg sync.WaitGroup
		wg.Go(func() {
			res, err := s.Send(smtpdtest.Mail{Src: "203.0.113.1", Sender: "a@x.silent.example", To: "bob"})
			if err != nil || !isGreyed(res) {
				t.Errorf("with a silent DNS: %v, %v", res, err)
			}
			mu.Lock()
			waited = true
			mu.Unlock()
		})
		s.eventually("the DNS is asked", func() bool { return s.DNS.Count("x.silent.example", "TXT") > 0 })
		for i := range 5 {
			s.greyed(smtpdtest.Mail{Src: fmt.Sprintf("198.51.100.%d", i), Sender: "b@sender.example", To: "bob"})
		}
		mu.Lock()
		if waited {
			t.Error("the others had to wait, or the test is worth nothing")
		}
		mu.Unlock()
		wg.Wait()
		s.logged("action=defer", "addr=203.0.113.1 ", "spf=temperror:x.silent.example")
	})
}

// A filter before this one junks at data, and keeps smtpd from asking this one
// then: it decides when the message is complete.
func TestGreylistChain(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		c := dnsbl(r, "-junkAt 3 -phase data zen.spamhaus.org*3")
		c.Filters = append(c.Filters, greylistFilter("-passTime 1s"))
		s := startGreylist(t, c)
		s.tested("zen.spamhaus.org")
		listed := smtpdtest.Mail{Src: "203.0.113.1", To: "bob"}
		res := s.send(listed)
		if res.Step != "message" || !greyReply.MatchString(res.Reply.String()) {
			t.Errorf("a listed client: %v", res)
		}
		s.greyed(smtpdtest.Mail{Src: "198.51.100.1", To: "carol"})
		s.eventually("the retry is accepted", func() bool { return s.send(listed).Accepted() })
		s.retried(smtpdtest.Mail{Src: "198.51.100.1", To: "carol"})
		for to, junk := range map[string]bool{"bob": true, "carol": false} {
			if all, err := s.WaitMail(to, 1); err != nil || len(all) != 1 || all[0].Junk != junk {
				t.Errorf("for %s: %+v, %v", to, all, err)
			}
		}
	})
}

func TestGreylistTrap(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1s -trap "+smtpdtest.Dir+"/traps")
		c.Files = map[string]string{"traps": "# nobody\nold.address@example.org\n"}
		s := startGreylist(t, c)
		good := smtpdtest.Mail{Src: "198.51.100.1", Sender: "a@good.example", To: "bob"}
		bad := smtpdtest.Mail{Src: "203.0.113.1", Sender: "a@bad.example", To: "bob"}
		s.greyed(good)
		s.greyed(bad)
		s.retried(good)
		trap := func(m smtpdtest.Mail) smtpdtest.Mail { m.To = "Old.Address"; return m }
		if res := s.send(trap(bad)); res.Step != "RCPT" || res.Reply.Code != 451 {
			t.Errorf("for a trap: %v", res)
		}
		s.logged("action=defer", "reason=trapped", "addr=203.0.113.1 ", "rcpt=<Old.Address@example.org>", "traps:2")
		time.Sleep(time.Second)
		s.greyed(bad)
		s.logged("action=defer", "reason=trapped", "addr=203.0.113.1 ", "rcpt=<bob@example.org>")
		s.accepted(trap(good)) // known before
		s.accepted(good)
	})
}

func TestGreylistDryRun(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-dryRun -header -passTime 1s -trap "+smtpdtest.Dir+"/traps")
		c.Files = map[string]string{"traps": "trap@example.org\n"}
		s := startGreylist(t, c)
		m := s.deliver(smtpdtest.Mail{Src: "203.0.113.1", Sender: "a@sender.example", To: "bob"})
		if got := strings.Join(m.Header("X-Greylist"), ";"); !strings.HasPrefix(got, "not delayed (dry run, would be refused as new)") {
			t.Errorf("X-Greylist %q", got)
		}
		s.logged("action=proceed", "reason=new", "would=defer dryRun=true")
		s.deliver(smtpdtest.Mail{Src: "198.51.100.1", Sender: "b@sender.example", To: "trap"})
		s.logged("action=proceed", "reason=trapped", "rcpt=<trap@example.org>", "would=defer dryRun=true")
		s.deliver(smtpdtest.Mail{Src: "198.51.100.1", Sender: "b@sender.example", To: "carol"})
	})
}
