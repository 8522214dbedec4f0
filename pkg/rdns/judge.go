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
}

// A Judge decides about clients. The zero value goes by the name alone. A Judge
// may be used by any number of goroutines.
type Judge struct {
	Resolver Resolver  // nil: as if no query was ever answered
	Allow    *Patterns // names that are proper
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

// Judge decides about c: allow list, bogus names, none and mismatch, match list,
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
	if !c.Addr.IsValid() {
		return Finding{Verdict{Proper, "no address"}, trim(c.Name)}
	}
	name := trim(c.Name)
	if name == Unknown {
		name = ""
	}
	cut := len(c.Name) == cutLength && !c.FCrDNS // one that resolves is whole
	if rule, ok := j.Allow.Match(name); ok && name != "" {
		return Finding{Verdict{Proper, "allow=" + rule.String()}, name}
	}
	var v Verdict
	if name != "" && !cut {
		if v = j.read(c.Addr, name); v.Class == Bogus {
			return j.clear(ctx, c, Finding{v, name})
		}
	}

	a := yes // the name resolves to the address
	if name == "" || cut || !c.FCrDNS {
		known := name
		if cut {
			known = ""
		}
		var full string
		full, a = j.confirm(ctx, c.Addr, known)
		if full == "" {
			if a == no {
				return Finding{Verdict{None, "no name"}, ""}
			}
			return Finding{Verdict{Proper, "dns=unclear"}, name}
		}
		if full != known {
			name = full
			if rule, ok := j.Allow.Match(name); ok {
				return Finding{Verdict{Proper, "allow=" + rule.String()}, name}
			}
			if v = j.read(c.Addr, name); v.Class == Bogus {
				return j.clear(ctx, c, Finding{v, name})
			}
		}
	}

	switch {
	case a == no && (j.Mismatch || v.Class == Proper):
		return Finding{Verdict{Mismatch, "name does not resolve to the address"}, name}
	case v.Class != Proper:
		return j.clear(ctx, c, Finding{v, name})
	case a == maybe && v.Evidence == "":
		v.Evidence = "dns=unclear"
	}
	return Finding{v, name}
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
	no answer = iota
	yes
	maybe // not clear
)

// confirm finds a name of addr that resolves to addr; known, if not empty, is
// one of its names. The answer no comes with a name that does not resolve to
// addr, or with none if addr has none.
func (j *Judge) confirm(ctx context.Context, addr netip.Addr, known string) (string, answer) {
	if j.Resolver == nil {
		return known, maybe
	}
	result := no
	if known != "" {
		if result = j.resolves(ctx, known, addr); result == yes {
			return known, yes
		}
	}
	names, err := j.Resolver.PTR(ctx, addr)
	if err != nil && !notFound(err) {
		return known, maybe
	}
	name := known
	if len(names) > maxNames {
		result = maybe // one of the others may resolve
	}
	for _, s := range names[:min(len(names), maxNames)] {
		if s = trim(s); s == "" || strings.EqualFold(s, known) {
			continue
		}
		if name == "" {
			name = s
		}
		switch j.resolves(ctx, s, addr) {
		case yes:
			return s, yes
		case maybe:
			result = maybe
		}
	}
	return name, result
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
