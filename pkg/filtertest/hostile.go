package filtertest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// A Stream is input that a filter must survive.
type Stream struct {
	Name string
	Data []byte
	// Requests are the well-formed request lines in Data, without LF: each must be answered once if its phase is
	// registered. The lines of a message, up to the one that is a dot, are answered by a message.
	Requests []string
}

// A stream under construction.
type streamBuilder struct {
	Stream
	sec     int
	version string
}

func newStream(name, version string) *streamBuilder {
	b := &streamBuilder{Stream: Stream{Name: name}, sec: epoch, version: version}
	v := version
	if handshake[v] == "" {
		v = "0.7"
	}
	for _, l := range strings.Fields(handshake[v]) {
		b.raw("config|" + l + "\n")
	}
	return b
}

func (b *streamBuilder) raw(s string) { b.Data = append(b.Data, s...) }

func (b *streamBuilder) head(kind, what, id string) string {
	b.sec++
	return fmt.Sprintf("%s|%s|%d.000001|smtp-in|%s|%s", kind, b.version, b.sec, what, id)
}

func (b *streamBuilder) report(event, id, fields string) {
	b.raw(b.head("report", event, id) + fields + "\n")
}

// ask adds a request, n times.
func (b *streamBuilder) ask(phase, id, params string, n int) {
	line := b.head("filter", phase, id) + "|" + tokenOf(phase) + "|" + params
	for range n {
		b.raw(line + "\n")
		b.Requests = append(b.Requests, line)
	}
}

func (b *streamBuilder) message(id string, lines ...string) {
	for _, l := range append(lines, ".") {
		b.ask("data-line", id, l, 1)
	}
}

// begin opens a session, up to its first recipient.
func (b *streamBuilder) begin(id string) {
	b.report("link-connect", id, "|mail.example.org|pass|198.51.100.7:40000|192.0.2.25:25")
	b.ask("connect", id, "mail.example.org|198.51.100.7", 1)
	b.report("link-greeting", id, "|mx.example.org")
	b.ask("ehlo", id, "client.example.net", 1)
	b.report("link-identify", id, "|EHLO|client.example.net")
	b.mail(id)
}

func (b *streamBuilder) mail(id string) {
	b.ask("mail-from", id, "sender@example.net", 1)
	mail, rcpt := "|b0000001|ok|sender@example.net", "|b0000001|ok|bob@example.org"
	if b.version == "0.4" || b.version == "0.5" {
		mail, rcpt = "|b0000001|sender@example.net|ok", "|b0000001|bob@example.org|ok"
	}
	b.report("tx-begin", id, "|b0000001")
	b.report("tx-mail", id, mail)
	b.ask("rcpt-to", id, "bob@example.org", 1)
	b.report("tx-rcpt", id, rcpt)
}

// end ends a session that begin opened, after the given message.
func (b *streamBuilder) end(id string, lines ...string) {
	b.ask("data", id, "", 1)
	b.message(id, lines...)
	b.report("tx-data", id, "|b0000001|ok")
	b.ask("commit", id, "", 1)
	b.report("tx-commit", id, "|b0000001|500")
	b.report("tx-reset", id, "|b0000001")
	b.ask("quit", id, "", 1)
	b.report("link-disconnect", id, "")
}

