//go:build linux

package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"opensmtpd-filters/test/smtpdtest"
)

// Below, the harness itself: that it sees what a filter does, and that it
// would see a dead one.

func TestScriptedDecisions(t *testing.T) {
	for _, tt := range []struct {
		script string
		want   string // of the result; "" means taken
		closed bool
		junk   bool
	}{
		{script: "connect proceed"},
		{script: "connect junk", junk: true},
		{script: "mail-from junk", junk: true},
		{script: "rcpt-to junk", junk: true},
		{script: "connect disconnect '550 5.7.1 not here'", want: "greeting: 550 5.7.1 not here", closed: true},
		{script: "ehlo reject '550 5.7.1 not here'", want: "EHLO: 550 5.7.1 not here"},
		{script: "mail-from reject '451 4.7.1 later'", want: "MAIL: 451 4.7.1 later"},
		{script: "rcpt-to disconnect '421 4.7.1 bye'", want: "RCPT: 421 4.7.1 bye", closed: true},
		{script: "commit reject '550 5.7.1 no'", want: "message: 550 5.7.1 no"},
	} {
		t.Run(strings.ReplaceAll(tt.script, " ", "_"), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				s := start(t, smtpdtest.Config{
					Release: r,
					Filters: []smtpdtest.Filter{{Name: "other", Command: "scripted " + tt.script}},
				})
				for i, src := range []string{"198.51.100.7", "2003:ec:2f0f::7"} {
					m := smtpdtest.Mail{Src: src, To: fmt.Sprint("bob", i)}
					if tt.want == "" {
						if msg := s.deliver(m); msg.Junk != tt.junk {
							t.Errorf("from %s: junk %v, want %v", src, msg.Junk, tt.junk)
						}
						continue
					}
					res := s.send(m)
					got := fmt.Sprintf("%s: %v", res.Step, res.Reply)
					if got != tt.want || res.Closed != tt.closed {
						t.Errorf("from %s: %v, want %s, closed %v", src, res, tt.want, tt.closed)
					}
				}
			})
		})
	}
}

// smtpd looks up reverse names itself, in the hosts file or in DNS.
func TestReverseNames(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		zone := smtpdtest.Host("198.51.100.7", "mail.sender.example") +
			smtpdtest.Host("2001:db8::7", "six.sender.example") +
			smtpdtest.Pointer("198.51.100.8", "nofwd.sender.example") +
			smtpdtest.Reverse("198.51.100.9") + " servfail\n"
		for _, tt := range []struct {
			name string
			conf smtpdtest.Config
			want map[string]string
		}{
			{"hosts", smtpdtest.Config{Hosts: "198.51.100.7 mail.sender.example\n"}, map[string]string{
				"198.51.100.7": "mail.sender.example|pass",
				"198.51.100.8": "<unknown>|fail",
			}},
			{"dns", smtpdtest.Config{Zone: zone}, map[string]string{
				"198.51.100.7":  "mail.sender.example|pass",
				"[2001:db8::7]": "six.sender.example|pass",
				"198.51.100.8":  "nofwd.sender.example|fail",
				"198.51.100.9":  "<unknown>|fail",
				"198.51.100.10": "<unknown>|fail",
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.conf.Release = r
				tt.conf.Filters = []smtpdtest.Filter{{Name: "other", Command: "scripted connect proceed"}}
				s := start(t, tt.conf)
				for src, want := range tt.want {
					if res := s.send(smtpdtest.Mail{Src: strings.Trim(src, "[]"), To: "bob"}); !res.Accepted() {
						t.Errorf("from %s: %v", src, res)
					}
					if _, err := s.WaitLog("other: ", "connected "+want+"|"+src+":"); err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

func TestUnknownUser(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, smtpdtest.Config{Release: r, Users: []string{"bob"}})
		if s.deliver(smtpdtest.Mail{Src: "198.51.100.7", To: "bob"}).Junk {
			t.Error("mail for bob is junk")
		}
		if res := s.send(smtpdtest.Mail{Src: "198.51.100.7", To: "nobody-here"}); res.Step != "RCPT" || res.Reply.Code != 550 {
			t.Errorf("unknown user: %v, want 550 at RCPT", res)
		}
	})
}

func TestLogin(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		if !r.TLS {
			t.Skipf("OpenSMTPD %s has no working TLS with OpenSSL 3", r.Version)
		}
		s := start(t, smtpdtest.Config{Release: r, TLS: true})
		s.deliver(smtpdtest.Mail{Src: "198.51.100.7", To: "bob", Login: true})
		if _, err := s.WaitLog("authentication user=" + smtpdtest.User); err != nil {
			t.Error(err)
		}
	})
}

// A filter that makes a mistake must not go unnoticed.
func TestCheckSeesTrouble(t *testing.T) {
	for _, script := range []string{
		"commit junk",          // fatal
		"mail-from nonsense",   // fatal
		"noop proceed a b c d", // fatal
	} {
		t.Run(strings.ReplaceAll(script, " ", "_"), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				s, err := smtpdtest.Start(smtpdtest.Config{
					Release: r,
					Bin:     os.Getenv(binEnv),
					Filters: []smtpdtest.Filter{{Name: "other", Command: "scripted " + script}},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Stop()
				if err := s.Check(); err != nil {
					t.Errorf("before: %v", err)
				}
				c, err := s.Dial("198.51.100.7")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, err = c.Reply()
				for _, line := range []string{"EHLO client.example.net", "NOOP", "MAIL FROM:<a@example.net>", "RCPT TO:<b@example.org>", "DATA", "Subject: x\r\n\r\nx\r\n."} {
					if err == nil {
						_, err = c.Do(line)
					}
				}
				if err == nil {
					t.Error("the session went on")
				}
				if err := s.Check(); err == nil {
					t.Errorf("Check finds nothing wrong; smtpd.log:\n%s", s.Log())
				} else {
					t.Log(err)
				}
			})
		})
	}
}
