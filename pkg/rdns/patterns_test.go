package rdns

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"opensmtpd-filters/pkg/listfile"
)

func TestPatterns(t *testing.T) {
	tests := []struct {
		expr, name string
		want       bool
	}{
		{`.*\.dyn\..*`, "p1.dyn.example.net", true},
		{`.*\.dyn\..*`, "dyn.example.net", false},
		{`.*\.dsl\..*`, "P1.DSL.Example.NET.", true},
		{`\.DYN\.`, "p1.dyn.example.net", true},
		{`dyn`, "mail.dynamics.example", true},
		{`^[0-9]+\.dyn\.example\.net$`, "17.dyn.example.net", true},
		{`^[0-9]+\.dyn\.example\.net$`, "17.dyn.example.net.org", false},
		{`\.example\.net$`, "a.b.example.net", true},
		{`\.example\.net$`, "example.net", false},
		{`example\.net$`, "myexample.net", true},
		{`(^|\.)example\.net$`, "example.net", true},
		{`(^|\.)example\.net$`, "myexample.net", false},
		{`^[[:alpha:]]+-[[:digit:]]{1,3}\.pool\.`, "host-44.pool.example", true},
		{`^([12]?[0-9]{1,2}-){3}[12]?[0-9]{1,2}\.(dsl|cable)\.example\.com$`, "1-2-3-4.cable.example.com", true},
		{`\.(net|example\.org)$`, "a.example.org", true},
		{`a\.net$|b\.org$`, "b.org", true},
		{`(?-i:NET)$`, "a.net", false},
		{`*.dyn.example.net`, "p1.dyn.example.net", true},
		{`*.Dyn.example.net.`, "a.b.dyn.example.net", true},
		{`*.dyn.example.net`, "dyn.example.net", false},
		{`*.dyn.example.net`, "xdyn.example.net", false},
		{`\.example$ # with a comment`, "a.example", true},
		{`a#b`, "xa#bx", true},
	}
	for _, tt := range tests {
		p, errs := ParsePatterns(strings.NewReader(tt.expr), "f")
		if len(errs) > 0 {
			t.Errorf("%s: %v", tt.expr, errs)
		}
		rule, ok := p.Match(tt.name)
		if ok != tt.want {
			t.Errorf("%s matches %s: %t", tt.expr, tt.name, ok)
		}
		if ok && rule.String() != "f:1" {
			t.Errorf("%s: rule %v", tt.expr, rule)
		}
	}
}

func TestParsePatterns(t *testing.T) {
	const file = "# ours\r\n\n  \\.dyn\\.  # homes\n(\n*.\n*.dyn.*\n*..net\n/\\.dsl\\./ REJECT\n\\.dsl\\.\n"
	p, errs := ParsePatterns(strings.NewReader(file+strings.Repeat("a", 3*listfile.MaxLine)+"\ncable"), "list")
	if p.Len() != 3 {
		t.Errorf("%d rules, want 3", p.Len())
	}
	want := []string{"list:4: ", "list:5: ", "list:6: ", "list:7: ", "list:8: ", "list:10: "}
	if len(errs) != len(want) {
		t.Fatalf("%d errors, want %d: %v", len(errs), len(want), errs)
	}
	for i, err := range errs {
		if !strings.HasPrefix(err.Error(), want[i]) {
			t.Errorf("error %q, want %s", err, want[i])
		}
	}
	for name, want := range map[string]Rule{
		"a.dyn.example": {listfile.Place{File: "list", Line: 3}, `\.dyn\.`},
		"a.dsl.example": {listfile.Place{File: "list", Line: 9}, `\.dsl\.`},
		"cable.example": {listfile.Place{File: "list", Line: 11}, `cable`},
	} {
		if rule, ok := p.Match(name); !ok || rule != want {
			t.Errorf("%s: rule %v %v, want %v", name, rule, rule.Expr, want)
		}
	}

	broken := errors.New("broken disk")
	p, errs = ParsePatterns(io.MultiReader(strings.NewReader("dyn\n"), iotest.ErrReader(broken)), "list")
	if p.Len() != 1 || len(errs) != 1 || !errors.Is(errs[0], broken) {
		t.Errorf("broken reader: %d rules, errors %v", p.Len(), errs)
	}
}

func TestMerge(t *testing.T) {
	a, _ := ParsePatterns(strings.NewReader("\\.dyn\\.\n\\.example$"), "a")
	b, _ := ParsePatterns(strings.NewReader("*.dyn.example\ncable"), "b")
	p := Merge(a, nil, b)
	for name, want := range map[string]string{
		"p.dyn.example": "a:1", "p.example": "a:2", "cable.example.net": "b:2", "mail.example.net": "",
	} {
		rule, ok := p.Match(name)
		if ok != (want != "") || ok && rule.String() != want {
			t.Errorf("%s: %v, want %s", name, rule, want)
		}
	}
	if _, ok := Merge().Match("a.example"); ok {
		t.Error("no rules match")
	}
	if _, ok := (*Patterns)(nil).Match("a.example"); ok {
		t.Error("nil matches")
	}
}

