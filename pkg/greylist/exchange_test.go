package greylist

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Tables of pf, as pfctl and people write them.
func TestImportTable(t *testing.T) {
	const table = `
   192.0.2.1
   198.51.100.4/30
   !198.51.100.6
# people
203.0.113.7 # a customer
10.0.0.0/8
2001:db8:1::5
2001:db8:2::/62
2001:db8::/32
`
	g := New(Options{Clear: true})
	found, errs := g.Import(t.Context(), epoch, strings.NewReader(table), "t")
	if errs != nil || found.Stored != 10 || !slices.Equal(found.Clients, []string{"10.0.0.0/8", "2001:db8::/32"}) {
		t.Fatalf("%+v, %v", found, errs)
	}
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "198.51.100.3": false, "198.51.100.4": true, "198.51.100.5": true, "198.51.100.6": false, "198.51.100.7": true,
		"198.51.100.8": false, "203.0.113.7": true, "2001:db8:1::9": true, "2001:db8:1:1::9": false,
		"2001:db8:2::1": true, "2001:db8:2:3::1": true, "2001:db8:2:4::1": false, "10.1.2.3": false,
	} {
		d, err := g.Decide(t.Context(), Attempt{Time: epoch, Client: Client{Addr: netip.MustParseAddr(addr), Class: NoName}, Sender: "x" + addr + "@y.example", Rcpts: []string{"b@example.org"}})
		if err != nil || d.Accept != want {
			t.Errorf("%s: %v, %v", addr, d, err)
		}
	}
	found, errs = g.Import(t.Context(), epoch, strings.NewReader("198.51.100.0/24\n2001:db8:3::/56\n"), "t")
	if errs != nil || found.Stored < 253+256-1 || found.Clients != nil {
		t.Errorf("%+v, %v", found, errs)
	}
}

// Whatever is no record, one line says so.
func TestImportForeign(t *testing.T) {
	zeros := strings.Repeat("\x00", 4096)
	log := strings.Repeat("Dec  1 12:00:00 mx smtpd[1]: 2b652056ec44d519 smtp connected\n", 100_000)
	for _, tt := range []struct{ name, text, want string }{
		{"log", log, "f: nothing in it is a record, as line 1: "},
		{"json", strings.Repeat("{\"level\":\"info\"}\n", 1000), "f: nothing in it is a record, as line 1: "},
		{"pipes", strings.Repeat("a|b|c\n", 1000), "f: nothing in it is a record, as line 1: "},
		{"words", "\n# x\nhello\n", "f: nothing in it is a record, as line 3: \"hello\" is no record; import reads "},
		{"mixed", "192.0.2.1\n" + log, "f:2: \"Dec  1 12:00:00 mx smtpd[1]: 2b652056"},
		{"one", "192.0.2.1\nhello\n192.0.2.2\n", "f:2: \"hello\" is no record; import reads "},
		{"btree", zeros[:12] + "\x62\x31\x05\x00" + zeros, "f: is a Berkeley database; give what \"db_dump -p FILE\" prints"},
		{"hash", zeros[:12] + "\x00\x06\x15\x61" + zeros, "f: is a Berkeley database; give what \"db_dump -p FILE\" prints"},
		{"spamd", "\x00\x05\x31\x62" + zeros, "f: is a Berkeley database; give what spamdb(8) prints"},
		{"sqlite", "SQLite format 3\x00" + zeros, "f: is a database of SQLite; "},
		{"gzip", "\x1f\x8b\x08" + zeros, "f: is compressed; "},
		{"binary", "\x7fELF" + zeros, "f: is no text; import reads "},
	} {
		g := New(Options{})
		_, errs := g.Import(t.Context(), epoch, strings.NewReader(tt.text), "f")
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tt.want) || strings.Contains(errs[0].Error(), "\n") || len(errs[0].Error()) > 300 {
			t.Errorf("%s: %d errors: %.2000v", tt.name, len(errs), errs)
		}
	}
	// Bad lines of a program that is known are told, some of them.
	_, errs := New(Options{}).Import(t.Context(), epoch, strings.NewReader(strings.Repeat("WHITE|x|||1|2|3|4|5\n", 1000)), "f")
	if len(errs) != maxImportErrors+1 || errs[maxImportErrors].Error() != "f: 990 more bad lines" {
		t.Errorf("%v", errs)
	}
}

