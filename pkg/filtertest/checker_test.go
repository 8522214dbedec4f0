package filtertest

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
)

const (
	s1 = "7331000000000000"
	s2 = "7332000000000000"
)

// feed runs a short script: "> line" is sent, "< line" is the filter's, {NAME} and {PHASE} as in dialogues.
// "> PHASE PARAMS" and "> EVENT |FIELDS" get their prefix, for session s1.
func feed(c *Checker, version, text string) {
	for _, l := range strings.Split(text, "\n") {
		l = strings.TrimLeft(l, "\t")
		if l == "" {
			continue
		}
		mark, l := l[:2], expand(strings.NewReplacer(`\r`, "\r", `\0`, "\x00", `\t`, "\t").Replace(l[2:]), version, "")
		switch mark {
		case "> ":
			what, params, _ := strings.Cut(l, " ")
			if slices.Contains(phases, what) {
				l = "filter|" + version + "|1.000001|smtp-in|" + what + "|" + s1 + "|" + tokenOf(what) + "|" + params
			} else if slices.Contains(events, what) {
				l = "report|" + version + "|1.000001|smtp-in|" + what + "|" + s1 + params
			}
			c.Sent(l)
		case "< ":
			c.Got(l)
		}
	}
}

// Registers everything, as the recorded filter does.
var registerAll = func() string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString("< register|report|smtp-in|" + e + "\n")
	}
	for _, p := range phases {
		b.WriteString("< register|filter|smtp-in|" + p + "\n")
	}
	return b.String() + "< register|ready\n"
}()

const (
	result = "filter-result|{s1}|"
	data   = "filter-dataline|{s1}|{data-line}|"
	// a message of which the filter has returned everything but the dot
	halfMessage = "> data-line Received: x\n> data-line \\tby y\n> data-line Subject: z\n> data-line \n> data-line text\n"
	halfEcho    = "< " + data + "Received: x\n< " + data + "\\tby y\n< " + data + "Subject: z\n< " + data + "\n< " + data + "text\n"
	message     = halfMessage + "> data-line .\n"
	echo        = halfEcho + "< " + data + ".\n"
)

