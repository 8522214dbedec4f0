package main

import (
	"fmt"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/rdns"
)

// actions are the flags that say what is done with the clients of a class.
var actions = []struct {
	class         rdns.Class
	action, usage string
}{
	{rdns.Dynamic, cli.Junk, "what to do with access lines: `ACTION` is proceed, junk, defer, refuse, disconnect or slow:TIME"},
	{rdns.Generic, cli.Proceed, "`ACTION` for names that are the address and nothing more"},
	{rdns.Static, cli.Proceed, "`ACTION` for access lines whose address stays"},
	{rdns.Hosting, cli.Proceed, "`ACTION` for rented machines with the name they came with"},
	{rdns.None, cli.Proceed, "`ACTION` for clients without a name"},
	{rdns.Mismatch, cli.Proceed, "`ACTION` for names that do not resolve to the client (FCrDNS)"},
	{rdns.Bogus, cli.Junk, "`ACTION` for localhost, single labels, reverse zones and addresses as name"},
}

// The code for reverse names is that of RFC 7372 section 3.3.
const (
	residential = "550 5.7.1 [%i] %n looks like a residential or generic line; please use your provider's mail server"
	nameless    = "550 5.7.25 [%i] has no valid reverse name"
	unconfirmed = "550 5.7.25 [%i] reverse name %n does not resolve to this address"
)

// parseReplies returns the reply for each class: the given one, or our own.
func parseReplies(given string) (map[rdns.Class]cli.Reply, error) {
	replies := make(map[rdns.Class]cli.Reply)
	for class := rdns.None; class < rdns.Proper; class++ {
		text := residential
		switch class {
		case rdns.None, rdns.Bogus:
			text = nameless
		case rdns.Mismatch:
			text = unconfirmed
		}
		if given != "" {
			text = given
		}
		r, err := cli.ParseReply(text, "inc")
		if err != nil {
			return nil, fmt.Errorf("-reply %q: %w", given, err)
		}
		replies[class] = r
	}
	return replies, nil
}

// action returns what is to be done about a finding.
func (c *check) action(f rdns.Finding) cli.Action {
	if a := c.actions[f.Class]; a != nil {
		return *a
	}
	return cli.Action{Name: cli.Proceed} // there is no flag for proper names
}

// reply returns what a client is told if it is refused.
func (c *check) reply(a cli.Action, class rdns.Class) cli.Reply {
	r := c.replies[class]
	if a.Name == cli.Defer {
		r = r.Temporary()
	}
	return r
}

// expand puts the client into a reply.
func expand(r cli.Reply, f rdns.Finding, addr string) cli.Reply {
	return r.Expand("%i", addr, "%n", shown(f.Name), "%c", f.Class.String())
}