// A dump made without -p is as good as one with it.
func TestImportHexDump(t *testing.T) {
	enc := func(s string) string { return " " + hex.EncodeToString([]byte(s)) + "\n" }
	in := "VERSION=3\nformat=bytevalue\ntype=btree\nHEADER=END\n" +
		enc("192.0.8.1") + enc(fmt.Sprintf("6,%d", epoch.Unix()-30)) +
		enc("192.0.6.0/alice@s.example/bob@rcpt.example") + enc(fmt.Sprintf("%d,%d", epoch.Unix()-500, epoch.Unix()-100)) + "DATA=END\n"
	found, errs := New(Options{}).Import(t.Context(), epoch, strings.NewReader(in), "f")
	if found.Stored != 2 || errs != nil {
		t.Errorf("%+v, %v", found, errs)
	}
}

// Times of an export are whole seconds, which every program reads, and what is
// imported again changes nothing.
func TestExportTimes(t *testing.T) {
	g := New(Options{Clear: true})
	fill(t, g)
	if _, err := g.Decide(t.Context(), Attempt{Time: epoch.Add(1234567 * time.Microsecond), Client: Client{Addr: netip.MustParseAddr("192.0.2.77"), Class: NoName}, Sender: "a@b.example", Rcpts: []string{"b@example.org"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.SetNetworks(t.Context(), epoch, "google", []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, true); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := g.Export(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(text.String()) {
		if strings.Contains(l, ".") && strings.Contains(l, ".567") || !strings.Contains(l, "Z\"") {
			t.Errorf("%s", l)
		}
	}
	if found, errs := g.Import(t.Context(), epoch.Add(time.Hour), bytes.NewReader(text.Bytes()), "f"); found.Stored != 0 || errs != nil {
		t.Errorf("%+v, %v", found, errs)
	}
	g2 := New(Options{Clear: true})
	if _, errs := g2.Import(t.Context(), epoch.Add(time.Minute), bytes.NewReader(text.Bytes()), "f"); errs != nil {
		t.Error(errs)
	}
	n, err := g2.Networks(t.Context(), []string{"google", "yahoo"})
	if err != nil || len(n) != 2 || fmt.Sprint(n[0].Nets) != "[192.0.2.0/24 2001:db8::/32]" || n[1].Nets != nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// Networks are kept while they cannot be found out anew, for a week at least.
func TestSetNetworks(t *testing.T) {
	g := New(Options{})
	nets := func(s ...string) (all []netip.Prefix) {
		for _, n := range s {
			all = append(all, netip.MustParsePrefix(n))
		}
		return all
	}
	for _, tt := range []struct {
		day      int
		found    []netip.Prefix
		complete bool
		want     string
		failures int
	}{
		{0, nil, false, "[]", 1},
		{0, nets("192.0.2.0/24"), false, "[192.0.2.0/24]", 2}, // a part is better than nothing
		{0, nets("192.0.2.0/24", "2001:db8::/32"), true, "[192.0.2.0/24 2001:db8::/32]", 0},
		{1, nil, false, "[192.0.2.0/24 2001:db8::/32]", 1},
		{2, nil, true, "[192.0.2.0/24 2001:db8::/32]", 2},
		{3, nets("198.51.100.0/24"), false, "[192.0.2.0/24 2001:db8::/32]", 3},
		{4, nets("198.51.100.0/24"), true, "[198.51.100.0/24]", 0},
		{5, nets("203.0.113.0/24"), false, "[198.51.100.0/24]", 1},
		{12, nets("203.0.113.0/24"), false, "[203.0.113.0/24]", 2},
		{400, nil, false, "[203.0.113.0/24]", 3},
	} {
		n, err := g.SetNetworks(t.Context(), epoch.AddDate(0, 0, tt.day), "google", tt.found, tt.complete)
		if err != nil || fmt.Sprint(n.Nets) != tt.want || n.Failures != tt.failures {
			t.Errorf("day %d: %v, %d failures, %v; want %s, %d", tt.day, n.Nets, n.Failures, err, tt.want, tt.failures)
		}
	}
	var many []netip.Prefix
	for i := range 5000 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(i >> 8), byte(i), 0}), 24))
	}
	n, err := g.SetNetworks(t.Context(), epoch, "yahoo", many, true)
	if err != nil || len(n.Nets) != maxNetworks/5 || !slices.Equal(n.Nets, many[:len(n.Nets)]) {
		t.Errorf("%d networks, %v", len(n.Nets), err)
	}
}

