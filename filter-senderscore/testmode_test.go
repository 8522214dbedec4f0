package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/program"
)

const (
	reply = "disconnect|550 your IP reputation is too low for this MX"

	registered = `register|report|smtp-in|link-connect
register|report|smtp-in|link-disconnect
register|filter|smtp-in|connect
register|filter|smtp-in|helo
register|filter|smtp-in|ehlo
register|filter|smtp-in|starttls
register|filter|smtp-in|auth
register|filter|smtp-in|mail-from
register|filter|smtp-in|rcpt-to
register|filter|smtp-in|data
register|filter|smtp-in|data-line
register|filter|smtp-in|commit
register|filter|smtp-in|quit
register|ready
`
)

// testMode runs the filter in -testMode with these lines after the handshake.
// In them S1 and S2 are sessions, T a token and C the fields of a connection
// before its address. It returns what follows the registrations.
func testMode(t *testing.T, args string, lines ...string) (answers, stderr string, status int) {
	t.Helper()
	in := strings.NewReplacer(
		"S1", "7641df9771b4ed00", "S2", "4c04727b7583d924", "T", "1ef1c203cc576e5d", "C|", "|pass|",
	)
	cmd := exec.Command("filter-senderscore", append([]string{"-testMode"}, strings.Fields(args)...)...)
	text := "config|ready\n"
	for _, l := range lines {
		text += in.Replace(l) + "\n"
	}
	cmd.Stdin = strings.NewReader(text)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		status = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	answers, ok := strings.CutPrefix(out.String(), registered)
	if !ok && out.Len() > 0 {
		t.Errorf("registered:\n%s", &out)
	}
	answers = strings.NewReplacer(
		"7641df9771b4ed00", "S1", "4c04727b7583d924", "S2", "1ef1c203cc576e5d", "T", "filter-result|", "", "filter-dataline|", "",
	).Replace(answers)
	return strings.TrimSuffix(answers, "\n"), errs.String(), status
}

