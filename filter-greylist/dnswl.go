package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
)

// dnswlLevels are the words of -dnswlLevel; their place is the last octet of an
// answer of dnswl.org, and of lists that answer as it does.
var dnswlLevels = []string{"none", "low", "medium", "high"}

// dnswlTimeout is what a client waits for the list.
const dnswlTimeout = 2 * time.Second

// parseDNSWL makes a list of -dnswl and -dnswlLevel: one on which to be is enough, so
// that whoever is on it is told only by a list that is well.
func (f *flags) parseDNSWL() error {
	level := slices.Index(dnswlLevels, f.dnswlLevel)
	if level < 0 {
		return fmt.Errorf("-dnswlLevel %s: not one of %s", cli.Clean(f.dnswlLevel), strings.Join(dnswlLevels, ", "))
	}
	if f.dnswl == "" || f.dnswl == "off" {
		f.dnswl = ""
		return nil
	}
	lists, errs := dnsbl.Parse(fmt.Sprintf("%s=127.0.[0..255].[%d..3]*1+ip", f.dnswl, level))
	switch {
	case strings.ContainsAny(f.dnswl, "=*+@, \t\n") || len(errs) == 0 && len(lists) != 1:
		return fmt.Errorf("-dnswl %s: want the zone of one list, such as list.dnswl.org", cli.Clean(f.dnswl))
	case len(errs) > 0 && errs[0] != nil:
		return fmt.Errorf("-dnswl: %w", errs[0])
	case lists[0].Dead != "":
		return fmt.Errorf("-dnswl %s: %s", cli.Clean(f.dnswl), lists[0].Dead)
	}
	f.allows = lists
	return nil
}

// openDNSWL has the list asked and tested.
func (c *check) openDNSWL() {
	if c.dnswl == "" {
		return
	}
	log := c.Log
	if c.Operator {
		log = nil
	}
	c.good = dnsbl.New(dnsbl.Options{
		Lists: c.allows, BlockAt: 1, Timeout: min(c.Timeout.Value, dnswlTimeout),
		Resolver: c.Resolver, Log: log, Metrics: c.Metrics,
	})
	c.Mask(dnsbl.Redactor(dnsbl.Keys(os.Args[1:]...)))
	c.Beside("dnswl", c.good.Run)
}

// listed says which list of good senders has an address, "" if none, or none that is
// well.
func (c *check) listed(ctx context.Context, addr netip.Addr) string {
	if c.good == nil {
		return ""
	}
	if c.good.Begin(ctx, addr).Verdict(ctx).Verdict != dnsbl.Block {
		return ""
	}
	return "-dnswl " + c.allows[0].Label
}
