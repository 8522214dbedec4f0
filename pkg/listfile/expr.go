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

// Expression returns what stands between the slashes of an entry, and whether
// the entry is written as an expression at all. One that does not end in a slash
// is an error.
func Expression(text string) (expr string, ok bool, err error) {
	expr, ok = strings.CutPrefix(text, "/")
	if !ok {
		return "", false, nil
	}
	if closing(expr, '/') != len(expr)-1 || expr == "" {
		return "", true, fmt.Errorf("%s does not end in /", Quote(text))
	}
	if expr = expr[:len(expr)-1]; expr == "" {
		return "", true, errors.New("// would match everything")
	}
	return expr, true, nil
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
