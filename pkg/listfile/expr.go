package listfile

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// MaxExpr is how large an expression may be: the number of steps of the machine
// that regexp makes of it, about. Matching takes time in proportion to it.
const MaxExpr = 5000

// Expression returns what stands between the slashes if text begins with an
// expression, and what follows it without white space around it. If it does not,
// expr is empty and rest is text. One that does not end is an error.
func Expression(text string) (expr, rest string, err error) {
	inner, ok := strings.CutPrefix(text, "/")
	if !ok {
		return "", text, nil
	}
	switch end := closing(inner, '/'); end {
	case -1:
		return "", "", fmt.Errorf("%s does not end in /", Quote(text))
	case 0:
		return "", "", errors.New("// would match everything")
	default:
		return inner[:end], strings.TrimSpace(inner[end+1:]), nil
	}
}

// Compile makes an expression of package regexp ready, which matches regardless
// of case and anywhere in the text. It is an error if it is larger than MaxExpr:
// a few bytes, as in (x{1000}){1000}, may else take all memory and a second for
// each name.
func Compile(expr string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse("(?i)"+expr, syntax.Perl)
	if err != nil {
		return nil, explain(err)
	}
	if size(tree) > MaxExpr {
		return nil, fmt.Errorf("%s is too large an expression: repeats multiply", Quote(expr))
	}
	re, err := regexp.Compile("(?i)" + expr)
	if err != nil {
		return nil, explain(err)
	}
	return re, nil
}

// explain says what of other programs' expressions there is not.
func explain(err error) error {
	var bad *syntax.Error
	if errors.As(err, &bad) {
		if bad.Code == syntax.ErrInvalidPerlOp || bad.Code == syntax.ErrInvalidEscape {
			return fmt.Errorf("%s: look-around and back-references are not supported (see re_syntax of Go, RE2)", Quote(bad.Expr))
		}
		return fmt.Errorf("%s: %s", Quote(bad.Expr), bad.Code)
	}
	return err
}

// size returns about how many steps an expression has, MaxExpr+1 for any more.
func size(re *syntax.Regexp) int {
	n := 1
	for _, sub := range re.Sub {
		n = min(n+size(sub), MaxExpr+1)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n += len(re.Rune)
	case syntax.OpCharClass:
		n += len(re.Rune) / 16
	case syntax.OpRepeat:
		n *= max(re.Min, re.Max, 1)
	}
	return min(n, MaxExpr+1)
}
