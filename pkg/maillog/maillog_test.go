package maillog

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The logs in testdata are of real runs; test/record makes them.
var releases = []string{"6.8", "7.6", "7.9"}

type entry struct {
	time time.Time
	text string
}

// read reads a file of testdata.
func read(t testing.TB, name string) (all []entry) {
	t.Helper()
	f, err := Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := NewReader(f, time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC))
	for r.Next() {
		all = append(all, entry{r.Line().Time, string(r.Line().Text)})
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return all
}

func TestFormats(t *testing.T) {
	plain := regexp.MustCompile(`^(\w{3} [ \d]\d [\d:]{8}) mx smtpd\[\d+\]: (.*)$`)
	for _, version := range releases {
		// By another way: what is in the plain text.
		text, err := os.ReadFile(filepath.Join("testdata", version+".log"))
		if err != nil {
			t.Fatal(err)
		}
		var want []entry
		for line := range strings.Lines(string(text)) {
			if m := plain.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				at, err := time.Parse("2006 Jan _2 15:04:05", "2026 "+m[1])
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, entry{at, m[2]})
			}
		}
		if len(want) < 100 {
			t.Fatalf("%s has %d lines", version, len(want))
		}
		for _, format := range []string{"log", "iso.gz", "rfc5424.gz"} {
			got := read(t, version+"."+format)
			for i := range got {
				got[i].time = got[i].time.Truncate(time.Second)
			}
			if !slices.EqualFunc(got, want, func(a, b entry) bool { return a.text == b.text && a.time.Equal(b.time) }) {
				t.Errorf("%s.%s is not what %s.log is", version, format, version)
			}
		}
		// The journal is of another run of the same mail.
		kinds := func(all []entry) string {
			counts := map[Kind]int{}
			for _, e := range all {
				ev := Parse([]byte(e.text))
				// How often a mail is too early, and what smtpd itself says, is by chance.
				if ev.Kind != Other && !bytes.Contains(ev.Text, []byte("late@good.example")) && ev.Kind != Notice {
					counts[ev.Kind]++
				}
			}
			return fmt.Sprint(counts)
		}
		journal := read(t, version+".export.gz")
		if len(journal) < 100 {
			t.Errorf("%s.export has %d lines", version, len(journal))
		}
		for _, e := range journal {
			if e.time.Year() != 2026 || e.time.Month() != 12 {
				t.Errorf("%s.export: time %v of %s", version, e.time, e.text)
			}
		}
		for _, kind := range []Kind{Connected, Disconnected, Failed, Message, Envelope, Delivery, Decision} {
			if !strings.Contains(kinds(journal), fmt.Sprintf("%d:", kind)) {
				t.Errorf("%s.export has only %s, and %s.log %s", version, kinds(journal), version, kinds(want))
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	const text = "5f45b59b1594b3c3 smtp connected address=192.0.2.1 host=mx.example.com"
	written := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct{ line, time string }{
		{"Dec  1 11:57:37 mx smtpd[19]: " + text, "2026-12-01T11:57:37Z"},
		{"Dec  1 11:57:37 mx smtpd: " + text, "2026-12-01T11:57:37Z"},
		{"<22>Dec  1 11:57:37 mx smtpd[19]: " + text, "2026-12-01T11:57:37Z"},
		{"<22>Dec  1 11:57:37 smtpd[19]: " + text, "2026-12-01T11:57:37Z"},
		{"Dec  1 11:57:37 mx mail.info smtpd[19]: " + text, "2026-12-01T11:57:37Z"}, // busybox
		{"Dec 31 23:59:59 mx smtpd[19]: " + text, "2025-12-31T23:59:59Z"},
		{"Feb 29 01:02:03 mx smtpd[19]: " + text, "2024-02-29T01:02:03Z"},
		{"Dec  2 01:02:03 mx smtpd[19]: " + text, "2026-12-02T01:02:03Z"}, // a clock that is ahead
		{"2026-12-01T11:57:37.853+01:00 mx smtpd[19]: " + text, "2026-12-01T10:57:37.853Z"},
		{"2026-12-01T11:57:37-0230 mx smtpd[19]: " + text, "2026-12-01T14:27:37Z"}, // journalctl -o short-iso
		{"2026-12-01T11:57:37Z mx smtpd[19]: " + text, "2026-12-01T11:57:37Z"},
		{"<22>1 2026-12-01T11:57:37.000003Z mx smtpd 19 - - " + text, "2026-12-01T11:57:37.000003Z"},
		{"<22>1 2026-12-01T11:57:37Z mx smtpd 19 - [a@1 b=\"x]\\\"y\"][c@2 d=\"e\"] \xef\xbb\xbf" + text, "2026-12-01T11:57:37Z"},
		{text, "0001-01-01T00:00:00Z"}, // smtpd -d
		{"Dec  1 11:57:37 mx postfix/smtpd[19]: " + text, ""},
		{"Dec  1 11:57:37 mx sshd[19]: smtpd[19]: " + text, "2026-12-01T11:57:37Z smtpd is not the program"},
		{"Dec  1 11:57:37 mx sshd[19]: user=smtpd: " + text, ""},
		{"<22>1 2026-12-01T11:57:37Z mx sshd 19 - - " + text, ""},
		{"", ""},
	} {
		r := NewReader(strings.NewReader(tt.line+"\n"), written)
		got := ""
		if r.Next() {
			got = r.Line().Time.UTC().Format(time.RFC3339Nano)
			if string(r.Line().Text) != text && !strings.HasSuffix(tt.time, "program") {
				t.Errorf("%s: text %q", tt.line, r.Line().Text)
			}
		}
		if strings.HasSuffix(tt.time, "program") {
			continue
		}
		if got != tt.time {
			t.Errorf("%s: time %s, want %s", tt.line, got, tt.time)
		}
	}
}

func TestRepeated(t *testing.T) {
	const log = `Dec  1 11:57:37 mx smtpd[19]: a
Dec  1 11:57:38 mx last message repeated 3 times
Dec  1 11:57:39 mx smtpd[19]: message repeated 2 times: [ b]
Dec  1 11:57:39 mx sshd[7]: c
Dec  1 11:57:40 mx last message repeated 5 times
Dec  1 11:57:41 mx smtpd[19]: d
`
	r := NewReader(strings.NewReader(log), time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC))
	var got []string
	for r.Next() {
		got = append(got, fmt.Sprint(string(r.Line().Text), r.Line().Count))
	}
	if want := "[a1 a3 b2 d1]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	if r.Lines() != 6 {
		t.Errorf("%d lines", r.Lines())
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text string
		kind Kind
		want string // filter, program, keys and values
	}{
		{`5f45b59b1594b3c3 smtp failed-command command="RCPT TO:<a b=c \" x=y>" result="550 Invalid: <"x">"`, Failed, `command=RCPT TO:<a b=c \|x=y>"|result=550 Invalid: <"x">|`},
		{`5f45b59b1594b3c3 mta delivery evpid=89debd3d67374bf1 from=<a> to=<b c> rcpt=<-> source="192.0.2.99" relay="192.0.2.99 (x)" delay=0s result="Ok" stat="250 2.0.0 taken"`, Delivery,
			`evpid=89debd3d67374bf1|from=<a>|to=<b c>|rcpt=<->|source=192.0.2.99|relay=192.0.2.99 (x)|delay=0s|result=Ok|stat=250 2.0.0 taken|`},
		{`dnsbl: 5f45b59b1594b3c3 filter=dnsbl action=refuse reason=score by="a \"b\" c" addr=192.0.2.1 name=- from=<x=y@example.com> zen=5`, Decision,
			`dnsbl dnsbl action=refuse|reason=score|by=a "b" c|addr=192.0.2.1|name=-|from=<x=y@example.com>|zen=5|`},
		{`greylist: filter=greylist event=noretry addr=192.0.2.1`, Notice, `greylist greylist event=noretry|addr=192.0.2.1|`},
		{`greylist: warning: the records cannot be used err="x y"`, Trouble, `greylist  err=x y|`},
		{`greylist: 5f45b59b1594b3c3 error: panic="x"`, Trouble, `greylist  panic=x|`},
		{`warn: smtpd: parent_forward_open: /nonexistent: No such file or directory`, Other, `warn  `},
		{`5f45b59b1594b3cX smtp connected address=192.0.2.1`, Other, `address=192.0.2.1|`},
		{`rspamd: 5f45b59b1594b3c3 hello`, Other, `rspamd  `},
		{`5f45b59b1594b3c3 smtp authentication user=alice result=ok`, Auth, `user=alice|result=ok|`},
	} {
		e := Parse([]byte(tt.text))
		got := ""
		if e.Filter != nil {
			got = string(e.Filter) + " " + string(e.Program) + " "
		}
		for f := e.Fields(); f.Next(); {
			got += string(f.Key) + "=" + string(f.Value()) + "|"
		}
		if e.Kind != tt.kind || got != tt.want {
			t.Errorf("%s:\n%d %s, want\n%d %s", tt.text, e.Kind, got, tt.kind, tt.want)
		}
	}
}

