package smtpdconf

import (
	"path"
	"strings"
)

// MaxCommand is how long a command may be, with "exec " and the folder of a
// relative one before it: what smtpd has room for. A longer one ends it.
const MaxCommand = 4095

// Program returns the first word of a command, which is what is run, without its
// folder.
func Program(command string) string {
	word, _ := firstWord(command)
	return path.Base(word)
}

// firstWord reads the first word as sh(1) does, apart from expansions.
func firstWord(s string) (word, rest string) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == 0 && strings.IndexByte(" \t\n;&|<>()", c) >= 0:
			if b.Len() > 0 || i > 0 && strings.IndexByte(`"'`, s[i-1]) >= 0 {
				return b.String(), s[i:]
			}
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote && quote != 0:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

// Ends returns what ends a command before its end, for sh(1): a ; & or | or a
// newline that no quotes protect, or a # at the beginning of a word, which makes
// the rest a comment. What follows does not reach the program. It is 0 if all does.
func Ends(command string) byte {
	quote, before := byte(0), byte(' ')
	for i := 0; i < len(command); i++ {
		c := command[i]
		switch {
		case c == '\\' && quote != '\'':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'' || c == '`':
			quote = c
		case c == '&' && before == '>': // 2>&1
		case strings.IndexByte(";&|\n", c) >= 0, c == '#' && strings.IndexByte(" \t", before) >= 0:
			return c
		}
		before = c
	}
	return 0
}
