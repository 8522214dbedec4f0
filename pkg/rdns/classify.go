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
//     number their machines by the last two. Beside a weaker word (ip, pool) they
//     make a name generic and no more.
//   - A word is a whole word, left of the registered domain: dynamics is not
//     dynamic, and mail.cable.co.uk belongs to somebody called cable. Nor is it a
//     part of a random id: vps-611bb412.
//   - A name with the address whose domain belongs to a company that sells access
//     lines (telecom, fibra) is one of its lines, unless it rents out machines.
//   - A word for mail outweighs all: 66-220-155-156.mail-mail.facebook.com.
//   - Without the address it takes two different words and a number, or one word
//     that says it outright (dynamic, dialup, pppoe), or one and the last byte of the
//     address alone (ppp151).
//   - When in doubt, the name is proper.
//
// A Judge takes the whole decision about a client, with files of expressions to
// allow or to match (Patterns), with the DNS where the mail server's word cannot
// be relied on, and with the name in HELO.
package rdns

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
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
// The class is Mismatch only for a name that got the reverse zone of addr appended.
func Classify(addr netip.Addr, name string) Verdict {
	name = normal(name)
	if name == "" || name == Unknown {
		return Verdict{None, "no name"}
	}
	addr = addr.Unmap()
	if strings.HasSuffix(name, ".arpa") {
		if host := beforeZone(addr, name); host != "" {
			v := Classify(addr, host)
			if v.Class == Proper {
				v = Verdict{Mismatch, "a name before its reverse zone"}
			}
			return v
		}
	}
	if why := bogus(name); why != "" {
		return Verdict{Bogus, why}
	}
	e := embed(addr, name)
	var f findings
	if !e.enough {
		f.read(name, false)
		if !f.suspicious(addr, name, e) {
			return Verdict{Class: Proper}
		}
	}
	reg := registered(name)
	switch {
	case e.end > reg && e.enough: // the registered domain itself holds the address
		f.read(name[:reg+strings.IndexByte(name[reg:]+".", '.')], true)
	case e.enough:
		f.read(name[:reg], true)
	case f.last > reg:
		f = findings{}
		f.read(name[:reg], false)
	}
	return decide(addr, name, reg, e, &f)
}

// beforeZone gives the host name that stands before the reverse zone of addr, as
// when a zone file lacks the last dot of a name: mail.example.org.100.51.198.in-addr.arpa.
// The zone may be any that addr lies in, and one cut out of it (RFC 2317), of
// which the label has a digit. It is "" if nothing but a part of the zone is there.
func beforeZone(addr netip.Addr, name string) string {
	var digits []string
	host, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if ok && addr.Is4() {
		digits = strings.Split(addr.String(), ".")
	} else if host, ok = strings.CutSuffix(name, ".ip6.arpa"); ok && addr.Is6() {
		digits = strings.Split(hex.EncodeToString(addr.AsSlice()), "")
	}
	for _, d := range digits {
		rest, ok := strings.CutSuffix(host, "."+d)
		if !ok {
			break
		}
		host = rest
	}
	top := host[strings.LastIndexByte(host, '.')+1:]
	if strings.ContainsAny(top, "0123456789") && !strings.HasPrefix(top, "xn--") {
		host = strings.TrimSuffix(host[:len(host)-len(top)], ".")
		top = host[strings.LastIndexByte(host, '.')+1:]
	}
	if top == "arpa" || len(top) < 2 || strings.ContainsAny(top, "0123456789") && !strings.HasPrefix(top, "xn--") || bogus(host) != "" {
		return ""
	}
	return host
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
	case dots == 0:
		return "one label"
	case digits:
		if _, err := netip.ParseAddr(name); err == nil {
			return "an address"
		}
		return "a numeric top-level domain"
	case strings.HasSuffix(name, ".in-addr.arpa"), strings.HasSuffix(name, ".ip6.arpa"):
		return "a reverse zone"
	}
	return ""
}

