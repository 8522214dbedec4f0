package exempt

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"opensmtpd-filters/pkg/listfile"
)

// An addressFile is a file of senders or recipients.
type addressFile struct {
	entries  int
	addrs    map[string]*rule // user@domain, user@
	names    names
	exprs    []clientExpr
	warnings []error
}

// Senders are the lines of files of senders. Nil is empty.
type Senders []*senderFile

// A senderFile has the lines that count with SPF pass, and those that always do.
type senderFile struct {
	proven, always addressFile
}

// ParseSenders reads a file of senders as ParseClients does.
func ParseSenders(r io.Reader, file string) (Senders, []error) {
	f := new(senderFile)
	n := 0
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		n++
		if err := glued(e); err != nil {
			return err
		}
		return f.add(e.Text, &rule{Match{Place: e.Place}, n})
	})
	return Senders{f}, errs
}

// glued returns an error for a # that may be part of an address, as in
// list#7@example.com: what stands before it alone would be another entry.
func glued(e listfile.Entry) error {
	word, _, _ := strings.Cut(e.Comment, " ")
	if e.Behind && !strings.Contains(e.Text, "@") && strings.Contains(word, "@") {
		return fmt.Errorf("%s: write \\# if it is part of the address, a space before it if it begins a comment", listfile.Quote(e.Text+"#"+word))
	}
	return nil
}

func (f *senderFile) add(text string, r *rule) error {
	text, always := strings.CutPrefix(text, "!")
	to := &f.proven
	if always {
		to = &f.always
	}
	return to.add(strings.TrimSpace(text), r, false)
}

// add adds user@domain or a domain, and for recipients user@ or an expression.
func (f *addressFile) add(text string, r *rule, rcpt bool) error {
	forms := "user@domain or domain"
	if rcpt {
		forms = "user@domain, user@, domain or /expression/"
	}
	bad := fmt.Errorf("%s is not %s", listfile.Quote(text), forms)
	if rcpt && strings.HasPrefix(text, "/") {
		expr, rest, err := listfile.Expression(text)
		if err == nil && rest != "" {
			err = fmt.Errorf("%s follows the expression", listfile.Quote(rest))
		}
		if err != nil {
			return err
		}
		re, err := listfile.Compile(expr)
		if err != nil {
			return err
		}
		f.exprs = append(f.exprs, clientExpr{re, r})
		f.entries++
		return nil
	}
	text = strings.ReplaceAll(text, `\#`, "#")
	i := strings.LastIndexByte(text, '@')
	local, domain := text[:max(i, 0)], text[i+1:]
	if local == "*" { // *@example.com
		local = ""
	}
	if i >= 0 && local != "" {
		local, ok := canonicalLocal(local)
		if !ok || rcpt && domain == "" && strings.Contains(local, "@") {
			return bad
		}
		key := local + "@"
		if domain != "" || !rcpt {
			d, err := parseDomain(domain)
			if err != nil && !errors.As(err, new(oneLabel)) || d.exactly || d.below {
				return bad
			}
			key += d.name
		}
		if f.addrs == nil {
			f.addrs = make(map[string]*rule)
		}
		f.addrs[key] = first(f.addrs[key], r)
		f.entries++
		return nil
	}
	d, err := parseDomain(text[max(i, 0):])
	if err != nil {
		if errors.As(err, new(oneLabel)) {
			return err
		}
		return bad
	}
	if warn := registry(d.name, text); warn != nil && len(f.warnings) < maxWarnings {
		f.warnings = append(f.warnings, fmt.Errorf("%s: %w", r.Place, warn))
	}
	f.names.add(d, r)
	f.entries++
	return nil
}

