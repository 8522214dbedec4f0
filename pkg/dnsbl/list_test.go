package dnsbl

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestName(t *testing.T) {
	for _, s := range []string{"192.0.2.99", "0.0.0.0", "255.255.255.255", "127.0.0.2", "2001:db8:1:2:3:4:567:89ab", "::1", "::", "::ffff:192.0.2.99", "fe80::1"} {
		arpa, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.NewReplacer("in-addr.arpa.", "bl.example", "ip6.arpa.", "bl.example").Replace(arpa)
		if got := Name("bl.example", netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
	if got := Name("bl.example", netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
	// RFC 5782 section 5
	want := "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example"
	if got := name("bl.example", netip.MustParseAddr("::ffff:7f00:2")); got != want {
		t.Errorf("test entry: %s, want %s", got, want)
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct{ match, yes, no string }{
		{"127.0.0.2", "127.0.0.2", "127.0.0.3 127.0.1.2"},
		{"127.0.0.[2..11]", "127.0.0.2 127.0.0.7 127.0.0.11", "127.0.0.1 127.0.0.12 127.0.1.2"},
		{"127.0.0.[2;4;9..11]", "127.0.0.2 127.0.0.4 127.0.0.10", "127.0.0.3 127.0.0.8"},
		{"127.0.[0..255].[1..3]", "127.0.10.3 127.0.255.1", "127.0.10.0 127.1.10.3"},
		{"127.[0..1].[5].0", "127.1.5.0 127.0.5.0", "127.2.5.0"},
		{"127.0.0.2/31", "127.0.0.2 127.0.0.3", "127.0.0.1 127.0.0.4"},
		{"127.0.0.0/8", "127.9.9.9", "128.0.0.1"},
		{"0.0.0.0/0", "127.9.9.9", "192.0.2.1"},
		{"bit:16", "127.0.0.16 127.0.0.17 127.0.0.255", "127.0.0.15 127.0.16.0"},
		{"bit:12", "127.0.0.4 127.0.0.8", "127.0.0.3"},
	} {
		m, err := ParseMatch(tt.match)
		if err != nil {
			t.Errorf("%s: %v", tt.match, err)
			continue
		}
		for _, s := range strings.Fields(tt.yes) {
			if !m.Contains(netip.MustParseAddr(s)) {
				t.Errorf("%s does not contain %s", tt.match, s)
			}
		}
		for _, s := range strings.Fields(tt.no) {
			if m.Contains(netip.MustParseAddr(s)) {
				t.Errorf("%s contains %s", tt.match, s)
			}
		}
	}
	for _, bad := range []string{
		"", "127", "127.0.0", "127.0.0.2.3", "127.0.0.", "127.0.0.256", "127.0.0.[2-11]", "127.0.0.[11..2]", "127.0.0.[2..11", "127.0.0.2]",
		"127.0.0.[]", "127.0.0.[2;]", "127.0.0.2;3", "192.0.2.1", "[1..2].0.0.1", "10.0.0.0/8", "127.0.0.2/33", "::1/128", "bit:0", "bit:256", "bit:",
		"127.0.0.[2]3", "127..0.0.2", "127.0.0.[2..4..6]", "x",
	} {
		if m, err := ParseMatch(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, m)
		}
	}
	if !(Match{}).Contains(netip.MustParseAddr("127.3.2.1")) || (Match{}).Contains(netip.MustParseAddr("203.0.113.1")) {
		t.Error("the zero Match is not 127.0.0.0/8")
	}
}

func TestParse(t *testing.T) {
	const key = "abcdefghij0123456789klmnop"
	for _, tt := range []struct{ text, want string }{
		{"bl.example.net", "bl.example.net*1+ip+v4+v6"},
		{"BL.Example.Net.", "bl.example.net*1+ip+v4+v6"},
		{"bl.example.net*-100+v6", "bl.example.net*-100+ip+v6"},
		{"x@bl.example.net=127.0.0.2*3+block+txt", "x@bl.example.net=127.0.0.2*3+ip+v4+v6+block+txt"},
		{"rhs.example.net+helo+from+rdns+junk", "rhs.example.net*1+rdns+helo+from+junk"},
		{"bl.example.net+ip+rdns", "bl.example.net*1+ip+rdns+v4+v6"},
		{"zen.spamhaus.org", "zen.spamhaus.org=127.0.0.[2..11]*5+ip+v4+v6"},
		{key + ".zen.dq.spamhaus.net", "KEY.zen.dq.spamhaus.net=127.0.0.[2..11]*5+ip+v4+v6"},
		{"short.zen.dq.spamhaus.net", "KEY.zen.dq.spamhaus.net=127.0.0.[2..11]*5+ip+v4+v6"},
		{"zen@" + key + ".zen.dq.spamhaus.net", "zen@KEY.zen.dq.spamhaus.net=127.0.0.[2..11]*5+ip+v4+v6"},
		{key + ".combined.mail.abusix.zone*2", "KEY.combined.mail.abusix.zone=127.0.0.[2..4;11..12;200]*2+ip+v4+v6"},
		{key + ".bl.example.net", "KEY.bl.example.net*1+ip+v4+v6"},
		{"dbl.spamhaus.org+from", "dbl.spamhaus.org=127.0.1.[2..99]*4+from"},
		{"list.dnswl.org", "list.dnswl.org=127.0.[0..255].[1..3]*-2+ip+v4+v6"},
		{"bl.spamcop.net", "bl.spamcop.net*2+ip+v4"},
		{"bl.spamcop.net+v4+v6", "bl.spamcop.net*2+ip+v4+v6"},
		{"zen.spamhaus.org=127.0.0.[2..11]*3 list.dnswl.org=127.0.[0..255].[1..3]*-2",
			"zen.spamhaus.org=127.0.0.[2..11]*3+ip+v4+v6 list.dnswl.org=127.0.[0..255].[1..3]*-2+ip+v4+v6"},
		{"a.example,\n  b.example*2,,\r\n\tc.example\n", "a.example*1+ip+v4+v6 b.example*2+ip+v4+v6 c.example*1+ip+v4+v6"},
	} {
		lists, errs := Parse(tt.text)
		var got []string
		for _, l := range lists {
			got = append(got, l.String())
		}
		if errs != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%q: %v, %v\nwant %s", tt.text, got, errs, tt.want)
		}
		// What is printed is read again, but for keys.
		again, errs := Parse(strings.ReplaceAll(strings.Join(got, "\n"), "KEY", key))
		if errs != nil || len(again) != len(lists) {
			t.Errorf("%q: read again: %v", got, errs)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"zen", "not a zone"},
		{"192.0.2.1", "not a zone"},
		{"a..b", "not a zone"},
		{"bl.exämple", "not a zone"},
		{strings.Repeat("a.", 100) + "example", "not a zone"},
		{"@bl.example", "a label is"},
		{"a b@@bl.example", "not a zone"},
		{"bl.example*101", "a weight is"},
		{"bl.example*", "a weight is"},
		{"bl.example*1*2", "more than once"},
		{"bl.example=127.0.0.2=127.0.0.3", "more than once"},
		{"bl.example=", "not four octets"},
		{"bl.example=192.0.2.1", "never matches"},
		{"bl.example+nosuch", "options are"},
		{"bl.example+", "options are"},
		{"bl.example*3+", "options are"},
		{"dbl.spamhaus.org+ip", "lists domains"},
		{"zen.spamhaus.org+helo", "lists addresses"},
		{"rhs.example+helo+v4", "for addresses"},
		{"bl.example*-1+block", "do not go with"},
		{key + "..zen.dq.spamhaus.net", "list \"KEY..zen"},
		{key, "list \"KEY\""},
		{"zen.spamhaus.org=" + key, "\"zen.spamhaus.org=KEY\""},
		{key + "@bl.example*1000", "list \"KEY@bl"},
	} {
		_, errs := Parse(tt.text)
		err := errors.Join(errs...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want %q", tt.text, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%q: the error shows the key: %v", tt.text, err)
		}
	}
}

// Each is a value of postscreen_dnsbl_sites, as one argument and as a file, and
// what it counts in Postfix.
func TestPostscreen(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string // weights
		any  string // an answer that the last one counts
	}{
		{"zen.spamhaus.org*3\nbl.spamcop.net\npsbl.surriel.com", "[3 1 1]", "127.0.0.2"},
		{"zen.spamhaus.org*2, bl.spamcop.net*1, b.barracudacentral.org*1", "[2 1 1]", "127.0.0.2"},
		{"zen.spamhaus.org=127.0.0.[2..11]*3\nlist.dnswl.org*-2", "[3 -2]", "127.0.5.0"},
		{"b.barracudacentral.org*2\ndnsbl-1.uceprotect.net", "[2 1]", "127.0.0.2"},
		{"zen.spamhaus.org*3\nlist.dnswl.org=127.0.[2..15].0*-2\nlist.dnswl.org=127.0.[2..15].[2..3]*-4", "[3 -2 -4]", "127.0.9.3"},
	} {
		for _, lines := range [][]string{{tt.text}, strings.Split(tt.text, "\n")} {
			lists, errs := Parse(lines...)
			var got []int
			for _, l := range lists {
				got = append(got, l.Weight)
			}
			if errs != nil || fmt.Sprint(got) != tt.want {
				t.Errorf("%q: %v, %v, want %s", lines, got, errs, tt.want)
			} else if !lists[len(lists)-1].Match.Contains(netip.MustParseAddr(tt.any)) {
				t.Errorf("%q: %s does not count", lines, tt.any)
			}
		}
	}
	// Not such a value.
	for text, want := range map[string]string{
		"zen.spamhaus.org\nbl.spamcop.net":          "[5 2]",
		"bl.spamcop.net=127.0.0.2":                  "[2]",
		"zen.spamhaus.org bl.spamcop.net":           "[5 2]", // in one pair of quotes
		"a.example+block bl.spamcop.net":            "[1 2]",
		"zen.spamhaus.org, bl.spamcop.net":          "[1 1]",
		"zen.spamhaus.org=127.0.0.2 bl.spamcop.net": "[1 1]",
		"zen.spamhaus.org bl.spamcop.net*+3":        "[1 3]",
		"zen.spamhaus.org*3\ndbl.spamhaus.org+from": "[3 4]", // Postfix has no such lists there
		"zen.spamhaus.org*3 list.dnswl.org":         "[3 -2]",
	} {
		lists, _ := Parse(strings.Split(text, "\n")...)
		var got []int
		for _, l := range lists {
			got = append(got, l.Weight)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%q: %v, want %s", text, got, want)
		}
	}
	_, errs := Parse("bl.example", "zen", "", "a.example*x b.example+y")
	if len(errs) != 4 || errs[0] != nil || errs[1] == nil || errs[2] != nil || strings.Count(errs[3].Error(), "\n") != 1 {
		t.Errorf("errors %q", errs)
	}
}

