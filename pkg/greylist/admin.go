package greylist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"opensmtpd-filters/pkg/ipset"
)

// All returns all records, in no order. It ends at the first error.
func (g *Greylist) All(ctx context.Context) iter.Seq2[Entry, error] {
	return g.store.All(ctx)
}

// Times returns when a retry passes, zero if the record lets none pass by its
// age alone, and until when the record means something if it is not used again.
func (g *Greylist) Times(t time.Time, e Entry) (passes, expires time.Time) {
	r := e.Record
	r.clamp(t.UnixMilli())
	kind := e.Key.Kind()
	if kind == KindAttempt && r.State == Grey {
		passes = time.UnixMilli(r.First).Add(g.policy.PassTime)
	}
	return passes, time.UnixMilli(g.policy.expiry(kind, r))
}

// A target is what an operator means by a key.
type target struct {
	entries []Entry           // the records; the first is the one that can pass
	also    func(Record) bool // others that delete takes, of attempts; nil: none
	query   Query             // where those are
	note    string            // what a pass of it does not do
	refused error             // why it cannot pass
}

// target reads a key: 32 hexadecimal digits as in an export, an address, net:NETWORK,
// spf:DOMAIN, provider:NAME or SENDER,RECIPIENT; all as the log has them too, with
// their names before and the addresses of mail in < >.
func (g *Greylist) target(text string) (*target, error) {
	h, err := g.hash()
	if err != nil {
		return nil, err
	}
	text = unlogged(text)
	if k, err := ParseKey(text); err == nil {
		return &target{entries: []Entry{{Key: k}}}, nil
	}
	if sender, rcpt, ok := cutPair(text); ok {
		return g.pairTarget(h, sender, rcpt)
	}
	origin := func(name string) *target {
		return &target{
			entries: []Entry{h.entry(KindOrigin, name, "", "")},
			also:    func(r Record) bool { return r.Origin == name },
			query:   Query{Kind: KindAttempt, Client: name},
		}
	}
	kind, name, prefixed := strings.Cut(strings.ToLower(text), ":")
	if net, err := ipset.ParsePrefix(text); err == nil {
		if net.IsSingleIP() || net.Addr().Is6() && net.Bits() >= max(g.policy.Mask6, 64) {
			return g.hostTarget(h, net.Addr()), nil
		}
		kind, name, prefixed = "net", net.String(), true
	}
	switch {
	case prefixed && kind == "net":
		net, err := ipset.ParsePrefix(name)
		if err != nil {
			return nil, fmt.Errorf("%s is not a network", quoted(name))
		}
		t := origin("net:" + net.String())
		t.refused = errors.New("a network belongs in a list of -allowClients")
		return t, nil
	case prefixed && kind == "spf":
		name, err := parseDomain(asciiDomain(name))
		if err != nil {
			return nil, err
		}
		t := origin("spf:" + name)
		t.note = "mail for which SPF passes"
		return t, nil
	case prefixed && kind == "name":
		name, err := parseDomain(asciiDomain(name))
		if err != nil {
			return nil, err
		}
		t := origin("name:" + name)
		t.refused = fmt.Errorf("a name alone lets nobody in; it belongs in a list of -allowClients, as %s", name)
		return t, nil
	case prefixed && kind == "provider":
		if !slices.Contains(g.names, name) {
			return nil, fmt.Errorf("%s is not a provider that is known: %s", quoted(name), strings.Join(g.names, ", "))
		}
		return origin(providerOrigin(name)), nil
	}
	for _, name := range []string{"from=", "sender=", "rcpt=", "name=", "client="} {
		text = strings.TrimPrefix(text, name)
	}
	return nil, hint(unbracket(text))
}

