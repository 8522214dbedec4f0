// Package program is the frame of every filter. A filter's main.go is its flags
// and its check; what all filters do alike is here: the common flags, the log,
// -n, -version, explain, the lists of who is never judged, the resolver, metrics,
// errors at the start, the sandbox, and an end within bounds.
//
//	func main() {
//		program.Main(program.Spec{Name: "filter-x", Timeout: 2 * time.Second, Phase: "mail-from", New: newCheck})
//	}
//
//	// newCheck adds the flags; what it returns is called once they are read.
//	func newCheck(p *program.Program) func() (program.Check, error) {
//		c := &check{Program: p}
//		p.IntVar(&c.at, "at", 5, "refuse from score `N` on")
//		return func() (program.Check, error) {
//			c.OpenResolver(resolve.Options{})
//			return c, nil
//		}
//	}
//
// A check that judges clients or messages is asked, and its verdicts are answered,
// logged and counted, by a Gate.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/sandbox"
)

// Spec says what a program is.
type Spec struct {
	Name     string   // "filter-dnsbl"
	Synopsis []string // forms of the command line beside the frame's own, without the name
	Args     string   // what the arguments are, as "list..."; "" for none
	Names    bool     // explain takes a domain in the place of an address

	Timeout time.Duration // default of -timeout; 0: no such flag
	Phase   string        // default of -phase; "": no such flag
	Phases  []string      // those of -phase, if it has its own: then it sees to it itself where a sender or recipient is exempt
	Field   string        // the header field of -header, for Filter to set if Program.Header; "": no such flag
	Refuses bool          // the clients of reject lines are refused
	Looks   bool          // the check explains exempt clients too

	// Commands are the words that may follow the flags instead of a run under
	// smtpd; the Check is then a Commander. "explain" is always one.
	Commands []string

	New func(*Program) func() (Check, error)
}

// A Check is what a program does, as configured.
type Check interface {
	// Filter returns the filter with its handlers, to be run once.
	Filter() Runner
	// Explain writes what would be done now with a client that is not exempt,
	// and why, with "answer" as the last row. Address and name are in the table,
	// ctx has a deadline, parts of q may be missing. It stores nothing.
	Explain(ctx context.Context, q Query, t *Table) error
	// Config writes what -n shows beside the flags and the lists.
	Config(t *Table)
}

// A Commander is a Check with commands of its own.
type Commander interface {
	Check
	// Command carries out one of Spec.Commands: args[0] and its arguments.
	Command(args []string) error
}

// A Runner is a *filter.Filter.
type Runner interface {
	Serve(in io.Reader, out io.Writer) int
}

// Streams are the standard ones.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Program is a filter at work. Its methods are for the program's Check.
type Program struct {
	*cli.Flags
	Streams
	Log       *slog.Logger
	Metrics   *metrics.Set
	Exempt    *exempt.Lists
	Complain  *guard.Complaints // what is said once a minute
	Resolver  *resolve.Resolver // once OpenResolver was called
	Phase     filter.Phase      // of -phase; without that flag Spec.New's function may set it
	Header    bool              // -header
	Trusted   exempt.Networks
	Lists     exempt.Options // what the flags of lists say
	Operator  bool           // it is not smtpd that runs this, but somebody who asks or looks
	spec      Spec
	phase     cli.Phase
	instance  string
	check     string // -check
	args      []string
	words     []string // the command and its arguments
	tasks     []task
	files     []File
	warnings  []string
	out, errs *masked
	needs     sandbox.Needs
	box       *sandbox.Sandbox
	sandbox   bool // -sandbox
	real      bool // the process is this program alone
}

// A task runs beside the filter.
type task struct {
	what string
	run  func(context.Context)
}

// A File is a list that is read again when it changes: a *reload.File.
type File interface {
	reload.Watcher
	metrics.Files
	Bad() []error
}

// Main runs the program and ends the process.
func Main(s Spec) { os.Exit(run(s, os.Args[1:], Streams{os.Stdin, os.Stdout, os.Stderr}, true)) }

