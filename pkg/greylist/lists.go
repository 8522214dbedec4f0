package greylist

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/listfile"
)

// A Place is a line of a list. The first line is 1.
type Place struct {
	File string
	Line int
}

// String returns "file:line".
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// eachLine calls f for each line of a list that says something, and returns
// what is wrong with lines as errors "file:line: reason".
func eachLine(r io.Reader, file string, f func(text string, at Place) error) []error {
	var errs []error
	more := 0
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		b, err := br.ReadSlice('\n')
		text := string(b)
		if err == bufio.ErrBufferFull {
			text += "..." // makes it a bad one, unless in a comment
		}
		for err == bufio.ErrBufferFull {
			_, err = br.ReadSlice('\n')
		}
		if err != nil && err != io.EOF {
			text = ""
		}
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if text = strings.TrimSpace(uncomment(text)); text != "" {
			if bad := f(text, Place{file, n}); bad != nil {
				if len(errs) < listfile.MaxErrors {
					errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, bad))
				} else {
					more++
				}
			}
		}
		if err != nil {
			if more > 0 {
				errs = append(errs, fmt.Errorf("%s: %d more bad lines", file, more))
			}
			if err != io.EOF {
				errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
			}
			return errs
		}
	}
}

// uncomment cuts from a # that begins the line or follows a blank.
func uncomment(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			return s[:i]
		}
	}
	return s
}

func quoted(s string) string {
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return fmt.Sprintf("%+q", s)
}

// parseDomain reads a name of at least one label, in lower case.
func parseDomain(s string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	if name == "" || len(name) > 253 {
		return "", fmt.Errorf("%s is not a domain", quoted(s))
	}
	for label := range strings.SplitSeq(name, ".") {
		ok := label != "" && len(label) <= 63
		for i := 0; i < len(label); i++ {
			ok = ok && (isAlnum(label[i]) || label[i] == '-' || label[i] == '_')
		}
		if !ok {
			return "", fmt.Errorf("%s is not a domain", quoted(s))
		}
	}
	return name, nil
}

