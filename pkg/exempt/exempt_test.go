package exempt

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// lines returns the places of errors.
func lines(errs []error) string {
	var at []string
	for _, err := range errs {
		f := strings.SplitN(err.Error(), ":", 3)
		at = append(at, f[1])
	}
	return strings.Join(at, " ")
}

func TestClients(t *testing.T) {
	c, errs := ParseClients(strings.NewReader("\ufeff# ours\r\n"+
		"192.0.2.1#office\r\n"+
		"198.51.100.0/24 # lab\n"+
		"195.235.39\n"+
		"[2001:db8:1::]/64\n"+
		"[2001:db8:2::1]\n"+
		"Mail.Example.ORG.\n"+
		".below.example\n"+
		"*.star.example\n"+
		`/^mx[0-9]+\.big\.example$/`+"\n"+
		"/a#b/\n"+
		"bücher.example\n"+
		"203.0.113.7\tPERMIT\n"+
		"203.0.113.8 reject # not him\n"+
		"203.0.113.0/24 dunno\n"+
		"*.co.example reject\n"+
		`/\.evil\.example$/ reject`+"\n"), "clients")
	if errs != nil || c.Len() != 16 {
		t.Fatalf("%d entries, %v", c.Len(), errs)
	}
	for _, tt := range []struct{ addr, name, want string }{
		{"192.0.2.1", "", "2 permit"},
		{"::ffff:192.0.2.1", "", "2 permit"},
		{"192.0.2.2", "", ""},
		{"198.51.100.7", "", "3 permit"},
		{"195.235.39.255", "", "4 permit"},
		{"195.235.3.9", "", ""},
		{"2001:db8:1::99", "", "5 permit"},
		{"2001:db8:2::1", "", "6 permit"},
		{"2001:db8:2::2", "", ""},
		{"192.0.2.9", "mail.example.org", "7 permit"},
		{"192.0.2.9", "A.MAIL.example.org.", "7 permit"},
		{"192.0.2.9", "xmail.example.org", ""},
		{"192.0.2.9", "mail.example.org.evil.com", ""},
		{"192.0.2.9", "example.org", ""},
		{"192.0.2.9", "below.example", ""},
		{"192.0.2.9", "a.below.example", "8 permit"},
		{"192.0.2.9", "xbelow.example", ""},
		{"192.0.2.9", "star.example", ""},
		{"192.0.2.9", "a.b.star.example", "9 permit"},
		{"192.0.2.9", "MX12.big.example.", "10 permit"},
		{"192.0.2.9", "xmx12.big.example", ""},
		{"192.0.2.9", "xa#bx", "11 permit"},
		{"192.0.2.9", "mx.xn--bcher-kva.example", "12 permit"},
		{"203.0.113.7", "", "13 permit"},
		{"203.0.113.8", "", "14 reject"},
		{"203.0.113.9", "", "15 dunno"},
		{"192.0.2.9", "a.co.example", "16 reject"},
		{"192.0.2.9", "a.evil.example", "17 reject"},
		{"203.0.113.9", "a.below.example", "8 permit"}, // the first line
		{"203.0.113.9", "a.evil.example", "15 dunno"},
		{"", "", ""},
		{"", ".", ""},
		{"192.0.2.9", "..", ""},
		{"192.0.2.9", "<unknown>", ""},
	} {
		m, ok := c.Lookup(addr(tt.addr), tt.name)
		got := ""
		if ok {
			got = fmt.Sprint(m.Line, " ", m.Action)
		}
		if got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.addr, tt.name, got, tt.want)
		}
	}
	if _, ok := Clients(nil).Lookup(addr("192.0.2.1"), "x.example"); ok || Clients(nil).Len() != 0 {
		t.Error("nil has entries")
	}
}

func TestBadClients(t *testing.T) {
	for _, text := range []string{
		"192.0.2.300", "192.0.2.1/33", "10", "192.0.2.1 OK", "192.0.2.1 permit please", "192.0.2.1 permit reject",
		"permit", "reject", "dunno", "permit 192.0.2.1", "!192.0.2.0/24", "! 192.0.2.0/24", "!example.com reject", "!!192.0.2.1 reject", "!",
		"/(/", "/open", "//", "/a/ OK", "/(?!a)b/", "/(x{1000}){1000}/", "a b", "-", "com", "localhost", "a..example", "x@example.com", "@example.com",
		"*", ".", "*.", "..", "*.*.example", "example.com/24", "<html>", "{", strings.Repeat("x", 64) + ".example", "endif", "endif x", "if 192.0.2.1",
		"example\x00.com", "example.com\x85", "\"example.com\"", "192.0.2.1,192.0.2.2", "/a/b", "0.0.0.1/0",
	} {
		c, errs := ParseClients(strings.NewReader(text+"\n"), "f")
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "f:1: ") || c.Len() != 0 {
			t.Errorf("%q: %d entries, errors %v", text, c.Len(), errs)
		}
	}
}

