// Filterctl answers an operator's questions across the filters of smtpd(8): it
// knows smtpd.conf and the log. See filterctl(8).
package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"opensmtpd-filters/pkg/cli"
)

// commands are what filterctl does, each in a file of its name.
var commands = []command{
	{"check", "[-f FILE] [-D NAME=VALUE]", "before smtpd starts: is every filter of smtpd.conf right", check},
	{"explain", "[flags] ADDRESS [SENDER [RECIPIENT [HELO]]]", "what each filter would say now, and what the client would get", explain},
	{"allow", "[flags] WHAT [COMMENT]", "let pass a client, sender= or rcpt=: adds a line to the list that all filters read", allow},
	{"deny", "[flags] WHAT [COMMENT]", "have filter-dnsbl refuse a client: adds a line to that list", deny},
	{"doctor", "[flags]", "is this machine fit for filters", examine},
	{"why", "PATTERN [-since TIME] [FILE ...]", "the sessions of an address, name, sender, recipient or session id: what each filter said", why},
	{"report", "[-since TIME] [-html FILE | -json] [-metrics FILE] [FILE ...]", "what happened: mail by what became of it, by filter, client, recipient and list", makeReport},
}

// A command is one word of the command line. New adds the command's flags; what it
// returns is called once they are read.
type command struct {
	name string
	args string // what follows the name
	text string // what it is for
	new  func(*call) func() error
}

// A call is a command at work.
type call struct {
	*cli.Flags
	in       io.Reader
	out, err io.Writer // fit for a terminal
	raw      io.Writer // out as it is
	args     []string  // what is no flag
}

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run carries out a command and returns the exit status: 0, or 1 if something is
// wrong with the command line or with what was looked at.
func run(args []string, in io.Reader, out, err io.Writer) int {
	if len(args) == 0 {
		usage(err)
		return 1
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		usage(out)
		return 0
	case "-version", "--version", "version":
		fmt.Fprintln(out, cli.VersionLine("filterctl"))
		return 0
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] })
	if i < 0 {
		fmt.Fprintf(err, "filterctl: %s: no such command; filterctl -h shows all\n", cli.Clean(args[0]))
		return 1
	}
	return commands[i].run(args[1:], in, out, err)
}

func (c command) run(args []string, in io.Reader, out, err io.Writer) int {
	k := &call{
		Flags: cli.New(cli.Options{Name: "filterctl " + c.name, Synopsis: []string{c.args}, Args: true, Command: true}),
		in:    in, out: cli.Printable(out), err: cli.Printable(err), raw: out,
	}
	do := c.new(k)
	bad := k.parse(args)
	if bad == nil {
		bad = do()
	}
	return k.Exit(bad, out, err)
}

// parse reads the command line. Flags may also follow arguments, up to "--".
func (k *call) parse(args []string) error {
	for {
		if err := k.Parse(args); err != nil {
			return err
		}
		rest := k.Flags.FlagSet.Args()
		n := len(args) - len(rest)
		if len(rest) == 0 || n > 0 && args[n-1] == "--" {
			k.args = append(k.args, rest...)
			return nil
		}
		k.args, args = append(k.args, rest[0]), rest[1:]
	}
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: filterctl COMMAND ...")
	fmt.Fprintln(w)
	for _, c := range commands {
		fmt.Fprintf(w, "  %s %s\n        %s\n", c.name, c.args, c.text)
	}
	fmt.Fprintln(w, "\nfilterctl COMMAND -h shows the flags of a command, filterctl -version the version.")
}
