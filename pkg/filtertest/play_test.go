package filtertest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	Main(m, map[string]func(){
		"filter-fake": func() {
			fmt.Fprintln(os.Stderr, "args", os.Args[1:])
			fake{class: slices.Contains(os.Args, "-class"), log: os.Stderr}.run(os.Stdin, os.Stdout)
			if slices.Contains(os.Args, "-fail") {
				os.Exit(3)
			}
		},
	})
}

// A fake is a filter. The zero value registers everything, lets everything pass, and splits long data lines.
type fake struct {
	register []string // phases; all if nil
	class    bool     // junk senders of junk.example, add a header field
	log      io.Writer

	answer func(r *request, sep string) []string // instead of proceed and echo, if it returns lines
	early  bool                                  // return at the first request
	deaf   bool                                  // register no reports
}

func (f fake) run(stdin io.Reader, stdout io.Writer) {
	w := bufio.NewWriter(stdout)
	defer w.Flush()
	br := bufio.NewReader(stdin)
	reg := f.register
	if reg == nil {
		reg = phases
	}
	inBody := make(map[string]bool)
	if !f.deaf {
		fmt.Fprintln(w, "register|report|smtp-in|*")
	}
	for _, p := range reg {
		fmt.Fprintln(w, "register|filter|smtp-in|"+p)
	}
	fmt.Fprintln(w, "register|ready")
	for {
		if br.Buffered() == 0 {
			w.Flush()
		}
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\n")
		r, ok := parseRequest(line)
		if r, ok := parseReport(line); ok && f.log != nil {
			fmt.Fprintln(f.log, r.event, strings.SplitN(line, "|", 6)[5])
		}
		if !ok {
			continue
		}
		if f.early {
			return
		}
		ids := r.session + "|" + r.token
		if r.minor < 5 {
			ids = r.token + "|" + r.session
		}
		if f.answer != nil {
			if lines := f.answer(r, ids); lines != nil {
				fmt.Fprint(w, strings.Join(lines, ""))
				continue
			}
		}
		if !r.message() {
			decision := "proceed"
			if f.class && r.phase == "mail-from" && strings.HasSuffix(r.params, "@junk.example") {
				decision = "junk"
			}
			if f.class && r.phase == "rcpt-to" && strings.HasPrefix(r.params, "no") {
				decision = "reject|550 5.1.1 no " + r.params
			}
			if f.class && r.phase == "connect" && strings.HasSuffix(r.params, "|203.0.113.30") {
				decision = "disconnect|421 go away"
			}
			fmt.Fprintf(w, "filter-result|%s|%s\n", ids, decision)
			continue
		}
		if f.class && !inBody[r.session] && r.params == "" {
			fmt.Fprintf(w, "filter-dataline|%s|X-Class: fake\n", ids)
		}
		for _, piece := range split(r, !inBody[r.session]) {
			fmt.Fprintf(w, "filter-dataline|%s|%s\n", ids, piece)
		}
		inBody[r.session] = r.params != "." && (inBody[r.session] || r.params == "")
	}
}

func split(r *request, header bool) (pieces []string) {
	n := 65485
	if r.minor < 7 {
		n = maxOldData
	}
	text, pre := r.params, ""
	if len(text) > n && text[0] == '.' {
		text, pre = text[1:], "."
	}
	for len(pre)+len(text) > n {
		pieces = append(pieces, pre+text[:n-len(pre)])
		text, pre = text[n-len(pre):], ""
		if header {
			pre = " "
		} else if text[0] == '.' {
			pre = "."
		}
	}
	return append(pieces, pre+text)
}

// A record is a testing.TB that notes failures.
type record struct {
	testing.TB
	failed   string
	cleanups []func()
}

func (r *record) Helper()          {}
func (r *record) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *record) Errorf(format string, args ...any) {
	r.failed += fmt.Sprintf(format, args...) + "\n"
}
func (r *record) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r)
}
func (r *record) Fatal(args ...any) { r.Fatalf("%v", args) }