// Postfix's cidr_table(5): the first line that names a client counts, !NET are
// all others, and a block is for the clients of its network.
func TestAccess(t *testing.T) {
	c, errs := ParseClients(strings.NewReader(`
192.0.2.7 permit
192.0.2.0/24 reject
if 198.51.100.0/24
198.51.100.7 permit
  if !198.51.100.0/25
  203.0.113.1 permit
  0.0.0.0/0 reject
  endif
198.51.100.8 dunno
endif
!2000::/3 dunno
if 2001:db8::/32
!2001:db8:1::/48 reject
.friends.example permit
endif
2001:db8:1::1 reject
`), "f")
	if errs != nil || c.Len() != 10 {
		t.Fatalf("%d entries, %v", c.Len(), errs)
	}
	for a, want := range map[string]string{
		"192.0.2.7":                       "2 permit",
		"192.0.2.8":                       "3 reject",
		"198.51.100.7":                    "5 permit",
		"198.51.100.8":                    "10 dunno",
		"198.51.100.9":                    "12 dunno", // IPv4 is not in 2000::/3
		"198.51.100.200":                  "8 reject",
		"203.0.113.1":                     "12 dunno", // the block is for others
		"2001:db8::1":                     "14 reject",
		"2001:db8:1::1":                   "17 reject",
		"2001:db8:1::2":                   "",
		"2001:db8:1::1 a.friends.example": "15 permit",
		"2001:db9::1 a.friends.example":   "",
		"fe80::1":                         "12 dunno",
	} {
		a, name, _ := strings.Cut(a, " ")
		m, ok := c.Lookup(addr(a), name)
		got := ""
		if ok {
			got = fmt.Sprint(m.Line, " ", m.Action)
		}
		if got != want {
			t.Errorf("%s %s: got %q, want %q", a, name, got, want)
		}
	}

	// What a bad if holds is for nobody, and what is never closed holds to the end.
	c, errs = ParseClients(strings.NewReader("if 192.0.2.300\n0.0.0.0/0\nendif\nif 192.0.2.0/24\n198.51.100.1\n192.0.2.1\n"), "f")
	if got := lines(errs); got != "1 4" || c.Len() != 2 {
		t.Errorf("%d entries, %v", c.Len(), errs)
	}
	for a, want := range map[string]bool{"192.0.2.1": true, "198.51.100.1": false, "203.0.113.1": false} {
		if _, ok := c.Lookup(addr(a), ""); ok != want {
			t.Errorf("%s: %v", a, ok)
		}
	}
	for _, line := range []string{"if\t192.0.2.0/24", "IF  192.0.2.0/24", "if !0.0.0.0/0", "if!0.0.0.0/0", "if", "if example.com", "if /x/", "if 192.0.2.0/24 permit", "if 192.0.2.0/33"} {
		c, _ := ParseClients(strings.NewReader(line+"\n0.0.0.0/0\nendif\n"), "f")
		if m, ok := c.Lookup(addr("203.0.113.1"), ""); ok {
			t.Errorf("%q: %v counts for others", line, m)
		}
	}
	deep := strings.Repeat("if 0.0.0.0/0\n", 1000) + "0.0.0.0/0\n" + strings.Repeat("endif\n", 1000)
	if c, errs := ParseClients(strings.NewReader(deep), "f"); len(errs) == 0 || c.Len() != 0 {
		t.Errorf("a thousand if: %d entries, %d errors", c.Len(), len(errs))
	}
	c, _ = ParseRejects(strings.NewReader("192.0.2.1\n192.0.2.2 permit"), "f")
	for a, want := range map[string]Action{"192.0.2.1": Reject, "192.0.2.2": Permit} {
		if m, ok := c.Lookup(addr(a), ""); !ok || m.Action != want {
			t.Errorf("%s: %v", a, m)
		}
	}
}

