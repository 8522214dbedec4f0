//go:build linux

package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/test/smtpdtest"
)

// scores are the clients of these tests; noScore has none.
var scores = map[string]int{
	"203.0.113.4":   42, // on a blocklist of serveLists, too
	"203.0.113.5":   5,
	"203.0.113.42":  42,
	"203.0.113.100": 100,
}

const (
	noScore = "203.0.113.1"

	scoreZone = "score.senderscore.com"
	scoreDNS  = "127.0.0.1:5300"
)

// serveScores serves the zone of scores on scoreDNS for the rest of the test:
// with rbldnsd if it is installed, else with the scripted server.
func serveScores(t *testing.T) {
	t.Helper()
	rbldnsd, err := exec.LookPath("rbldnsd")
	if err != nil {
		script := ""
		for addr, score := range scores {
			name := strings.Replace(smtpdtest.Reverse(addr), "in-addr.arpa", scoreZone, 1)
			script += fmt.Sprintf("%s A 127.0.4.%d\n", name, score)
		}
		dns, err := filtertest.StartDNS(scoreDNS, script)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(dns.Close)
		return
	}
	data := "$SOA 3000 ns.example.net root.example.net 0 600 300 86400 300\n"
	for addr, score := range scores {
		data += fmt.Sprintf("%s :127.0.4.%d:score of $\n", addr, score)
	}
	dir, err := os.MkdirTemp("", "scores") // t.TempDir is not for other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "scores")
	if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(rbldnsd, "-n", "-u", "nobody", "-b", strings.Replace(scoreDNS, ":", "/", 1), scoreZone+":ip4set:"+file)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("rbldnsd:\n%s", &out)
		}
	})
	ask := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", scoreDNS)
	}}
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := ask.LookupHost(t.Context(), "5.113.0.203."+scoreZone+".")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("rbldnsd does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func senderscoreFilter(args string) smtpdtest.Filter {
	return smtpdtest.Filter{Name: "senderscore", Command: "filter-senderscore -resolver " + scoreDNS + " " + args}
}

func senderscore(r smtpdtest.Release, args string) smtpdtest.Config {
	return smtpdtest.Config{Release: r, Filters: []smtpdtest.Filter{senderscoreFilter(args)}}
}

// wantScore waits for the log line about a client.
func (s server) wantScore(addr string, words ...string) {
	s.t.Helper()
	if _, err := s.WaitLog(append(words, "filter=senderscore", "addr="+addr+" ")...); err != nil {
		s.t.Error(err)
	}
}

// The line of the tutorials, with its delays.
func TestSenderScoreTutorial(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveScores(t)
		s := start(t, senderscore(r, "-blockBelow 10 -junkBelow 70 -slowFactor 5000"))
		tests := []struct {
			src, want, log string
			least          time.Duration
		}{
			{"203.0.113.5", "greeting 550 closed", "action=refuse disconnect=true", 4750 * time.Millisecond},
			{"203.0.113.42", "junk", "action=junk", 6 * 2900 * time.Millisecond}, // greeting, EHLO, MAIL, RCPT, DATA, message
			{"203.0.113.100", "inbox", "action=proceed reason=score", 0},
			{noScore, "inbox", "reason=nodata", 0},
		}
		took := make([]time.Duration, len(tests))
		var wg sync.WaitGroup
		for i, tt := range tests {
			wg.Go(func() {
				begin := time.Now()
				res, err := s.Send(smtpdtest.Mail{Src: tt.src, To: user(tt.src)})
				took[i] = time.Since(begin)
				if err != nil {
					t.Errorf("from %s: %v", tt.src, err)
				} else if tt.least == 4750*time.Millisecond && res.Reply.String() != "550 your IP reputation is too low for this MX" {
					t.Errorf("from %s: %v", tt.src, res)
				}
			})
		}
		wg.Wait()
		for i, tt := range tests {
			s.wantScore(tt.src, tt.log)
			if took[i] < tt.least || tt.least == 0 && took[i] > took[1] {
				t.Errorf("from %s: took %v, want %v at least, and nothing for the good", tt.src, took[i], tt.least)
			}
			box := map[string]bool{"inbox": false, "junk": true}
			junk, delivered := box[tt.want]
			if !delivered {
				continue
			}
			all, err := s.WaitMail(user(tt.src), 1)
			if err != nil {
				t.Error(err)
			} else if spam := slices.Equal(all[0].Header("X-Spam"), []string{"Yes"}); all[0].Junk != junk || spam != junk {
				t.Errorf("from %s: in .Junk %v, X-Spam: Yes %v", tt.src, all[0].Junk, spam)
			}
		}
	})
}