// fails runs f and returns how it failed its test.
func fails(t *testing.T, f func(t testing.TB)) string {
	r := &record{TB: t}
	func() {
		defer func() {
			if p := recover(); p != nil && p != r {
				panic(p)
			}
			for _, c := range r.cleanups {
				c()
			}
		}()
		f(r)
	}()
	return r.failed
}

const req = "filter|0.7|1.000001|smtp-in|"

func TestPeer(t *testing.T) {
	for name, p := range map[string]Program{
		"in process": {Func: fake{class: true}.run},
		"process":    {Cmd: []string{"filter-fake", "-class"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := p.Start(t)
			p.Send("report|0.7|1.000001|smtp-in|link-connect|" + s1 + "|x|pass|198.51.100.7:1|192.0.2.25:25")
			p.Send(req + "connect|" + s1 + "|" + tokenOf("connect") + "|x|198.51.100.7")
			p.Send(req + "mail-from|" + s1 + "|" + tokenOf("mail-from") + "|a@junk.example") // waits for connect
			p.Expect("s1", "connect", "proceed")
			p.Expect(s1, "mail-from", "junk")
			p.EOF()
			p.Close()
			if log := p.Log(); name == "process" && (len(log) != 2 || log[0] != "args [-class]") {
				t.Error(log)
			}
		})
	}
}

func TestPeerNotRegistered(t *testing.T) {
	p := Program{Version: "0.4", Func: fake{register: []string{"quit"}}.run}.Start(t)
	if p.Send("filter|0.4|1.000001|smtp-in|noop|" + s1 + "|" + tokenOf("noop") + "|") {
		t.Error("noop was sent")
	}
	if !p.Send("filter|0.4|1.000001|smtp-in|quit|"+s1+"|"+tokenOf("quit")+"|") || !p.Send("garbage") {
		t.Error("quit was not sent")
	}
	p.Expect(s1, "quit", "proceed")
}

// A session ends for smtpd whether or not the filter hears of it.
func TestPeerDeaf(t *testing.T) {
	p := Program{Func: fake{deaf: true}.run}.Start(t)
	p.Dialogue("connect s1 198.51.100.7\n> s1 data-line Subject: half\ngone s1\nconnect s2 198.51.100.8")
	if p.Send("report|0.7|1.000001|smtp-in|timeout|" + s1) {
		t.Error("report was sent")
	}
}

// Each way to be bad fails the test.
func TestPeerBad(t *testing.T) {
	quit := req + "quit|" + s1 + "|" + tokenOf("quit") + "|"
	answer := func(lines ...string) func(*request, string) []string {
		return func(_ *request, ids string) []string {
			for i, l := range lines {
				lines[i] = strings.ReplaceAll(l, "IDS", ids) + "\n"
			}
			return lines
		}
	}
	for _, tt := range []struct {
		name, want string
		p          Program
	}{
		{"debug output", "stray", Program{Func: fake{answer: answer("hello", "filter-result|IDS|proceed")}.run}},
		{"two answers", "second", Program{Func: fake{answer: answer("filter-result|IDS|proceed", "filter-result|IDS|proceed")}.run}},
		{"other answer", "want quit", Program{Func: fake{answer: answer("filter-result|IDS|reject|550 no")}.run}},
		{"broken line", "inside a line", Program{Func: func(r io.Reader, w io.Writer) {
			fake{}.run(r, w)
			io.WriteString(w, "filter-res")
		}}},
		{"ends", "the filter ended", Program{Func: fake{early: true}.run}},
		{"ends at once", "before register|ready", Program{Func: func(io.Reader, io.Writer) {}}},
		{"exit status", "exit status 3", Program{Cmd: []string{"filter-fake", "-fail"}}},
		{"not there", "executable file not found", Program{Cmd: []string{"filter-nothing"}}},
		{"no command", "no command", Program{}},
		{"version", "unknown protocol version", Program{Version: "0.3", Func: fake{}.run}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := fails(t, func(t testing.TB) {
				p := tt.p.Start(t)
				p.Send(quit)
				p.Expect(s1, "quit", "proceed")
			})
			if !strings.Contains(got, tt.want) {
				t.Errorf("failed with %q, want %s", got, tt.want)
			}
		})
	}
}

