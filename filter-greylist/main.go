// Filter-greylist is a filter of smtpd(8) that refuses the first attempt of an
// unknown origin and accepts its retry. See filter-greylist(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/sqlite"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/spf"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := newFlags()
	if err := flags.parse(args); err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	stdout = cli.Printable(stdout)
	log, flush := cli.Logger(stderr, flags.Verbose)
	defer flush()
	imports := openImports(flags) // with the rights of who runs this
	c, err := newChecker(flags, log)
	if err != nil {
		return flags.Exit(err, stdout, stderr)
	}
	defer c.close()
	switch {
	case flags.CheckOnly:
		return flags.Exit(c.printConfig(stdout), stdout, stderr)
	case flags.command() == "explain":
		return flags.Exit(c.explain(flags.Args()[1:], stdout), stdout, stderr)
	case flags.command() != "":
		o := c.operator(stdin, stdout)
		o.files = imports
		return flags.Exit(o.command(context.Background(), flags.Args()), stdout, stderr)
	}
	if flags.database != "" {
		tune()
	}
	defer c.watch()()
	return c.filter().Main()
}

// tune is for a store in a file, with which little is kept in memory: then it
// pays to collect garbage less often. System calls of the store, and the one in
// which smtpd is waited for, each hold a processor of Go's for a while.
func tune() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(128 << 20)
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
}

// checker is the filter as configured.
type checker struct {
	flags    *flags
	log      *slog.Logger
	metrics  *metrics.Set
	resolver *resolve.Resolver
	spf      *spf.Checker
	secret   func() ([]byte, error) // of keys; nil: made at random
	greylist *greylist.Greylist
	store    greylist.Store
	restore  func()                      // root's rights, if they were given up
	lists    func() ([]listEntry, error) // of the command
	trouble  guard.Complaints
	nat      nat
	latest   atomic.Int64 // time of the last line that mattered, microseconds since the epoch

	clients *reload.File[exempt.Clients]
	senders *reload.File[exempt.Senders]
	rcpts   *reload.File[exempt.Recipients]
	only    *reload.File[exempt.Recipients]
	traps   *reload.File[exempt.Recipients]
}

