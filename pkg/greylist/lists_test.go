package greylist

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

func TestClients(t *testing.T) {
	c, errs := ParseClients(strings.NewReader("\ufeff# ours\n"+
		"192.0.2.1 # one\r\n"+
		"198.51.100.0/24\n"+
		"\n"+
		"Mail.Example.ORG.\n"+
		"/^mx[0-9]+\\.big\\.example$/\n"+
		"2001:db8::/32\n"+
		"192.0.2.300\n"+
		"/(/\n"+
		"/open\n"+
		"//\n"+
		"a b\n"+
		"-\n"+
		"10.0.0.1/40\n"+
		"/a#b/\n"+
		strings.Repeat("x", 5000)), "clients")
	var lines []string
	for _, err := range errs {
		f := strings.SplitN(err.Error(), ":", 3)
		lines = append(lines, f[0]+":"+f[1])
	}
	if got := strings.Join(lines, " "); got != "clients:8 clients:9 clients:10 clients:11 clients:12 clients:14 clients:16" {
		t.Errorf("%v", errs)
	}
	if c.Len() != 7 {
		t.Errorf("%d entries", c.Len())
	}
	other, _ := ParseClients(strings.NewReader("203.0.113.1\nmail.example.org\nother.example"), "more")
	m := MergeClients(c, nil, other)
	for _, tt := range []struct {
		addr, name string
		fcrdns     bool
		want       string
	}{
		{"192.0.2.1", "", false, "clients:2"},
		{"::ffff:192.0.2.1", "", false, "clients:2"},
		{"192.0.2.2", "", false, ""},
		{"198.51.100.7", "", false, "clients:3"},
		{"2001:db8::1", "", false, "clients:7"},
		{"203.0.113.1", "", false, "more:1"},
		{"10.0.0.1", "mail.example.org", true, "clients:5"},
		{"10.0.0.1", "a.MAIL.example.org.", true, "clients:5"},
		{"10.0.0.1", "a.mail.example.org", false, ""},
		{"10.0.0.1", "xmail.example.org", true, ""},
		{"10.0.0.1", "mx12.BIG.example", true, "clients:6"},
		{"10.0.0.1", "mx12.big.example", false, ""},
		{"10.0.0.1", "xmx12.big.example", true, ""},
		{"10.0.0.1", "x.other.example", true, "more:3"},
		{"10.0.0.1", "xa#bx", true, "clients:15"},
		{"10.0.0.1", "", true, ""},
	} {
		at, ok := m.Lookup(netip.MustParseAddr(tt.addr), tt.name, tt.fcrdns)
		if got := fmt.Sprint(at); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%+v: %v, %v", tt, got, ok)
		}
	}
	var none *Clients
	if _, ok := none.Lookup(netip.MustParseAddr("192.0.2.1"), "x", true); ok || none.Len() != 0 {
		t.Error("nil has entries")
	}
}

func TestSenders(t *testing.T) {
	l, errs := ParseSenders(strings.NewReader("good.example\nAlice@one.example\n! forged.example\n!bob@two.example\nx y\n@z\nalice@one.example # again\n"), "senders")
	if len(errs) != 2 || !strings.HasPrefix(errs[0].Error(), "senders:5: ") || !strings.HasPrefix(errs[1].Error(), "senders:6: ") || l.Len() != 4 {
		t.Errorf("%v, %d entries", errs, l.Len())
	}
	more, _ := ParseSenders(strings.NewReader("!good.example"), "more")
	for _, tt := range []struct {
		list   *Senders
		sender string
		proven bool
		want   string
	}{
		{l, "x@good.example", true, "senders:1"},
		{l, "x@good.example", false, ""}, // a list entry alone proves nothing
		{l, "x@sub.Good.example.", true, "senders:1"},
		{l, "x@notgood.example", true, ""},
		{l, "ALICE@one.example", true, "senders:2"},
		{l, "other@one.example", true, ""},
		{l, "x@forged.example", false, "senders:3"},
		{l, "bob@two.example", false, "senders:4"},
		{l, "", true, ""},
		{MergeSenders(l, nil, more), "x@good.example", false, "more:1"},
		{MergeSenders(), "x@good.example", true, ""},
		{nil, "x@good.example", true, ""},
	} {
		at, ok := tt.list.Lookup(tt.sender, tt.proven)
		if got := fmt.Sprint(at); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: %v, %v, want %q", tt.sender, got, ok, tt.want)
		}
	}
}

func TestRecipients(t *testing.T) {
	l, errs := ParseRecipients(strings.NewReader("Bob@rcpt.example\nsales@\ntrial.example\nanna+x@rcpt.example\n@\na b@\n"), "rcpts")
	if len(errs) != 2 || l.Len() != 4 {
		t.Errorf("%v, %d entries", errs, l.Len())
	}
	m := MergeRecipients(l, nil, DefaultRecipients())
	for rcpt, want := range map[string]string{
		"bob@RCPT.example":                       "rcpts:1",
		"bob+x@rcpt.example":                     "rcpts:1",
		"bobby@rcpt.example":                     "",
		"sales@any.example":                      "rcpts:2",
		"x@trial.example":                        "rcpts:3",
		"x@sub.trial.example":                    "rcpts:3",
		"anna+x@rcpt.example":                    "rcpts:4",
		"anna@rcpt.example":                      "",
		"Postmaster@rcpt.example":                "default:1",
		"postmaster":                             "default:1",
		"abuse@x":                                "default:2",
		"@a.example,@b.example:bob@rcpt.example": "rcpts:1",
		"":                                       "",
	} {
		at, ok := m.Lookup(rcpt)
		if got := fmt.Sprint(at); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %v, %v, want %q", rcpt, got, ok, want)
		}
	}
}

func TestListReadError(t *testing.T) {
	broken := errors.New("broken")
	_, errs := ParseRecipients(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("a@\n"))), "f")
	if len(errs) != 1 || !errors.Is(errs[0], iotest.ErrTimeout) {
		t.Errorf("%v", errs)
	}
	_, errs = ParseClients(iotest.ErrReader(broken), "f")
	if len(errs) != 1 || !errors.Is(errs[0], broken) {
		t.Errorf("%v", errs)
	}
	_, errs = ParseSenders(strings.NewReader(strings.Repeat("?\n", 1000)), "f")
	if len(errs) != 101 || errs[100].Error() != "f: 900 more bad lines" {
		t.Errorf("%d errors, the last %v", len(errs), errs[len(errs)-1])
	}
}

func FuzzLists(f *testing.F) {
	f.Add("192.0.2.1\nx.example\n/a/\n!b@c\nd@\n", "x.example")
	f.Add("::1/64\n/[/\n@\n!", "")
	f.Fuzz(func(t *testing.T, text, name string) {
		c, _ := ParseClients(strings.NewReader(text), "f")
		c.Lookup(netip.IPv6Loopback(), name, true)
		s, _ := ParseSenders(strings.NewReader(text), "f")
		s.Lookup(name, true)
		r, _ := ParseRecipients(strings.NewReader(text), "f")
		r.Lookup(name)
		if n := strings.Count(text, "\n") + 1; MergeClients(c).Len() > n || MergeSenders(s).Len() > n || MergeRecipients(r).Len() > n {
			t.Error("more entries than lines")
		}
	})
}
