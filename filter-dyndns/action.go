package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/rdns"
)

// action is what is done with the clients of a class.
type action struct {
	name  string
	delay time.Duration // of slow
}

func (a *action) String() string { return a.name }

// Set reads proceed, junk, reject, tempfail, disconnect or slow:TIME.
func (a *action) Set(s string) error {
	name, delay, slow := strings.Cut(s, ":")
	*a = action{name: s}
	switch name {
	case "proceed", "junk", "reject", "tempfail", "disconnect":
		if slow {
			return fmt.Errorf("%s takes no time", name)
		}
		return nil
	case "slow":
		d, err := cli.ParseDuration(delay)
		if err != nil {
			return err
		}
		if d <= 0 || d > filter.MaxDelay {
			return fmt.Errorf("slow takes a time up to %v", filter.MaxDelay)
		}
		a.delay = d
		return nil
	}
	return errors.New("not one of proceed, junk, reject, tempfail, disconnect, slow:TIME")
}

// refuses reports whether the client gets a reply of ours.
func (a *action) refuses() bool {
	return a.name == "reject" || a.name == "tempfail" || a.name == "disconnect"
}

// response is what smtpd is told.
func (a *action) response(r cli.Reply) filter.Response {
	switch a.name {
	case "junk":
		return filter.Junk()
	case "reject", "tempfail":
		return filter.Reject(r.Code, r.Enhanced, r.Text)
	case "disconnect":
		return filter.Disconnect(r.Code, r.Enhanced, r.Text)
	}
	return filter.Proceed().After(a.delay)
}

const (
	residential = "550 5.7.1 [%i] %n looks like a residential or generic line; please use your provider's mail server"
	nameless    = "550 5.7.25 [%i] has no valid reverse name" // RFC 7372 section 3.3
)

// parseReplies returns the reply for each class: the given one, or our own.
func parseReplies(given string) (map[rdns.Class]cli.Reply, error) {
	replies := make(map[rdns.Class]cli.Reply)
	for class := rdns.None; class < rdns.Proper; class++ {
		text := residential
		switch {
		case given != "":
			text = given
		case class == rdns.None || class == rdns.Mismatch || class == rdns.Bogus:
			text = nameless
		}
		r, err := cli.ParseReply(text, "inc")
		if err != nil {
			return nil, fmt.Errorf("-reply %q: %w", given, err)
		}
		replies[class] = r
	}
	return replies, nil
}

// reply returns what a client of class is told if a refuses it.
func (c *checker) reply(a *action, class rdns.Class) cli.Reply {
	r := c.replies[class]
	if a.name == "tempfail" {
		r = r.Temporary()
	}
	return r
}

// expand puts the client into a reply.
func expand(r cli.Reply, f rdns.Finding, addr string) cli.Reply {
	return r.Expand("%i", addr, "%n", shown(f.Name), "%c", f.Class.String())
}
