//go:build linux

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// The clients of these tests.
const (
	proper   = "203.0.113.10"
	dynamic  = "203.0.113.20"
	dynamic6 = "2001:db8:2f0f:5e00:e15a:1b2e:1d2a:ce20"
	static   = "203.0.113.30"
	noname   = "203.0.113.40"
	nofwd    = "203.0.113.50"
	bogus    = "203.0.113.60"
	office   = "203.0.113.70" // a dynamic line with a mail server that says so in HELO
)

var dyndnsZone = smtpdtest.Host(proper, "mail.sender.example") +
	smtpdtest.Host(dynamic, "p203-0-113-20.dip.provider.example") +
	smtpdtest.Host(dynamic6, "p20010db82f0f5e00e15a1b2e1d2ace20.dip0.provider.example") +
	smtpdtest.Host(static, "203-0-113-30.static.provider.example") +
	smtpdtest.Pointer(nofwd, "mail.forged.example") +
	smtpdtest.Pointer(bogus, "localhost") +
	smtpdtest.Host(office, "203-0-113-70.dsl.provider.example") +
	"mail.office.example A " + office + "\n" +
	"mail.elsewhere.example A " + proper + "\n"

// dyndns is the configuration of one filter-dyndns with these arguments.
func dyndns(r smtpdtest.Release, args string) smtpdtest.Config {
	return smtpdtest.Config{
		Release: r,
		Zone:    dyndnsZone,
		Filters: []smtpdtest.Filter{dyndnsFilter(args)},
	}
}

func dyndnsFilter(args string) smtpdtest.Filter {
	return smtpdtest.Filter{Name: "dyndns", Command: "filter-dyndns " + args}
}

// outcome sends a mail from src and tells in a word or two what became of it:
// "inbox", "junk", or the step, the reply's code and "closed".
func (s server) outcome(m smtpdtest.Mail) string {
	s.t.Helper()
	res := s.send(m)
	if !res.Accepted() {
		out := fmt.Sprint(res.Step, " ", res.Reply.Code)
		if res.Closed {
			out += " closed"
		}
		return out
	}
	all, err := s.WaitMail(m.To, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	if spam := slices.Equal(all[0].Header("X-Spam"), []string{"Yes"}); all[0].Junk != spam {
		s.t.Errorf("mail from %s: in .Junk %v, X-Spam: Yes %v", m.Src, all[0].Junk, spam)
	}
	if all[0].Junk {
		return "junk"
	}
	return "inbox"
}

// user makes a name for a mailbox out of text.
func user(text string) string { return regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(text, "-") }

func TestDyndnsDefaults(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, ""))
		for _, tt := range []struct{ src, helo, want, class string }{
			{proper, "", "inbox", ""},
			{dynamic, "", "junk", "dynamic"},
			{dynamic6, "", "junk", "dynamic"},
			{static, "", "inbox", "static"},
			{noname, "", "inbox", "none"},
			{nofwd, "", "inbox", "mismatch"},
			{bogus, "", "junk", "bogus"},
			{office, "", "junk", "dynamic"},
			{office, "mail.office.example", "inbox", ""},
			{office, "mail.elsewhere.example", "junk", "dynamic"},
			{"127.0.0.9", "", "inbox", ""},
		} {
			m := smtpdtest.Mail{Src: tt.src, Helo: tt.helo, To: user(tt.src + " " + tt.helo)}
			if got := s.outcome(m); got != tt.want {
				t.Errorf("from %s with HELO %q: %s, want %s", tt.src, tt.helo, got, tt.want)
			}
			if tt.want == "junk" {
				if _, err := s.WaitLog("filter=dyndns", "reason="+tt.class, "action=junk", "addr="+tt.src); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestDyndnsActions(t *testing.T) {
	steps := map[string]string{"connect": "greeting", "helo": "EHLO", "mail-from": "MAIL", "rcpt-to": "RCPT", "data": "DATA"}
	for phase, step := range steps {
		for action, reply := range map[string]string{"proceed": "", "junk": "", "refuse": "550", "defer": "451", "disconnect": "550 closed"} {
			t.Run(phase+"/"+action, func(t *testing.T) {
				want := map[string]string{"proceed": "inbox", "junk": "junk"}[action]
				if reply != "" {
					want = step + " " + reply
				}
				if phase == "connect" && (action == "refuse" || action == "defer") {
					want += " closed" // a reject would leave the client without a greeting
				}
				forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
					s := start(t, dyndns(r, "-dynamic "+action+" -phase "+phase))
					for i, src := range []string{dynamic, dynamic6} {
						if got := s.outcome(smtpdtest.Mail{Src: src, To: fmt.Sprint("bob", i)}); got != want {
							t.Errorf("from %s: %s, want %s", src, got, want)
						}
					}
					if got := s.outcome(smtpdtest.Mail{Src: proper, To: "carol"}); got != "inbox" {
						t.Errorf("from %s: %s, want inbox", proper, got)
					}
				})
			})
		}
	}
}

