package main

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/rdns"
	"opensmtpd-filters/pkg/spf"

	"golang.org/x/net/publicsuffix"
)

// longName is the length to which smtpd cuts reverse names on some systems, so
// that one of this length is asked for again.
const longName = 64

// marks are what the classes of names are called here.
var marks = map[rdns.Class]greylist.Mark{
	rdns.None: greylist.NoName, rdns.Bogus: greylist.Unconfirmed, rdns.Mismatch: greylist.Unconfirmed,
	rdns.Dynamic: greylist.Dynamic, rdns.Generic: greylist.Generic, rdns.Static: greylist.Static,
	rdns.Hosting: greylist.Hosting, rdns.Proper: greylist.Proper,
}

// clientOf is a client as its name makes it known.
func clientOf(addr netip.Addr, name string, class rdns.Class, confirmed, unclear bool) greylist.Client {
	c := greylist.Client{Addr: addr, Class: marks[class], Shown: "-"}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	switch {
	case name == "" || name == rdns.Unknown:
		if c.Class = greylist.NoName; unclear {
			c.Class = greylist.DNSFail
		}
	case confirmed && class != rdns.Bogus:
		c.Name, c.Shown = name, name
		c.Domain = name
		if d, err := publicsuffix.EffectiveTLDPlusOne(name); err == nil {
			c.Domain = d
		}
	default:
		c.Shown = "?" + name
		if unclear && c.Class == greylist.Proper {
			c.Class = greylist.DNSFail
		} else if c.Class == greylist.Proper {
			c.Class = greylist.Unconfirmed
		}
	}
	return c
}

// judge finds out about a client. What smtpd has not found, or cut, is asked for
// again: it says the same when the DNS does not answer.
func (c *check) judge(ctx context.Context, addr netip.Addr, name string, fcrdns bool) greylist.Client {
	j := rdns.Judge{Resolver: c.Resolver, Mismatch: true}
	var list chan string // which of -dnswl has it, asked meanwhile
	if c.good != nil {
		list = make(chan string, 1)
		guard.Go(c.Log, "dnswl", func() { defer close(list); list <- c.listed(ctx, addr) })
	}
	who, ok := known(addr, name, fcrdns)
	if !ok {
		f := j.Judge(ctx, rdns.Client{Addr: addr, Name: name, FCrDNS: fcrdns})
		who = clientOf(addr, f.Name, f.Class, f.Confirmed, f.Unclear)
	}
	if list != nil {
		select {
		case who.Listed = <-list:
		case <-ctx.Done():
		}
	}
	return who
}

// known is the client if smtpd's word is enough.
func known(addr netip.Addr, name string, fcrdns bool) (greylist.Client, bool) {
	if !fcrdns || len(name) == longName {
		return greylist.Client{}, false
	}
	return clientOf(addr, name, rdns.Classify(addr, name).Class, true, false), true
}

// client begins to find out about the client, once in a session.
func (c *check) client(s *filter.Session[state]) {
	if s.Local.known || s.Local.client != nil {
		return
	}
	addr, name, fcrdns := s.Src.Addr(), s.RDNS, s.FCrDNS
	if c.good == nil {
		s.Local.who, s.Local.known = known(addr, name, fcrdns)
	}
	if !s.Local.known {
		s.Local.client = filter.Go(s, c.Timeout.Value, func(ctx context.Context) greylist.Client {
			return c.judge(ctx, addr, name, fcrdns)
		})
	}
}

// withAttempt goes on when all is known about an attempt, or will not be.
func (c *check) withAttempt(s *filter.Session[state], rcpts []string, then func(greylist.Attempt, spf.Result) filter.Response) filter.Response {
	c.client(s)
	return c.withSPF(s, func(r spf.Result) filter.Response {
		a := greylist.Attempt{
			Time: s.Time(), Helo: s.Helo, Sender: s.Tx.From, Rcpts: rcpts, SPF: spfOf(r, c.spfMode),
			Junked: s.Local.junked != nothing, Trap: s.Local.trap != "",
		}
		if s.Local.known {
			c.isClient(&a, s.Local.who, r)
			return then(a, r)
		}
		return filter.Await(s.Local.client, func(who greylist.Client, err error) filter.Response {
			if err != nil {
				who = clientOf(s.Src.Addr(), s.RDNS, rdns.Proper, false, true)
			}
			s.Local.who, s.Local.known = who, err == nil
			c.isClient(&a, who, r)
			return then(a, r)
		})
	})
}

// isClient says who makes an attempt, and what lets it through at once.
func (c *check) isClient(a *greylist.Attempt, who greylist.Client, r spf.Result) {
	a.Client = who
	p := c.networks.of(who.Addr)
	if p != nil && c.providersMode != "off" {
		a.Client.Provider, a.Client.ProviderDomain = p.name, p.names
	}
	switch {
	case c.spfMode == "skip" && origin(r) != "":
		a.Exempt = "-spf skip"
	case c.providersMode == "skip" && p != nil:
		a.Exempt = "-providers skip"
	}
}

// spfOf is what SPF says, for the decision; mode is that of -spf.
func spfOf(r spf.Result, mode string) greylist.SPFResult {
	if mode == "off" {
		return greylist.SPFResult{Status: greylist.SPFOff}
	}
	return greylist.SPFResult{Status: greylist.Status(r.Status.String()), Domain: r.Domain, Frees: origin(r) != ""}
}

// scope is what a filter's junk holds for.
type scope uint8

const (
	nothing scope = iota
	transaction
	session
)

// taken notes that another filter has junked the session or the transaction.
func (c *check) taken(s *filter.Session[state], l *proto.Line) {
	t, err := proto.ParseTaken(l.Fields)
	if err != nil || t.Decision != "junk" {
		return
	}
	of := session
	if t.Phase == proto.MailFrom || t.Phase == proto.RcptTo || t.Phase == proto.Data || s.Tx.ID != "" {
		of = transaction
	}
	s.Local.junked = max(s.Local.junked, of)
}

// accepted notes the domains that are ours: those that strangers may write to.
func (c *check) accepted(s *filter.Session[state], l *proto.Line) {
	if c.Exempt.Own(program.ClientOf(s)).Exempt {
		return
	}
	m, err := proto.ParseMailbox(l.Version, l.Fields)
	if err == nil && m.Result == proto.OK {
		_ = c.greylist.Ours(s.Time(), m.Address) // without a key there are no decisions either, and they say so
	}
}

const (
	natMessages = 100
	natTime     = time.Hour
)

// A nat notices that all mail comes from one private address, which is never
// greylisted: then smtpd does not see the clients.
type nat struct {
	mu       sync.Mutex
	addr     netip.Addr // the one
	since    time.Time
	messages int
	said     bool
}

// saw notes a message of a client. It returns true once it is time to say so.
func (n *nat) saw(addr netip.Addr, private bool, t time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !private || addr != n.addr || t.Sub(n.since).Abs() > natTime {
		n.addr, n.since, n.messages = netip.Addr{}, t, 0
		if private {
			n.addr = addr
		}
	}
	if n.messages++; !private || n.messages < natMessages || n.said {
		return false
	}
	n.said = true
	return true
}
