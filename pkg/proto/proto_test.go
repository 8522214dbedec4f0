package proto

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustID(t *testing.T, s string) (id ID) {
	t.Helper()
	if err := id.parse([]byte(s)); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return id
}

const sid, tok = "30872ff1275fec9a", "a9b73e08bf78d91d"

func TestParse(t *testing.T) {
	session, token := mustID(t, sid), mustID(t, tok)
	tests := []struct {
		in   string
		want Line
		err  error
	}{
		{"config|smtpd-version|7.8.0-portable", Line{Kind: Config, Key: []byte("smtpd-version"), Fields: []byte("7.8.0-portable")}, nil},
		{"config|ready", Line{Kind: Config, Key: []byte("ready")}, nil},
		{"config|admd|a|b", Line{Kind: Config, Key: []byte("admd"), Fields: []byte("a|b")}, nil},
		{
			"report|0.7|1795322216.499901|smtp-in|link-disconnect|" + sid,
			Line{Kind: Report, Version: V07, Micros: 1795322216499901, Event: LinkDisconnect, Session: session}, nil,
		},
		{
			"report|0.4|0|smtp-out|tx-reset|" + sid + "|856bde69",
			Line{Kind: Report, Version: V04, Out: true, Event: TxReset, Session: session, Fields: []byte("856bde69")}, nil,
		},
		{
			"filter|0.7|1795322216.500410|smtp-in|ehlo|" + sid + "|" + tok + "|client.example.net",
			Line{Kind: Request, Version: V07, Micros: 1795322216500410, Phase: Ehlo, Session: session, Token: token, Fields: []byte("client.example.net")}, nil,
		},
		{ // an empty parameter
			"filter|0.6|5.000001|smtp-in|data|" + sid + "|" + tok + "|",
			Line{Kind: Request, Version: V06, Micros: 5000001, Phase: Data, Session: session, Token: token, Fields: []byte{}}, nil,
		},
		{ // none at all, still answerable
			"filter|0.6|5.5|smtp-in|commit|" + sid + "|" + tok,
			Line{Kind: Request, Version: V06, Micros: 5500000, Phase: Commit, Session: session, Token: token}, nil,
		},
		{ // bars, CR, NUL and 8-bit bytes are data
			"filter|0.5|1.000000|smtp-in|data-line|" + sid + "|" + tok + "|a|b\r\x00\xff|",
			Line{Kind: Request, Version: V05, Micros: 1000000, Phase: DataLine, Session: session, Token: token, Fields: []byte("a|b\r\x00\xff|")}, nil,
		},
		{ // a later minor version is read like the latest known
			"filter|0.42|1.000000|smtp-in|quit|" + strings.ToUpper(sid) + "|" + tok + "|",
			Line{Kind: Request, Version: Version{0, 42}, Micros: 1000000, Phase: Quit, Session: mustID(t, strings.ToUpper(sid)), Token: token, Fields: []byte{}}, nil,
		},

		{"", Line{}, ErrSyntax},
		{"config", Line{}, ErrSyntax},
		{"junk|0.7|1.0|smtp-in|quit|" + sid, Line{}, ErrKind},
		{"report|0.7|1.0|smtp-in|link-disconnect", Line{}, ErrSyntax},
		{"report|0.7|1.0|smtp-in|link-disconnect|30872ff1275fec9", Line{}, ErrSyntax},
		{"report|0.7|1.0|smtp-in|link-disconnect|30872ff1275fec9g", Line{}, ErrSyntax},
		{"report|0.7|1.0|smtp-in|tx-flush|" + sid, Line{}, ErrEvent},
		{"report|0.7|1.0|lmtp|link-disconnect|" + sid, Line{}, ErrSyntax},
		{"filter|0.7|1.0|smtp-out|connect|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.7|1.0|smtp-in|vrfy|" + sid + "|" + tok + "|", Line{}, ErrPhase},
		{"filter|0.7|1.0|smtp-in|quit|" + sid, Line{}, ErrSyntax},
		{"filter|0.7|1.0|smtp-in|quit|" + sid + "|a9b73e08bf78d91|", Line{}, ErrSyntax},
		{"filter|1.0|1.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrVersion},
		{"filter|0.3|1.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrVersion},
		{"filter|07|1.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.x|1.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.7|-1.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.7|1.0000000|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.7|1.|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
		{"filter|0.7|9999999999999.0|smtp-in|quit|" + sid + "|" + tok + "|", Line{}, ErrSyntax},
	}
	for _, tt := range tests {
		var got Line
		err := got.Parse([]byte(tt.in))
		if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("Parse(%q): error %v, want %v", tt.in, err, tt.err)
			continue
		}
		if err != nil {
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Parse(%q): (-want +got)\n%s", tt.in, diff)
		}
	}
}

// Every name is found, and nothing but the names.
func TestNames(t *testing.T) {
	for p := Connect; p < NumPhases; p++ {
		if ParsePhase(p.String()) != p {
			t.Errorf("phase %d, %q, is read as %d", p, p, ParsePhase(p.String()))
		}
	}
	for e := LinkConnect; e < NumEvents; e++ {
		if parseEvent([]byte(e.String())) != e {
			t.Errorf("event %d, %q, is read as %d", e, e, parseEvent([]byte(e.String())))
		}
	}
	for _, s := range []string{"", "connected", "data-lines", "CONNECT"} {
		if p := ParsePhase(s); p != 0 {
			t.Errorf("%q is phase %v", s, p)
		}
		if e := parseEvent([]byte(s)); e != 0 {
			t.Errorf("%q is event %v", s, e)
		}
	}
	if Phase(200).String() != "" || Event(200).String() != "" {
		t.Error("an unknown number has a name")
	}
}

func TestParseLink(t *testing.T) {
	ap := netip.MustParseAddrPort
	tests := []struct {
		in   string
		want Link
	}{
		{"mail.sender.example|pass|198.51.100.7:45901|192.0.2.25:25", Link{"mail.sender.example", Pass, Addr{AddrPort: ap("198.51.100.7:45901")}, Addr{AddrPort: ap("192.0.2.25:25")}}},
		{"<unknown>|fail|[2001:db8::2]:40000|[::]:25", Link{"<unknown>", Fail, Addr{AddrPort: ap("[2001:db8::2]:40000")}, Addr{AddrPort: ap("[::]:25")}}},
		{"|fail|[fe80::25%veth0]:39127|0.0.0.0:25", Link{"", Fail, Addr{AddrPort: ap("[fe80::25%veth0]:39127")}, Addr{AddrPort: ap("0.0.0.0:25")}}},
		{"mx.example.org|pass|unix:/var/run/smtpd.sock|unix:/var/run/smtpd.sock", Link{"mx.example.org", Pass, Addr{Path: "/var/run/smtpd.sock"}, Addr{Path: "/var/run/smtpd.sock"}}},
	}
	for _, tt := range tests {
		got, err := ParseLink([]byte(tt.in))
		if err != nil || got != tt.want {
			t.Errorf("ParseLink(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
		if s := string(got.Append(nil)); s != tt.in {
			t.Errorf("%q is written as %q", tt.in, s)
		}
	}
	for _, in := range []string{"", "a|pass|198.51.100.7:1", "a|pass|198.51.100.7|192.0.2.25:25", "a|pass|unix:|192.0.2.25:25", "a|pass|198.51.100.7:1|192.0.2.25:25|x"} {
		if got, err := ParseLink([]byte(in)); err == nil {
			t.Errorf("ParseLink(%q) = %+v, want an error", in, got)
		}
	}
}

// The order of result and text changed twice; the text may hold bars.
func TestFieldOrder(t *testing.T) {
	mail := Mailbox{"f0f54102", OK, "a|b@x.example"}
	null := Mailbox{"f0f54102", PermFail, ""}
	login := Login{Pass, "we|ird"}
	tests := []struct {
		v                 Version
		mail, null, login string
	}{
		{V04, "f0f54102|a|b@x.example|ok", "f0f54102||permfail", "we|ird|pass"},
		{V05, "f0f54102|a|b@x.example|ok", "f0f54102||permfail", "we|ird|pass"},
		{V06, "f0f54102|ok|a|b@x.example", "f0f54102|permfail|", "we|ird|pass"},
		{V07, "f0f54102|ok|a|b@x.example", "f0f54102|permfail|", "pass|we|ird"},
		{Version{0, 10}, "f0f54102|ok|a|b@x.example", "f0f54102|permfail|", "pass|we|ird"},
	}
	for _, tt := range tests {
		for in, want := range map[string]Mailbox{tt.mail: mail, tt.null: null} {
			got, err := ParseMailbox(tt.v, []byte(in))
			if err != nil || got != want {
				t.Errorf("%v: ParseMailbox(%q) = %+v, %v, want %+v", tt.v, in, got, err, want)
			}
			if s := string(got.Append(nil, tt.v)); s != in {
				t.Errorf("%v: %q is written as %q", tt.v, in, s)
			}
		}
		got, err := ParseLogin(tt.v, []byte(tt.login))
		if err != nil || got != login {
			t.Errorf("%v: ParseLogin(%q) = %+v, %v, want %+v", tt.v, tt.login, got, err, login)
		}
		if s := string(got.Append(nil, tt.v)); s != tt.login {
			t.Errorf("%v: %q is written as %q", tt.v, tt.login, s)
		}
		if m, err := ParseMailbox(tt.v, []byte("f0f54102|ok")); err == nil {
			t.Errorf("%v: a field too few is read as %+v", tt.v, m)
		}
		if l, err := ParseLogin(tt.v, []byte("pass")); err == nil {
			t.Errorf("%v: a field too few is read as %+v", tt.v, l)
		}
	}
}

func TestOtherFields(t *testing.T) {
	if id, err := ParseIdentity([]byte("EHLO|client.example.net")); err != nil || id != (Identity{"EHLO", "client.example.net"}) {
		t.Errorf("link-identify is read as %+v, %v", id, err)
	}
	if id, err := ParseIdentity([]byte("EHLO")); err == nil {
		t.Errorf("link-identify without name is read as %+v", id)
	}
	for in, want := range map[string]Tx{
		"f0f54102":                  {"f0f54102", ""},
		"f0f54102|538":              {"f0f54102", "538"},
		"f0f54102|f0f54102831cf892": {"f0f54102", "f0f54102831cf892"},
	} {
		if got := ParseTx([]byte(in)); got != want || string(got.Append(nil)) != in {
			t.Errorf("ParseTx(%q) = %+v", in, got)
		}
	}
	for in, want := range map[string]Taken{
		"connected|proceed": {Connect, "proceed", ""},
		"tls|proceed":       {StartTLS, "proceed", ""},
		"commit|reject|550 5.7.1 content | refused": {Commit, "reject", "550 5.7.1 content | refused"},
	} {
		if got, err := ParseTaken([]byte(in)); err != nil || got != want {
			t.Errorf("ParseTaken(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "connected", "nosuch|proceed"} {
		if got, err := ParseTaken([]byte(in)); err == nil {
			t.Errorf("ParseTaken(%q) = %+v, want an error", in, got)
		}
	}
}

func TestAnswers(t *testing.T) {
	session, token := mustID(t, sid), mustID(t, tok)
	tests := []struct{ got, want string }{
		{string(AppendResult(nil, V07, session, token, Proceed, "")), "filter-result|" + sid + "|" + tok + "|proceed\n"},
		{string(AppendResult(nil, V05, session, token, Junk, "")), "filter-result|" + sid + "|" + tok + "|junk\n"},
		{string(AppendResult(nil, V04, session, token, Reject, "550 no")), "filter-result|" + tok + "|" + sid + "|reject|550 no\n"},
		{string(AppendResult(nil, Version{0, 42}, session, token, Rewrite, "")), "filter-result|" + sid + "|" + tok + "|rewrite|\n"},
		{string(AppendDataLine(nil, V06, session, token, []byte("a|b\r"))), "filter-dataline|" + sid + "|" + tok + "|a|b\r\n"},
		{string(AppendDataLine(nil, V04, session, token, nil)), "filter-dataline|" + tok + "|" + sid + "|\n"},
		{string(TxReset.AppendRegister(nil)), "register|report|smtp-in|tx-reset\n"},
		{string(DataLine.AppendRegister(nil)), "register|filter|smtp-in|data-line\n"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("written %q, want %q", tt.got, tt.want)
		}
	}
	line := AppendDataLine(nil, V07, session, token, make([]byte, V07.MaxPayload()))
	if len(line) != 65536 {
		t.Errorf("the longest data line has %d bytes, want 65536", len(line))
	}
}

// Every line that a real smtpd has sent is understood, and written again it is
// the same.
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob("../filtertest/testdata/traces/*/*.in")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d recorded streams, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for n, in := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
			var l Line
			if err := l.Parse(in); err != nil {
				t.Errorf("%s:%d: %v: %.100q", file, n+1, err, in)
				continue
			}
			if out := l.Append(nil); !bytes.Equal(in, out) {
				t.Errorf("%s:%d: %.100q is written as %.100q", file, n+1, in, out)
			}
			checkFields(t, &l)
		}
	}
}

// checkFields reads the fields of a report and writes them again.
func checkFields(t *testing.T, l *Line) {
	t.Helper()
	if l.Kind != Report {
		return
	}
	out := l.Fields
	var err error
	switch l.Event {
	case LinkConnect:
		var f Link
		if f, err = ParseLink(l.Fields); err == nil {
			out = f.Append(nil)
		}
	case LinkIdentify:
		var f Identity
		if f, err = ParseIdentity(l.Fields); err == nil {
			out = f.Append(nil)
		}
	case LinkAuth:
		var f Login
		if f, err = ParseLogin(l.Version, l.Fields); err == nil {
			out = f.Append(nil, l.Version)
		}
	case TxMail, TxRcpt:
		var f Mailbox
		if f, err = ParseMailbox(l.Version, l.Fields); err == nil {
			out = f.Append(nil, l.Version)
		}
	case TxBegin, TxEnvelope, TxData, TxCommit, TxRollback, TxReset:
		out = ParseTx(l.Fields).Append(nil)
	case FilterResponse:
		_, err = ParseTaken(l.Fields)
	}
	if err != nil {
		t.Errorf("%v fields %.100q: %v", l.Event, l.Fields, err)
	}
	if !bytes.Equal(l.Fields, out) {
		t.Errorf("%v fields %.100q are written as %.100q", l.Event, l.Fields, out)
	}
}

// What is read is written as it was, but for the forms of numbers and addresses
// that smtpd does not write.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"config|ready",
		"report|0.7|1795322216.499901|smtp-in|link-connect|" + sid + "|mail.sender.example|pass|[fe80::1%em0]:35341|unix:/x",
		"report|0.6|1795322216.499901|smtp-in|link-auth|" + sid + "|we|ird|pass",
		"report|0.4|1795322216.499901|smtp-in|tx-mail|" + sid + "|f0f54102|a|b|ok",
		"report|0.7|1.0|smtp-out|filter-response|" + sid + "|tls|proceed",
		"filter|0.7|1.000000|smtp-in|data-line|" + sid + "|" + tok + "|.",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var l Line
		if l.Parse(in) != nil {
			return
		}
		out := l.Append(nil)
		var again Line
		if err := again.Parse(out); err != nil {
			t.Fatalf("%q, written as %q: %v", in, out, err)
		}
		// A line without fields may be written with an empty last one.
		if len(again.Fields) == 0 && len(l.Fields) == 0 {
			again.Fields = l.Fields
		}
		if diff := cmp.Diff(l, again); diff != "" {
			t.Fatalf("%q, written as %q: %s", in, out, diff)
		}
		switch l.Event {
		case LinkConnect:
			if a, err := ParseLink(l.Fields); err == nil {
				if b, err := ParseLink(a.Append(nil)); err != nil || a != b {
					t.Fatalf("%q: %+v is read again as %+v, %v", in, a, b, err)
				}
			}
		case LinkIdentify, LinkAuth, TxMail, TxRcpt, FilterResponse:
			// Errors are in order, only what is read must be the same again.
			if a, err := ParseMailbox(l.Version, l.Fields); err == nil && !bytes.Equal(a.Append(nil, l.Version), l.Fields) {
				t.Fatalf("%q: fields are written as %q", in, a.Append(nil, l.Version))
			}
			if a, err := ParseLogin(l.Version, l.Fields); err == nil && !bytes.Equal(a.Append(nil, l.Version), l.Fields) {
				t.Fatalf("%q: fields are written as %q", in, a.Append(nil, l.Version))
			}
			ParseIdentity(l.Fields)
			ParseTaken(l.Fields)
		}
	})
}
