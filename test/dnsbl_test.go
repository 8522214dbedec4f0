//go:build linux

package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

const listDNS = "127.0.0.1:5301"

// postscreenSites is a postscreen_dnsbl_sites as it stands in many a main.cf.
const postscreenSites = `
	zen.spamhaus.org*3
	b.barracudacentral.org=127.0.0.[2..11]*2
	bl.spameatingmonkey.net*2
	bl.spamcop.net
	dnsbl.sorbs.net
	swl.spamhaus.org*-4,
	list.dnswl.org=127.[0..255].[0..255].0*-2,
	list.dnswl.org=127.[0..255].[0..255].1*-4,
	list.dnswl.org=127.[0..255].[0..255].[2..3]*-6
`

var postscreenLists = []string{
	"zen.spamhaus.org", "b.barracudacentral.org", "bl.spameatingmonkey.net", "bl.spamcop.net", "swl.spamhaus.org", "list.dnswl.org",
}

type listZone struct{ zone, kind, data string }

// listZones are the lists, served by rbldnsd: zone and type, and data.
var listZones = []listZone{
	{"zen.spamhaus.org", "ip4set", "127.0.0.2 :2:\n127.0.0.2 :10:\n203.0.113.1 :2:listed $\n203.0.113.1 :9:\n203.0.113.3 :10:\n203.0.113.6/31 :4:\n"},
	{"zen.spamhaus.org", "ip6trie", ":127.0.0.3:snowshoe $\n2001:db8:bad::/48\n!2001:db8:bad::1\n"},
	{"b.barracudacentral.org", "ip4set", "127.0.0.2 :2:\n203.0.113.2 :2:\n203.0.113.8 :12:\n"},
	{"bl.spameatingmonkey.net", "ip4set", "127.0.0.2 :2:\n203.0.113.4 :2:\n"},
	{"bl.spamcop.net", "ip4set", "127.0.0.2 :2:\n203.0.113.4 :2:\n"},
	{"dnsbl.sorbs.net", "ip4set", "0.0.0.0/1 :2:\n128.0.0.0/1 :2:\n"},
	{"swl.spamhaus.org", "ip4set", "127.0.0.2 :2:\n203.0.113.7 :2:\n"},
	{"list.dnswl.org", "ip4set", "127.0.0.2 :127.0.10.0:\n203.0.113.3 :127.0.5.2:\n203.0.113.6 :127.0.15.0:\n"},
	{"d.example.net", "dnset", ":127.0.1.2:spam domain\ntest\n.bad.example\n"},
	{"abcdefghij0123456789klmnop.example.net", "ip4set", ":2:see https://x.example/abcdefghij0123456789klmnop\n127.0.0.2\n203.0.113.1\n"},
	{"world.example.net", "ip4set", "0.0.0.0/1 :2:\n128.0.0.0/1 :2:\n"},
}

// serveLists serves listZones for the rest of the test.
func serveLists(t *testing.T) {
	t.Helper()
	serveZones(t, listDNS, listZones)
}

// serveZones serves zones at an address for the rest of the test.
func serveZones(t *testing.T, at string, zones []listZone) {
	t.Helper()
	rbldnsd, err := exec.LookPath("rbldnsd")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("rbldnsd is not installed: run test/install.sh")
	}
	dir, err := os.MkdirTemp("", "lists") // t.TempDir is not for other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-e", "-u", "nobody", "-b", strings.Replace(at, ":", "/", 1)}
	for i, z := range zones {
		file := filepath.Join(dir, fmt.Sprint(i))
		data := "$SOA 3000 ns.example.net root.example.net 0 600 300 86400 300\n" + z.data
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, z.zone+":"+z.kind+":"+file)
	}
	background(t, rbldnsd, args...)
	ask := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", at)
	}}
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := ask.LookupHost(t.Context(), "2.0.0.127."+zones[0].zone+".")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("rbldnsd does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func dnsbl(r smtpdtest.Release, args string) smtpdtest.Config {
	return smtpdtest.Config{
		Release: r,
		Files:   map[string]string{"sites": postscreenSites},
		Filters: []smtpdtest.Filter{{Name: "dnsbl", Command: "filter-dnsbl -v -timeout 20s -phase connect -resolver " + listDNS + " " + args}},
	}
}

