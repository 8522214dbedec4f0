// Filter-dnsbl is a filter of smtpd(8) that asks DNS lists about clients. See
// filter-dnsbl(8).
package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
)

func main() { program.Main(spec) }

var spec = program.Spec{
	Name:     "filter-dnsbl",
	Synopsis: []string{"stats FILE..."},
	Args:     "list...",
	Names:    true,
	Timeout:  2 * time.Second,
	Phase:    "rcpt-to",
	Field:    "X-DNSBL-Score",
	Refuses:  true,
	Looks:    true,
	Commands: []string{"stats"},
	New:      newCheck,
}

const defaultReply = "550 5.7.1 Service unavailable; client [%i] blocked using %l"

// check is the filter as configured.
type check struct {
	*program.Program
	blockAt, junkAt int
	minTTL, maxTTL  cli.Duration
	reply           cli.Reply
	lists           *reload.File[*listSet]
	used            *listSet // by dnsbl
	keys            atomic.Pointer[[]string]
	dnsbl           *dnsbl.Checker
	gate            *program.Gate[state]
}

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{
		Program: p,
		minTTL:  cli.Duration{Value: time.Minute, Max: 24 * time.Hour},
		maxTTL:  cli.Duration{Value: time.Hour, Max: 24 * time.Hour},
	}
	reply := ""
	p.IntVar(&c.blockAt, "blockAt", 0, "refuse from score `N` on; 0 is never")
	p.IntVar(&c.junkAt, "junkAt", 0, "junk from score `N` on; 0 is never")
	p.Var(&c.minTTL, "minTTL", "keep answers for at least `TIME`")
	p.Var(&c.maxTTL, "maxTTL", "keep answers for at most `TIME`")
	p.StringVar(&reply, "reply", defaultReply, "refuse with `TEXT`; %i address, %l lists, %s score, %r reason of the heaviest list")
	c.hide(nil)
	p.Mask(c.mask)
	return func() (program.Check, error) {
		var errs [5]error
		if c.blockAt < 0 || c.junkAt < 0 {
			errs[0] = errors.New("-blockAt and -junkAt are not negative")
		} else if c.blockAt == 0 && c.junkAt == 0 && (!p.Operator || p.CheckOnly) {
			errs[0] = errors.New("neither -blockAt nor -junkAt: nothing would be done")
		}
		if c.minTTL.Value > c.maxTTL.Value {
			errs[1] = errors.New("-minTTL is more than -maxTTL")
		}
		if c.reply, errs[2] = cli.ParseReply(reply, "ilsr"); errs[2] != nil {
			errs[2] = fmt.Errorf("-reply %q: %w", reply, errs[2])
		}
		errs[3] = c.openLists()
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
		c.OpenResolver(resolve.Options{
			// Answers that come late are good for the next session.
			Timeout: max(p.Timeout.Value+time.Second, 3*time.Second),
			MinTTL:  c.minTTL.Value, MaxTTL: c.maxTTL.Value,
		})
		c.ask()
		if !p.Operator {
			// A thousand clients at once leave garbage of some MB, and all that
			// waits for answers would be looked through each time.
			debug.SetGCPercent(200)
		}
		return c, nil
	}
}
