//go:build linux

package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/test/smtpdtest"
)

// allHeaders are all programs in a chain, each with its header field.
func allHeaders() []smtpdtest.Filter {
	return []smtpdtest.Filter{
		{Name: "dyndns", Command: "filter-dyndns -header -dynamic proceed"},
		{Name: "senderscore", Command: "filter-senderscore -scoreHeader -stateFile senderscore.state"},
		{Name: "dnsbl", Command: "filter-dnsbl -header -blockAt 5 bl.example"},
		{Name: "greylist", Command: "filter-greylist -header -dryRun -store memory:"},
	}
}

// What arrives through all filters is the message that arrives without any, line
// by line and byte by byte, up to the longest line that smtpd takes from a
// filter. A longer one comes in pieces that give the line when they are joined.
func TestMessages(t *testing.T) {
	const commands = "QUIT\r\nRSET\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nsmuggled\r\n"
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		minor := 7
		limits := []int{1997, 65485}
		if strings.HasPrefix(r.Version, "6.") {
			minor = 6
		}
		var mails []smtpdtest.Mail
		for _, limit := range limits {
			for i, line := range filtertest.EdgeLines(limit) {
				if len(line) > 65530 {
					continue // more than smtpd takes from a client
				}
				mails = append(mails,
					smtpdtest.Mail{To: fmt.Sprintf("body-%d-%d", limit, i), Data: "X-Mark: here\r\nSubject: x\r\n\r\n" + line + "\r\n" + commands + line + "\r\n" + commands},
					smtpdtest.Mail{To: fmt.Sprintf("header-%d-%d", limit, i), Data: "X-Mark: here\r\n" + line + "\r\nSubject: x\r\n\r\n" + commands},
					smtpdtest.Mail{To: fmt.Sprintf("field-%d-%d", limit, i), Data: "X-Mark: here\r\nX-Y:" + line[min(4, max(0, len(line)-limit)):] + "\r\nSubject: x\r\n\r\n" + commands})
			}
		}
		var without, with map[string]arrived
		t.Run("without", func(t *testing.T) { without = deliverAll(t, smtpdtest.Config{Release: r}, mails) })
		t.Run("with", func(t *testing.T) { with = deliverAll(t, smtpdtest.Config{Release: r, Filters: allHeaders()}, mails) })
		if t.Failed() {
			return
		}
		for _, m := range mails {
			in, out := without[m.To], with[m.To]
			switch {
			case in.refused != "" || out.refused != "":
				if in.refused != out.refused {
					t.Errorf("%s, %s: answered %q, without filters %q", m.To, brief(m.Data), out.refused, in.refused)
				}
			case len(out.fields) != 3:
				t.Errorf("%s: fields %q", m.To, out.fields)
			default:
				if err := filtertest.SameText(minor, in.lines, out.lines); err != nil {
					t.Errorf("%s, %s: %v", m.To, brief(m.Data), err)
				}
			}
		}
	})
}

// arrived is what became of a mail.
type arrived struct {
	refused string   // the reply, if it was refused
	lines   []string // from the marked one on
	fields  []string // of ours, in front
}

// deliverAll sends mails to a server of its own.
func deliverAll(t *testing.T, c smtpdtest.Config, mails []smtpdtest.Mail) map[string]arrived {
	t.Helper()
	s := start(t, c)
	all := make(map[string]arrived)
	for _, m := range mails {
		m.Src = proper
		res := s.send(m)
		if !res.Accepted() {
			all[m.To] = arrived{refused: fmt.Sprint(res.Step, " ", res.Reply)}
		}
	}
	for _, m := range mails {
		if all[m.To].refused != "" {
			continue
		}
		got, err := s.WaitMail(m.To, 1)
		if err != nil || len(got) != 1 {
			t.Fatalf("%s: %d mails, %v", m.To, len(got), err)
		}
		var a arrived
		lines := strings.Split(strings.TrimSuffix(got[0].Text, "\n"), "\n")
		mark := slices.Index(lines, "X-Mark: here")
		if mark < 0 {
			t.Fatalf("%s: no mark in %s", m.To, brief(got[0].Text))
		}
		a.lines = lines[mark:]
		for _, l := range lines[:mark] {
			if strings.HasPrefix(l, "X-") {
				a.fields = append(a.fields, l)
			}
		}
		all[m.To] = a
	}
	if got, err := s.Mail("victim"); err != nil || len(got) != 0 || strings.Contains(s.Log(), "victim") {
		t.Errorf("text of a message was run as commands: %d mails, %v", len(got), err)
	}
	return all
}