// All forms of Postgrey's files of clients and of recipients.
func TestPostgrey(t *testing.T) {
	c, errs := ParseClients(strings.NewReader(`# postgrey whitelist for mail client hostnames
# example.net: 2004-03-31: a pool, "it's slow" (/see/ #17)
mail.example.net
example.org                     # no retry
195.235.39
195.235
192.0.2.7#x
198.51.100.0/25
2001:db8::25
[2001:db8:1::1]
[2001:db8:2::]/64
*.shop.example
.news.example
/^(relay|out)[0-9]+\.big\.example$/
/\.ms[0-9]\.example$/           # several
`), "whitelist_clients")
	if errs != nil || c.Len() != 13 {
		t.Errorf("%d entries, %v", c.Len(), errs)
	}
	l, errs := ParseRecipients(strings.NewReader(`# postgrey whitelist for mail recipients
postmaster@
abuse@
trial.example
bob@example.org
/^bounces?-.*\@lists\.example$/
/^[a-z]+#[0-9]\@/  # with a number
`), "whitelist_recipients")
	if errs != nil || l.Len() != 6 {
		t.Errorf("%d entries, %v", l.Len(), errs)
	}
	for rcpt, want := range map[string]int{
		"Postmaster@any.example": 2, "ABUSE@x.example": 3, "x@trial.example": 4, "x@sub.trial.example": 4, "x@nottrial.example": 0,
		"bob@example.org": 5, "Bob+news@Example.Org": 5, "bobby@example.org": 0, "bob@sub.example.org": 0,
		"bounce-17@LISTS.example": 6, "x@lists.example": 0, "ab#7@any.example": 7,
	} {
		if p, ok := l.Lookup(rcpt); ok != (want > 0) || p.Line != want {
			t.Errorf("%s: %v", rcpt, p)
		}
	}
}

func TestSenders(t *testing.T) {
	l, errs := ParseSenders(strings.NewReader("example.com\nAlice@one.example\n! forged.example\n!bob@two.example\n"+
		"x y\n@z\nalice@one.example # again\n.below.example\n@exact.example\n*@star.example\nbücher.example\n\"o#brien\"@q.example\n"+
		"list\\#7@l.example\nlist#7@l.example\ncom\nx@\n/x/\n@\nx@.example.com\n!\na b@example.com\n"), "senders")
	if got := lines(errs); got != "5 6 14 15 16 17 18 19 20 21" {
		t.Errorf("bad lines %s: %v", got, errs)
	}
	for _, tt := range []struct {
		sender string
		proven bool
		want   int
	}{
		{"x@example.com", true, 1},
		{"x@example.com", false, 0}, // a list entry alone proves nothing
		{"x@sub.Example.com.", true, 1},
		{"<x@example.com>", true, 1},
		{"@relay.example,@b.example:x@example.com", true, 1},
		{"x@notexample.com", true, 0},
		{"x@example.com.evil.example", true, 0},
		{"bob@example.com@evil.example", true, 0},
		{`"bob@example.com"@evil.example`, true, 0},
		{"@example.com:x@evil.example", true, 0},
		{"example.com", true, 0},
		{"x@", true, 0},
		{"", true, 0},
		{"<>", true, 0},
		{"x@.example.com", true, 0},
		{"x@a..example.com", true, 0},
		{"ALICE@one.example", true, 2},
		{`"alice"@one.example`, true, 2},
		{"alice+x@one.example", true, 2},
		{"other@one.example", true, 0},
		{"alice@sub.one.example", true, 0},
		{"x@forged.example", false, 3},
		{"bob@two.example", false, 4},
		{"x@below.example", true, 0},
		{"x@a.below.example", true, 8},
		{"x@exact.example", true, 9},
		{"x@a.exact.example", true, 0},
		{"x@star.example", true, 10},
		{"x@a.star.example", true, 0},
		{"x@xn--bcher-kva.example", true, 11},
		{"x@BÜCHER.example", true, 11},
		{"o#brien@q.example", true, 12},
		{"list#7@l.example", true, 13},
		{"list@l.example", true, 0},
	} {
		p, ok := l.Lookup(tt.sender, tt.proven)
		if ok != (tt.want > 0) || p.Line != tt.want {
			t.Errorf("%s %v: %v, want line %d", tt.sender, tt.proven, p, tt.want)
		}
	}
	if _, ok := Senders(nil).Lookup("x@example.com", true); ok {
		t.Error("nil has entries")
	}
}

