package smtpdconf

import (
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
)

// A token is what the grammar is made of.
type token struct {
	kind kind
	text string // of a str, number or keyword; of a char the byte
	line int
}

type kind byte

const (
	end     kind = iota // of the file, or of reading
	char                // a byte that is nothing else, a newline among them
	str                 // a word that is no keyword, or in quotes
	number              // digits
	keyword             // a word of the grammar
	arrow               // =>
	bad                 // what no token can be made of; the error is told, the line skipped
)

func (t token) is(c byte) bool        { return t.kind == char && t.text == string(c) }
func (t token) word(word string) bool { return t.kind == keyword && t.text == word }

const (
	maxString = 8094    // bytes of a string, of which smtpd takes no more
	maxFiles  = 100     // read in all: files may include each other
	maxFile   = 4 << 20 // bytes
	eof       = -1

	// Bytes that mark what comes from a macro. They are nothing in a file either.
	startExpand = 1
	doneExpand  = 2
)

// A file is one that is being read.
type file struct {
	name  string
	text  []byte
	back  []byte // what was read too much, last first
	line  int
	ended bool // its last line has its newline
}

// A lexer makes tokens of bytes, by the rules of smtpd.
type lexer struct {
	open      func(string) (io.ReadCloser, error)
	files     []*file // that include each other
	opened    int     // files
	macros    map[string]string
	fixed     map[string]string
	expanding bool // what is read comes from a macro
	line      int  // of the token
	errs      []error
}

func newLexer(o Options) lexer {
	l := lexer{open: o.Open, macros: map[string]string{}, fixed: o.Macros}
	maps.Copy(l.macros, o.Macros)
	return l
}

func (l *lexer) file() *file { return l.files[len(l.files)-1] }

// include begins to read a file.
func (l *lexer) include(name string) error {
	if l.opened++; l.opened > maxFiles {
		return fmt.Errorf("more than %d files: do they include each other?", maxFiles)
	}
	r, err := l.open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(text) > maxFile {
		return fmt.Errorf("%s: larger than %d MB", name, maxFile>>20)
	}
	l.files = append(l.files, &file{name: name, text: text})
	return nil
}

// leave goes on with the file that included this one. The first is not left.
func (l *lexer) leave() bool {
	if len(l.files) == 1 {
		return false
	}
	l.files = l.files[:len(l.files)-1]
	return true
}

func (l *lexer) fail(format string, args ...any) {
	l.errs = append(l.errs, &Error{Place{l.file().name, l.line}, fmt.Sprintf(format, args...)})
}

// byte reads a byte.
func (l *lexer) byte() int {
	for {
		f := l.file()
		c := eof
		if n := len(f.back); n > 0 {
			c, f.back = int(f.back[n-1]), f.back[:n-1]
		} else if len(f.text) > 0 {
			c, f.text = int(f.text[0]), f.text[1:]
		}
		switch c {
		case startExpand:
			l.expanding = true
		case doneExpand:
			l.expanding = false
		default:
			return c
		}
	}
}

// unread has a byte read again.
func (l *lexer) unread(c int) {
	if c != eof {
		l.file().back = append(l.file().back, byte(c))
	}
}

// get reads a byte outside of quotes: a backslash takes away the newline behind it,
// and nothing but itself before another byte. The end of a file is a newline once.
func (l *lexer) get() int {
	c := l.byte()
	for c == '\\' {
		if c = l.byte(); c != '\n' {
			break
		}
		l.line = l.file().line
		l.file().line++
		c = l.byte()
	}
	if c != eof {
		return c
	}
	if f := l.file(); !f.ended {
		f.ended = true
		return '\n'
	}
	for c == eof {
		if !l.leave() {
			return eof
		}
		c = l.byte()
	}
	return c
}

// getQuoted reads a byte of a string in these quotes. They end with the file.
func (l *lexer) getQuoted(quote int) int {
	c := l.byte()
	if c == eof {
		l.fail("reached end of file while parsing quoted string")
		if l.leave() {
			return quote
		}
	}
	return c
}

// skipLine skips the rest of a line.
func (l *lexer) skipLine() token {
	for {
		switch l.get() {
		case '\n':
			l.file().line++
			return token{kind: bad, line: l.line}
		case eof:
			return token{kind: bad, line: l.line}
		}
	}
}

// next returns the next token.
func (l *lexer) next() token {
	for {
		c := l.get()
		for c == ' ' || c == '\t' {
			c = l.get()
		}
		l.line = l.file().line
		if c == '#' {
			for c != '\n' && c != eof {
				c = l.get()
			}
		}
		if c != '$' || l.expanding {
			return l.token(c)
		}
		if t, ok := l.expand(); !ok {
			return t
		}
	}
}

