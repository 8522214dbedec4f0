package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/maillog"
)

// maxStories is how many sessions why shows, the newest.
const maxStories = 200

// why tells the stories of sessions.
func why(k *call) func() error {
	l := newLogs(k, 7*24*time.Hour)
	return func() error {
		if len(k.args) == 0 || k.args[0] == "" {
			return errors.New("want an address, a name, a sender, a recipient or the id of a session")
		}
		w := &inquiry{wanted: newPattern(k.args[0]), logs: l}
		files := k.args[1:]
		if err := w.read(files); err != nil {
			return err
		}
		// Whoever asks for one session wants to know how its mail went on.
		if w.wanted.isID && len(w.found) > 0 && !slices.Contains(files, "-") {
			for _, s := range w.found {
				w.wanted.mails = append(w.wanted.mails, s.mail)
			}
			if err := w.read(files); err != nil {
				return err
			}
		}
		return w.tell(k)
	}
}

// A pattern is what is looked for.
type pattern struct {
	text  []byte // in lower case
	addr  netip.Addr
	net   netip.Prefix
	isID  bool
	mails []mail // that are wanted too
}

// A mail is a sender and a recipient, in lower case: what a retry has in common
// with the first attempt.
type mail struct{ from, rcpt string }

func newPattern(s string) pattern {
	p := pattern{text: bytes.ToLower([]byte(strings.Trim(s, "<>")))}
	s = strings.Trim(s, "[]")
	p.addr, _ = netip.ParseAddr(s)
	if net, err := netip.ParsePrefix(s); err == nil {
		p.net = net
	}
	p.isID = (len(p.text) == 16 || len(p.text) == 8) && len(bytes.Trim(p.text, "0123456789abcdef")) == 0
	return p
}

// matches reports whether a session is wanted.
func (p *pattern) matches(s *maillog.Session) bool {
	if p.isID && len(p.text) == 16 && fmt.Sprintf("%016x", s.ID) == string(p.text) {
		return true
	}
	for _, text := range s.Lines() {
		if p.line(text) {
			return true
		}
	}
	return false
}

func (p *pattern) line(text []byte) bool {
	text = bytes.ToLower(text)
	if p.addr.IsValid() || p.net.IsValid() {
		e := maillog.Parse(text)
		if e.Kind != maillog.Connected && e.Kind != maillog.Decision {
			return false
		}
		key := "addr"
		if e.Kind == maillog.Connected {
			key = "address"
		}
		a, err := netip.ParseAddr(strings.Trim(string(e.Get(key)), "[]"))
		return err == nil && (a == p.addr || p.net.Contains(a))
	}
	for i := 0; ; {
		n := bytes.Index(text[i:], p.text)
		if n < 0 {
			return false
		}
		// A word as a whole: not example.com in badexample.com.
		before, after := i+n-1, i+n+len(p.text)
		if (before < 0 || !inWord(text[before]) || p.text[0] == '@' || p.text[0] == '.') && (after >= len(text) || !inWord(text[after])) {
			return true
		}
		i += n + 1
	}
}

func inWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c >= 0x80
}

// An inquiry is one run of why.
type inquiry struct {
	wanted   pattern
	logs     *logs
	found    []*told
	messages map[uint32]*told
	missed   int // sessions that were too many
}

// A told session is one that is shown.
type told struct {
	*maillog.Session
	mail mail
}

// read looks for sessions.
func (w *inquiry) read(files []string) error {
	w.found, w.messages, w.missed = nil, map[uint32]*told{}, 0
	var d digest
	j := maillog.NewJoiner(maillog.Sink{
		Session: func(s *maillog.Session) {
			wanted := w.wanted.matches(s)
			if !wanted && len(w.wanted.mails) == 0 {
				return
			}
			d.read(s)
			m := mailOf(&d)
			if !wanted && (m == mail{} || !slices.Contains(w.wanted.mails, m)) {
				return
			}
			t := &told{s.Take(nil), m}
			w.found = append(w.found, t)
			for _, id := range t.Messages() {
				w.messages[id] = t
			}
			if len(w.found) > 2*maxStories {
				w.drop()
			}
		},
		Late: func(id uint32, l maillog.Line, e maillog.Event) {
			if t := w.messages[id]; t != nil {
				t.Append(l, e)
			}
		},
	})
	err := w.logs.read(files, j.Add)
	j.Close()
	w.drop()
	return err
}