func TestRecipients(t *testing.T) {
	l, errs := ParseRecipients(strings.NewReader("Bob@rcpt.example\nsales@\ntrial.example\nanna+x@rcpt.example\n@\na b@\npostmaster\n/(/\n/a/ b\nx@y@\n/^news-.*@rcpt\\.example$/\n@exact.example\nx@localhost\n"), "rcpts")
	if got := lines(errs); got != "5 6 7 8 9 10" || l.Len() != 7 {
		t.Errorf("%d entries, bad lines %s: %v", l.Len(), got, errs)
	}
	m := MergeRecipients(l, nil, DefaultRecipients())
	for rcpt, want := range map[string]string{
		"bob@RCPT.example":                       "rcpts:1",
		"<bob+x@rcpt.example>":                   "rcpts:1",
		`"bob"@rcpt.example`:                     "rcpts:1",
		"bobby@rcpt.example":                     "",
		"bob@rcpt.example@evil.example":          "",
		"sales@any.example":                      "rcpts:2",
		"sales@any.example@other.example":        "",
		"x@trial.example":                        "rcpts:3",
		"x@sub.trial.example":                    "rcpts:3",
		"anna+x@rcpt.example":                    "rcpts:4",
		"anna@rcpt.example":                      "",
		"NEWS-7@rcpt.example":                    "rcpts:11",
		"x@exact.example":                        "rcpts:12",
		"x@a.exact.example":                      "",
		"x@localhost":                            "rcpts:13",
		"Postmaster@rcpt.example":                "default",
		"POSTMASTER":                             "default",
		"postmaster+x@rcpt.example":              "default",
		"postmaster@[192.0.2.1]":                 "default",
		"xpostmaster@rcpt.example":               "",
		"abuse@x":                                "default",
		"@a.example,@b.example:bob@rcpt.example": "rcpts:1",
		"news-" + strings.Repeat("x", 2000) + "@rcpt.example": "",
		"":   "",
		"<>": "",
		"@":  "",
		"+@": "",
	} {
		p, ok := m.Lookup(rcpt)
		if got := p.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%.40s: %v, %v, want %q", rcpt, got, ok, want)
		}
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, o Options) *Lists {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestVerdicts(t *testing.T) {
	dir := t.TempDir()
	o := Options{
		Clients: []string{write(t, filepath.Join(dir, "c1"), "192.0.2.0/24\n10.0.0.1 reject\n10.0.0.2 dunno\n127.0.0.0/8 reject\n198.51.100.9 dunno\n"),
			write(t, filepath.Join(dir, "c2"), "198.51.100.0/24 reject\nexample.com\n0.0.0.0/0 reject\n")},
		Senders:           []string{write(t, filepath.Join(dir, "s"), "example.com\n!always.example\n")},
		Recipients:        []string{write(t, filepath.Join(dir, "r"), "bob@example.org\n")},
		Common:            write(t, filepath.Join(dir, "all"), "reject client=192.0.2.0/24 # first\npermit client=192.0.2.7 # later\npermit sender=common.example\npermit rcpt=sales@\npermit 192.0.2.8\n"),
		DefaultRecipients: true,
	}
	l := open(t, o)
	by := func(v Verdict) string {
		s := strings.ReplaceAll(v.By, dir+"/", "")
		switch {
		case v.Exempt && v.Own:
			return "own " + s
		case v.Exempt:
			return "exempt " + s
		case v.Reject:
			return "reject " + s
		}
		return "no " + s
	}
	for _, tt := range []struct {
		c    Client
		want string
	}{
		{Client{}, "own local"},
		{Client{Local: true, Addr: addr("192.0.2.1")}, "own local"},
		{Client{Addr: addr("127.0.0.1")}, "own local"},
		{Client{Addr: addr("::ffff:127.0.0.1")}, "own local"},
		{Client{Addr: addr("::1")}, "own local"},
		{Client{Addr: addr("192.0.2.9"), User: "bob"}, "own authenticated"},
		{Client{Addr: addr("192.0.2.9")}, "reject all:1"},
		{Client{Addr: addr("192.0.2.7")}, "exempt all:2"},
		{Client{Addr: addr("192.0.2.8")}, "exempt all:5"},
		{Client{Addr: addr("198.51.100.1")}, "reject -allowClients c2:1"},
		{Client{Addr: addr("198.51.100.9")}, "no -allowClients c1:5"},
		{Client{Addr: addr("10.0.0.1")}, "reject -allowClients c1:2"},
		{Client{Addr: addr("10.0.0.2")}, "own private"},
		{Client{Addr: addr("203.0.113.1"), Name: "mx.example.com"}, "exempt -allowClients c2:2"},
		{Client{Addr: addr("203.0.113.1")}, "reject -allowClients c2:3"},
		{Client{Addr: addr("2001:db8::1")}, "no "},
		{Client{Addr: addr("fd00::1")}, "own private"},
		{Client{Addr: addr("fe80::1%em0")}, "own private"},
	} {
		if got := by(l.Client(tt.c)); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.c, got, tt.want)
		}
	}
	for a, want := range map[string]string{"10.0.0.1": "own private", "192.0.2.7": "no ", "100.64.0.1": "own private"} {
		if got := by(l.Own(Client{Addr: addr(a)})); got != want {
			t.Errorf("own %s: %s, want %s", a, got, want)
		}
	}
	for _, tt := range []struct {
		from         string
		pass, needs  bool
		want, unsure string
	}{
		{"x@example.com", true, true, "exempt -allowSenders s:1", "no "},
		{"x@common.example", true, true, "exempt all:3", "no "},
		{"x@always.example", true, false, "exempt -allowSenders s:2", "exempt -allowSenders s:2"},
		{"x@other.example", true, false, "no ", "no "},
		{"", true, false, "no ", "no "},
	} {
		if got := by(l.Sender(tt.from, true)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.from, got, tt.want)
		}
		if got := by(l.Sender(tt.from, false)); got != tt.unsure {
			t.Errorf("%s without SPF: %s, want %s", tt.from, got, tt.unsure)
		}
		if got := l.SenderNeedsSPF(tt.from); got != tt.needs {
			t.Errorf("%s: needs SPF: %v", tt.from, got)
		}
	}
	for rcpt, want := range map[string]string{
		"bob@example.org":      "exempt -allowRecipients r:1",
		"sales@x.example":      "exempt all:4",
		"postmaster@x.example": "exempt -allowRecipients default",
		"other@x.org":          "no ",
		"":                     "no ",
	} {
		if got := by(l.Recipient(rcpt)); got != want {
			t.Errorf("%s: %s, want %s", rcpt, got, want)
		}
	}

	o.Clients, o.Common, o.DefaultRecipients = nil, "", false
	if err := o.Trusted.Set("203.0.113.0/24, 2001:db8::/32"); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	for a, want := range map[string]string{
		"203.0.113.9": "own -trusted 203.0.113.0/24", "2001:db8::1": "own -trusted 2001:db8::/32", "10.0.0.1": "own private", "192.0.2.1": "no ",
	} {
		if got := by(l.Client(Client{Addr: addr(a)})); got != want {
			t.Errorf("trusted %s: %s, want %s", a, got, want)
		}
	}
	if l.Recipient("postmaster@x.example").Exempt {
		t.Error("postmaster without DefaultRecipients")
	}
	if err := o.Trusted.Set("none,10.1.0.0/16"); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	for a, want := range map[string]string{"10.0.0.1": "no ", "127.0.0.1": "no ", "10.1.0.1": "own -trusted 10.1.0.0/16", "": "own local"} {
		if got := by(l.Client(Client{Addr: addr(a)})); got != want {
			t.Errorf("trusted none %s: %s, want %s", a, got, want)
		}
	}
	before := o.Trusted
	if err := o.Trusted.Set("192.0.2.0/24,x"); err == nil || o.Trusted.String() != before.String() {
		t.Errorf("bad networks: %v, %v", err, o.Trusted)
	}
	var zero Lists
	if zero.Client(Client{Addr: addr("192.0.2.1")}).Exempt || zero.Sender("x@example.com", true).Exempt || zero.Recipient("x@example.com").Exempt {
		t.Error("the zero Lists exempt somebody")
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	bad := write(t, filepath.Join(dir, "bad"), "<html>\n")
	some := write(t, filepath.Join(dir, "some"), "192.0.2.1\nx y\n203.0.113.0/24 reject\n0.0.0.0/1\nco.uk\n/.*/\n")
	froms := write(t, filepath.Join(dir, "froms"), "github.io\nexample.com\n")
	if _, err := Open(Options{Clients: []string{some, bad}, Senders: []string{bad}}); err == nil || strings.Count(err.Error(), "bad:1: ") != 2 {
		t.Errorf("wholly invalid: %v", err)
	}
	l := open(t, Options{Clients: []string{some, filepath.Join(dir, "none")}, Senders: []string{froms}, Common: filepath.Join(dir, "nocommon")})
	if got := fmt.Sprint(l.Bad()); strings.Count(got, "some:2: ") != 1 || strings.Count(got, "none: no such file") != 1 || len(l.Bad()) != 2 {
		t.Errorf("bad: %s", got)
	}
	if got := lines(l.Warnings()); len(l.Warnings()) != 5 {
		t.Errorf("warnings %s: %v", got, l.Warnings())
	}
	if got := fmt.Sprint(l.Rows()); !strings.HasPrefix(got, "[[entries of -allowClients 5] [entries of -allowSenders 2] [entries of -allowRecipients 0]") {
		t.Errorf("rows %s", got)
	}
	l = open(t, Options{Clients: []string{some}, Refuses: true})
	if len(l.Warnings()) != 3 {
		t.Errorf("warnings %v", l.Warnings())
	}
}

