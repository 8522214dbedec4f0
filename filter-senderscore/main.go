// Filter-senderscore is a filter of smtpd(8) that refuses, junks or slows down
// clients by their Sender Score. See filter-senderscore(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"regexp"
	"sync"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/senderscore"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := newFlags()
	if err := flags.parse(args); err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	stdout = cli.Printable(stdout)
	log, flush := cli.Logger(stderr, flags.Verbose)
	defer flush()
	c, err := newChecker(flags, log)
	if err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	defer c.restore()
	defer c.resolver.Close()
	switch {
	case flags.CheckOnly:
		return flags.Exit(c.printConfig(stdout), stdout, stderr)
	case flags.check.IsValid():
		return flags.Exit(c.lookup(flags.check, stdout), stdout, stderr)
	}
	defer c.watch()()
	return c.filter().Main()
}

// flags are those of the command line.
type flags struct {
	*cli.Flags
	blockBelow, junkBelow, slowFactor int
	phaseName, blockReply             string
	header, testMode                  bool
	allowlist                         cli.Strings
	zone, stateFile                   string
	maxTTL, slowMax                   cli.Duration
	quota                             int
	checkName                         string

	phase filter.Phase // of -blockPhase
	reply cli.Reply
	check netip.Addr
}

func newFlags() *flags {
	f := &flags{
		Flags: cli.New(cli.Options{
			Name:     "filter-senderscore",
			Synopsis: []string{"[flags]", "[flags] -check ADDRESS"},
			DryRun:   true, Metrics: true, Resolver: resolve.ParseServers, Timeout: 2 * time.Second,
		}),
		maxTTL:  cli.Duration{Value: 12 * time.Hour, Min: time.Minute, Max: 7 * 24 * time.Hour},
		slowMax: cli.Duration{Value: filter.MaxDelay, Max: filter.MaxDelay},
	}
	f.IntVar(&f.blockBelow, "blockBelow", -1, "refuse clients with a score strictly below `N`, -1 is off")
	f.StringVar(&f.phaseName, "blockPhase", "connect", "refuse at `PHASE`: connect, helo, ehlo, starttls, auth, mail-from, rcpt-to or quit")
	f.StringVar(&f.blockReply, "blockReply", "550 your IP reputation is too low for this MX", "refuse with `TEXT`, a code from 400 to 599, a blank and a text")
	f.IntVar(&f.junkBelow, "junkBelow", -1, "junk the mail of clients with a score strictly below `N`, -1 is off")
	f.IntVar(&f.slowFactor, "slowFactor", -1, "delay answers by `N` milliseconds for score 0, by less for a better one, -1 is off")
	f.Var(&f.slowMax, "slowMax", "delay no answer for longer than `TIME`")
	f.BoolVar(&f.header, "scoreHeader", false, "add the field X-SenderScore to each message, and remove others of that name")
	f.Var(&f.allowlist, "allowlist", "the addresses and networks of `FILE` have the score 100; repeatable")
	f.BoolVar(&f.testMode, "testMode", false, "for tests: ask nobody, the score is the last octet, 255 is none; exit 1 on broken input")
	f.StringVar(&f.zone, "zone", senderscore.Zone, "ask the zone `NAME`")
	f.Var(&f.maxTTL, "maxTTL", "remember a score for `TIME`")
	f.IntVar(&f.quota, "quota", senderscore.Quota, "ask the zone `N` times in 30 days at most, 0 is no limit")
	f.StringVar(&f.stateFile, "stateFile", cli.StateDir("filter-senderscore")+"/state", "count queries in `FILE`, so that a restart does not forget them")
	f.StringVar(&f.checkName, "check", "", "look the score of `ADDRESS` up, and print what would be done")
	return f
}

var validZone = regexp.MustCompile(`^[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*\.?$`)

const maxZone = 253 - len("255.255.255.255.")