// HostileStreams returns the streams that Hostile uses. They are the same at every call.
func HostileStreams() []Stream {
	const id = "0123456789abcdef"
	plain := []string{"Received: from x", "\tby y", "Subject: z", "", "text"}
	var all []Stream
	add := func(name, version string, f func(b *streamBuilder)) {
		b := newStream(name, version)
		f(b)
		b.begin("ffffffffffffffff") // what came before must not have broken this
		b.end("ffffffffffffffff", plain...)
		all = append(all, b.Stream)
	}

	for _, v := range []string{"0.4", "0.5", "0.6", "0.7", "0.8", "0.10", "0.99"} {
		add("version "+v, v, func(b *streamBuilder) {
			b.begin(id)
			b.end(id, plain...)
		})
	}
	for _, v := range []string{"0.4", "0.6", "0.7"} {
		add("long data lines "+v, v, func(b *streamBuilder) {
			b.begin(id)
			b.end(id, "Received: x", "Subject: z", "X-Long: "+strings.Repeat("h", 65522), "X-Dots: "+strings.Repeat(".", 65522),
				"X-Blanks: "+strings.Repeat(" ", 65519)+"x", "",
				strings.Repeat("b", 65530), strings.Repeat(".", 65533), strings.Repeat("b.", 32766), strings.Repeat("b", 65485),
				strings.Repeat("b", 65486), strings.Repeat("b", 1997), strings.Repeat("b", 1998), strings.Repeat("b", 1997)+".", "text")
		})
	}
	for _, v := range []string{"0.4", "0.6", "0.7"} {
		add("lines at the limit of "+v, v, func(b *streamBuilder) {
			b.begin(id)
			for _, line := range EdgeLines(maxPayload(int(v[2] - '0'))) {
				b.message(id, "Received: x", "\tby y", line, "", line, "RSET", "MAIL FROM:<a@b.example>")
			}
			b.end(id, plain...)
		})
	}
	add("long lines", "0.7", func(b *streamBuilder) {
		b.begin(id)
		b.report("protocol-client", id, "|"+strings.Repeat("x", 10<<20))
		b.raw(strings.Repeat("y", 10<<20) + "\n")
		b.raw("filter|0.7|" + strings.Repeat("9", 10<<20) + "\n")
		b.ask("rcpt-to", id, strings.Repeat("r", 64000), 1)
		b.end(id, plain...)
	})
	add("control bytes", "0.7", func(b *streamBuilder) {
		b.begin(id)
		for _, s := range []string{"\x00", "\r", "a\x00b@example.org", "a\rb@example.org", "bob@example.org\r", "\x00\r", "\x1b[2J", "\xff\xfe", "a|b", "|", "%s%n%d", " ", "550 no"} {
			b.ask("rcpt-to", id, s, 1)
			b.ask("ehlo", id, s, 1)
			b.ask("auth", id, s, 1)
			b.report("protocol-client", id, "|"+s)
			b.report("link-identify", id, "|EHLO|"+s)
			b.report("tx-rcpt", id, "|b0000001|ok|"+s)
		}
		b.raw("\x00\n\r\n\n\r\r\n\x00|\x00|\x00\n")
		b.raw("filter\x00|0.7|1.000000|smtp-in|quit|" + id + "|" + tokenOf("quit") + "|\n")
		b.raw("filter|0.7|1.000000|smtp-in|quit\r|" + id + "|" + tokenOf("quit") + "|\n")
		b.end(id, "Received: x", "Subject: a\rb", "X-Dot: \xff", "", "a\rb", "cr\r", "\r", ".\r", "..", "..\r", "...", ".x", "\xff\xfe\x80", "|", "end")
	})
	add("random lines", "0.7", func(b *streamBuilder) {
		r := rand.New(rand.NewPCG(1, 2))
		b.begin(id)
		for i := range 10000 {
			line := make([]byte, r.IntN(200))
			for j := range line {
				if line[j] = byte(r.Uint32()); line[j] == '\n' {
					line[j] = '|'
				}
			}
			b.raw([]string{"", "filter|", "report|", "filter|0.7|", "report|0.7|1.000000|smtp-in|", "config|"}[i%6] + string(line) + "\n")
			if i%100 == 0 {
				b.ask("noop", id, "", 1)
			}
		}
		b.end(id, plain...)
	})
	add("broken lines", "0.7", func(b *streamBuilder) {
		b.begin(id)
		tok := tokenOf("noop")
		for _, l := range []string{
			"filter", "filter|", "filter|0.7", "filter|0.7|1.000000", "filter|0.7|1.000000|smtp-in",
			"filter|0.7|1.000000|smtp-in|noop", "filter|0.7|1.000000|smtp-in|noop|" + id,
			"filter|0.7|1.000000|smtp-in|noop||" + tok + "|",
			"filter|0.7|1.000000|smtp-in|noop|" + id + "||",
			"filter|0.7|1.000000|smtp-in|noop|xyz|" + tok + "|",
			"filter|0.7|1.000000|smtp-in|noop|" + id + "|xyz|",
			"filter|0.7|1.000000|smtp-in|noop|" + id + "0|" + tok + "|",
			"filter|0.7|1.000000|smtp-in|noop|0123456789abcdeg|" + tok + "|",
			"filter|0.7|when|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|x|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter||1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|0.|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|-0.7|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"FILTER|0.7|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			" filter|0.7|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|0.7|1.000000|smtp-out|noop|" + id + "|" + tok + "|",
			"filter|0.7|1.000000|smtp-inn|noop|" + id + "|" + tok + "|",
			"filter|0.7|1.000000|smtp-in|NOOP|" + id + "|" + tok + "|",
			"filter|0.7|1.000000|smtp-in|frobnicate|" + id + "|" + tok + "|",
			"filter|0.7|1.000000|smtp-in||" + id + "|" + tok + "|",
			"filter|1.0|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|1.7|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|99999999999999999999.7|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"filter|0.3|1.000000|smtp-in|noop|" + id + "|" + tok + "|",
			"report", "report|", "report|0.7|1.000000|smtp-in", "report|0.7|1.000000|smtp-in|link-connect",
			"report|0.7|1.000000|smtp-in|link-connect|" + id, "report|0.7|1.000000|smtp-in|link-connect|" + id + "|",
			"report|0.7|1.000000|smtp-in|link-connect|1111111111111111|x|y|z",
			"report|0.7|1.000000|smtp-in|link-connect|1111111111111112|x|pass|nowhere|nowhere",
			"report|0.7|1.000000|smtp-in|link-connect|1111111111111113|x|perhaps|1.2.3.4.5:99999|[::",
			"report|0.7|1.000000|smtp-in|link-connect|1111111111111114|||:|",
			"report|0.7|1.000000|smtp-in|link-auth|" + id, "report|0.7|1.000000|smtp-in|link-auth|" + id + "|",
			"report|0.7|1.000000|smtp-in|link-identify|" + id + "|EHLO",
			"report|0.7|1.000000|smtp-in|tx-mail|" + id, "report|0.7|1.000000|smtp-in|tx-mail|" + id + "|zzz",
			"report|0.7|1.000000|smtp-in|tx-rcpt|" + id + "|b0000001|ok",
			"report|0.7|1.000000|smtp-in|tx-commit|" + id + "|b0000001|-1",
			"report|0.7|1.000000|smtp-in|frobnicate|" + id + "|x",
			"report|0.7|1.000000|smtp-out|link-connect|" + id + "|x|pass|192.0.2.1:1|192.0.2.2:2",
			"report|9.7|1.000000|smtp-in|link-disconnect|" + id,
			"report|0.7|99999999999999999999999.000000|smtp-in|tx-reset|" + id + "|b0000001",
			"report|0.7|-1.000000|smtp-in|tx-reset|" + id + "|b0000001",
			"config", "config|", "config|ready", "config|ready|x", "config|smtp-session-timeout|x", "config|unknown|x|y",
			"frobnicate|0.7|1.000000", "|", "||||||||||||", "filter-result|" + id + "|" + tok + "|proceed", "register|ready",
		} {
			b.raw(l + "\n")
		}
		b.end(id, plain...)
	})
	add("odd sessions", "0.7", func(b *streamBuilder) {
		// Sessions that never began, or are over.
		for i, phase := range phases {
			if phase == "data-line" {
				continue
			}
			params := ""
			if phase == "connect" {
				params = "mail.example.org|198.51.100.7"
			}
			b.ask(phase, fmt.Sprintf("%016x", 0xabc0+i), params, 1)
		}
		b.message("00000000000000aa", plain...)
		b.message("00000000000000ab")
		b.report("link-disconnect", "00000000000000ac", "")
		b.report("link-disconnect", "00000000000000ac", "")
		b.ask("noop", "00000000000000ac", "", 1)
		b.begin(id)
		b.end(id, plain...)
		b.ask("mail-from", id, "late@example.net", 1)
		b.report("tx-reset", id, "|b0000001")
		b.begin(id) // the same again
		b.begin(id)
		b.end(id, plain...)
		// A message without end, and a session that goes away in it.
		b.begin("00000000000000ad")
		b.ask("data", "00000000000000ad", "", 1)
		b.ask("data-line", "00000000000000ad", "Subject: half", 1)
		b.report("timeout", "00000000000000ad", "")
		b.report("link-disconnect", "00000000000000ad", "")
	})
	add("repeated lines", "0.7", func(b *streamBuilder) {
		b.begin(id)
		b.report("link-connect", id, "|mail.example.org|pass|198.51.100.7:40000|192.0.2.25:25")
		for _, phase := range phases {
			switch phase {
			case "data-line":
			case "connect":
				b.ask(phase, id, "mail.example.org|198.51.100.7", 3)
			default:
				b.ask(phase, id, "x", 3)
			}
		}
		b.mail(id)
		b.end(id, "Subject: x", "Subject: x", "", "same", "same", "same")
		for range 200 {
			b.report("link-disconnect", id, "")
		}
	})
	add("many sessions", "0.7", func(b *streamBuilder) {
		for i := range 2000 { // none of which ends
			s := fmt.Sprintf("%016x", 0x5e55000000000000+i)
			b.report("link-connect", s, fmt.Sprintf("|<unknown>|fail|198.51.100.%d:4000|192.0.2.25:25", i%256))
			b.ask("connect", s, fmt.Sprintf("<unknown>|198.51.100.%d", i%256), 1)
		}
	})
	for _, cut := range []string{"f", "filter|0.7", "filter|0.7|1.000000|smtp-in|rcpt-to|0123", "report|0.7|1.000000|smtp-in|link-disc", "\x00", strings.Repeat("x", 70000)} {
		add("cut "+brief(cut[:min(len(cut), 40)]), "0.7", func(b *streamBuilder) {})
		all[len(all)-1].Data = append(all[len(all)-1].Data, cut...)
	}
	all = append(all,
		Stream{Name: "nothing"},
		Stream{Name: "no handshake", Data: []byte("report|0.7|1.000000|smtp-in|link-disconnect|" + id + "\n")},
	)
	return all
}

