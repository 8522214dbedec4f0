// Package rdns judges a mail client by its reverse name, the PTR record of its
// address.
//
// Whoever runs a mail server names it: mail.example.org. Nobody names the
// machines of an access network. The provider makes one name per address, and
// the surest way is to write the address into it: p5ddb3ec9.dip0.t-ipconnect.de
// is 93.219.62.201. Infected homes send spam from such names, and hardly any
// other mail comes from them.
//
// Classify compares a name with the client's own address, in all the forms that
// providers use. That keeps it from errors: mail-40133.protonmail.ch,
// mx0a-0031df01.pphosted.com and smtp-2024-01-15-3 hold numbers too, but not
// their address. Its rules:
//
//   - Three of the four bytes of the address must be in the name. Two count
//     only beside a word of access networks (adsl, cust), because large senders
//     number their machines by the last two.
//   - A word is a whole word, left of the registered domain: dynamics is not
//     dynamic, and mail.cable.co.uk belongs to somebody called cable.
//   - A word for mail outweighs all: 66-220-155-156.mail-mail.facebook.com.
//   - Without the address it takes two different words and a number, or one word
//     that says it outright (dynamic, dialup, pppoe).
//   - When in doubt, the name is proper.
//
// A Judge takes the whole decision about a client, with files of expressions to
// allow or to match (Patterns), with the DNS where the mail server's word cannot
// be relied on, and with the name in HELO.
package rdns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// A Class says what kind of machine a reverse name speaks of.
type Class uint8

const (
	None     Class = iota // no name
	Bogus                 // not a host name, or one that is nobody's: localhost, one label, in-addr.arpa
	Mismatch              // a name that does not resolve to the address; only a Judge finds it
	Dynamic               // an access line: home, mobile, dial-up
	Generic               // the address written as a name, nothing known of the line
	Static                // an access line whose address stays
	Hosting               // a rented machine with the name it came with
	Proper                // a name that somebody chose, and everything in doubt
)

var classNames = [...]string{"none", "bogus", "mismatch", "dynamic", "generic", "static", "hosting", "proper"}

// String gives the name of the class: none, bogus, mismatch, dynamic, generic,
// static, hosting or proper.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "class(" + strconv.Itoa(int(c)) + ")"
}

// ParseClass is the inverse of String.
func ParseClass(s string) (Class, error) {
	for i, name := range classNames {
		if s == name {
			return Class(i), nil
		}
	}
	return None, fmt.Errorf("unknown class %q", s)
}

// A Verdict is a class and the reason for it.
type Verdict struct {
	Class Class

	// Evidence is one line of printable ASCII for logs and headers, such as
	// "embed=4 hex; word=dyn". It is empty for a proper name without anything
	// suspicious.
	Evidence string
}

// Unknown is what smtpd reports in the place of a name it did not find.
const Unknown = "<unknown>"

// Classify says what name tells about the client at addr. The name may have a
// trailing dot and upper-case letters, and be empty or Unknown, which is None.
// The class is never Mismatch.
func Classify(addr netip.Addr, name string) Verdict {
	name = normal(name)
	if name == "" || name == Unknown {
		return Verdict{None, "no name"}
	}
	if why := bogus(name); why != "" {
		return Verdict{Bogus, why}
	}
	e := embed(addr.Unmap(), name)
	var f findings
	f.read(name)
	if !e.enough && !f.suspicious() {
		return Verdict{Class: Proper}
	}
	reg := registered(name)
	if f.last > reg {
		f = findings{}
		f.read(name[:reg])
	}
	return decide(addr.Unmap(), name, reg, e, &f)
}

// normal removes a trailing dot, and upper case in ASCII only: the sign for
// Kelvin is no k in the DNS.
func normal(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return name
}

