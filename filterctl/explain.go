package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/smtpdconf"
)

// phases in the order in which smtpd comes to them.
var phases = []string{"connect", "helo", "ehlo", "mail-from", "rcpt-to", "data", "data-line", "commit"}

// A word is what one filter of a chain says.
type word struct {
	filter *smtpdconf.Filter
	place  int    // in the chain
	text   string // what explain prints, or why it prints nothing
	action string // proceed, junk, defer, refuse, disconnect; "" if that is not known
	phase  string // "" if it passes whatever comes
	reply  string // of an action that refuses
	delay  string
	err    error
}

// refuses reports whether the client, or its mail, comes no further.
func (w *word) refuses() bool {
	return slices.Contains([]string{"defer", "refuse", "disconnect", "reject"}, w.action)
}

func explain(k *call) func() error {
	open := confFlags(k)
	only := k.String("filter", "", "ask the filter or chain `NAME`, instead of those of all listeners")
	return func() error {
		if len(k.args) == 0 || len(k.args) > 4 {
			return errors.New("want ADDRESS [SENDER [RECIPIENT [HELO]]], a null sender as <>")
		}
		if _, err := cli.ParseAddr(k.args[0]); err != nil {
			return fmt.Errorf("%s: %w", cli.Clean(k.args[0]), err)
		}
		c, err := open()
		if err != nil {
			return err
		}
		chains, err := c.chains(*only)
		if err != nil {
			return err
		}
		var errs []error
		for i, ch := range chains {
			if i > 0 {
				fmt.Fprintln(k.out)
			}
			if len(chains) > 1 || ch.filter.Chain != nil {
				fmt.Fprintf(k.out, "%s, %s\n\n", ch.what(), strings.Join(ch.at, ", "))
			}
			errs = append(errs, k.explain(c, ch.filter))
		}
		return errors.Join(errs...)
	}
}

// A chain is a filter, and the listeners that have it.
type chain struct {
	filter *smtpdconf.Filter
	at     []string
}

func (ch chain) what() string {
	if ch.filter.Chain == nil {
		return "filter " + ch.filter.Name
	}
	var names []string
	for _, f := range ch.filter.Chain {
		names = append(names, f.Name)
	}
	return "filter " + cmp.Or(ch.filter.Name, "{}") + ": " + strings.Join(names, ", ")
}

// chains returns the filters of all listeners but the local socket, or the one of
// a name.
func (c *conf) chains(only string) (chains []chain, err error) {
	if only != "" {
		f := c.Filter(only)
		if f == nil {
			return nil, cli.BadFlag("filter", only, fmt.Errorf("there is no such filter in %s", c.file))
		}
		return []chain{{f, []string{f.Place.String()}}}, nil
	}
	for _, l := range c.Listeners {
		if l.Filter == nil || len(l.Ports()) == 0 {
			continue
		}
		i := slices.IndexFunc(chains, func(ch chain) bool { return ch.filter == l.Filter })
		if i < 0 {
			i = len(chains)
			chains = append(chains, chain{filter: l.Filter})
		}
		chains[i].at = append(chains[i].at, fmt.Sprintf("listen on %s port %d (%s)", l.On, l.Ports()[0], l.Place))
	}
	if len(chains) == 0 {
		err = errors.Join(append(c.errs, fmt.Errorf("%s: no listener has a filter", c.file))...)
	}
	return chains, err
}

// explain asks the filters of a chain, prints what those say that smtpd would come
// to, in that order, and what the client would get.
func (k *call) explain(c *conf, f *smtpdconf.Filter) error {
	ctx := context.Background()
	var words []*word
	for i, g := range f.All() {
		words = append(words, c.word(ctx, g, k.args))
		words[i].place = i
	}
	c.builtins(ctx, words, k.args[0])
	order(words)
	var errs []error
	last := len(words)
	for i, w := range words {
		fmt.Fprintf(k.out, "filter %s (%s)\n", w.filter.Name, w.filter.Place)
		for line := range strings.Lines(w.text) {
			fmt.Fprintf(k.out, "    %s\n", strings.TrimRight(line, "\n"))
		}
		fmt.Fprintln(k.out)
		if w.err != nil {
			errs = append(errs, fmt.Errorf("%s: filter %s: %w", w.filter.Place, w.filter.Name, w.err))
		}
		if w.refuses() {
			last = i
			break
		}
	}
	fmt.Fprintf(k.out, "the client gets: %s\n", gets(words, last))
	if last+1 < len(words) {
		var names []string
		for _, w := range words[last+1:] {
			names = append(names, w.filter.Name)
		}
		fmt.Fprintf(k.out, "not asked any more: %s\n", strings.Join(names, ", "))
	}
	return errors.Join(errs...)
}

