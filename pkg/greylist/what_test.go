package greylist

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// fill makes records of all kinds that an operator looks for.
func fill(t *testing.T, g *Greylist) {
	t.Helper()
	for i, m := range []struct {
		addr, name, from, spf string
		to                    []string
	}{
		{"192.0.2.7", "mx.a.example", "ann@a.example", "", []string{"bob@example.org"}},
		{"192.0.2.8", "", "Ben+x@a.example", "a.example", []string{"bob@example.org", "eve@example.org"}},
		{"192.0.3.7", "mx.b.example", "list-123-x@b.example", "", []string{"eve@example.org"}},
		{"2001:db8::7", "", "ann@sub.a.example", "", []string{"bob@sub.example.org"}},
		{"203.0.113.9", "", "", "", []string{"bob@example.org"}},
	} {
		a := Attempt{
			Time: epoch.Add(time.Duration(i) * time.Second), Sender: m.from, Rcpts: m.to,
			Client: Client{Addr: netip.MustParseAddr(m.addr), Name: m.name, Class: Generic},
		}
		if m.spf != "" {
			a.SPF = SPFResult{Status: SPFPass, Domain: m.spf, Frees: true}
		}
		if _, err := g.Decide(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Allow(t.Context(), epoch, "192.0.2.7"); err != nil {
		t.Fatal(err)
	}
	if err := g.Expect(t.Context(), epoch, "shop.a.example", "bob@example.org", time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Learn(t.Context(), Letter{Time: epoch, From: "bob@example.org", To: []string{"tim@a.example"}}); err != nil {
		t.Fatal(err)
	}
}

func TestWhat(t *testing.T) {
	for _, tt := range []struct {
		words string
		want  string // kind, origin or client, sender and recipient of what is found
	}{
		{"sender=ann@a.example", "attempt net:192.0.2.0/24 ann@a.example bob@example.org|pair - ann@a.example bob@example.org"},
		{"from=<Ann@A.example>", "attempt net:192.0.2.0/24 ann@a.example bob@example.org|pair - ann@a.example bob@example.org"},
		{"sender=ben+other@a.example", "attempt net:192.0.2.0/24 ben@a.example bob@example.org|attempt net:192.0.2.0/24 ben@a.example eve@example.org"},
		{"sender=list-456-x@b.example", "attempt net:192.0.3.0/24 list-#-x@b.example eve@example.org|pair - list-#-x@b.example eve@example.org"},
		{"sender=*@a.example rcpt=eve@example.org", "attempt net:192.0.2.0/24 ben@a.example eve@example.org|attempt spf:a.example - eve@example.org"},
		{"sender=*sub.a*", "attempt net:2001:db8::/64 ann@sub.a.example bob@sub.example.org"},
		{"sender=<>", "attempt net:203.0.113.0/24 <> bob@example.org"},
		{"sender=*@shop.a.example", "expect shop.a.example - bob@example.org"},
		{"sender=tim@*", "learned - tim@a.example bob@example.org"},
		{"rcpt=bob@sub*", "attempt net:2001:db8::/64 ann@sub.a.example bob@sub.example.org"},
		{"client=192.0.2.7", "attempt net:192.0.2.0/24 ann@a.example bob@example.org|client 192.0.2.7 - -|origin 192.0.2.7 - -"},
		{"addr=192.0.3.7 sender=*b.example", "attempt net:192.0.3.0/24 list-#-x@b.example eve@example.org"},
		{"client=*.b.example", "attempt net:192.0.3.0/24 list-#-x@b.example eve@example.org"},
		{"name=mx.b.example", "attempt net:192.0.3.0/24 list-#-x@b.example eve@example.org"},
		{"client=192.0.3.0/24", "attempt net:192.0.3.0/24 list-#-x@b.example eve@example.org|client 192.0.3.7 - -"},
		{"client=2001:db8::/32 sender=ann*", "attempt net:2001:db8::/64 ann@sub.a.example bob@sub.example.org"},
		{"client=spf:a.example rcpt=eve*", "attempt spf:a.example - eve@example.org"},
		{"client=192.0.9.9", ""},
		{"sender=*@example", ""},
		{"rcpt=bob", ""},
	} {
		g := New(Options{Clear: true})
		fill(t, g)
		w, err := ParseWhat(strings.Fields(tt.words))
		if err != nil {
			t.Errorf("%s: %v", tt.words, err)
			continue
		}
		var found []string
		for e, err := range g.Find(t.Context(), w) {
			if err != nil {
				t.Fatal(err)
			}
			r := e.Record
			or := func(s string) string {
				if s == "" {
					return "-"
				}
				return s
			}
			found = append(found, strings.Join([]string{e.Key.Kind().String(), or(r.Origin), or(r.Sender), or(r.Rcpt)}, " "))
		}
		slices.Sort(found)
		if got := strings.Join(found, "|"); got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.words, got, tt.want)
		}
		if n, err := g.DeleteWhat(t.Context(), w); n != len(found) || err != nil {
			t.Errorf("%s: %d deleted, %v", tt.words, n, err)
		}
		for range g.Find(t.Context(), w) {
			t.Errorf("%s: not deleted", tt.words)
		}
	}
	for _, bad := range []string{"", "x", "sender", "sender=", "to=a@b.example", "rcpt=a*b", "client=**x"} {
		if w, err := ParseWhat([]string{bad}); err == nil {
			t.Errorf("%q: %+v", bad, w)
		}
	}
}

// What a store is asked for, to look through less, leaves out nothing that is meant.
func TestWhatQuery(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	g := New(Options{Clear: true})
	fill(t, g)
	var entries []Entry
	for e := range g.All(t.Context()) {
		entries = append(entries, e)
	}
	texts := []string{"192.0.2.7", "192.0.2.0/24", "192.0.0.0/12", "2001:db8::7", "ann@a.example", "a.example", "@a.example", "bob@example.org", "<>", "mx.a.example", "spf:a.example", "net:192.0.2.0/24", "list-9-x@b.example", "shop.a.example"}
	matched := 0
	for range 5000 {
		text := texts[r.IntN(len(texts))]
		if r.IntN(2) == 0 {
			i := r.IntN(len(text))
			text = text[i : i+r.IntN(len(text)-i)+1]
		}
		if text != "<>" {
			text = []string{"", "*"}[r.IntN(2)] + text + []string{"", "*"}[r.IntN(2)]
		}
		word := []string{"client=", "sender=", "rcpt="}[r.IntN(3)] + text
		w, err := ParseWhat([]string{word})
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		q := w.query()
		for _, e := range entries {
			if w.Matches(e) {
				matched++
				if !q.Matches(e) {
					t.Fatalf("%s: %+v is not among those of %+v", word, e, q)
				}
			}
		}
	}
	if matched < 1000 {
		t.Errorf("only %d matched", matched)
	}
}

// Keys as the log prints them.
func TestLoggedKeys(t *testing.T) {
	g := New(Options{Clear: true, Providers: []string{"google"}})
	key := func(text string) string {
		e, err := g.Keys(text)
		if err != nil {
			return "error"
		}
		r := e[0].Record
		return fmt.Sprintf("%s %s %s %s", e[0].Key.Kind(), r.Origin, r.Sender, r.Rcpt)
	}
	for want, texts := range map[string][]string{
		"pair  ann@a.example bob@b.example": {
			"ann@a.example,bob@b.example", "<ann@a.example>,<bob@b.example>", " ann@a.example , bob@b.example ",
			"from=<ann@a.example> rcpt=<bob@b.example>", "from=<ann@a.example>,rcpt=<bob@b.example>", "<Ann+x@A.example> <bob@B.example>", "ann@a.example,<bob@b.example>",
			`"ann@a.example,bob@b.example"`, "prvs=1234567890=ann@a.example,bob@b.example",
		},
		`pair  "a,b"@a.example bob@b.example`: {`"a,b"@a.example,bob@b.example`},
		"pair  <> bob@b.example":              {"<>,bob@b.example", ",bob@b.example", "from=<> rcpt=<bob@b.example>"},
		"origin 192.0.2.1  ":                  {"192.0.2.1", "addr=192.0.2.1", "[192.0.2.1]", "192.0.2.1/32", "::ffff:192.0.2.1", " 192.0.2.1 ", "origin=192.0.2.1"},
		"origin 2001:db8::/64  ":              {"2001:db8::1", "[2001:db8::1]", "2001:db8::/64", "2001:db8::7/128", "addr=2001:db8::9", "origin=2001:db8::/64"},
		"origin spf:a.example  ":              {"spf:a.example", "SPF:A.Example.", "origin=spf:a.example"},
		"origin spf:xn--bcher-kva.example  ":  {"spf:b\u00fccher.example"},
		"origin provider:google  ":            {"provider:google", "origin=provider:google"},
		"origin net:192.0.2.0/24  ":           {"net:192.0.2.0/24", "origin=net:192.0.2.0/24", "192.0.2.0/24", "192.0.2"},
		"origin name:a.example  ":             {"name:a.example", "origin=name:a.example"},
		"error": {
			"", " ", ",", "a", "a.example", "ann@a.example", "<ann@a.example>", "from=<ann@a.example>", "spf:foo bar", "spf:", "provider:gmail", "provider:", "net:x", "192.0.2.256",
			"ann@a.example,bob", "ann,bob@b.example", "a b", "name=-", "addr=local", "0.0.0.0/0x", "-", "*",
		},
	} {
		for _, text := range texts {
			if got := key(text); got != want {
				t.Errorf("%q: %q, want %q", text, got, want)
			}
		}
	}
	// What cannot pass is refused, what does not exist too.
	for _, text := range []string{"net:192.0.2.0/24", "name:a.example", "<>,bob@b.example", strings.Repeat("0", 31) + "2", strings.Repeat("0", 30) + "06"} {
		if _, err := g.Allow(t.Context(), epoch, text); err == nil {
			t.Errorf("%s: allowed", text)
		}
	}
	if err := g.Ours(epoch, "x@ours.example"); err != nil {
		t.Fatal(err)
	}
	if err := g.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Allow(t.Context(), epoch, "x@ours.example,bob@ours.example"); err == nil {
		t.Error("a sender of ours is allowed, without effect")
	}
}
