// Filter-greylist is a filter of smtpd(8) that refuses the first attempt of an
// unknown origin and accepts its retry. See filter-greylist(8).
package main

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/spf"
)

func main() { program.Main(spec) }

var spec = program.Spec{
	Name: "filter-greylist",
	Synopsis: []string{
		"[flags] list [grey|pass|pair|list] [WHAT...] [-json]",
		"[flags] allow|delete KEY...",
		"[flags] delete WHAT...",
		"[flags] expect DOMAIN|USER@DOMAIN|ADDRESS [-for TIME] [RECIPIENT]",
		"[flags] stats [client|sender|rcpt] [WHAT...] [-since TIME] [-json]",
		"[flags] providers [-json]",
		"[flags] export",
		"[flags] import [FILE...]",
	},
	Timeout:  5 * time.Second,
	Phase:    "data",
	Phases:   []string{"data", "rcpt-to"},
	Field:    "X-Greylist",
	Commands: []string{"list", "allow", "delete", "expect", "stats", "providers", "export", "import"},
	New:      newCheck,
}

// check is the filter as configured.
type check struct {
	*program.Program
	*flags
	gate     *program.Gate[state]
	spf      *spf.Checker
	secret   func() ([]byte, error) // of keys; nil: made at random
	greylist *greylist.Greylist
	store    greylist.Store
	begun    time.Time                   // when it was opened
	opened   atomic.Bool                 // it has answered
	restore  func()                      // root's rights, if they were given up
	entries  func() ([]listEntry, error) // of the lists, for the command
	imports  map[string]*os.File         // for the command
	nat      nat
	networks networks       // of providers
	good     *dnsbl.Checker // of -dnswl; nil: none
	latest   atomic.Int64   // time of the last line that mattered, microseconds since the epoch

	only, traps *reload.File[exempt.Recipients]
}

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{Program: p, flags: newFlags(p)}
	return func() (program.Check, error) {
		var errs [3]error
		errs[0] = c.flags.check(p)
		errs[1] = c.openLists()
		errs[2] = c.openSecret()
		if err := errors.Join(errs[:]...); err != nil || p.Exempt == nil {
			return nil, err
		}
		c.OpenResolver(resolve.Options{CacheSize: 16384}) // most senders come once
		if err := c.openStore(); err != nil {
			return nil, err
		}
		c.Metrics.Counter(storeErrorsTotal) // there from the start: alerts are about its rise
		c.openDNSWL()
		c.spf = spf.New(spf.Options{Resolver: c.Resolver, Timeout: c.Timeout.Value, Metrics: c.Metrics})
		c.Beside("records", func(ctx context.Context) { c.greylist.Run(ctx, c.now, c.Log) })
		if c.spfMode == "off" {
			p.Warn("-spf off: the name of a client vouches for whatever sender it gives")
		}
		if c.providersMode != "off" {
			c.Beside("providers", c.keepProviders)
		}
		if c.secret != nil { // so that the file is there before the first message
			c.Beside("secret", func(context.Context) { c.secret() })
		}
		if !p.Operator && c.database != "" {
			tune()
		}
		return c, nil
	}
}

// tune is for a store in a file, with which little is kept in memory: then it
// pays to collect garbage less often.
func tune() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(128 << 20)
}