// Every class has its own action, and its own reply.
func TestDyndnsReplies(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, "-dynamic refuse -static defer -none refuse -mismatch defer -bogus refuse"))
		for src, want := range map[string]string{
			dynamic:  "550 5.7.1 [203.0.113.20] p203-0-113-20.dip.provider.example looks like",
			dynamic6: "550 5.7.1 [2001:db8:2f0f:5e00:e15a:1b2e:1d2a:ce20] p20010db8",
			static:   "451 4.7.1 [203.0.113.30] 203-0-113-30.static.provider.example",
			noname:   "550 5.7.25 [203.0.113.40]",
			nofwd:    "451 4.7.25 [203.0.113.50]",
			bogus:    "550 5.7.25 [203.0.113.60]",
		} {
			res := s.send(smtpdtest.Mail{Src: src, To: "bob"})
			if res.Step != "MAIL" || !strings.HasPrefix(res.Reply.String(), want) {
				t.Errorf("from %s: %v, want MAIL: %s...", src, res, want)
			}
		}
	})
	t.Run("own", func(t *testing.T) {
		forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
			s := start(t, dyndns(r, "-dynamic refuse -reply '550 5.7.1 [%i] %n is not a mail server'"))
			res := s.send(smtpdtest.Mail{Src: dynamic, To: "bob"})
			const want = "550 5.7.1 [203.0.113.20] p203-0-113-20.dip.provider.example is not a mail server"
			if res.Reply.String() != want {
				t.Errorf("%v, want %s", res, want)
			}
		})
	})
}

func TestDyndnsSlow(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, "-dynamic slow:1s"))
		begin := time.Now()
		if got := s.outcome(smtpdtest.Mail{Src: dynamic, To: "bob"}); got != "inbox" {
			t.Errorf("%s, want inbox", got)
		}
		if took := time.Since(begin); took < time.Second {
			t.Errorf("took %v, want at least 1s", took)
		}
	})
}

func TestDyndnsDryRun(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, "-dynamic refuse -dryRun"))
		if got := s.outcome(smtpdtest.Mail{Src: dynamic, To: "bob"}); got != "inbox" {
			t.Errorf("%s, want inbox", got)
		}
		if _, err := s.WaitLog("filter=dyndns", "reason=dynamic", "addr="+dynamic); err != nil {
			t.Error(err)
		}
	})
}

func TestDyndnsLogin(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		if !r.TLS {
			t.Skipf("OpenSMTPD %s has no working TLS with OpenSSL 3", r.Version)
		}
		for _, action := range []string{"junk", "refuse"} {
			for _, phase := range []string{"mail-from", "rcpt-to"} {
				t.Run(action+"/"+phase, func(t *testing.T) {
					c := dyndns(r, "-dynamic "+action+" -phase "+phase)
					c.TLS = true
					s := start(t, c)
					if got := s.outcome(smtpdtest.Mail{Src: dynamic, To: "bob", Login: true}); got != "inbox" {
						t.Errorf("logged in: %s, want inbox", got)
					}
					if got := s.outcome(smtpdtest.Mail{Src: dynamic, To: "carol"}); got == "inbox" {
						t.Errorf("not logged in: %s", got)
					}
				})
			}
		}
	})
}

