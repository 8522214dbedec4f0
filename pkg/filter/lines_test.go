package filter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/proto"
)

// message sends one message through a filter and returns the lines that smtpd
// would get, the final dot included.
func through[S any](t *testing.T, f *Filter[S], version string, lines []string) []string {
	t.Helper()
	var in strings.Builder
	in.WriteString("config|ready\n" + connect(1) + "\n")
	for _, l := range lines {
		in.WriteString(ask(1, proto.DataLine, l) + "\n")
	}
	var out bytes.Buffer
	if err := f.Run(t.Context(), strings.NewReader(strings.ReplaceAll(in.String(), "|0.7|", "|"+version+"|")), &out); err != nil {
		t.Fatal(err)
	}
	_, answers, _ := strings.Cut(out.String(), "register|ready\n")
	var got []string
	for l := range strings.Lines(answers) {
		if len(l) > 65536 {
			t.Errorf("a line of %d bytes", len(l))
		}
		prefix := data(1, "")
		if version == "0.4" {
			prefix = "filter-dataline|" + token(proto.DataLine) + "|" + session(1) + "|"
		}
		l, ok := strings.CutPrefix(strings.TrimSuffix(l, "\n"), prefix)
		if !ok {
			t.Fatalf("not a data line: %.100q", l)
		}
		got = append(got, l)
	}
	return got
}

// pass is a filter of data lines that changes nothing.
func pass() *Filter[none] {
	f := New[none](Options{})
	f.OnDataLine(func(_ *Session[none], line []byte, out *Lines) { out.Put(line) })
	return f
}

// abbreviate makes runs of one letter readable.
func abbreviate(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		for i := 0; i < len(l); {
			n := i
			for n < len(l) && l[n] == l[i] {
				n++
			}
			if n-i > 9 {
				fmt.Fprintf(&b, "(%d%c)", n-i, l[i])
			} else {
				b.WriteString(l[i:n])
			}
			i = n
		}
		b.WriteString("$")
	}
	return b.String()
}

func TestLongLines(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n) }
	b := func(n int) string { return strings.Repeat(" ", n) }
	tests := []struct {
		version string
		header  bool
		in      string
		want    string
	}{
		{"0.7", false, a(65485), "(65485a)$"},
		{"0.7", false, a(65486), "(65485a)$a$"},
		// What would end the message, or lose its dot, at the start of a line.
		{"0.7", false, a(65485) + ".", "(65485a)$..$"},
		{"0.7", false, a(65485) + ".x", "(65485a)$..x$"},
		{"0.7", false, a(65485) + "." + a(65483) + ".", "(65485a)$..(65483a)$..$"},
		{"0.7", false, a(65485) + "." + a(65484), "(65485a)$..(65483a)$a$"},
		{"0.6", false, a(1997) + "." + a(1996) + ".x", "(1997a)$..(1995a)$a.x$"},
		{"0.4", false, a(1998), "(1997a)$a$"},
		{"0.42", false, a(1998), "(1998a)$"},
		// A fold in the header; at a blank where there is one.
		{"0.7", true, "A: " + a(65482), "A: (65482a)$"},
		{"0.7", true, "A:" + a(65484), "A:(65483a)$ a$"},
		{"0.7", true, "A: " + a(65483), "A:$ (65483a)$"},
		{"0.7", true, "A: b " + a(65483), "A: b$ (65483a)$"},
		{"0.7", true, " " + a(65485) + ".", " (65484a)$ a.$"},
		{"0.6", true, "A:" + a(5000), "A:(1995a)$ (1996a)$ (1009a)$"},
		{"0.6", true, "A: bc\t" + a(3000), "A: bc$\t(1996a)$ (1004a)$"},
		// Nothing but blanks never makes a line of its own.
		{"0.6", true, "A:" + a(1990) + b(100), "A:(1990a)     $"},
		{"0.6", true, b(3000) + "x", "(1997 )$(1003 )x$"},
		{"0.6", true, "A:" + a(1995) + ".b", "A:(1995a)$ .b$"}, // not a dot
	}
	for _, tt := range tests {
		before, after := []string{"Subject: x", ""}, []string{"."}
		if tt.header {
			before, after = []string{"Subject: x"}, []string{"", "."}
		}
		got := through(t, pass(), tt.version, slices.Concat(before, []string{tt.in}, after))
		if !slices.Equal(got[len(got)-len(after):], after) {
			t.Errorf("the message ends with %.20q", got[len(got)-1])
		}
		if s := abbreviate(got[len(before) : len(got)-len(after)]); s != tt.want {
			t.Errorf("%s, header %t, %s: %s, want %s", tt.version, tt.header, abbreviate([]string{tt.in}), s, tt.want)
		}
	}
}

// A long line costs time by its length, however often it is split.
func TestVeryLongLines(t *testing.T) {
	for _, lines := range [][]string{
		{"Subject:" + strings.Repeat("x", 10<<20), "", "."},
		{"Subject: x", "", strings.Repeat(".", 10<<20), "."},
	} {
		got := through(t, pass(), "0.6", lines)
		if n := len(strings.Join(got, "")); n < 10<<20 || n > 11<<20 {
			t.Errorf("%d bytes", n)
		}
	}
}

