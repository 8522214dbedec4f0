package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/listfile"
	"opensmtpd-filters/pkg/smtpdconf"
)

func allow(k *call) func() error { return k.add(exempt.Permit) }

func deny(k *call) func() error { return k.add(exempt.Reject) }

// add adds a line to the list that all filters read.
func (k *call) add(action exempt.Action) func() error {
	open := confFlags(k)
	list := k.String("list", exempt.CommonPath(), "add to `FILE`, the filters' -commonList")
	return func() error {
		if len(k.args) == 0 {
			return errors.New("want client=, sender= or rcpt= and who, or an address or network")
		}
		who := cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("DOAS_USER"))
		if u, err := user.Current(); who == "" && err == nil {
			who = u.Username
		}
		comment := strings.TrimSuffix(fmt.Sprintf("%s %s: %s", time.Now().Format(time.DateOnly), who, strings.Join(k.args[1:], " ")), ": ")
		line, err := exempt.CommonLine(action, k.args[0], comment)
		if err != nil {
			return fmt.Errorf("%s: %w", listfile.Quote(k.args[0]), err)
		}
		c, err := open()
		if err != nil && (action == exempt.Reject || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
		if c != nil {
			if err := k.readers(c, *list, action); err != nil {
				return err
			}
		}
		at, added, err := appendLine(*list, line)
		if err != nil {
			return err
		}
		if !added {
			fmt.Fprintf(k.out, "%s has it already\n", at)
			return nil
		}
		fmt.Fprintf(k.out, "%s: %s\n", at, line)
		if text, _, _ := strings.Cut(line, " # "); strings.Contains(text, " sender=") {
			fmt.Fprintln(k.out, "It counts for mail for which SPF passes.")
		}
		fmt.Fprintln(k.out, "Filters at work read it within 30 s.")
		return nil
	}
}

// readers looks who reads the list. It is an error if nobody does who refuses by
// it.
func (k *call) readers(c *conf, list string, action exempt.Action) error {
	ctx := context.Background()
	found := false
	for _, p := range c.Procs {
		if !ours(p) || action == exempt.Reject && smtpdconf.Program(p.Command) != "filter-dnsbl" {
			continue
		}
		a, err := c.ask(ctx, p, "-n")
		if other := a.row("-commonList"); err == nil && a.ok && other != list {
			fmt.Fprintf(k.err, "%s: warning: %s reads %s, not %s\n", p.Place, c.names(p), cmp.Or(other, "no list"), list)
			continue
		}
		found = true
	}
	switch {
	case found:
	case action == exempt.Reject:
		return fmt.Errorf("%s has no filter-dnsbl that reads %s, and no other filter refuses by it", c.file, list)
	default:
		fmt.Fprintf(k.err, "%s: warning: no filter reads %s\n", c.file, list)
	}
	return nil
}

// appendLine adds a line to a list, as a whole and beside others who do the same,
// unless the last line of what it names says the same. At is where it stands.
func appendLine(file, line string) (at string, added bool, err error) {
	r, err := guard.BeginReplace(file, 0o644)
	if err != nil {
		return "", false, err
	}
	defer r.Drop()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	entry := func(line string) (e listfile.Entry) {
		listfile.Each(strings.NewReader(line), "", func(f listfile.Entry) error {
			e = f
			return nil
		})
		return e
	}
	fields := func(text string) (action, what string) {
		action, what, _ = strings.Cut(strings.ReplaceAll(text, "\t", " "), " ")
		return strings.ToLower(action), strings.ToLower(strings.TrimSpace(what))
	}
	action, what := fields(entry(line).Text)
	rows := slices.Collect(strings.Lines(string(text)))
	for i, row := range slices.Backward(rows) {
		if a, w := fields(entry(row).Text); w == what {
			if a == action {
				return fmt.Sprintf("%s:%d", file, i+1), false, nil
			}
			break
		}
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	text = append(text, line+"\n"...)
	if _, err := r.Write(text); err != nil {
		return "", false, err
	}
	if err := errors.Join(r.Sync(), r.Commit()); err != nil {
		return "", false, err
	}
	return fmt.Sprintf("%s:%d", file, len(rows)+1), true, nil
}