// What scripts that test filters of this name rely on: time stamps of 0, empty
// reverse names, the connect request with all fields of the report, the order
// and form of the answers.
func TestTestMode(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "list")
	err := os.WriteFile(list, []byte("# ours\n1.2.3.4\n\n10.20.0.0/16 # office\n2001:db8::1\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	link := func(addr string) string {
		return "report|0.5|0|smtp-in|link-connect|S1|C|" + addr + ":33174|1.1.1.1:25"
	}
	connect := func(addr string) string {
		return "filter|0.5|0|smtp-in|connect|S1|T|C|" + addr + ":33174|1.1.1.1:25"
	}
	ask := func(phase string) string { return "filter|0.5|0|smtp-in|" + phase + "|S1|T|x" }
	line := func(text string) string { return "filter|0.5|0|smtp-in|data-line|S1|T|" + text }

	type test struct {
		name, args string
		in         []string
		want       string
	}
	var tests []test
	add := func(name, args, want string, in ...string) { tests = append(tests, test{name, args, in, want}) }

	add("registers", "", "")
	for _, phase := range []string{"helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit"} {
		add("block at "+phase, "-blockBelow 20 -blockPhase "+phase, "S1|T|proceed\nS1|T|"+reply,
			link("1.2.3.19"), connect("1.2.3.19"), ask(phase))
		add("no block at "+phase, "-blockBelow 20 -blockPhase "+phase, "S1|T|proceed\nS1|T|proceed",
			link("1.2.3.20"), connect("1.2.3.20"), ask(phase))
	}
	for _, tt := range []struct{ args, addr, want string }{
		{"-blockBelow 20", "1.2.3.19", reply},
		{"-blockBelow 20", "1.2.3.20", "proceed"},
		{"-blockBelow 20 -blockPhase connect", "1.2.3.0", reply},
		{"-blockBelow 20", "1.2.3.255", "proceed"}, // no score
		{"-blockBelow 0", "1.2.3.0", "proceed"},
		{"-blockBelow 127", "1.2.3.100", reply},
		{"-blockBelow 128", "1.2.3.100", reply},
		{"-blockBelow 200", "1.2.3.100", reply},
		{"-blockBelow 99999", "1.2.3.254", reply},
		{"-blockBelow -2", "1.2.3.0", "proceed"},
		{"-blockBelow 20", "[2001:db8::5]", "proceed"},
		{"", "1.2.3.0", "proceed"},
		{"-junkBelow 20", "1.2.3.19", "junk"},
		{"-junkBelow 20", "1.2.3.20", "proceed"},
		{"-junkBelow 200", "1.2.3.255", "proceed"},
		{"-junkBelow 70 -blockBelow 20", "1.2.3.19", reply},
		{"-junkBelow 70 -blockBelow 20", "1.2.3.20", "junk"},
		{"-junkBelow 70 -blockBelow 20", "1.2.3.70", "proceed"},
		{"-blockBelow 101 -allowlist " + list, "1.2.3.4", reply}, // the score is 100
		{"-blockBelow 100 -allowlist " + list, "1.2.3.4", "proceed"},
		{"-blockBelow 100 -allowlist " + list, "1.2.3.5", reply},
		{"-blockBelow 100 -allowlist " + list, "10.20.255.1", "proceed"},
		{"-blockBelow 100 -allowlist " + list, "10.21.0.1", reply},
		{"-blockBelow 101 -allowlist " + list, "[2001:db8::1]", reply},
		{"-blockBelow 101 -allowlist " + list, "[2001:db8::2]", "proceed"},
		{"-blockBelow 20 -dryRun", "1.2.3.19", "proceed"},
		{"-blockBelow 20 -allowClients " + list, "1.2.3.4", "proceed"},
		{"-blockBelow 101 -allowClients " + list, "1.2.3.4", "proceed"}, // never judged
		{"-blockBelow 20", "10.2.3.4", reply},                           // private networks are as others
		{"-blockBelow 20", "127.0.0.1", reply},
		{"-blockBelow 20 -phase connect", "1.2.3.4", reply},
	} {
		add(tt.args+" "+tt.addr, tt.args, "S1|T|"+tt.want, link(tt.addr), connect(tt.addr))
	}
	add("rest of the phases", "-junkBelow 50",
		"S1|T|junk\nS1|T|proceed\nS1|T|proceed\nS1|T|proceed\nS1|T|proceed",
		link("1.2.3.42"), connect("1.2.3.42"), ask("rcpt-to"), ask("data"), ask("commit"), ask("quit"))
	add("once", "-blockBelow 50 -blockPhase ehlo",
		"S1|T|proceed\nS1|T|"+reply+"\nS1|T|"+reply+"\nS1|T|proceed\nS1|T|proceed",
		link("1.2.3.42"), connect("1.2.3.42"), ask("ehlo"), ask("ehlo"), ask("mail-from"), ask("quit"))
	add("not at quit", "-blockBelow 50 -blockPhase mail-from", "S1|T|proceed\nS1|T|proceed",
		link("1.2.3.42"), connect("1.2.3.42"), ask("quit"))
	add("too late to junk", "-junkBelow 50", "S1|T|proceed\nS1|T|proceed", link("1.2.3.42"), ask("commit"), ask("quit"))
	add("junk, then block", "-junkBelow 50 -blockBelow 50 -blockPhase ehlo", "S1|T|junk\nS1|T|"+reply,
		link("1.2.3.42"), connect("1.2.3.42"), ask("ehlo"))
	add("no header", "", "S1|T|X-SenderScore: 7\nS1|T|\nS1|T|..\nS1|T|.",
		link("1.2.3.42"), line("X-SenderScore: 7"), line(""), line(".."), line("."))
	add("header", "-scoreHeader", "S1|T|X-SenderScore: 42\nS1|T|Subject: a|b\nS1|T|X-SenderScore: 7\nS1|T|\nS1|T|text\nS1|T|.",
		link("1.2.3.42"), line("Subject: a|b"), line("X-SenderScore: 7"), line(""), line("text"), line("."))
	add("header of each message", "-scoreHeader",
		"S1|T|proceed\nS1|T|X-SenderScore: 42\nS1|T|one\nS1|T|.\nS1|T|proceed\nS1|T|X-SenderScore: 42\nS1|T|two\nS1|T|.",
		link("1.2.3.42"), ask("data"), line("one"), line("."), ask("data"), line("two"), line("."))
	add("header of an empty message", "-scoreHeader", "S1|T|X-SenderScore: 42\nS1|T|.", link("1.2.3.42"), line("."))
	add("header of an empty message after DATA", "-header", "S1|T|proceed\nS1|T|X-SenderScore: 42\nS1|T|.\nS1|T|X-SenderScore: 42\nS1|T|.",
		link("1.2.3.42"), ask("data"), line("."), line("."))
	add("no header of an empty message", "", "S1|T|.", link("1.2.3.42"), line("."))
	add("header without score", "-scoreHeader", "S1|T|one\nS1|T|.", link("1.2.3.255"), line("one"), line("."))
	add("order", "-blockBelow 50", "S1|T|"+reply+"\nS2|T|proceed\nS1|T|proceed\nS2|T|proceed",
		link("1.2.3.42"), strings.Replace(link("1.2.3.52"), "S1", "S2", 1), connect("1.2.3.42"),
		strings.Replace(connect("1.2.3.52"), "S1", "S2", 1), ask("ehlo"), strings.Replace(ask("ehlo"), "S1", "S2", 1))
	for version, want := range map[string]string{"0.4": "T|S1", "0.5": "S1|T", "0.6": "S1|T", "0.7": "S1|T", "0.42": "S1|T"} {
		old := strings.NewReplacer("|0.5|", "|"+version+"|")
		add("version "+version, "-blockBelow 50", want+"|"+reply+"\n"+want+"|one\n"+want+"|.",
			old.Replace(link("1.2.3.42")), old.Replace(connect("1.2.3.42")), old.Replace(line("one")), old.Replace(line(".")))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, stderr, status := testMode(t, tt.args, tt.in...)
			if got != tt.want || status != 0 {
				t.Errorf("status %d, got\n%s\nwant\n%s\nstderr\n%s", status, got, tt.want, stderr)
			}
		})
	}
}