// lookup returns the first line for an address.
func (f *addressFile) lookup(a address) *rule {
	if f.entries == 0 {
		return nil
	}
	var best *rule
	local := a.local
	for range 2 {
		if a.domain != "" {
			best = first(best, f.addrs[local+"@"+a.domain])
		}
		best = first(best, f.addrs[local+"@"])
		base, _, ok := strings.Cut(local, "+")
		if !ok || base == "" {
			break
		}
		local = base
	}
	if a.domain != "" {
		best = first(best, f.names.lookup(a.domain))
	}
	if len(f.exprs) > 0 && len(a.text) <= maxAddress {
		for _, e := range f.exprs {
			if (best == nil || e.order < best.order) && e.MatchString(a.text) {
				best = e.rule
			}
		}
	}
	return best
}

// maxAddress is the length up to which expressions are tried.
const maxAddress = 1024

// MergeSenders returns the lines of all files, in this order.
func MergeSenders(lists ...Senders) Senders {
	var all Senders
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// Len returns the number of entries.
func (s Senders) Len() int {
	n := 0
	for _, f := range s {
		n += f.proven.entries + f.always.entries
	}
	return n
}

// Lookup returns the line that names a sender and counts. Proven is that SPF
// passes for the sender's domain.
func (s Senders) Lookup(sender string, proven bool) (listfile.Place, bool) {
	if len(s) == 0 {
		return listfile.Place{}, false
	}
	a := canonical(sender)
	if a.domain == "" {
		return listfile.Place{}, false
	}
	for _, f := range s {
		r := f.always.lookup(a)
		if proven {
			r = first(r, f.proven.lookup(a))
		}
		if r != nil {
			return r.Place, true
		}
	}
	return listfile.Place{}, false
}

func (s Senders) warnings() []error {
	var errs []error
	for _, f := range s {
		errs = append(append(errs, f.proven.warnings...), f.always.warnings...)
	}
	return errs
}

// Recipients are the lines of files of recipients. Nil is empty.
type Recipients []*addressFile

// DefaultRecipients returns postmaster@ and abuse@, which must be reachable
// (RFC 5321 section 4.5.1, RFC 2142).
func DefaultRecipients() Recipients {
	f := new(addressFile)
	for _, text := range []string{"postmaster@", "abuse@"} {
		f.add(text, &rule{Match: Match{Place: listfile.Place{File: "default"}}}, true)
	}
	return Recipients{f}
}

// ParseRecipients reads a file of recipients as ParseClients does.
func ParseRecipients(r io.Reader, file string) (Recipients, []error) {
	f := new(addressFile)
	n := 0
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		n++
		if err := glued(e); err != nil {
			return err
		}
		return f.add(e.Text, &rule{Match{Place: e.Place}, n}, true)
	})
	return Recipients{f}, errs
}