// Run runs a program with these arguments and streams and returns its exit
// status: 1 if something is wrong with its configuration, a command or a query,
// else 0. There is no sandbox then, which is of the whole process and for good.
func Run(s Spec, args []string, std Streams) int { return run(s, args, std, false) }

func run(s Spec, args []string, std Streams, real bool) int {
	p := &Program{
		Flags: cli.New(cli.Options{
			Name: s.Name, Synopsis: s.synopsis(), Args: true,
			DryRun: true, Metrics: true, Resolver: resolve.ParseServers, Timeout: s.Timeout,
		}),
		Streams: std, spec: s, real: real,
		out: &masked{w: std.Out}, errs: &masked{w: std.Err},
	}
	p.Out, p.Err = cli.Printable(p.out), p.errs // not what smtpd reads
	p.addFlags()
	open := s.New(p)
	if err := p.parse(args); err != nil {
		return p.Exit(err, p.Out, p.Err)
	}
	var flush func()
	p.Log, flush = cli.Logger(p.Err, p.Verbose)
	defer flush()
	check, err := p.open(open)
	if err == nil && p.Resolver != nil {
		defer p.Resolver.Close()
	}
	if c, ok := check.(io.Closer); ok && err == nil {
		defer c.Close()
	}
	switch {
	case err != nil:
	case p.CheckOnly:
		err = p.config(check)
	case len(p.words) == 0:
		return p.serve(check)
	case p.words[0] == "explain":
		err = p.explain(check, p.words[1:])
	default:
		err = check.(Commander).Command(p.words)
	}
	return p.Exit(err, p.Out, p.Err)
}

func (s Spec) synopsis() []string {
	args := ""
	if s.Args != "" {
		args = " " + s.Args
	}
	return slices.Concat([]string{"[flags]" + args}, s.Synopsis,
		[]string{"[flags]" + args + " explain ADDRESS [SENDER [RECIPIENT [HELO]]]"})
}

// addFlags adds the flags that all programs have.
func (p *Program) addFlags() {
	o := &p.Lists
	p.Var((*cli.Strings)(&o.Clients), "allowClients", "never judge the addresses, networks, confirmed names and /expressions/ of names of `FILE`; repeatable")
	p.Var((*cli.Strings)(&o.Senders), "allowSenders", "never judge mail of the addresses and domains of `FILE`, if SPF passes or after !; repeatable")
	p.Var((*cli.Strings)(&o.Recipients), "allowRecipients", "never judge mail to the addresses, user@ and domains of `FILE`; repeatable")
	p.StringVar(&o.Common, "commonList", exempt.CommonPath(), "pass and refuse those of `FILE`, the list of all filters of the machine; \"\" for none")
	p.StringVar(&p.instance, "instance", "", "`NAME` in metrics, to tell filters of one kind apart (default the name of the file)")
	p.StringVar(&p.check, "check", "", "explain `ADDRESS`")
	p.BoolVar(&p.sandbox, "sandbox", true, "give up what is not needed: files of other folders, other ports, other programs")
	if p.spec.Phase != "" {
		p.phase = cli.Phase{Value: p.spec.Phase, Of: p.spec.Phases}
		words := p.spec.Phases
		if words == nil {
			words = cli.Phases()
		}
		last := len(words) - 1
		p.Var(&p.phase, "phase", "decide at `PHASE`: "+strings.Join(words[:last], ", ")+" or "+words[last])
	}
	if p.spec.Field != "" {
		p.BoolVar(&p.Header, "header", false, "add the field "+p.spec.Field+" to each message, and remove others of that name")
	}
}