// A junk decision keeps smtpd from asking the rest of the chain at that
// phase; the filter decides at the next one it is asked at.
func TestDyndnsChain(t *testing.T) {
	other := func(script string) smtpdtest.Filter {
		return smtpdtest.Filter{Name: "other", Command: "scripted " + script}
	}
	for _, tt := range []struct {
		name            string
		chain           []smtpdtest.Filter
		dynamic, proper string
	}{
		{"junk at connect, then dyndns at connect",
			[]smtpdtest.Filter{other("connect junk"), dyndnsFilter("-dynamic refuse -phase connect")},
			"EHLO 550", "junk"},
		{"junk at connect, then dyndns at mail-from",
			[]smtpdtest.Filter{other("connect junk"), dyndnsFilter("-dynamic refuse")},
			"MAIL 550", "junk"},
		{"junk at mail-from, then dyndns at mail-from",
			[]smtpdtest.Filter{other("mail-from junk"), dyndnsFilter("-dynamic refuse")},
			"RCPT 550", "junk"},
		{"junk at mail-from, then dyndns disconnects",
			[]smtpdtest.Filter{other("mail-from junk"), dyndnsFilter("-dynamic disconnect")},
			"RCPT 550 closed", "junk"},
		{"junk at rcpt-to, then dyndns at rcpt-to",
			[]smtpdtest.Filter{other("rcpt-to junk"), dyndnsFilter("-dynamic refuse -phase rcpt-to")},
			"DATA 550", "junk"},
		{"rewrite at mail-from, then dyndns",
			[]smtpdtest.Filter{other("mail-from rewrite '<other@example.net>'"), dyndnsFilter("-dynamic refuse")},
			"RCPT 550", "inbox"},
		{"dyndns junks at connect, then a reject at connect",
			[]smtpdtest.Filter{dyndnsFilter("-phase connect"), other("connect disconnect '550 5.7.1 no'")},
			"junk", "greeting 550 closed"},
		{"dyndns junks at connect, then a reject at mail-from",
			[]smtpdtest.Filter{dyndnsFilter("-phase connect"), other("mail-from reject '550 5.7.1 no'")},
			"MAIL 550", "MAIL 550"},
		{"dyndns junks at mail-from, then a reject at rcpt-to",
			[]smtpdtest.Filter{dyndnsFilter(""), other("rcpt-to reject '550 5.7.1 no'")},
			"RCPT 550", "RCPT 550"},
		{"dyndns with header, after junk",
			[]smtpdtest.Filter{other("connect junk"), dyndnsFilter("-header -dynamic proceed")},
			"junk", "junk"},
	} {
		t.Run(user(tt.name), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				s := start(t, smtpdtest.Config{Release: r, Zone: dyndnsZone, Filters: tt.chain})
				if got := s.outcome(smtpdtest.Mail{Src: dynamic, To: "bob"}); got != tt.dynamic {
					t.Errorf("dynamic client: %s, want %s", got, tt.dynamic)
				}
				if got := s.outcome(smtpdtest.Mail{Src: proper, To: "carol"}); got != tt.proper {
					t.Errorf("proper client: %s, want %s", got, tt.proper)
				}
			})
		})
	}
}

// The configuration of the tutorials, with smtpd's own filters and with one
// filter-dyndns, does the same to the same clients.
func TestDyndnsTutorial(t *testing.T) {
	clients := map[string]string{ // address to reverse name
		"203.0.113.101": "host.dyn.provider.example",
		"203.0.113.102": "a.b.dsl.provider.example",
		"203.0.113.103": "x.DYN.provider.example",
		"203.0.113.104": "dyn.provider.example", // no dot before dyn
		"203.0.113.105": "mail.dynamics.example",
		proper:          "mail.sender.example",
		noname:          "",
		nofwd:           "mail.forged.example",
	}
	zone := ""
	for addr, name := range clients {
		switch {
		case addr == nofwd:
			zone += smtpdtest.Pointer(addr, name)
		case name != "":
			zone += smtpdtest.Host(addr, name)
		}
	}
	for _, tt := range []struct{ name, decision, action, refused string }{
		{"junk", "junk", "junk", "junk"},
		{"disconnect", `disconnect "550 5.7.1 no"`, "disconnect", "greeting 550 closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				builtin := []smtpdtest.Filter{
					{Name: "dyn", Builtin: `phase connect match rdns regex { '.*\.dyn\..*', '.*\.dsl\..*' } ` + tt.decision},
					{Name: "nordns", Builtin: `phase connect match !rdns ` + tt.decision},
					{Name: "nofcrdns", Builtin: `phase connect match !fcrdns ` + tt.decision},
				}
				ours := []smtpdtest.Filter{dyndnsFilter(`-phase connect -expr '.*\.dyn\..*' -expr '.*\.dsl\..*' ` +
					strings.ReplaceAll("-dynamic A -none A -mismatch A", "A", tt.action))}
				got := map[string]map[string]string{}
				for which, filters := range map[string][]smtpdtest.Filter{"builtin": builtin, "ours": ours} {
					t.Run(which, func(t *testing.T) {
						s := start(t, smtpdtest.Config{Release: r, Zone: zone, Filters: filters})
						got[which] = map[string]string{}
						for addr := range clients {
							got[which][addr] = s.outcome(smtpdtest.Mail{Src: addr, To: user(addr)})
						}
					})
				}
				refused := 0
				for addr, name := range clients {
					if a, b := got["builtin"][addr], got["ours"][addr]; a != b {
						t.Errorf("%s %q: smtpd's own filters %s, filter-dyndns %s", addr, name, a, b)
					}
					if got["builtin"][addr] == tt.refused {
						refused++
					}
				}
				if refused < 4 || refused == len(clients) {
					t.Errorf("smtpd's own filters hit %d of %d clients; the test shows nothing", refused, len(clients))
				}
			})
		})
	}
}