// Counts of the last hours and days, and no more than that.
func TestStatsSince(t *testing.T) {
	g := New(Options{Clear: true})
	count := func(at time.Duration, n int) {
		for i := range n {
			a := Attempt{Time: epoch.Add(at), Client: Client{Addr: netip.MustParseAddr("192.0.2.1"), Class: NoName}, Sender: "a@x.example", Rcpts: []string{fmt.Sprintf("b%d-%d@example.org", i, at)}}
			if _, err := g.Decide(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const day = 24 * time.Hour
	count(-900*day, 1)
	count(-20*day, 2)
	count(-2*day, 4)
	count(-90*time.Minute, 8)
	count(0, 16)
	for since, want := range map[time.Duration]int64{0: 31, time.Second: 16, time.Hour: 16, 3 * time.Hour: 24, 2 * day: 28, 3 * day: 28, 10 * day: 28, 30 * day: 30, 365 * day: 30} {
		s, err := g.Stats(t.Context(), epoch.Add(time.Second), StatsQuery{Since: since})
		if err != nil || s.Reasons[Unseen] != want || s.Marks[NoName] != want || s.Since.IsZero() != (since == 0) || s.Since.After(epoch.Add(time.Second-since)) {
			t.Errorf("since %s: %d, want %d; %s, %v", since, s.Reasons[Unseen], want, s.Since, err)
		}
	}
	counts, err := g.store.Count(t.Context(), nil)
	for name, n := range counts {
		if strings.HasPrefix(name, fmt.Sprint("h", epoch.Add(-20*day).Unix()/3600)) || strings.HasPrefix(name, fmt.Sprint("d", epoch.Add(-900*day).Unix()/86400)) {
			t.Errorf("%s is still %d", name, n)
		}
	}
	if err != nil || counts["reason new"] != 31 {
		t.Errorf("%v, %v", counts, err)
	}
}

// Who has most attempts.
func TestStatsBy(t *testing.T) {
	g := New(Options{Clear: true})
	fill(t, g)
	for by, want := range map[string]string{
		"client": "192.0.2.8 2 2|192.0.2.7 1 1|192.0.3.7 1 1|2001:db8::7 1 1|203.0.113.9 1 1",
		"sender": "ben@a.example 2 2|<> 1 1|ann@a.example 1 1|ann@sub.a.example 1 1|list-#-x@b.example 1 1",
		"rcpt":   "bob@example.org 3 3|eve@example.org 2 2|bob@sub.example.org 1 1",
	} {
		s, err := g.Stats(t.Context(), epoch.Add(time.Hour), StatsQuery{By: by})
		var got []string
		for _, one := range s.By {
			got = append(got, fmt.Sprint(one.Name, " ", one.Waits, " ", one.Never))
		}
		if err != nil || strings.Join(got, "|") != want {
			t.Errorf("%s: %s, want %s", by, strings.Join(got, "|"), want)
		}
	}
	w, _ := ParseWhat([]string{"sender=*@a.example"})
	s, err := g.Stats(t.Context(), epoch.Add(time.Hour), StatsQuery{By: "client", What: w})
	if err != nil || len(s.By) != 2 {
		t.Errorf("%+v, %v", s.By, err)
	}
}
