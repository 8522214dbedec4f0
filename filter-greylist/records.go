package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/redis"
	"opensmtpd-filters/pkg/greylist/sqlite"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/sandbox"
)

// command returns the operator's command, "" for none.
func (c *check) command() string {
	if words := c.Words(); len(words) > 0 {
		return words[0]
	}
	return ""
}

// openLists opens the lists that only this program has.
func (c *check) openLists() error {
	log := c.Log
	if c.Operator {
		log = nil // the bad lines are told
	}
	open := func(paths []string) (*reload.File[exempt.Recipients], error) {
		return reload.Open(reload.Options[exempt.Recipients]{
			Paths: paths, Parse: exempt.ParseRecipients, Merge: exempt.MergeRecipients, Log: log,
		})
	}
	var err1, err2 error
	c.only, err1 = open(c.onlyFiles)
	c.traps, err2 = open(c.trapFiles)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	c.Keep(c.only, c.traps)
	return nil
}

// openSecret reads the file of -keyFile.
func (c *check) openSecret() error {
	if c.keyFile == "" {
		return nil
	}
	c.secret = (&greylist.KeyFile{Path: c.keyFile}).Secret
	if _, err := c.secret(); err != nil {
		return fmt.Errorf("-keyFile: %w (\"openssl rand -hex 32\" makes a key)", err)
	}
	return nil
}

// keyPath returns the file of the secret.
func (c *check) keyPath() string {
	if c.keyFile == "" && c.database != "" {
		return c.database + ".key"
	}
	return c.keyFile
}

// openStore opens the records. What a command reads besides is opened before, with
// the rights of who runs it. With -n no file is made.
func (c *check) openStore() error {
	c.begun = time.Now()
	policy := c.policy()
	c.need()
	switch {
	case c.CheckOnly || c.database == "" && c.server == nil:
		c.store = greylist.NewMemory(c.maxGrey)
	case c.server != nil:
		var err error
		c.store, err = redis.Open(redis.Options{
			Location: c.server, Policy: policy, MaxGrey: c.maxGrey, Secret: c.secret, Operator: c.Operator, Log: c.Log, Metrics: c.Metrics,
		})
		if err != nil {
			return err
		}
	default:
		if err := c.openDatabase(); err != nil {
			return err
		}
	}
	c.greylist = greylist.New(greylist.Options{
		Policy: policy, Providers: providerNames(), Clear: c.storeAddresses, Metrics: c.Metrics, Store: c.store, Secret: c.secret,
	})
	return nil
}

// need says what the store needs of the system.
func (c *check) need() {
	var n sandbox.Needs
	if c.keyFile != "" {
		n.Read = append(n.Read, c.keyFile)
	}
	if c.database != "" {
		n.Write = append(n.Write, c.database)
	}
	if l := c.server; l != nil {
		n.Read = append(n.Read, l.Files()...)
		if path := l.Socket(); path != "" {
			n.Unix = append(n.Unix, path)
		} else { // the system is asked for the addresses of names
			n.Read = append(n.Read, resolve.SystemConf, "/etc/hosts", "/etc/nsswitch.conf")
			n.Ports, n.Any = append(l.Ports(), 53), l.Moves()
		}
	}
	c.Need(n)
}

// openDatabase opens records in a file.
func (c *check) openDatabase() error {
	c.imports = openImports(c.Words())
	if c.command() == "list" {
		entries, err := c.lists()
		c.entries = func() ([]listEntry, error) { return entries, err }
	}
	var err error
	c.restore, err = guard.BecomeOwner(c.database)
	if err != nil && c.Operator {
		return err
	}
	if err != nil {
		c.Log.Warn("running as root", "err", err)
	}
	log := c.Log
	if c.Operator && !c.Verbose {
		log = nil // the command says what is wrong
	}
	c.Confine() // from now on the disk may hang
	c.store = sqlite.Open(sqlite.Options{Path: c.database, MaxGrey: c.maxGrey, Existing: c.Operator, Log: log})
	if c.secret == nil {
		c.secret = (&greylist.KeyFile{Path: c.keyPath(), Create: !c.Operator}).Secret
	}
	return nil
}

