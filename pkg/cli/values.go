package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Phases returns the names of the phases at which a filter may decide, in the
// order of the dialogue.
func Phases() []string { return []string{"connect", "helo", "mail-from", "rcpt-to", "data"} }

// A Phase is a flag that takes the name of a phase, one of Of. Ehlo is helo,
// unless it is among them.
type Phase struct {
	Value string
	Of    []string // nil: Phases()
}

// Set reads a name.
func (p *Phase) Set(s string) error {
	of := p.Of
	if of == nil {
		of = Phases()
	}
	if s == "ehlo" && !slices.Contains(of, s) {
		s = "helo"
	}
	if !slices.Contains(of, s) {
		return errors.New("not one of " + strings.Join(of, ", "))
	}
	p.Value = s
	return nil
}

func (p *Phase) String() string { return p.Value }

// An Addr is a flag that takes what ParseAddr reads. The zero value is none.
type Addr struct{ netip.Addr }

// Set reads an address.
func (a *Addr) Set(s string) (err error) {
	addr, err := ParseAddr(s)
	if err == nil {
		a.Addr = addr
	}
	return err
}

func (a *Addr) String() string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr.String()
}

// ParseAddr reads the address of a client in any form that logs have it:
// 192.0.2.1, [192.0.2.1], 192.0.2.1:25, 2001:db8::1, [2001:db8::1]:25,
// [IPv6:2001:db8::1] (RFC 5321 section 4.1.3). IPv4-mapped IPv6 is IPv4, a zone is
// dropped.
func ParseAddr(s string) (netip.Addr, error) {
	host := s
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var rest string
		host, rest, ok = strings.Cut(inner, "]")
		if !ok || rest != "" && (rest[0] != ':' || !port(rest[1:])) {
			host = ""
		}
	} else if before, after, _ := strings.Cut(s, ":"); strings.Count(s, ":") == 1 && port(after) {
		host = before
	}
	if len(host) > 5 && strings.EqualFold(host[:5], "IPv6:") {
		host = host[5:]
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, errors.New("not an address")
	}
	return addr.Unmap().WithZone(""), nil
}

func port(s string) bool { return s != "" && len(s) <= 5 && strings.Trim(s, "0123456789") == "" }

// The names of actions, and of what is done in the log.
const (
	Proceed    = "proceed"
	Junk       = "junk"
	Defer      = "defer"      // 4xx
	Refuse     = "refuse"     // 5xx
	Disconnect = "disconnect" // refuse, and end the connection
)

// An Action is a flag that takes what is done with somebody: proceed, junk, defer,
// refuse, disconnect or slow:TIME. Reject is refuse, tempfail is defer. The zero
// value does nothing, as proceed does.
type Action struct {
	Name     string        // one of those words, slow without its time
	Delay    time.Duration // of slow
	MaxDelay time.Duration // the longest; 0: slow is not taken
}

// Set reads an action.
func (a *Action) Set(s string) error {
	words := []string{Proceed, Junk, Defer, Refuse, Disconnect}
	name, delay, timed := strings.Cut(s, ":")
	switch name {
	case "reject":
		name = "refuse"
	case "tempfail":
		name = "defer"
	}
	switch {
	case slices.Contains(words, name) && timed:
		return fmt.Errorf("%s takes no time", name)
	case slices.Contains(words, name):
		a.Name, a.Delay = name, 0
		return nil
	case name == "slow" && a.MaxDelay > 0:
		d, err := ParseDuration(delay)
		if err != nil {
			return err
		}
		if d <= 0 || d > a.MaxDelay {
			return fmt.Errorf("want slow:TIME with at most %s", format(a.MaxDelay))
		}
		a.Name, a.Delay = name, d
		return nil
	case a.MaxDelay > 0:
		words = append(words, "slow:TIME")
	}
	return errors.New("not one of " + strings.Join(words, ", "))
}

func (a *Action) String() string {
	switch a.Name {
	case "":
		return Proceed
	case "slow":
		return "slow:" + format(a.Delay)
	}
	return a.Name
}

// Refuses reports whether a client gets a reply that its mail is not taken: defer,
// refuse or disconnect.
func (a *Action) Refuses() bool {
	return a.Name == Defer || a.Name == Refuse || a.Name == Disconnect
}

// Passes reports whether nothing is done: no mark, no delay, no refusal.
func (a *Action) Passes() bool { return a.Delay == 0 && (a.Name == Proceed || a.Name == "") }

// A Parsed is a flag whose value a function reads, such as the servers of
// -resolver or the text of -reply:
//
//	reply := cli.NewParsed("550 5.7.1 no", func(s string) (cli.Reply, error) { return cli.ParseReply(s, "i") })
//	f.Var(reply, "reply", "refuse with `TEXT`")
type Parsed[T any] struct {
	Value T
	text  string
	parse func(string) (T, error)
}

// NewParsed returns a flag with a default, which may be empty: then Value is the
// zero value until the flag is given. A default that is wrong is an error of the
// programmer, and panics.
func NewParsed[T any](def string, parse func(string) (T, error)) *Parsed[T] {
	p := &Parsed[T]{parse: parse}
	if def != "" {
		if err := p.Set(def); err != nil {
			panic(fmt.Sprintf("cli: default %s: %v", def, err))
		}
	}
	return p
}

// Set reads a value. On error the old one stays.
func (p *Parsed[T]) Set(s string) error {
	v, err := p.parse(s)
	if err == nil {
		p.Value, p.text = v, s
	}
	return err
}

func (p *Parsed[T]) String() string {
	if p == nil {
		return ""
	}
	return p.text
}