// drop keeps the newest sessions, in order.
func (w *inquiry) drop() {
	slices.SortStableFunc(w.found, func(a, b *told) int { return a.Begin.Compare(b.Begin) })
	n := max(0, len(w.found)-maxStories)
	for _, t := range w.found[:n] {
		for _, id := range t.Messages() {
			delete(w.messages, id)
		}
	}
	w.missed += n
	w.found = append([]*told(nil), w.found[n:]...)
}

func mailOf(d *digest) mail {
	from, rcpts := d.envelope()
	if len(rcpts) == 0 {
		return mail{}
	}
	return mail{strings.ToLower(from), strings.ToLower(rcpts[0])}
}

// tell prints the stories.
func (w *inquiry) tell(k *call) error {
	if len(w.found) == 0 {
		return fmt.Errorf("no session of %s in %s lines", cli.Clean(string(w.wanted.text)), thousands(w.logs.lines))
	}
	if w.missed > 0 {
		fmt.Fprintf(k.out, "%s earlier sessions are not shown: see -since, or ask for less\n\n", thousands(w.missed))
	}
	p := &printer{out: k.out, raw: k.raw, colour: isTerminal(k.raw) && os.Getenv("NO_COLOR") == ""}
	all := make([]digest, len(w.found))
	for i, t := range w.found {
		all[i].read(t.Session)
	}
	var allow []string
	for i := range all {
		d := &all[i]
		p.story(d, w.next(all, i))
		fmt.Fprintln(k.out)
		if a := d.allow(); a != "" && !slices.Contains(allow, a) {
			allow = append(allow, a)
		}
	}
	const most = 5
	for i, a := range allow {
		if i == most {
			fmt.Fprintf(k.out, "    and %d more clients or senders\n", len(allow)-most)
			break
		}
		if i == 0 {
			fmt.Fprintln(k.out, "To let such mail in at once from now on:")
		}
		note := ""
		if strings.HasPrefix(a, "sender=") {
			note = "    # SPF proves who sends"
		}
		fmt.Fprintf(k.out, "    filterctl allow %s%s\n", a, note)
	}
	return nil
}

// next returns the session in which a mail that was not taken came again.
func (w *inquiry) next(all []digest, i int) *digest {
	m := w.found[i].mail
	if len(all[i].messages) > 0 || m == (mail{}) {
		return nil
	}
	for n := i + 1; n < len(all); n++ {
		if w.found[n].mail == m {
			return &all[n]
		}
	}
	return nil
}

// A printer writes stories.
type printer struct {
	out, raw io.Writer
	colour   bool
}

// paint writes a verdict, in its colour on a terminal.
func (p *printer) paint(word string) {
	colour := map[string]string{accepted: "32", junked: "33", deferred: "36", refused: "31"}[word]
	if !p.colour || colour == "" {
		fmt.Fprint(p.out, word)
		return
	}
	fmt.Fprintf(p.raw, "\x1b[1;%sm%s\x1b[0m", colour, word)
}

// story tells of one session: who came, what each filter said, what the client was
// told, and where the mail went.
func (p *printer) story(d *digest, next *digest) {
	from, rcpts := d.envelope()
	when := "(no time)"
	if !d.Begin.IsZero() {
		when = d.Begin.Format("2006-01-02 15:04:05")
	}
	fmt.Fprintf(p.out, "%s  %016x  ", when, d.ID)
	p.paint(d.verdict())
	fmt.Fprintf(p.out, "\n    client   %s\n", d.client())
	if len(rcpts) > 0 || from != "" {
		shown := rcpts[:min(len(rcpts), 5)]
		fmt.Fprintf(p.out, "    mail     from <%s> to <%s>", from, strings.Join(shown, ">, <"))
		if n := len(rcpts) - len(shown); n > 0 {
			fmt.Fprintf(p.out, " and %d more", n)
		}
		fmt.Fprintln(p.out)
	}
	for _, s := range d.steps(false) {
		at := "        "
		if !s.time.IsZero() {
			at = s.time.Format("15:04:05")
		}
		fmt.Fprintf(p.out, "    %s %s\n", at, s.text)
	}
	switch {
	case d.Cut > 0:
		fmt.Fprintf(p.out, "    and %s lines more\n", thousands(d.Cut))
	case next != nil && !next.Begin.IsZero():
		fmt.Fprintf(p.out, "    came again %s later, in session %016x\n", roundTime(next.Begin.Sub(d.Begin)), next.ID)
	case next != nil:
		fmt.Fprintf(p.out, "    came again in session %016x\n", next.ID)
	case d.verdict() == deferred:
		fmt.Fprintf(p.out, "    has not come again since, in this log\n")
	}
}