// A filter that hangs ends the test after the limit.
func TestPeerHangs(t *testing.T) {
	for _, p := range []Program{
		{Func: fake{answer: func(*request, string) []string { return []string{} }}.run},
		{Func: func(r io.Reader, _ io.Writer) { io.Copy(io.Discard, r) }},
		{Func: func(r io.Reader, w io.Writer) {
			fake{}.run(r, w)
			time.Sleep(2 * limit)
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			got := fails(t, func(t testing.TB) {
				p := p.Start(t)
				p.Send(req + "quit|" + s1 + "|" + tokenOf("quit") + "|")
				p.Expect(s1, "quit", "proceed")
			})
			if !strings.Contains(got, "nothing for 30s") || time.Since(begin) < limit {
				t.Errorf("failed with %q after %v", got, time.Since(begin))
			}
			time.Sleep(3 * limit)
		})
	}
}

// An answer may take its time.
func TestPeerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Program{Func: fake{answer: func(*request, string) []string {
			time.Sleep(20 * time.Second)
			return nil
		}}.run}.Start(t)
		p.Dialogue("> s1 mail-from a@b\n! s1\n> s1 tx-begin b0000001\n< s1 mail-from proceed")
	})
}

func TestReplay(t *testing.T) {
	for _, p := range []Program{
		{Func: fake{}.run},
		{Func: fake{class: true}.run},
		{Func: fake{register: []string{"connect", "commit"}}.run},
		{Func: fake{register: []string{}}.run},
	} {
		p.ReplayTraces(t)
	}
	ReplayTraces(t, "filter-fake")
	Replay(t, "testdata/traces/7.8-proto0.7/02_basic.in", "filter-fake", "-class")
}

func TestHostileGood(t *testing.T) {
	Program{Func: fake{class: true}.run}.Hostile(t)
	Program{Func: fake{register: []string{"mail-from", "data-line"}}.run}.Hostile(t)
	Hostile(t, "filter-fake", "-class")
}

