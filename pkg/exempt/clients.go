package exempt

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"

	"github.com/gaissmai/bart"
	"golang.org/x/net/publicsuffix"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/listfile"
)

// An Action is what a line says of a client.
type Action byte

// The actions.
const (
	Permit Action = iota
	Reject
	Dunno
)

var actions = [...]string{Permit: "permit", Reject: "reject", Dunno: "dunno"}

func (a Action) String() string { return actions[a] }

func parseAction(word string) (Action, error) {
	for a, name := range actions {
		if strings.EqualFold(word, name) {
			return Action(a), nil
		}
	}
	return 0, fmt.Errorf("%s is not permit, reject or dunno", listfile.Quote(word))
}

// A Match is the line that names a client.
type Match struct {
	listfile.Place
	Action Action
}

// A rule is a line. Of those that match, the one of the lowest order counts.
type rule struct {
	Match
	order int
}

func first(a, b *rule) *rule {
	if a == nil || b != nil && b.order < a.order {
		return b
	}
	return a
}

// Clients are the lines of files of clients. Nil is empty.
type Clients []*clientFile

// A clientFile is one file; of a block between if and endif too.
type clientFile struct {
	entries  int // in it, blocks included
	nets     bart.Table[*rule]
	names    names
	exprs    []clientExpr
	conds    []cond
	rejects  int
	file     string
	warnings []error
}

type clientExpr struct {
	*regexp.Regexp
	*rule
}

// A cond is for clients in a network, or if not is set those outside: one rule,
// or a block.
type cond struct {
	net   netip.Prefix
	not   bool
	never bool // a block whose if is bad
	order int
	rule  *rule
	block *clientFile
}

const (
	maxNesting  = 20 // of blocks
	maxWarnings = 10 // of one file
)

// ParseClients reads a file of clients. A bad line gives an error "file:line:
// reason" and is skipped, see listfile.Each.
func ParseClients(r io.Reader, file string) (Clients, []error) { return parseClients(r, file, Permit) }

// ParseRejects is ParseClients for lines that are meant to be reject where
// nothing else is said.
func ParseRejects(r io.Reader, file string) (Clients, []error) { return parseClients(r, file, Reject) }

func parseClients(r io.Reader, file string, def Action) (Clients, []error) {
	top := &clientFile{file: file}
	blocks := []*clientFile{top} // those that are open
	var opened []listfile.Place
	n := 0
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		n++
		in := blocks[len(blocks)-1]
		word, rest := e.Text, ""
		if i := strings.IndexAny(word, " \t!"); i > 0 {
			word, rest = word[:i], word[i:]
		}
		switch strings.ToLower(word) {
		case "if": // whatever follows, for a block must not count for others
			c, err := parseCond(rest)
			if len(blocks) > maxNesting {
				err = fmt.Errorf("more than %d if in each other", maxNesting)
			}
			c.never, c.order, c.block = err != nil, n, &clientFile{file: file}
			in.conds = append(in.conds, c)
			blocks, opened = append(blocks, c.block), append(opened, e.Place)
			return err
		case "endif":
			if len(blocks) == 1 || strings.TrimSpace(rest) != "" {
				return errors.New("want endif alone on a line, after an if")
			}
			blocks, opened = blocks[:len(blocks)-1], opened[:len(opened)-1]
			return nil
		}
		warn, err := in.add(e.Text, &rule{Match{e.Place, def}, n}, true)
		if err != nil {
			return err
		}
		if warn != nil && len(top.warnings) < maxWarnings {
			top.warnings = append(top.warnings, fmt.Errorf("%s: %w", e.Place, warn))
		}
		return nil
	})
	for _, at := range opened {
		if len(errs) < listfile.MaxErrors {
			errs = append(errs, fmt.Errorf("%s: if without endif; it holds to the end of the file", at))
		}
	}
	top.entries, top.rejects = top.count()
	return Clients{top}, errs
}

func (f *clientFile) count() (entries, rejects int) {
	entries, rejects = f.entries, f.rejects
	for _, c := range f.conds {
		if c.block != nil && !c.never {
			n, r := c.block.count()
			entries, rejects = entries+n, rejects+r
		}
	}
	return entries, rejects
}

// parseCond reads NET or !NET.
func parseCond(s string) (cond, error) {
	s, not := strings.CutPrefix(strings.TrimSpace(s), "!")
	p, err := ipset.ParsePrefix(strings.TrimSpace(s))
	return cond{net: p, not: not}, err
}

