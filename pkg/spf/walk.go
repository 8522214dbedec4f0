package spf

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"blitiri.com.ar/go/spf"

	"opensmtpd-filters/pkg/guard"
)

// Bounds of a check, probes included. Those of
// RFC 7208 section 4.6.4 (10 terms, 10 names of an mx, 2 void lookups) are the
// library's, and allow for 111 queries.
const (
	maxQueries = 30
	maxSize    = 16 << 10 // bytes of one evaluation, see spend
)

// A walk is one check: it stands between the library and the DNS, bounds what
// is asked, and knows what has been answered.
type walk struct {
	ctx    context.Context
	c      *Checker
	id     identity
	client client
	left   int // queries
	size   int // bytes the present evaluation may still take

	addr   netip.Addr // that is evaluated
	known  map[question]reply
	terms  map[string][]term // of records for probes
	texts  hash.Hash         // of the records read for the client
	uses   uses
	exists bool // a record has that term, which asks for A whatever the client's family

	probing bool // the client's own evaluation is over
	silent  bool // a query for a probe was not answered: no more are sent
	missing bool // the present evaluation lacks an answer, and may have it later
	excess  bool // the present evaluation asks for too much
}

type question struct {
	typ  byte // T, M, P, 4 or 6
	name string
}

type reply struct {
	texts []string
	mx    []*net.MX
	addrs []netip.Addr
	err   error
}

// check returns the result, and what it depends on.
func (w *walk) check() (Result, uses) {
	w.known, w.terms, w.texts = map[question]reply{}, map[string][]term{}, sha256.New()
	r := Result{Status: w.evaluate(w.id.addr), Domain: w.id.domain}
	own := w.uses
	if r.Status != Pass {
		return r, own
	}
	v := w.c.prober.judge(w)
	if v.everybody {
		return Result{Status: None, Domain: w.id.domain, Everybody: true}, own
	}
	r.PerAddress = own != 0 || v.perAddress
	return r, own
}

// evaluate returns the result for an address.
func (w *walk) evaluate(addr netip.Addr) (s Status) {
	w.addr, w.size, w.missing, w.excess = addr, maxSize, false, false
	err := guard.Call(func() error {
		res, _ := spf.CheckHostWithSender(addr.AsSlice(), w.id.helo, w.id.sender(), spf.WithContext(w.ctx), spf.WithResolver(w))
		s = statusOf(res)
		return nil
	})
	switch {
	case err != nil: // a record of the network has broken the library
		w.c.broken.Error("spf", "domain", w.id.domain, "err", err)
		return PermError
	case w.ctx.Err() != nil || w.missing:
		return TempError
	case w.excess:
		return PermError
	}
	return s
}

func statusOf(r spf.Result) Status {
	for s := None; s <= PermError; s++ {
		if s.String() == string(r) {
			return s
		}
	}
	return PermError
}

// spend takes n bytes of those that an evaluation may take, so that none takes
// long: it is done for the client and again for each probe.
func (w *walk) spend(n int) error {
	if w.size -= n; w.size < 0 {
		w.excess = true
		return &net.DNSError{Err: "records are too large"}
	}
	return nil
}

const (
	macroSize = 100 // what a macro counts for
	addrSize  = 16
)

// ask returns the answer to a question; do sends it if it is new.
func (w *walk) ask(typ byte, name string, do func(context.Context, string) (reply, error)) (reply, error) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if len(name) > maxName || name == "" {
		return reply{}, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	q := question{typ, name}
	r, ok := w.known[q]
	if !ok {
		if err := w.admit(); err != nil {
			return reply{}, err
		}
		r, r.err = do(w.ctx, name)
		if r.err != nil && !isNotFound(r.err) {
			w.client.charge()
			w.silent = w.probing
		}
		w.known[q] = r
	}
	if err := w.spend(addrSize * (len(r.addrs) + len(r.mx))); err != nil {
		return reply{}, err
	}
	return r, r.err
}

// admit reports whether one more query may be sent.
func (w *walk) admit() error {
	switch {
	case w.left == 0 && !w.probing:
		w.excess = true
		return &net.DNSError{Err: "too many queries for one check"}
	case w.left == 0 || w.silent:
		w.missing = true
		return &net.DNSError{Err: "not asked", IsTemporary: true}
	case !w.client.take():
		w.missing = true
		w.c.count.refused.Inc()
		return &net.DNSError{Err: "too many queries for one client", IsTemporary: true}
	}
	w.left--
	w.c.count.queries.Inc()
	return nil
}

// LookupTXT returns the records of a name.
func (w *walk) LookupTXT(_ context.Context, name string) ([]string, error) {
	r, err := w.ask('T', name, func(ctx context.Context, name string) (r reply, err error) {
		r.texts, err = w.c.resolver.TXT(ctx, name)
		return r, err
	})
	if err != nil {
		return nil, err
	}
	var records []string
	for _, t := range r.texts {
		if len(t) < len(version) || !strings.EqualFold(t[:len(version)], version) {
			continue
		}
		if err := w.spend(len(t) + macroSize*strings.Count(t, "%")); err != nil {
			return nil, err
		}
		if w.read(t); w.probing {
			t = w.forProbe(t, w.addr)
		} else {
			fmt.Fprintf(w.texts, "%d %s", len(t), t)
		}
		records = append(records, t)
	}
	return records, nil
}