func TestRules(t *testing.T) {
	long := strings.Repeat("x", 70000)
	for _, tt := range []struct {
		name string
		want Rule // "" for none
		text string
	}{
		{"stray", Stray, "< debug: hello"},
		{"stray empty", Stray, "< |"},
		{"stray report", Stray, "< report|0.7|1.000000|smtp-in|timeout|" + s1},
		{"stray case", Stray, "< Filter-Result|{s1}|{mail-from}|proceed"},
		{"register garbage", Register, "< register|x"},
		{"register subsystem", Register, "< register|report|smtp|timeout"},
		{"register event", Register, "< register|report|smtp-in|tx-start"},
		{"register phase", Register, "< register|filter|smtp-in|mail"},
		{"register star", Register, "< register|filter|smtp-in|*"},
		{"register smtp-out", Register, "< register|filter|smtp-out|connect"},
		{"register CR", Register, `< register|ready\r`},
		{"register four fields", Register, "< register|report|smtp-in|timeout|x"},
		{"register late", LateRegister, "< register|filter|smtp-in|connect"},
		{"register late report", "", "< register|report|smtp-out|*"},
		{"ready twice", "", "< register|ready"},

		{"no fields", Field, "> mail-from a@b\n< filter-result"},
		{"no token", Field, "> mail-from a@b\n< filter-result|{s1}"},
		{"no decision", Field, "> mail-from a@b\n< filter-result|{s1}|{mail-from}"},
		{"no line", Field, halfMessage + "< filter-dataline|{s1}|{data-line}"},
		{"bad session", Hex, "> mail-from a@b\n< filter-result|s1|{mail-from}|proceed"},
		{"bad token", Hex, "> mail-from a@b\n< filter-result|{s1}|xyz|proceed"},
		{"short token", Hex, "> mail-from a@b\n< filter-result|{s1}|f17e|proceed"},
		{"blank token", Hex, "> mail-from a@b\n< filter-result|{s1}| {mail-from}|proceed"},
		{"case", Decision, "> mail-from a@b\n< " + result + "{mail-from}|PROCEED"},
		{"trailing blank", Decision, "> mail-from a@b\n< " + result + "{mail-from}|proceed "},
		{"trailing CR", Decision, "> mail-from a@b\n< " + result + `{mail-from}|junk\r`},
		{"empty decision", Decision, "> mail-from a@b\n< " + result + "{mail-from}|"},
		{"report decision", Decision, "> mail-from a@b\n< " + result + "{mail-from}|report|x"},
		{"proceed|x", Param, "> mail-from a@b\n< " + result + "{mail-from}|proceed|x"},
		{"proceed|", Param, "> mail-from a@b\n< " + result + "{mail-from}|proceed|"},
		{"junk|x", Param, "> mail-from a@b\n< " + result + "{mail-from}|junk|x"},
		{"reject", Param, "> mail-from a@b\n< " + result + "{mail-from}|reject"},
		{"disconnect", Param, "> mail-from a@b\n< " + result + "{mail-from}|disconnect|"},
		{"rewrite", Param, "> mail-from a@b\n< " + result + "{mail-from}|rewrite"},
		{"good reject", "", "> mail-from a@b\n< " + result + "{mail-from}|reject|550 5.7.1 no | bar"},
		{"no text", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|550"},
		{"no text but blank", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|550 "},
		{"more to come", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|550-x"},
		{"two hundred", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|250 ok"},
		{"six hundred", Text, "> mail-from a@b\n< " + result + "{mail-from}|disconnect|600 x"},
		{"no code", Text, "> mail-from a@b\n< " + result + "{mail-from}|disconnect|go away"},
		{"CR in text", Text, "> mail-from a@b\n< " + result + `{mail-from}|reject|550 a\rb`},
		{"NUL in text", Text, "> mail-from a@b\n< " + result + `{mail-from}|reject|550 a\0b`},
		{"8-bit text", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|550 größer"},
		{"text too long", Text, "> mail-from a@b\n< " + result + "{mail-from}|reject|550 " + long[:497]},
		{"text of 500", "", "> mail-from a@b\n< " + result + "{mail-from}|reject|550 " + long[:496]},

		{"second", Second, "> mail-from a@b\n< " + result + "{mail-from}|proceed\n< " + result + "{mail-from}|proceed"},
		{"second, other decision", Second, "> mail-from a@b\n< " + result + "{mail-from}|junk\n< " + result + "{mail-from}|proceed"},
		{"second, later", Second, "> mail-from a@b\n< " + result + "{mail-from}|proceed\n> rcpt-to a@b\n< " + result + "{mail-from}|proceed\n< " + result + "{rcpt-to}|proceed"},
		{"same token again", "", "> rcpt-to a@b\n< " + result + "{rcpt-to}|proceed\n> rcpt-to c@d\n< " + result + "{rcpt-to}|proceed"},
		{"unasked", Unasked, "> link-connect |x|pass|1.2.3.4:5|6.7.8.9:25\n< " + result + "{connect}|proceed"},
		{"unasked other", Unasked, "> mail-from a@b\n< " + result + "{mail-from}|proceed\n< " + result + "{rcpt-to}|proceed"},
		{"token", Token, "> mail-from a@b\n< " + result + "{rcpt-to}|proceed"},
		{"token zero", Token, "> mail-from a@b\n< " + result + "0000000000000000|reject|550 no"},
		{"data token", Token, "> data-line Received: x\n< filter-dataline|{s1}|{data}|Received: x"},
		{"swapped", Order, "> mail-from a@b\n< filter-result|{mail-from}|{s1}|proceed"},
		{"unknown session", "", "< filter-result|{s2}|{mail-from}|proceed"},
		{"session gone", "", "> link-disconnect\n< " + result + "{quit}|proceed"},
		{"result in data", Phase, halfMessage + "< " + result + "{data-line}|proceed"},
		{"data outside", Phase, "> mail-from a@b\n< " + data + "x"},
		{"data before data", Phase, "> data\n< " + data + "X-Spam: x"},
		{"junk at commit", JunkCommit, "> commit\n< " + result + "{commit}|junk"},
		{"reject at commit", "", "> commit\n< " + result + "{commit}|reject|550 no"},
		{"reject at connect", Connect, "> connect x|1.2.3.4\n< " + result + "{connect}|reject|550 no"},
		{"421 at connect", "", "> connect x|1.2.3.4\n< " + result + "{connect}|reject|421 no"},
		{"disconnect at connect", "", "> connect x|1.2.3.4\n< " + result + "{connect}|disconnect|550 no"},
		{"rewrite at commit", Rewrite, "> commit\n< " + result + "{commit}|rewrite|x"},
		{"rewrite at data", Rewrite, "> data\n< " + result + "{data}|rewrite|x"},
		{"rewrite at quit", Rewrite, "> quit\n< " + result + "{quit}|rewrite|x"},
		{"rewrite without <>", Rewrite, "> mail-from a@b\n< " + result + "{mail-from}|rewrite|c@d"},
		{"rewrite half <>", Rewrite, "> rcpt-to a@b\n< " + result + "{rcpt-to}|rewrite|<c@d"},
		{"rewrite with junk", Rewrite, "> rcpt-to a@b\n< " + result + "{rcpt-to}|rewrite|<c@d>x"},
		{"good rewrite", "", "> mail-from a@b\n< " + result + "{mail-from}|rewrite|<c@d> BODY=8BITMIME"},
		{"good helo rewrite", "", "> helo x\n< " + result + "{helo}|rewrite|y"},
		{"rewrite NUL", Text, "> helo x\n< " + result + `{helo}|rewrite|y\0`},

		{"echo", "", message + echo},
		{"echo as it comes", "", halfMessage + halfEcho + "> data-line .\n< " + data + ".\n> commit\n< " + result + "{commit}|proceed"},
		{"field in front", "", message + "< " + data + "X-Class: a\n< " + data + `\tb` + "\n" + echo},
		{"dot twice", AfterDot, message + echo + "< " + data + "."},
		{"after dot", AfterDot, message + echo + "< " + data + "x"},
		{"after dot, at commit", AfterDot, message + echo + "> commit\n< " + data + "x\n< " + result + "{commit}|proceed"},
		{"early dot", EarlyDot, halfMessage + halfEcho + "< " + data + ".\n> data-line ."},
		{"after an early dot", AfterDot, halfMessage + halfEcho + "< " + data + ".\n< " + data + "x\n> data-line ."},
		{"no dot", Unanswered, message + halfEcho},
		{"no answer", Unanswered, "> mail-from a@b"},
		{"unstuffed", Dot, message + halfEcho + "< " + data + ".x\n< " + data + "."},
		{"stuffed", "", message + halfEcho + "< " + data + "..x\n< " + data + "."},
		{"unstuffed by the client", "", halfMessage + "> data-line .x\n> data-line .\n" + halfEcho + "< " + data + ".x\n< " + data + "."},
		{"dot CR", DotCR, message + halfEcho + "< " + data + `.\r` + "\n< " + data + "."},
		{"dot CR by the client", "", halfMessage + `> data-line .\r` + "\n> data-line .\n" + halfEcho + "< " + data + `.\r` + "\n< " + data + "."},
		{"no field first", Header, message + "< " + data + "hello\n" + echo},
		{"empty line first", Header, message + "< " + data + "\n" + echo},
		{"continuation first", Header, message + "< " + data + `\tx` + "\n" + echo},
		{"empty message", Header, message + "< " + data + "."},
		{"blank in name", Header, message + "< " + data + "X Y: z\n" + echo},
		{"long name", Header, message + "< " + data + long[:1001] + ": z\n" + echo},
		{"garbage in header", Header, message + "< " + data + "A: b\n< " + data + "hello\n" + echo},
		{"as bad as before", "", "> data-line hello\n> data-line .\n< " + data + "hello\n< " + data + "."},
		{"NUL in data", NUL, message + halfEcho + "< " + data + `a\0b` + "\n< " + data + "."},
		{"limit of a line", "", message + halfEcho + "< " + data + long[:65485] + "\n< " + data + "."},
		{"over the limit", Length, message + halfEcho + "< " + data + long[:65486] + "\n< " + data + "."},
		{"long stray line", Length, "< " + long},

		{"misuse: unregistered", Misuse, "> help\n< " + result + "{help}|proceed"},
		{"misuse: two requests", Misuse, "> mail-from a@b\n> rcpt-to c@d\n< " + result + "{mail-from}|proceed\n< " + result + "{rcpt-to}|proceed"},
		{"misuse: commit in a message", Misuse, message + "> commit\n" + echo + "< " + result + "{commit}|proceed"},
		{"misuse: gone while it waits", Misuse, "> mail-from a@b\n> link-disconnect"},
		{"gone in a message", "", halfMessage + "> link-disconnect\n" + halfEcho},
		{"gone after the dot", "", message + "> link-disconnect\n" + halfEcho},
		{"garbage sent", "", "> mail-from\n> filter|1.0|1.000000|smtp-in|noop|{s2}|{noop}|\n< " + result + "{mail-from}|proceed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Checker{Edits: true}
			all := registerAll
			if strings.HasPrefix(tt.name, "misuse: unreg") {
				all = strings.Replace(all, "< register|filter|smtp-in|help\n", "", 1)
			}
			feed(c, "0.7", all+tt.text)
			c.End()
			check(t, c, tt.want)
		})
	}
}

// check wants a problem of one rule among those found, or none at all.
func check(t *testing.T, c *Checker, want Rule) {
	t.Helper()
	found := want == ""
	for _, p := range c.Problems() {
		found = found || p.Rule == want
		if want == "" || p.Text == "" || p.String() == "" {
			t.Errorf("problem: %v", p)
		}
	}
	if !found {
		t.Errorf("problems %v, want %s", c.Problems(), want)
	}
}

func TestRegistration(t *testing.T) {
	for _, tt := range []struct {
		want Rule
		text string
	}{
		{"", "< register|report|smtp-in|*\n< register|ready"},
		{"", "< register|ready"},
		{BeforeReady, "< hello\n< register|ready"},
		{BeforeReady, "< filter-result|{s1}|{noop}|proceed\n< register|ready"},
		{Register, "< register|ready|\n< register|ready"},
		{Register, "< register|\n< register|ready"},
		{Unready, "< register|report|smtp-in|*"},
		{BeforeReady, "<  register|ready"},
	} {
		c := new(Checker)
		feed(c, "0.7", tt.text)
		c.End()
		check(t, c, tt.want)
	}
	c := new(Checker)
	feed(c, "0.7", "< register|report|smtp-in|*\n< register|filter|smtp-in|commit\n< register|ready")
	if !c.Ready() || !c.Registered("report", "smtp-in", "timeout") || !c.Registered("filter", "smtp-in", "commit") ||
		c.Registered("filter", "smtp-in", "connect") || c.Registered("report", "smtp-out", "timeout") {
		t.Error(c.Registrations())
	}
	if r := c.Registrations(); !slices.Equal(r, []string{"report|smtp-in|*", "filter|smtp-in|commit"}) {
		t.Error(r)
	}
	feed(c, "0.7", "< register|report|smtp-in|timeout\n< filter-result|{s2}|{commit}|proceed")
	feed(c, "0.7", "> link-disconnect\n< filter-result|{s1}|{commit}|proceed")
	if w := c.Warnings(); len(w) != 3 || w[2].Rule != Unknown || w[0].Rule != Twice || w[1].Rule != Unknown {
		t.Error(w)
	}
}

// Before 0.5 the token comes first.
func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		version string
		want    Rule
		answer  string
	}{
		{"0.4", "", "< filter-result|{mail-from}|{s1}|proceed"},
		{"0.4", Order, "< filter-result|{s1}|{mail-from}|proceed"},
		{"0.4", Token, "< filter-result|{rcpt-to}|{s1}|proceed"},
		{"0.5", "", "< filter-result|{s1}|{mail-from}|proceed"},
		{"0.5", Order, "< filter-result|{mail-from}|{s1}|proceed"},
		{"0.6", Order, "< filter-result|{mail-from}|{s1}|proceed"},
		{"0.8", "", "< filter-result|{s1}|{mail-from}|proceed"},
		{"0.10", "", "< filter-result|{s1}|{mail-from}|proceed"},
	} {
		c := new(Checker)
		feed(c, tt.version, registerAll+"> mail-from a@b\n"+tt.answer)
		c.End()
		check(t, c, tt.want)
	}
}

// What smtpd before 7.4 cuts.
func TestCut(t *testing.T) {
	for version, want := range map[string]Rule{"0.5": Cut, "0.6": Cut, "0.7": "", "0.8": ""} {
		c := &Checker{Edits: true}
		feed(c, version, registerAll+message+halfEcho+"< "+data+strings.Repeat("x", 1998)+"\n< "+data+".")
		check(t, c, want)
		c = &Checker{Edits: true}
		feed(c, version, registerAll+message+halfEcho+"< "+data+strings.Repeat("x", 1997)+"\n< "+data+".")
		check(t, c, "")
	}
}

// A recorded session does not wait for answers.
func TestAhead(t *testing.T) {
	for _, tt := range []struct {
		name string
		want Rule
		text string
	}{
		{"in order", "", "> mail-from a@b\n> rcpt-to a@b\n> rcpt-to c@d\n" + message + "> commit\n> link-disconnect\n< " + result + "{mail-from}|proceed\n< " +
			result + "{rcpt-to}|proceed\n< " + result + "{rcpt-to}|junk\n" + echo + "< " + result + "{commit}|proceed"},
		{"out of order", Unanswered, "> mail-from a@b\n> rcpt-to a@b\n< " + result + "{rcpt-to}|proceed\n< " + result + "{mail-from}|proceed"},
		{"one too few", Unanswered, "> rcpt-to a@b\n> rcpt-to c@d\n> link-disconnect\n< " + result + "{rcpt-to}|proceed"},
		{"one too many", Second, "> rcpt-to a@b\n> link-disconnect\n< " + result + "{rcpt-to}|proceed\n< " + result + "{rcpt-to}|proceed"},
		{"not registered, not answered", "", "> help\n> noop\n< " + result + "{noop}|proceed"},
		{"not registered, answered", "", "> help\n> noop\n< " + result + "{help}|proceed\n< " + result + "{noop}|proceed"},
		{"half a message, kept", "", halfMessage + "> link-disconnect"},
		{"half a message, returned", "", halfMessage + "> link-disconnect\n" + halfEcho},
		{"half a message, finished", EarlyDot, halfMessage + "> link-disconnect\n" + echo},
		{"half a message, then another", "", halfMessage + "> link-disconnect\n> mail-from a@b\n" + halfEcho + "< " + result + "{mail-from}|proceed"},
		{"two messages", "", message + message + echo + echo},
		{"dot lost", Unanswered, message + message + echo + halfEcho},
		{"no dot before commit", Unanswered, message + "> commit\n" + halfEcho + "< " + result + "{commit}|proceed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Checker{Ahead: true}
			feed(c, "0.7", strings.Replace(registerAll, "< register|filter|smtp-in|help\n", "", 1)+tt.text)
			c.End()
			check(t, c, tt.want)
		})
	}
}

func TestAnswers(t *testing.T) {
	c := new(Checker)
	feed(c, "0.7", registerAll+"> rcpt-to a@b\n< "+result+"{rcpt-to}|proceed\n> rcpt-to c@d\n< "+result+"{rcpt-to}|reject|550 a|b\n"+message+echo)
	if a, ok := c.Answer(s1, "rcpt-to", 1); !ok || a.Decision != "reject" || a.Param != "550 a|b" {
		t.Error(a, ok)
	}
	if a, ok := c.Answer(s1, "data-line", 0); !ok || strings.Join(a.Lines, "\n") != "Received: x\n\tby y\nSubject: z\n\ntext" {
		t.Error(a, ok)
	}
	if _, ok := c.Answer(s1, "rcpt-to", 2); ok || len(c.Answers()) != 3 {
		t.Error(c.Answers())
	}
}

// What a receiver reads is the message that was sent, whatever was split on the way.
func TestSameMessage(t *testing.T) {
	h, b := "X-Long: "+strings.Repeat("h", 3000), strings.Repeat("b", 1995)+".."+strings.Repeat("c", 2000)
	d := ". " + strings.Repeat("d", 3000) // goes on with the field before it
	in := []string{"Received: x", "\tby y", h, "X-Class: forged", " more", "Subject: z", d, "", "text", "..x", b, "same", "same", "end"}
	edit := func(at, del int, lines ...string) []string {
		out := append([]string{}, in[:at]...)
		return append(append(out, lines...), in[at+del:]...)
	}
	for _, tt := range []struct {
		name string
		ok   bool
		out  []string
	}{
		{"same", true, in},
		{"field in front", true, edit(0, 0, "X-Test: b", "\tc", " d", "X-Test: e")},
		{"field at the end", true, edit(7, 0, "X-Test: b", "\tc")},
		{"field in a folded field", false, edit(1, 0, "X-Test: b")},
		{"field in the body", false, edit(9, 0, "X-Test: b")},
		{"no field", false, edit(0, 0, "hello")},
		{"split header", true, edit(2, 1, h[:1900], " "+h[1900:])},
		{"split header, not folded", false, edit(2, 1, h[:1900], h[1900:])},
		{"split behind a dot", true, edit(6, 1, d[:1900], " "+d[1900:])},
		{"split before the fold", false, edit(6, 1, ".", d[1:1900], " "+d[1900:])},
		{"split body", true, edit(10, 1, b[:1990], b[1990:1996], ".."+b[1997:])},
		{"split body, stuffed dot halved", true, edit(10, 1, b[:1995], "..."+b[1997:])},
		{"split body, not stuffed", false, edit(10, 1, b[:1995], b[1995:])},
		{"split body, piece lost", false, edit(10, 1, b[:1990])},
		{"split body, a lone dot", false, edit(10, 1, b[:1995], ".", ".."+b[1997:])},
		{"split short line", false, edit(8, 1, "te", "xt")},
		{"line lost", false, edit(8, 1)},
		{"one of two same lines lost", false, edit(11, 1)},
		{"last line lost", false, edit(13, 1)},
		{"line too much", false, edit(14, 0, "more")},
		{"unstuffed", false, edit(9, 1, ".x")},
		{"changed", false, edit(5, 1, "Subject: y")},
		{"forged field removed", true, edit(3, 2)},
		{"forged field replaced", true, append([]string{"X-Class: real"}, edit(3, 2)...)},
		{"removed half", false, edit(3, 1)},
		{"removed other", false, edit(5, 2)},
		{"order", false, edit(5, 4, "", "Subject: z", d, "text")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// All lines are short enough for smtpd, but those that the test is about.
			pieces := func(lines []string) (out []string) {
				header := true
				for _, l := range lines {
					header = header && l != ""
					switch {
					case len(l) <= 1997:
						out = append(out, l)
					case header:
						out = append(out, l[:1997], " "+l[1997:])
					default:
						for ; len(l) > 1997; l = l[1997:] {
							out = append(out, l[:1997])
						}
						out = append(out, l)
					}
				}
				return out
			}
			if err := SameMessage(6, in, pieces(tt.out)); (err == nil) != tt.ok {
				t.Error(err)
			}
			c := new(Checker)
			feed(c, "0.6", registerAll)
			for _, l := range append(in[:len(in):len(in)], ".") {
				c.Sent("filter|0.6|1.000001|smtp-in|data-line|" + s1 + "|" + tokenOf("data-line") + "|" + l)
			}
			for _, l := range append(pieces(tt.out), ".") {
				c.Got("filter-dataline|" + s1 + "|" + tokenOf("data-line") + "|" + l)
			}
			if p := c.Problems(); (len(p) == 0) != tt.ok {
				t.Error(p)
			}
		})
	}
	if err := SameMessage(6, []string{"a: " + strings.Repeat(" ", 3000)}, []string{"a: " + strings.Repeat(" ", 1500), " " + strings.Repeat(" ", 1500)}); err != nil {
		t.Error("spaces:", err)
	}
	if err := SameMessage(7, in, in); err != nil {
		t.Error(err)
	}
	if err := SameMessage(6, in, in); err == nil {
		t.Error("long lines pass")
	}
}