// What cannot be asked does not stop the mail server: a value that was pasted may
// have it.
func TestNotAsked(t *testing.T) {
	for text, why := range map[string]string{
		"dbl.spamhaus.org":                        "lists domains",
		"dbl.spamhaus.org*2":                      "lists domains",
		"dbl.spamhaus.org=127.0.1.[2..99]*3":      "lists domains",
		"multi.surbl.org":                         "lists domains",
		"your.dbl.dq.spamhaus.net":                "lists domains",
		"score.senderscore.com":                   "add a =match",
		"rep.mailspike.net*2":                     "add a =match",
		"dnsbl.sorbs.net":                         "dead",
		"rhs.mailpolice.com":                      "dead",
		"dbl.spamhaus.org+from":                   "",
		"score.senderscore.com=127.0.4.[0..20]*2": "",
	} {
		for _, value := range []string{text, "zen.spamhaus.org*3, " + text + " bl.spamcop.net"} {
			lists, errs := Parse(value)
			if errs != nil {
				t.Errorf("%s: %v", value, errs)
				continue
			}
			l := lists[min(1, len(lists)-1)]
			if (l.Dead == "") != (why == "") || !strings.Contains(l.Dead, why) {
				t.Errorf("%s: %q, want %q", value, l.Dead, why)
			}
			w := strings.Join(Options{Lists: lists}.Warnings(), ";")
			if why != "" && !strings.Contains(w, why) || why == "" && w != "" {
				t.Errorf("%s: warnings %q", value, w)
			}
			c := New(Options{Lists: lists, Resolver: newFake(), JunkAt: 1})
			for _, z := range c.alive() {
				if why != "" && z.name == l.zone {
					t.Errorf("%s is asked", value)
				}
			}
		}
	}
}