// LookupMX returns the mail servers of a name.
func (w *walk) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	r, err := w.ask('M', name, func(ctx context.Context, name string) (r reply, err error) {
		r.mx, err = w.c.resolver.LookupMX(ctx, name)
		return r, err
	})
	return r.mx, err
}

// LookupAddr returns the reverse names of the client.
func (w *walk) LookupAddr(_ context.Context, addr string) ([]string, error) {
	r, err := w.ask('P', addr, func(ctx context.Context, _ string) (r reply, err error) {
		r.texts, err = w.c.resolver.PTR(ctx, w.id.addr)
		return r, err
	})
	return r.texts, err
}

// LookupIPAddr returns the addresses of a name that can match: those of the
// client's family, and those that exists wants.
func (w *walk) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	if name == never {
		return []net.IPAddr{{IP: net.IPv6zero}}, nil // neither void nor a match for exists
	}
	var addrs []netip.Addr
	var first error
	if w.id.addr.Is6() {
		r, err := w.ask('6', name, func(ctx context.Context, name string) (r reply, err error) {
			r.addrs, err = w.c.resolver.AAAA(ctx, name)
			return r, err
		})
		addrs, first = r.addrs, err
	}
	if w.id.addr.Is4() || w.exists {
		r, err := w.ask('4', name, func(ctx context.Context, name string) (r reply, err error) {
			r.addrs, err = w.c.resolver.A(ctx, name)
			return r, err
		})
		addrs = append(addrs[:len(addrs):len(addrs)], r.addrs...)
		if first == nil || !isNotFound(err) {
			first = err
		}
	}
	if len(addrs) == 0 {
		return nil, first
	}
	ips := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		ips[i].IP = a.AsSlice()
	}
	return ips, nil
}

func isNotFound(err error) bool {
	d, ok := err.(*net.DNSError)
	return ok && d.IsNotFound
}

const (
	version = "v=spf1"
	never   = "per-address.invalid"

	qualifiers = "+-~?"
)

var (
	macroLetter = regexp.MustCompile(`(?i)%\{([a-z])`)
	otherField  = regexp.MustCompile(`(?i)^[a-z][a-z0-9._-]*=`) // a modifier (RFC 7208 section 4.6.1)
)

// A term is one of a record: as it is, or a network that matches or does not.
type term struct {
	text      string
	network   *net.IPNet
	qualifier string // of the network
}

// read notes what the terms of a record ask for.
func (w *walk) read(record string) {
	for t := range strings.SplitSeq(record, " ") {
		u, exists := asks(t)
		w.uses |= u
		w.exists = w.exists || exists
	}
}

// asks says what of a message a term asks for, and whether it is exists.
func asks(t string) (u uses, exists bool) {
	lower := strings.ToLower(t)
	if strings.Contains(t, "=") && !strings.HasPrefix(lower, "redirect=") && otherField.MatchString(lower) {
		return 0, false // the version, exp, and what is unknown
	}
	bare := strings.TrimLeft(lower, qualifiers)
	if bare == "ptr" || strings.HasPrefix(bare, "ptr:") {
		u = usesAddr
	}
	if strings.Contains(t, "%") {
		for _, m := range macroLetter.FindAllStringSubmatch(lower, -1) {
			switch m[1] {
			case "l", "s":
				u |= usesSender
			case "h":
				u |= usesHelo
			case "i", "p":
				u |= usesAddr
			}
		}
	}
	return u, strings.HasPrefix(bare, "exists:")
}

// forProbe returns a record as it is evaluated for a probe. What asks about each
// address or sender does not match, and networks, of which some records have
// hundreds, are looked at here.
func (w *walk) forProbe(record string, addr netip.Addr) string {
	terms, ok := w.terms[record]
	if !ok {
		terms = split(record)
		w.terms[record] = terms
	}
	ip := net.IP(addr.AsSlice())
	var b strings.Builder
	for _, t := range terms {
		if t.network != nil {
			if !t.network.Contains(ip) {
				continue
			}
			return b.String() + t.qualifier + "all"
		}
		b.WriteString(t.text)
		b.WriteByte(' ')
	}
	return b.String()
}

func split(record string) (terms []term) {
	for s := range strings.SplitSeq(record, " ") {
		t := term{text: s}
		bare := s
		if s != "" && strings.Contains(qualifiers, s[:1]) {
			t.qualifier, bare = s[:1], s[1:]
		}
		u, _ := asks(s)
		switch {
		case u != 0:
			t.text = t.qualifier + "exists:" + never
		case len(bare) > 4 && (strings.EqualFold(bare[:4], "ip4:") || strings.EqualFold(bare[:4], "ip6:")):
			t.network = network(bare[4:])
		}
		terms = append(terms, t)
	}
	return terms
}

// network reads a network or an address as the library does; nil is an error,
// which is left to it.
func network(s string) *net.IPNet {
	if strings.Contains(s, "/") {
		_, n, _ := net.ParseCIDR(s)
		return n
	}
	ip := net.ParseIP(s)
	if ip == nil {
		return nil
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}
}