func TestCommon(t *testing.T) {
	for _, text := range []string{
		"192.0.2.1", "permit", "permit ", "permit example.com", "permit user@example.com", "dunno client=192.0.2.1", "permit client=", "permit client",
		"permit rcpt=", "permit from=x@example.com", "reject sender=example.com", "reject rcpt=bob@", "permit sender=!example.com", "permit client=!192.0.2.1",
		"permit client=192.0.2.1 reject", "permit client=192.0.2.1 sender=example.com", "permit client=/open", "permit client=com", "permit sender=bob@",
		"permit rcpt=a#b@example.com", "client=192.0.2.1 permit",
	} {
		c, errs := parseCommon(strings.NewReader(text), "f")
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "f:1: ") || c.Len() != 0 {
			t.Errorf("%q: %d entries, errors %v", text, c.Len(), errs)
		}
	}
	c, errs := parseCommon(strings.NewReader("PERMIT\tclient=192.0.2.1#root\npermit client=mx.example.com\npermit client=/^a#b\\./ # x\npermit sender=bob@example.com\npermit rcpt=/^a b@/\nreject client = 192.0.2.1\nreject 192.0.2.0/24\npermit [2001:db8::]/64\n"), "f")
	if len(errs) != 1 || lines(errs) != "6" || c.Len() != 7 {
		t.Errorf("%d entries, %v", c.Len(), errs)
	}
	for a, want := range map[string]string{"192.0.2.1": "7 reject", "2001:db8::1": "8 permit"} {
		if m, ok := c.clientsOf().Lookup(addr(a), ""); !ok || fmt.Sprint(m.Line, " ", m.Action) != want {
			t.Errorf("%s: %v %v", a, m, ok)
		}
	}
}

