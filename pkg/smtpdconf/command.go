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
	return path.Base(Path(command))
}

// Path returns the first word of a command.
func Path(command string) string {
	word, _ := firstWord(command)
	return word
}

// firstWord reads the first word as sh(1) does, apart from expansions.
func firstWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t\n")
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == 0 && strings.IndexByte(" \t\n;&|<>()", c) >= 0:
			return b.String(), s[i:]
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

// End returns where a command ends for sh(1) before its end, -1 if nowhere: at a ;
// & or | or a newline that no quotes protect, or at a # that begins a word, which
// makes the rest a comment. What follows does not reach the program.
func End(command string) int {
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
			return i
		}
		before = c
	}
	return -1
}
