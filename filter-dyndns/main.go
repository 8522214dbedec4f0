// Filter-dyndns is a filter of smtpd(8) that tells residential and generic
// lines from mail servers by their reverse name. See filter-dyndns(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/rdns"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := newFlags()
	if err := flags.parse(args); err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	log, flush := cli.Logger(stderr, flags.Verbose)
	defer flush()
	c, err := newChecker(flags, log)
	if err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	defer c.resolver.Close()
	switch {
	case flags.CheckOnly:
		return flags.Exit(c.printConfig(stdout), stdout, stderr)
	case flags.classify != "":
		return flags.Exit(c.classify(flags.classify, stdin, stdout), stdout, stderr)
	case flags.check.IsValid():
		return flags.Exit(c.lookup(flags.check, stdout), stdout, stderr)
	}
	defer c.watch()()
	return c.filter().Main()
}

// flags are those of the command line.
type flags struct {
	*cli.Flags
	actions            map[rdns.Class]*action
	allow, match, expr cli.Strings
	allowlist          cli.Strings
	phaseName, reply   string
	helo, header       bool
	classify           string
	checkName          string

	phase filter.Phase
	check netip.Addr
}

func newFlags() *flags {
	f := &flags{
		Flags: cli.New(cli.Options{
			Name:     "filter-dyndns",
			Synopsis: []string{"[flags]", "[flags] -classify FILE", "[flags] -check ADDRESS"},
			DryRun:   true, Metrics: true, Resolver: true, Timeout: 5 * time.Second,
		}),
		actions: make(map[rdns.Class]*action),
	}
	for _, a := range []struct {
		class  rdns.Class
		action string
		usage  string
	}{
		{rdns.Dynamic, "junk", "what to do with access lines: `ACTION` is proceed, junk, reject, tempfail, disconnect or slow:TIME"},
		{rdns.Generic, "proceed", "`ACTION` for names that are the address and nothing more"},
		{rdns.Static, "proceed", "`ACTION` for access lines whose address stays"},
		{rdns.Hosting, "proceed", "`ACTION` for rented machines with the name they came with"},
		{rdns.None, "proceed", "`ACTION` for clients without a name"},
		{rdns.Mismatch, "proceed", "`ACTION` for names that do not resolve to the client (FCrDNS)"},
		{rdns.Bogus, "junk", "`ACTION` for localhost, single labels, reverse zones and addresses as name"},
	} {
		v := new(action)
		v.Set(a.action)
		f.actions[a.class] = v
		f.Var(v, a.class.String(), a.usage)
	}
	f.Var(&f.allow, "allow", "names that match an expression of `FILE` are proper, whatever follows; repeatable")
	f.Var(&f.match, "match", "names that match an expression of `FILE` are dynamic; repeatable")
	f.Var(&f.expr, "expr", "names that match `EXPRESSION` are dynamic; repeatable")
	f.Var(&f.allowlist, "allowlist", "never judge the addresses and networks of `FILE`; repeatable")
	f.StringVar(&f.phaseName, "phase", "mail-from", "decide at `PHASE`: connect, helo, mail-from, rcpt-to or data")
	f.BoolVar(&f.helo, "helo", true, "clear a client whose HELO name is proper and resolves to it")
	f.BoolVar(&f.header, "header", false, "add the field X-Rdns-Class to each message, and remove others of that name")
	f.StringVar(&f.reply, "reply", "", "refuse with `TEXT`, such as \"550 5.7.1 [%i] %n is a %c line\"; %i address, %n name, %c class (default by class)")
	f.StringVar(&f.classify, "classify", "", "print the classes of the lines \"address TAB name\" of `FILE`, - is standard input")
	f.StringVar(&f.checkName, "check", "", "look `ADDRESS` up, and print what would be done")
	return f
}