// findings is what the words of a name say.
type findings struct {
	word    [numKinds]string // the first word of each kind
	second  string           // another word of kind access
	label   bool             // a word of kind dynamic is a whole label
	outside bool             // a word of kind access stands right of the first label, or is no part of an id there
	first   int              // letters of such words, and of kind dynamic, in the first label
	modem   bool             // dsl or ppp is such a word
	mac     bool             // a hardware address after a few letters
	last    int              // where the last word of any kind ends
}

// suspicious tells whether the name could be flagged although e is not enough.
func (f *findings) suspicious(addr netip.Addr, name string, e embedding) bool {
	w := &f.word
	return f.mac || w[dynamic] != "" || w[access] != "" || w[customer] != "" || w[static] != "" || w[blank] != "" ||
		(e.near || e.label || e.other || isPerson(w[line], name, lastByte(addr, name))) && !isMail(name)
}

// weight adds up the words for access lines.
func (f *findings) weight() int {
	n := worth(f.word[access]) + worth(f.second)
	if f.word[dynamic] != "" {
		n += 3
	}
	if f.word[line] != "" || f.word[customer] != "" {
		n++
	}
	return n
}

// worth is the weight of a word of kind access. Two letters are soon found in
// names that mean something else, as those of towns.
func worth(word string) int {
	return min(max(len(word)-1, 0), 2)
}

// read collects the words of name, which is lower-case. Unless the name is known
// to hold the address, a word that accuses must not be a part of a random id.
func (f *findings) read(name string, embedded bool) {
	labels, ace := 0, strings.HasPrefix(name, "xn--")
	for start, end := 0, 0; start < len(name); start = end + 1 {
		end = start
		for end < len(name) && name[end] != '.' && name[end] != '-' && name[end] != '_' {
			end++
		}
		mac := isMAC(name[start:end])
		if mac {
			f.mac = true
			f.last = end
		}
		proved := embedded || mac
		for i := start; i < end; i++ {
			if !isLetter(name[i]) {
				continue
			}
			j := i + 1
			for j < end && isLetter(name[j]) {
				j++
			}
			if j-i > 1 {
				word := name[i:j]
				k := kindOf(word)
				if k == noKind {
					k = kindOfParts(word, embedded || j-i == end-start, embedded || j-i < end-start)
				}
				// A label in another script has parts of words at most.
				if k.accuses() && (ace || !standsAlone(name[start:i], word, name[j:end], proved)) {
					k = noKind
				}
				if k != noKind {
					f.add(k, word, labels)
					f.last = j
					if k == dynamic && (i == 0 || name[i-1] == '.') && (j == len(name) || name[j] == '.') {
						f.label = true
					}
				}
			}
			i = j - 1
		}
		if end < len(name) && name[end] == '.' {
			labels++
			ace = strings.HasPrefix(name[end+1:], "xn--")
		}
	}
}

// standsAlone tells whether a word is no part of an id, as in 8cpe3f2a: it is all of
// a token but a number before or after it. Two letters may have one digit after
// them and no more, for ids have few letters; four may have numbers on both
// sides. When the address proves that the name is made of it, there may be more.
func standsAlone(before, word, after string, proved bool) bool {
	switch {
	case len(word) == 2:
		return before == "" && (after == "" || len(after) == 1 && isDigit(after[0]))
	case proved:
		return true
	case len(word) == 3:
		return before == "" && allDigits(after) || after == "" && allDigits(before)
	case isDistinct(word) && before == "" && len(after) > 1 && isDigit(after[0]) && isDigit(after[1]):
		return true // ipbf567marunouchi
	}
	return allDigits(before) && allDigits(after)
}

// isDistinct tells whether a word is found in random ids as good as never.
func isDistinct(word string) bool {
	return len(word) > 4 && kindOf(word) != noKind || len(word) == 4 && strings.HasPrefix(word, "ip")
}