func TestDyndnsHeader(t *testing.T) {
	const forged = "x-rdns-class: proper\r\n" +
		"Subject: hello\r\n" +
		"X-Rdns-Class: proper\r\n (folded)\r\n\tX-Rdns-Class: proper\r\n" +
		"X-Rdns-Class : proper\r\n" +
		".X-Rdns-Class: proper\r\n. (folded)\r\n" + // smtpd takes the dots away
		"X-Rdns-Classes: kept\r\n" +
		"X-RDNS-CLASS:\r\n proper\r\n" +
		"\r\n" +
		"X-Rdns-Class: body\r\n..dot\r\n"
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, "-header -dynamic proceed"))
		for src, class := range map[string]string{dynamic: "dynamic", dynamic6: "dynamic", static: "static", proper: "proper"} {
			m := s.deliver(smtpdtest.Mail{Src: src, To: user(src), Data: forged})
			got := m.Header("X-Rdns-Class")
			if len(got) != 1 || !strings.HasPrefix(got[0]+" ", class+" ") {
				t.Errorf("from %s: X-Rdns-Class %q, want one %q", src, got, class)
			}
			head, _, _ := strings.Cut(m.Text, "\n\n")
			if n := strings.Count(strings.ToLower(head), "x-rdns-class:"); n != 1 || strings.Contains(head, "proper\n (folded)") || strings.Contains(head, "X-Rdns-Class :") {
				t.Errorf("from %s: forged header left:\n%s", src, head)
			}
			if !slices.Equal(m.Header("X-Rdns-Classes"), []string{"kept"}) || !slices.Equal(m.Header("Subject"), []string{"hello"}) {
				t.Errorf("from %s: other header fields lost:\n%s", src, head)
			}
			if m.Body() != "X-Rdns-Class: body\n.dot\n" {
				t.Errorf("from %s: body %q", src, m.Body())
			}
		}
	})
}

// Lines that are too long for smtpd's filter channel are split. What follows
// the split must not end the message, and the commands after it must stay
// text.
func TestDyndnsLongLines(t *testing.T) {
	const commands = "QUIT\r\nRSET\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nsmuggled\r\n"
	// A line that is split begins its next piece after so many bytes, less
	// a few for what was added before.
	var lines []string
	for _, split := range []int{1997, 65485} {
		for n := split - 3; n <= split+3; n++ {
			for _, tail := range []string{".", ".x", "..", ".\r"} {
				lines = append(lines, strings.Repeat("a", n)+tail)
			}
		}
	}
	lines = append(lines,
		strings.Repeat("a", 3*1997)+strings.Repeat(".", 3*1997),
		strings.Repeat("a", 65533),
		"..", // as sent: a stuffed dot
		strings.Repeat(".", 65533),
	)
	header := strings.Repeat("h", 3000-len("X-Long: "))
	header2 := strings.Repeat("i", 65500-len("X-Longer: "))

	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, dyndns(r, "-header -dynamic proceed"))
		for i, line := range lines {
			to := fmt.Sprint("bob", i)
			data := "Subject: long\r\n\r\n" + line + "\r\n" + commands
			m := s.deliver(smtpdtest.Mail{Src: dynamic, To: to, Data: data})
			want := strings.TrimPrefix(line, ".") + "\n" + strings.ReplaceAll(commands, "\r\n", "\n")
			// The line may have come in pieces.
			got, rest, _ := strings.Cut(m.Body(), "QUIT\n")
			got = strings.ReplaceAll(got, "\n", "") + "\nQUIT\n" + rest
			if got != want {
				t.Errorf("line of %d %q, then %q: arrived as %s, want %s", len(line), line[:1], line[max(0, len(line)-3):], brief(got), brief(want))
			}
		}
		m := s.deliver(smtpdtest.Mail{Src: dynamic, To: "carol", Data: "X-Long: " + header + "\r\nX-Longer: " + header2 + "\r\nSubject: long\r\n\r\n" + commands})
		for name, want := range map[string]string{"X-Long": header, "X-Longer": header2, "Subject": "long"} {
			// net/mail unfolds to one blank.
			got := strings.ReplaceAll(strings.Join(m.Header(name), ","), " ", "")
			if got != want {
				t.Errorf("%s: arrived as %s, want %s", name, brief(got), brief(want))
			}
		}
		if want := strings.ReplaceAll(commands, "\r\n", "\n"); m.Body() != want {
			t.Errorf("body under long header: %s", brief(m.Body()))
		}
		if n := len(m.Header("X-Rdns-Class")); n != 1 {
			t.Errorf("%d X-Rdns-Class under long header, want 1", n)
		}
		for _, line := range []string{"victim", "evil@"} {
			if strings.Contains(s.Log(), line) {
				t.Errorf("smtpd.log mentions %q: text was run as SMTP", line)
			}
		}
		if all, err := s.Mail("victim"); err != nil || len(all) != 0 {
			t.Errorf("%d smuggled mails, %v", len(all), err)
		}
	})
}

