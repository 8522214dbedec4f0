package dnsbl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Subject is what is asked about.
type Subject byte

const (
	IP   Subject = 1 << iota // the client's address
	RDNS                     // its reverse name
	Helo                     // the name it gave in HELO
	From                     // the domain of the sender
)

// A List is one entry of a configuration: a zone, and what its answers are
// worth.
type List struct {
	Label  string // shown; has no key
	Weight int    // -100 to 100, added once when an answer matches
	Match  Match
	Ask    Subject // one or more
	V4, V6 bool    // the addresses asked about
	Block  bool    // a hit is enough to block
	Junk   bool    // a hit is enough to junk
	TXT    bool    // the reason is asked for and logged
	Dead   string  // why the zone is not asked, "" if it is
	Odd    string  // what is probably wrong with the list, and what to do; "" if nothing

	zone     string // in lower case; may have a key
	info     known
	matched  bool // a match was given
	weighted bool // and a weight
	plain    bool // weighs 1 because it stands in a value of postscreen's
}

// Zone returns the zone without its key.
func (l List) Zone() string { return mask(l.zone) }

// maxZone leaves room for an IPv6 address within the 253 bytes of a name.
const maxZone = 253 - 64

// Parse reads the lines of a file, or one argument of a command: lists separated
// by newlines, blanks or commas, each of them
//
//	[label@] zone [=match] [*weight] [+option]...
//
// without blanks. Options are ip, rdns, helo, from, v4, v6, block, junk, txt.
// Match and weight of a zone that is known default to what is right for it, of
// others to any answer and 1.
//
// A value of postscreen_dnsbl_sites is read as postscreen(8) of Postfix reads
// it: a known block list without a weight counts 1, and a known allow list with a
// weight and without a match counts for any answer. Several lists are such a value
// if one of them has a weight or a match, or there is a comma.
//
// A list that cannot be asked, such as one of domains for which no option says
// whose, is Dead: Postfix takes it too, and a value that was pasted must not stop
// the mail server.
//
// The errors, nil if all is well, are those of each line. They name the list,
// without the key.
func Parse(lines ...string) (lists []List, errs []error) {
	theirs := false
	for i, line := range lines {
		var bad []error
		theirs = theirs || strings.Contains(line, ",")
		for token := range strings.FieldsFuncSeq(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) }) {
			l, err := parseList(token)
			if err != nil {
				if len(token) > 300 {
					token = token[:300]
				}
				bad = append(bad, fmt.Errorf("list %s: %w", strconv.QuoteToASCII(Redactor(Keys(token))(token)), err))
				continue
			}
			lists = append(lists, l)
			theirs = theirs || l.weighted || l.matched
		}
		if bad != nil {
			if errs == nil {
				errs = make([]error, len(lines))
			}
			errs[i] = errors.Join(bad...)
		}
	}
	if theirs && len(lists) > 1 {
		for i := range lists {
			lists[i].postscreen()
		}
	}
	return lists, errs
}

// postscreen makes the list one of postscreen_dnsbl_sites.
func (l *List) postscreen() {
	switch known := l.info.weight; {
	case known > 0 && !l.weighted && l.info.kind == addresses:
		l.plain = known != 1
		l.Weight = 1
	case known < 0 && l.weighted && !l.matched:
		// Of block lists, what matches by default is all that they answer; of
		// these it is not, and a client would miss points it has in Postfix.
		l.Match = Match{text: "127.0.0.0/8", prefix: loopback()}
	}
}

// Distinct returns the lists with different labels for different zones: one that
// has the label of another zone before it gets a number, as in zen-2.
func Distinct(lists []List) []List {
	lists = slices.Clone(lists)
	zones := make(map[string]string) // by label
	for i := range lists {
		l := &lists[i]
		label := l.Label
		for n := 2; zones[l.Label] != "" && zones[l.Label] != l.zone; n++ {
			l.Label = fmt.Sprintf("%s-%d", label, n)
		}
		zones[l.Label] = l.zone
	}
	return lists
}

func parseList(s string) (List, error) {
	var l List
	if label, rest, ok := strings.Cut(s, "@"); ok {
		if !validLabel(label) {
			return List{}, errors.New("a label is 1 to 40 letters, digits, dots, hyphens and underscores")
		}
		if slices.Contains(words(), label) {
			return List{}, fmt.Errorf("%s is a word of the log: choose another label", label)
		}
		l.Label, s = mask(label), rest
	}
	end := strings.IndexAny(s, "=*+")
	if end < 0 {
		end = len(s)
	}
	l.zone = strings.ToLower(strings.TrimSuffix(s[:end], "."))
	if !validZone(l.zone) {
		return List{}, errors.New("not a zone")
	}
	if l.Label == "" {
		l.Label = mask(l.zone)
	}
	l.info = lookupZone(l.zone)
	if why := dead(l.zone); why != "" {
		l.Dead = "it is dead, " + why
	}
	l.Weight = l.info.weight

	options := make(map[string]bool)
	for s = s[end:]; s != ""; {
		sign := s[0]
		end := strings.IndexAny(s[1:], "=*+") + 1
		if end == 0 {
			end = len(s)
		}
		value := s[1:end]
		s = s[end:]
		var err error
		switch {
		case sign == '=' && !l.matched:
			l.matched = true
			if l.Match, err = ParseMatch(value); err != nil {
				return List{}, err
			}
		case sign == '*' && !l.weighted && value == "" && len(s) > 1 && s[0] == '+' && '0' <= s[1] && s[1] <= '9': // *+3
			s = "*" + s[1:]
		case sign == '*' && !l.weighted:
			l.weighted = true
			if l.Weight, err = strconv.Atoi(value); err != nil || l.Weight < -100 || l.Weight > 100 {
				return List{}, errors.New("a weight is a number from -100 to 100")
			}
		case sign == '+':
			options[value] = true
		default:
			return List{}, fmt.Errorf("%c more than once", sign)
		}
	}
	return l, l.finish(options)
}