func TestSenderScorePhases(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveScores(t)
		for phase, want := range map[string]string{
			"connect": "greeting 550 closed", "helo": "EHLO 550 closed", "ehlo": "EHLO 550 closed",
			"starttls": "MAIL 550 closed", "auth": "MAIL 550 closed", // the client does neither
			"mail-from": "MAIL 550 closed", "rcpt-to": "RCPT 550 closed",
		} {
			t.Run(phase, func(t *testing.T) {
				s := start(t, senderscore(r, "-blockBelow 43 -blockPhase "+phase))
				for src, want := range map[string]string{"203.0.113.5": want, "203.0.113.42": want, "203.0.113.100": "inbox", noScore: "inbox"} {
					if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != want {
						t.Errorf("from %s: %s, want %s", src, got, want)
					}
				}
			})
		}
	})
}

func TestSenderScoreHeader(t *testing.T) {
	const forged = "x-senderscore: 100\r\nSubject: hello\r\nX-SenderScore:\r\n 100\r\n\r\nX-SenderScore: text\r\n"
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveScores(t)
		s := start(t, senderscore(r, "-scoreHeader"))
		for src, want := range map[string][]string{"203.0.113.5": {"5"}, "203.0.113.42": {"42"}, "203.0.113.100": {"100"}, noScore: nil} {
			m := s.deliver(smtpdtest.Mail{Src: src, To: user(src), Data: forged})
			if got := m.Header("X-SenderScore"); !slices.Equal(got, want) || m.Body() != "X-SenderScore: text\n" {
				t.Errorf("from %s: X-SenderScore %q, want %q, body %q", src, got, want, m.Body())
			}
		}
	})
}

func TestSenderScoreLogin(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		if !r.TLS {
			t.Skipf("OpenSMTPD %s has no working TLS with OpenSSL 3", r.Version)
		}
		serveScores(t)
		c := senderscore(r, "-blockBelow 10 -blockPhase mail-from")
		c.TLS = true
		s := start(t, c)
		if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.5", To: "bob", Login: true}); got != "inbox" {
			t.Errorf("logged in: %s, want inbox", got)
		}
		if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.5", To: "carol"}); got != "MAIL 550 closed" {
			t.Errorf("not logged in: %s", got)
		}
	})
}

// At RCPT TO each recipient is answered by itself; mail to one who is exempt goes
// on. A sender is exempt with its own address and !.
func TestSenderScoreExempt(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveScores(t)
		c := senderscore(r, "-blockBelow 10 -blockPhase rcpt-to -junkBelow 70 -allowSenders "+smtpdtest.Dir+"/senders")
		c.Files = map[string]string{"senders": "!boss@sender.example\n"}
		s := start(t, c)
		if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.5", To: "postmaster"}); got != "inbox" {
			t.Errorf("to postmaster: %s", got)
		}
		for src, want := range map[string]string{"203.0.113.5": "RCPT 550 closed", "203.0.113.42": "junk"} {
			if got := s.outcome(smtpdtest.Mail{Src: src, To: user("bob" + src)}); got != want {
				t.Errorf("from %s: %s, want %s", src, got, want)
			}
			if got := s.outcome(smtpdtest.Mail{Src: src, Sender: "boss@sender.example", To: user("boss" + src)}); got != "inbox" {
				t.Errorf("from %s, an exempt sender: %s", src, got)
			}
		}
		s.wantScore("203.0.113.5", "action=refuse", "rcpt=<bob203-")
		s.wantScore("203.0.113.42", "action=proceed", "-allowSenders "+smtpdtest.Dir+"/senders:1")
	})
}

