// Filter-dyndns is a filter of smtpd(8) that tells residential and generic
// lines from mail servers by their reverse name. See filter-dyndns(8).
package main

import (
	"errors"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/rdns"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
)

func main() { program.Main(spec) }

var spec = program.Spec{
	Name:     "filter-dyndns",
	Synopsis: []string{"[flags] -classify FILE"},
	Timeout:  5 * time.Second,
	Phase:    "mail-from",
	Field:    "X-Rdns-Class",
	Commands: []string{"classify"},
	New:      newCheck,
}

// check is the filter as configured.
type check struct {
	*program.Program
	actions      map[rdns.Class]*cli.Action
	replies      map[rdns.Class]cli.Reply
	names, match *reload.File[*rdns.Patterns]
	helo         bool
	gate         *program.Gate[state]
}

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{Program: p, actions: make(map[rdns.Class]*cli.Action)}
	var names, match, expr cli.Strings
	var reply, classify string
	for _, a := range actions {
		v := &cli.Action{Name: a.action, MaxDelay: filter.MaxDelay}
		c.actions[a.class] = v
		p.Var(v, a.class.String(), a.usage)
	}
	p.Var(&names, "allowNames", "names that match an expression of `FILE`, if confirmed, are proper whatever follows; repeatable")
	p.Var(&match, "match", "names that match an expression of `FILE` are dynamic; repeatable")
	p.Var(&expr, "expr", "names that match `EXPRESSION` are dynamic; repeatable")
	p.BoolVar(&c.helo, "helo", true, "clear a client whose HELO name is proper and resolves to it")
	p.StringVar(&reply, "reply", "", "refuse with `TEXT`, such as \"550 5.7.1 [%i] %n is a %c line\"; %i address, %n name, %c class (default by class)")
	p.StringVar(&classify, "classify", "", "print the classes of the lines \"address TAB name\" of `FILE`, - is standard input")

	return func() (program.Check, error) {
		var errs [4]error
		if classify != "" {
			errs[3] = c.Do("classify", classify)
		}
		c.replies, errs[0] = parseReplies(reply)
		c.names, errs[1] = c.patterns(names, nil)
		c.match, errs[2] = c.patterns(match, expr)
		c.OpenResolver(resolve.Options{})
		return c, errors.Join(errs[:]...)
	}
}