// hint says what to give instead of what is no key.
func hint(text string) error {
	local, domain := splitAddr(text)
	if domain != "" {
		if _, err := parseDomain(asciiDomain(domain)); err == nil && local != "" {
			return fmt.Errorf("%s is no key: give SENDER,RECIPIENT, or a line of -allowSenders, or \"expect %s\"", quoted(text), text)
		}
	} else if name, err := parseDomain(asciiDomain(text)); err == nil && strings.Contains(name, ".") {
		return fmt.Errorf("%s is no key: give spf:%s if SPF proves its mail, or a line of -allowClients for names or -allowSenders for senders, or \"expect %s\"", quoted(text), name, name)
	}
	return fmt.Errorf("%s is not a key, address, net:NETWORK, spf:DOMAIN, provider:NAME or SENDER,RECIPIENT", quoted(text))
}

func (g *Greylist) hostTarget(h *hasher, addr netip.Addr) *target {
	host := hostOrigin(addr, g.policy.Mask6)
	query := Query{Kind: KindAttempt}
	if g.policy.Mask4 >= 16 {
		query.Client = around(netip.PrefixFrom(addr, addr.BitLen()))
	}
	return &target{
		entries: []Entry{h.entry(KindOrigin, host, "", ""), h.entry(KindTrap, host, "", ""), h.entry(KindClient, host, "", "")},
		also: func(r Record) bool {
			p, err := netip.ParsePrefix(strings.TrimPrefix(r.Origin, "net:"))
			return err == nil && p.Contains(addr)
		},
		query: query,
	}
}

func (g *Greylist) pairTarget(h *hasher, from, to string) (*target, error) {
	if !strings.Contains(to, "@") {
		return nil, fmt.Errorf("%s is not the address of a recipient", quoted(to))
	}
	rcpt := NormalizeRcpt(to)
	sender := NormalizeSender(from, rcpt)
	_, domain := splitAddr(sender)
	t := &target{
		entries: []Entry{h.entry(KindPair, "", sender, rcpt), h.entry(KindLearned, "", sender, rcpt)},
		also: func(r Record) bool {
			return r.Rcpt == rcpt && (r.Sender == sender || r.Sender == "" && r.Origin == "spf:"+domain)
		},
		query: Query{Kind: KindAttempt, Rcpt: rcpt},
		note:  "mail of clients whose name is confirmed and not that of a home line, unless SPF says they may not send it",
	}
	if sender == NullSender {
		t.refused = errors.New("everybody sends bounces; allow the address of the client, or list it")
	} else if domain == "" {
		return nil, fmt.Errorf("%s is not the address of a sender", quoted(from))
	}
	return t, nil
}

// unlogged returns a key without what the log, and who copies from it, adds.
func unlogged(text string) string {
	text = strings.TrimSpace(text)
	if s, err := strconv.Unquote(text); err == nil {
		text = s
	}
	for _, name := range []string{"addr=", "origin=", "key="} {
		if s, ok := strings.CutPrefix(text, name); ok {
			return s
		}
	}
	return text
}

// cutPair returns sender and recipient of "SENDER,RECIPIENT", "from=<SENDER>
// rcpt=<RECIPIENT>", and what lies between.
func cutPair(text string) (sender, rcpt string, ok bool) {
	text = strings.TrimPrefix(text, "from=")
	sep := ","
	for _, s := range []string{",rcpt=", " rcpt=", ">,<", "> <", "> "} {
		if strings.Contains(text, s) {
			sep = s
			break
		}
	}
	i := strings.LastIndex(text, sep) // a sender may have a comma in quotes
	if i < 0 {
		return "", "", false
	}
	if rcpt = unbracket(text[i+len(sep):]); !strings.Contains(rcpt, "@") {
		return "", "", false
	}
	return unbracket(text[:i]), unbracket(strings.TrimPrefix(rcpt, "rcpt=")), true
}

// Keys returns the keys that an operator means, see Allow.
func (g *Greylist) Keys(text string) ([]Entry, error) {
	t, err := g.target(text)
	if err != nil {
		return nil, err
	}
	return t.entries, nil
}

