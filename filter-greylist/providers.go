package main

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/spf"
)

// A provider is a large mail provider. Its networks are those that SPF lets send for
// the first domain; names of its machines are in the second.
type provider struct{ name, domain, names string }

// providers are those with so many machines that a retry hardly ever comes from the
// one of the first attempt, and whose mail nearly every server gets.
var providers = []provider{
	{"google", "gmail.com", "google.com"},
	{"microsoft", "outlook.com", "outlook.com"},
	{"yahoo", "yahoo.com", "yahoo.com"},
	{"apple", "icloud.com", "icloud.com"},
	{"amazon", "amazonses.com", "amazonses.com"},
	{"gmx", "gmx.net", "gmx.net"},
	{"webde", "web.de", "web.de"},
	{"telekom", "t-online.de", "t-online.de"},
	{"orange", "orange.fr", "orange.fr"},
	{"libero", "libero.it", "libero.it"},
	{"mailru", "mail.ru", "mail.ru"},
	{"yandex", "yandex.ru", "yandex.net"},
	{"qq", "qq.com", "qq.com"},
	{"netease", "163.com", "163.com"},
	{"zoho", "zoho.com", "zoho.com"},
	{"proton", "proton.me", "protonmail.ch"},
	{"fastmail", "fastmail.com", "messagingengine.com"},
	{"comcast", "comcast.net", "comcast.net"},
}

// providerNames are the names of all.
func providerNames() []string {
	var names []string
	for _, p := range providers {
		names = append(names, p.name)
	}
	return names
}

// Times and bounds of the walk through what providers publish.
const (
	walkers     = 4 // at a time
	walkLookups = 40
	walkTime    = time.Minute // for one provider
	walkEvery   = 24 * time.Hour
	walkJitter  = 2 * time.Hour // more or less
	walkAgain   = 10 * time.Minute
	walkLatest  = 6 * time.Hour // between tries while the DNS does not answer
	saidAfter   = 3             // failures in a row; a DNS that is away for an hour is no news
)

// networks are those of providers, as they are known.
type networks struct {
	table atomic.Pointer[bart.Table[*provider]]
}

// of returns the provider that an address belongs to, nil if it is none's.
func (n *networks) of(a netip.Addr) *provider {
	t := n.table.Load()
	if t == nil || !a.IsValid() {
		return nil
	}
	p, _ := t.Lookup(a.Unmap().WithZone(""))
	return p
}

// set replaces all.
func (n *networks) set(all []greylist.Networks) {
	t := new(bart.Table[*provider])
	for _, one := range all {
		i := slices.IndexFunc(providers, func(p provider) bool { return p.name == one.Provider })
		for _, net := range one.Nets { // none without a name
			t.Insert(net, &providers[i])
		}
	}
	n.table.Store(t)
}

// loadProviders reads what the records have of providers' networks.
func (c *check) loadProviders(ctx context.Context) error {
	if c.providersMode == "off" {
		return nil
	}
	all, err := c.greylist.Networks(ctx, providerNames())
	if err == nil {
		c.networks.set(all)
	}
	return err
}

// keepProviders keeps the networks of providers up to date until ctx ends.
func (c *check) keepProviders(ctx context.Context) {
	pause := time.Duration(0)
	for again := walkAgain; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if c.walkProviders(ctx) {
			again = walkAgain
			pause = walkEvery - walkJitter + rand.N(2*walkJitter)
		} else {
			pause = again + rand.N(again/4)
			again = min(2*again, walkLatest)
		}
	}
}

// walkProviders asks the DNS for the networks of providers, and says whether all have
// answered.
func (c *check) walkProviders(ctx context.Context) (all bool) {
	known, err := c.greylist.Networks(ctx, providerNames())
	if err != nil {
		known = make([]greylist.Networks, len(providers))
	}
	c.networks.set(known)
	found := make([]spf.Published, len(providers))
	free, done := make(chan bool, walkers), make(chan int)
	for i, p := range providers {
		found[i].Failed = []string{p.domain} // until it has answered
		guard.Go(c.Log, "providers", func() {
			defer func() { done <- i }()
			free <- true
			defer func() { <-free }()
			one, cancel := context.WithTimeout(ctx, walkTime)
			defer cancel()
			found[i] = spf.Networks(one, c.Resolver, p.domain, walkLookups)
		})
	}
	all = true
	var old []string
	for range providers {
		i := <-done
		if ctx.Err() != nil {
			all = false
			continue
		}
		known[i] = c.foundNetworks(ctx, providers[i], known[i], found[i])
		c.networks.set(known)
		silent := len(found[i].Failed) > 0
		all = all && !silent
		if known[i].Failures >= saidAfter && (silent || known[i].Nets != nil) {
			old = append(old, providers[i].name)
		}
	}
	if old != nil {
		slices.Sort(old)
		c.Complain.Say(slog.LevelWarn, "providers", "networks of providers cannot be renewed, those known before stay; see filter-greylist providers", "providers", strings.Join(old, ","))
	}
	return all
}

// foundNetworks stores what was found of a provider, and returns what is known now.
func (c *check) foundNetworks(ctx context.Context, p provider, old greylist.Networks, found spf.Published) greylist.Networks {
	complete := len(found.Failed) == 0
	n, err := c.greylist.SetNetworks(ctx, time.Now(), p.name, found.Nets, complete)
	if err != nil { // for this run it is known all the same
		n = old
		n.Provider, n.Failures = p.name, n.Failures+1
		if len(found.Nets) > 0 && (complete || len(n.Nets) == 0) {
			n.Nets, n.Failures = found.Nets, 0
		}
	}
	c.Log.Debug("filter=greylist", "event", "provider", "provider", p.name, "networks", len(n.Nets), "lookups", found.Lookups,
		"failed", strings.Join(found.Failed, ","), "odd", strings.Join(found.Odd, "; "))
	return n
}