// parse reads the command line. Flags, and a command such as explain, may also
// follow the arguments: whoever asks can add them to a line of smtpd.conf.
func (p *Program) parse(args []string) error {
	var plain []string
	for {
		if err := p.Parse(args); err != nil {
			return err
		}
		args = p.Flags.FlagSet.Args()
		i := 0
		for i < len(args) && !p.isCommand(args[i]) && (len(args[i]) < 2 || args[i][0] != '-') {
			i++
		}
		plain = append(plain, args[:i]...)
		if args = args[i:]; len(args) == 0 || p.isCommand(args[0]) {
			break
		}
	}
	p.words = args
	if p.check != "" {
		if len(p.words) > 0 {
			return fmt.Errorf("-check %s: not with %s", p.check, p.words[0])
		}
		p.words = []string{"explain", p.check}
	}
	if len(plain) > 0 && p.spec.Args == "" {
		if len(p.spec.Commands) > 0 {
			return fmt.Errorf("%s: not one of %s", cli.Clean(plain[0]), strings.Join(append(p.spec.Commands, "explain"), ", "))
		}
		return fmt.Errorf("unexpected argument %q", plain[0])
	}
	p.args = plain
	p.Operator = p.CheckOnly || len(p.words) > 0
	for at := filter.Connect; at <= filter.Quit; at++ {
		if at.String() == p.phase.Value {
			p.Phase = at
		}
	}
	return nil
}

// Do has a command carried out instead of a run under smtpd, as if its words stood
// at the end of the command line. It is for flags that ask for one.
func (p *Program) Do(words ...string) error {
	if len(p.words) > 0 {
		return fmt.Errorf("%s: not with %s", strings.Join(words, " "), strings.Join(p.words, " "))
	}
	p.words, p.Operator = words, true
	return nil
}

// Args returns the arguments, without a command.
func (p *Program) Args() []string { return p.args }

// Words returns the command and its arguments, none for a run under smtpd.
func (p *Program) Words() []string { return p.words }

func (p *Program) isCommand(word string) bool {
	return word == "explain" || slices.Contains(p.spec.Commands, word)
}

// open makes the check. All that is wrong is told at once.
func (p *Program) open(open func() (Check, error)) (Check, error) {
	p.Metrics = metrics.New(metrics.Options{
		Filter:   strings.TrimPrefix(p.spec.Name, "filter-"),
		Instance: p.instance, Version: cli.Version(), File: p.Flags.Metrics, DryRun: p.DryRun,
	})
	p.Complain = &guard.Complaints{Log: p.Log}
	p.Lists.Trusted, p.Lists.Refuses, p.Lists.Log = p.Trusted, p.spec.Refuses, p.Log
	if p.Operator {
		p.Lists.Log = nil // -n and explain tell what is wrong themselves
	}
	// The lists come first: what is opened then may give up root's rights.
	var errs [2]error
	phase := p.Phase
	p.Lists.DefaultRecipients = phase >= filter.RcptTo
	p.Exempt, errs[0] = exempt.Open(p.Lists)
	var check Check
	errs[1] = guard.Call(func() (err error) {
		check, err = open()
		return err
	})
	if p.Phase != phase && errs[0] == nil { // open has set it
		p.Lists.DefaultRecipients = p.Phase >= filter.RcptTo
		p.Exempt, errs[0] = exempt.Open(p.Lists)
	}
	if errs[0] == nil {
		p.Metrics.Files(p.Exempt)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if check == nil {
		return nil, errors.New("there is no check to run: a fault of this program")
	}
	if p.spec.Phases == nil && p.Phase != 0 && p.Phase < filter.MailFrom && len(p.Lists.Senders) > 0 {
		p.Warn("-allowSenders does nothing at %s: senders are not known yet", p.Phase)
	}
	if p.spec.Phases == nil && p.Phase != 0 && p.Phase < filter.RcptTo && len(p.Lists.Recipients) > 0 {
		p.Warn("-allowRecipients does nothing at %s: recipients are not known yet", p.Phase)
	}
	for _, err := range p.Exempt.Warnings() {
		p.Warn("%v", err)
	}
	return check, nil
}

// OpenResolver makes the resolver. Servers, log and metrics are those of the
// flags; the time limit too, unless it is set.
func (p *Program) OpenResolver(o resolve.Options) {
	o.Servers, o.Log, o.Metrics = p.Servers, p.Log, p.Metrics
	if o.Timeout == 0 {
		o.Timeout = p.Timeout.Value
	}
	if p.Operator && !p.Verbose {
		o.Log = nil
	}
	p.Resolver = resolve.New(o)
	p.Need(resolverNeeds(p.Resolver, len(o.Servers) == 0))
}

// Keep keeps a list up to date while the filter runs, and has its bad lines told
// by -n.
func (p *Program) Keep(files ...File) {
	p.files = append(p.files, files...)
	for _, f := range files {
		p.Metrics.Files(f)
	}
}

// Beside runs f beside the filter, until ctx ends. What, a word, names it in the
// log should it panic; it is then run again.
func (p *Program) Beside(what string, f func(context.Context)) {
	p.tasks = append(p.tasks, task{what, f})
}

// Warn tells what is no error but hardly meant: at the start, and with -n.
func (p *Program) Warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// Mask has everything that is printed or logged go through f, which takes out
// what must not be seen.
func (p *Program) Mask(f func(string) string) {
	p.out.mask.Store(&f)
	p.errs.mask.Store(&f)
}

// endTime is what is left to tasks when the filter ends: the file system may
// hang, and smtpd does not wait.
const endTime = 2 * time.Second

// frugal has the filter use one processor, unless the environment says otherwise. A
// filter waits nearly always, and what comes is soon done: with more of them each
// line would wake up threads that find nothing to do, and smtpd wants the others.
// Goroutines still take turns, and system calls that last hold nobody up.
func frugal() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}