// brief shortens runs of one byte in s.
func brief(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		n := 1
		for i+n < len(s) && s[i+n] == s[i] {
			n++
		}
		if n > 3 {
			fmt.Fprintf(&b, "%q*%d ", s[i], n)
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return fmt.Sprintf("%.400q", b.String())
}

// Odd bytes arrive with the filter as they do without it.
func TestDyndnsOddBytes(t *testing.T) {
	const data = "Subject: odd\xff\r\nX-Odd: a|b|c\r\n\r\n" +
		"a|b|\r\n|\r\nbare\nLF\r\nbare\rCR\r\ntwo\r\r\nnul\x00gone\r\n\x80\xff\xfe\r\n..\r\n.. \r\n \r\n\t.\r\nfilter-result|x|y|junk\r\n"
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		bodies := map[string]string{}
		for name, c := range map[string]smtpdtest.Config{"without": {Release: r}, "with": dyndns(r, "-header -dynamic proceed")} {
			t.Run(name, func(t *testing.T) {
				s := start(t, c)
				m := s.deliver(smtpdtest.Mail{Src: dynamic, To: "bob", Data: data})
				bodies[name] = m.Body()
			})
		}
		if bodies["with"] != bodies["without"] || bodies["with"] == "" {
			t.Errorf("with the filter:\n%q\nwithout:\n%q", bodies["with"], bodies["without"])
		}
	})
}

// What the resolver does not know is no reason to act.
func TestDyndnsResolverTrouble(t *testing.T) {
	const args = "-timeout 1s -none refuse -mismatch refuse -bogus refuse "
	for _, tt := range []struct{ name, args, zone, hosts, resolv, src, want string }{
		{"servfail", args, smtpdtest.Reverse(noname) + " servfail\n", "", "", noname, "inbox"},
		{"refused", args, smtpdtest.Reverse(noname) + " refused\n", "", "", noname, "inbox"},
		{"forward servfail", args, smtpdtest.Pointer(nofwd, "mail.forged.example") + "mail.forged.example servfail\n", "", "", nofwd, "inbox"},
		{"dropped", args + "-resolver 127.0.0.1", "* drop\n", "", "lookup file\n", noname, "inbox"},
		{"no resolver", args, "", "", "", noname, "inbox"},
		// The name is enough; that nobody answers about the HELO name changes nothing.
		{"dropped, dynamic", args + "-resolver 127.0.0.1", "* drop\n", dynamic + " p203-0-113-20.dip.provider.example\n", "lookup file\n", dynamic, "junk"},
		{"no resolver, dynamic", args, "", dynamic + " p203-0-113-20.dip.provider.example\n", "", dynamic, "junk"},
		{"clear answer", args, dyndnsZone, "", "", noname, "MAIL 550"},
		{"clear mismatch", args, dyndnsZone, "", "", nofwd, "MAIL 550"},
		// smtpd's first question fails, the filter's own does not.
		{"recovered", args, smtpdtest.Host(proper, "mail.sender.example") + smtpdtest.Reverse(proper) + " servfail 1\n", "", "", proper, "inbox"},
	} {
		t.Run(user(tt.name), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				s := start(t, smtpdtest.Config{
					Release: r, Zone: tt.zone, Hosts: tt.hosts, Resolv: tt.resolv,
					Filters: []smtpdtest.Filter{dyndnsFilter(tt.args)},
				})
				if got := s.outcome(smtpdtest.Mail{Src: tt.src, To: "bob"}); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
			})
		})
	}
}

