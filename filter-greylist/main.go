// Filter-greylist is a filter of smtpd(8) that refuses the first attempt of an
// unknown origin and accepts its retry. See filter-greylist(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/sqlite"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/metrics"
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
	defer c.close()
	switch {
	case flags.CheckOnly:
		return flags.Exit(c.printConfig(stdout), stdout, stderr)
	case flags.command() == "explain":
		return flags.Exit(c.explain(flags.Args()[1:], stdout), stdout, stderr)
	case flags.command() != "":
		return flags.Exit(c.operator(stdin, stdout).command(context.Background(), flags.Args()), stdout, stderr)
	}
	defer c.watch()()
	return c.filter().Main()
}

// flags are those of the command line.
type flags struct {
	*cli.Flags
	store, keyFile, phaseName, spf, trustedNets, replyText string
	storeAddresses, learn, header                          bool
	passTime, greyExp, whiteExp, pairSpan                  cli.Duration
	mask4, mask6, pairTries, pairNets, maxGrey, maxPerNet  int
	allowClients, allowSenders, allowRecipients            cli.Strings
	onlyRecipients, traps                                  cli.Strings

	phase    filter.Phase
	reply    cli.Reply
	trusted  []netip.Prefix
	database string // file of the store, empty if there is none
}

func newFlags() *flags {
	f := &flags{
		Flags: cli.New(cli.Options{
			Name: "filter-greylist",
			Synopsis: []string{
				"[flags]",
				"[flags] list [grey|pass|pair|list] [-json]",
				"[flags] explain ADDRESS SENDER RECIPIENT [HELO]",
				"[flags] allow|delete KEY...",
				"[flags] stats [-json]",
				"[flags] export",
				"[flags] import [FILE...]",
			},
			Args: true, DryRun: true, Metrics: true, Resolver: true, Timeout: 5 * time.Second,
		}),
		passTime: cli.Duration{Value: time.Minute, Min: time.Second, Max: 24 * time.Hour},
		greyExp:  cli.Duration{Value: 24 * time.Hour, Min: time.Minute, Max: 30 * 24 * time.Hour},
		whiteExp: cli.Duration{Value: 36 * 24 * time.Hour, Min: time.Hour, Max: 3650 * 24 * time.Hour},
		pairSpan: cli.Duration{Value: 15 * time.Minute, Min: time.Second, Max: 24 * time.Hour},
	}
	f.StringVar(&f.store, "store", "sqlite:"+stateDir()+"/greylist.db", "keep records at `URL`: sqlite:PATH, or memory: for none that a restart outlives")
	f.StringVar(&f.keyFile, "keyFile", "", "make keys of records with the secret of `FILE` (default: PATH.key beside the database, made if it is not there)")
	f.BoolVar(&f.storeAddresses, "storeAddresses", true, "store addresses in clear beside the keys, for list, stats and the log")
	f.Var(&f.passTime, "passtime", "accept a retry from the age of `TIME` on")
	f.Var(&f.greyExp, "greyexp", "count a retry as a first attempt after `TIME`")
	f.Var(&f.whiteExp, "whiteexp", "forget who has passed after `TIME` without mail")
	f.StringVar(&f.phaseName, "phase", "data", "decide at `PHASE`: data, when unknown recipients have been refused, or rcpt-to")
	f.IntVar(&f.mask4, "mask4", 24, "`BITS` of the network that stands for an IPv4 address")
	f.IntVar(&f.mask6, "mask6", 64, "`BITS` of the network that stands for an IPv6 address")
	f.StringVar(&f.spf, "spf", "group", "what SPF is for: with `MODE` group the addresses that pass for a domain are one origin, with skip they are not greylisted; off")
	f.IntVar(&f.pairTries, "pairTries", 3, "accept attempt `N` of the same sender and recipient, from wherever; 0 is never")
	f.IntVar(&f.pairNets, "pairNets", 2, "if they came from `N` networks, 8 at most")
	f.Var(&f.pairSpan, "pairSpan", "and the first is at least `TIME` old")
	f.Var(&f.allowClients, "allowClients", "do not greylist the addresses, networks, domains and /expressions/ of `FILE`; repeatable")
	f.Var(&f.allowSenders, "allowSenders", "do not greylist the domains and addresses of `FILE`, if SPF passes or after !; repeatable")
	f.Var(&f.allowRecipients, "allowRecipients", "do not greylist mail to the addresses, user@ and domains of `FILE` alone, nor to postmaster@ and abuse@; repeatable")
	f.Var(&f.onlyRecipients, "onlyRecipients", "greylist only mail to the recipients of `FILE`; repeatable")
	f.Var(&f.traps, "trap", "refuse for a day an unknown client that writes to a recipient of `FILE`; repeatable")
	f.StringVar(&f.trustedNets, "trusted", "", "never greylist the networks `NETS`, separated by commas, nor private ones; none: private ones like others")
	f.BoolVar(&f.learn, "learn", true, "let through at once what those answer to whom users of this server have written")
	f.StringVar(&f.replyText, "reply", "451 4.7.1 Greylisted, please try again in %s seconds", "refuse with `TEXT`; %s seconds left, %m minutes, %i address, %o origin, %d domain of the recipient")
	f.BoolVar(&f.header, "header", false, "add the field X-Greylist to each message, and remove others of that name")
	f.IntVar(&f.maxGrey, "maxGrey", greylist.DefaultMaxGrey, "keep `N` records of attempts at most, the newest")
	f.IntVar(&f.maxPerNet, "maxPerNet", 256, "after about `N` new attempts within -greyexp treat a network as a whole")
	return f
}

