//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/test/mixed"
	"opensmtpd-filters/test/smtpdtest"
)

// A syslogFile writes what smtpd says as syslogd does: with time, host and program.
type syslogFile struct {
	mu   sync.Mutex
	file *os.File
	rest string
}

func (f *syslogFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := f.rest + string(b)
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			f.rest = text
			return len(b), nil
		}
		if _, err := fmt.Fprintf(f.file, "%s mx smtpd[42]: %s\n", time.Now().Format(time.Stamp), line); err != nil {
			return 0, err
		}
		text = rest
	}
}

// startMixed starts the mail server of the mixed run, and returns the file of its
// log.
func startMixed(t *testing.T, r smtpdtest.Release) (server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "maillog")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	c := mixed.Config(r, "")
	c.Log = &syslogFile{file: f}
	s := start(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(path)
			t.Logf("maillog:\n%s", text)
		}
	})
	return s, path
}

// filterctl runs a command and returns what it prints.
func filterctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "filterctl"), args...).CombinedOutput()
	if err != nil {
		t.Errorf("filterctl %q: %v", args, err)
	}
	return string(out)
}

// eventuallyFinds waits until a command prints what is wanted, in this order.
func (s server) eventuallyFinds(want []string, args ...string) string {
	s.t.Helper()
	out := ""
	s.eventually(fmt.Sprintf("filterctl %q says %q", args, want), func() bool {
		cmd := exec.CommandContext(s.t.Context(), filepath.Join(os.Getenv(binEnv), "filterctl"), args...)
		text, _ := cmd.CombinedOutput() // there may be nothing yet
		out = string(text)
		rest := out
		for _, expr := range want {
			at := regexp.MustCompile(expr).FindStringIndex(rest)
			if at == nil {
				return false
			}
			rest = rest[at[1]:]
		}
		return true
	})
	return out
}

// What why says how to let a sender in does so, and lets in nobody else.
func TestWhyAllow(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s, log := startMixed(t, r)
		if err := mixed.Ready(s.Server); err != nil {
			t.Fatal(err)
		}
		junked := smtpdtest.Mail{Src: mixed.Doubtful, Sender: "info@doubtful.example", To: "erin"}
		s.greyed(junked)
		out := s.eventuallyFinds([]string{`deferred`, `dnsbl     junk: score`, `greylist  defer: new`, `answers DATA with 451`, `filterctl allow sender=doubtful\.example`}, "why", "info@doubtful.example", log)
		refused := smtpdtest.Mail{Src: mixed.Listed, Sender: "spam@spammer.example", To: "ann"}
		if res := s.send(refused); res.Accepted() {
			t.Errorf("a listed client: %v", res)
		}
		out += s.eventuallyFinds([]string{`refused`, `dnsbl     refuse: score`, `answers RCPT TO:<ann@example.org> with 550`, `filterctl allow client=198\.51\.100\.66`}, "why", mixed.Listed, log)

		// As an operator does, with the list of this server.
		lines := regexp.MustCompile(`(?m)^ +filterctl allow (\S+)`).FindAllStringSubmatch(out, -1)
		if len(lines) != 2 {
			t.Fatalf("%d lines in\n%s", len(lines), out)
		}
		for _, l := range lines {
			filterctl(t, "allow", "-list", s.Path("filters.list"), "-f", s.Path("smtpd.conf"), l[1], "a", "friend")
		}
		for _, program := range []string{"filter-dnsbl", "filter-dyndns", "filter-greylist"} {
			if err := s.Signal(program, syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		junked.To = "frank"
		s.eventually("the sender is let in", func() bool { return s.send(junked).Accepted() })
		s.eventually("the client is let in", func() bool { return s.send(refused).Accepted() })
		if all, err := s.WaitMail("frank", 1); err != nil || all[0].Junk {
			t.Errorf("mail of the allowed sender is junk: %v", err)
		}
		forged := smtpdtest.Mail{Src: mixed.Listed2, Sender: "info@doubtful.example", To: "erin"}
		if res := s.send(forged); res.Accepted() {
			t.Errorf("who forges the sender is let in: %v", res)
		}
		s.eventuallyFinds([]string{`client   198\.51\.100\.67`, `from <info@doubtful.example>`, `dnsbl     refuse`}, "why", mixed.Listed2, log)
	})
}