// What bad filters do is noticed by a replay of one plain session or by a hostile stream.
func TestReplayBad(t *testing.T) {
	once := func(phase string, lines ...string) fake {
		return fake{answer: func(r *request, ids string) []string {
			if r.phase != phase || r.message() && r.params != "" {
				return nil
			}
			out := []string{}
			for _, l := range lines {
				out = append(out, strings.ReplaceAll(l, "IDS", ids)+"\n")
			}
			return out
		}}
	}
	limited := func(r io.Reader, w io.Writer) { // the bufio.Scanner limit
		pr, pw := io.Pipe()
		go func() {
			s := bufio.NewScanner(r)
			for s.Scan() {
				fmt.Fprintln(pw, s.Text())
			}
			pw.Close()
		}()
		fake{}.run(pr, w)
	}
	seen := make(map[string]bool)
	for _, tt := range []struct {
		name, want string
		f          func(io.Reader, io.Writer)
	}{
		{"no answer", "unanswered", once("rcpt-to").run},
		{"two answers", "second", once("quit", "filter-result|IDS|proceed", "filter-result|IDS|proceed").run},
		{"debug", "stray", once("quit", "filter-result|IDS|proceed", "quit asked").run},
		{"junk at commit", "junk-commit", once("commit", "filter-result|IDS|junk").run},
		{"reject at connect", "connect", once("connect", "filter-result|IDS|reject|550 no").run},
		{"line lost", "lost", once("data-line").run},
		{"result in data", "phase", once("data-line", "filter-result|IDS|proceed").run},
		{"two dots", "after-dot", fake{answer: func(r *request, ids string) []string {
			if r.message() && r.params == "." {
				return []string{"filter-dataline|" + ids + "|.\n", "filter-dataline|" + ids + "|.\n"}
			}
			return nil
		}}.run},
		{"old order", "order", fake{answer: func(r *request, ids string) []string {
			if r.phase == "quit" {
				return []string{"filter-result|" + r.token + "|" + r.session + "|proceed\n"}
			}
			return nil
		}}.run},
		{"not split", "length", fake{answer: func(r *request, ids string) []string {
			if r.message() {
				return []string{"filter-dataline|" + ids + "|" + r.params + "\n"}
			}
			return nil
		}}.run},
		{"not stuffed", "dot", fake{answer: func(r *request, ids string) []string {
			if !r.message() || len(r.params) <= 65485 || r.params[0] == 'X' {
				return nil
			}
			return []string{"filter-dataline|" + ids + "|" + r.params[:65485] + "\n", "filter-dataline|" + ids + "|" + r.params[65485:] + "\n"}
		}}.run},
		{"CR lost", "lost", fake{answer: func(r *request, ids string) []string {
			if r.message() && strings.HasSuffix(r.params, "\r") {
				return []string{"filter-dataline|" + ids + "|" + strings.TrimSuffix(r.params, "\r") + "\n"}
			}
			return nil
		}}.run},
		{"no repeated requests", "unanswered", fake{answer: func(r *request, ids string) []string {
			if seen[r.line] && !r.message() {
				return []string{}
			}
			seen[r.line] = true
			return nil
		}}.run},
		{"answers garbage", "token", func(r io.Reader, w io.Writer) {
			pr, pw := io.Pipe()
			go func() {
				br := bufio.NewReader(r)
				for {
					l, err := br.ReadString('\n')
					if err != nil {
						break
					}
					io.WriteString(pw, strings.Replace(strings.Replace(l, "filter|1.", "filter|0.", 1), "frobnicate", "noop", 1))
				}
				pw.Close()
			}()
			fake{}.run(pr, w)
		}},
		{"line limit", "unanswered", limited},
		{"exits", "gone", fake{early: true}.run},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var errs []error
			for _, s := range HostileStreams() {
				clear(seen)
				errs = append(errs, Program{Func: tt.f}.hostile(s))
			}
			if err := errors.Join(errs...); err == nil || !strings.Contains("\n"+err.Error(), "\n"+tt.want+": ") {
				t.Errorf("got %.3000v, want %s", err, tt.want)
			}
		})
	}
}

// The requests that a stream names are those that the Checker finds.
func TestHostileStreams(t *testing.T) {
	names := make(map[string]bool)
	for _, s := range HostileStreams() {
		var found []string
		for l := range strings.Lines(string(s.Data)) {
			if line, ok := strings.CutSuffix(l, "\n"); ok {
				if _, ok := parseRequest(line); ok {
					found = append(found, line)
				}
			}
		}
		if !slices.Equal(found, s.Requests) {
			t.Errorf("%s: %d requests, named are %d", s.Name, len(found), len(s.Requests))
		}
		if names[s.Name] {
			t.Errorf("%s: twice", s.Name)
		}
		names[s.Name] = true
	}
}

func TestDialogues(t *testing.T) { testscript.Run(t, Params("testdata")) }