func newChecker(f *flags, log *slog.Logger) (*checker, error) {
	c := &checker{flags: f, log: log}
	c.metrics = metrics.New(metrics.Options{Filter: "greylist", Version: cli.Version(), File: f.Metrics, DryRun: f.DryRun})
	c.trouble.Log = log
	var errs []error
	keep := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	keep(c.openLists())
	c.metrics.Files(c.clients, c.senders, c.rcpts, c.only, c.traps)
	if f.keyFile != "" {
		c.secret = (&greylist.KeyFile{Path: f.keyFile}).Secret
		if _, err := c.secret(); err != nil {
			keep(fmt.Errorf("-keyFile: %w (\"openssl rand -hex 32\" makes a key)", err))
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if f.spf == "off" && len(f.allowSenders) > 0 {
		log.Warn("with -spf off only the lines of -allowSenders that begin with ! count")
	}
	operator, storeLog := f.command() != "", log
	if operator && !f.Verbose {
		storeLog = nil // the command says what is wrong
	}
	o := greylist.Options{
		Policy: greylist.Policy{
			PassTime: f.passTime.Value, GreyExp: f.greyExp.Value, WhiteExp: f.whiteExp.Value, TrapTime: trapTime,
			Mask4: f.mask4, Mask6: f.mask6, MaxPerClient: f.maxPerClient, All: f.who == "all",
			PairTries: f.pairTries, PairNets: f.pairNets, PairSpan: f.pairSpan.Value,
		},
		Clear:   f.storeAddresses,
		Metrics: c.metrics,
	}
	if f.pairTries == 0 {
		o.Policy.PairTries = -1
	}
	switch {
	case f.CheckOnly || f.database == "":
		c.store = greylist.NewMemory(f.maxGrey)
	default:
		if f.command() == "list" { // those of root too
			entries, err := f.lists()
			c.lists = func() ([]listEntry, error) { return entries, err }
		}
		var err error
		c.restore, err = guard.BecomeOwner(f.database)
		if err != nil && operator {
			return nil, err
		}
		if err != nil {
			log.Warn("running as root", "err", err)
		}
		c.store = sqlite.Open(sqlite.Options{Path: f.database, MaxGrey: f.maxGrey, Existing: operator, Log: storeLog})
		if c.secret == nil {
			c.secret = (&greylist.KeyFile{Path: f.keyPath(), Create: !operator}).Secret
		}
	}
	o.Store, o.Secret = c.store, c.secret
	c.greylist = greylist.New(o)
	c.resolver = resolve.New(resolve.Options{Servers: f.Servers, Timeout: f.Timeout.Value, Log: log, Metrics: c.metrics})
	c.spf = spf.New(spf.Options{Resolver: c.resolver, Timeout: f.Timeout.Value, Metrics: c.metrics})
	return c, nil
}

func (c *checker) openLists() error {
	f, log := c.flags, c.log
	if f.CheckOnly {
		log = nil // printConfig says what is wrong
	}
	var errs [5]error
	c.clients, errs[0] = reload.Open(reload.Options[exempt.Clients]{Paths: f.allowClients, Parse: exempt.ParseClients, Merge: exempt.MergeClients, Log: log})
	c.senders, errs[1] = reload.Open(reload.Options[exempt.Senders]{Paths: f.allowSenders, Parse: exempt.ParseSenders, Merge: exempt.MergeSenders, Log: log})
	addDefault := func(lists ...exempt.Recipients) exempt.Recipients {
		return exempt.MergeRecipients(append(lists, exempt.DefaultRecipients())...)
	}
	recipients := func(paths []string, merge func(...exempt.Recipients) exempt.Recipients) (*reload.File[exempt.Recipients], error) {
		return reload.Open(reload.Options[exempt.Recipients]{Paths: paths, Parse: exempt.ParseRecipients, Merge: merge, Log: log})
	}
	c.rcpts, errs[2] = recipients(f.allowRecipients, addDefault)
	c.only, errs[3] = recipients(f.onlyRecipients, exempt.MergeRecipients)
	c.traps, errs[4] = recipients(f.traps, exempt.MergeRecipients)
	return errors.Join(errs[:]...)
}

func (c *checker) close() {
	c.store.Close()
	c.resolver.Close()
	if c.restore != nil {
		c.restore()
	}
}

// operator returns who carries out the operator's commands.
func (c *checker) operator(stdin io.Reader, stdout io.Writer) *operator {
	return &operator{
		greylist: c.greylist, clear: c.flags.storeAddresses, lists: c.lists,
		in: stdin, out: stdout, now: time.Now(),
	}
}

// lists returns the lines of all lists.
func (f *flags) lists() ([]listEntry, error) {
	clients, err1 := readList("allowClients", f.allowClients, exempt.ParseClients)
	senders, err2 := readList("allowSenders", f.allowSenders, exempt.ParseSenders)
	rcpts, err3 := readList("allowRecipients", f.allowRecipients, exempt.ParseRecipients)
	rcpts = append(rcpts, listEntry{"allowRecipients", "postmaster@", "default"}, listEntry{"allowRecipients", "abuse@", "default"})
	only, err4 := readList("onlyRecipients", f.onlyRecipients, exempt.ParseRecipients)
	traps, err5 := readList("trap", f.traps, exempt.ParseRecipients)
	return slices.Concat(clients, senders, rcpts, only, traps), errors.Join(err1, err2, err3, err4, err5)
}

// watch keeps lists, records and metrics up to date until the function it
// returns is called.
func (c *checker) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go reload.Watch(ctx, c.clients, c.senders, c.rcpts, c.only, c.traps)
	if c.secret != nil {
		go c.secret() // so that the file is there before the first message
	}
	var written sync.WaitGroup
	written.Go(func() { c.greylist.Run(ctx, c.now, c.log) })
	written.Go(func() { c.metrics.Run(ctx, c.log) })
	done := make(chan struct{})
	return func() {
		cancel()
		go func() { written.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(2 * time.Second): // the file system hangs
		}
	}
}

// now returns the time of the last line that mattered, zero if there was none.
func (c *checker) now() time.Time {
	if micros := c.latest.Load(); micros > 0 {
		return time.UnixMicro(micros)
	}
	return time.Time{}
}

// printConfig prints what is in force. Bad lines of files are an error.
func (c *checker) printConfig(w io.Writer) error {
	var extra [][2]string
	if path := c.flags.keyPath(); path != "" {
		extra = append(extra, [2]string{"secret of keys", path})
	}
	for _, w := range c.flags.trusted.Words() {
		extra = append(extra, [2]string{"trusted", w})
	}
	for _, s := range c.resolver.Servers() {
		extra = append(extra, [2]string{"resolver", s.String()})
	}
	count := func(flag string, n int) {
		extra = append(extra, [2]string{"entries of " + flag, fmt.Sprint(n)})
	}
	count("-allowClients", c.clients.Value().Len())
	count("-allowSenders", c.senders.Value().Len())
	count("-allowRecipients", c.rcpts.Value().Len())
	count("-onlyRecipients", c.only.Value().Len())
	count("-trap", c.traps.Value().Len())
	c.flags.Print(w, extra...)
	var bad []error
	for _, errs := range [][]error{c.clients.Bad(), c.senders.Bad(), c.rcpts.Bad(), c.only.Bad(), c.traps.Bad()} {
		bad = append(bad, errs...)
	}
	return errors.Join(bad...)
}