// add adds a line: a client, and an action if actions may follow. It returns
// what is hardly meant.
func (f *clientFile) add(text string, r *rule, mayAct bool) (warn, err error) {
	what, act, err := splitClient(text)
	if err != nil {
		return nil, err
	}
	if act != "" {
		if !mayAct {
			return nil, fmt.Errorf("%s follows %s", listfile.Quote(act), listfile.Quote(what))
		}
		word, rest, more := strings.Cut(act, " ")
		if r.Action, err = parseAction(strings.TrimSpace(word)); err != nil {
			return nil, err
		}
		if more {
			return nil, fmt.Errorf("%s follows %s", listfile.Quote(strings.TrimSpace(rest)), r.Action)
		}
	}
	permit := r.Action == Permit
	switch {
	case what[0] == '!':
		c, err := parseCond(what)
		if err != nil {
			return nil, err
		}
		if act == "" {
			return nil, fmt.Errorf("want permit, reject or dunno after %s, which are all clients but these", what)
		}
		c.order, c.rule = r.order, r
		f.conds = append(f.conds, c)
	case what[0] == '/':
		expr, _, _ := listfile.Expression(what)
		re, err := listfile.Compile(expr)
		if err != nil {
			return nil, err
		}
		if permit && re.MatchString("") {
			warn = fmt.Errorf("%s matches every confirmed name", what)
		}
		f.exprs = append(f.exprs, clientExpr{re, r})
	case numeric(what):
		p, err := ipset.ParsePrefix(what)
		if err != nil {
			return nil, err
		}
		if permit && (p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 16) {
			warn = fmt.Errorf("%s is a large part of the Internet", what)
		}
		f.nets.Modify(p, func(old *rule, ok bool) (*rule, bool) { return first(old, r), false })
	default:
		d, err := parseDomain(what)
		if err != nil || d.exactly {
			return nil, clientError(what, err)
		}
		if permit {
			warn = registry(d.name, what)
		}
		f.names.add(d, r)
	}
	f.entries++
	if r.Action == Reject {
		f.rejects++
	}
	return warn, nil
}

func clientError(what string, err error) error {
	if _, bad := parseAction(what); bad == nil {
		return fmt.Errorf("%s stands without a client before it", what)
	}
	if label := (oneLabel{}); errors.As(err, &label) {
		return err
	}
	return fmt.Errorf("%s is not an address, network, domain or /expression/", listfile.Quote(what))
}

// splitClient splits a line into the client and what follows.
func splitClient(text string) (what, rest string, err error) {
	if text[0] == '/' {
		if _, rest, err = listfile.Expression(text); err != nil {
			return "", "", err
		}
		return strings.TrimSpace(strings.TrimSuffix(text, rest)), rest, nil
	}
	bang := ""
	if after, ok := strings.CutPrefix(text, "!"); ok {
		bang, text = "!", strings.TrimSpace(after)
	}
	i := strings.IndexAny(text, " \t")
	if i < 0 {
		return bang + text, "", nil
	}
	return bang + text[:i], strings.TrimSpace(strings.ReplaceAll(text[i:], "\t", " ")), nil
}

// numeric reports whether s can be no domain but an address, if mistyped.
func numeric(s string) bool {
	return strings.ContainsAny(s, ":/[") || strings.Trim(s, "0123456789.") == ""
}

// registry returns a warning if anybody can have a name in a domain.
func registry(name, shown string) error {
	suffix, known := publicsuffix.PublicSuffix(name)
	if suffix == name && (known || strings.Contains(suffix, ".")) {
		return fmt.Errorf("%s: anybody can have a name in that domain", shown)
	}
	return nil
}

// MergeClients returns the lines of all files, in this order.
func MergeClients(lists ...Clients) Clients {
	var all Clients
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// Len returns the number of entries.
func (c Clients) Len() int {
	n := 0
	for _, f := range c {
		n += f.entries
	}
	return n
}

// Lookup returns the first line that names a client. The name is that of a client
// whose name resolves to its address; else it must be empty.
func (c Clients) Lookup(addr netip.Addr, name string) (Match, bool) {
	addr = addr.Unmap().WithZone("")
	name = canonicalName(name)
	for _, f := range c {
		if r := f.lookup(addr, name); r != nil {
			return r.Match, true
		}
	}
	return Match{}, false
}

func (f *clientFile) lookup(addr netip.Addr, name string) *rule {
	var best *rule
	if addr.IsValid() {
		for _, r := range f.nets.Supernets(netip.PrefixFrom(addr, addr.BitLen())) {
			best = first(best, r)
		}
		for _, c := range f.conds {
			if best != nil && best.order < c.order {
				break
			}
			if c.never || c.net.Contains(addr) == c.not {
				continue
			}
			if c.block == nil {
				best = first(best, c.rule)
			} else {
				best = first(best, c.block.lookup(addr, name))
			}
		}
	}
	if name == "" {
		return best
	}
	best = first(best, f.names.lookup(name))
	for _, e := range f.exprs {
		if (best == nil || e.order < best.order) && e.MatchString(name) {
			best = e.rule
		}
	}
	return best
}

func (c Clients) warnings(ofReject bool) []error {
	var errs []error
	for _, f := range c {
		if ofReject && f.rejects > 0 {
			errs = append(errs, fmt.Errorf("%s: reject on %d lines: here it refuses nobody, it ends the search; filter-dnsbl refuses by it", f.file, f.rejects))
		}
		errs = append(errs, f.warnings...)
	}
	return errs
}