// smtpd cuts reverse names at 64 characters on Linux and then finds that
// they do not match.
func TestDyndnsCutNames(t *testing.T) {
	long := strings.Repeat("a-long-label.", 4)
	zone := smtpdtest.Host("203.0.113.111", "mail."+long+"quite-proper.sender.example") +
		smtpdtest.Host("203.0.113.112", "203-0-113-112."+long+"cable.dynamic.surfer.example") +
		smtpdtest.Pointer("203.0.113.113", "mail."+long+"quite-forged.sender.example")
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := dyndns(r, "-dynamic defer -mismatch refuse")
		c.Zone = zone
		s := start(t, c)
		for src, want := range map[string]string{"203.0.113.111": "inbox", "203.0.113.112": "MAIL 451", "203.0.113.113": "MAIL 550"} {
			if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != want {
				t.Errorf("from %s: %s, want %s", src, got, want)
			}
		}
	})
}

func TestDyndnsFiles(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := dyndns(r, "-dynamic refuse -none refuse -allowNames /run/test/allow -match /run/test/match -allowClients /run/test/nets")
		c.Files = map[string]string{
			"allow": "# customers\n\\.dsl\\.provider\\.example$\n",
			"match": "^mail\\.sender\\.example$\n*.static.provider.example\n",
			"nets":  "2001:db8::/32\n" + noname + "\n",
		}
		s := start(t, c)
		for src, want := range map[string]string{
			office: "inbox", dynamic6: "inbox", noname: "inbox",
			proper: "MAIL 550", static: "MAIL 550", dynamic: "MAIL 550",
			"203.0.113.41": "MAIL 550",
		} {
			if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != want {
				t.Errorf("from %s: %s, want %s", src, got, want)
			}
		}
	})
}

func TestDyndnsReload(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := dyndns(r, "-dynamic refuse -allowNames /run/test/allow")
		c.Files = map[string]string{"allow": "nothing-yet\n"}
		s := start(t, c)
		sendUntil := func(want string) {
			t.Helper()
			if err := s.Signal("filter-dyndns", syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			got := ""
			for i := 0; got != want && i < 600; i++ {
				if got = "accepted"; !s.send(smtpdtest.Mail{Src: dynamic, To: "bob"}).Accepted() {
					got = "refused"
				}
				time.Sleep(10 * time.Millisecond)
			}
			if got != want {
				t.Fatalf("mail is still %s", got)
			}
		}
		sendUntil("refused")
		if err := s.WriteFile("allow", "\\.dip\\.provider\\.example$\n"); err != nil {
			t.Fatal(err)
		}
		sendUntil("accepted")
	})
}

// Names as they are in the world, each from its own address, all at once.
func TestDyndnsManyClients(t *testing.T) {
	text, err := os.ReadFile("../pkg/rdns/testdata/rdns-labelled.tsv")
	if err != nil {
		t.Fatal(err)
	}
	type client struct{ label, addr, name string }
	var clients []client
	zone := ""
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(line, "#") || len(f) < 3 {
			continue
		}
		if slices.ContainsFunc(clients, func(c client) bool { return c.addr == f[1] || c.name == f[2] }) {
			continue // one name an address
		}
		clients = append(clients, client{f[0], f[1], f[2]})
		zone += smtpdtest.Host(f[1], f[2])
	}
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := dyndns(r, "-dynamic refuse -generic refuse -static refuse -hosting refuse -bogus refuse")
		c.Zone = zone
		s := start(t, c)
		results := make([]smtpdtest.Result, len(clients))
		errs := make([]error, len(clients))
		slots := make(chan bool, 5) // smtpd listens with a backlog of 5
		var wg sync.WaitGroup
		for i, c := range clients {
			slots <- true
			wg.Go(func() {
				defer func() { <-slots }()
				results[i], errs[i] = s.Send(smtpdtest.Mail{Src: c.addr, To: "bob"})
			})
		}
		wg.Wait()
		total, flagged := map[string]int{}, map[string]int{}
		for i, c := range clients {
			if errs[i] != nil {
				t.Errorf("%s %s: %v", c.addr, c.name, errs[i])
				continue
			}
			total[c.label]++
			switch {
			case results[i].Step == "MAIL" && results[i].Reply.Code == 550:
				flagged[c.label]++
				if c.label == "legit" {
					t.Errorf("%s %s: refused: %v", c.addr, c.name, results[i])
				}
			case !results[i].Accepted():
				t.Errorf("%s %s: %v", c.addr, c.name, results[i])
			}
		}
		if got := float64(flagged["dynamic"]) / float64(total["dynamic"]); !(got >= 0.94) {
			t.Errorf("%d of %d dynamic clients refused, want 94 %%", flagged["dynamic"], total["dynamic"])
		}
		t.Logf("refused %v of %v", flagged, total)
	})
}

