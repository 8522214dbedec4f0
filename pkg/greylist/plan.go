package greylist

import (
	"bytes"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// A role is what a record is needed for.
type role uint8

const (
	roleFree    role = iota // an origin that passes as such
	roleAttempt             // origin, sender and recipient
	rolePair                // sender and recipient
	roleLearned             // a user has written to the sender
	roleExpect              // the message is expected
	roleRecent              // the client was vouched for
	roleOurs                // the sender's domain is ours: our mail does not come from strangers
	roleTrap                // the client has written to a trap
	roleClient              // how many attempts of the client wait
)

// A slot is a record that an attempt needs.
type slot struct {
	role  role
	key   Key
	name  string // the origin, or what is expected
	rcpt  string // normalised, empty if it is about all
	blank Record // a new one, without state
}

// A plan is what an attempt needs to know.
type plan struct {
	attempt *Attempt
	slots   []slot // those of roleFree come first: Peek asks for no more
	free    int    // how many of these
	origins []string
	host    string // the client
	sender  string // normalised
	rcpt    string // the first recipient, normalised
	by      string // what vouches for it
	suspect Mark
	net     string // of the client, in a pair's record
}

const (
	netLen   = 4 // bytes of hash
	groupLen = 8
	maxNets  = 8
	maxRcpts = 20 // for which an attempt is noted
)

func (g *Greylist) plan(h *hasher, a *Attempt) *plan {
	addr := a.Client.Addr.Unmap().WithZone("")
	p := &plan{attempt: a, host: hostOrigin(addr, g.policy.Mask6)}
	p.by, p.suspect = a.vouch()
	rcpts := normalized(h, a.Rcpts)
	p.rcpt, p.sender = NormalizeRcpt(first(a.Rcpts)), NormalizeSender(a.Sender, first(a.Rcpts))

	client := addr.String() + " " + a.Client.shown()
	group := h.group(addr)
	add := func(role role, kind Kind, name, sender, rcpt string) *slot {
		e := h.entry(kind, name, sender, rcpt)
		if !g.clear {
			e.Record = Record{}
		} else if kind == KindAttempt {
			e.Record.Client = client
		}
		if role == roleAttempt || role == rolePair {
			if string(e.Key[:8]) != group {
				e.Record.Net = group
			}
		}
		p.slots = append(p.slots, slot{role, e.Key, name, rcpt, e.Record})
		return &p.slots[len(p.slots)-1]
	}

	shared := a.sharedOrigins()
	for _, o := range shared {
		if !strings.HasPrefix(o, "name:") { // anybody gets a name in a large domain
			add(roleFree, KindOrigin, o, "", "")
		}
	}
	add(roleFree, KindOrigin, p.host, "", "")
	p.free = len(p.slots)

	// What the address alone has tried is not kept: its network has tried the
	// same, at least as long ago.
	net := "net:" + netOf(addr, g.policy.Mask4, g.policy.Mask6).String()
	p.origins = append(shared, p.host, net)
	pairs := a.pairs()
	for _, rcpt := range rcpts {
		sender := NormalizeSender(a.Sender, rcpt)
		for _, o := range shared {
			if strings.HasPrefix(o, "spf:") && a.SPF.Frees {
				add(roleAttempt, KindAttempt, o, "", rcpt) // proven by its domain
			} else {
				add(roleAttempt, KindAttempt, o, sender, rcpt)
			}
		}
		add(roleAttempt, KindAttempt, net, sender, rcpt)
		if pairs {
			add(rolePair, KindPair, "", sender, rcpt)
			add(roleLearned, KindLearned, "", sender, rcpt)
		}
	}
	for _, what := range a.expectable(p.host) {
		add(roleExpect, KindExpect, what, "", "")
		for _, rcpt := range rcpts {
			add(roleExpect, KindExpect, what, "", rcpt)
			if !strings.Contains(what, "@") && what != p.host {
				add(roleExpect, KindReply, what, "", rcpt)
			}
		}
	}
	if pairs {
		add(roleOurs, KindOurs, a.senderDomain(), "", "")
	}
	if p.suspect == DNSFail {
		add(roleRecent, KindVouched, p.host, registered(a.senderDomain()), "")
	}
	add(roleTrap, KindTrap, p.host, "", "")
	add(roleClient, KindClient, p.host, "", "")
	k := h.key(0, groupOf(addr), net, "", "")
	p.net = string(k[8 : 8+netLen])
	return p
}

func (p *plan) keys() []Key {
	keys := make([]Key, len(p.slots))
	for i := range p.slots {
		keys[i] = p.slots[i].key
	}
	return keys
}

// normalized returns the recipients that an attempt is noted for. Some servers
// name them in another order when they come again, or a part of them: so which
// ones these are depends on nothing but themselves.
func normalized(h *hasher, rcpts []string) []string {
	var out []string
	for _, r := range rcpts {
		if r = NormalizeRcpt(r); !slices.Contains(out, r) || len(out) > maxRcpts {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return []string{""}
	}
	if len(out) > maxRcpts {
		rank := make(map[string]Key, len(out))
		for _, r := range out {
			rank[r] = h.rank(r)
		}
		slices.SortFunc(out, func(a, b string) int {
			x, y := rank[a], rank[b]
			return bytes.Compare(x[:], y[:])
		})
		out = slices.Compact(out)
		out = out[:min(len(out), maxRcpts)]
	}
	return out
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// sharedOrigins are those that the client has in common with others.
func (a *Attempt) sharedOrigins() (origins []string) {
	if a.SPF.Status == SPFPass && a.SPF.Domain != "" {
		origins = append(origins, "spf:"+asciiDomain(a.SPF.Domain))
	}
	if a.Client.Provider != "" {
		origins = append(origins, "provider:"+strings.ToLower(cutTo(a.Client.Provider, 255)))
	}
	if a.Client.Class == Proper && a.Client.Name != "" && a.Client.Domain != "" {
		origins = append(origins, "name:"+asciiDomain(a.Client.Domain))
	}
	return origins
}

// maxParents bounds the domains above a name that it is looked for in.
const maxParents = 5

// expectable returns what an operator or a user may have to expect, for this
// message to be it: what is proven of its sender, and the client.
func (a *Attempt) expectable(host string) (what []string) {
	add := func(s string) {
		if s != "" && !slices.Contains(what, s) {
			what = append(what, s)
		}
	}
	addDomains := func(name string) {
		name = asciiDomain(name)
		if strings.Contains(name, ".") {
			add(name)
		}
		labels := strings.Split(name, ".")
		for i := max(0, len(labels)-maxParents); i+1 < len(labels); i++ {
			add(strings.Join(labels[i:], "."))
		}
	}
	name := ""
	if a.Client.Class == Proper {
		name = a.Client.Name
	}
	domain := a.senderDomain()
	proven := a.SPF.Status == SPFPass && domain != ""
	if proven || domain != "" && inDomain(name, domain) {
		add(expectedAddress(a.Sender))
	}
	if proven {
		addDomains(domain)
	}
	if name != "" {
		addDomains(name)
	}
	add(host)
	return what
}

// expectedAddress is a sender as it is expected.
func expectedAddress(addr string) string {
	local, domain := splitAddr(strings.ToLower(addr))
	return cutTo(local, 64) + "@" + asciiDomain(domain)
}

// hostOrigin is the one machine, as far as an address tells: an IPv6 host has
// its /64.
func hostOrigin(a netip.Addr, mask6 int) string {
	if a.Is4() {
		return a.String()
	}
	return netOf(a, 32, max(mask6, 64)).String()
}

func (c *Client) shown() string {
	for _, s := range []string{c.Shown, c.Name} {
		if s != "" {
			return cutTo(s, 255)
		}
	}
	return "-"
}

// A table is a plan with the records as they are at a time.
type table struct {
	*plan
	policy *Policy
	now    int64
	recs   []Record
}

// each returns the slots of a role with their records.
func (t *table) each(roles ...role) iter.Seq2[*slot, *Record] {
	return func(yield func(*slot, *Record) bool) {
		for i := range t.slots {
			if slices.Contains(roles, t.slots[i].role) && !yield(&t.slots[i], &t.recs[i]) {
				return
			}
		}
	}
}

// one returns the slot that is the only one of its role.
func (t *table) one(role role) (*slot, *Record) {
	for s, r := range t.each(role) {
		return s, r
	}
	return nil, nil
}
