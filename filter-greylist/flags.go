package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/redis"
	"opensmtpd-filters/pkg/program"
)

// flags are those of the command line that only this program has.
type flags struct {
	url, keyFile, who, spfMode, replyText                    string
	providersMode, dnswl, dnswlLevel                         string
	storeAddresses, learn                                    bool
	passTime, greyExp, whiteExp, pairSpan                    cli.Duration
	mask4, mask6, pairTries, pairNets, maxGrey, maxPerClient int
	onlyFiles, trapFiles                                     cli.Strings

	reply    cli.Reply
	database string          // file of the store, empty if there is none
	server   *redis.Location // of the store, nil if there is none
	allows   []dnsbl.List    // that of -dnswl
}

func newFlags(p *program.Program) *flags {
	f := &flags{
		passTime: cli.Duration{Value: time.Minute, Min: time.Second, Max: 24 * time.Hour},
		greyExp:  cli.Duration{Value: 24 * time.Hour, Min: time.Minute, Max: 30 * 24 * time.Hour},
		whiteExp: cli.Duration{Value: 36 * 24 * time.Hour, Min: time.Hour, Max: 3650 * 24 * time.Hour},
		pairSpan: cli.Duration{Value: 15 * time.Minute, Min: time.Second, Max: 24 * time.Hour},
	}
	p.StringVar(&f.url, "store", "sqlite:"+cli.StateDir("filter-greylist")+"/greylist.db", "keep records at `URL`: sqlite:PATH, redis://HOST for all hosts that use it, or memory: for none that a restart outlives")
	p.StringVar(&f.keyFile, "keyFile", "", "make keys of records with the secret of `FILE` (default: PATH.key beside the database, made if it is not there; with a server it has to be given)")
	p.BoolVar(&f.storeAddresses, "storeAddresses", true, "store addresses in clear beside the keys, for list, stats and the log; with a server not, unless it is said")
	p.Var(&f.passTime, "passTime", "accept a retry from the age of `TIME` on")
	p.Var(&f.greyExp, "greyExp", "count a retry as a first attempt after `TIME`")
	p.Var(&f.whiteExp, "whiteExp", "forget who has passed after `TIME` without mail")
	p.StringVar(&f.who, "who", "suspects", "who waits: `WHO` is suspects, whose mail cannot be vouched for, or all")
	p.IntVar(&f.mask4, "mask4", 24, "`BITS` of the network that stands for an IPv4 address")
	p.IntVar(&f.mask6, "mask6", 64, "`BITS` of the network that stands for an IPv6 address")
	p.StringVar(&f.spfMode, "spf", "group", "what SPF is for: with `MODE` group the addresses that pass for a domain are one origin, with skip they are not greylisted; off")
	p.StringVar(&f.providersMode, "providers", "group", "what the published networks of large mail providers are for: with `MODE` group each is one origin, and SPF pass vouches, with skip it is not greylisted; off")
	p.StringVar(&f.dnswl, "dnswl", "", "let clients through that `ZONE` lists, such as list.dnswl.org, while it is well")
	p.StringVar(&f.dnswlLevel, "dnswlLevel", "low", "with this trust at least: `LEVEL` is none, low, medium or high")
	p.IntVar(&f.pairTries, "pairTries", 3, "accept attempt `N` of the same sender and recipient, from wherever; 0 is never")
	p.IntVar(&f.pairNets, "pairNets", 2, "if they came from `N` networks, 8 at most")
	p.Var(&f.pairSpan, "pairSpan", "and the first is at least `TIME` old")
	p.Var(&f.onlyFiles, "onlyRecipients", "greylist only mail to the recipients of `FILE`; repeatable")
	p.Var(&f.trapFiles, "trap", "refuse for a day an unknown client that writes to a recipient of `FILE`; repeatable")
	p.Var(&p.Trusted, "trusted", "never greylist the networks `NETS`, separated by commas, nor private ones; none: private ones like others")
	p.BoolVar(&f.learn, "learn", true, "let through at once what those answer to whom users of this server have written")
	p.StringVar(&f.replyText, "reply", "451 4.7.1 Greylisted, please try again in %s seconds", "refuse with `TEXT`; %s seconds left, %m minutes, %i address, %o origin, %d domain of the recipient")
	p.IntVar(&f.maxGrey, "maxGrey", greylist.DefaultMaxGrey, "keep `N` records of attempts at most; past that those of the network with most go")
	p.IntVar(&f.maxPerClient, "maxPerClient", 64, "while more than `N` attempts of an address wait, a retry does not free it")
	p.SameAs("passtime", "passTime")
	p.SameAs("greyexp", "greyExp")
	p.SameAs("whiteexp", "whiteExp")
	p.Hide("passtime", "greyexp", "whiteexp")
	return f
}

// check says what is wrong with values that are no error by themselves.
func (f *flags) check(p *program.Program) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	between := func(name string, v, low, high int) {
		if v < low || v > high {
			bad("-%s %d: not from %d to %d", name, v, low, high)
		}
	}
	if f.who != "suspects" && f.who != "all" {
		bad("-who %s: not one of suspects, all", cli.Clean(f.who))
	}
	if f.spfMode != "group" && f.spfMode != "skip" && f.spfMode != "off" {
		bad("-spf %s: not one of group, skip, off", cli.Clean(f.spfMode))
	}
	if f.providersMode != "group" && f.providersMode != "skip" && f.providersMode != "off" {
		bad("-providers %s: not one of group, skip, off", cli.Clean(f.providersMode))
	}
	if err := f.parseDNSWL(); err != nil {
		bad("%w", err)
	}
	if f.passTime.Value >= f.greyExp.Value {
		bad("-passTime %s is not less than -greyExp %s", &f.passTime, &f.greyExp)
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
	if err := f.parseStore(p.Operator && !p.CheckOnly); err != nil {
		bad("-store %s: %w", cli.Clean(f.url), err)
	}
	if f.server != nil {
		if f.keyFile == "" {
			bad("-store %s: needs -keyFile, the same on all hosts (\"openssl rand -hex 32\" makes a key)", f.server)
		}
		given := false
		p.Visit(func(fl *flag.Flag) { given = given || fl.Name == "storeAddresses" })
		f.storeAddresses = f.storeAddresses && given // they are others' too
	}
	return errors.Join(errs...)
}

func (f *flags) parseStore(command bool) error {
	kind, path, _ := strings.Cut(f.url, ":")
	switch {
	case kind == "memory" && path == "":
		if command {
			return errors.New("only the filter itself sees its records")
		}
	case kind == "sqlite" && path != "":
		if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
			return errors.New("not a file")
		}
		f.database = path
	case strings.HasPrefix(kind, "redis"):
		var err error
		if f.server, err = redis.ParseURL(f.url); err != nil {
			f.url = kind + "://..." // what cannot be read may have a password
			return err
		}
		f.url = f.server.String()
		return f.server.Check()
	default:
		return errors.New("want sqlite:PATH, redis://HOST or \"memory:\"")
	}
	return nil
}