// naive gives the first of the expressions that matches.
func naive(exprs []string, name string) int {
	name = normal(name)
	for i, s := range exprs {
		if domain, ok := strings.CutPrefix(s, "*."); ok {
			if d := "." + normal(domain); strings.HasSuffix(name, d) && len(name) > len(d) {
				return i + 1
			}
			continue
		}
		if regexp.MustCompile("(?i)" + s).MatchString(name) {
			return i + 1
		}
	}
	return 0
}

// Filing rules under endings must not change what matches.
func FuzzPatterns(f *testing.F) {
	f.Add(`^[0-9]+\.dyn\.example\.net$`, `\.dyn\.`, "17.dyn.example.net")
	f.Add(`(^|\.)example\.net$`, `*.example.net`, "a.EXAMPLE.net.")
	f.Add(`(a|b\.net$)`, `(?i)K$`, "\u212a")
	f.Add(`(?-i:NET$)`, `(?m)net$`, "a.net\nb.org")
	f.Add(`(\.net$)+`, `x*\.net\z`, "a.net")
	f.Add(`(?:(?:a)(b$))$`, `\.s{2}$|s$$`, "a.\u017fs")
	f.Fuzz(func(t *testing.T, a, b, name string) {
		p, _ := ParsePatterns(strings.NewReader(a+"\n"+b), "f")
		var exprs []string
		for _, r := range p.rules {
			exprs = append(exprs, r.Expr)
		}
		got := 0
		if rule, ok := p.Match(name); ok {
			for i, r := range p.rules {
				if r.Rule == rule {
					got = i + 1
				}
			}
		}
		if want := naive(exprs, name); got != want {
			t.Errorf("%q in %q: rule %d, want %d", name, exprs, got, want)
		}
	})
}

// Rules and names made of the same few parts, so that many match.
func TestPatternsLikeNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(parts []string, most int) string {
		s := ""
		for range 1 + r.IntN(most) {
			s += parts[r.IntN(len(parts))]
		}
		return s
	}
	exprs := []string{`a`, `\.`, `net`, `NET`, `\.net$`, `$`, `^`, `(a|b)`, `(\.net)`, `(net$)`, `(?:a|net$)`, `[ab]`, `b?`, `(a\.)*`,
		`(^|\.)`, `(?-i:n)et`, `\z`, `(?m)`, `.`, `.*`, `(?:net){1,2}`, `k`, `s`}
	names := []string{"a", "b", ".", "net", "NET", ".net", "\n", "\u212a", "\u017f", "k", "s"}
	matched := 0
	for range 4000 {
		list := []string{pick(exprs, 5), pick(exprs, 5), "*." + pick([]string{"a", "b", "net", "a.net"}, 1)}
		list = slices.DeleteFunc(list, func(s string) bool {
			_, err := regexp.Compile("(?i)" + s)
			return err != nil && !strings.HasPrefix(s, "*.")
		})
		p, errs := ParsePatterns(strings.NewReader(strings.Join(list, "\n")), "f")
		if len(errs) > 0 {
			t.Fatal(list, errs)
		}
		for range 5 {
			name := pick(names, 6)
			rule, _ := p.Match(name)
			if want := naive(list, name); rule.Line != want {
				t.Fatalf("%q in %q: rule %d, want %d", name, list, rule.Line, want)
			}
			if rule.Line > 0 {
				matched++
			}
		}
	}
	if matched < 4000 {
		t.Errorf("only %d matches: a weak test", matched)
	}
}

// list makes a file of n rules such as long lists have: one in front is tried on
// every name, the others end in a domain.
func list(n int) string {
	var b strings.Builder
	b.WriteString("\\.(dyn|pool)[0-9]*\\.\n")
	for i := 1; i < n; i++ {
		switch tld := [...]string{"net", "com", "com\\.br", "de"}[i%4]; i % 5 {
		case 0:
			fmt.Fprintf(&b, "^[a-z]{2,4}-[0-9a-f]{8}\\.pool\\.isp%d\\.%s$\n", i, tld)
		case 1:
			fmt.Fprintf(&b, "*.dsl.isp%d.net\n", i)
		case 2:
			fmt.Fprintf(&b, "isp%d\\.com$\n", i)
		default:
			fmt.Fprintf(&b, "^([12]?[0-9]{1,2}-){3}[12]?[0-9]{1,2}\\.(cable|dsl)\\.isp%d\\.%s$\n", i, tld)
		}
	}
	return b.String()
}

// 1,500 rules should cost at most twice what 15 cost.
func BenchmarkPatterns(b *testing.B) {
	for _, n := range []int{15, 150, 1500} {
		p, errs := ParsePatterns(strings.NewReader(list(n)), "list")
		if len(errs) > 0 || p.Len() != n {
			b.Fatal(p.Len(), errs)
		}
		names := samples(b, "testdata/rdns-labelled.tsv")
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.Match(names[i%len(names)].name)
			}
		})
		b.Run(fmt.Sprint(n, "-hit"), func(b *testing.B) {
			for b.Loop() {
				p.Match("11-22-33-44.cable.isp14.com.br")
			}
		})
	}
}