// TestJoin compares with plain maps, also when the lines of a log are shuffled as
// far as several writers do.
func TestJoin(t *testing.T) {
	for _, version := range releases {
		want := map[uint64][]string{}
		messages := map[uint32]uint64{}
		var all []entry
		for copies := range 50 { // more sessions than linger
			for _, e := range read(t, version+".log") {
				e.text = other(e.text, copies)
				all = append(all, e)
			}
		}
		for _, e := range all {
			ev := Parse([]byte(e.text))
			id, ok := ev.MessageID()
			switch {
			case ev.Kind == Delivery:
				want[messages[id]] = append(want[messages[id]], e.text)
			case ev.Session != 0 && ev.Kind != Other:
				want[ev.Session] = append(want[ev.Session], e.text)
				if ok && ev.Kind == Message {
					messages[id] = ev.Session
				}
			}
		}
		got := map[uint64][]string{}
		j := NewJoiner(Sink{Session: func(s *Session) {
			if _, ok := got[s.ID]; ok {
				t.Errorf("session %x comes twice", s.ID)
			}
			var events []Event
			for _, e := range s.Events() {
				events = append(events, e)
			}
			for at, text := range s.Take(nil).Lines() {
				if want := Parse(text); !reflect.DeepEqual(events[0], want) {
					t.Errorf("event %+v of %s, want %+v", events[0], text, want)
				}
				events = events[1:]
				if at.IsZero() {
					t.Errorf("%s has no time", text)
				}
				got[s.ID] = append(got[s.ID], string(text))
			}
		}})
		for _, e := range all {
			j.Add(Line{Time: e.time, Text: []byte(e.text), Count: 1})
		}
		if len(got) == 0 {
			t.Error("nothing is given away before the end")
		}
		j.Close()
		if len(got) != len(want) {
			t.Errorf("%s: %d sessions, want %d", version, len(got), len(want))
		}
		for id, lines := range want {
			if !slices.Equal(got[id], lines) {
				t.Errorf("session %x:\n%q\nwant\n%q", id, got[id], lines)
			}
		}
	}
}

