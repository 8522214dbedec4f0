package rdns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// A Resolver asks the DNS. An error that is a *net.DNSError with IsNotFound
// means that there is clearly no such record; every other error means that
// nothing is known.
type Resolver interface {
	PTR(ctx context.Context, addr netip.Addr) ([]string, error)
	A(ctx context.Context, name string) ([]netip.Addr, error)
	AAAA(ctx context.Context, name string) ([]netip.Addr, error)
}

// A Client is what the mail server knows about a client.
type Client struct {
	Addr   netip.Addr
	Name   string // the reverse name; Unknown or empty if none was found
	FCrDNS bool   // the name resolves to Addr
	Helo   string // the name in HELO or EHLO, empty if there was none yet
}

// A Finding is the decision about a client.
type Finding struct {
	Verdict

	// Name is the reverse name that was judged, without trailing dot, empty
	// when there is none. It differs from the one in Client when that was
	// missing, cut, or not the one that resolves. When Class is Bogus it may
	// hold any bytes.
	Name string

	// Confirmed tells whether Name resolves to the address, by the word of the mail
	// server or of the DNS. Any other name is whatever somebody wrote into
	// a reverse zone. A name that nobody asked about is not confirmed.
	Confirmed bool

	// Unclear tells that the DNS was asked about the name and did not say. When a
	// name is neither confirmed nor unclear, the DNS has said no, or the name
	// is Bogus, which needs no query.
	Unclear bool
}

// A Judge decides about clients. The zero value goes by the name alone. A Judge
// may be used by any number of goroutines.
//
// A filter that only wants to know with whom it deals sets Resolver and Mismatch:
// the client is known by Name when the finding is Confirmed and its class
// Proper.
type Judge struct {
	Resolver Resolver  // nil: as if no query was ever answered
	Allow    *Patterns // names that are proper, unless the DNS says that they are not the client's
	Match    *Patterns // names that are dynamic
	Helo     bool      // let the name in HELO clear a client

	// Mismatch finds a name that does not resolve to the client so, whatever it
	// says. Otherwise only one that says nothing else against the client.
	Mismatch bool
}

// cutLength is the length to which smtpd cuts reverse names where HOST_NAME_MAX is 64,
// which is on Linux.
const cutLength = 64

// maxNames bounds the names of one address that are looked up.
const maxNames = 4

// Asks reports whether Judge may ask the DNS about c. If not, it does not wait.
func (j *Judge) Asks(c Client) bool {
	name := trim(c.Name)
	return !c.FCrDNS || name == "" || name == Unknown || c.Helo != "" && j.Helo
}

// Judge decides about c: bogus names, none, allow list, mismatch, match list,
// Classify, and then whether the HELO of a flagged client clears it.
//
// A mail server says "no name" for every failure of the DNS as well. So nothing
// is None or Mismatch before the Resolver said so clearly. When it does not, the
// name alone decides, and a client without a name is Proper. A client that has a
// name after all is judged by that name. Queries are sent for these
// clients, for names that were cut, and for the HELO of flagged clients.
// When ctx ends, what is not known by then is not clear.
func (j *Judge) Judge(ctx context.Context, c Client) Finding {
	c.Addr = c.Addr.Unmap().WithZone("")
	name := trim(c.Name)
	if !c.Addr.IsValid() {
		return Finding{Verdict: Verdict{Proper, "no address"}, Name: name}
	}
	if name == Unknown {
		name = ""
	}
	found := named{name: name}
	if c.FCrDNS {
		found.own, found.all = yes, yes
	}
	cut := len(c.Name) == cutLength && !c.FCrDNS // one that resolves is whole
	if _, allowed := j.Allow.Match(name); name == "" || !c.FCrDNS && (cut || allowed || Classify(c.Addr, name).Class != Bogus) {
		known := name
		if cut {
			known = ""
		}
		found = j.confirm(ctx, c.Addr, known)
		if found.name == "" && found.all == maybe {
			return Finding{Verdict: Verdict{Proper, "dns=unclear"}, Name: name, Unclear: true}
		}
	}
	f := Finding{
		Name:      found.name,
		Confirmed: found.own == yes,
		Unclear:   found.all == maybe,
	}
	if f.Name == "" {
		f.Verdict = Verdict{None, "no name"}
		return j.clear(ctx, c, f)
	}
	// Whoever writes a reverse zone can use up our time before another name of his is
	// asked about: so doubt helps only the name that the mail server found.
	if rule, ok := j.Allow.Match(f.Name); ok && (f.Confirmed || found.own == maybe && f.Name == name && !cut) {
		f.Verdict = Verdict{Proper, "allow=" + rule.String()}
		return f
	}
	switch f.Verdict = j.read(c.Addr, f.Name); {
	case f.Class != Bogus && found.all == no && (j.Mismatch || f.Class == Proper):
		f.Verdict = Verdict{Mismatch, "name does not resolve to the address"}
	case f.Class == Proper && f.Unclear && f.Evidence == "":
		f.Evidence = "dns=unclear"
	}
	if f.Class == Proper {
		return f
	}
	return j.clear(ctx, c, f)
}

