package filtertest

import (
	"fmt"
	"slices"
	"strings"
)

// Received returns what a receiver reads from lines of a message as they are sent: without the dot at the
// beginning that is only there to be taken off (RFC 5321 section 4.5.2). What follows a lone dot is no
// message any more; after is true if there is such a line.
func Received(sent []string) (text []string, after bool) {
	for i, l := range sent {
		if l == "." {
			return text, i < len(sent)-1
		}
		text = append(text, strings.TrimPrefix(l, "."))
	}
	return text, false
}

// maxPayload is the longest data line, in bytes, that smtpd takes from a filter.
func maxPayload(minor int) int {
	if minor < 7 {
		return maxOldData
	}
	return maxLine - len("filter-dataline|0123456789abcdef|0123456789abcdef|")
}

// SameMessage returns an error unless a receiver reads from out the message that it would read from in, line by
// line, but for what a filter has to do: lines longer than protocol 0.minor takes come in pieces, which give the line
// when they are joined; a piece in the header begins with a space or tab, its own or one more (a fold, RFC 5322
// section 2.2.3), and spaces at the end of such a line may be lost. Header fields of ownFields may be put in, and others
// of these names left out. Both are as sent, dots doubled, without the final dot.
//
// It follows all ways to read out, so it needs to know nothing of how a line was split.
func SameMessage(minor int, in, out []string) error {
	limit := maxPayload(minor)
	for i, l := range out {
		if l == "." {
			return fmt.Errorf("line %d of %d is a lone dot: the message ends there", i+1, len(out))
		}
		if len(l) > limit {
			return fmt.Errorf("line %d has %d bytes, over %d", i+1, len(l), limit)
		}
	}
	in, _ = Received(in)
	out, _ = Received(out)
	return SameText(minor, in, out)
}

// SameText is SameMessage of lines as a receiver has them, without the dots of the transport.
func SameText(minor int, in, out []string) error {
	n := explain(in, maxPayload(minor), out)
	if n < 0 {
		return nil
	}
	line := "the end"
	if n < len(out) {
		line = brief(out[n])
	}
	return fmt.Errorf("the message is changed at line %d: %s", n+1, line)
}

// reading is how far a reading of the output has come.
type reading struct {
	line, off int  // next line of the input, and how much of it is there
	inserted  bool // in a field that was put in
}

// explain returns the index of the first line of out that no reading explains, or -1.
func explain(in []string, limit int, out []string) int {
	body := 0 // the empty line, which ends the header
	for body < len(in) && in[body] != "" {
		body++
	}
	now := make(map[reading]bool)
	add := func(set map[reading]bool, r reading) {
		for !set[r] {
			set[r] = true
			if r.off > 0 {
				rest := in[r.line][r.off:]
				if rest != "" && (r.line >= body || strings.Trim(rest, " \t") != "") {
					return
				}
				r = reading{line: r.line + 1}
				continue
			}
			if r.line >= body || !own(in[r.line]) {
				return
			}
			for r.line++; r.line < body && blank(in[r.line]); r.line++ {
			}
			r.inserted = false
		}
	}
	add(now, reading{})
	for n, o := range out {
		next := make(map[reading]bool)
		for r := range now {
			header := r.line < body
			if r.off > 0 {
				pieces := []string{o}
				if header && blank(o) {
					pieces = []string{o, o[1:]}
				} else if header {
					pieces = nil
				}
				for _, p := range pieces {
					if p != "" && strings.HasPrefix(in[r.line][r.off:], p) {
						add(next, reading{line: r.line, off: r.off + len(p)})
					}
				}
				continue
			}
			if r.line < len(in) {
				if o == in[r.line] {
					add(next, reading{line: r.line + 1})
				} else if len(in[r.line]) >= limit && o != "" && strings.HasPrefix(in[r.line], o) {
					add(next, reading{line: r.line, off: len(o)})
				}
			}
			if r.line <= body && (own(o) && (r.line == len(in) || !blank(in[r.line])) || r.inserted && blank(o)) {
				add(next, reading{line: r.line, inserted: true})
			}
		}
		if len(next) == 0 {
			return n
		}
		now = next
	}
	if now[reading{line: len(in)}] || now[reading{line: len(in), inserted: true}] {
		return -1
	}
	return len(out)
}

// ownFields are the header fields that our filters, and those of the tests, may put in and leave out.
var ownFields = []string{"X-DNSBL-Score", "X-Greylist", "X-Rdns-Class", "X-SenderScore", "X-Class", "X-Test"}

// own reports whether a line begins one of the ownFields.
func own(s string) bool {
	name, _, ok := strings.Cut(s, ":")
	name = strings.TrimRight(name, " \t")
	return ok && slices.ContainsFunc(ownFields, func(f string) bool { return strings.EqualFold(f, name) })
}