// tested waits until the filter has tested its lists.
func (s server) tested(lists ...string) {
	s.t.Helper()
	for _, l := range lists {
		if _, err := s.WaitLog("list tested", "list="+l+" ", "health=good"); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Postscreen's lists, each with what it adds.
func TestDnsblPostscreen(t *testing.T) {
	clients := map[string]struct{ want, score string }{
		"203.0.113.1":        {"greeting 550 closed", "3 (zen.spamhaus.org=3)"},
		"203.0.113.2":        {"junk", "2 (b.barracudacentral.org=2)"},
		"203.0.113.3":        {"inbox", "-3 (zen.spamhaus.org=3, list.dnswl.org=-6)"},
		"203.0.113.4":        {"greeting 550 closed", "3 (bl.spameatingmonkey.net=2, bl.spamcop.net=1)"},
		"203.0.113.6":        {"inbox", "1 (zen.spamhaus.org=3, list.dnswl.org=-2)"},
		"203.0.113.7":        {"inbox", "-1 (zen.spamhaus.org=3, swl.spamhaus.org=-4)"},
		"203.0.113.8":        {"inbox", "0"},
		"203.0.113.9":        {"inbox", "0"},
		"2001:db8:bad::1":    {"inbox", "0"},
		"2001:db8:bad:1::25": {"greeting 550 closed", "3 (zen.spamhaus.org=3)"},
		"192.168.1.1":        {"inbox", ""},
	}
	for _, mode := range []string{"", "-dryRun -header "} {
		t.Run("mode"+strings.TrimSpace(mode), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				serveLists(t)
				s := start(t, dnsbl(r, mode+"-blockAt 3 -junkAt 2 @/run/test/sites"))
				s.tested(postscreenLists...)
				if _, err := s.WaitLog("list dnsbl.sorbs.net is not asked", "emptied 2024-06"); err != nil {
					t.Error(err)
				}
				for addr, c := range clients {
					if mode == "" {
						if got := s.outcome(smtpdtest.Mail{Src: addr, To: user(addr)}); got != c.want {
							t.Errorf("from %s: %s, want %s", addr, got, c.want)
						}
						continue
					}
					m := s.deliver(smtpdtest.Mail{Src: addr, To: user(addr), Data: "X-DNSBL-Score: -99\r\nSubject: x\r\n\r\nx\r\n"})
					if got := strings.Join(m.Header("X-DNSBL-Score"), ";"); got != c.score {
						t.Errorf("from %s: score %q, want %q", addr, got, c.score)
					}
				}
			})
		})
	}
}

// Given as one argument of the command, as the page shows.
func TestDnsblArgument(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		s := start(t, dnsbl(r, "-blockAt 3 'zen.spamhaus.org=127.0.0.[2..11]*3 list.dnswl.org=127.0.[0..255].[1..3]*-2'"))
		s.tested("zen.spamhaus.org", "list.dnswl.org")
		for addr, want := range map[string]string{"203.0.113.1": "greeting 550 closed", "203.0.113.3": "inbox", "203.0.113.6": "greeting 550 closed", "203.0.113.9": "inbox"} {
			if got := s.outcome(smtpdtest.Mail{Src: addr, To: user(addr)}); got != want {
				t.Errorf("from %s: %s, want %s", addr, got, want)
			}
		}
		res := s.send(smtpdtest.Mail{Src: "203.0.113.1", To: "bob"})
		if want := "550 5.7.1 Service unavailable; client [203.0.113.1] blocked using zen.spamhaus.org"; res.Reply.String() != want {
			t.Errorf("%v, want %s", res.Reply, want)
		}
		if _, err := s.WaitLog("filter=dnsbl", "action=refuse", "addr=203.0.113.1 ", "zen.spamhaus.org=3"); err != nil {
			t.Error(err)
		}
	})
}

