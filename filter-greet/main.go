// Filter-greet is a filter of smtpd(8) that holds the greeting for a moment and
// refuses clients that speak before it. See filter-greet(8).
package main

import (
	"errors"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/peek"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/resolve"
)

func main() { program.Main(spec) }

var spec = program.Spec{Name: "filter-greet", New: newCheck}

// check is the filter as configured.
type check struct {
	*program.Program
	wait, remember  cli.Duration
	early, commands *cli.Parsed[string]
	ports           *cli.Parsed[[]uint16]
	maxWaiting      int

	looker  looker // nil: nothing can be seen
	blind   error  // why
	waiting holds
	polite  *lru.Cache[netip.Prefix, time.Time] // clients that have waited, and until when they are known
	unseen  map[netip.AddrPort]bool             // listeners that were warned of
	gate    *program.Gate[state]
}

// looker is a *peek.Looker.
type looker interface {
	Look(*peek.Conn) (peek.Seen, error)
}

const (
	maxWait   = 30 * time.Second
	maxPolite = 100_000 // clients
)

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{
		Program:  p,
		wait:     cli.Duration{Value: 3 * time.Second, Max: maxWait},
		remember: cli.Duration{Value: 24 * time.Hour},
		early:    cli.NewParsed("refuse", oneOf("refuse", "late", "junk", "proceed")),
		commands: cli.NewParsed("log", oneOf("log", "refuse")),
		ports:    cli.NewParsed("25", parsePorts),
	}
	p.Var(&c.wait, "wait", "hold the greeting for clients that are not known, at most 30s; 0 is one look without a wait")
	p.Var(c.early, "early", "what to do with who speaks before the greeting: `ACTION` is refuse, late (refuse at rcpt-to), junk or proceed")
	p.Var(c.ports, "ports", "test clients of listeners on these ports: `PORT,...`")
	p.Var(&c.remember, "remember", "do not hold a client again that has waited in silence")
	p.IntVar(&c.maxWaiting, "maxWaiting", defaultMaxWaiting(), "hold at most `N` clients at once, from half of it on for 1s")
	p.Var(c.commands, "commands", "what to do with who sends what is no SMTP command: `ACTION` is log or refuse (at the next real one)")

	return func() (program.Check, error) {
		p.Phase = filter.Connect
		if c.early.Value == "late" {
			p.Phase = filter.RcptTo
		}
		var err error
		if c.maxWaiting < 0 {
			err = errors.New("-maxWaiting: less than 0")
		}
		c.OpenResolver(resolve.Options{})
		c.open()
		return c, err
	}
}