// bogus says why name cannot be the name of a host in the DNS, "" if it can.
func bogus(name string) string {
	if len(name) > 253 {
		return "too long"
	}
	dots, start, digits := 0, 0, true
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if i == start || i-start > 63 {
				return "not a host name"
			}
			if i < len(name) {
				dots++
				start, digits = i+1, true
			}
			continue
		}
		switch c := name[i]; {
		case isDigit(c):
		case c >= 'a' && c <= 'z', c == '-', c == '_':
			digits = false
		default:
			return "not a host name"
		}
	}
	switch {
	case name == "localhost", strings.HasPrefix(name, "localhost."), strings.HasSuffix(name, ".localhost"),
		strings.HasSuffix(name, ".localdomain"):
		return "localhost"
	case digits:
		return "an address"
	case dots == 0:
		return "one label"
	case strings.HasSuffix(name, ".in-addr.arpa"), strings.HasSuffix(name, ".ip6.arpa"):
		return "a reverse zone"
	}
	return ""
}

// registered gives the offset in name of the domain that was registered: the
// public suffix and one label. Suffixes of companies that let names below their
// own do not count. It is len(name) when nothing was registered: in
// hn.kd.ny.adsl the top-level domain is a word of kind access.
func registered(name string) int {
	suffix, icann := publicsuffix.PublicSuffix(name)
	for !icann {
		_, parent, ok := strings.Cut(suffix, ".")
		if !ok {
			if k := kindOf(suffix); k == dynamic || k == access {
				return len(name)
			}
			break
		}
		suffix, icann = publicsuffix.PublicSuffix(parent)
	}
	end := len(name) - len(suffix) - 1
	if end <= 0 {
		return 0
	}
	return 1 + strings.LastIndexByte(name[:end], '.')
}

// findings is what the words of a name say.
type findings struct {
	word    [numKinds]string // the first word of each kind
	second  string           // another word of kind access
	label   bool             // a word of kind dynamic is a whole label
	outside bool             // a word of kind access stands right of the first label
	mac     bool             // a hardware address after a few letters
	last    int              // where the last word of any kind ends
}

// suspicious tells whether anything but an address could flag the name.
func (f *findings) suspicious() bool {
	w := &f.word
	return f.mac || w[dynamic] != "" || w[access] != "" || w[customer] != "" || w[static] != "" || w[blank] != ""
}

// weight adds up the words for access lines.
func (f *findings) weight() int {
	n := 0
	if f.word[dynamic] != "" {
		n += 3
	}
	if f.word[access] != "" {
		n += 2
	}
	if f.second != "" {
		n += 2
	}
	if f.word[line] != "" || f.word[customer] != "" {
		n++
	}
	return n
}

// read collects the words of name, which is lower-case.
func (f *findings) read(name string) {
	labels, token := 0, 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' || name[i] == '-' || name[i] == '_' {
			if isMAC(name[token:i]) {
				f.mac = true
				f.last = i
			}
			token = i + 1
			if i < len(name) && name[i] == '.' {
				labels++
			}
			continue
		}
		if !isLetter(name[i]) {
			continue
		}
		j := i + 1
		for j < len(name) && isLetter(name[j]) {
			j++
		}
		if j-i > 1 {
			w := name[i:j]
			if k := kindOf(w); k != noKind {
				f.last = j
				switch {
				case f.word[k] == "":
					f.word[k] = w
				case k == access && w != f.word[k] && f.second == "":
					f.second = w
				}
				if k == access && labels > 0 {
					f.outside = true
				}
				if k == dynamic && (i == 0 || name[i-1] == '.') && (j == len(name) || name[j] == '.') {
					f.label = true
				}
			}
		}
		i = j - 1
	}
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' }