func TestDnsblPhases(t *testing.T) {
	for phase, step := range map[string]string{"connect": "greeting 550 closed", "helo": "EHLO 550", "mail-from": "MAIL 550", "rcpt-to": "RCPT 550", "data": "DATA 550"} {
		t.Run(phase, func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				serveLists(t)
				s := start(t, dnsbl(r, "-blockAt 3 -junkAt 2 -phase "+phase+" @/run/test/sites"))
				s.tested(postscreenLists...)
				for addr, want := range map[string]string{"203.0.113.1": step, "203.0.113.2": "junk", "203.0.113.9": "inbox"} {
					if got := s.outcome(smtpdtest.Mail{Src: addr, To: user(addr)}); got != want {
						t.Errorf("from %s: %s, want %s", addr, got, want)
					}
				}
			})
		})
	}
}

// Domain lists, and users who have authenticated.
func TestDnsblDomains(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		c := dnsbl(r, "-blockAt 5 -phase mail-from d.example.net*5+helo+from+rdns")
		c.TLS = r.TLS
		c.Hosts = "203.0.113.50 mail.bad.example\n"
		s := start(t, c)
		s.tested("d.example.net")
		for i, tt := range []struct{ src, helo, sender, want string }{
			{"203.0.113.9", "good.example", "x@good.example", "inbox"},
			{"203.0.113.9", "mail.bad.example", "x@good.example", "MAIL 550"},
			{"203.0.113.9", "good.example", "x@bad.example", "MAIL 550"},
			{"203.0.113.50", "good.example", "x@good.example", "MAIL 550"},
			{"203.0.113.9", "[203.0.113.9]", "x@good.example", "inbox"},
		} {
			if got := s.outcome(smtpdtest.Mail{Src: tt.src, Helo: tt.helo, Sender: tt.sender, To: fmt.Sprint("bob", i)}); got != tt.want {
				t.Errorf("%+v: %s", tt, got)
			}
		}
		if c.TLS {
			if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.50", Helo: "mail.bad.example", Login: true, To: "carol"}); got != "inbox" {
				t.Errorf("a user: %s", got)
			}
		}
	})
}

// A list that lists the world, one that is not there, and a resolver that is
// not.
func TestDnsblTrouble(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		s := start(t, dnsbl(r, "-blockAt 3 world.example.net*9 refused.example.org*9 zen.spamhaus.org*3"))
		s.tested("zen.spamhaus.org")
		if _, err := s.WaitLog("list is sick", "list=world.example.net", "lists the world"); err != nil {
			t.Error(err)
		}
		for addr, want := range map[string]string{"203.0.113.1": "greeting 550 closed", "203.0.113.9": "inbox"} {
			if got := s.outcome(smtpdtest.Mail{Src: addr, To: user(addr)}); got != want {
				t.Errorf("from %s: %s, want %s", addr, got, want)
			}
		}
	})
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		c := dnsbl(r, "")
		c.Filters[0].Command = "filter-dnsbl -phase connect -timeout 500ms -blockAt 1 zen.spamhaus.org"
		c.Resolv = "nameserver 9.9.9.9\n" // here this is the host itself, where nobody answers
		s := start(t, c)
		if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.1", To: "bob"}); got != "inbox" {
			t.Errorf("without a resolver: %s", got)
		}
		if _, err := s.WaitLog("a public resolver is asked", "9.9.9.9"); err != nil {
			t.Error(err)
		}
	})
}

// A key is in no reply, header or line of the log.
func TestDnsblKey(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		c := dnsbl(r, "-blockAt 1 -phase rcpt-to -header -reply '550 %l: %r' @/run/test/keys")
		c.Files["keys"] = "abcdefghij0123456789klmnop.example.net+txt # mine\n"
		s := start(t, c)
		s.tested("KEY.example.net")
		res := s.send(smtpdtest.Mail{Src: "203.0.113.1", To: "bob"})
		if want := "550 KEY.example.net: see https://x.example/KEY"; res.Reply.String() != want {
			t.Errorf("%v, want %s", res.Reply, want)
		}
		m := s.deliver(smtpdtest.Mail{Src: "203.0.113.9", To: "carol"})
		if text := s.Log() + m.Text; strings.Contains(strings.ToLower(text), "abcdefghij") {
			t.Errorf("the key is shown")
		}
	})
}