// In -testMode, and only there, a broken stream ends the filter.
func TestTestModeStrict(t *testing.T) {
	const link = "report|0.5|0|smtp-in|link-connect|S1|C|1.2.3.42:33174|1.1.1.1:25"
	for _, tt := range []struct{ name, line string }{
		{"stream", "invalid|0.5|0|smtp-in|connect|S1|T|x"},
		{"empty line", ""},
		{"version", "filter|1.0|0|smtp-in|connect|S1|T|x"},
		{"subsystem", "filter|0.5|0|smtp-out|connect|S1|T|x"},
		{"phase", "filter|0.5|0|smtp-in|invalid|S1|T|x"},
		{"event", "report|0.5|0|smtp-in|invalid|S1|x"},
		{"one atom", "filter"},
		{"two atoms", "filter|0.5"},
		{"five atoms", "filter|0.5|0|smtp-in|connect"},
		{"six atoms", "filter|0.5|0|smtp-in|connect|S1"},
		{"report of four atoms", "report|0.5|0|smtp-in"},
		{"link without fields", "report|0.5|0|smtp-in|link-connect|S1"},
		{"session", "filter|0.5|0|smtp-in|connect|S2|T|x"},
		{"session of a line", "filter|0.5|0|smtp-in|data-line|S2|T|x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, stderr, status := testMode(t, "", link, tt.line)
			if status != 1 || stderr == "" {
				t.Errorf("status %d, stderr %q", status, stderr)
			}
		})
	}
}

func TestDelay(t *testing.T) {
	for _, tt := range []struct {
		args  string
		score int
		want  string
	}{
		{"", 0, "0s"},
		{"-slowFactor 0", 0, "0s"},
		{"-slowFactor 5000", 0, "5s"},
		{"-slowFactor 5000", 5, "4.75s"},
		{"-slowFactor 5000", 42, "2.9s"},
		{"-slowFactor 5000", 99, "50ms"},
		{"-slowFactor 5000", 100, "0s"},
		{"-slowFactor 5000", 254, "0s"},
		{"-slowFactor 99", 99, "0s"}, // whole milliseconds
		{"-slowFactor 199", 99, "1ms"},
		{"-slowFactor 5000 -slowMax 1s", 5, "1s"},
		{"-slowFactor 40000", 0, "30s"},
		{"-slowFactor 9223372036854775807", 1, "30s"},
		{"-slowFactor 5000 -slowMax 0", 5, "0s"},
	} {
		var c *check
		s := spec
		s.New = func(p *program.Program) func() (program.Check, error) {
			open := newCheck(p)
			return func() (program.Check, error) {
				made, err := open()
				c, _ = made.(*check)
				return made, err
			}
		}
		if program.Run(s, append(strings.Fields(tt.args), "-n", "-stateFile", ""), program.Streams{Out: io.Discard, Err: io.Discard}) != 0 {
			t.Fatal(tt.args)
		}
		if got := c.delay(tt.score).String(); got != tt.want {
			t.Errorf("%s, score %d: %s, want %s", tt.args, tt.score, got, tt.want)
		}
	}
}
