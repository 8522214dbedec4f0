// Package listfile reads lists that people keep in files, one entry a line.
// Whatever is a list in this suite is read here, so that a comment is a comment
// in every file.
//
//	192.0.2.1            # the office
//	198.51.100.0/24#lab
//	/^mx[0-9]+#?\.big\.example$/  # an expression: its own # is no comment
//	"o#brien"@example.com
//
// A # begins a comment wherever it stands, also directly behind an entry, but
// not after a backslash, not within an expression and not within quotes. An
// expression begins with a slash at the beginning of a word, or after = or !,
// and ends at the first slash that has no backslash before it and a space, a #
// or the end of the line behind it. Quotes begin at the same places. Where the
// end is missing, slash and quote are ordinary characters.
//
// A UTF-8 byte order mark at the beginning, CR before LF, and white space around
// an entry are dropped. Lines that then say nothing are skipped.
package listfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxErrors is how many bad lines Each describes. The rest is only counted,
	// so that a file of another kind, given by mistake, does not fill memory and
	// log.
	MaxErrors = 100

	// MaxLine is the length in bytes past which an entry is a bad line. A
	// comment may be longer: what is past it is dropped.
	MaxLine = 4096
)

// A Place is where something is written.
type Place struct {
	File string
	Line int // the first is 1; 0 is the whole file
}

// String returns "file:line", as it appears in logs.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// An Entry is a line that says something.
type Entry struct {
	Place
	Text    string // without comment and white space around it, never empty; valid UTF-8, no control character but tab
	Comment string // after the #, trimmed
	Behind  bool   // the comment stands directly behind the text, without a space
}

// Each calls f for each entry, in order. A line that f or the reader finds bad
// gives an error "file:line: reason" and the other lines count. After MaxErrors
// such errors comes one that says how many more there were. When reading fails
// the last error is that of the reader; half a line that came before is left
// out, for it may look like a whole one.
func Each(r io.Reader, file string, f func(Entry) error) []error {
	var errs []error
	more := 0
	br := bufio.NewReaderSize(r, MaxLine+utf8.UTFMax) // room for CR, LF
	for n := 1; ; n++ {
		b, err := br.ReadSlice('\n')
		long := err == bufio.ErrBufferFull
		text := string(b)
		for err == bufio.ErrBufferFull {
			_, err = br.ReadSlice('\n')
		}
		if err == nil || err == io.EOF {
			if bad := line(text, Place{file, n}, long, f); bad != nil {
				if len(errs) < MaxErrors {
					errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, bad))
				} else {
					more++
				}
			}
		}
		if err == nil {
			continue
		}
		if more > 0 {
			errs = append(errs, fmt.Errorf("%s: %d more bad lines", file, more))
		}
		if err != io.EOF {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
		}
		return errs
	}
}

func line(s string, at Place, long bool, f func(Entry) error) error {
	if at.Line == 1 {
		if strings.HasPrefix(s, "\xff\xfe") || strings.HasPrefix(s, "\xfe\xff") {
			return errors.New("the file is in UTF-16; save it as UTF-8")
		}
		s = strings.TrimPrefix(s, "\ufeff")
	}
	e := Entry{Place: at, Text: s}
	if i := comment(s); i >= 0 {
		e.Text, e.Comment = s[:i], strings.TrimSpace(s[i+1:])
		e.Behind = i > 0 && !space(s[i-1])
		long = false
	}
	switch e.Text = strings.TrimSpace(e.Text); {
	case e.Text == "" && !long:
		return nil
	case long || len(e.Text) > MaxLine:
		return fmt.Errorf("%s is longer than %d bytes", Quote(e.Text), MaxLine)
	case !plain(e.Text):
		return fmt.Errorf("%s is not plain text", Quote(e.Text))
	}
	return f(e)
}

// comment returns where the comment of a line begins, -1 if it has none.
func comment(s string) int {
	word := true // what comes next begins a word
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '#':
			return i
		case c == '\\':
			i++
		case word && (c == '/' || c == '"'):
			if end := closing(s[i+1:], c); end >= 0 {
				i += 1 + end
			}
		}
		word = space(c) || c == '=' || c == '!'
	}
	return -1
}

// closing returns where in s an expression or quoted string ends that has begun
// before it, -1 if it does not.
func closing(s string, c byte) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == c && (c == '"' || i+1 == len(s) || space(s[i+1]) || s[i+1] == '#'):
			return i
		}
	}
	return -1
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func plain(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool {
		return r != '\t' && (unicode.IsControl(r) || r == '\ufeff')
	}) < 0
}

// Quote returns text for an error message: printable ASCII, cut where it is long.
func Quote(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Sprintf("%+q", s)
}
