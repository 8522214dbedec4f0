package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/resolve"
)

// flags are those of the command line.
type flags struct {
	*cli.Flags
	store, keyFile, phaseName, who, spf, replyText           string
	storeAddresses, learn, header                            bool
	passTime, greyExp, whiteExp, pairSpan                    cli.Duration
	mask4, mask6, pairTries, pairNets, maxGrey, maxPerClient int
	allowClients, allowSenders, allowRecipients              cli.Strings
	onlyRecipients, traps                                    cli.Strings

	phase    filter.Phase
	reply    cli.Reply
	trusted  exempt.Networks
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
			Args: true, DryRun: true, Metrics: true, Resolver: resolve.ParseServers, Timeout: 5 * time.Second,
		}),
		passTime: cli.Duration{Value: time.Minute, Min: time.Second, Max: 24 * time.Hour},
		greyExp:  cli.Duration{Value: 24 * time.Hour, Min: time.Minute, Max: 30 * 24 * time.Hour},
		whiteExp: cli.Duration{Value: 36 * 24 * time.Hour, Min: time.Hour, Max: 3650 * 24 * time.Hour},
		pairSpan: cli.Duration{Value: 15 * time.Minute, Min: time.Second, Max: 24 * time.Hour},
	}
	f.StringVar(&f.store, "store", "sqlite:"+cli.StateDir("filter-greylist")+"/greylist.db", "keep records at `URL`: sqlite:PATH, or memory: for none that a restart outlives")
	f.StringVar(&f.keyFile, "keyFile", "", "make keys of records with the secret of `FILE` (default: PATH.key beside the database, made if it is not there)")
	f.BoolVar(&f.storeAddresses, "storeAddresses", true, "store addresses in clear beside the keys, for list, stats and the log")
	f.Var(&f.passTime, "passtime", "accept a retry from the age of `TIME` on")
	f.Var(&f.greyExp, "greyexp", "count a retry as a first attempt after `TIME`")
	f.Var(&f.whiteExp, "whiteexp", "forget who has passed after `TIME` without mail")
	f.StringVar(&f.phaseName, "phase", "data", "decide at `PHASE`: data, when unknown recipients have been refused, or rcpt-to")
	f.StringVar(&f.who, "who", "suspects", "who waits: `WHO` is suspects, whose mail cannot be vouched for, or all")
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
	f.Var(&f.trusted, "trusted", "never greylist the networks `NETS`, separated by commas, nor private ones; none: private ones like others")
	f.BoolVar(&f.learn, "learn", true, "let through at once what those answer to whom users of this server have written")
	f.StringVar(&f.replyText, "reply", "451 4.7.1 Greylisted, please try again in %s seconds", "refuse with `TEXT`; %s seconds left, %m minutes, %i address, %o origin, %d domain of the recipient")
	f.BoolVar(&f.header, "header", false, "add the field X-Greylist to each message, and remove others of that name")
	f.IntVar(&f.maxGrey, "maxGrey", greylist.DefaultMaxGrey, "keep `N` records of attempts at most; past that those of the network with most go")
	f.IntVar(&f.maxPerClient, "maxPerClient", 64, "while more than `N` attempts of an address wait, a retry does not free it")
	return f
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
	if f.who != "suspects" && f.who != "all" {
		bad("-who %s: not one of suspects, all", f.who)
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
	between("maxPerClient", f.maxPerClient, 1, 1<<30)
	var err error
	if f.reply, err = cli.ParseReply(f.replyText, "smiod"); err != nil {
		bad("-reply %q: %w", f.replyText, err)
	} else if f.reply.Code >= 500 {
		bad("-reply %q: with a code over 499 clients would not come again", f.replyText)
	}
	if err := f.parseStore(); err != nil {
		bad("-store %s: %w", f.store, err)
	}
	if _, ok := usages[f.command()]; !ok && f.NArg() > 0 {
		bad("%s is not one of list, explain, allow, delete, stats, export, import", clean(f.command()))
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

// keyPath returns the file of the secret.
func (f *flags) keyPath() string {
	if f.keyFile == "" && f.database != "" {
		return f.database + ".key"
	}
	return f.keyFile
}