// isMAC tells whether s is 12 hex digits after one to five letters
// (h0002a5d76857, cpe00fc8d49d843), or the 16 of a cable modem
// (s0106bcd165f5f2c3). Without a letter among them they may be a date.
func isMAC(s string) bool {
	if len(s) == 17 && s[0] == 's' && strings.HasPrefix(s[1:], "01") {
		s = s[:1] + s[5:]
	}
	n := len(s) - 12
	if n < 1 || n > 5 {
		return false
	}
	for i := range n {
		if !isLetter(s[i]) {
			return false
		}
	}
	digits := 0
	for i := n; i < len(s); i++ {
		if nibble(s[i]) < 0 {
			return false
		}
		if isDigit(s[i]) {
			digits++
		}
	}
	return digits >= 3 && digits < 12
}

// decide weighs what was found. The registered domain begins at name[reg:].
func decide(addr netip.Addr, name string, reg int, e embedding, f *findings) Verdict {
	w := &f.word
	weight := f.weight()

	pair := e.octets >= 2 && (w[dynamic] != "" || w[access] != "" ||
		e.near && (w[customer] != "" || strings.HasPrefix(w[static], "static")))
	embedded := e.enough || pair
	mac := f.mac && (weight > 0 || w[hosting] == "")
	if !embedded && !mac && w[blank] == "" && name[:max(reg-1, 0)] != "static" &&
		!(e.other && weight >= 2) && !spoken(addr, name, reg, f) {
		return Verdict{Class: Proper}
	}
	domain := name[reg:]
	certain := e.enough && weight >= 2 // mx-ll-171-6-9-7.dynamic.3bb.in.th
	switch {
	case isMail(name[:reg]), isMail(domain) && !certain:
		return Verdict{Proper, "exonerated=mail"}
	case w[post] != "" && !certain:
		return Verdict{Proper, "exonerated=" + w[post]}
	case w[server] != "" && !embedded:
		return Verdict{Proper, "exonerated=" + w[server]}
	}

	class, k := Generic, noKind
	switch {
	case w[dynamic] != "":
		class, k = Dynamic, dynamic
	case embedded && w[access] == "" && (w[hosting] != "" || e.end > reg || isHosting(domain)):
		class, k = Hosting, hosting
	case w[static] != "":
		class, k = Static, static
	case strings.Contains(domain, "business"):
		class, k = Static, access
	case w[access] != "":
		class, k = Dynamic, access
	case w[customer] != "":
		class, k = Dynamic, customer
	case w[line] != "":
		class, k = Dynamic, line
	case mac:
		class = Dynamic
	case w[blank] != "":
		k = blank
	}

	var evidence string
	switch {
	case embedded:
		evidence = "embed=" + strconv.Itoa(e.octets) + " " + e.form
	case mac:
		evidence = "embed=mac"
	case e.other:
		evidence = "embed=other"
	}
	if word := w[k]; word != "" {
		if evidence != "" {
			evidence += "; "
		}
		evidence += "word=" + word
		if k == access && f.second != "" {
			evidence += "," + f.second
		}
	}
	return Verdict{class, evidence}
}

// spoken tells whether the words alone, left of the registered domain, are
// enough: three points and a number, or a label that is the word dynamic. Four
// digits in the first label are a point, and so is a number there that is the
// last byte of the address.
func spoken(addr netip.Addr, name string, reg int, f *findings) bool {
	left := name[:reg]
	weight := f.weight()
	if f.label || weight >= 5 || len(left) == len(name) {
		return true
	}
	if weight < 2 {
		return false
	}
	last := -1
	if addr.Is4() && f.outside {
		last = int(addr.As4()[3])
	}
	numbers, first, point, inFirst := false, 0, false, true
	for i := 0; i < len(left); i++ {
		if left[i] == '.' {
			inFirst = false
		}
		if !isDigit(left[i]) {
			continue
		}
		j := i + 1
		for j < len(left) && isDigit(left[j]) {
			j++
		}
		numbers = true
		if inFirst {
			first += j - i
			if last >= 10 && j-i <= 3 && octet(left[i:j]) == last {
				point = true
			}
		}
		i = j - 1
	}
	if point || first >= 4 {
		weight++
	}
	return numbers && weight >= 3
}