// Real sessions break no rule, except that smtpd before 7.4 cuts long lines.
func TestTraces(t *testing.T) {
	files, err := fs.Glob(Traces(), "*/*.in")
	if err != nil || len(files) < 80 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			in, err := fs.ReadFile(Traces(), file)
			if err != nil {
				t.Fatal(err)
			}
			out, err := fs.ReadFile(Traces(), strings.TrimSuffix(file, ".in")+".out")
			if err != nil {
				t.Fatal(err)
			}
			c := &Checker{Ahead: true}
			for l := range strings.Lines(string(in)) {
				c.Sent(strings.TrimSuffix(l, "\n"))
			}
			for l := range strings.Lines(string(out)) {
				c.Got(strings.TrimSuffix(l, "\n"))
			}
			c.End()
			cut := 0
			for _, p := range c.Problems() {
				if (p.Rule == Cut || p.Rule == Lost) && strings.Contains(file, "22_message") && !strings.HasPrefix(file, "7.8") {
					cut++
				} else {
					t.Error(p)
				}
			}
			if strings.Contains(file, "22_message") && !strings.HasPrefix(file, "7.8") && cut != 3 {
				t.Errorf("%d lines cut", cut)
			}
			if w := c.Warnings(); len(w) > 0 {
				t.Error(w)
			}
			want := 0
			for l := range strings.Lines(string(out)) {
				if strings.HasPrefix(l, "filter-result|") || strings.HasPrefix(l, "filter-dataline|") && strings.HasSuffix(l, "|.\n") {
					want++
				}
			}
			if n := len(c.Answers()); n != want {
				t.Errorf("%d answers, want %d", n, want)
			}
		})
	}
}