// TestReport compares every figure with what was sent.
func TestReport(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s, log := startMixed(t, r)
		run, err := mixed.Do(s.Server, r.TLS)
		giveUp := r.Moving && !testing.Short() // it takes a minute
		if err == nil && giveUp {
			err = run.GiveUp()
		}
		if err != nil {
			t.Fatal(err)
		}
		// Everything has been written when the last delivery has.
		want := run.Report()
		s.eventuallyFinds([]string{fmt.Sprintf(`"ok",\s+"count": %d\n`, want.Delivered)}, "report", "-json", log)
		var got struct {
			mixed.Report
			Deliveries []counted
			Filters    []struct {
				Name                      string
				Junk, Defer, Refuse, More int
				Would                     []counted
			}
			Server     []counted
			Clients    []mixed.Client
			Recipients []mixed.Recipient
			Lists      []struct {
				List                string
				Hit, Decided, Alone int
			}
			Greylist struct {
				Waited, Never int
				P50, P95      float64
				Waits         []struct{ Count int }
				NeverBy       []struct{ Addr, From, Rcpt string }
			}
			Times []struct{ Messages, Connections mixed.Fates }
		}
		if err := json.Unmarshal([]byte(filterctl(t, "report", "-json", log)), &got); err != nil {
			t.Fatal(err)
		}
		// The harness itself connects to see whether smtpd is well.
		hello := got.Connections.Total - want.Connections.Total
		if hello < 1 || hello > 3 {
			t.Errorf("%d connections, want %d and one or two of the test itself", got.Connections.Total, want.Connections.Total)
		}
		want.Connections.Total += hello
		want.Connections.Nothing += hello
		if got.Connections != want.Connections {
			t.Errorf("connections %+v, want %+v", got.Connections, want.Connections)
		}
		if got.Messages != want.Messages || got.BadCommands != want.BadCommands {
			t.Errorf("messages %+v, bad commands %d; want %+v, %d", got.Messages, got.BadCommands, want.Messages, want.BadCommands)
		}
		var messages, connections mixed.Fates
		for _, at := range got.Times {
			messages.Add(at.Messages)
			connections.Add(at.Connections)
		}
		c := want.Connections
		if messages != want.Messages || connections != (mixed.Fates{Accepted: c.Accepted, Junked: c.Junked, Deferred: c.Deferred, Refused: c.Refused}) {
			t.Errorf("over time: messages %+v, connections %+v", messages, connections)
		}
		for _, f := range got.Filters {
			w := want.Filters[f.Name]
			if (mixed.FilterReport{Junk: f.Junk, Defer: f.Defer, Refuse: f.Refuse, More: f.More}) != w {
				t.Errorf("filter %+v, want %+v", f, w)
			}
			if f.Name == "trial" && (len(f.Would) == 0 || f.Would[0].What != "refuse" || f.Would[0].Count != want.Would) {
				t.Errorf("dry run: %+v, want refuse %d", f.Would, want.Would)
			}
		}
		if len(got.Filters) != len(want.Filters) {
			t.Errorf("%d filters, want %d", len(got.Filters), len(want.Filters))
		}
		clients, rcpts := map[string]mixed.Fates{}, map[string]mixed.Fates{}
		for _, c := range got.Clients {
			clients[c.Addr] = c.Fates
		}
		for addr, w := range want.Clients {
			if got := clients[addr]; got != w && w.Junked+w.Deferred+w.Refused > 0 {
				t.Errorf("client %s: %+v, want %+v", addr, got, w)
			}
		}
		for _, c := range got.Recipients {
			rcpts[c.Rcpt] = c.Fates
			if w := want.Recipients[c.Rcpt]; c.Fates != w {
				t.Errorf("recipient %s: %+v, want %+v", c.Rcpt, c.Fates, w)
			}
		}
		if len(rcpts) != len(want.Recipients) {
			t.Errorf("%d recipients, want %d", len(rcpts), len(want.Recipients))
		}
		for _, l := range got.Lists {
			if w := want.Lists[l.List]; l.Hit != w || l.Decided != w || l.Alone != w {
				t.Errorf("list %+v, want %d", l, w)
			}
		}
		g := got.Greylist
		waits := 0
		for _, w := range g.Waits {
			waits += w.Count
		}
		never := 0
		if giveUp {
			never = want.Never
		}
		if g.Waited != want.Waited || waits != want.Waited || g.Never != never || len(g.NeverBy) != never {
			t.Errorf("greylisting %+v, want %d that waited and %d that never came", g, want.Waited, never)
		}
		if least := mixed.PassTime.Seconds(); g.P50 < least || g.P95 < g.P50 {
			t.Errorf("waits of %v and %v seconds, want at least %v", g.P50, g.P95, least)
		}
		if len(got.Server) != 1 || got.Server[0].Count != want.Server {
			t.Errorf("by smtpd itself: %+v, want %d", got.Server, want.Server)
		}
		// The text says the same.
		text := filterctl(t, "report", log)
		for _, w := range []string{
			fmt.Sprintf(`messages +%d +%d +%d +%d +%d\n`, want.Messages.Accepted, want.Messages.Junked, want.Messages.Deferred, want.Messages.Refused, want.Messages.Total()),
			fmt.Sprintf(`%d mails waited and came again`, want.Waited),
			`198\.51\.100\.67 +- +\d`,
		} {
			if !regexp.MustCompile(w).MatchString(text) {
				t.Errorf("no %s in\n%s", w, text)
			}
		}
	})
}

type counted struct {
	What  string
	Count int
}