// Without smtpd: flags are checked before the first line of the protocol.
func TestDyndnsFlags(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("\\.fine\\.example$\n(\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		says   string
	}{
		{"-n", 0, "dynamic"},
		{"-version", 0, ""},
		{"-n -dynamic refuse -phase rcpt-to", 0, "refuse"},
		{"-dynamic nonsense", 1, "nonsense"},
		{"-phase commit", 1, "commit"},
		{"-expr (", 1, "("},
		{"-noSuchFlag", 1, "noSuchFlag"},
		{"extra", 1, "extra"},
		{"-reply 250", 1, "250"},
		{"-dynamic slow:x", 1, "slow:x"},
		{"-n -match " + dir + "/missing", 1, "missing"},
		{"-n -match " + bad, 1, bad + ":2"},
	} {
		t.Run(user(tt.args), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "filter-dyndns"), strings.Fields(tt.args)...)
			out, _ := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatal("did not run")
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.status {
				t.Errorf("status %d, want %d:\n%s", got, tt.status, out)
			}
			if !strings.Contains(string(out), tt.says) {
				t.Errorf("does not say %q:\n%s", tt.says, out)
			}
			if strings.Contains(string(out), "register|") {
				t.Errorf("registers:\n%s", out)
			}
		})
	}
}

// What smtpd does not tell, and what it does not take, is no way around a verdict:
// a recipient of over 255 bytes beside an exempt one, and a sender whose options
// are wrong before another.
func TestDyndnsUntold(t *testing.T) {
	for name, tt := range map[string]struct {
		phase string
		steps [][2]string // a command, and how its reply begins
	}{
		"recipient": {"data", [][2]string{
			{"MAIL FROM:<a@spam.example>", "250"},
			{"RCPT TO:<postmaster@example.org>", "250"},
			{"RCPT TO:<bob+" + strings.Repeat("x", 248) + "@example.org>", "250"},
			{"DATA", "550 5.7.1"},
		}},
		"option": {"mail-from", [][2]string{
			{"MAIL FROM:<a@always.example> BAD=OPTION", "50"},
			{"MAIL FROM:<a@spam.example>", "550 5.7.1"},
		}},
		"refused": {"mail-from", [][2]string{
			{"MAIL FROM:<a@spam.example>", "550 5.7.1"},
			{"MAIL FROM:<a@always.example>", "250"},
		}},
		// A client may say nothing of which a report tells for as long as it likes.
		"quiet": {"mail-from", append(slices.Repeat([][2]string{{"NOOP", "250"}}, 500), [2]string{"MAIL FROM:<a@spam.example>", "550 5.7.1"})},
	} {
		t.Run(name, func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				conf := dyndns(r, "-dynamic refuse -phase "+tt.phase+" -allowSenders "+smtpdtest.Dir+"/senders")
				conf.Files = map[string]string{"senders": "!always.example\n"}
				c, err := start(t, conf).Dial(dynamic)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				if reply, err := c.Reply(); err != nil || reply.Code != 220 {
					t.Fatalf("greeting: %v, %v", reply, err)
				}
				for _, step := range append([][2]string{{"EHLO pc", "250"}}, tt.steps...) {
					reply, err := c.Do(step[0])
					if err != nil || !strings.HasPrefix(reply.String(), step[1]) {
						t.Fatalf("%.40s: %v, %v, want %s...", step[0], reply, err, step[1])
					}
				}
			})
		})
	}
}