// finish applies options and defaults.
func (l *List) finish(options map[string]bool) error {
	subjects := map[string]Subject{"ip": IP, "rdns": RDNS, "helo": Helo, "from": From}
	flags := map[string]*bool{"v4": &l.V4, "v6": &l.V6, "block": &l.Block, "junk": &l.Junk, "txt": &l.TXT}
	for o := range options {
		switch {
		case subjects[o] != 0:
			l.Ask |= subjects[o]
		case flags[o] != nil:
			*flags[o] = true
		default:
			return errors.New("options are +ip +rdns +helo +from +v4 +v6 +block +junk +txt")
		}
	}
	if l.Ask == 0 && l.info.kind == domains && l.Dead == "" {
		l.Dead = "it lists domains: add +rdns, +helo or +from"
	}
	if l.Ask == 0 {
		l.Ask = IP
	}
	if l.info.kind == domains && l.Ask&IP != 0 && l.Dead == "" {
		return errors.New("lists domains, not addresses")
	}
	if l.info.zone != "" && l.info.kind != domains && l.Ask != IP {
		return errors.New("lists addresses, not domains")
	}
	if l.Ask&IP == 0 && (l.V4 || l.V6) {
		return errors.New("+v4 and +v6 are for addresses")
	}
	if l.Weight < 0 && (l.Block || l.Junk) {
		return errors.New("+block and +junk do not go with a negative weight")
	}
	if !l.V4 && !l.V6 {
		l.V4, l.V6 = l.info.families&ip4 != 0, l.info.families&ip6 != 0
	}
	if !l.matched && l.info.kind == scores && l.Dead == "" {
		l.Dead = "it answers for good and bad clients: add a =match"
	}
	if !l.matched && l.info.match != "" {
		var err error
		if l.Match, err = ParseMatch(l.info.match); err != nil {
			return err
		}
	}
	l.Odd = l.odd()
	return nil
}

// words are those of a line of log that says what a list had to do with a
// decision.
func words() []string {
	return []string{
		"filter", "action", "disconnect", "delay", "reason", "by", "addr", "name", "from", "rcpt", "rcpts", "would", "dryRun", "more",
		"score", "code", "domain", "txt", "untested", "silent", "note", "err", "t",
	}
}

func validLabel(s string) bool {
	return len(s) > 0 && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// validZone takes names of at least two labels, and no address.
func validZone(s string) bool {
	if len(s) > maxZone || !strings.Contains(s, ".") {
		return false
	}
	return validName(s)
}

// validName reports whether s is a name of letters, digits, hyphens and
// underscores, and not an address.
func validName(s string) bool {
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || !alphanumeric(strings.NewReplacer("-", "", "_", "").Replace(label)) {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

// String returns the list in full, as it is understood.
func (l List) String() string {
	var b strings.Builder
	b.WriteString(l.Zone())
	if b.String() != l.Label {
		b.Reset()
		b.WriteString(l.Label + "@" + l.Zone())
	}
	if m := l.Match.String(); m != "" {
		b.WriteString("=" + m)
	}
	fmt.Fprintf(&b, "*%d", l.Weight)
	for _, o := range []struct {
		name string
		on   bool
	}{
		{"ip", l.Ask&IP != 0}, {"rdns", l.Ask&RDNS != 0}, {"helo", l.Ask&Helo != 0}, {"from", l.Ask&From != 0},
		{"v4", l.Ask&IP != 0 && l.V4}, {"v6", l.Ask&IP != 0 && l.V6}, {"block", l.Block}, {"junk", l.Junk}, {"txt", l.TXT},
	} {
		if o.on {
			b.WriteString("+" + o.name)
		}
	}
	return b.String()
}

// asks reports whether the list says something about an address.
func (l List) asks(a netip.Addr) bool {
	return l.Dead == "" && l.Ask&IP != 0 && (a.Is4() && l.V4 || a.Is6() && l.V6)
}

// meaning says in words what an answer means, "" if that is not known.
func (l List) meaning(a netip.Addr) string {
	var words []string
	for _, c := range l.info.codes {
		if m, err := ParseMatch(c.match); err == nil && m.Contains(a) {
			words = append(words, c.text)
		}
	}
	return strings.Join(words, ", ")
}