// serve runs the filter under smtpd.
func (p *Program) serve(check Check) int {
	for _, w := range p.warnings {
		p.Log.Warn(w)
	}
	p.Confine()
	var f Runner // which may have tasks
	err := guard.Call(func() error {
		f = check.Filter()
		return nil
	})
	if err != nil {
		return p.Exit(err, p.Out, p.Err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks []<-chan struct{}
	beside := func(what string, f func(context.Context)) {
		tasks = append(tasks, guard.Keep(ctx, p.Log, what, f))
	}
	beside("lists", func(ctx context.Context) {
		files := []reload.Watcher{p.Exempt}
		for _, f := range p.files {
			files = append(files, f)
		}
		reload.Watch(ctx, files...)
	})
	beside("metrics", func(ctx context.Context) { p.Metrics.Run(ctx, p.Log) })
	if p.box != nil {
		beside("sandbox", p.watchSandbox)
	}
	for _, t := range p.tasks {
		beside(t.what, t.run)
	}
	frugal()
	status := f.Serve(p.In, p.out.w)
	cancel()
	late := time.After(endTime)
	for _, ended := range tasks {
		select {
		case <-ended:
		case <-late:
			p.Log.Warn("not everything could be written before the end", "waited", endTime)
			return status
		}
	}
	return status
}

// config prints what is in force. Bad lines of files, and missing ones, are an
// error.
func (p *Program) config(check Check) error {
	t := new(Table)
	p.FlagRows(func(name, value string) { t.Row(name, "%s", value) })
	for _, row := range p.Exempt.Rows() {
		t.Row(row[0], "%s", row[1])
	}
	if p.Resolver != nil {
		for _, s := range p.Resolver.Servers() {
			t.Row("resolver", "%s", s)
		}
	}
	check.Config(t)
	p.sandboxRows(t)
	for _, w := range p.warnings {
		t.Row("warning", "%s", w)
	}
	errs := []error{t.Write(p.Out)}
	errs = append(errs, p.Exempt.Bad()...)
	for _, f := range p.files {
		errs = append(errs, f.Bad()...)
	}
	return errors.Join(errs...)
}

// masked is a writer through which nothing goes that mask takes out. Each Write
// is of whole lines, which do not mix: the log has a goroutine of its own.
type masked struct {
	mu   sync.Mutex
	w    io.Writer
	mask atomic.Pointer[func(string) string] // the log may be writing when it is set
}

func (m *masked) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mask := m.mask.Load()
	if mask == nil {
		return m.w.Write(b)
	}
	_, err := io.WriteString(m.w, (*mask)(string(b)))
	return len(b), err
}

// short is the name of the program in the log: that of filter-dnsbl is dnsbl.
func (p *Program) short() string { return strings.TrimPrefix(p.spec.Name, "filter-") }