func (f *flags) parse(args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	var errs []error
	switch f.phase = parsePhase(f.phaseName); f.phase {
	case filter.Connect, filter.Helo, filter.Ehlo, filter.StartTLS, filter.Auth, filter.MailFrom, filter.RcptTo, filter.Quit:
	default:
		errs = append(errs, fmt.Errorf("-blockPhase %s: not one of connect, helo, ehlo, starttls, auth, mail-from, rcpt-to, quit", f.phaseName))
	}
	var err error
	if f.reply, err = cli.ParseReply(f.blockReply, ""); err != nil {
		errs = append(errs, fmt.Errorf("-blockReply %q: %w", f.blockReply, err))
	}
	if !validZone.MatchString(f.zone) || len(f.zone) > maxZone {
		errs = append(errs, fmt.Errorf("-zone %s: not a domain name", f.zone))
	}
	if f.quota < 0 {
		errs = append(errs, fmt.Errorf("-quota %d: less than 0", f.quota))
	}
	if f.checkName != "" {
		var err error
		if f.check, err = netip.ParseAddr(f.checkName); err != nil {
			errs = append(errs, fmt.Errorf("-check %s: not an address", f.checkName))
		}
	}
	return errors.Join(errs...)
}

func parsePhase(name string) filter.Phase {
	for p := filter.Connect; p <= filter.Noop; p++ {
		if p.String() == name {
			return p
		}
	}
	return 0
}

// checker is the filter as configured.
type checker struct {
	flags     *flags
	log       *slog.Logger
	metrics   *metrics.Set
	resolver  *resolve.Resolver
	scores    *senderscore.Client
	allowlist *reload.File[*ipset.Set]
	restore   func() // root's rights, if they were given up
	saidIPv6  bool
}

func newChecker(f *flags, log *slog.Logger) (*checker, error) {
	c := &checker{flags: f, log: log}
	c.metrics = metrics.New(metrics.Options{Filter: "senderscore", Version: cli.Version(), File: f.Metrics, DryRun: f.DryRun})
	var errs []error
	var err error
	c.allowlist, err = reload.Open(reload.Options[*ipset.Set]{Paths: f.allowlist, Parse: ipset.Parse, Merge: ipset.Merge, Log: log})
	if err != nil {
		errs = append(errs, err)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if !f.testMode {
		for _, w := range senderscore.Warnings(f.blockBelow, f.junkBelow) {
			log.Warn(w)
		}
	}
	state := f.stateFile
	if f.testMode {
		state = ""
	}
	c.metrics.Files(c.allowlist)
	if c.restore = func() {}; state != "" {
		if c.restore, err = guard.BecomeOwner(state); err != nil {
			log.Warn("running as root: queries are not counted in the state file", "err", err)
			state = ""
		}
	}
	c.resolver = resolve.New(resolve.Options{
		Servers:   f.Servers,
		Timeout:   f.Timeout.Value,
		CacheSize: 1024, // what is to be remembered is so by address
		Log:       log,
		Metrics:   c.metrics,
	})
	c.scores = senderscore.New(senderscore.Options{
		Resolver:  c.resolver,
		Zone:      f.zone,
		MaxTTL:    f.maxTTL.Value,
		Quota:     f.quota,
		StateFile: state,
		Log:       log,
		Metrics:   c.metrics,
	})
	return c, nil
}

// watch keeps files and metrics up to date until the function it returns is
// called.
func (c *checker) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go c.allowlist.Watch(ctx)
	var written sync.WaitGroup
	written.Go(func() { c.scores.Run(ctx) })
	written.Go(func() { c.metrics.Run(ctx, c.log) })
	return func() {
		cancel()
		written.Wait()
	}
}

// printConfig prints what is in force. Bad lines of files are an error.
func (c *checker) printConfig(w io.Writer) error {
	var extra [][2]string
	for _, s := range c.resolver.Servers() {
		extra = append(extra, [2]string{"resolver", s.String()})
	}
	for _, n := range []int{0, 50, 100} {
		if d := c.delay(n); d > 0 {
			extra = append(extra, [2]string{fmt.Sprintf("delay for score %d", n), d.String()})
		}
	}
	extra = append(extra,
		[2]string{"networks allowed", fmt.Sprint(c.allowlist.Value().Len())},
		[2]string{"queries in 30 days", fmt.Sprint(c.scores.Used())})
	c.flags.Print(w, extra...)
	return errors.Join(c.allowlist.Bad()...)
}

// delay returns how long each answer to a client with a score waits: the part of
// -slowFactor that the score falls short of 100, in whole milliseconds.
func (c *checker) delay(score int) time.Duration {
	n := min(c.flags.slowFactor, math.MaxInt/100)
	if n <= 0 || score >= 100 { // in -testMode a score may be above 100
		return 0
	}
	ms := min(n*(100-score)/100, int(c.flags.slowMax.Value/time.Millisecond))
	return time.Duration(ms) * time.Millisecond
}
