// Filter-greet is a filter of smtpd(8) that holds the greeting for a moment and
// refuses clients that speak before it. See filter-greet(8).
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
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

// defaultMaxWaiting is half of the sessions that smtpd takes, which are half of
// its descriptors but some (smtp.c), so that those who are held leave room for
// others.
func defaultMaxWaiting() int {
	const most = 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Max) > 1<<20 {
		return most
	}
	return max(1, min((int(limit.Max)/2-5)/2, most))
}

// oneOf reads one of some words. Reject is refuse.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == "reject" {
			s = "refuse"
		}
		if !slices.Contains(words, s) {
			return "", errors.New("not one of " + strings.Join(words, ", "))
		}
		return s, nil
	}
}

func parsePorts(s string) (ports []uint16, err error) {
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(field, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%s: want ports from 1 to 65535, with commas between them", cli.Clean(field))
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}