// What filterctl adds counts within 30 seconds.
func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, Options{Common: path})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Watch(ctx); close(done) }()
		c := Client{Addr: addr("192.0.2.1")}
		if l.Client(c).Exempt || len(l.Bad()) != 0 {
			t.Errorf("at first: %v, bad: %v", l.Client(c), l.Bad())
		}
		for i, text := range []string{"permit client=192.0.2.1\n", "reject client=192.0.2.1\n", "permit client=192.0.2.1\n"} {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteString(text)
			f.Close()
			time.Sleep(30 * time.Second)
			synctest.Wait()
			if v := l.Client(c); v.Exempt != (i%2 == 0) || v.Reject == v.Exempt {
				t.Errorf("after %q: %+v", text, v)
			}
		}
		cancel()
		<-done
	})
}

// Nothing in a file or an address makes a list say yes to what it does not name:
// the plain truth, on generated input.
func FuzzLists(f *testing.F) {
	f.Add("192.0.2.1\nx.example\n/a/\n!b@c.example\nd@\nif 10/8\nendif", "x.example", "b@c.example")
	f.Add("::1/64\n/[/\n@\n!\npermit client=1.2.3.4\nreject client=/x/", "", "<@a:\"b\\\"@c>")
	f.Fuzz(func(t *testing.T, text, name, mail string) {
		n := strings.Count(text, "\n") + 1
		c, errs := ParseClients(strings.NewReader(text), "f")
		if c.Len() > n || len(errs) > 2*n {
			t.Errorf("%d entries, %d errors of %d lines", c.Len(), len(errs), n)
		}
		c.Lookup(netip.IPv6Loopback(), name)
		s, _ := ParseSenders(strings.NewReader(text), "f")
		r, _ := ParseRecipients(strings.NewReader(text), "f")
		all, _ := parseCommon(strings.NewReader(text), "f")
		if s.Len() > n || r.Len() > n || all.Len() > n {
			t.Error("more entries than lines")
		}
		r.Lookup(mail)
		all.clientsOf().Lookup(netip.IPv6Loopback(), name)
		if _, ok := s.Lookup(mail, false); ok && !strings.Contains(text, "!") {
			t.Errorf("%q without SPF", mail)
		}
		p, ok := s.Lookup(mail, true)
		if !ok {
			return
		}
		line := strings.Split(text, "\n")[p.Line-1]
		domain := canonicalName(strings.TrimSuffix(mail[strings.LastIndexByte(mail, '@')+1:], ">"))
		for len(domain) > 0 && !strings.Contains(strings.ToLower(line), domain) {
			_, domain, _ = strings.Cut(domain, ".")
		}
		if domain == "" && strings.IndexFunc(line, func(r rune) bool { return r > 127 }) < 0 {
			t.Errorf("%q is named by %q", mail, line)
		}
	})
}

