package rdns

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"opensmtpd-filters/pkg/listfile"
)

// A Rule is one line of a file of expressions.
type Rule struct {
	listfile.Place
	Expr string // the line without comment
}

// Patterns is a set of rules that names are matched against. It does not change
// and may be used by any number of goroutines; nil has no rules.
//
// Files are long, 1,500 rules are common, and nearly every rule ends in the
// domain of a provider. So a rule that matches only names with a certain ending
// is filed under the ending and tried on such names alone. A rule that needs a
// certain text elsewhere is tried when the text is there.
type Patterns struct {
	rules []pattern
	tree  []branch // tree[0] is the root
	loose []int    // rules without an ending, in order
}

// A pattern is one rule made ready.
type pattern struct {
	Rule
	re     *regexp.Regexp // nil for a wildcard, which the ending says in full
	ending string         // what every matching name ends with, if anything
	needs  string         // what every matching name contains, if anything
}

// A branch is a node of a tree of endings read backwards.
type branch struct {
	next  []edge // sorted
	rules []int  // the rules whose ending is complete here
}

type edge struct {
	c  byte
	to int
}

// ParsePatterns reads rules from r, one a line; file is the name they are
// reported under. A rule is an expression of package regexp, which has the POSIX
// classes and matches anywhere in a name and regardless of case, or *.domain for
// all names below domain. See package listfile for comments: a # that is meant is
// written \#.
//
// Every line that is no rule, and a failing r, gives an error that begins with
// file:line; the other lines count. The result is never nil.
func ParsePatterns(r io.Reader, file string) (*Patterns, []error) {
	var rules []pattern
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		p, err := compile(e.Text)
		if err == nil {
			p.Rule = Rule{e.Place, e.Text}
			rules = append(rules, p)
		}
		return err
	})
	return newPatterns(rules), errs
}

// Merge gives the rules of all sets, in order.
func Merge(sets ...*Patterns) *Patterns {
	var rules []pattern
	for _, p := range sets {
		if p != nil {
			rules = append(rules, p.rules...)
		}
	}
	return newPatterns(rules)
}

// Len gives the number of rules.
func (p *Patterns) Len() int {
	if p == nil {
		return 0
	}
	return len(p.rules)
}

// Match gives the first rule that matches name. A trailing dot of the name does not
// count.
func (p *Patterns) Match(name string) (Rule, bool) {
	if p.Len() == 0 {
		return Rule{}, false
	}
	name = normal(name)
	best := len(p.rules)
	try := func(i int) {
		if i < best && p.rules[i].match(name) {
			best = i
		}
	}
	if !isASCII(name) {
		// Case folding has surprises outside ASCII: k matches the sign for Kelvin.
		for i := 0; i < best; i++ {
			try(i)
		}
	} else {
		node := 0
		for i := len(name); ; i-- {
			for _, r := range p.tree[node].rules {
				try(r)
			}
			if i == 0 {
				break
			}
			if node = p.tree[node].find(name[i-1]); node < 0 {
				break
			}
		}
		for _, r := range p.loose {
			if r > best {
				break
			}
			if strings.Contains(name, p.rules[r].needs) {
				try(r)
			}
		}
	}
	if best == len(p.rules) {
		return Rule{}, false
	}
	return p.rules[best].Rule, true
}

func (p *pattern) match(name string) bool {
	if p.re == nil {
		return len(name) > len(p.ending) && strings.HasSuffix(name, p.ending)
	}
	return p.re.MatchString(name)
}

func newPatterns(rules []pattern) *Patterns {
	p := &Patterns{rules: rules, tree: make([]branch, 1)}
	for i := range rules {
		ending := rules[i].ending
		if ending == "" {
			p.loose = append(p.loose, i)
			continue
		}
		node := 0
		for k := len(ending) - 1; k >= 0; k-- {
			to := p.tree[node].find(ending[k])
			if to < 0 {
				to = len(p.tree)
				p.tree = append(p.tree, branch{})
				p.tree[node].add(edge{ending[k], to})
			}
			node = to
		}
		p.tree[node].rules = append(p.tree[node].rules, i)
	}
	return p
}

func (b *branch) search(c byte) (int, bool) {
	return slices.BinarySearchFunc(b.next, c, func(e edge, c byte) int { return int(e.c) - int(c) })
}

func (b *branch) find(c byte) int {
	if i, ok := b.search(c); ok {
		return b.next[i].to
	}
	return -1
}

func (b *branch) add(e edge) {
	i, _ := b.search(e.c)
	b.next = slices.Insert(b.next, i, e)
}

// compile makes a rule of one line.
func compile(expr string) (pattern, error) {
	if domain, ok := strings.CutPrefix(expr, "*."); ok {
		domain = "." + normal(domain)
		if strings.HasSuffix(domain, ".") || strings.Contains(domain, "..") ||
			strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return pattern{}, fmt.Errorf("*%s is not a domain", domain)
		}
		return pattern{ending: domain}, nil
	}
	if strings.HasPrefix(expr, "/") {
		return pattern{}, errors.New("no name has a slash; a line of a Postfix table must lose its slashes and action")
	}
	re, err := listfile.Compile(expr)
	if err != nil {
		return pattern{}, err
	}
	tree, err := syntax.Parse("(?i)"+expr, syntax.Perl)
	if err != nil {
		return pattern{}, err
	}
	return pattern{re: re, ending: ending(tree), needs: needs(tree)}, nil
}

// ending gives the text that every ASCII name matching re ends with, lower-case:
// what stands before a final $.
func ending(re *syntax.Regexp) string {
	if re.Op == syntax.OpCapture {
		return ending(re.Sub[0])
	}
	if re.Op != syntax.OpConcat {
		return ""
	}
	sub := re.Sub
	n := len(sub)
	for n > 0 && sub[n-1].Op == syntax.OpEndText {
		n--
	}
	if n == len(sub) {
		return ""
	}
	text := ""
	for n > 0 {
		s, whole := tail(sub[n-1])
		text = s + text
		if !whole {
			break
		}
		n--
	}
	return text
}

// tail gives text that every match of re ends with, and whether re is nothing else.
func tail(re *syntax.Regexp) (text string, whole bool) {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return "", true
	case syntax.OpLiteral:
		return literal(re)
	case syntax.OpCapture:
		return tail(re.Sub[0])
	case syntax.OpConcat:
		for i := len(re.Sub) - 1; i >= 0; i-- {
			s, whole := tail(re.Sub[i])
			text = s + text
			if !whole {
				return text, false
			}
		}
		return text, true
	}
	return "", false
}

// needs gives the longest text that every ASCII name matching re contains, lower-case.
func needs(re *syntax.Regexp) string {
	switch re.Op {
	case syntax.OpLiteral:
		s, _ := literal(re)
		return s
	case syntax.OpCapture, syntax.OpPlus:
		return needs(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return needs(re.Sub[0])
		}
	case syntax.OpConcat:
		best := ""
		for _, sub := range re.Sub {
			if s := needs(sub); len(s) > len(best) {
				best = s
			}
		}
		return best
	}
	return ""
}

// literal gives the text of a literal in lower case, nothing if it is not ASCII.
func literal(re *syntax.Regexp) (string, bool) {
	for _, r := range re.Rune {
		if r >= utf8.RuneSelf {
			return "", false
		}
	}
	return strings.ToLower(string(re.Rune)), true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
