//go:build linux

package test

import (
	"strings"
	"testing"

	"opensmtpd-filters/test/smtpdtest"
)

// One grep counts what all programs have refused, and each of them explains an
// address with its line of smtpd.conf as it stands there.
func TestOneVocabulary(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		serveScores(t)
		commands := map[string]string{
			"greet":       "filter-greet -wait 0",
			"dyndns":      "filter-dyndns -dynamic refuse",
			"senderscore": "filter-senderscore -stateFile '' -timeout 20s -blockBelow 10 -blockPhase rcpt-to -resolver " + scoreDNS,
			"dnsbl":       "filter-dnsbl -timeout 20s -blockAt 3 -resolver " + listDNS + " zen.spamhaus.org*3",
			"greylist":    greylistCommand + "-who all",
		}
		c := smtpdtest.Config{Release: r, Zone: dyndnsZone}
		for _, name := range []string{"greet", "dyndns", "senderscore", "dnsbl", "greylist"} {
			c.Filters = append(c.Filters, smtpdtest.Filter{Name: name, Command: commands[name]})
		}
		s := startGreylist(t, c)
		const listed, stranger = "203.0.113.1", "198.51.100.77"
		for _, m := range []struct{ src, step string }{
			{dynamic, "MAIL 550"}, {"203.0.113.5", "RCPT 550 closed"}, {listed, "RCPT 550"}, {stranger, "DATA 451"},
		} {
			if got := s.outcome(smtpdtest.Mail{Src: m.src, To: "bob"}); got != m.step {
				t.Errorf("%s: %s, want %s", m.src, got, m.step)
			}
		}
		if _, err := s.WaitLog("filter=greylist", "action=defer", "addr="+stranger, "from=<sender@example.net>", "rcpt=<bob@example.org>"); err != nil {
			t.Error(err)
		}
		for _, word := range []string{"filter=dyndns", "filter=senderscore", "filter=dnsbl"} {
			if _, err := s.WaitLog(word, "action=refuse", "reason="); err != nil {
				t.Error(err)
			}
		}
		for word, want := range map[string]int{" action=refuse ": 3, " action=defer ": 1} {
			if n := strings.Count(s.Log(), word); n != want {
				t.Errorf("%d lines with%s, want %d", n, word, want)
			}
		}
		for _, command := range commands {
			out, err := s.Run("./" + command + " explain " + listed + " ann@example.com bob@example.org")
			if !strings.Contains(out, "answer") {
				t.Errorf("%s explain: %v\n%s", command, err, out)
			}
		}
	})
}
