// Filter-dnsbl is a filter of smtpd(8) that asks DNS lists about clients. See
// filter-dnsbl(8).
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	out := &masked{w: cli.Printable(stdout), redact: dnsbl.Redactor(dnsbl.Keys(args...))}
	errs := &masked{w: stderr, redact: out.redact}
	flags := newFlags()
	err := flags.parse(args)
	// Keys may also have come from a file.
	out.redact = dnsbl.Redactor(append(dnsbl.Keys(args...), flags.keys...))
	errs.redact = out.redact
	if err != nil {
		return flags.Exit(err, out, errs)
	}
	log, flush := cli.Logger(errs, flags.Verbose)
	defer flush()
	c, err := newChecker(flags, log)
	if err != nil {
		return flags.Exit(err, out, errs)
	}
	defer c.resolver.Close()
	var text bytes.Buffer
	switch {
	case flags.CheckOnly:
		err = c.printConfig(&text)
	case flags.check.IsValid():
		c.lookup(flags.check, &text)
	default:
		defer c.watch()()
		// A thousand clients at once leave garbage of some MB, and all that
		// waits for answers would be looked through each time.
		debug.SetGCPercent(200)
		return c.filter().Main()
	}
	out.Write(text.Bytes())
	return flags.Exit(err, out, errs)
}

// masked is a writer through which no key goes. Each Write is of whole lines.
type masked struct {
	w      io.Writer
	redact func(string) string
}

func (m *masked) Write(p []byte) (int, error) {
	_, err := io.WriteString(m.w, m.redact(string(p)))
	return len(p), err
}

// flags are those of the command line.
type flags struct {
	*cli.Flags
	blockAt, junkAt      int
	phaseName, replyText string
	minTTL, maxTTL       cli.Duration
	allowlist, blocklist cli.Strings
	scoreHeader          bool
	checkName            string

	phase filter.Phase
	reply cli.Reply
	lists []dnsbl.List
	keys  []string
	check netip.Addr

	missing []error // files of lists that are not there
	bad     []error // lines of others, which are skipped
}

const defaultReply = "550 5.7.1 Service unavailable; client [%i] blocked using %l"

func newFlags() *flags {
	f := &flags{
		Flags: cli.New(cli.Options{
			Name:     "filter-dnsbl",
			Synopsis: []string{"[flags] list...", "[flags] -check ADDRESS list..."},
			Args:     true, DryRun: true, Metrics: true, Resolver: resolve.ParseServers, Timeout: 2 * time.Second,
		}),
		minTTL: cli.Duration{Value: time.Minute, Max: 24 * time.Hour},
		maxTTL: cli.Duration{Value: time.Hour, Max: 24 * time.Hour},
	}
	f.IntVar(&f.blockAt, "blockAt", 0, "refuse from score `N` on; 0 is never")
	f.IntVar(&f.junkAt, "junkAt", 0, "junk from score `N` on; 0 is never")
	f.StringVar(&f.phaseName, "blockPhase", "connect", "decide at `PHASE`: connect, helo, ehlo, mail-from, rcpt-to or data")
	f.Var(&f.minTTL, "minTTL", "keep answers so long at least")
	f.Var(&f.maxTTL, "maxTTL", "keep answers so long at most")
	f.Var(&f.allowlist, "allowlist", "pass the addresses and networks of `FILE`; repeatable")
	f.Var(&f.blocklist, "blocklist", "refuse the addresses and networks of `FILE`; repeatable")
	f.StringVar(&f.replyText, "reply", defaultReply, "refuse with `TEXT`; %i address, %l lists, %s score, %r reason of the heaviest list")
	f.BoolVar(&f.scoreHeader, "scoreHeader", false, "add the field X-DNSBL-Score to each message, and remove others of that name")
	f.StringVar(&f.checkName, "check", "", "ask about `ADDRESS` now, and print what the lists say")
	return f
}

func (f *flags) parse(args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	var errs []error
	keep := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
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
		keep(fmt.Errorf("-blockPhase %s: not one of connect, helo, ehlo, mail-from, rcpt-to, data", f.phaseName))
	}
	if f.blockAt < 0 || f.junkAt < 0 {
		keep(errors.New("-blockAt and -junkAt are not negative"))
	} else if f.blockAt == 0 && f.junkAt == 0 && f.checkName == "" {
		keep(errors.New("neither -blockAt nor -junkAt: nothing would be done"))
	}
	if f.minTTL.Value > f.maxTTL.Value {
		keep(errors.New("-minTTL is more than -maxTTL"))
	}
	if f.checkName != "" {
		addr, err := netip.ParseAddr(f.checkName)
		if err != nil {
			keep(fmt.Errorf("-check %s: not an address", f.checkName))
		}
		f.check = addr.Unmap().WithZone("")
	}
	var err error
	if f.reply, err = cli.ParseReply(f.replyText, "ilsr"); err != nil {
		keep(fmt.Errorf("-reply %q: %w", f.replyText, err))
	}
	keep(f.parseLists())
	return errors.Join(errs...)
}