// read judges by what a name says.
func (j *Judge) read(addr netip.Addr, name string) Verdict {
	v := Classify(addr, name)
	if v.Class != Bogus {
		if rule, ok := j.Match.Match(name); ok {
			return Verdict{Dynamic, "match=" + rule.String()}
		}
	}
	return v
}

// trim removes a trailing dot, which is all there is to the root.
func trim(name string) string { return strings.TrimSuffix(name, ".") }

// An answer is what the DNS says.
type answer uint8

const (
	no    answer = iota
	maybe        // not clear
	yes
)

// named is a name of an address, and what the DNS says about it.
type named struct {
	name string
	own  answer // whether it resolves to the address
	all  answer // whether any name of the address does
}

// confirm finds a name of addr that resolves to addr; known, if not empty, is
// one of its names. When none does, it gives the first that is not clear, else the
// first, and "" if addr has no name.
func (j *Judge) confirm(ctx context.Context, addr netip.Addr, known string) named {
	if j.Resolver == nil {
		return named{known, maybe, maybe}
	}
	var found named
	try := func(name string) bool {
		a := j.resolves(ctx, name, addr)
		if found.name == "" || a > found.own {
			found.name, found.own = name, a
		}
		return a == yes
	}
	if known != "" && try(known) {
		found.all = yes
		return found
	}
	names, err := j.Resolver.PTR(ctx, addr)
	if err != nil && !notFound(err) {
		found.all = maybe
		return found
	}
	for _, s := range names[:min(len(names), maxNames)] {
		if s = trim(s); s == "" || strings.EqualFold(s, known) {
			continue
		}
		if try(s) {
			break
		}
	}
	found.all = found.own
	if found.all == no && len(names) > maxNames {
		found.all = maybe // one of the others may resolve
	}
	return found
}

// resolves tells whether addr is among the addresses of name.
func (j *Judge) resolves(ctx context.Context, name string, addr netip.Addr) answer {
	lookup := j.Resolver.AAAA
	if addr.Is4() {
		lookup = j.Resolver.A
	}
	addrs, err := lookup(ctx, name)
	switch {
	case err == nil && slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == addr }):
		return yes
	case err == nil, notFound(err):
		return no
	}
	return maybe
}

func notFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

// clear gives f, or a proper finding if the client has a name of its own in
// HELO: one that resolves to its address and is proper itself. There are domains
// that resolve any address written below them, so it may not hold the address,
// whatever else it says.
func (j *Judge) clear(ctx context.Context, c Client, f Finding) Finding {
	if !j.Helo || j.Resolver == nil || Classify(c.Addr, c.Helo).Class != Proper || embed(c.Addr, normal(c.Helo)).enough {
		return f
	}
	if _, ok := j.Match.Match(c.Helo); ok {
		return f
	}
	helo := trim(c.Helo)
	if j.resolves(ctx, helo, c.Addr) != yes {
		return f
	}
	f.Verdict = Verdict{Proper, "helo=" + helo + "; was=" + f.Class.String()}
	return f
}