// Hostile feeds each of the HostileStreams to a filter, which must live to the end of it, answer each well-formed
// request of a phase that it registered once and nothing else, return each message whole, write no line that smtpd
// cannot take, and exit with status 0.
func Hostile(t *testing.T, cmd ...string) {
	Program{Cmd: cmd}.Hostile(t)
}

// Hostile is the function of the same name for this program.
func (p Program) Hostile(t *testing.T) {
	for _, s := range HostileStreams() {
		t.Run(s.Name, func(t *testing.T) {
			if err := p.hostile(s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (p Program) hostile(s Stream) error {
	answers, err := p.replay(bytes.Clone(s.Data))
	if err != nil {
		return err
	}
	// The Checker found these requests by itself; here they come from those who wrote the stream.
	want, have := make(map[string]int), make(map[string]int)
	for _, line := range s.Requests {
		f := strings.SplitN(line, "|", 8)
		if f[4] != "data-line" || f[7] == "." {
			want[f[5]+" "+f[4]]++
		}
	}
	answered := make(map[string]bool) // phases that the filter has
	for _, a := range answers {
		have[a.Session+" "+a.Phase]++
		answered[a.Phase] = true
	}
	var errs []error
	for k, n := range want {
		if _, phase, _ := strings.Cut(k, " "); answered[phase] && have[k] != n {
			errs = append(errs, fmt.Errorf("%s: %d answers for %d requests", k, have[k], n))
		}
	}
	return errors.Join(errs...)
}

// EdgeLines returns lines about as long as smtpd takes from a filter, that make trouble when they are cut in the
// wrong place: with dots, spaces and tabs at their ends.
func EdgeLines(limit int) []string {
	lines := []string{
		strings.Repeat(".", limit+1), strings.Repeat(". ", limit/2+1), strings.Repeat(" .", limit/2+1), strings.Repeat(".\t", limit/2+1),
		"X:" + strings.Repeat(" ", limit) + ".", strings.Repeat("a", limit-1) + " ." + strings.Repeat("b", limit/2),
	}
	over := []int{0, 1, 2, 100}
	if limit > maxOldData {
		over = []int{1} // they cost too much
	}
	for _, head := range []string{". ", ".\t", ". . ", "..", ".. ", "...", ".", " ", " .", "X: .", "X: . "} {
		for _, tail := range []string{"", ".", " .", ". ", " . . ", "\r", ".\r"} {
			for _, n := range over {
				lines = append(lines, head+strings.Repeat("a", limit+n-len(head)-len(tail))+tail)
			}
		}
	}
	return lines
}
