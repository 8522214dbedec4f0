// Package cli is what the command lines of all filters have in common: flags,
// usage text, -n, -version, and a log that never makes its caller wait.
//
//	func run(args []string, stdout, stderr io.Writer) int {
//		f := cli.New(cli.Options{Name: "filter-x", Synopsis: []string{"[flags] list..."}, Args: true})
//		n := f.Int("blockAt", 0, "refuse from score `N` on, 0 is off")
//		if err := f.Parse(args); err != nil {
//			return f.Exit(err, stdout, stderr)
//		}
//		log, flush := cli.Logger(stderr, f.Verbose)
//		defer flush()
//		...
//	}
//
//	func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
//
// Nothing here ends the process. Before the filter runs, main prints what is
// wrong and returns 1; later nothing is wrong enough.
package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// ErrVersion is returned by Parse for -version; -h gives flag.ErrHelp.
var ErrVersion = errors.New("version asked for")

// Options say which of the common flags there are. -h is always one.
type Options struct {
	Name     string   // of the program
	Synopsis []string // what follows the name, one for each form of the command; default "[flags]"
	Args     bool     // arguments may follow the flags
	Command  bool     // one command of a program: without -n, -v and -version

	DryRun   bool                                   // -dryRun
	Metrics  bool                                   // -metrics FILE
	Resolver func(string) ([]netip.AddrPort, error) // reads -resolver ADDRESS,...; nil: no such flag
	Timeout  time.Duration                          // default of -timeout, which is 10ms to 5m; 0: no such flag
}

// Flags is a flag set that has the common flags. A program adds its own before
// it calls Parse.
type Flags struct {
	*flag.FlagSet

	CheckOnly bool             // -n
	Verbose   bool             // -v
	DryRun    bool             // -dryRun
	Metrics   string           // -metrics, "" for none
	Servers   []netip.AddrPort // of -resolver, nil for the system's
	Timeout   Duration

	version bool
	hidden  map[string]bool
	opts    Options
}

// New returns a flag set with the common flags that are asked for.
func New(o Options) *Flags {
	f := &Flags{FlagSet: flag.NewFlagSet(o.Name, flag.ContinueOnError), hidden: map[string]bool{}, opts: o}
	f.SetOutput(io.Discard) // errors are returned, and Exit prints them
	if !o.Command {
		f.BoolVar(&f.CheckOnly, "n", false, "check the configuration, print what is in force, and exit")
		f.BoolVar(&f.Verbose, "v", false, "log more")
		f.BoolVar(&f.version, "version", false, "print the version and exit")
	}
	if o.DryRun {
		f.BoolVar(&f.DryRun, "dryRun", false, "decide and log, but let everything pass")
	}
	if o.Metrics {
		f.StringVar(&f.Metrics, "metrics", "", "write counters to `FILE` every 15s, as Prometheus text")
	}
	if o.Resolver != nil {
		servers := &Parsed[[]netip.AddrPort]{parse: func(s string) (v []netip.AddrPort, err error) {
			f.Servers, err = o.Resolver(s)
			return f.Servers, err
		}}
		f.Var(servers, "resolver", "ask the DNS servers `ADDRESS,...`, each with an optional :port, instead of those of /etc/resolv.conf")
	}
	if o.Timeout != 0 {
		f.Timeout = Duration{Value: o.Timeout, Min: 10 * time.Millisecond, Max: 5 * time.Minute}
		f.Var(&f.Timeout, "timeout", "decide without the answers that take longer than `TIME`")
	}
	return f
}

