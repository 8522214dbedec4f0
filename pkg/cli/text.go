package cli

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// IsDomain reports whether s looks like a domain name of at least two labels.
func IsDomain(s string) bool {
	s = strings.TrimSuffix(s, ".")
	labels := strings.Split(s, ".")
	if len(labels) < 2 || len(s) > 253 || !utf8.ValidString(s) {
		return false
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.ContainsFunc(l, func(r rune) bool {
			return r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}) {
			return false
		}
	}
	return strings.ContainsFunc(labels[len(labels)-1], unicode.IsLetter)
}

// Clean returns text that came from outside for a terminal: what could move the
// cursor, or is not valid UTF-8, is quoted as Go does. Empty is "-".
func Clean(s string) string {
	if s == "" {
		return "-"
	}
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r != ' ' && (!unicode.IsGraphic(r) || unicode.IsSpace(r)) || r == utf8.RuneError
	}) {
		return s
	}
	return strconv.QuoteToASCII(s)
}