// A line with bytes that smtpd reads otherwise than it was meant.
func TestOddLines(t *testing.T) {
	got := through(t, pass(), "0.7", []string{"A: x\r", "", ".\x00", "a\x00b", "\x00", ".\r", "..", "|", ".x", "."})
	want := []string{"A: x\r", "", "..", "ab", "", ".\r", "..", "|", ".x", "."}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("lines: %q\nwant:  %q", got, want)
	}

	f := New[none](Options{})
	f.OnDataLine(func(_ *Session[none], line []byte, out *Lines) {
		switch string(line) {
		case "drop":
		case "dot":
			out.Put([]byte("."))
		case "lf":
			out.Put([]byte("a\n.\nb"))
		case "two":
			out.Put([]byte("one"))
			out.Put([]byte("two"))
		default:
			out.Put(line)
		}
	})
	got = through(t, f, "0.7", []string{"A: x", "", "drop", "dot", "lf", "two", ".", "B: y", "drop", "."})
	want = []string{"A: x", "", "..", "a . b", "one", "two", ".", "B: y", "."}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("lines: %q\nwant:  %q", got, want)
	}
}

func TestSetHeader(t *testing.T) {
	n := 0
	f := New[none](Options{})
	f.SetHeader("X-Class", func(*Session[none]) string { n++; return fmt.Sprintf("dynamic\r\n%d \xff", n) })
	f.SetHeader("X-None", func(*Session[none]) string { return "" })
	got := through(t, f, "0.7", []string{
		"Received: from x", "\tby y", "X-CLASS: forged", "\tand more", " and more", "x-class : forged", ".X-Class: forged", ". and more", "X-Class-2: kept", "X-None: forged",
		"X-Class no field", "Subject: x", "X-Class:", "", "X-Class: in the text", ".",
		"X-Class: forged", "\tmore", "Subject: y", ".",
		"", "X-Class: in the text", ".",
	})
	want := []string{
		"X-Class: dynamic  1 ?", "Received: from x", "\tby y", "X-Class-2: kept", "X-Class no field", "Subject: x", "", "X-Class: in the text", ".",
		"X-Class: dynamic  2 ?", "Subject: y", ".",
		"X-Class: dynamic  3 ?", "", "X-Class: in the text", ".",
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("lines: %q\nwant:  %q", got, want)
	}
}

// AddHeader leaves fields of that name where they are.
func TestAddHeader(t *testing.T) {
	f := New[none](Options{})
	f.AddHeader("X-Score", func(*Session[none]) string { return "42" })
	f.SetHeader("X-Class", func(*Session[none]) string { return "" })
	got := through(t, f, "0.7", []string{"X-Score: 7", " more", "X-Class: forged", "Subject: x", "", "text", ".", "."})
	want := []string{"X-Score: 42", "X-Score: 7", " more", "Subject: x", "", "text", ".", "X-Score: 42", "."}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("lines: %q\nwant:  %q", got, want)
	}
}

// Lines of any length are read, however the input is cut.
func TestReader(t *testing.T) {
	var in bytes.Buffer
	var want []int
	for _, n := range []int{0, 1, 100, bufferSize - 300, bufferSize, 3*bufferSize + 1, 10 << 20, 5, maxLine - 200, 7, maxLine + 5*bufferSize, 9} {
		fmt.Fprintf(&in, "%s\n", ask(1, Noop, strings.Repeat("x", n)))
		want = append(want, min(n, maxLine))
	}
	for _, size := range []int{1000, bufferSize, 1 << 30} {
		var got []int
		f := New[none](Options{Log: slog.New(slog.DiscardHandler)})
		f.On(Noop, func(_ *Session[none], r Request) Response { got = append(got, len(r.Arg)); return Proceed() })
		var out bytes.Buffer
		input := io.MultiReader(strings.NewReader("config|ready\n"+connect(1)+"\n"), &pieces{in.Bytes(), size})
		if err := f.Run(t.Context(), input, &out); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) || strings.Count(out.String(), "|proceed\n") != len(want) {
			t.Fatalf("pieces of %d: %d requests, %d answers, want %d", size, len(got), strings.Count(out.String(), "|proceed\n"), len(want))
		}
		for i := range got {
			// Of a line that is too long only the beginning is kept.
			if got[i] != want[i] && (want[i] < maxLine || got[i] < maxLine/2) {
				t.Errorf("pieces of %d: line %d has %d bytes, want %d", size, i+1, got[i], want[i])
			}
		}
	}
}

// pieces reads at most n bytes at a time.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	return n, nil
}

// In the steady state a data line costs no allocation.
func TestDataLineAllocs(t *testing.T) {
	send := dataLines(t)
	if allocs := testing.AllocsPerRun(100, send); allocs > 10 {
		t.Errorf("%.0f allocations for 1000 data lines", allocs)
	}
}

func BenchmarkThousandDataLines(b *testing.B) {
	send := dataLines(b)
	b.ReportAllocs()
	for b.Loop() {
		send()
	}
}

// dataLines starts a filter that passes data lines, and returns a function that
// sends a thousand and waits until they have come back.
func dataLines(t testing.TB) (send func()) {
	in, w := io.Pipe()
	out := make(chan int, 100)
	f := pass()
	f.SetHeader("X-Test", func(*Session[none]) string { return "" })
	done := make(chan struct{})
	go func() { f.Run(context.Background(), in, counter(out)); close(done) }()
	io.WriteString(w, "config|ready\n"+connect(1)+"\n")
	<-out
	lines := []byte(strings.Repeat(ask(1, proto.DataLine, "Lorem ipsum dolor sit amet")+"\n", 1000))
	answer := 1000 * len(data(1, "Lorem ipsum dolor sit amet")+"\n")
	t.Cleanup(func() {
		w.Close()
		<-done
	})
	return func() {
		w.Write(lines)
		for n := 0; n < answer; {
			n += <-out
		}
	}
}

type counter chan int

func (c counter) Write(b []byte) (int, error) { c <- len(b); return len(b), nil }
