package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/smtpdconf"
)

// A report is what check prints: what is well, what is wrong, and what is hardly
// meant.
type report struct {
	*call
	*conf
	answers map[*smtpdconf.Proc]answer // of the filters that are ours, to -n
	wrong   int
}

func check(k *call) func() error {
	open := confFlags(k)
	return func() error {
		c, err := open()
		if err != nil {
			return err
		}
		if len(k.args) > 0 {
			return fmt.Errorf("unexpected argument %q", k.args[0])
		}
		ctx := context.Background()
		r := &report{call: k, conf: c, answers: map[*smtpdconf.Proc]answer{}}
		r.syntax(ctx)
		for _, p := range c.Procs {
			r.program(ctx, p)
		}
		r.meant(ctx)
		if os.Geteuid() != 0 {
			fmt.Fprintln(k.out, "not tried as the user of smtpd's filters: only root can")
		}
		if r.wrong > 0 {
			return fmt.Errorf("%s is wrong", c.file)
		}
		return nil
	}
}

func (r *report) well(p *smtpdconf.Proc, text string) {
	fmt.Fprintln(r.out, at(p.Place, "%s: %s", r.names(p), text))
}

func (r *report) warn(p smtpdconf.Place, format string, args ...any) {
	fmt.Fprintln(r.out, at(p, "warning: "+format, args...))
}

// syntax prints what smtpd itself says of the file, or if it cannot be asked what
// the parser found.
func (r *report) syntax(ctx context.Context) {
	said, asked := r.smtpdSays(ctx)
	for _, line := range said {
		fmt.Fprintln(r.out, line)
		r.wrong++
	}
	for _, err := range r.errs {
		if asked && len(said) > 0 {
			break // it has the last word
		}
		fmt.Fprintln(r.out, err)
		r.wrong++
	}
	switch {
	case r.wrong > 0:
	case asked:
		fmt.Fprintf(r.out, "%s: smtpd -n finds nothing wrong\n", r.file)
	default:
		fmt.Fprintf(r.out, "%s: not tried with smtpd -n: it takes root, and OpenSMTPD\n", r.file)
	}
}

func (r *report) smtpdSays(ctx context.Context) (lines []string, asked bool) {
	if r.smtpd == "" || os.Geteuid() != 0 {
		return nil, false
	}
	args := []string{"-n", "-f", r.file}
	for _, m := range r.macros {
		args = append(args, "-D", m)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.smtpd, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil, true
	}
	for line := range bytes.Lines(out) {
		if text := strings.TrimSpace(string(line)); text != "" {
			lines = append(lines, text)
		}
	}
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("%s: smtpd -n: %v", r.file, err)}
	}
	return lines, true
}

// errForeign is the error of a program that is not ours.
type errForeign string

func (e errForeign) Error() string { return string(e) }

// program tries one program.
func (r *report) program(ctx context.Context, p *smtpdconf.Proc) {
	a, err := r.try(ctx, p)
	var foreign errForeign
	switch {
	case errors.As(err, &foreign):
		r.well(p, err.Error())
		return
	case err != nil:
		for line := range strings.SplitSeq(err.Error(), "\n") {
			r.well(p, line)
		}
		r.wrong++
		return
	}
	r.answers[p] = a
	r.well(p, "ok")
	if smtpdconf.End(p.Command) >= 0 {
		r.warn(p.Place, "%s: sh takes what follows # for a comment", r.names(p))
	}
	for _, w := range a.rows("warning") {
		r.warn(p.Place, "%s: %s", r.names(p), w)
	}
	for _, err := range unwritable(p, a) {
		r.warn(p.Place, "%s: %v", r.names(p), err)
	}
}

// try runs a program with -n. Its own words are the error, a line each.
func (c *conf) try(ctx context.Context, p *smtpdconf.Proc) (answer, error) {
	if i := smtpdconf.End(p.Command); i >= 0 && p.Command[i] != '#' {
		return answer{}, fmt.Errorf("sh ends the command at %s: put it in quotes", strconv.Quote(p.Command[i:i+1]))
	}
	if err := c.runs(p); err != nil {
		return answer{}, err
	}
	if !ours(p) {
		return answer{}, errForeign(smtpdconf.Program(p.Command) + " is not one of ours: it is there, and was not run")
	}
	mine, err := c.isOurs(ctx, p)
	if err != nil {
		return answer{}, err
	}
	if !mine {
		return answer{}, errForeign(c.path(p) + " is another program of that name, not ours: it was not tried")
	}
	a, err := c.ask(ctx, p, "-n")
	switch {
	case err != nil:
		return a, err
	case !a.ok && len(a.errs) == 0:
		return a, errors.New("-n ends with an error and does not say why")
	case !a.ok:
		return a, errors.New(strings.Join(a.errs, "\n"))
	}
	return a, nil
}

// unwritable returns what a filter is to write and its user cannot. What its -n
// warns of is left out.
func unwritable(p *smtpdconf.Proc, a answer) (errs []error) {
	u, err := filterUser(p)
	if err != nil {
		return []error{err}
	}
	store, _ := strings.CutPrefix(a.row("-store"), "sqlite:")
	for _, file := range []string{a.row("-metrics"), a.row("-stateFile"), store} {
		if !strings.HasPrefix(file, "/") {
			continue
		}
		err := cli.CheckWritableBy(u, p.Chroot+file)
		if err != nil && !slices.ContainsFunc(a.rows("warning"), func(w string) bool { return strings.Contains(w, err.Error()) }) {
			errs = append(errs, err)
		}
	}
	return errs
}