// Allow makes what a key says a pass. A key is 32 hexadecimal digits as in an export,
// an address, spf:DOMAIN, provider:NAME or SENDER,RECIPIENT, as such or as in the
// log. Networks and names are for lists. Note says for what mail the pass is, if not
// for all.
func (g *Greylist) Allow(ctx context.Context, t time.Time, text string) (note string, err error) {
	to, err := g.target(text)
	if err != nil {
		return "", err
	}
	if to.refused != nil {
		return "", to.refused
	}
	e := to.entries[0]
	kind := e.Key.Kind()
	switch kind {
	case KindOrigin, KindAttempt, KindPair, KindLearned:
	default:
		return "", fmt.Errorf("%s is the key of a %s record, which cannot pass", text, kind)
	}
	bare := e.Record == Record{} // only the key is known
	if kind == KindPair {
		if ours, err := g.isOurs(ctx, t, e.Record.Sender); err != nil || ours {
			return "", cmp.Or(err, errOurSender)
		}
	}
	if !g.clear {
		e.Record = Record{}
	}
	now := t.UnixMilli()
	done := false
	err = g.store.Update(ctx, []Key{e.Key}, func(recs []Record) {
		r := &recs[0]
		if done = r.State != Absent || !bare; !done {
			return
		}
		if r.State == Absent {
			*r = e.Record
			r.First = now
		}
		r.State, r.Last, r.Nets, r.Net = Pass, now, "", ""
	})
	if err == nil && !done {
		err = errors.New("there is no such record")
	}
	return to.note, err
}

var errOurSender = errors.New("the sender is in a domain of ours, and our mail does not come from strangers; allow the address of the client, or list it")

// isOurs reports whether a sender is in a domain of ours.
func (g *Greylist) isOurs(ctx context.Context, t time.Time, sender string) (bool, error) {
	h, err := g.hash()
	if err != nil {
		return false, err
	}
	k := h.entry(KindOurs, rcptDomain(sender), "", "").Key
	recs, err := g.store.Get(ctx, []Key{k})
	return err == nil && g.policy.passes(KindOurs, recs[0], t.UnixMilli()), err
}

// Delete removes what a key says, and the attempts that it names as far as they are
// stored in clear: those of an address's network, of an origin, or of a sender and
// recipient. A domain, an address of mail or of a client that is expected is so no
// more. It says how many records that was.
func (g *Greylist) Delete(ctx context.Context, text string) (removed int, err error) {
	to, err := g.target(text)
	expected, err2 := g.expectKey(unlogged(text), "")
	if err != nil && err2 != nil {
		return 0, err
	}
	if to == nil {
		to = &target{}
	}
	var keys []Key
	for _, e := range to.entries {
		keys = append(keys, e.Key)
	}
	if err2 == nil {
		keys = append(keys, expected.Key)
		for e, err := range Find(ctx, g.store, Query{Kind: KindExpect}) {
			if err != nil {
				return 0, err
			}
			if e.Record.Origin == expected.Record.Origin && e.Key != expected.Key {
				keys = append(keys, e.Key)
			}
		}
	}
	if to.also != nil {
		for e, err := range Find(ctx, g.store, to.query) {
			if err != nil {
				return 0, err
			}
			if to.also(e.Record) {
				keys = append(keys, e.Key)
			}
		}
	}
	return g.remove(ctx, keys)
}

// DeleteWhat removes the records that are meant, and says how many that was.
func (g *Greylist) DeleteWhat(ctx context.Context, w What) (removed int, err error) {
	var keys []Key
	for e, err := range g.Find(ctx, w) {
		if err != nil {
			return 0, err
		}
		keys = append(keys, e.Key)
	}
	return g.remove(ctx, keys)
}

func (g *Greylist) remove(ctx context.Context, keys []Key) (removed int, err error) {
	for step := range slices.Chunk(keys, importStep) {
		n := new(int)
		err := g.store.Update(ctx, step, func(recs []Record) {
			*n = 0
			for i := range recs {
				if recs[i].State != Absent {
					*n++
				}
				recs[i] = Record{}
			}
		})
		if err != nil {
			return removed, err
		}
		removed += *n
	}
	return removed, nil
}