// MergeRecipients returns the lines of all files, in this order.
func MergeRecipients(lists ...Recipients) Recipients {
	var all Recipients
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// Len returns the number of entries.
func (l Recipients) Len() int {
	n := 0
	for _, f := range l {
		n += f.entries
	}
	return n
}

// Lookup returns the first line that names a recipient.
func (l Recipients) Lookup(rcpt string) (listfile.Place, bool) {
	if len(l) == 0 {
		return listfile.Place{}, false
	}
	a := canonical(rcpt)
	if a.text == "" {
		return listfile.Place{}, false
	}
	for _, f := range l {
		if r := f.lookup(a); r != nil {
			return r.Place, true
		}
	}
	return listfile.Place{}, false
}

// An address is one of the envelope in the form in which addresses are compared.
type address struct {
	local  string // lower case, without quotes
	domain string // A-labels in lower case; "" if there is none, or none that a list can name
	text   string // what expressions see
}

// canonical splits at the last @, so that nobody is what stands before another @.
func canonical(s string) address {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
	if strings.HasPrefix(s, "@") { // a source route, RFC 5321 section 4.1.1.3
		if _, rest, ok := strings.Cut(s, ":"); ok {
			s = rest
		}
	}
	local, domain := s, ""
	i := strings.LastIndexByte(s, '@')
	if i >= 0 {
		local, domain = s[:i], s[i+1:]
	}
	a := address{domain: canonicalName(domain)}
	var ok bool
	if a.local, ok = canonicalLocal(local); !ok {
		a.local = strings.ToLower(local)
	}
	a.text = a.local
	switch {
	case a.domain != "":
		a.text += "@" + a.domain
	case i >= 0:
		a.text += "@" + strings.ToLower(domain)
	}
	return a
}

// canonicalLocal returns a local part in lower case and without quotes: "bob" and
// bob are one mailbox (RFC 5321 section 4.1.2). False means it is none.
func canonicalLocal(s string) (string, bool) {
	inner, quoted := strings.CutPrefix(s, `"`)
	if !quoted {
		return strings.ToLower(s), s != "" && !strings.ContainsAny(s, " \t\"")
	}
	var b strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; {
		case c == '"':
			return strings.ToLower(b.String()), i == len(inner)-1 && b.Len() > 0
		case c == '\\' && i+1 < len(inner):
			i++
			b.WriteByte(inner[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// A domain is an entry of a list.
type domain struct {
	name    string // A-labels in lower case, without final dot
	below   bool   // only names below it: .domain, *.domain
	exactly bool   // only the name itself: @domain
}

// oneLabel is the error of a domain of one label.
type oneLabel struct{ name string }

func (e oneLabel) Error() string {
	return fmt.Sprintf("%s is one label; *.%s are all names below it", listfile.Quote(e.name), e.name)
}

// parseDomain reads a domain of a list. One label is a slip or the text of
// another file, and would be a whole top-level domain: it is an error, with which
// the domain is returned, but not with a dot before it.
func parseDomain(s string) (domain, error) {
	var d domain
	name := s
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		d.exactly, name = true, rest
	} else if rest, ok := strings.CutPrefix(name, "*."); ok {
		d.below, name = true, rest
	} else if rest, ok := strings.CutPrefix(name, "."); ok {
		d.below, name = true, rest
	}
	d.name = canonicalName(name)
	for label := range strings.SplitSeq(d.name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || strings.Trim(label, "-") == "" {
			return domain{}, fmt.Errorf("%s is not a domain", listfile.Quote(s))
		}
	}
	if !d.below && !strings.Contains(d.name, ".") {
		return d, oneLabel{d.name}
	}
	return d, nil
}

// toASCII takes U-labels to A-labels and says nothing of ASCII ones.
var toASCII = idna.New(idna.MapForLookup(), idna.StrictDomainName(false), idna.Transitional(false))

// canonicalName returns a name in lower case, as A-labels and without final dot,
// "" for what can be no name.
func canonicalName(s string) string {
	s = strings.TrimSuffix(s, ".")
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			var err error
			if s, err = toASCII.ToASCII(s); err != nil {
				return ""
			}
			s = strings.TrimSuffix(s, ".")
			break
		}
	}
	if len(s) > 253 || strings.HasPrefix(s, ".") || strings.Contains(s, "..") {
		return ""
	}
	return strings.ToLower(s)
}

// names are rules filed under domains.
type names struct {
	rules map[string]scoped
}

// scoped are the rules for a name itself and for those below it.
type scoped struct{ self, below *rule }

func (n *names) add(d domain, r *rule) {
	if n.rules == nil {
		n.rules = make(map[string]scoped)
	}
	s := n.rules[d.name]
	if !d.below {
		s.self = first(s.self, r)
	}
	if !d.exactly {
		s.below = first(s.below, r)
	}
	n.rules[d.name] = s
}

// lookup returns the first rule for a canonical name.
func (n *names) lookup(name string) *rule {
	if len(n.rules) == 0 {
		return nil
	}
	best := n.rules[name].self
	for {
		var ok bool
		if _, name, ok = strings.Cut(name, "."); !ok {
			return best
		}
		best = first(best, n.rules[name].below)
	}
}

// splitComma returns the words of a list with commas.
func splitComma(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