func FuzzChecker(f *testing.F) {
	f.Add("filter|0.7|1.000000|smtp-in|noop|"+s1+"|"+s2+"|", "filter-result|"+s1+"|"+s2+"|proceed", true)
	f.Add("filter|0.4|1.000000|smtp-in|data-line|"+s1+"|"+s2+"|.", "filter-dataline|"+s2+"|"+s1+"|.", false)
	f.Add("report|0.7|1.000000|smtp-in|link-disconnect|"+s1, "register|filter|smtp-in|noop\nregister|ready", false)
	f.Fuzz(func(t *testing.T, in, out string, ahead bool) {
		c := &Checker{Ahead: ahead}
		feed(c, "0.7", registerAll)
		ins, outs := strings.Split(in, "\n"), strings.Split(out, "\n")
		for i := range max(len(ins), len(outs)) {
			if i < len(ins) {
				c.Sent(ins[i])
			}
			if i < len(outs) {
				c.Got(outs[i])
			}
		}
		c.End()
		for _, p := range append(c.Problems(), c.Warnings()...) {
			_ = p.String()
		}
	})
}

func FuzzSameMessage(f *testing.F) {
	f.Add("a: b\n c\n\nd", "x: y\na: b\n c\n\nd")
	f.Fuzz(func(t *testing.T, in, out string) {
		if len(in)+len(out) > 10000 {
			return
		}
		lines := strings.Split(in, "\n")
		SameMessage(7, lines, strings.Split(out, "\n"))
		if err := SameMessage(7, lines, lines); err != nil && !slices.Contains(lines, ".") {
			t.Errorf("not the same as itself: %v", err)
		}
	})
}