func (f *flags) parseLists() error {
	var errs []error
	for _, arg := range f.Args() {
		expanded, missing, err := cli.ExpandArgs([]string{arg})
		wrong := []error{err}
		if err != nil {
			f.keys = append(f.keys, dnsbl.Keys(err.Error())...)
		}
		f.missing = append(f.missing, missing...)
		var lines []string
		for _, a := range expanded {
			lines = append(lines, a.Text)
		}
		f.keys = append(f.keys, dnsbl.Keys(lines...)...)
		lists, bad := dnsbl.Parse(lines...)
		for i, err := range bad {
			wrong = append(wrong, at(expanded[i].Where, err))
		}
		if strings.HasPrefix(arg, "@") && len(lists) > 0 {
			f.bad = append(f.bad, slices.DeleteFunc(wrong, func(err error) bool { return err == nil })...)
		} else {
			errs = append(errs, wrong...)
		}
		f.lists = append(f.lists, lists...)
	}
	f.lists = dnsbl.Distinct(f.lists)
	for _, l := range f.lists {
		switch {
		case l.Ask&dnsbl.Helo != 0 && f.phase < filter.Helo:
			errs = append(errs, fmt.Errorf("list %s: +helo needs -blockPhase helo or later", l.Label))
		case l.Ask&dnsbl.From != 0 && f.phase < filter.MailFrom:
			errs = append(errs, fmt.Errorf("list %s: +from needs -blockPhase mail-from or later", l.Label))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(f.lists) == 0 && f.missing == nil {
		return errors.New("no list given; which to trust is for you to decide")
	}
	return nil
}

// at puts where they are before the lines of an error.
func at(where string, err error) error {
	if err == nil || where == "" {
		return err
	}
	return errors.New(where + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+where+": "))
}

// checker is the filter as configured.
type checker struct {
	flags       *flags
	log         *slog.Logger
	metrics     *metrics.Set
	resolver    *resolve.Resolver
	dnsbl       *dnsbl.Checker
	decided     [3]*metrics.Counter // by verdict
	ctx         context.Context     // of questions; ends with the program
	allow, deny *reload.File[exempt.Clients]
}

func newChecker(f *flags, log *slog.Logger) (*checker, error) {
	c := &checker{flags: f, log: log, ctx: context.Background()}
	c.metrics = metrics.New(metrics.Options{Filter: "dnsbl", Version: cli.Version(), File: f.Metrics, DryRun: f.DryRun})
	for verdict, action := range actions() {
		c.decided[verdict] = c.metrics.Decision(action)
	}
	var errs [2]error
	c.allow, errs[0] = reload.Open(reload.Options[exempt.Clients]{Paths: f.allowlist, Parse: exempt.ParseClients, Merge: exempt.MergeClients, Log: log})
	c.deny, errs[1] = reload.Open(reload.Options[exempt.Clients]{Paths: f.blocklist, Parse: exempt.ParseRejects, Merge: exempt.MergeClients, Log: log})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	c.metrics.Files(c.allow, c.deny)
	if !f.CheckOnly { // printConfig says what is wrong
		for _, err := range f.bad {
			log.Warn("bad line skipped", "err", err)
		}
	}
	c.resolver = resolve.New(resolve.Options{
		Servers: f.Servers,
		// Answers that come late are good for the next session.
		Timeout: max(f.Timeout.Value+time.Second, 3*time.Second),
		MinTTL:  f.minTTL.Value, MaxTTL: f.maxTTL.Value,
		Log: log, Metrics: c.metrics,
	})
	for _, s := range c.resolver.Servers() {
		if resolve.Public(s.Addr()) {
			log.Warn("a public resolver is asked; many lists do not answer it, or answer with errors: run a resolver of your own, and ask no other", "resolver", s.Addr())
		}
	}
	c.dnsbl = dnsbl.New(dnsbl.Options{
		Lists: f.lists, BlockAt: f.blockAt, JunkAt: f.junkAt,
		Timeout: f.Timeout.Value, Reason: f.reply.Has("%r"), DryRun: f.DryRun,
		Resolver: c.resolver, Log: log, Metrics: c.metrics,
	})
	return c, nil
}

// watch keeps the health of lists, files and metrics up to date until the
// function it returns is called.
func (c *checker) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	c.ctx = ctx
	go c.dnsbl.Run(ctx)
	go reload.Watch(ctx, c.allow, c.deny)
	if c.flags.missing != nil {
		guard.Keep(ctx, c.log, "lists", c.remind)
	}
	written := make(chan struct{})
	go func() {
		c.metrics.Run(ctx, c.log)
		close(written)
	}()
	return func() {
		cancel()
		<-written
	}
}

// remind says once an hour that lists are not asked.
func (c *checker) remind(ctx context.Context) {
	again := time.NewTicker(time.Hour)
	defer again.Stop()
	for {
		c.log.Warn("file of lists not usable, its lists are not asked; restart smtpd when it is", "err", errors.Join(c.flags.missing...))
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// printConfig prints what is in force. Bad lines of files are an error.
func (c *checker) printConfig(w io.Writer) error {
	var extra [][2]string
	for _, l := range c.flags.lists {
		text := l.String()
		if l.Dead != "" {
			text += ", not asked: " + l.Dead
		}
		extra = append(extra, [2]string{"list", text})
	}
	for _, s := range c.resolver.Servers() {
		extra = append(extra, [2]string{"resolver", s.String()})
	}
	extra = append(extra,
		[2]string{"lines of -allowlist", fmt.Sprint(c.allow.Value().Len())},
		[2]string{"lines of -blocklist", fmt.Sprint(c.deny.Value().Len())})
	c.flags.Print(w, extra...)
	return errors.Join(slices.Concat(c.flags.missing, c.flags.bad, c.allow.Bad(), c.deny.Bad())...)
}