func BenchmarkClients(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "%d.%d.%d.0/24\nmx%d.example.com\n", 11+i%80, i%251, i/400, i)
	}
	c, errs := ParseClients(strings.NewReader(text.String()), "f")
	if errs != nil {
		b.Fatal(errs[0])
	}
	a := netip.MustParseAddr("11.0.0.7")
	b.ReportAllocs()
	for b.Loop() {
		c.Lookup(a, "mail.example.net")
	}
}

func TestCommonLine(t *testing.T) {
	for _, tt := range []struct {
		action        Action
		what, comment string
		want, err     string
	}{
		{Permit, "192.0.2.1", "2026-12-01 root", "permit client=192.0.2.1 # 2026-12-01 root", ""},
		{Reject, "2001:db8::/32", "", "reject client=2001:db8::/32", ""},
		{Permit, "client=mail.example.com", "", "permit client=mail.example.com", ""},
		{Permit, "sender=ann@example.com", "said so # twice", "permit sender=ann@example.com # said so # twice", ""},
		{Permit, `sender="o#brien"@example.com`, "", `permit sender="o#brien"@example.com`, ""},
		{Permit, "rcpt=sales@", "", "permit rcpt=sales@", ""},
		{Permit, "example.com", "", "", "want one of client=example.com (machines of that name or address), sender=example.com, rcpt=example.com"},
		{Permit, "ann@example.com", "", "", "want one of client=ann@example.com (machines of that name or address), sender=ann@example.com, rcpt=ann@example.com"},
		{Permit, "", "", "", "want one of client=example.com (machines of that name or address), sender=example.com, rcpt=example.com"},
		{Permit, "300.1.1.1", "", "", "want one of client=300.1.1.1 (machines of that name or address), sender=300.1.1.1, rcpt=300.1.1.1"},
		{Reject, "sender=ann@example.com", "", "", "reject takes client= only"},
		{Reject, "rcpt=bob@example.org", "", "", "reject takes client= only"},
		{Permit, "sender=o#brien@example.com", "", "", `"permit sender=o#brien@example.com" ends at a #: put quotes around the part before the @`},
		{Permit, "client=192.0.2.1\nreject client=0.0.0.0/0", "", "", "a control character is in it"},
		{Permit, "192.0.2.1", "a\x1b[31m", "", "a control character is in it"},
		{Permit, "sender=!example.com", "", "", `"!example.com": no ! is understood here`},
		{Permit, "host=example.com", "", "", errCommon.Error()},
		{Permit, "client=", "", "", errCommon.Error()},
	} {
		got, err := CommonLine(tt.action, tt.what, tt.comment)
		if got != tt.want || err == nil != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("%s: %q, %v, want %q, %s", tt.what, got, err, tt.want, tt.err)
		}
		if err != nil {
			continue
		}
		if c, errs := parseCommon(strings.NewReader(got), "list"); len(errs) > 0 || c.Len() != 1 {
			t.Errorf("%s: %v, %d entries", got, errs, c.Len())
		}
	}
}
