// Filter-senderscore is a filter of smtpd(8) that refuses, junks or slows down
// clients by their Sender Score. See filter-senderscore(8).
package main

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/senderscore"
)

func main() { program.Main(spec) }

var spec = program.Spec{
	Name:    "filter-senderscore",
	Timeout: 2 * time.Second,
	Phase:   "connect",
	Phases:  []string{"connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "quit"},
	Field:   "X-SenderScore",
	New:     newCheck,
}

// check is the filter as configured.
type check struct {
	*program.Program
	blockBelow, junkBelow, slowFactor int
	slowMax                           cli.Duration
	reply                             *cli.Parsed[cli.Reply]
	testMode                          bool
	stateFile                         string
	allowlist                         *reload.File[*ipset.Set]
	scores                            *senderscore.Client // nil in -testMode
	gate                              *program.Gate[state]
	sayIPv6                           sync.Once
	restore                           func() // root's rights, if they were given up
}

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{Program: p, slowMax: cli.Duration{Value: filter.MaxDelay, Max: filter.MaxDelay}, restore: func() {}}
	maxTTL := cli.Duration{Value: 12 * time.Hour, Min: time.Minute, Max: 7 * 24 * time.Hour}
	zone := cli.NewParsed(senderscore.Zone, parseZone)
	var allowlist cli.Strings
	var quota int
	c.reply = cli.NewParsed("550 your IP reputation is too low for this MX",
		func(s string) (cli.Reply, error) { return cli.ParseReply(s, "") })
	p.IntVar(&c.blockBelow, "blockBelow", -1, "refuse clients with a score strictly below `N`, -1 is off")
	p.Var(c.reply, "blockReply", "refuse with `TEXT`, a code from 400 to 599, a space and a text")
	p.IntVar(&c.junkBelow, "junkBelow", -1, "junk the mail of clients with a score strictly below `N`, -1 is off")
	p.IntVar(&c.slowFactor, "slowFactor", -1, "delay answers by `N` milliseconds for score 0, by less for a better one, -1 is off")
	p.Var(&c.slowMax, "slowMax", "delay no answer for longer than `TIME`")
	p.Var(&allowlist, "allowlist", "the addresses and networks of `FILE` have the score 100; repeatable")
	p.BoolVar(&c.testMode, "testMode", false, "for tests: ask nobody, the score is the last octet, 255 is none; exit 1 on broken input")
	p.Var(zone, "zone", "ask the zone `NAME`")
	p.Var(&maxTTL, "maxTTL", "remember a score for `TIME`")
	p.IntVar(&quota, "quota", senderscore.Quota, "ask the zone at most `N` times in 30 days, 0 is no limit")
	p.StringVar(&c.stateFile, "stateFile", cli.StateDir(p.Name())+"/state", "count queries in `FILE`, so that a restart does not forget them")
	p.SameAs("blockPhase", "phase")
	p.SameAs("scoreHeader", "header")
	p.SameAs("reply", "blockReply")
	p.Hide("phase", "header", "reply")

	return func() (program.Check, error) {
		var err error
		c.allowlist, err = reload.Open(reload.Options[*ipset.Set]{Paths: allowlist, Parse: ipset.Parse, Merge: ipset.Merge, Log: c.Log})
		if quota < 0 {
			err = errors.Join(err, cli.BadFlag("quota", fmt.Sprint(quota), errors.New("less than 0")))
		}
		if err != nil {
			return nil, err
		}
		c.Keep(c.allowlist)
		if c.testMode {
			return c, nil
		}
		c.warn()
		c.ownState()
		c.OpenResolver(resolve.Options{CacheSize: 1024}) // what is to be remembered is so by address
		c.scores = senderscore.New(senderscore.Options{
			Resolver: c.Resolver, Zone: zone.Value, MaxTTL: maxTTL.Value, Quota: quota,
			StateFile: c.stateFile, Log: c.Log, Metrics: c.Metrics,
		})
		c.Beside("scores", c.scores.Run)
		return c, nil
	}
}

var validZone = regexp.MustCompile(`^[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*\.?$`)

const maxZone = 253 - len("255.255.255.255.")

func parseZone(s string) (string, error) {
	if !validZone.MatchString(s) || len(s) > maxZone {
		return "", errors.New("not a domain name")
	}
	return s, nil
}