// Parse reads the command line without the program's name. Its errors are for
// Exit: flag.ErrHelp, ErrVersion, or what is wrong, in words. All errors of flags
// have one form, which BadFlag gives to those that the program finds later:
//
//	-phase later: not one of connect, helo, mail-from, rcpt-to, data
func (f *Flags) Parse(args []string) error {
	if err := f.FlagSet.Parse(args); err != nil {
		return f.inForm(err)
	}
	if f.version {
		return ErrVersion
	}
	if f.NArg() > 0 && !f.opts.Args {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return nil
}

// BadFlag returns the error that a flag has a value with which something is wrong.
func BadFlag(name, value string, err error) error {
	if value == "" || strings.Contains(value, " ") || !plain(value) {
		value = fmt.Sprintf("%+q", value)
	}
	return fmt.Errorf("-%s %s: %w", name, value, err)
}

// inForm gives an error of package flag our form. What it does not know stays.
func (f *Flags) inForm(err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		text = "no such flag"
		f.VisitAll(func(fl *flag.Flag) {
			if strings.EqualFold(fl.Name, name) {
				text += "; it is written -" + fl.Name
			}
		})
		return fmt.Errorf("-%s: %s", name, text)
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return fmt.Errorf("-%s: it needs a value", name)
	}
	rest, ok := strings.CutPrefix(text, "invalid value ")
	between := " for flag -"
	if !ok {
		rest, ok = strings.CutPrefix(text, "invalid boolean value ")
		between = " for -"
	}
	quoted, bad := strconv.QuotedPrefix(rest)
	value, bad2 := strconv.Unquote(quoted)
	name, reason, found := strings.Cut(strings.TrimPrefix(rest[len(quoted):], between), ": ")
	if !ok || bad != nil || bad2 != nil || !found {
		return err
	}
	switch reason {
	case "parse error":
		reason = "want a whole number"
		if between == " for -" {
			reason = "want true or false"
		}
	case "value out of range":
		reason = "out of range"
	}
	return BadFlag(name, value, errors.New(reason))
}

// Exit prints what an error calls for and returns the exit status: 0 for no
// error, -h and -version, else 1, with a line on stderr for each line of the
// error.
func (f *Flags) Exit(err error, stdout, stderr io.Writer) int {
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		f.Usage(stdout)
	case errors.Is(err, ErrVersion):
		fmt.Fprintln(stdout, VersionLine(f.Name()))
	default:
		w := Printable(stderr)
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(w, "%s: %s\n", f.Name(), line)
		}
		return 1
	}
	return 0
}

// Usage writes the synopsis and all flags with their defaults, sorted by name.
func (f *Flags) Usage(w io.Writer) {
	forms := f.opts.Synopsis
	if forms == nil {
		forms = []string{"[flags]"}
	}
	for i, s := range forms {
		fmt.Fprintf(w, "%-6s %s %s\n", []string{"usage:", ""}[min(i, 1)], f.Name(), s)
	}
	fmt.Fprintln(w)
	times := false
	f.VisitAll(func(fl *flag.Flag) {
		if f.hidden[fl.Name] {
			return
		}
		operand, text := flag.UnquoteUsage(fl)
		if _, ok := fl.Value.(*Duration); ok {
			times = true
			if operand == "value" {
				operand = "TIME"
			}
		}
		if fl.DefValue != "" && fl.DefValue != "false" {
			text += " (default " + fl.DefValue + ")"
		}
		name := strings.TrimSpace("-" + fl.Name + " " + operand)
		if len(name) >= indent-2 {
			fmt.Fprintf(w, "  %s\n", name)
			name = ""
		}
		wrap(w, name, text)
	})
	if times {
		fmt.Fprintf(w, "\nA TIME is 5s, 1h30m, 30d, or a number of seconds.\n")
	}
}

const indent = 22 // of the text beside the flags

// Wrap writes name and text side by side, within 80 columns.
func wrap(w io.Writer, name, text string) {
	line := fmt.Sprintf("  %-*s", indent-3, name)
	used := false
	for word := range strings.FieldsSeq(text) {
		if used && len(line)+1+len(word) > 80 {
			fmt.Fprintln(w, line)
			line = strings.Repeat(" ", indent-1)
		}
		line += " " + word
		used = true
	}
	fmt.Fprintln(w, line)
}

// FlagRows calls row for each flag with its value, sorted by name: what is in
// force. Values are shown as they are: a flag that holds a secret has a String
// method that hides it.
func (f *Flags) FlagRows(row func(name, value string)) {
	f.VisitAll(func(fl *flag.Flag) {
		if fl.Name != "n" && fl.Name != "version" && !f.hidden[fl.Name] {
			row("-"+fl.Name, fl.Value.String())
		}
	})
}

// SameAs adds another name of a flag.
func (f *Flags) SameAs(name, of string) {
	fl := f.Lookup(of)
	f.Var(fl.Value, name, fl.Usage)
}

// Hide keeps flags out of what is shown: other names of the same, which are taken
// because people know them.
func (f *Flags) Hide(names ...string) {
	for _, n := range names {
		f.hidden[n] = true
	}
}

// VersionLine returns what -version prints.
func VersionLine(program string) string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", program, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

var version string // set with -ldflags "-X opensmtpd-filters/pkg/cli.version=1.0"

// Version returns the version the program was linked with, or else the one the
// Go tool recorded, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