// Dialogues that fail, and why.
func TestDialogueBad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"m": "Subject: x\n\n.dot\n", "other": "X-Class: fake\nSubject: x\n\n.dot\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	begin := "connect s1 198.51.100.7\nehlo s1 x\n"
	for _, tt := range []struct{ want, text string }{
		{"line 1: \"hello\": unknown step", "hello"},
		{"line 3: ", "\n# comment\nversion"},
		{"unknown version", "version 0.3"},
		{"first step", "eof\nversion 0.6"},
		{"no session name", "! toolongname"},
		{"no session name", "> quit noop"},
		{"neither event nor phase", "> s1 connected x"},
		{"unknown phase", "< s1 link-connect proceed"},
		{"wrong number", "< s1 quit"},
		{"wrong number", "connect s1"},
		{"ParseAddr", "connect s1 nowhere"},
		{"missing unit", "at 60"},
		{"error parsing regexp", "~ ("},
		{"invalid syntax", "exit x"},
		{"got mail-from \"junk\"", begin + "mail s1 a@junk.example\n< s1 mail-from proceed"},
		{"which no step expects", begin + "mail s1 a@junk.example\nquit s1"},
		{"which no step expects", begin + "mail s1 a@junk.example"},
		{"which no step expects", "> s1 mail-from a@junk.example\n> s1 noop"},
		{"no answer is due", "< s1 mail-from proceed"},
		{"no answer is due", begin + "mail s1 a@b\n< s1 mail-from proceed\n< s1 mail-from proceed"},
		{"there is an answer", begin + "> s1 noop\n> s1 timeout\n! s1"},
		{"nothing was asked", "! s1"},
		{"answered too early", "> s1 noop hold\n! s1\n> s2 noop release\n< s2 noop proceed\n> s2 noop"},
		{"answered too early", "> s1 noop hold\n! s1\n> s2 noop release\n< s2 noop proceed"},
		{"session has ended", begin + "quit s1\nmail s1"},
		{"session has ended", "connect s1 203.0.113.30\n< s1 connect disconnect|421 go away\nquit s1"},
		{"the log line", "~ nothing of the kind\nexit 0"},
		{"exit status 0, want 1", "exit 1"},
		{"input has ended", "eof\n> s1 noop"},
		{"not registered", "<< register|filter|smtp-in|frobnicate"},
		{"not a line that a filter may write", "<< hello"},
		{"no session identifier", "<< filter-result|x|y|proceed"},
		{"no DNS server", "dns m"},
		{"no such file", begin + "mail s1\nrcpt s1 bob\nmessage s1 none"},
		{"the filter returned\nSubject: x\nX-Class: fake\n", begin + "mail s1\nrcpt s1 bob\nmessage s1 m"},
		{"the filter returned", begin + "mail s1\nrcpt s1 bob\nmessage s1 m other"},
		{"which no step expects", "> s1 data-line drop\n> s1 data-line .\n> s1 noop"},
		{"nothing for 30s", "> s1 data-line a: b\n> s1 data-line a: c\n< s1 data-line a: b\n< s1 data-line a: b"},
		{"misuse", "> s1 noop hold\n>> filter|0.7|{now}|smtp-in|noop|{s1}|{noop}|release"},
		{"second", ">> filter|0.7|{now}|smtp-in|noop|{s1}|{noop}|twice"},
	} {
		synctest.Test(t, func(t *testing.T) {
			held := ""
			f := fake{class: true, answer: func(r *request, ids string) []string {
				proceed := "filter-result|" + ids + "|proceed\n"
				switch r.params {
				case "drop":
					return []string{}
				case "twice":
					return []string{proceed, proceed}
				case "hold":
					held = proceed
					return []string{}
				case "release":
					return []string{held, proceed}
				}
				return nil
			}}
			_, err := Program{Func: f.run, Dir: dir, Edits: true}.play(tt.text, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
			}
		})
	}
}

func FuzzDialogue(f *testing.F) {
	f.Add("version 0.6\n> s1 link-connect x|pass|1.2.3.4:5|6\n< s1 mail-from reject|550 x\n>> {s1}\n~ ^{s1}\nat +5s\nconnect s1 ::1")
	f.Fuzz(func(t *testing.T, text string) {
		steps, err := parseDialogue(text)
		if err != nil {
			return
		}
		for _, s := range steps {
			for _, a := range s.arg {
				expand(a, "0.7", "1.000000")
			}
		}
	})
}
