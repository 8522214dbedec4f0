package listfile

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// What a line says, and where its comment begins.
func TestComments(t *testing.T) {
	for _, tt := range []struct{ line, text, comment string }{
		{"192.0.2.1", "192.0.2.1", ""},
		{"192.0.2.1#office", "192.0.2.1", "office"},
		{"192.0.2.1 # office # two", "192.0.2.1", "office # two"},
		{"\t192.0.2.0/24\t#office\r", "192.0.2.0/24", "office"},
		{"# 192.0.2.1", "", ""},
		{"#", "", ""},
		{"   ", "", ""},
		{"10/8#x/", "10/8", "x/"},
		{"/a#b/", "/a#b/", ""},
		{"/a#b/#c", "/a#b/", "c"},
		{"/a#b/ # see /x/", "/a#b/", "see /x/"},
		{"/a #b/", "/a #b/", ""},
		{"/a/#b/", "/a/", "b/"},
		{`/a\/#b/`, `/a\/#b/`, ""},
		{"/a/b#c/", "/a/b#c/", ""},
		{"/a#b/ permit # x", "/a#b/ permit", "x"},
		{"permit client=/a#b/ # x", "permit client=/a#b/", "x"},
		{"!/a#b/", "!/a#b/", ""},
		{"/open # comment", "/open", "comment"},
		{"a#b/", "a", "b/"},
		{`dyn\#1\.`, `dyn\#1\.`, ""},
		{`\\#x`, `\\`, "x"},
		{`\.dyn\.#x`, `\.dyn\.`, "x"},
		{`"a#b"@example.com # x`, `"a#b"@example.com`, "x"},
		{`"a\"#b"@example.com`, `"a\"#b"@example.com`, ""},
		{`say "a # b`, `say "a`, "b"},
		{`a"b#c"`, `a"b`, `c"`},
		{`!"a#b"@x.example`, `!"a#b"@x.example`, ""},
		{"x # \xff\x00", "x", "\xff\x00"},
		{`\`, `\`, ""},
	} {
		var got Entry
		if errs := Each(strings.NewReader(tt.line), "f", func(e Entry) error { got = e; return nil }); errs != nil {
			t.Errorf("%q: %v", tt.line, errs)
		}
		if got.Text != tt.text || got.Comment != tt.comment && tt.text != "" {
			t.Errorf("%q: got %q, comment %q", tt.line, got.Text, got.Comment)
		}
		if behind := strings.Contains(tt.line, tt.text+"#") && tt.comment != ""; got.Behind != behind {
			t.Errorf("%q: behind is %v", tt.line, got.Behind)
		}
	}
}

func TestEach(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	text := "\ufeffone\r\n" +
		"\r\n" +
		"bad\n" +
		"nul\x00\n" +
		"latin\xe9\n" +
		long + "\n" +
		long + "y\n" +
		strings.Repeat(" ", 3*MaxLine) + "far\n" +
		"near #" + strings.Repeat(" long", 5*MaxLine) + "\n" +
		"\ufefflate\n" +
		"last"
	var got []string
	errs := Each(strings.NewReader(text), "/etc/mail/list", func(e Entry) error {
		if e.Text == "bad" {
			return errors.New("not good")
		}
		got = append(got, fmt.Sprintf("%d %.5s", e.Line, e.Text))
		if e.File != "/etc/mail/list" {
			t.Errorf("file %q", e.File)
		}
		return nil
	})
	if want := "[1 one 6 xxxxx 9 near 11 last]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	want := []string{
		"/etc/mail/list:3: not good",
		`/etc/mail/list:4: "nul\x00" is not plain text`,
		`/etc/mail/list:5: "latin\xe9" is not plain text`,
		`/etc/mail/list:7: "` + long[:60] + `..." is longer than 4096 bytes`,
		`/etc/mail/list:8: "" is longer than 4096 bytes`,
		`/etc/mail/list:10: "\ufefflate" is not plain text`,
	}
	if fmt.Sprint(errs) != fmt.Sprint(want) {
		t.Errorf("errors\n%v\nwant\n%v", errs, want)
	}
}

func TestTrouble(t *testing.T) {
	none := func(Entry) error { return nil }
	broken := errors.New("input/output error")
	n := 0
	errs := Each(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken)), "f", func(Entry) error { n++; return nil })
	if n != 1 || len(errs) != 1 || !errors.Is(errs[0], broken) || !strings.HasPrefix(errs[0].Error(), "f:2: ") {
		t.Errorf("%d entries, errors %v", n, errs)
	}
	errs = Each(strings.NewReader(strings.Repeat("x\n", MaxErrors+50)), "f", func(Entry) error { return errors.New("bad") })
	if len(errs) != MaxErrors+1 || errs[MaxErrors].Error() != "f: 50 more bad lines" {
		t.Errorf("%d errors, last %v", len(errs), errs[len(errs)-1])
	}
	errs = Each(strings.NewReader("\xff\xfea\x00\n\x00b\x00\n\x00"), "f", none)
	if len(errs) == 0 || errs[0].Error() != "f:1: the file is in UTF-16; save it as UTF-8" {
		t.Errorf("UTF-16: %v", errs)
	}
}

func TestExpression(t *testing.T) {
	for _, tt := range []struct{ text, expr, rest string }{
		{"/a/", "a", ""}, {"/a#b/", "a#b", ""}, {"/a/b/", "a/b", ""}, {`/a\//`, `a\/`, ""},
		{"/a b/  permit", "a b", "permit"}, {"/a/ b/", "a", "b/"},
		{"a", "", "a"}, {"", "", ""}, {"10/8", "", "10/8"},
		{"/", "error", ""}, {"//", "error", ""}, {"/a", "error", ""}, {`/a\/`, "error", ""},
	} {
		expr, rest, err := Expression(tt.text)
		if err != nil {
			expr = "error"
		}
		if expr != tt.expr || rest != tt.rest {
			t.Errorf("%s: got %q %q, %v, want %q %q", tt.text, expr, rest, err, tt.expr, tt.rest)
		}
	}
}

func TestCompile(t *testing.T) {
	for _, expr := range []string{
		`(x{1000}){1000}`, `((a{100}){100}){100}`, `(.{500}){2}{5}`, `x{0,1000}{0,6}`, `[^a]{1000}{6}`, // sizes
		strings.Repeat("(", 1500) + strings.Repeat(")", 1500), `(?!a)b`, `(a)\1`, `(`, `*`, `a{2000}`,
	} {
		if re, err := Compile(expr); err == nil {
			t.Errorf("%.40s: no error, %v", expr, re)
		} else if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 300 {
			t.Errorf("%.40s: error %q", expr, err)
		}
	}
	for _, expr := range []string{`^([12]?[0-9]{1,2}-){3}[12]?[0-9]{1,2}\.dsl\.`, `[a-z0-9-]{1,63}\.example$`, `\@example\.org$`, `\p{L}+`} {
		if _, err := Compile(expr); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
	}
	re, _ := Compile(`^mx\.Example$`)
	if !re.MatchString("MX.example") {
		t.Error("the case counts")
	}
}

// Every line is an entry, an error, a comment or empty; an entry is plain, and
// reads the same when it is written down again.
func FuzzEach(f *testing.F) {
	f.Add("192.0.2.1#x\r\n/a#b/ # c\n\"a#b\"@c\n\\#\n")
	f.Add("\ufeff/\n//\n/a\\/#\n!\"\n\x00\n=/#/#")
	f.Fuzz(func(t *testing.T, text string) {
		entries := 0
		errs := Each(strings.NewReader(text), "f", func(e Entry) error {
			entries++
			if e.Text == "" || e.Text != strings.TrimSpace(e.Text) || !utf8.ValidString(e.Text) || strings.ContainsAny(e.Text, "\r\n\x00") {
				t.Errorf("entry %q", e.Text)
			}
			var again []string
			bad := Each(strings.NewReader(e.Text+" # x"), "f", func(e Entry) error { again = append(again, e.Text); return nil })
			if !strings.HasSuffix(e.Text, `\`) && (bad != nil || len(again) != 1 || again[0] != e.Text) {
				t.Errorf("%q is read again as %q, %v", e.Text, again, bad)
			}
			return nil
		})
		if lines := strings.Count(text, "\n") + 1; entries+len(errs) > lines {
			t.Errorf("%d entries and %d errors of %d lines", entries, len(errs), lines)
		}
		for _, err := range errs {
			if !strings.HasPrefix(err.Error(), "f:") || strings.ContainsAny(err.Error(), "\r\n\x00") {
				t.Errorf("error %q", err)
			}
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add(`^mx[0-9]+\.(a|b)$`, "mx1.a")
	f.Add(`(x{1000}){1000}`, "x")
	f.Fuzz(func(t *testing.T, expr, name string) {
		if re, err := Compile(expr); err == nil {
			re.MatchString(name)
		}
	})
}
