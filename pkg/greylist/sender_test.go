package greylist

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

func TestNormalizeSender(t *testing.T) {
	text, err := os.ReadFile("testdata/sender-normalization.tsv")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") || len(f) != 3 {
			continue
		}
		n++
		if got := NormalizeSender(f[0], f[1]); got != f[2] {
			t.Errorf("%s to %s: got %s, want %s", f[0], f[1], got, f[2])
		}
	}
	if n < 29 {
		t.Errorf("only %d lines", n)
	}
	for _, tt := range [][2]string{
		{"", "<>"},
		{"<>", "<>"},
		{"a|b@x.example", "a|b@x.example"},
		{"1234@qq.com", "1234@qq.com"},
		{"+tag@x.example", "+tag@x.example"},
		{"me+prvs=1234abcdef@x.example", "me@x.example"},
		{"prvs=1234abcdef@x.example", "prvs=#@x.example"},
		{"prvs=abcdef12=1234abcdef@x.example", "abcdef12@x.example"},
		{"SRS0=ab1=TT=orig.example=list-123@fwd.example", "srs:list-#%orig.example@fwd.example"},
		{"srs0+ab1=TT=orig.example=alice@fwd.example", "srs:alice%orig.example@fwd.example"},
		{"srs0-x@fwd.example", "srs0-x@fwd.example"},
		{"srs1=a=b=@fwd.example", "srs1=a=b=@fwd.example"},
		{"x-bob.smith=3drcpt.example@y.example", "x-RCPT@y.example"},
		{"x-bob.smith==rcpt.example-y@y.example", "x-RCPT-y@y.example"},
		{"xbob.smith=rcpt.example@y.example", "xbob.smith=rcpt.example@y.example"},
		{"x-bob.smith=rcpt.examples@y.example", "x-bob.smith=rcpt.examples@y.example"},
		{"1-2-3-x-4-5@y.example", "#-x-#@y.example"},
		{strings.Repeat("x", 100) + "@y.example", strings.Repeat("x", 64) + "@y.example"},
		{"a@b@y.example", "a@b@y.example"},
		{"dead-beef-face@y.example", "dead-beef-face@y.example"},
		{"0b2d4f5a-abcd-eade-beef-84b51c410b859b@y.example", "#-abcd-eade-beef-#@y.example"},
		{"bounce-deadbeef@y.example", "bounce-#@y.example"},
		{"bounce-decade@y.example", "bounce-decade@y.example"},
		{"a@BÜCHER.example", "a@xn--bcher-kva.example"},
		{"a@xn--Bcher-kva.example.", "a@xn--bcher-kva.example"},
		{"a@bu\u0308cher.example", "a@xn--bcher-kva.example"},
		{"a@bücher。example", "a@xn--bcher-kva.example"},
	} {
		if got := NormalizeSender(tt[0], "bob.smith@rcpt.example"); got != tt[1] {
			t.Errorf("%s: got %s, want %s", tt[0], got, tt[1])
		}
	}
	if got := NormalizeRcpt("Bob+X@Rcpt.Example."); got != "bob+x@rcpt.example" {
		t.Error(got)
	}
}

// Whatever the numbers of a message are, its sender is the same.
func TestSerials(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	hex := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "0123456789abcdef"[r.IntN(16)]
		}
		return string(b)
	}
	for name, sender := range map[string]func() string{
		"uuid": func() string {
			return "bounce-" + hex(8) + "-" + hex(4) + "-" + hex(4) + "-" + hex(4) + "-" + hex(12) + "@s.example"
		},
		"uuid, letters": func() string { return "B_" + hex(8) + "-cafe-dead-beef-" + hex(12) + "_x@s.example" },
		"uuid alone": func() string {
			return strings.ToUpper(hex(8)+"_"+hex(4)+"_"+hex(4)+"_"+hex(4)+"_"+hex(12)) + "@s.example"
		},
		"uuid, then a number": func() string {
			return hex(8) + "-" + hex(4) + "-" + hex(4) + "-" + hex(4) + "-" + hex(12) + "-" + fmt.Sprint(r.IntN(1000)) + "@s.example"
		},
		"hex":      func() string { return "bounce-" + hex(8) + "@s.example" },
		"long hex": func() string { return "b." + hex(32) + ".x@s.example" },
		"number":   func() string { return fmt.Sprintf("b-%d-x@s.example", r.IntN(1e9)) },
	} {
		want := NormalizeSender(sender(), "bob@rcpt.example")
		for range 20_000 {
			s := sender()
			if got := NormalizeSender(s, "bob@rcpt.example"); got != want {
				t.Errorf("%s: %s gives %s, others %s", name, s, got, want)
				break
			}
		}
	}
}

func FuzzNormalizeSender(f *testing.F) {
	f.Add("prvs=2987A7B7C7=me@example.com", "bob@rcpt.example")
	f.Add("SRS1=HHH=example.com==HHH=TT=example.org=alice@example.net", "bob+x@rcpt.example")
	f.Add("bounces-jobs-1234-bob@rcpt.example@example.com", "bob@rcpt.example")
	f.Add("user+prvs=1234abcdef@x", "@")
	f.Add("btv1==489040e8aa2==mailbox@domain.example", "")
	f.Fuzz(func(t *testing.T, sender, rcpt string) {
		got := NormalizeSender(sender, rcpt)
		if got != NullSender && (len(got) > 64+1+255 || !strings.Contains(got, "@")) {
			t.Errorf("%q", got)
		}
		if up := NormalizeSender(strings.ToUpper(sender), rcpt); isASCII(sender) && up != got {
			t.Errorf("%q, in capitals %q", got, up)
		}
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}
