package cli

import (
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Printable returns a writer to w, for a terminal, of text that has come from the
// network or a file. Line ends and tabs stay. Every other control character,
// those from U+0080 to U+009F and those without a width among them, is written
// as in JSON (\u001b), inside a string of which it means the same; a byte that is
// no UTF-8 as \x9b.
func Printable(w io.Writer) io.Writer { return &printable{w: w} }

type printable struct {
	w    io.Writer
	rest []byte // the beginning of a character
}

func (p *printable) Write(b []byte) (int, error) {
	text := append(p.rest, b...)
	out := make([]byte, 0, len(text))
	for len(text) > 0 && utf8.FullRune(text) {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			out = fmt.Appendf(out, `\x%02x`, text[0])
		case r == '\n' || r == '\t' || unicode.IsGraphic(r):
			out = append(out, text[:size]...)
		case r > 0xffff:
			a, b := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, a, b)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[size:]
	}
	p.rest = append(p.rest[:0:0], text...)
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