// add notes a word that stands right of so many labels.
func (f *findings) add(k kind, word string, labels int) {
	switch {
	case f.word[k] == "":
		f.word[k] = word
	case k == access && word != f.word[k] && f.second == "":
		f.second = word
	}
	if k == access && (labels > 0 || isDistinct(word) || word == "adsl" || word == "vdsl") {
		f.outside = true
	}
	if labels == 0 && (k == access || k == dynamic) {
		f.first += len(word)
		switch word {
		case "dsl", "adsl", "vdsl", "ppp":
			f.modem = true
		default:
			f.modem = f.modem || glued(word) == access
		}
	}
}

func allDigits(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' }

// isMAC tells whether s is 12 hex digits after one to five letters
// (cpe00fc8d49d843), or the 16 of a cable modem (s0106bcd165f5f2c3). Without a
// letter among them they may be a date. As random ids have many forms, too, the
// letters must be a word of kind access, or the first byte zero (h0002a5d76857), as
// that of old modems is, and the letters none of a hex id.
func isMAC(s string) bool {
	modem := len(s) == 17 && s[0] == 's' && strings.HasPrefix(s[1:], "01")
	if modem {
		s = s[:1] + s[5:]
	}
	n := len(s) - 12
	if n < 1 || n > 5 {
		return false
	}
	hex := true
	for i := range n {
		if !isLetter(s[i]) {
			return false
		}
		hex = hex && nibble(s[i]) >= 0
	}
	if hex || !modem && !strings.HasPrefix(s[n:], "00") && kindOf(s[:n]) != access {
		return false
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
	domain := name[reg:]
	rented := func() bool { return w[hosting] != "" || isHosting(domain) }

	pair := e.octets >= 2 && (w[dynamic] != "" || w[access] != "" || e.near && w[customer] != "" ||
		(e.near || e.form == "run") && strings.HasPrefix(w[static], "static"))
	embedded := e.enough || pair
	company := ""
	if e.enough && weight == 0 || !embedded && (e.near || e.other) {
		company = accessWord(domain)
	}
	last := ""
	if !embedded && (w[customer] != "" || w[line] != "") {
		if last = lastByte(addr, name); w[customer] == "" && !isPerson(w[line], name, last) {
			last = ""
		}
	}
	hint := !embedded && f.hint(e, last != "", company != "")
	mac := f.mac && (weight > 0 || !rented())
	if !embedded && !mac && !hint && w[blank] == "" && name[:max(reg-1, 0)] != "static" &&
		!spoken(addr, name, reg, f, rented) {
		return Verdict{Class: Proper}
	}
	certain := e.enough && weight >= 2 // mx-ll-171-6-9-7.dynamic.3bb.in.th
	switch {
	case isMail(name[:reg]), isMail(domain) && !certain:
		return Verdict{Proper, "exonerated=mail"}
	case w[post] != "" && !certain:
		return Verdict{Proper, "exonerated=" + w[post]}
	case w[server] != "" && !embedded:
		return Verdict{Proper, "exonerated=" + w[server]}
	}

	// The first line that holds decides.
	class, k := Generic, noKind
	switch {
	case w[dynamic] != "":
		class, k = Dynamic, dynamic
	case (embedded || hint) && w[access] == "" && rented():
		class, k = Hosting, hosting
	case w[static] != "":
		class, k = Static, static
	case !hint && strings.Contains(domain, "business"):
		class, k = Static, access
	case w[access] != "":
		class, k = Dynamic, access
	case hint: // too little to junk a client
		for _, k = range [...]kind{line, customer, marker} {
			if w[k] != "" {
				break
			}
		}
	case w[customer] != "":
		class, k = Dynamic, customer
	case w[line] != "":
		class, k = Dynamic, line
	case mac:
		class = Dynamic
	case e.end > reg: // 20.ip-51-38-40.eu
		class, k = Hosting, hosting
	case company != "":
		class = Dynamic
	case w[blank] != "":
		k = blank
	}

	var proof, word string
	switch {
	case embedded, hint && e.octets > 0:
		proof = "embed=" + strconv.Itoa(e.octets) + " " + e.form
	case mac:
		proof = "embed=mac"
	case e.other:
		proof = "embed=other"
	case last != "":
		proof = "embed=last"
	}
	switch {
	case w[k] == "" && company != "" && class != Hosting:
		word = "company=" + company
	case w[k] == "":
	case k == access && f.second != "":
		word = "word=" + w[k] + "," + f.second
	default:
		word = "word=" + w[k]
	}
	if proof != "" && word != "" {
		proof += "; "
	}
	return Verdict{class, proof + word}
}

// hint tells whether there is a part of the address, or another one, with too
// little beside it to junk a client. last means that there is the last byte and a
// word for a person, company that the domain sells access lines.
func (f *findings) hint(e embedding, last, company bool) bool {
	w := &f.word
	switch {
	case last: // nas3-user93, a17.abo
		return true
	case e.other: // a name left from another address
		return f.weight() > 0 || w[static] != "" || company
	case e.octets < 2:
		return false
	case e.bare: // 113-11.north
		return true
	case w[line] != "": // host108-228.pool8258
		return e.label || e.near
	case w[marker] != "": // ip-55-151
		return e.label
	}
	return company && (e.label && e.near || e.ends) // host233-35.mgtelecom, cs144080.somecable
}

// spoken tells whether the words alone, left of the registered domain, are
// enough: three points and a number, or a label that is the word dynamic. Four
// digits in the first label are a point, and so is the last byte of the address,
// if the word stands elsewhere or is too long to be a part of an id. Nothing in
// the first label but a word and that byte is enough.
//
// The name of a rented machine takes four points, whatever else it says.
func spoken(addr netip.Addr, name string, reg int, f *findings, rented func() bool) bool {
	left := name[:reg]
	weight := f.weight()
	switch {
	case weight >= 5:
		return true
	case weight < 2:
		return false
	case f.label || len(left) == len(name):
		return !rented()
	}
	first, _, _ := strings.Cut(left, ".")
	digits, letters := 0, 0
	for i := range len(first) {
		if isDigit(first[i]) {
			digits++
		} else if isLetter(first[i]) {
			letters++
		}
	}
	last := lastByte(addr, name)
	if f.first > 0 && f.first == letters && (last != "" && digits == len(last) || f.modem && (digits == 2 || digits == 3)) {
		return !rented()
	}
	if f.outside && (last != "" || digits >= 4) {
		weight++
	}
	return weight >= 3 && strings.ContainsAny(left, "0123456789") && (weight >= 4 || !rented())
}

// isPerson tells whether the first label of name ends with a word for a person
// and number: nas3-user93.
func isPerson(word, name, number string) bool {
	first, _, _ := strings.Cut(name, ".")
	before, ok := strings.CutSuffix(first, number)
	return ok && word != "" && number != "" && strings.HasSuffix(before, word) &&
		(strings.HasPrefix(word, "us") || strings.HasPrefix(word, "cli") || strings.HasPrefix(word, "kli") || strings.HasPrefix(word, "ute"))
}

// lastByte gives the number in the first label of name that is the last byte of
// addr, if it is over 9. Smaller ones are in many names.
func lastByte(addr netip.Addr, name string) string {
	if !addr.Is4() || addr.As4()[3] < 10 {
		return ""
	}
	for i := 0; i < len(name) && name[i] != '.'; i++ {
		if !isDigit(name[i]) {
			continue
		}
		j := i + 1
		for j < len(name) && isDigit(name[j]) {
			j++
		}
		if j-i <= 3 && int(octet(name[i:j])) == int(addr.As4()[3]) {
			return name[i:j]
		}
		i = j - 1
	}
	return ""
}