// client says who came.
func (d *digest) client() string {
	if d.local {
		return "this machine"
	}
	addr := cmp.Or(string(d.addr), "address not in this log")
	name, unproven := strings.CutPrefix(string(d.name), "?")
	switch {
	case unproven:
		name += ", which does not resolve to it"
	case name == "-":
		name = "no name"
	case name == "":
		name = "name not in this log"
	}
	if len(d.user) > 0 {
		name += ", logged in as " + string(d.user)
	}
	return addr + " (" + name + ")"
}

// A step is one line of a story.
type step struct {
	time time.Time
	who  string // a filter, smtpd, told, mail
	text string
}

// steps are what happened, in order: smtpd tells a client what a filter has said
// after that, whichever of the two is first in the log. Masked steps have nothing in
// them that a stranger or a user has written.
func (d *digest) steps(masked bool) (steps []step) {
	add := func(at time.Time, who, format string, args ...any) {
		steps = append(steps, step{at, who, fmt.Sprintf("%-9s ", who) + fmt.Sprintf(format, args...)})
	}
	told := func(f *failure) {
		command := string(f.command)
		switch command {
		case "":
			command = "the connection"
		case ".":
			command = "the message"
		}
		result := string(f.result)
		if masked {
			command, result = f.verb(), fmt.Sprint(f.code())
		}
		add(f.time, "smtpd", "answers %s with %s", command, result)
	}
	for i := range d.decisions {
		v := &d.decisions[i]
		add(v.time, string(v.filter), "%s", v.say(masked))
		if v.failure >= 0 {
			told(&d.failures[v.failure])
		}
	}
	for i := range d.failures {
		if f := &d.failures[i]; f.by < 0 || d.decisions[f.by].failure != i {
			told(f)
		}
	}
	for _, m := range d.messages {
		junk := ""
		if m.junk {
			junk = ", marked as junk"
		}
		add(m.time, "smtpd", "takes message %08x%s", m.id, junk)
	}
	for _, v := range d.deliveries {
		add(v.time, "smtpd", "%s", v.say(masked))
	}
	if d.Ended && len(d.said) > 0 && string(d.said) != "quit" {
		steps = append(steps, step{who: "smtpd", text: fmt.Sprintf("%-9s the session ends: %s", "smtpd", d.said)})
	}
	slices.SortStableFunc(steps, func(a, b step) int {
		if a.time.IsZero() || b.time.IsZero() {
			return 0
		}
		return a.time.Truncate(time.Second).Compare(b.time.Truncate(time.Second))
	})
	return steps
}

// say is what a filter has decided, and why.
func (v *decision) say(masked bool) string {
	var b strings.Builder
	word := string(v.action)
	if v.dryRun && len(v.would) > 0 {
		word = "would " + string(v.would) + " (dry run)"
	}
	b.WriteString(word)
	if v.disconnect {
		b.WriteString(" and disconnect")
	}
	if len(v.reason) > 0 {
		fmt.Fprintf(&b, ": %s", v.reason)
	}
	if masked {
		return b.String()
	}
	if len(v.by) > 0 {
		fmt.Fprintf(&b, ", by %s", v.by)
	}
	rest := ""
	for f := v.event.Fields(); f.Next(); {
		switch string(f.Key) {
		case "action", "reason", "by", "addr", "name", "from", "rcpt", "would", "dryRun", "disconnect", "t":
		default:
			rest += " " + string(f.Key) + "=" + string(f.Value())
		}
	}
	if rest != "" {
		b.WriteString(" (" + rest[1:] + ")")
	}
	return b.String()
}

// say is where a message went.
func (v *delivery) say(masked bool) string {
	if masked {
		return fmt.Sprintf("delivery after %s: %s", v.delay, v.result)
	}
	to := string(v.rcpt)
	if to == "" || to == "-" {
		to = string(v.to)
	}
	where := ""
	switch {
	case len(v.relay) > 0:
		where = " to " + string(v.relay)
	case len(v.user) > 0:
		where = ", user " + string(v.user)
	}
	what := "delivers to"
	switch {
	case strings.EqualFold(string(v.result), "Ok"):
	case strings.EqualFold(string(v.result), "TempFail"):
		what = "cannot deliver yet to"
	default:
		what = "cannot deliver to"
	}
	return fmt.Sprintf("%s <%s>%s after %s: %s", what, to, where, v.delay, v.stat)
}

// roundTime is a time with as much of it as matters.
func roundTime(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(10 * time.Millisecond)
	case d < time.Hour:
		return d.Round(time.Second)
	}
	return d.Round(time.Minute)
}