// policy is what the flags say of decisions.
func (c *check) policy() greylist.Policy {
	tries := c.pairTries
	if tries == 0 {
		tries = -1
	}
	return greylist.Policy{
		PassTime: c.passTime.Value, GreyExp: c.greyExp.Value, WhiteExp: c.whiteExp.Value, TrapTime: trapTime,
		Mask4: c.mask4, Mask6: c.mask6, MaxPerClient: c.maxPerClient, All: c.who == "all",
		PairTries: tries, PairNets: c.pairNets, PairSpan: c.pairSpan.Value,
	}
}

// Close ends what was begun when the program was made.
func (c *check) Close() error {
	err := c.store.Close()
	if c.restore != nil {
		c.restore()
	}
	return err
}

// lists returns the lines of all lists.
func (c *check) lists() ([]listEntry, error) {
	clients, err1 := readList("allowClients", c.Lists.Clients, exempt.ParseClients)
	senders, err2 := readList("allowSenders", c.Lists.Senders, exempt.ParseSenders)
	rcpts, err3 := readList("allowRecipients", c.Lists.Recipients, exempt.ParseRecipients)
	rcpts = append(rcpts, listEntry{"allowRecipients", "postmaster@", "default"}, listEntry{"allowRecipients", "abuse@", "default"})
	only, err4 := readList("onlyRecipients", c.onlyFiles, exempt.ParseRecipients)
	traps, err5 := readList("trap", c.trapFiles, exempt.ParseRecipients)
	return slices.Concat(clients, senders, rcpts, only, traps), errors.Join(err1, err2, err3, err4, err5)
}

// saw takes note of the time of a line. A clock that was ahead, and was put
// right, must not make all that is new look old.
func (c *check) saw(t time.Time) { c.latest.Store(t.UnixMicro()) }

// now returns the time of the last line that mattered, zero if there was none.
func (c *check) now() time.Time {
	if micros := c.latest.Load(); micros > 0 {
		return time.UnixMicro(micros)
	}
	return time.Time{}
}

// Config shows the secret's file, who is trusted and how many recipients the files
// have.
func (c *check) Config(t *program.Table) {
	if path := c.keyPath(); path != "" {
		t.Row("secret of keys", "%s", path)
	}
	for _, w := range c.Trusted.Words() {
		t.Row("trusted", "%s", w)
	}
	if c.providersMode != "off" {
		for _, one := range providers {
			t.Row("provider", "%s, of the SPF record of %s", one.name, one.domain)
		}
	}
	for _, l := range c.allows {
		t.Row("dnswl", "%s", l)
	}
	t.Row("entries of -onlyRecipients", "%d", c.only.Value().Len())
	t.Row("entries of -trap", "%d", c.traps.Value().Len())
}

// usable says what keeps a command from the records, and what to do about it.
func (c *check) usable() error {
	if c.database == "" {
		return nil
	}
	owner := "the user of the filter"
	if fi, err := os.Stat(filepath.Dir(c.database)); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			if u, err := user.LookupId(fmt.Sprint(st.Uid)); err == nil {
				owner = u.Username
			}
		}
	}
	say := func(path string, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path == c.database:
			return fmt.Errorf("there is no database %s: smtpd makes it when it first runs the filter; give its -store if that is another", path)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("there is no secret %s, with which the records of %s were made", path, c.database)
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("%s cannot be used by this user: run this as root or as %s", path, owner)
		}
		return nil // the store says so itself
	}
	f, err := guard.Open(c.database, os.O_RDWR, 0)
	if err != nil {
		return say(c.database, err)
	}
	f.Close()
	if f, err = os.OpenFile(c.keyPath(), os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		return say(c.keyPath(), err)
	}
	return f.Close()
}

// Command carries out a command of the operator.
func (c *check) Command(args []string) error {
	if err := c.usable(); err != nil {
		return err
	}
	o := &operator{
		greylist: c.greylist, clear: c.storeAddresses, lists: c.entries, files: c.imports,
		in: c.In, out: c.Out, now: time.Now(),
	}
	return o.command(context.Background(), args)
}
