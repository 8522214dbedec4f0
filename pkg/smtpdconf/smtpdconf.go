// Package smtpdconf reads what smtpd.conf(5) says of filters, as smtpd(8) itself
// reads it: quotes, escapes, continuation lines, macros, comments and include are
// its own, so that what a filter's command is here is what smtpd runs.
//
// Statements that have nothing to do with filters are skipped, not judged:
// whether a file is right as a whole only smtpd -n can say.
package smtpdconf

import (
	"fmt"
	"io"
	"slices"
	"strconv"
)

// A Place is where something stands.
type Place struct {
	File string
	Line int
}

func (p Place) String() string { return p.File + ":" + strconv.Itoa(p.Line) }

// A Proc is a filter program that smtpd runs: a line "proc" or "filter NAME
// proc-exec".
type Proc struct {
	Place
	Name                string
	Command             string // as smtpd gives it to sh(1), behind "exec "
	User, Group, Chroot string // "" is smtpd's own choice
}

// A Filter is one of the forms of "filter NAME".
type Filter struct {
	Place
	Name  string
	Proc  *Proc     // of proc and proc-exec
	Phase string    // of a filter that smtpd has built in: the text behind "phase"
	Chain []*Filter // of a chain, in its order
}

// All returns the filters that a filter consists of: those of a chain, or itself.
func (f *Filter) All() []*Filter {
	if f.Chain != nil {
		return f.Chain
	}
	return []*Filter{f}
}

// A Listener is a line "listen on".
type Listener struct {
	Place
	On       string // an interface or address, "socket" for the local socket
	Port     string // a number or a name, "" for what follows from tls and smtps
	Hostname string // of the greeting, "" for the host's
	SMTPS    bool
	Auth     bool    // auth or auth-optional
	Filter   *Filter // nil: none
}

// Ports returns the ports that are listened on, as numbers, none for the socket.
func (l *Listener) Ports() []int {
	switch {
	case l.On == socket:
		return nil
	case l.Port != "":
		if n, ok := ports[l.Port]; ok {
			return []int{n}
		}
		n, _ := strconv.Atoi(l.Port)
		return []int{n}
	case l.SMTPS:
		return []int{465}
	}
	return []int{25}
}

const socket = "socket"

// The names of ports that a mail server listens on (services(5)).
var ports = map[string]int{"smtp": 25, "submission": 587, "smtps": 465, "submissions": 465}

// A Relay is an action that gives what leaves through it to a filter.
type Relay struct {
	Place
	Action string
	Filter *Filter
}

// A Config is what the files say of filters, in their order.
type Config struct {
	Procs     []*Proc
	Filters   []*Filter
	Listeners []*Listener
	Relays    []*Relay
}

// Filter returns the filter of a name, nil if there is none.
func (c *Config) Filter(name string) *Filter {
	if i := slices.IndexFunc(c.Filters, func(f *Filter) bool { return f.Name == name }); i >= 0 {
		return c.Filters[i]
	}
	return nil
}

func (c *Config) proc(name string) *Proc {
	if i := slices.IndexFunc(c.Procs, func(p *Proc) bool { return p.Name == name }); i >= 0 {
		return c.Procs[i]
	}
	return nil
}

// Options are those of Parse.
type Options struct {
	// Open opens the file and those it includes.
	Open func(name string) (io.ReadCloser, error)
	// Macros are defined before the file, and not by it: those of smtpd -D.
	Macros map[string]string
}

// An Error is what is wrong at a place.
type Error struct {
	Place
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Place, e.Text) }

// Parse reads a file and those it includes. What is wrong is skipped as smtpd
// skips it to find more, and told in the order it was found. Config is never nil.
func Parse(name string, o Options) (*Config, []error) {
	p := &parser{Config: &Config{}, lexer: newLexer(o)}
	if err := p.include(name); err != nil {
		return p.Config, []error{err}
	}
	p.file().line = 1
	p.all()
	return p.Config, p.errs
}
