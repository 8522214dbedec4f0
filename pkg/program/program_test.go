package program_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/program"
)

// filter-helo is that of the example, filter-probe looks at its sandbox.
func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){
		"filter-helo":  func() { program.Main(spec) },
		"filter-probe": func() { program.Main(probeSpec) },
	})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

func TestTraces(t *testing.T) {
	for _, phase := range []string{"helo", "rcpt-to", "data"} {
		filtertest.ReplayTraces(t, "filter-helo", "-commonList", "", "-resolver", "127.0.0.1:1", "-phase", phase, "-short", "refuse")
	}
}

// files writes the lists of the tests to a directory and makes it the present one.
func files(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"clients": "192.0.2.0/24\nfriends.example\n",
		"half":    "192.0.2.1\nno client\n",
		"bad":     "no client\n",
		"reject":  "192.0.2.0/24 reject\n",
		"rcpts":   "bob@example.org\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a program in this process.
func run(s program.Spec, args ...string) (status int, out, errs string) {
	var o, e bytes.Buffer
	status = program.Run(s, args, program.Streams{In: strings.NewReader(""), Out: &o, Err: &e})
	return status, o.String(), e.String()
}

// A toy does nothing, with arguments and a command of its own.
type toy struct {
	*program.Program
	task func(context.Context)
}

var toySpec = program.Spec{
	Name: "filter-toy", Args: "list...", Timeout: time.Second, Phase: "connect", Field: "X-Toy", Commands: []string{"echo"},
	New: newToy(nil),
}

func newToy(task func(context.Context)) func(p *program.Program) func() (program.Check, error) {
	return func(p *program.Program) func() (program.Check, error) {
		at := p.Int("at", 5, "refuse from score `N` on")
		ask := p.String("echo", "", "the command echo of `WORD`")
		return func() (program.Check, error) {
			if *ask != "" {
				if err := p.Do("echo", *ask); err != nil {
					return nil, err
				}
			}
			if *at < 0 {
				return nil, cli.BadFlag("at", fmt.Sprint(*at), errors.New("less than 0"))
			}
			if *at > 100 {
				p.Warn("-at %d: nobody has that many", *at)
			}
			p.Mask(func(s string) string { return strings.ReplaceAll(s, "SECRET", "***") })
			if task != nil {
				p.Beside("task", task)
			}
			return &toy{p, task}, nil
		}
	}
}

type ended struct{}

func (ended) Serve(in io.Reader, out io.Writer) int {
	_, _ = io.WriteString(out, "SECRET is for smtpd\n")
	_, _ = io.Copy(io.Discard, in)
	return 0
}

func (c *toy) Filter() program.Runner { return ended{} }

func (c *toy) Explain(_ context.Context, q program.Query, t *program.Table) error {
	t.Row("answer", "%s from %q to %q as %q with %q", q.Addr, q.Sender, q.Rcpt, q.Helo, c.Args())
	return nil
}

func (c *toy) Config(t *program.Table) { t.Row("arguments", "%q, SECRET", c.Args()) }

func (c *toy) Command(args []string) error {
	_, err := fmt.Fprintf(c.Out, "%q with %q\n", args, c.Args())
	return err
}

// Command lines: the exit status, and what is on the standard output and error.
func TestCommandLine(t *testing.T) {
	files(t)
	const none = "-commonList "
	for _, tt := range []struct {
		args      string
		status    int
		out, errs string // a part of it; "" is nothing
	}{
		// Flags and commands after the arguments.
		{"-n a b", 0, `arguments                    ["a" "b"], ***`, ""},
		{"a b -n", 0, `["a" "b"]`, ""},
		{"a -n b", 0, `["a" "b"]`, ""},
		{"a -at 7 b -n", 0, "-at                          7\n", ""},
		{"a explain 192.0.2.1", 0, `answer   192.0.2.1 from "" to "" as "" with ["a"]`, ""},
		{"-at 7 a b explain 192.0.2.1 <> <bob@example.org> host", 0, `192.0.2.1 from "" to "bob@example.org" as "host" with ["a" "b"]`, ""},
		{"a -check 192.0.2.1", 0, `192.0.2.1 from "" to "" as "" with ["a"]`, ""},
		{"a -check [192.0.2.1]:25", 0, `answer   192.0.2.1 `, ""},
		{"a explain 192.0.2.1:25", 0, `answer   192.0.2.1 `, ""},
		{"a explain", 1, "", "filter-toy: explain: want ADDRESS [SENDER [RECIPIENT [HELO]]], a null sender as <>\n"},
		{"a explain 192.0.2.1 a b c d", 1, "", "explain: want ADDRESS"},
		{"a explain 192.0.2.1 a@b.example c", 1, "", "c is not the address of a recipient"},
		{"a explain mx.example.com", 1, "", "filter-toy: explain mx.example.com: not an address\n"},
		{"a -check 192.0.2.1 explain 192.0.2.1", 1, "", "-check 192.0.2.1: not with explain\n"},
		{"a echo one two", 0, `["echo" "one" "two"] with ["a"]`, ""},
		{"a -echo one", 0, `["echo" "one"] with ["a"]`, ""},
		{"a -echo one echo two", 1, "", "echo one: not with echo two"},
		{"a echo SECRET", 0, `["echo" "***"]`, ""},

		// -n.
		{"-n -at 101", 0, "warning                      -at 101: nobody has that many\n", ""},
		{"-n -allowClients clients", 0, "entries of -allowClients     2\n", ""},
		{"-n -allowClients half", 1, "entries of -allowClients     1\n", `filter-toy: half:2: `},
		{"-n -allowClients bad", 1, "", "filter-toy: "},
		{"-allowClients bad", 1, "", "bad:1: "},
		{"-n -allowClients nosuch", 1, "entries of -allowClients     0\n", "nosuch: no such file"},
		{"-n -allowSenders nosuch -allowRecipients nosuch", 1, "entries of -allowSenders     0\n", "nosuch: no such file"},
		{"-n -allowClients reject", 0, "warning", ""},
		{"-n -allowRecipients rcpts", 0, "-allowRecipients does nothing at connect: recipients are not known yet", ""},
		{"-n -allowRecipients rcpts -phase rcpt-to", 0, "entries of -allowRecipients  3", ""}, // with the default

		// Lists in force.
		{"-allowClients clients explain 192.0.2.1", 0, "answer   proceed, never judged: -allowClients clients:1\n", ""},
		{"-allowClients reject explain 192.0.2.1", 0, "list     -allowClients reject:1 says reject, which does not count here\n", ""},
		{"explain 10.0.0.1", 0, "answer   proceed, never judged: private\n", ""},
		{"-phase rcpt-to explain 192.0.2.1 a@b.example postmaster@example.org", 0, "never judged: -allowRecipients default\n", ""},
		{"-phase mail-from explain 192.0.2.1 a@b.example postmaster@example.org", 0, `to "postmaster@example.org"`, ""},

		// A run under smtpd. What goes there is not masked.
		{"a", 0, "SECRET is for smtpd\n", ""},
		{"-at 101", 0, "SECRET", "warning: -at 101: nobody has that many\n"},
		{"-allowClients nosuch", 0, "SECRET", "nosuch"},
		{"-allowClients half", 0, "SECRET", "half:2"},

		// What is asked, and what is wrong.
		{"-version", 0, "filter-toy ", ""},
		{"-h", 0, "usage: filter-toy [flags] list...\n       filter-toy [flags] list... explain ADDRESS [SENDER [RECIPIENT [HELO]]]\n", ""},
		{"a -h", 0, "usage: filter-toy ", ""},
		{"-nosuch", 1, "", "filter-toy: -nosuch: no such flag\n"},
		{"a -nosuch", 1, "", "filter-toy: -nosuch: no such flag\n"},
		{"-AT 7", 1, "", "filter-toy: -AT: no such flag; it is written -at\n"},
		{"-at", 1, "", "filter-toy: -at: it needs a value\n"},
		{"-at x", 1, "", "filter-toy: -at x: want a whole number\n"},
		{"-at -7", 1, "", "filter-toy: -at -7: less than 0\n"},
		{"-at -7 -n", 1, "", "filter-toy: -at -7: less than 0\n"},
		{"-at -7 -allowClients bad", 1, "", "less than 0\n"}, // all that is wrong is told
		{"-at -7 -allowClients bad", 1, "", "bad:1: "},
		{"-phase later", 1, "", "filter-toy: -phase later: not one of connect, helo, mail-from, rcpt-to, data\n"},
		{"-timeout 1ms", 1, "", "filter-toy: -timeout 1ms: less than 10ms\n"},
	} {
		status, out, errs := run(toySpec, append(strings.Split(none, " "), strings.Fields(tt.args)...)...)
		has := func(text, part string) bool {
			return text == "" && part == "" || part != "" && strings.Contains(text, part)
		}
		if status != tt.status || !has(out, tt.out) || !has(errs, tt.errs) {
			t.Errorf("%s: status %d, output\n%s\nerrors\n%s\nwant %d, %q, %q", tt.args, status, out, errs, tt.status, tt.out, tt.errs)
		}
	}
}

// Without arguments, and with commands, the error says what there is.
func TestNoArguments(t *testing.T) {
	s := toySpec
	s.Args = ""
	if status, _, errs := run(s, "word"); status != 1 || errs != "filter-toy: word: not one of echo, explain\n" {
		t.Errorf("%d, %q", status, errs)
	}
	s.Commands = nil
	if status, _, errs := run(s, "word"); status != 1 || errs != "filter-toy: unexpected argument \"word\"\n" {
		t.Errorf("%d, %q", status, errs)
	}
}

// A program may have phases of its own.
func TestOwnPhases(t *testing.T) {
	s := toySpec
	s.Phase, s.Phases = "ehlo", []string{"ehlo", "auth", "quit"}
	var at any
	s.New = func(p *program.Program) func() (program.Check, error) {
		return func() (program.Check, error) { at = p.Phase; return &toy{Program: p}, nil }
	}
	for _, tt := range []struct{ args, phase string }{{"-n", "ehlo"}, {"-n -phase auth", "auth"}, {"-phase quit -n", "quit"}} {
		if status, _, errs := run(s, strings.Fields(tt.args)...); status != 0 || fmt.Sprint(at) != tt.phase {
			t.Errorf("%s: %d, %v, %s", tt.args, status, at, errs)
		}
	}
	if _, _, errs := run(s, "-phase", "connect"); errs != "filter-toy: -phase connect: not one of ehlo, auth, quit\n" {
		t.Error(errs)
	}
	if _, out, _ := run(s, "-h"); !strings.Contains(out, "decide at PHASE: ehlo, auth or quit (default ehlo)") {
		t.Error(out)
	}
}

// A hundred recipients have a hundred answers, each its own, and two lines of the
// log; two sessions do not mix.
func TestManyRecipients(t *testing.T) {
	files(t)
	in := "config|ready\n"
	for _, id := range []string{"7641df9771b4ed00", "4c04727b7583d924"} {
		in += "report|0.7|1.0|smtp-in|link-connect|" + id + "|<unknown>|fail|203.0.113.5:40000|192.0.2.25:25\n" +
			"report|0.7|1.1|smtp-in|link-identify|" + id + "|EHLO|pc\n" +
			"report|0.7|1.2|smtp-in|tx-mail|" + id + "|b0000001|ok|a@sender.example\n"
	}
	for i := range 100 {
		for _, id := range []string{"7641df9771b4ed00", "4c04727b7583d924"} {
			rcpt := fmt.Sprintf("user%d@example.org", i)
			if i%10 == 3 {
				rcpt = "Postmaster@example.org"
			}
			in += "filter|0.7|1.3|smtp-in|rcpt-to|" + id + "|1ef1c203cc576e5d|" + rcpt + "\n"
		}
	}
	for _, id := range []string{"7641df9771b4ed00", "4c04727b7583d924"} {
		in += "report|0.7|1.4|smtp-in|tx-reset|" + id + "|b0000001\n"
	}
	var out, errs bytes.Buffer
	status := program.Run(spec, []string{"-commonList", "", "-resolver", "127.0.0.1:1", "-phase", "rcpt-to", "-short", "refuse"},
		program.Streams{In: strings.NewReader(in), Out: &out, Err: &errs})
	refused, passed := strings.Count(out.String(), "|reject|550 5.7.1 "), strings.Count(out.String(), "|proceed\n")
	if status != 0 || refused != 180 || passed != 20 {
		t.Errorf("status %d, %d refused, %d passed", status, refused, passed)
	}
	for _, id := range []string{"7641df9771b4ed00", "4c04727b7583d924"} {
		line := id + " filter=helo action=refuse reason=short addr=203.0.113.5 name=- from=<a@sender.example> rcpt=<user0@example.org> helo=pc"
		if !strings.Contains(errs.String(), line+"\n") || !strings.Contains(errs.String(), line+" more=89\n") || strings.Count(errs.String(), "\n") != 4 {
			t.Errorf("log\n%s", &errs)
		}
	}
}

// The end waits for what is written then, but not for ever.
func TestEnd(t *testing.T) {
	files(t)
	s := toySpec
	wrote := false
	s.New = newToy(func(ctx context.Context) { <-ctx.Done(); time.Sleep(100 * time.Millisecond); wrote = true })
	if status, _, errs := run(s, "-commonList", ""); status != 0 || !wrote || errs != "" {
		t.Errorf("status %d, written %v, %s", status, wrote, errs)
	}
	file := filepath.Join(t.TempDir(), "metrics")
	s.New = newToy(func(ctx context.Context) { select {} })
	began := time.Now()
	status, _, errs := run(s, "-commonList", "", "-metrics", file)
	if status != 0 || !strings.Contains(errs, "warning: not everything could be written before the end waited=2s") {
		t.Errorf("status %d, %s", status, errs)
	}
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("after %v", d)
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `filter_build_info{filter="toy"`) {
		t.Errorf("metrics %q, %v", text, err)
	}

	// A task that panics ends nothing, and the end does not wait for the next try.
	s.New = newToy(func(ctx context.Context) { panic("task") })
	if status, _, errs := run(s, "-commonList", ""); status != 0 || !strings.Contains(errs, "error: task panic=task") || strings.Contains(errs, "waited") {
		t.Errorf("status %d, %s", status, errs)
	}
}