// Allow lists are such by themselves.
func TestAllowLists(t *testing.T) {
	const key = "abcdefghij0123456789klmnop"
	for _, zone := range []string{
		"swl.spamhaus.org", key + ".swl.dq.spamhaus.net", key + ".white.mail.abusix.zone", "iadb.isipp.com", "nobl.junkemailfilter.com",
		"list.dnswl.org", "wl.mailspike.net", "dnswl.spfbl.net", "ips.whitelisted.org",
	} {
		lists, errs := Parse(zone)
		if errs != nil || lists[0].Weight >= 0 || lists[0].Odd != "" {
			t.Errorf("%s: %v, %v", zone, lists, errs)
		}
	}
}

// What is accepted and probably not meant.
func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		lists       string
		block, junk int
		want        string // "" is none
	}{
		{"zen.spamhaus.org bl.spamcop.net", 5, 3, ""},
		{"zen.spamhaus.org=127.0.0.[2..11]*3 list.dnswl.org=127.0.[0..255].[1..3]*-2", 3, 0, ""},
		{"zen.spamhaus.org*3\nb.barracudacentral.org=127.0.0.[2..11]*2\nbl.spamcop.net\nlist.dnswl.org=127.[0..255].[0..255].0*-2", 3, 2, ""},
		{"abcdefghij0123456789klmnop.zen.dq.spamhaus.net", 5, 0, ""},
		{"bl.mine.example*5 hostkarma.junkemailfilter.com=127.0.0.1*-2", 5, 0, ""},
		{"bl.mine.example=127.0.0.9*5", 5, 0, ""},
		{"multi.uribl.com=bit:14+from*5", 5, 0, ""},

		{"dbl.spamhaus.org=127.0.0.[2..11]+from*5", 5, 0, "never answers what the match wants; by itself it has =127.0.1.[2..99]"},
		{"zen.spamhaus.org=127.255.255.254*5", 5, 0, "never answers"},
		{"bl.mine.example=127.255.255.[252..255]*5", 5, 0, "never answers"},
		{"bl.mine.example=127.0.0.255*5", 5, 0, "never answers"},
		{"multi.surbl.org=127.0.0.1+from*5", 5, 0, "never answers"},
		{"bl.spamcop.net=127.0.0.3*5", 5, 0, "never answers"},
		{"list.dnswl.org=127.1.0.0/16*-5 bl.mine.example*5", 5, 0, "never answers"},
		{"zen.spamhuas.org*5", 5, 0, "is it zen.spamhaus.org?"},
		{"bl.spamcop.org*5", 5, 0, "is it bl.spamcop.net?"},
		{"b.baracudacentral.org*5", 5, 0, "is it b.barracudacentral.org?"},
		{"abcdefghij0123456789klmnop.zen.dq.spamhaus.com*5", 5, 0, "is it zen.dq.spamhaus.net?"},
		{"your-dqs-key.zen.dq.spamhaus.net", 5, 0, "stands for your key"},
		{"yourdqskey.zen.dq.spamhaus.net", 5, 0, "stands for your key"},
		{"XXXXXXXXXXXXXXXXXXXXXXXXXX.zen.dq.spamhaus.net", 5, 0, "stands for your key"},
		{"apikey.combined.mail.abusix.zone*5", 5, 0, "stands for your key"},
		{"wl.mine.example bl.mine.example*5", 5, 0, "by its name it is an allow list"},
		{"swl.spamhaus.org*4 bl.mine.example*5", 5, 0, "it is an allow list"},
		{"zen.spamhaus.org*-3 bl.mine.example*5", 5, 0, "it is a block list"},
		{"bl.mine.example*5", 3, 5, "-junkAt 5 is not below -blockAt 3"},
		{"bl.mine.example*5", 3, 3, "-junkAt 3 is not below -blockAt 3"},
		{"a.example*2 b.example*2", 5, 0, "all lists together weigh 4, which does not reach -blockAt 5"},
		{"a.example*2 b.example*2", 0, 5, "all lists together weigh 4, which does not reach -junkAt 5"},
		{"zen.spamhaus.org, bl.spamcop.net", 5, 0, "a list without a weight counts 1, add *5 to zen.spamhaus.org"},
	} {
		lists, errs := Parse(tt.lists)
		if errs != nil {
			t.Errorf("%s: %v", tt.lists, errs)
			continue
		}
		got := Options{Lists: lists, BlockAt: tt.block, JunkAt: tt.junk}.Warnings()
		if tt.want == "" && got != nil || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
			t.Errorf("%s: %q, want %q", tt.lists, got, tt.want)
		}
	}
	for _, k := range knownZones() { // each is near to itself only
		if near := nearest(k.zone); near != "" && lookupZone(k.zone).zone == "" {
			t.Errorf("%s: near to %s", k.zone, near)
		}
		text := k.zone
		if k.kind == domains {
			text += "+from"
		}
		lists, _ := Parse(text)
		if lists[0].Odd != "" {
			t.Errorf("%s by itself: %s", k.zone, lists[0].Odd)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1}, {"abc", "xabc", 1}, {"abcd", "badc", 2}, {"kitten", "sitting", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want || distance(tt.b, tt.a) != tt.want {
			t.Errorf("%q, %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestDistinct(t *testing.T) {
	lists, errs := Parse("a@a.example a@b.example a@a.example a@c.example a-2@d.example a@b.example", "abcdefghij0123456789klmnop.bl.example abcdefghij0123456789klmnoq.bl.example")
	if errs != nil {
		t.Fatal(errs)
	}
	var got []string
	for _, l := range Distinct(Distinct(lists)) {
		got = append(got, l.Label)
	}
	if want := "[a a-2 a a-3 a-2-2 a-2 KEY.bl.example KEY.bl.example-2]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
	if lists[1].Label != "a" {
		t.Error("what was given is changed")
	}
	for _, w := range words() {
		if _, errs := Parse(w + "@a.example"); errs == nil {
			t.Errorf("%s is a label", w)
		}
	}
}

// The table is right in itself: what it says can be parsed, and each zone that
// lists addresses works as it stands.
func TestKnownZones(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range knownZones() {
		if seen[k.zone] || dead(k.zone) != "" {
			t.Errorf("%s: twice, or dead", k.zone)
		}
		seen[k.zone] = true
		if k.match != "" {
			if _, err := ParseMatch(k.match); err != nil {
				t.Errorf("%s: %v", k.zone, err)
			}
		}
		for _, c := range k.codes {
			if _, err := ParseMatch(c.match); err != nil {
				t.Errorf("%s: %s: %v", k.zone, c.text, err)
			}
		}
		if k.kind != domains && k.families == 0 {
			t.Errorf("%s: no family", k.zone)
		}
		text := k.zone
		switch k.kind {
		case domains:
			text += "+from"
		case scores:
			text += "=127.0.4.[0..20]"
		}
		if l, err := Parse(text); err != nil || l[0].Weight != k.weight || l[0].Weight == 0 {
			t.Errorf("%s: %v, %v", k.zone, l, err)
		}
	}
	for zone, want := range map[string]bool{
		"dnsbl.sorbs.net": true, "spam.dnsbl.sorbs.net": true, "sorbs.net": true, "notsorbs.net": false, "relays.ordb.org": true,
		"x.relays.ordb.org": false, "cbl.abuseat.org": true, "zen.spamhaus.org": false,
	} {
		if got := dead(zone) != ""; got != want {
			t.Errorf("%s: dead %v", zone, got)
		}
	}
}

func TestMeaning(t *testing.T) {
	lists := parse(t, "zen.spamhaus.org list.dnswl.org multi.surbl.org+from bl.example")
	for i, want := range []struct{ code, text string }{
		{"127.0.0.10", "PBL, end user line, by the provider"}, {"127.0.5.2", "medium trust"}, {"127.0.0.80", "malware, abuse"}, {"127.0.0.2", ""},
	} {
		if got := lists[i].meaning(netip.MustParseAddr(want.code)); got != want.text {
			t.Errorf("%s %s: %q, want %q", lists[i], want.code, got, want.text)
		}
	}
}

func TestKeys(t *testing.T) {
	const key = "abcdefghij0123456789klmnop"
	for _, s := range []string{
		key + ".zen.dq.spamhaus.net", "zen@" + key + ".zen.dq.spamhaus.net=127.0.0.2*3", "a.example," + key + ".bl.example", key,
		"zen." + key + ".dq.spamhaus.net", key + "@zen.example", "zen.example*" + key, strings.ToUpper(key) + ".dbl.dq.spamhaus.net+from",
	} {
		if out := Redactor(Keys(s))("error: " + s + " of " + strings.ToLower(s)); strings.Contains(strings.ToLower(out), key) {
			t.Errorf("%s: %s", s, out)
		}
	}
	for _, s := range []string{"zen.spamhaus.org", "zen.dq.spamhaus.net", "hostkarma.junkemailfilter.com", "/etc/mail/averyveryverylongname.txt", "bl.averyveryverylongdomainname.example", ""} {
		if k := Keys(s); len(k) != 0 {
			t.Errorf("%s: %q", s, k)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"listed, see https://x.example/":    "listed, see https://x.example/",
		"a\r\n550 b\x00|c\x1b[31m \xff\xfe": "a 550 b |c [31m",
		"  a  b  ":                          "a b",
		strings.Repeat("x", 60000):          strings.Repeat("x", 200),
		strings.Repeat("x", 199) + " y":     strings.Repeat("x", 199) + "y",
		strings.Repeat("x ", 60000):         strings.Repeat("x ", 99) + "xx",
	} {
		if got := Clean(in); len(got) > 200 || got != want && !strings.HasPrefix(in, "x ") {
			t.Errorf("%.40q: %q", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"zen.spamhaus.org=127.0.0.[2..11]*3 list.dnswl.org=127.0.[0..255].[1..3]*-2", "x@bl.example.net=bit:16+block", "a.example,\nb.example*2",
		"rhs.example+helo+from", "list.dnswl.org*-2 zen.spamhaus.org", "abcdefghij0123456789klmnop.zen.dq.spamhaus.net", "score.senderscore.com=127.0.4.0/27", "@", "=*+", "x=[", "00\x9b00000..dq.spamhaus.net", "\xff.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lists, _ := Parse(s)
		for _, l := range lists {
			if keyOf(l.zone) != "" {
				continue
			}
			again, err := Parse(l.String())
			if err != nil || len(again) != 1 || again[0].String() != l.String() {
				t.Fatalf("%q is printed as %s, which is %v, %v", s, l, again, err)
			}
			if n := name(l.zone, netip.IPv6Unspecified()); len(n) > 253 {
				t.Fatalf("%q: name of %d bytes", s, len(n))
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"\x7f\x00\x00\x02", "\x7f\xff\xff\xfe\xcb\x00\x71\x01", "\x7f\x00\x01\xff", "\x7f\x00\x00\x81", ""} {
		f.Add("multi.surbl.org", []byte(s))
		f.Add("bl.example", []byte(s))
		f.Add("dbl.spamhaus.org", []byte(s))
	}
	f.Fuzz(func(t *testing.T, zone string, b []byte) {
		var answer []netip.Addr
		for ; len(b) >= 4; b = b[4:] {
			answer = append(answer, netip.AddrFrom4([4]byte(b)))
		}
		if len(b) > 0 {
			answer = append(answer, netip.IPv6Unspecified())
		}
		codes, flt := lookupZone(zone).decode(answer, IP)
		if flt != nil && (len(codes) > 0 || flt.why == "" || flt.remedy == "") {
			t.Fatalf("%v: %v, %+v", answer, codes, flt)
		}
		for _, c := range codes {
			b := c.As4()
			if b[0] != 127 || b[1] == 255 && b[2] == 255 || b == [4]byte{127, 0, 0, 255} {
				t.Fatalf("%v is taken for a listing", c)
			}
		}
	})
}
