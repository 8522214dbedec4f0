package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain\ttext, jürgen 東京 €\n", "plain\ttext, jürgen 東京 €\n"},
		{"\x1b[2J\x07\x00\r\n", `\u001b[2J\u0007\u0000\u000d` + "\n"},
		{"\x7f", `\u007f`},
		{"\x9b2J\x85\n", `\x9b2J\x85` + "\n"},
		{"\u009b2J\u0085", `\u009b2J\u0085`},
		{"a\u202eb\u200b\u2028\ufeff", `a\u202eb\u200b\u2028\ufeff`},
		{"\U000e0041", `\udb40\udc41`},
		{"\xc3\n", `\xc3` + "\n"},
		{"\xed\xa0\x80\n", `\xed\xa0\x80` + "\n"},
		{"�", "�"},
	} {
		for size := 1; size < 6; size++ { // however it is cut
			var out bytes.Buffer
			w := Printable(&out)
			for text := tt.in; text != ""; {
				n := min(size, len(text))
				if k, err := w.Write([]byte(text[:n])); k != n || err != nil {
					t.Fatal(k, err)
				}
				text = text[n:]
			}
			if out.String() != tt.want {
				t.Errorf("%q by %d: %q, want %q", tt.in, size, out.String(), tt.want)
			}
		}
	}
	if _, err := Printable(deaf{}).Write([]byte("x")); err == nil {
		t.Error("an error got lost")
	}
}

type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, errors.New("no") }

// JSON stays what it was.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"a", "\x1b\x7f\u009b\U000e0041\"\\\\", "\xff\xc3("} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var out bytes.Buffer
		w := Printable(&out)
		if err := json.NewEncoder(w).Encode(s); err != nil {
			t.Fatal(err)
		}
		for _, r := range out.String() {
			if r != '\n' && !unicode.IsGraphic(r) {
				t.Fatalf("%q", out.String())
			}
		}
		var back string
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != strings.ToValidUTF8(s, "�") && utf8.ValidString(s) {
			t.Errorf("%q became %q, %v", s, back, err)
		}
	})
}

// What is wrong is said without doing anything to the terminal.
func TestExitPrintable(t *testing.T) {
	var out, errs bytes.Buffer
	New(Options{Name: "filter-x"}).Exit(errors.New("bad \x1b[2J\u009b line\nnext"), &out, &errs)
	if errs.String() != "filter-x: bad \\u001b[2J\\u009b line\nfilter-x: next\n" {
		t.Errorf("%q", errs.String())
	}
}
