package dnsbl

import (
	"slices"
	"strings"
)

// keyWord is what stands in the place of a key.
const keyWord = "KEY"

// minKey is the length from which a label of letters and digits is a key.
const minKey = 20

// keyOf returns the key a zone begins with, or "".
func keyOf(zone string) string {
	first, rest, _ := strings.Cut(zone, ".")
	if len(first) >= minKey && alphanumeric(first) ||
		strings.HasSuffix(rest, ".dq.spamhaus.net") || strings.HasSuffix(rest, ".mail.abusix.zone") {
		return first
	}
	return ""
}

// mask returns a zone without its key.
func mask(zone string) string {
	if k := keyOf(zone); k != "" {
		return keyWord + zone[len(k):]
	}
	return zone
}

// Keys returns what may be a key in arguments of a command line, however
// misplaced: the first label of names such as KEY.zen.dq.spamhaus.net and
// KEY.combined.mail.abusix.zone, and any label of 20 or more letters and digits
// that begins a name or has both.
func Keys(args ...string) []string {
	var keys []string
	add := func(s string) {
		if len(s) >= 8 && !slices.Contains(keys, s) {
			keys = append(keys, s)
		}
	}
	for _, arg := range args {
		for token := range strings.FieldsFuncSeq(arg, func(r rune) bool { return strings.ContainsRune(" \t\r\n,@=*+|\"'", r) }) {
			if strings.Contains(token, "/") {
				continue // a file
			}
			add(keyOf(token))
			for label := range strings.SplitSeq(token, ".") {
				if len(label) >= minKey && alphanumeric(label) && strings.ContainsAny(label, "0123456789") {
					add(label)
				}
			}
		}
	}
	return keys
}

// Redactor returns a function that masks these keys in a text, in upper or
// lower case.
func Redactor(keys []string) func(string) string {
	return func(s string) string {
		for _, k := range keys {
			s = replaceFold(s, k)
		}
		return s
	}
}

func replaceFold(s, key string) string {
	for i := 0; i+len(key) <= len(s); i++ {
		if strings.EqualFold(s[i:i+len(key)], key) {
			s = s[:i] + keyWord + s[i+len(key):]
		}
	}
	return s
}

func alphanumeric(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return true
}

const maxText = 200

// Clean makes a text from the DNS fit for replies, headers and logs: printable
// ASCII, a blank for the rest and for runs of it, at most 200 characters.
func Clean(s string) string {
	var b strings.Builder
	blank := false
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			blank = b.Len() > 0
			continue
		}
		if blank && b.Len() < maxText-1 {
			b.WriteByte(' ')
		}
		blank = false
		if b.WriteByte(s[i]); b.Len() >= maxText {
			break
		}
	}
	return b.String()
}