// stateDir returns the folder for what a restart must not forget.
func stateDir() string {
	if runtime.GOOS == "linux" {
		return "/var/lib/filter-greylist"
	}
	return "/var/db/filter-greylist"
}

// command returns the operator's command, empty for a filter.
func (f *flags) command() string { return f.Arg(0) }

func (f *flags) parse(args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	between := func(name string, v, low, high int) {
		if v < low || v > high {
			bad("-%s %d: not from %d to %d", name, v, low, high)
		}
	}
	switch f.phaseName {
	case "data":
		f.phase = filter.Data
	case "rcpt-to":
		f.phase = filter.RcptTo
	default:
		bad("-phase %s: not one of data, rcpt-to", f.phaseName)
	}
	if f.spf != "group" && f.spf != "skip" && f.spf != "off" {
		bad("-spf %s: not one of group, skip, off", f.spf)
	}
	if f.passTime.Value >= f.greyExp.Value {
		bad("-passtime %s is not less than -greyexp %s", &f.passTime, &f.greyExp)
	}
	between("mask4", f.mask4, 8, 32)
	between("mask6", f.mask6, 16, 128)
	between("pairTries", f.pairTries, 0, 1000)
	between("pairNets", f.pairNets, 1, 8)
	between("maxGrey", f.maxGrey, 1000, 1<<30)
	between("maxPerNet", f.maxPerNet, 1, 1<<30)
	var err error
	if f.reply, err = cli.ParseReply(f.replyText, "smiod"); err != nil {
		bad("-reply %q: %w", f.replyText, err)
	} else if f.reply.Code >= 500 {
		bad("-reply %q: with a code over 499 clients would not come again", f.replyText)
	}
	if f.trusted, err = parseTrusted(f.trustedNets); err != nil {
		bad("-trusted: %w", err)
	}
	if err := f.parseStore(); err != nil {
		bad("-store %s: %w", f.store, err)
	}
	switch f.command() {
	case "", "list", "explain", "allow", "delete", "stats", "export", "import":
	default:
		bad("%s is not one of list, explain, allow, delete, stats, export, import", f.command())
	}
	return errors.Join(errs...)
}

func (f *flags) parseStore() error {
	kind, path, _ := strings.Cut(f.store, ":")
	switch {
	case kind == "memory" && path == "":
		if f.command() != "" {
			return errors.New("only the filter itself sees its records")
		}
	case kind == "sqlite" && path != "":
		if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
			return errors.New("not a file")
		}
		f.database = path
	default:
		return errors.New("neither sqlite:PATH nor \"memory:\"")
	}
	return nil
}

// parseTrusted reads a list of networks. Private ones are trusted too unless it
// says none.
func parseTrusted(list string) ([]netip.Prefix, error) {
	nets := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), // loopback, RFC 1122, RFC 4291
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
		netip.MustParsePrefix("fc00::/7"),                                           // unique local, RFC 4193
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), // link-local, RFC 3927, RFC 4291
	}
	private := len(nets)
	if list == "" {
		return nets, nil
	}
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if word == "none" {
			nets, private = nets[private:], 0
			continue
		}
		p, err := ipset.ParsePrefix(word)
		if err != nil {
			return nil, err
		}
		nets = append(nets, p)
	}
	return nets, nil
}

// checker is the filter as configured.
type checker struct {
	flags    *flags
	log      *slog.Logger
	metrics  *metrics.Set
	resolver *resolve.Resolver
	spf      *greylist.SPF
	secret   func() ([]byte, error) // of keys; nil: made at random
	greylist *greylist.Greylist
	store    greylist.Store
	trouble  trouble
	newest   atomic.Int64 // time of the newest line that mattered, microseconds since the epoch

	clients *reload.File[*greylist.Clients]
	senders *reload.File[*greylist.Senders]
	rcpts   *reload.File[*greylist.Recipients]
	only    *reload.File[*greylist.Recipients]
	traps   *reload.File[*greylist.Recipients]
}