var ids = regexp.MustCompile(`\b(?:msgid=|evpid=)?[0-9a-f]{8,16}\b`)

// other changes the ids of a line.
func other(text string, n int) string {
	if n == 0 {
		return text
	}
	return ids.ReplaceAllStringFunc(text, func(id string) string {
		i := strings.IndexByte(id, '=') + 1
		return id[:i] + fmt.Sprintf("%02x", n) + id[i+2:]
	})
}

// Nothing grows without limit.
func TestJoinLimits(t *testing.T) {
	n, lines, cut := 0, 0, 0
	j := NewJoiner(Sink{Session: func(s *Session) {
		n++
		cut += s.Cut
		for range s.Lines() {
			lines++
		}
	}})
	long := strings.Repeat("x", 2000)
	total := 0
	add := func(id int, text string) {
		total++
		j.Add(Line{Text: fmt.Appendf(nil, "%016x smtp %s", id+1, text), Count: 1})
		if j.bytes > maxBytes {
			t.Fatalf("%d bytes are held", j.bytes)
		}
	}
	for i := range 50_000 { // never ended
		add(i, "connected address=192.0.2.1 host="+long)
	}
	for range 5000 { // without an end
		add(1e6, "failed-command command="+long)
	}
	j.Close()
	if n != 50_001 || lines+cut != total || cut == 0 {
		t.Errorf("%d sessions, %d lines and %d too many of %d", n, lines, cut, total)
	}
	if len(j.sessions)+len(j.messages)+j.open.n+j.ended.n > 0 {
		t.Error("something is left")
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil {
		t.Error("a directory is no log")
	}
	if _, err := Open(filepath.Join(dir, "none")); err == nil {
		t.Error("a file is not there")
	}
	whole, err := os.ReadFile("testdata/7.9.iso.gz")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cut.gz": whole[:len(whole)/2], "broken.gz": append([]byte("\x1f\x8b"), "nothing"...)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		r := NewReader(f, f.Written())
		for r.Next() {
		}
		if r.Err() == nil {
			t.Errorf("%s: no error", name)
		}
		if name == "cut.gz" && r.Lines() == 0 {
			t.Errorf("%s: what can be read is not", name)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	f, err := Open("testdata/7.9.iso.gz") // not read to its end
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	for _, version := range releases {
		for _, format := range []string{"log", "export.gz", "rfc5424.gz"} {
			file, err := Open(filepath.Join("testdata", version+"."+format))
			if err != nil {
				f.Fatal(err)
			}
			text, err := io.ReadAll(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text[:min(len(text), 4000)])
		}
	}
	f.Add([]byte("__A=b\nMESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffx\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := NewReader(bytes.NewReader(text), time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC))
		got, added := 0, 0
		j := NewJoiner(Sink{
			Session: func(s *Session) {
				for range s.Take(nil).Lines() {
					got++
				}
				got += s.Cut
			},
			Late:  func(_ uint32, l Line, _ Event) { got += l.Count },
			Other: func(l Line, _ Event) { got += l.Count },
		})
		for r.Next() {
			l := r.Line()
			if len(l.Text) == 0 || len(l.Text) > maxText || l.Count < 1 || bytes.IndexByte(l.Text, '\n') >= 0 {
				t.Fatalf("line %q, %d times", l.Text, l.Count)
			}
			if e := Parse(l.Text); e.Kind != Other && (e.Session != 0 || e.Kind != Delivery) {
				if _, ok := e.MessageID(); ok || e.Kind != Delivery {
					added += l.Count
				}
			} else if _, ok := e.MessageID(); e.Kind == Delivery && ok {
				added += l.Count
			}
			// j.Add of a million repeats would be slow, not wrong.
			if l.Count > 1000 {
				return
			}
			j.Add(l)
		}
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		j.Close()
		if got != added {
			t.Fatalf("%d lines of %d", got, added)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`dnsbl: 5f45b59b1594b3c3 filter=dnsbl action=refuse by="a \"b\" c" zen=5`))
	f.Add([]byte(`5f45b59b1594b3c3 smtp failed-command command="RCPT TO:<a b=c>" result="550 "x""`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e := Parse(text)
		e.MessageID()
		n := 0
		for f := e.Fields(); f.Next(); n++ {
			if len(f.Key) == 0 || !bytes.Contains(text, f.Key) {
				t.Fatalf("key %q of %q", f.Key, text)
			}
			if len(f.Value()) > len(text)*3 { // \x80 becomes a character of three bytes
				t.Fatalf("value %q of %q", f.Value(), text)
			}
		}
		if n > len(text) {
			t.Fatalf("%d keys in %q", n, text)
		}
	})
}