// runs returns an error if there is nothing to run.
func (c *conf) runs(p *smtpdconf.Proc) error {
	path := c.path(p)
	if strings.ContainsAny(path, "$`*?[") {
		return nil // sh knows
	}
	if p.Chroot != "" {
		path = p.Chroot + path
	}
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, syscall.ENOENT) && !strings.HasPrefix(p.Command, "/"):
		return fmt.Errorf("%s is not in %s", smtpdconf.Path(p.Command), c.folder)
	case err != nil:
		return err
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no program", path)
	}
	_, err = credential(p)
	if os.Geteuid() != 0 {
		return nil
	}
	return err
}

// meant warns of what is right, and hardly meant.
func (r *report) meant(ctx context.Context) {
	r.early()
	r.junked()
	r.unused()
	r.metrics()
	for _, p := range r.Procs {
		if _, ok := r.answers[p]; ok && smtpdconf.Program(p.Command) == "filter-senderscore" {
			r.registered(ctx, p)
		}
	}
}

// early warns of a filter that judges own users before they can authenticate.
func (r *report) early() {
	for _, l := range r.Listeners {
		if l.Filter == nil || !l.Auth {
			continue
		}
		for _, f := range l.Filter.All() {
			a, ok := r.answers[f.Proc]
			if a.row("-dryRun") == "true" {
				continue
			}
			if phase := r.phase(f.Proc, a, l); ok && slices.Contains([]string{"connect", "helo", "ehlo"}, phase) {
				r.warn(f.Place, "filter %s decides at %s, and the listener of %s has auth: own users are judged before they can authenticate", f.Name, phase, l.Place)
			}
		}
	}
}

// phase is where a filter refuses clients of a listener, "" for nowhere.
func (r *report) phase(p *smtpdconf.Proc, a answer, l *smtpdconf.Listener) string {
	if p == nil {
		return ""
	}
	switch smtpdconf.Program(p.Command) {
	case "filter-senderscore":
		if n, _ := strconv.Atoi(a.row("-blockBelow")); n <= 0 {
			return ""
		}
		return a.row("-blockPhase")
	case "filter-greet":
		if a.row("-early") != "refuse" || !slices.ContainsFunc(l.Ports(), func(n int) bool {
			return slices.Contains(strings.Split(a.row("-ports"), ","), strconv.Itoa(n))
		}) {
			return ""
		}
		return "connect"
	}
	return a.row("-phase")
}

// junked warns of junk before filter-rspamd, which counts it.
func (r *report) junked() {
	for _, f := range r.Filters {
		for i, g := range f.Chain {
			if g.Proc == nil || smtpdconf.Program(g.Proc.Command) != "filter-rspamd" {
				continue
			}
			for _, before := range f.Chain[:i] {
				if junks(before, r.answers[before.Proc]) {
					r.warn(f.Place, "filter %s: what %s junks has X-Spam: Yes when it comes to %s, which counts 5 points (SPAM_FLAG) and may refuse it: put %s first, or give SPAM_FLAG the weight 0",
						f.Name, before.Name, g.Name, g.Name)
				}
			}
		}
	}
}

// junks reports whether a filter may junk.
func junks(f *smtpdconf.Filter, a answer) bool {
	if f.Phase != "" {
		return strings.HasSuffix(f.Phase, " junk")
	}
	if a.row("-dryRun") == "true" {
		return false
	}
	for _, line := range a.text {
		name, value, _ := strings.Cut(line, "  ")
		value = strings.TrimSpace(value)
		n, _ := strconv.Atoi(value)
		if value == "junk" || (name == "-junkAt" || name == "-junkBelow") && n > 0 {
			return true
		}
	}
	return false
}

// unused warns of filters that nobody uses: smtpd runs them all the same.
func (r *report) unused() {
	used := map[*smtpdconf.Filter]bool{}
	mark := func(f *smtpdconf.Filter) {
		if f != nil {
			used[f] = true
			for _, g := range f.Chain {
				used[g] = true
			}
		}
	}
	for _, l := range r.Listeners {
		mark(l.Filter)
	}
	for _, y := range r.Relays {
		mark(y.Filter)
	}
	for _, f := range r.Filters {
		if !used[f] {
			r.warn(f.Place, "filter %s is on no listener", f.Name)
		}
	}
}

// metrics warns of two filters that write the same file.
func (r *report) metrics() {
	first := map[string]*smtpdconf.Proc{}
	for _, p := range r.Procs {
		a, ok := r.answers[p]
		file := a.row("-metrics")
		if !ok || file == "" {
			continue
		}
		if q := first[file]; q != nil {
			r.warn(p.Place, "%s writes its metrics to %s, as %s does: only those of one of them are ever there", r.names(p), file, r.names(q))
			continue
		}
		first[file] = p
	}
}

// registered warns if Validity does not answer this resolver. Its state is not
// touched: the query of a check is not counted.
func (r *report) registered(ctx context.Context, p *smtpdconf.Proc) {
	a, err := r.ask(ctx, p, "-stateFile", "", "explain", "192.0.2.1")
	if err == nil && a.row("reason") == "unregistered" {
		r.warn(p.Place, "%s: Validity does not answer this resolver: register its address, or there is no score and all mail passes", r.names(p))
	}
}