func newChecker(f *flags, log *slog.Logger) (*checker, error) {
	c := &checker{flags: f, log: log, metrics: metrics.New()}
	c.metrics.Filter = "greylist"
	c.trouble.log = log
	var errs []error
	keep := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var servers []netip.AddrPort
	var err error
	if f.Resolver != "" {
		if servers, err = resolve.ParseServers(f.Resolver); err != nil {
			keep(fmt.Errorf("-resolver: %w", err))
		}
	}
	keep(c.openLists())
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
			PassTime: f.passTime.Value, GreyExp: f.greyExp.Value, WhiteExp: f.whiteExp.Value,
			Mask4: f.mask4, Mask6: f.mask6, MaxPerNet: f.maxPerNet,
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
		c.store = sqlite.Open(sqlite.Options{Path: f.database, MaxGrey: f.maxGrey, Existing: operator, Log: storeLog})
		if c.secret == nil {
			c.secret = (&greylist.KeyFile{Path: f.keyPath(), Create: !operator}).Secret
		}
	}
	o.Store, o.Secret = c.store, c.secret
	c.greylist = greylist.New(o)
	c.resolver = resolve.New(resolve.Options{Servers: servers, Timeout: f.Timeout.Value, Log: log, Metrics: c.metrics})
	c.spf = greylist.NewSPF(c.resolver, f.Timeout.Value)
	return c, nil
}

// keyPath returns the file of the secret.
func (f *flags) keyPath() string {
	if f.keyFile == "" && f.database != "" {
		return f.database + ".key"
	}
	return f.keyFile
}

func (c *checker) openLists() error {
	f, log := c.flags, c.log
	var errs [5]error
	c.clients, errs[0] = reload.Open(reload.Options[*greylist.Clients]{Paths: f.allowClients, Parse: greylist.ParseClients, Merge: greylist.MergeClients, Log: log})
	c.senders, errs[1] = reload.Open(reload.Options[*greylist.Senders]{Paths: f.allowSenders, Parse: greylist.ParseSenders, Merge: greylist.MergeSenders, Log: log})
	addDefault := func(lists ...*greylist.Recipients) *greylist.Recipients {
		return greylist.MergeRecipients(append(lists, greylist.DefaultRecipients())...)
	}
	recipients := func(paths []string, merge func(...*greylist.Recipients) *greylist.Recipients) (*reload.File[*greylist.Recipients], error) {
		return reload.Open(reload.Options[*greylist.Recipients]{Paths: paths, Parse: greylist.ParseRecipients, Merge: merge, Log: log})
	}
	c.rcpts, errs[2] = recipients(f.allowRecipients, addDefault)
	c.only, errs[3] = recipients(f.onlyRecipients, greylist.MergeRecipients)
	c.traps, errs[4] = recipients(f.traps, greylist.MergeRecipients)
	return errors.Join(errs[:]...)
}

func (c *checker) close() {
	c.store.Close()
	c.resolver.Close()
}

// operator returns who carries out the operator's commands.
func (c *checker) operator(stdin io.Reader, stdout io.Writer) *operator {
	return &operator{
		greylist: c.greylist, clear: c.flags.storeAddresses, lists: c.flags.lists,
		in: stdin, out: stdout, now: time.Now(),
	}
}

// lists returns the lines of all lists.
func (f *flags) lists() ([]listEntry, error) {
	clients, err1 := readList("allowClients", f.allowClients, greylist.ParseClients)
	senders, err2 := readList("allowSenders", f.allowSenders, greylist.ParseSenders)
	rcpts, err3 := readList("allowRecipients", f.allowRecipients, greylist.ParseRecipients)
	rcpts = append(rcpts, listEntry{"allowRecipients", "postmaster@", "default"}, listEntry{"allowRecipients", "abuse@", "default"})
	only, err4 := readList("onlyRecipients", f.onlyRecipients, greylist.ParseRecipients)
	traps, err5 := readList("trap", f.traps, greylist.ParseRecipients)
	return slices.Concat(clients, senders, rcpts, only, traps), errors.Join(err1, err2, err3, err4, err5)
}

// watch keeps lists, records and metrics up to date until the function it
// returns is called.
func (c *checker) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go c.clients.Watch(ctx)
	go c.senders.Watch(ctx)
	go c.rcpts.Watch(ctx)
	go c.only.Watch(ctx)
	go c.traps.Watch(ctx)
	if c.secret != nil {
		go c.secret() // so that the file is there before the first message
	}
	var written sync.WaitGroup
	written.Go(func() { c.greylist.Run(ctx, c.now, c.log) })
	written.Go(func() { c.metrics.Run(ctx, c.flags.Metrics, c.log) })
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

// now returns the newest time of a line that mattered, zero if there was none.
func (c *checker) now() time.Time {
	if micros := c.newest.Load(); micros > 0 {
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
	for _, p := range c.flags.trusted {
		extra = append(extra, [2]string{"trusted", p.String()})
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
