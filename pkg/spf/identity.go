package spf

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// An identity is what is checked.
type identity struct {
	addr   netip.Addr // without a zone; IPv4-mapped IPv6 is IPv4
	domain string     // lower case, A-labels; empty if no record can be there
	local  string     // part of the sender, as written
	helo   string     // lower case
}

// identify returns the identity of RFC 7208 sections 2.3, 2.4 and 4.3: the
// sender's domain, or the HELO name with the local part "postmaster".
func identify(q Query) identity {
	id := identity{addr: q.Addr.Unmap().WithZone(""), helo: asciiName(q.Helo)}
	if !id.addr.IsValid() {
		return identity{}
	}
	sender := q.Sender
	if sender == "" || sender == "<>" {
		id.local, id.domain = "postmaster", domainOf(id.helo)
		return id
	}
	if strings.HasPrefix(sender, "@") { // a source route, RFC 5321 appendix C
		if _, rest, ok := strings.Cut(sender, ":"); ok {
			sender = rest
		}
	}
	at := strings.LastIndexByte(sender, '@')
	if at < 0 {
		return identity{}
	}
	id.local, id.domain = sender[:at], domainOf(asciiName(sender[at+1:]))
	if id.local == "" {
		id.local = "postmaster"
	}
	return id
}

// sender returns the address for macros. The library cuts it at the first @.
func (id identity) sender() string {
	return strings.ReplaceAll(id.local, "@", "_") + "@" + id.domain
}

// toASCII turns U-labels into A-labels (RFC 6531 section 3.7.3), and leaves
// alone what DNS names may have besides host names, such as underscores.
var toASCII = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))

// asciiName returns a name in lower case and A-labels, without the final dot. If
// it has none it is returned as it is.
func asciiName(name string) string {
	if a, err := toASCII.ToASCII(name); err == nil && utf8.ValidString(name) {
		name = a
	}
	return strings.TrimSuffix(strings.ToLower(name), ".")
}

// domainOf returns a name if it may have a record: at least two labels of
// letters, digits, hyphens and underscores. Else it returns "".
func domainOf(name string) string {
	if len(name) > maxName || !strings.Contains(name, ".") {
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return ""
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return ""
			}
		}
	}
	return name
}

const maxName = 253 // bytes of a domain name in text form (RFC 1035 section 2.3.4)

// uses says what of a message the records make use of besides the domain.
type uses uint8

const (
	usesSender uses = 1 << iota // macros l and s
	usesHelo                    // macro h
	usesAddr                    // macros i and p, and ptr
)

// A key is what a result depends on.
type key struct {
	addr                netip.Addr
	domain, local, helo string
}

// key returns what a result for id depends on, if records use u.
func (id identity) key(u uses) key {
	k := key{addr: id.addr, domain: id.domain}
	if u&usesSender != 0 {
		k.local = id.local
	}
	if u&usesHelo != 0 {
		k.helo = id.helo
	}
	return k
}