// Filters before and after decide too.
func TestSenderScoreChain(t *testing.T) {
	other := func(script string) smtpdtest.Filter {
		return smtpdtest.Filter{Name: "other", Command: "scripted " + script}
	}
	ours := senderscoreFilter("-blockBelow 10 -junkBelow 70")
	for _, tt := range []struct {
		name            string
		chain           []smtpdtest.Filter
		bad, poor, good string // the outcome for score 5, 42 and 100
	}{
		{"senderscore, then a reject at mail-from", []smtpdtest.Filter{ours, other("mail-from reject '550 5.7.1 no'")},
			"greeting 550 closed", "MAIL 550", "MAIL 550"},
		{"senderscore, then a reject at connect", []smtpdtest.Filter{ours, other("connect disconnect '554 5.7.1 no'")},
			"greeting 550 closed", "junk", "greeting 554 closed"},
		{"junk at connect, then senderscore", []smtpdtest.Filter{other("connect junk"), ours},
			"EHLO 550 closed", "junk", "junk"},
		{"rewrite at mail-from, then senderscore", []smtpdtest.Filter{other("mail-from rewrite '<other@example.net>'"),
			senderscoreFilter("-blockBelow 10 -blockPhase mail-from")},
			"RCPT 550 closed", "inbox", "inbox"},
	} {
		t.Run(user(tt.name), func(t *testing.T) {
			forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
				serveScores(t)
				s := start(t, smtpdtest.Config{Release: r, Filters: tt.chain})
				for src, want := range map[string]string{"203.0.113.5": tt.bad, "203.0.113.42": tt.poor, "203.0.113.100": tt.good} {
					if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != want {
						t.Errorf("from %s: %s, want %s", src, got, want)
					}
				}
			})
		})
	}
}

// Who is junked at connect, where filter-dnsbl is not asked then, it refuses all
// the same.
func TestSenderScoreBeforeDnsbl(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveScores(t)
		serveLists(t)
		c := dnsbl(r, "-blockAt 1 bl.spamcop.net")
		c.Filters = []smtpdtest.Filter{senderscoreFilter("-blockBelow 10 -junkBelow 70"), c.Filters[0]}
		s := start(t, c)
		s.tested("bl.spamcop.net")
		for src, want := range map[string]string{
			"203.0.113.4": "EHLO 550", "203.0.113.5": "greeting 550 closed", "203.0.113.42": "junk", "203.0.113.100": "inbox",
		} {
			if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != want {
				t.Errorf("from %s: %s, want %s", src, got, want)
			}
		}
		s.wantScore("203.0.113.4", "action=junk")
	})
}

// A zone that refuses says so once, and mail passes.
func TestSenderScoreRefused(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		dns, err := filtertest.StartDNS(scoreDNS, "*."+scoreZone+" A 127.255.255.255\n")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(dns.Close)
		s := start(t, senderscore(r, "-blockBelow 10 -junkBelow 70 -slowFactor 5000"))
		for src := range scores {
			if got := s.outcome(smtpdtest.Mail{Src: src, To: user(src)}); got != "inbox" {
				t.Errorf("from %s: %s, want inbox", src, got)
			}
			s.wantScore(src, "reason=unregistered", "score=none")
		}
		if n := strings.Count(s.Log(), "registered with Validity"); n != 1 {
			t.Errorf("registration is named %d times", n)
		}
		if q := dns.Queries(); len(q) != 1 {
			t.Errorf("asked %v", q)
		}
	})
}

// Without an answer of the DNS, mail passes.
func TestSenderScoreNoDNS(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, senderscore(r, "-blockBelow 101 -junkBelow 101 -slowFactor 5000 -timeout 500ms -scoreHeader"))
		if got := s.outcome(smtpdtest.Mail{Src: "203.0.113.5", To: "bob"}); got != "inbox" {
			t.Errorf("%s, want inbox", got)
		}
		s.wantScore("203.0.113.5", "reason=error", "score=none")
	})
}