// lookupDomain finds a name or one of the domains it is in.
func lookupDomain(m map[string]Place, name string) (Place, bool) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	for name != "" {
		if v, ok := m[name]; ok {
			return v, true
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return Place{}, false
}

// Clients are clients that are not greylisted. A line is an address, a network
// in CIDR form, a domain that the client's name is in, or an expression between
// slashes that its name matches, without regard to case. Names count only if
// they resolve to the client. Nil is empty.
type Clients struct {
	nets    *ipset.Set
	domains map[string]Place
	exprs   []clientExpr
}

type clientExpr struct {
	*regexp.Regexp
	at Place
}

// ParseClients reads a list. A bad line gives an error "file:line: reason" and
// is skipped. The list is never nil.
func ParseClients(r io.Reader, file string) (*Clients, []error) {
	c := &Clients{domains: make(map[string]Place)}
	var nets strings.Builder // with a line for each line, so that the numbers fit
	line := 1
	errs := eachLine(r, file, func(s string, at Place) error {
		if expr, ok := strings.CutPrefix(s, "/"); ok {
			expr, ok = strings.CutSuffix(expr, "/")
			if !ok || expr == "" {
				return fmt.Errorf("%s does not end in /", quoted(s))
			}
			re, err := regexp.Compile("(?i)" + expr)
			if err != nil {
				return err
			}
			c.exprs = append(c.exprs, clientExpr{re, at})
			return nil
		}
		if _, err := netip.ParseAddr(s); err == nil || strings.Contains(s, "/") || looksNumeric(s) {
			if _, err := ipset.ParsePrefix(s); err != nil {
				return err
			}
			for ; line < at.Line; line++ {
				nets.WriteByte('\n')
			}
			nets.WriteString(s)
			return nil
		}
		name, err := parseDomain(s)
		if err != nil {
			return fmt.Errorf("%s is not an address, network, domain or /expression/", quoted(s))
		}
		if _, ok := c.domains[name]; !ok {
			c.domains[name] = at
		}
		return nil
	})
	c.nets, _ = ipset.Parse(strings.NewReader(nets.String()), file)
	return c, errs
}

// looksNumeric reports whether s can be no domain but a mistyped address.
func looksNumeric(s string) bool {
	return strings.Contains(s, ":") || strings.Trim(s, "0123456789.") == ""
}

// MergeClients returns a list of all lines of the given ones.
func MergeClients(lists ...*Clients) *Clients {
	m := &Clients{domains: make(map[string]Place)}
	var nets []*ipset.Set
	for _, c := range lists {
		if c == nil {
			continue
		}
		nets = append(nets, c.nets)
		mergePlaces(m.domains, c.domains)
		m.exprs = append(m.exprs, c.exprs...)
	}
	m.nets = ipset.Merge(nets...)
	return m
}

func mergePlaces(to, from map[string]Place) {
	for name, at := range from {
		if _, ok := to[name]; !ok {
			to[name] = at
		}
	}
}

// Len returns the number of entries.
func (c *Clients) Len() int {
	if c == nil {
		return 0
	}
	return c.nets.Len() + len(c.domains) + len(c.exprs)
}

// Lookup returns the line that names a client. The name counts only if it
// resolves to the address, fcrdns.
func (c *Clients) Lookup(addr netip.Addr, name string, fcrdns bool) (Place, bool) {
	if c == nil {
		return Place{}, false
	}
	if m, ok := c.nets.Lookup(addr); ok {
		return Place{m.File, m.Line}, true
	}
	if !fcrdns || name == "" {
		return Place{}, false
	}
	if at, ok := lookupDomain(c.domains, name); ok {
		return at, true
	}
	name = strings.TrimSuffix(name, ".")
	for _, e := range c.exprs {
		if e.MatchString(name) {
			return e.at, true
		}
	}
	return Place{}, false
}

// Senders are senders whose mail is not greylisted. A line is an address or a
// domain, which its subdomains are in; after a ! it holds even if SPF does not
// say that the sender is who it claims to be. Nil is empty.
type Senders struct {
	entries map[string]senderEntry // by address or domain
}

// senderEntry: either place may be unset.
type senderEntry struct {
	proven, always Place
}

// ParseSenders reads a list as ParseClients does.
func ParseSenders(r io.Reader, file string) (*Senders, []error) {
	l := &Senders{entries: make(map[string]senderEntry)}
	errs := eachLine(r, file, func(s string, at Place) error {
		s, always := strings.CutPrefix(s, "!")
		name, err := parseAddrOrDomain(strings.TrimSpace(s))
		if err != nil {
			return err
		}
		e := senderEntry{proven: at}
		if always {
			e = senderEntry{always: at}
		}
		l.add(name, e)
		return nil
	})
	return l, errs
}

// parseAddrOrDomain reads user@domain or domain.
func parseAddrOrDomain(s string) (string, error) {
	local, domain := splitAddr(s)
	if !strings.Contains(s, "@") {
		local, domain = "", s
	}
	name, err := parseDomain(domain)
	if err != nil || strings.ContainsAny(local, " \t") || strings.HasPrefix(s, "@") {
		return "", fmt.Errorf("%s is not user@domain or domain", quoted(s))
	}
	if local == "" {
		return name, nil
	}
	return strings.ToLower(local) + "@" + name, nil
}

func (l *Senders) add(name string, e senderEntry) {
	old := l.entries[name]
	if old.proven == (Place{}) {
		old.proven = e.proven
	}
	if old.always == (Place{}) {
		old.always = e.always
	}
	l.entries[name] = old
}

// MergeSenders returns a list of all lines of the given ones.
func MergeSenders(lists ...*Senders) *Senders {
	m := &Senders{entries: make(map[string]senderEntry)}
	for _, l := range lists {
		if l == nil {
			continue
		}
		for name, e := range l.entries {
			m.add(name, e)
		}
	}
	return m
}

// Len returns the number of different entries.
func (l *Senders) Len() int {
	if l == nil {
		return 0
	}
	return len(l.entries)
}

// Lookup returns the line that names a sender. Proven says that SPF passes for
// the sender's domain.
func (l *Senders) Lookup(sender string, proven bool) (Place, bool) {
	if l.Len() == 0 {
		return Place{}, false
	}
	local, domain := splitAddr(strings.ToLower(sender))
	if at, ok := l.entries[local+"@"+domain].counts(proven); ok {
		return at, true
	}
	for domain != "" {
		if at, ok := l.entries[domain].counts(proven); ok {
			return at, true
		}
		_, domain, _ = strings.Cut(domain, ".")
	}
	return Place{}, false
}

func (e senderEntry) counts(proven bool) (Place, bool) {
	if e.always != (Place{}) {
		return e.always, true
	}
	return e.proven, proven && e.proven != Place{}
}

// Recipients are recipients whose mail is treated in another way than the rest.
// A line is user@domain, user@ for the user at any domain, or a domain, which
// its subdomains are in. A +extension of the recipient does not matter unless
// the line has one. Nil is empty.
type Recipients struct {
	users   map[string]Place // "user@domain" and "user@"
	domains map[string]Place
}

// DefaultRecipients returns postmaster@ and abuse@, which must be reachable
// (RFC 5321 section 4.5.1, RFC 2142).
func DefaultRecipients() *Recipients {
	l, _ := ParseRecipients(strings.NewReader("postmaster@\nabuse@\n"), "default")
	return l
}

// ParseRecipients reads a list as ParseClients does.
func ParseRecipients(r io.Reader, file string) (*Recipients, []error) {
	l := MergeRecipients()
	errs := eachLine(r, file, func(s string, at Place) error {
		if user, ok := strings.CutSuffix(s, "@"); ok && user != "" && !strings.ContainsAny(user, " \t@") {
			mergePlaces(l.users, map[string]Place{strings.ToLower(s): at})
			return nil
		}
		name, err := parseAddrOrDomain(s)
		if err != nil {
			return fmt.Errorf("%s is not user@domain, user@ or domain", quoted(s))
		}
		if strings.Contains(name, "@") {
			mergePlaces(l.users, map[string]Place{name: at})
		} else {
			mergePlaces(l.domains, map[string]Place{name: at})
		}
		return nil
	})
	return l, errs
}

// MergeRecipients returns a list of all lines of the given ones.
func MergeRecipients(lists ...*Recipients) *Recipients {
	m := &Recipients{users: make(map[string]Place), domains: make(map[string]Place)}
	for _, l := range lists {
		if l != nil {
			mergePlaces(m.users, l.users)
			mergePlaces(m.domains, l.domains)
		}
	}
	return m
}

// Len returns the number of different entries.
func (l *Recipients) Len() int {
	if l == nil {
		return 0
	}
	return len(l.users) + len(l.domains)
}

// Lookup returns the line that names a recipient.
func (l *Recipients) Lookup(rcpt string) (Place, bool) {
	if l.Len() == 0 {
		return Place{}, false
	}
	local, domain := splitAddr(strings.ToLower(rcpt))
	locals := []string{local}
	if base, _, ok := strings.Cut(local, "+"); ok && base != "" {
		locals = append(locals, base)
	}
	for _, u := range locals {
		for _, name := range []string{u + "@" + domain, u + "@"} {
			if at, ok := l.users[name]; ok {
				return at, true
			}
		}
	}
	return lookupDomain(l.domains, domain)
}