// gets says what becomes of the client and its mail, if the word at last is the
// last one.
func gets(words []*word, last int) string {
	var unknown, delays []string
	for i, w := range words {
		if i > last {
			break
		}
		if w.action == "" {
			unknown = append(unknown, w.filter.Name)
		}
		if w.delay != "" {
			delays = append(delays, w.delay)
		}
	}
	junk := slices.IndexFunc(words, func(w *word) bool { return w.action == "junk" })
	what := "its mail is accepted"
	switch {
	case last < len(words):
		w := words[last]
		what = fmt.Sprintf("%s, at %s, of %s", cmp.Or(w.reply, w.action), w.phase, w.filter.Name)
	case junk >= 0:
		what = "its mail is accepted as junk (X-Spam: Yes), of " + words[junk].filter.Name
	}
	if len(delays) > 0 {
		what += ", after waiting " + strings.Join(delays, " and ")
	}
	if len(unknown) > 0 {
		what += " (what these do is not known: " + strings.Join(unknown, ", ") + ")"
	}
	return what
}

// said matches the row "answer" of explain: "refuse at rcpt-to, whatever ...".
var said = regexp.MustCompile(`^(\w+)(?::(\S+))?(?: at ([\w-]+))?`)

// word asks a filter.
func (c *conf) word(ctx context.Context, f *smtpdconf.Filter, args []string) *word {
	w := &word{filter: f}
	switch {
	case f.Proc == nil:
		w.text = "of smtpd's own: phase " + f.Phase
		return w
	case !ours(f.Proc):
		w.text = smtpdconf.Program(f.Proc.Command) + " is not one of ours, and cannot be asked"
		return w
	}
	a, err := c.ask(ctx, f.Proc, "-n")
	dry := a.row("-dryRun") == "true"
	if err == nil {
		a, err = c.ask(ctx, f.Proc, append([]string{"explain"}, args...)...)
	}
	if err == nil && !a.ok {
		err = errors.New(cmp.Or(strings.Join(a.errs, "; "), "explain does not work, and does not say why"))
	}
	if w.err = err; err != nil {
		return w
	}
	w.text = strings.Join(a.text, "\n")
	w.reply = a.row("reply")
	if m := said.FindStringSubmatch(a.row("answer")); m != nil {
		w.action, w.phase = m[1], m[3]
		if w.action == "slow" {
			w.action, w.delay = "proceed", m[2]
		}
	}
	if delay, _, ok := strings.Cut(a.row("delay"), " of every answer"); ok {
		w.delay = delay + " before every answer"
	}
	switch {
	case dry:
		w.text += "\ndry run: all pass"
		w.action, w.phase, w.delay = "proceed", "", ""
	case w.action == "depends":
		w.action, w.text = "", w.text+"\nsay who writes to whom to know: "+strings.Join(args, " ")+" SENDER RECIPIENT"
	case w.action == "junk" && w.phase == "rcpt-to":
		w.phase = "data" // when all recipients are known
	}
	return w
}

// own matches the conditions of a filter of smtpd's own that can be judged from
// outside.
var own = regexp.MustCompile(`^(\S+) match (! )?(rdns|fcrdns) (junk|bypass|reject|disconnect)(?: "(.*)")?$`)

// builtins judges filters of smtpd's own by the reverse name of the client, which
// smtpd asks the system's resolver for.
func (c *conf) builtins(ctx context.Context, words []*word, client string) {
	var name string
	var confirmed, asked bool
	for _, w := range words {
		m := own.FindStringSubmatch(w.filter.Phase)
		if m == nil {
			continue
		}
		if !asked {
			name, confirmed = reverseName(ctx, client)
			asked = true
		}
		has := name != ""
		if m[3] == "fcrdns" {
			has = confirmed
		}
		w.action, w.phase = "proceed", m[1]
		if has == (m[2] == "") {
			w.action, w.reply = m[4], strings.ReplaceAll(m[5], `\"`, `"`)
		}
		t := new(program.Table)
		t.Row("name", "%s", cmp.Or(name, "<unknown>"))
		t.Row("answer", "%s at %s", w.action, w.phase)
		var b strings.Builder
		b.WriteString(w.text + "\n")
		_ = t.Write(&b)
		w.text = b.String()
	}
}

// reverseName returns the name of a client and whether it resolves to it.
func reverseName(ctx context.Context, client string) (name string, confirmed bool) {
	r := resolve.New(resolve.Options{Timeout: 10 * time.Second})
	defer r.Close()
	addr, err := cli.ParseAddr(client)
	if err != nil {
		return "", false
	}
	names, err := r.PTR(ctx, addr)
	if err != nil || len(names) == 0 {
		return "", false
	}
	addrs, _ := r.Addrs(ctx, names[0])
	return strings.TrimSuffix(names[0], "."), slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == addr })
}

// order sorts what filters say as smtpd comes to it. Where a filter before them
// has junked at a phase smtpd does not ask the others; ours decide at the next.
func order(words []*word) {
	junked := map[string]bool{}
	for _, w := range words {
		if w.phase == "" {
			continue
		}
		for w.filter.Proc != nil && junked[w.phase] && w.phase != "commit" {
			w.phase = phases[slices.Index(phases, w.phase)+1]
			if w.phase == "ehlo" || w.phase == "data-line" { // helo is both
				w.phase = phases[slices.Index(phases, w.phase)+1]
			}
		}
		if w.action == "junk" {
			junked[w.phase] = true
		}
	}
	slices.SortStableFunc(words, func(a, b *word) int {
		if c := slices.Index(phases, a.phase) - slices.Index(phases, b.phase); c != 0 {
			return c
		}
		return a.place - b.place
	})
}
