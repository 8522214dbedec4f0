package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/listfile"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
)

// A listSet is the lists of a file, or all that are in force. It is replaced, never
// changed.
type listSet struct {
	lists []dnsbl.List
	keys  []string
}

// Len returns the number of lists.
func (s *listSet) Len() int { return len(s.all()) }

func (s *listSet) all() []dnsbl.List {
	if s == nil {
		return nil
	}
	return s.lists
}

// openLists reads the arguments: lists, and files of lists, which are read again
// when they change.
func (c *check) openLists() error {
	var errs []error
	var paths []string
	own := make([]*listSet, len(c.Args())) // of arguments that are no files
	for i, arg := range c.Args() {
		if path, ok := strings.CutPrefix(arg, "@"); ok {
			paths = append(paths, path)
			continue
		}
		lists, bad := dnsbl.Parse(arg)
		own[i] = &listSet{lists: lists}
		errs = append(append(errs, bad...), c.early(lists))
	}
	if len(c.Args()) == 0 && (!c.Operator || c.CheckOnly) {
		errs = append(errs, errors.New("no list given; which to trust is for you to decide"))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var err error
	c.lists, err = reload.Open(reload.Options[*listSet]{
		Paths: paths, Parse: c.parseFile, Log: c.Log,
		Merge: func(files ...*listSet) *listSet {
			all := new(listSet)
			for _, s := range own {
				if s == nil { // the next file
					s, files = files[0], files[1:]
				}
				if s != nil {
					all.lists, all.keys = append(all.lists, s.lists...), append(all.keys, s.keys...)
				}
			}
			all.lists = dnsbl.Distinct(all.lists)
			c.hide(all.keys)
			return all
		},
	})
	if err == nil && len(paths) > 0 {
		c.Keep(c.lists)
	}
	return err
}

// parseFile reads a file of lists. It counts as one value: see dnsbl.Parse.
func (c *check) parseFile(r io.Reader, file string) (*listSet, []error) {
	var lines, places []string
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		if e.Text[0] == '@' {
			return errors.New("a file cannot name another")
		}
		lines, places = append(lines, e.Text), append(places, e.Place.String())
		return nil
	})
	s := &listSet{keys: dnsbl.Keys(lines...)}
	var bad []error
	s.lists, bad = dnsbl.Parse(lines...)
	for i, err := range bad {
		if err != nil {
			errs = append(errs, errors.New(places[i]+": "+strings.ReplaceAll(err.Error(), "\n", "\n"+places[i]+": ")))
		}
	}
	s.lists = slices.DeleteFunc(s.lists, func(l dnsbl.List) bool {
		err := c.early([]dnsbl.List{l})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		return err != nil
	})
	return s, errs
}

// early is an error if lists are about names that are not known at -phase.
func (c *check) early(lists []dnsbl.List) error {
	var errs []error
	for _, l := range lists {
		switch {
		case l.Ask&dnsbl.Helo != 0 && c.Phase < filter.Helo:
			errs = append(errs, fmt.Errorf("list %s: +helo needs -phase helo or later", l.Label))
		case l.Ask&dnsbl.From != 0 && c.Phase < filter.MailFrom:
			errs = append(errs, fmt.Errorf("list %s: +from needs -phase mail-from or later", l.Label))
		}
	}
	return errors.Join(errs...)
}

// ask makes what asks the lists.
func (c *check) ask() {
	log := c.Log
	if c.Operator && !c.Verbose {
		log = nil
	}
	c.used = c.lists.Value()
	o := dnsbl.Options{
		Lists: c.used.all(), BlockAt: c.blockAt, JunkAt: c.junkAt,
		Timeout: c.Timeout.Value, Reason: c.reply.Has("%r"), DryRun: c.DryRun,
		Resolver: c.Resolver, Log: log, Metrics: c.Metrics,
	}
	c.dnsbl = dnsbl.New(o)
	c.Beside("health", c.dnsbl.Run)
	c.warn(o)
}

// warn tells what is hardly meant.
func (c *check) warn(o dnsbl.Options) {
	for _, w := range o.Warnings() {
		c.Warn("%s", w)
	}
	for _, s := range c.Resolver.Servers() {
		if resolve.Public(s.Addr()) {
			c.Warn("a public resolver is asked, %s; many lists do not answer it, or answer with errors: run a resolver of your own, and ask no other", s.Addr())
		}
	}
	if c.Phase == filter.Connect || c.Phase == filter.Helo {
		c.Warn("at -phase connect and helo users are not yet known: give this filter to listeners on port 25 only")
	}
}

// renew takes the lists that are in force now.
func (c *check) renew() {
	if now := c.lists.Value(); now != c.used {
		c.used = now
		c.dnsbl.Use(now.all())
		c.Log.Info("lists read again", "lists", now.Len())
	}
}

// mask takes the keys of lists out of a text: those of the command line, wherever
// they stand, and of files.
func (c *check) mask(s string) string { return dnsbl.Redactor(*c.keys.Load())(s) }

// hide adds keys of files to those of the command line.
func (c *check) hide(keys []string) {
	all := slices.Concat(dnsbl.Keys(os.Args[1:]...), keys)
	c.keys.Store(&all)
}