func (f *flags) parse(args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	var errs []error
	switch f.phaseName {
	case "connect":
		f.phase = filter.Connect
	case "helo", "ehlo":
		f.phase = filter.Helo
	case "mail-from":
		f.phase = filter.MailFrom
	case "rcpt-to":
		f.phase = filter.RcptTo
	case "data":
		f.phase = filter.Data
	default:
		errs = append(errs, fmt.Errorf("-phase %s: not one of connect, helo, mail-from, rcpt-to, data", f.phaseName))
	}
	for _, e := range f.expr {
		if e = strings.TrimSpace(e); e == "" || e[0] == '#' || strings.Contains(e, "\n") {
			errs = append(errs, fmt.Errorf("-expr %q: not an expression", e))
		}
	}
	if f.checkName != "" && f.classify != "" {
		errs = append(errs, errors.New("-check and -classify do not go together"))
	}
	if f.checkName != "" {
		var err error
		if f.check, err = netip.ParseAddr(f.checkName); err != nil {
			errs = append(errs, fmt.Errorf("-check %s: not an address", f.checkName))
		}
	}
	return errors.Join(errs...)
}

// checker is the filter as configured.
type checker struct {
	flags        *flags
	log          *slog.Logger
	metrics      *metrics.Set
	resolver     *resolve.Resolver
	replies      map[rdns.Class]cli.Reply
	allow, match *reload.File[*rdns.Patterns]
	allowlist    *reload.File[*ipset.Set]
}

func newChecker(f *flags, log *slog.Logger) (*checker, error) {
	c := &checker{flags: f, log: log, metrics: metrics.New()}
	c.metrics.Filter = "dyndns"
	var errs []error
	keep := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	var servers []netip.AddrPort
	if f.Resolver != "" {
		servers, err = resolve.ParseServers(f.Resolver)
		if err != nil {
			keep(fmt.Errorf("-resolver: %w", err))
		}
	}
	c.replies, err = parseReplies(f.reply)
	keep(err)
	expr, bad := rdns.ParsePatterns(strings.NewReader(strings.Join(f.expr, "\n")), "-expr")
	errs = append(errs, bad...)
	c.allow, err = reload.Open(reload.Options[*rdns.Patterns]{Paths: f.allow, Parse: rdns.ParsePatterns, Merge: rdns.Merge, Log: log})
	keep(err)
	addExpr := func(files ...*rdns.Patterns) *rdns.Patterns { return rdns.Merge(append(files, expr)...) }
	c.match, err = reload.Open(reload.Options[*rdns.Patterns]{Paths: f.match, Parse: rdns.ParsePatterns, Merge: addExpr, Log: log})
	keep(err)
	c.allowlist, err = reload.Open(reload.Options[*ipset.Set]{Paths: f.allowlist, Parse: ipset.Parse, Merge: ipset.Merge, Log: log})
	keep(err)
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	c.resolver = resolve.New(resolve.Options{Servers: servers, Timeout: f.Timeout.Value, Log: log, Metrics: c.metrics})
	return c, nil
}

// watch keeps files and metrics up to date until the function it returns is
// called.
func (c *checker) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go c.allow.Watch(ctx)
	go c.match.Watch(ctx)
	go c.allowlist.Watch(ctx)
	written := make(chan struct{})
	go func() {
		c.metrics.Run(ctx, c.flags.Metrics, c.log)
		close(written)
	}()
	return func() {
		cancel()
		select {
		case <-written:
		case <-time.After(time.Second): // the file system hangs
		}
	}
}

// printConfig prints what is in force. Bad lines of files are an error.
func (c *checker) printConfig(w io.Writer) error {
	var extra [][2]string
	for class := rdns.None; class < rdns.Proper; class++ {
		a := c.flags.actions[class]
		if a.refuses() {
			extra = append(extra, [2]string{"reply to " + class.String(), c.reply(a, class).String()})
		}
	}
	for _, s := range c.resolver.Servers() {
		extra = append(extra, [2]string{"resolver", s.String()})
	}
	count := func(what string, n int) {
		extra = append(extra, [2]string{what, fmt.Sprint(n)})
	}
	count("names allowed", c.allow.Value().Len())
	count("names matched", c.match.Value().Len())
	count("networks allowed", c.allowlist.Value().Len())
	c.flags.Print(w, extra...)
	bad := append(c.allow.Bad(), c.match.Bad()...)
	return errors.Join(append(bad, c.allowlist.Bad()...)...)
}
