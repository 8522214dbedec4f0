package filter

import (
	"slices"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/proto"
)

var fuzzVersions = []proto.Version{proto.V04, proto.V05, proto.V06, proto.V07}

// near returns a line with a run of fill in the middle that is as long as smtpd
// takes, give or take what over says.
func near(limit int, head, fill, tail string, over int) string {
	n := limit + over%300 - len(head) - len(tail)
	if fill == "" || n <= 0 {
		return head + tail
	}
	fill = fill[:min(len(fill), 20)]
	return head + strings.Repeat(fill, n/len(fill)) + fill[:n%len(fill)] + tail
}

// plain is a line as smtpd may send it: no end of line in it, and no dot alone.
func plain(s string) string {
	s = strings.NewReplacer("\x00", "", "\n", "").Replace(s)
	if s == "." {
		return ".."
	}
	return s
}

// FuzzLines: whatever a long line holds, in the header and in the body, a
// receiver reads from its pieces the line that came in.
func FuzzLines(f *testing.F) {
	for _, head := range []string{"", ".", ". ", ".\t", "..", " ", " .", "A: ", "A: .", "A. . "} {
		for _, fill := range []string{"a", ".", " ", "\t", "a ", ". ", "a.\r"} {
			f.Add(head, fill, ".x", 1, uint8(2))
			f.Add(head, fill, " .", -1, uint8(3))
		}
	}
	f.Fuzz(func(t *testing.T, head, fill, tail string, over int, v uint8) {
		if len(head)+len(tail) > 4000 {
			return
		}
		version := fuzzVersions[int(v)%len(fuzzVersions)]
		limit := version.MaxPayload()
		if v < 128 && limit > 10000 {
			limit *= 2 // in three pieces; seldom, because they take long
		}
		long := plain(near(limit, head, fill, tail, over))
		in := []string{"Received: x", "X-A: b", long, "Subject: y", "", long, "RSET", long}
		if !strings.HasPrefix(strings.TrimPrefix(long, "."), " ") && !strings.HasPrefix(strings.TrimPrefix(long, "."), "\t") {
			in[2] = plain("A:" + long)
		}
		if in[2] == "" || in[2] == ".." {
			return // ends the header here, or is a dot there
		}
		o := Lines{version: version}
		for i, l := range in {
			o.header = i < 4
			o.Put([]byte(l))
		}
		o.end()
		out := strings.Split(strings.TrimSuffix(string(o.buf), "\n"), "\n")
		if out[len(out)-1][len(dataPrefix(version)):] != "." {
			t.Fatalf("the message ends with %q", out[len(out)-1])
		}
		out = out[:len(out)-1]
		for i := range out {
			out[i] = out[i][len(dataPrefix(version)):]
		}
		if err := filtertest.SameMessage(int(version.Minor), in, out); err != nil {
			t.Fatalf("0.%d: %v\nfrom %q", version.Minor, err, abbreviate([]string{long}))
		}
	})
}

func dataPrefix(v proto.Version) string {
	return strings.TrimSuffix(string(proto.AppendDataLine(nil, v, proto.ID{}, proto.ID{})), "\n")
}

// FuzzMessage: whatever messages come in a stream, a receiver reads each of them
// once, with the filter's field and without forged ones.
func FuzzMessage(f *testing.F) {
	f.Add("Received: x\n\nhello\n..\n", ". ", "a", ".", 3, uint8(2))
	f.Add("Subject: x\nX-Test: forged\n more\n", " ", ".", "\r", 1, uint8(6))
	f.Add("A: b\n.X-Test: forged\n. more\n", ". ", ". ", "\r", 1, uint8(13))
	f.Add("", "", "", "", 0, uint8(1))
	versions := []string{"0.4", "0.5", "0.6", "0.7"}
	f.Fuzz(func(t *testing.T, text, head, fill, tail string, over int, v uint8) {
		if len(text)+len(head)+len(tail) > 4000 {
			return
		}
		version, limit := versions[v%4], 1997
		if v >= 248 {
			limit = 65485 // seldom, because it takes long
		}
		lines := strings.Split(text, "\n")
		lines[int(v)%len(lines)] = near(limit, head, fill, tail, over)
		for i := range lines {
			lines[i] = plain(lines[i])
		}
		flt := New[none](Options{})
		flt.SetHeader("X-Test", func(*Session[none]) string { return "ok" })
		if v&8 != 0 {
			flt.OnDataLine(func(_ *Session[none], line []byte, out *Lines) { out.Put(line) })
		}
		got := through(t, flt, version, slices.Concat(lines, []string{"."}, lines, []string{"."}))
		for range 2 {
			end := slices.Index(got, ".")
			if end < 1 {
				t.Fatalf("no message in %q", abbreviate(got))
			}
			if got[0] != "X-Test: ok" {
				t.Fatalf("the message begins with %q", got[0])
			}
			out := got[1:end]
			got = got[end+1:]
			if err := filtertest.SameMessage(int(v%4)+4, lines, out); err != nil {
				t.Fatalf("%s: %v\nfrom %q\nto   %q", version, err, abbreviate(lines), abbreviate(out))
			}
			out, _ = filtertest.Received(out)
			for _, l := range out {
				if l == "" {
					break
				}
				if name, _, ok := strings.Cut(l, ":"); ok && strings.EqualFold(strings.TrimRight(name, " \t"), "X-Test") {
					t.Fatalf("a forged field has passed: %q", l)
				}
			}
		}
		if len(got) > 0 {
			t.Fatalf("after the messages: %q", abbreviate(got))
		}
	})
}
