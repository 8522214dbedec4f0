package spf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Networks that are wider tell nothing of who sends.
const (
	widest4 = 12 // bits
	widest6 = 20
)

var errMessage = errors.New("depends on the message")

// maxMX is the number of mail servers of one mx term (RFC 7208 section 4.6.4).
const maxMX = 10

// maxFailed is the number of questions without an answer after which no more are asked.
const maxFailed = 3

// Published is what a domain publishes of the networks that send for it.
type Published struct {
	Nets    []netip.Prefix // in order, without those that lie in others
	Lookups int            // questions asked
	Failed  []string       // names about which a question was not answered: the networks are not complete
	Odd     []string       // what was not taken, and why
}

// Networks reads the networks that SPF passes for a domain whoever sends, as far as
// they can be known beforehand: those of ip4, ip6, a, mx, include and redirect. What
// a term before does not let pass is not among them, nor is what is wider than /12,
// or /20 of IPv6. It asks most questions at most; what is missing then is odd.
func Networks(ctx context.Context, r Resolver, domain string, most int) Published {
	w := &netWalk{ctx: ctx, r: r, most: most, known: make(map[string]senders)}
	nets := w.domain(domain).sure
	if w.everybody {
		nets = nil
		w.odd("%s lets everybody send", domain)
	}
	var out []netip.Prefix
	slices.SortFunc(nets, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits()-a.Addr().BitLen(), b.Bits()-b.Addr().BitLen()), a.Addr().Compare(b.Addr()))
	})
	for _, n := range nets { // the wide ones come first
		switch {
		case n.Addr().Is4() && n.Bits() < widest4 || n.Addr().Is6() && n.Bits() < widest6:
			w.odd("%s is too wide", n)
		case !slices.ContainsFunc(out, n.Overlaps):
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	w.Nets = out
	return w.Published
}

// senders are the networks for which a record passes: those for which it does so
// without doubt, and all for which it may, as far as it is otherwise for a part.
type senders struct{ sure, perhaps []netip.Prefix }

// A netWalk is one call of Networks.
type netWalk struct {
	Published
	ctx       context.Context
	r         Resolver
	most      int
	known     map[string]senders // of domains that were read, or are being read
	everybody bool
}

func (w *netWalk) odd(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(w.Odd, s) {
		w.Odd = append(w.Odd, s)
	}
}

// ask asks a question. Ok is false if nothing is known of the answer.
func (w *netWalk) ask(name string, do func() error) (ok bool) {
	if w.Lookups >= w.most {
		w.odd("more than %d lookups", w.most)
		return false
	}
	if len(w.Failed) >= maxFailed {
		return false // they are not complete anyway
	}
	w.Lookups++
	err := do()
	if err != nil && !isNotFound(err) {
		w.Failed = append(w.Failed, name)
		return false
	}
	return true
}

// domain returns the networks of a domain's record.
func (w *netWalk) domain(name string) senders {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if nets, ok := w.known[name]; ok {
		return nets
	}
	w.known[name] = senders{} // a loop adds nothing
	var texts []string
	if !w.ask(name, func() (err error) { texts, err = w.r.TXT(w.ctx, name); return err }) {
		return senders{}
	}
	var records []string
	for _, t := range texts {
		if v, rest, _ := strings.Cut(t, " "); strings.EqualFold(v, version) {
			records = append(records, rest)
		}
	}
	if len(records) != 1 { // RFC 7208 section 4.5
		w.odd("%s has %d SPF records", name, len(records))
		return senders{}
	}
	nets := w.record(name, records[0])
	w.known[name] = nets
	return nets
}

// record returns the networks that a record of a domain lets send.
func (w *netWalk) record(domain, record string) (pass senders) {
	var others []netip.Prefix // of which a term before may have said otherwise
	add := func(s senders) {
		pass.perhaps = append(pass.perhaps, s.perhaps...)
		for _, n := range s.sure {
			if !slices.ContainsFunc(others, n.Overlaps) {
				pass.sure = append(pass.sure, n)
			}
		}
	}
	redirect := ""
	for t := range strings.FieldsSeq(record) {
		term := strings.TrimLeft(t, qualifiers)
		qualifier := t[:len(t)-len(term)]
		if name, value, ok := strings.Cut(term, "="); ok && !strings.ContainsAny(name, ":/") {
			if strings.EqualFold(name, "redirect") {
				redirect = value
			}
			continue
		}
		if strings.EqualFold(term, "all") {
			w.everybody = w.everybody || qualifier == "" || qualifier == "+"
			return pass // no redirect then (RFC 7208 section 6.1)
		}
		nets, err := w.term(domain, term)
		switch {
		case err != nil:
			w.odd("%s: %s: %v", domain, t, err)
		case qualifier != "" && qualifier != "+":
			others = append(others, nets.perhaps...)
		default:
			add(nets)
		}
	}
	if redirect == "" {
		return pass
	}
	if err := plainName(redirect); err != nil {
		w.odd("%s: redirect=%s: %v", domain, redirect, err)
		return pass
	}
	add(w.domain(redirect))
	return pass
}

// plainName says what is wrong with a name that can be asked for.
func plainName(name string) error {
	if strings.Contains(name, "%") {
		return errMessage
	}
	if name == "" || len(name) > maxName {
		return errors.New("not a domain")
	}
	return nil
}

// term returns the networks that a term matches.
func (w *netWalk) term(domain, term string) (senders, error) {
	end := strings.IndexAny(term, ":/")
	if end < 0 {
		end = len(term)
	}
	kind, rest := strings.ToLower(term[:end]), term[end:]
	switch kind {
	case "ip4", "ip6":
		p, err := ipTerm(strings.TrimPrefix(rest, ":"), kind == "ip4")
		if err != nil {
			return senders{}, err
		}
		nets := []netip.Prefix{p}
		return senders{nets, nets}, nil
	case "include":
		name := strings.TrimPrefix(rest, ":")
		if err := plainName(name); err != nil {
			return senders{}, err
		}
		return w.domain(name), nil
	case "a", "mx":
		name, bits4, bits6, err := hostTerm(domain, rest)
		if err != nil {
			return senders{}, err
		}
		names := []string{name}
		if kind == "mx" {
			names = w.mx(name)
		}
		var nets []netip.Prefix
		for _, n := range names {
			for _, a := range w.addrs(n) {
				bits := bits6
				if a.Is4() {
					bits = bits4
				}
				p, _ := a.Prefix(bits)
				nets = append(nets, p)
			}
		}
		return senders{nets, nets}, nil
	case "exists", "ptr":
		return senders{}, errMessage
	}
	return senders{}, errors.New("not a term of SPF")
}

// ipTerm reads the value of ip4 or ip6.
func ipTerm(s string, v4 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, e := netip.ParseAddr(s); e == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil || p.Addr().Is4() != v4 {
		return netip.Prefix{}, errors.New("not a network")
	}
	return p.Masked(), nil
}

// hostTerm reads what follows a or mx: ":name", "/bits" and "//bits6".
func hostTerm(domain, rest string) (name string, bits4, bits6 int, err error) {
	name, bits4, bits6 = domain, 32, 128
	if s, ok := strings.CutPrefix(rest, ":"); ok {
		name, rest, _ = strings.Cut(s, "/")
		if len(name) < len(s) {
			rest = "/" + rest
		}
	}
	if err = plainName(name); err != nil {
		return
	}
	s4, s6, has6 := strings.Cut(rest, "//")
	number := func(s string, most int) int {
		n, e := strconv.Atoi(s)
		if e != nil || n < 0 || n > most {
			err = errors.New("not a length of a network")
		}
		return n
	}
	if s4 != "" {
		bits4 = number(s4[1:], 32)
	}
	if has6 {
		bits6 = number(s6, 128)
	}
	return
}

func (w *netWalk) mx(name string) (names []string) {
	w.ask(name, func() error {
		hosts, err := w.r.LookupMX(w.ctx, name)
		for _, h := range hosts {
			names = append(names, strings.TrimSuffix(h.Host, "."))
		}
		return err
	})
	if len(names) > maxMX {
		w.odd("%s has more than %d mail servers", name, maxMX)
		names = names[:maxMX]
	}
	return names
}

func (w *netWalk) addrs(name string) (addrs []netip.Addr) {
	for _, do := range []func(context.Context, string) ([]netip.Addr, error){w.r.A, w.r.AAAA} {
		w.ask(name, func() error {
			some, err := do(w.ctx, name)
			addrs = append(addrs, some...)
			return err
		})
	}
	return addrs
}