// expand has the value of a macro read in the place of its name.
func (l *lexer) expand() (token, bool) {
	var name []byte
	c := l.get()
	for c == '_' || isAlnum(c) {
		if len(name) >= maxString {
			l.fail("string too long")
			return l.skipLine(), false
		}
		name = append(name, byte(c))
		c = l.get()
	}
	if c == eof {
		return token{kind: end, line: l.line}, false
	}
	l.unread(c)
	value, ok := l.macros[string(name)]
	if !ok {
		l.fail("macro '%s' not defined", name)
		return l.skipLine(), false
	}
	l.unread(doneExpand)
	for i := len(value) - 1; i >= 0; i-- {
		l.unread(int(value[i]))
	}
	l.unread(startExpand)
	return token{}, true
}

func (l *lexer) token(c int) token {
	switch {
	case c == '"' || c == '\'':
		return l.quoted(c)
	case c == '-' || isDigit(c):
		t, ok := l.number(c)
		if ok {
			return t
		}
		c = int(t.text[0])
		if c == '-' {
			return t
		}
	case c == '=':
		if c = l.get(); c == '>' {
			return token{kind: arrow, line: l.line}
		}
		l.unread(c)
		return token{kind: char, text: "=", line: l.line}
	}
	if c == ':' || c == '_' || isAlnum(c) {
		return l.plain(c)
	}
	if c == eof {
		return token{kind: end, line: l.line}
	}
	if c == '\n' {
		l.line = l.file().line
		l.file().line++
	}
	return token{kind: char, text: string([]byte{byte(c)}), line: l.line}
}

// quoted reads a string in quotes. Newlines in it are nothing; a backslash is one,
// unless a quote of the same kind, a blank, a tab or a newline follows.
func (l *lexer) quoted(quote int) token {
	var text []byte
	for {
		c := l.getQuoted(quote)
		switch c {
		case eof:
			return token{kind: end, line: l.line}
		case '\n':
			l.file().line++
			continue
		case '\\':
			next := l.getQuoted(quote)
			switch next {
			case eof:
				return token{kind: end, line: l.line}
			case quote, ' ', '\t':
				c = next
			case '\n':
				l.file().line++
				continue
			default:
				l.unread(next)
			}
		case quote:
			return token{kind: str, text: string(text), line: l.line}
		case 0:
			l.fail("syntax error")
			return l.skipLine()
		}
		if len(text) >= maxString {
			l.fail("string too long")
			return l.skipLine()
		}
		text = append(text, byte(c))
	}
}

// number reads a number, or puts back all but the first byte of what is none.
func (l *lexer) number(c int) (token, bool) {
	text := []byte{byte(c)}
	c = l.get()
	for isDigit(c) {
		if text = append(text, byte(c)); len(text) > maxString {
			l.fail("string too long")
			return l.skipLine(), true
		}
		c = l.get()
	}
	l.unread(c)
	if string(text) != "-" && (c == eof || strings.IndexByte(" \t\n\v\f\r),/}=", byte(c)) >= 0) {
		if _, err := strconv.ParseInt(string(text), 10, 64); err != nil {
			l.fail("%q invalid number: out of range", text)
			return l.skipLine(), true
		}
		return token{kind: number, text: string(text), line: l.line}, true
	}
	for i := len(text) - 1; i > 0; i-- {
		l.unread(int(text[i]))
	}
	return token{kind: char, text: string(text[:1]), line: l.line}, false
}

// plain reads a word without quotes.
func (l *lexer) plain(c int) token {
	var text []byte
	for ok := true; ok; ok = c != eof && inWord(c) {
		if text = append(text, byte(c)); len(text) > maxString+1 {
			l.fail("string too long")
			return l.skipLine()
		}
		c = l.get()
	}
	l.unread(c)
	t := token{kind: str, text: string(text), line: l.line}
	if keywords[t.text] {
		t.kind = keyword
	}
	return t
}

func isDigit(c int) bool { return '0' <= c && c <= '9' }

func isAlnum(c int) bool { return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// inWord is for what a word goes on with: letters, digits and most marks.
func inWord(c int) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune("(){}<>!=#,", rune(c))
}

// keywords are the words that are no strings unless they are in quotes.
var keywords = func() map[string]bool {
	m := map[string]bool{}
	for w := range strings.FieldsSeq(`action admd alias any auth auth-optional backup bounce bypass ca cert chain chroot
		ciphers commit compression connect data data-line dhe disconnect domain ehlo encryption expand-only fcrdns
		filter for forward-only from group helo helo-src host hostname hostnames include inet4 inet6 junk key limit
		listen lmtp local mail-from maildir mask-src masquerade match max-deferred max-message-size mbox mda mta mx
		no-dsn no-verify noop on phase pki port proc proc-exec protocols proxy-v2 queue quit rcpt-to rdns received-auth
		recipient regex reject relay report rewrite rset scheduler senders smtp smtp-in smtp-out smtps socket src srs
		sub-addr-delim table tag tagged tls tls-require ttl user userbase verify virtual warn-interval wrapper`) {
		m[w] = true
	}
	return m
}()
