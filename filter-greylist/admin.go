package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/listfile"
)

// operator carries out the commands of the operator beside the running filter.
type operator struct {
	greylist *greylist.Greylist
	clear    bool                        // addresses are stored
	lists    func() ([]listEntry, error) // reads the files; nil: there are none
	in       io.Reader
	files    map[string]*os.File // of import, opened; others are when they are needed
	out      io.Writer
	now      time.Time
}

// usages are the arguments of the commands.
var usages = map[string]string{
	"list":      "[grey|pass|pair|list] [WHAT...] [-json]",
	"allow":     "KEY...",
	"delete":    "KEY...|WHAT...",
	"expect":    "DOMAIN|USER@DOMAIN|ADDRESS [-for TIME] [RECIPIENT]",
	"stats":     "[client|sender|rcpt] [WHAT...] [-since TIME] [-json]",
	"providers": "[-json]",
	"export":    "",
	"import":    "[FILE...]",
}

func usageError(name string) error {
	text := "usage: filter-greylist [flags] " + strings.TrimSpace(name+" "+usages[name])
	if strings.Contains(text, "WHAT") {
		text += "; WHAT is " + greylist.WhatUsage
	}
	return errors.New(text)
}

// An order is a command with its words.
type order struct {
	name  string
	words []string      // that are neither
	what  greylist.What // of client=, sender= and rcpt=
	json  bool
	since time.Duration // of -since
	life  time.Duration // of -for
}

// parseOrder reads a command with its own flags, which may stand anywhere.
func parseOrder(args []string) (o order, err error) {
	o.name = args[0]
	has := func(flag string) bool { return strings.Contains(usages[o.name], flag) }
	var what []string
	for rest := args[1:]; len(rest) > 0; rest = rest[1:] {
		word := rest[0]
		flag, value, given := strings.Cut(word, "=")
		flag = strings.Replace(flag, "--", "-", 1)
		switch {
		case flag == "-json" && has(flag) && !given:
			o.json = true
		case (flag == "-since" || flag == "-for") && has(flag):
			if !given && len(rest) > 1 {
				rest = rest[1:]
				value = rest[0]
			}
			d := cli.Duration{Min: time.Second, Max: 3650 * 24 * time.Hour}
			if err := d.Set(value); err != nil {
				return o, fmt.Errorf("%s %s %s: %w", o.name, word, clean(value), err)
			}
			if flag == "-since" {
				o.since = d.Value
			} else {
				o.life = d.Value
			}
		case has("WHAT") && greylist.IsWhat(word) && !(o.name == "delete" && isLoggedKey(word)):
			what = append(what, word)
		case len(word) > 1 && word[0] == '-':
			return o, fmt.Errorf("%s %s: flags come before the command; %w", o.name, clean(word), usageError(o.name))
		default:
			o.words = append(o.words, word)
		}
	}
	o.what, err = greylist.ParseWhat(what)
	o.words = joinLogged(o.words)
	return o, err
}

// isLoggedKey reports whether a word is a key as the log has it, not a pattern:
// addr=ADDRESS, which is a client and not only what it has made.
func isLoggedKey(word string) bool {
	return strings.HasPrefix(word, "addr=") && !strings.Contains(word, "*")
}

// joinLogged makes one key of from=<SENDER> and rcpt=<RECIPIENT> as they stand in a
// line of the log.
func joinLogged(words []string) (keys []string) {
	for _, w := range words {
		if n := len(keys); n > 0 && strings.HasPrefix(w, "rcpt=") && strings.HasPrefix(keys[n-1], "from=") {
			keys[n-1] += " " + w
			continue
		}
		keys = append(keys, w)
	}
	return keys
}

// command carries out one command, whose name args begins with.
func (o *operator) command(ctx context.Context, args []string) error {
	c, err := parseOrder(args)
	if err != nil {
		return err
	}
	if !c.what.Empty() && !o.clear {
		return fmt.Errorf("%s: with -storeAddresses=false nothing is known of clients, senders and recipients", c.name)
	}
	first := ""
	if len(c.words) > 0 {
		first = c.words[0]
	}
	switch n := len(c.words); {
	case c.name == "list" && n == 1 && first == "list" && c.what.Empty():
		return o.listFiles(c.json)
	case c.name == "list" && (n == 0 || n == 1 && slices.Contains([]string{"grey", "pass", "pair"}, first)):
		return o.list(ctx, first, c.what, c.json)
	case c.name == "allow" && n > 0:
		return o.each(ctx, c.words, o.allow)
	case c.name == "delete" && n > 0 && c.what.Empty():
		return o.each(ctx, c.words, o.remove)
	case c.name == "delete" && n == 0 && !c.what.Empty():
		return o.removeWhat(ctx, c.what)
	case c.name == "expect" && (n == 1 || n == 2):
		return o.expect(ctx, c.words, c.life)
	case c.name == "stats" && (n == 0 || n == 1 && slices.Contains([]string{"client", "sender", "rcpt"}, first)):
		return o.stats(ctx, greylist.StatsQuery{Since: c.since, What: c.what, By: first}, c.json)
	case c.name == "providers" && n == 0:
		return o.providers(ctx, c.json)
	case c.name == "export" && n == 0:
		return o.greylist.Export(ctx, o.out)
	case c.name == "import":
		return o.load(ctx, c.words)
	}
	return usageError(c.name)
}

// A listEntry is a line of a file of allowed clients, senders or recipients.
type listEntry struct {
	List  string `json:"list"` // the flag
	Entry string `json:"entry"`
	Place string `json:"place"` // file:line
}

// readList returns the lines of files that parse takes.
func readList[T interface{ Len() int }](list string, paths []string, parse func(io.Reader, string) (T, []error)) ([]listEntry, error) {
	var entries []listEntry
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return entries, err
		}
		listfile.Each(f, path, func(e listfile.Entry) error {
			if l, _ := parse(strings.NewReader(e.Text), path); l.Len() > 0 {
				entries = append(entries, listEntry{list, e.Text, e.Place.String()})
			}
			return nil
		})
		f.Close()
	}
	return entries, nil
}

// listFiles prints what the lists say.
func (o *operator) listFiles(asJSON bool) error {
	var entries []listEntry
	if o.lists != nil {
		var err error
		if entries, err = o.lists(); err != nil {
			return err
		}
	}
	w := bufio.NewWriter(o.out)
	if asJSON {
		enc := json.NewEncoder(w)
		for _, e := range entries {
			enc.Encode(e)
		}
		return w.Flush()
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "list\tentry\tplace\n")
	for _, e := range entries {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", e.List, clean(e.Entry), clean(e.Place))
	}
	tw.Flush()
	return w.Flush()
}

// wanted reports whether list shows a record. What is only counted or noted is for
// export.
func wanted(e greylist.Entry, what string) bool {
	switch e.Key.Kind() {
	case greylist.KindClient, greylist.KindWriter, greylist.KindVouched, greylist.KindOurs, greylist.KindProvider:
		return false
	case greylist.KindPair, greylist.KindLearned, greylist.KindReply:
		return what == "" || what == "pair"
	}
	return what == "" || e.Record.State.String() == what
}

// records returns the records that list shows and that have not expired.
func (o *operator) records(ctx context.Context, state string, what greylist.What) iter.Seq2[greylist.Entry, error] {
	expired := o.greylist.Expired(o.now)
	return func(yield func(greylist.Entry, error) bool) {
		for e, err := range o.greylist.Find(ctx, what) {
			if err == nil && (!wanted(e, state) || expired(e.Key, e.Record)) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (o *operator) list(ctx context.Context, state string, what greylist.What, asJSON bool) error {
	w := bufio.NewWriter(o.out)
	var err error
	if asJSON {
		err = o.listJSON(o.records(ctx, state, what), w)
	} else {
		err = o.listTable(o.records(ctx, state, what), w, maxRows)
	}
	return errors.Join(err, w.Flush())
}

// listedJSON is a line of list -json.
type listedJSON struct {
	Key     string    `json:"key"`
	Kind    string    `json:"kind"`
	State   string    `json:"state"`
	Origin  string    `json:"origin,omitempty"`
	Sender  string    `json:"sender,omitempty"`
	Rcpt    string    `json:"rcpt,omitempty"`
	Client  string    `json:"client,omitempty"`
	Tries   int       `json:"tries"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Passes  time.Time `json:"passes,omitzero"`
	Expires time.Time `json:"expires"`
}

// listJSON prints records as they come, however many there are.
func (o *operator) listJSON(records iter.Seq2[greylist.Entry, error], w io.Writer) error {
	enc := json.NewEncoder(w)
	for e, err := range records {
		if err != nil {
			return err
		}
		r := e.Record
		passes, expires := o.greylist.Times(o.now, e)
		if !passes.IsZero() {
			passes = passes.UTC().Truncate(time.Second)
		}
		if err := enc.Encode(listedJSON{
			Key: e.Key.String(), Kind: e.Key.Kind().String(), State: r.State.String(),
			Origin: r.Origin, Sender: r.Sender, Rcpt: r.Rcpt, Tries: r.Tries,
			Client: r.Client, First: o.seconds(r.First), Last: o.seconds(r.Last), Passes: passes, Expires: expires.UTC().Truncate(time.Second),
		}); err != nil {
			return fmt.Errorf("%s: %w", e.Key, err)
		}
	}
	return nil
}

// maxRows bounds a table for people, and so what is kept to sort it.
const maxRows = 100_000

// listTable prints records, those used last first, up to limit of them.
func (o *operator) listTable(records iter.Seq2[greylist.Entry, error], w io.Writer, limit int) error {
	var rows []greylist.Entry
	more := 0
	cut := func() {
		slices.SortFunc(rows, func(a, b greylist.Entry) int {
			return cmp.Or(cmp.Compare(b.Record.Last, a.Record.Last), cmp.Compare(b.Record.First, a.Record.First), bytes.Compare(a.Key[:], b.Key[:]))
		})
		if n := len(rows) - limit; n > 0 {
			more += n
			rows = rows[:limit]
		}
	}
	var failed error
	for e, err := range records {
		if err != nil {
			failed = err
			break
		}
		if rows = append(rows, e); len(rows) >= 2*limit {
			cut()
		}
	}
	if failed != nil && len(rows) == 0 {
		return failed
	}
	cut()
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "state\tkind\ttries\tfirst\tlast\tleft\texpires\torigin\tsender\trecipient\n")
	for _, e := range rows {
		r := e.Record
		passes, expires := o.greylist.Times(o.now, e)
		left := "-"
		if !passes.IsZero() {
			left = fmt.Sprint(max(0, int((passes.Sub(o.now)+time.Second-1)/time.Second)), "s")
		}
		origin := r.Origin
		if origin == "" && r.Sender == "" {
			origin = e.Key.String()
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.State, e.Key.Kind(), r.Tries,
			o.stamp(o.date(r.First)), o.stamp(o.date(r.Last)), left, o.stamp(expires),
			clean(origin), clean(r.Sender), clean(r.Rcpt))
	}
	tw.Flush()
	if more > 0 {
		fmt.Fprintf(w, "and %d that were used before these; -json shows all\n", more)
	}
	return failed
}

// date returns a stored time; the future is now, as in decisions.
func (o *operator) date(ms int64) time.Time {
	return time.UnixMilli(min(max(ms, 0), o.now.UnixMilli()))
}

// seconds is the same as JSON has it, in whole seconds.
func (o *operator) seconds(ms int64) time.Time { return o.date(ms).UTC().Truncate(time.Second) }

// stamp returns a local time as syslogd writes it, or a day far away.
func (o *operator) stamp(t time.Time) string {
	t = t.In(o.now.Location())
	if d := o.now.Sub(t).Abs(); d > 180*24*time.Hour {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.Stamp)
}

// clean returns what came from the network, or from a file, as one word that
// does nothing to a terminal.
func clean(s string) string {
	if s == "" {
		return "-"
	}
	if strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '"' || r == unicode.ReplacementChar
	}) {
		return strconv.Quote(s)
	}
	return s
}

// keyTime bounds the work for one key, which may be to look at all records.
const keyTime = 2 * time.Minute

// each does something with each key, whatever happened to those before.
func (o *operator) each(ctx context.Context, keys []string, do func(ctx context.Context, key string) (string, error)) error {
	var errs []error
	for _, key := range keys {
		ctx, cancel := context.WithTimeout(ctx, keyTime)
		done, err := do(ctx, key)
		cancel()
		if err == nil {
			_, err = fmt.Fprintf(o.out, "%s: %s\n", clean(key), done)
		} else if !strings.Contains(err.Error(), key) { // those of the key itself name it
			err = fmt.Errorf("%s: %w", clean(key), err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (o *operator) allow(ctx context.Context, key string) (string, error) {
	note, err := o.greylist.Allow(ctx, o.now, key)
	if note != "" {
		return "allowed, " + note, err
	}
	return "allowed", err
}

func (o *operator) remove(ctx context.Context, key string) (string, error) {
	n, err := o.greylist.Delete(ctx, key)
	switch {
	case err != nil:
		return "", err
	case n == 0:
		return "", errors.New("no such record")
	}
	return "deleted " + count(n), nil
}

func (o *operator) removeWhat(ctx context.Context, what greylist.What) error {
	n, err := o.greylist.DeleteWhat(ctx, what)
	if err == nil && n == 0 {
		return errors.New("delete: no such record")
	}
	_, err2 := fmt.Fprintf(o.out, "deleted %s\n", count(n))
	return errors.Join(err, err2)
}

// expectTime is the default of -for.
const expectTime = time.Hour

// expect has mail accepted that somebody waits for.
func (o *operator) expect(ctx context.Context, words []string, life time.Duration) error {
	life = cmp.Or(life, expectTime)
	what, rcpt := words[0], ""
	if len(words) > 1 {
		rcpt = words[1]
	}
	if err := o.greylist.Expect(ctx, o.now, what, rcpt, life); err != nil {
		return fmt.Errorf("expect: %w", err)
	}
	who := "everybody"
	if rcpt != "" {
		who = clean(rcpt)
	}
	_, err := fmt.Fprintf(o.out, "%s: expected until %s, by %s\n", clean(what), o.stamp(o.now.Add(life)), who)
	return err
}

// providerJSON is a line of providers -json.
type providerJSON struct {
	Provider string         `json:"provider"`
	Domain   string         `json:"domain"`
	State    string         `json:"state"`
	Walked   time.Time      `json:"walked,omitzero"`
	Tried    time.Time      `json:"tried,omitzero"`
	Networks []netip.Prefix `json:"networks"`
}

// providers prints what is known of the networks of large providers.
func (o *operator) providers(ctx context.Context, asJSON bool) error {
	all, err := o.greylist.Networks(ctx, providerNames())
	if err != nil {
		return err
	}
	w := bufio.NewWriter(o.out)
	enc := json.NewEncoder(w)
	for i, n := range all {
		age := "never"
		state := "not known yet"
		if !n.Walked.IsZero() {
			age, state = ago(o.now.Sub(n.Walked)), "good"
		}
		switch {
		case n.Failures > 0 && n.Nets != nil:
			state = "old, for the DNS did not answer, or not all"
		case n.Failures > 0:
			state = "not known, for the DNS did not answer, or has none"
		}
		if asJSON {
			err = errors.Join(err, enc.Encode(providerJSON{
				n.Provider, providers[i].domain, state, n.Walked.UTC().Truncate(time.Second), n.Tried.UTC().Truncate(time.Second), append([]netip.Prefix{}, n.Nets...),
			}))
			continue
		}
		fmt.Fprintf(w, "%s\t%s, %s, age %s, of the SPF record of %s\n", n.Provider, countNets(len(n.Nets)), state, age, providers[i].domain)
		for _, net := range n.Nets {
			fmt.Fprintf(w, "\t%s\n", net)
		}
	}
	return errors.Join(err, w.Flush())
}

func countNets(n int) string {
	if n == 1 {
		return "1 network"
	}
	return fmt.Sprintf("%d networks", n)
}

// ago is an age for people.
func ago(d time.Duration) string {
	switch d = max(0, d); {
	case d < 2*time.Minute:
		return fmt.Sprint(int(d/time.Second), "s")
	case d < 2*time.Hour:
		return fmt.Sprint(int(d/time.Minute), "m")
	case d < 48*time.Hour:
		return fmt.Sprint(int(d/time.Hour), "h")
	}
	return fmt.Sprint(int(d/(24*time.Hour)), "d")
}

func count(n int) string {
	if n == 1 {
		return "1 record"
	}
	return fmt.Sprintf("%d records", n)
}

// stdin is what standard input is called.
const stdin = "stdin"

// load imports files.
func (o *operator) load(ctx context.Context, paths []string) error {
	if len(paths) == 0 {
		paths = []string{"-"}
	}
	var errs []error
	for _, path := range paths {
		found, bad := o.loadFile(ctx, path)
		errs = append(errs, bad...)
		if path == "-" {
			path = stdin
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s: %s stored\n", clean(path), count(found.Stored))
		printLines(&b, "-trap", found.Traps)
		printLines(&b, "-allowClients", found.Clients)
		if _, err := o.out.Write(b.Bytes()); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// printLines prints what is no record and belongs in a list.
func printLines(w io.Writer, flag string, lines []string) {
	if len(lines) > 0 {
		fmt.Fprintf(w, "# for a list of %s:\n", flag)
	}
	for _, l := range lines {
		fmt.Fprintln(w, clean(l))
	}
}

// openImports opens what import is to read, before the rights of root are given
// up. What cannot be opened is said when it is its turn.
func openImports(words []string) map[string]*os.File {
	files := make(map[string]*os.File)
	if len(words) == 0 || words[0] != "import" {
		return files
	}
	for _, path := range words[1:] {
		if file, err := os.Open(path); err == nil && files[path] == nil {
			files[path] = file
		}
	}
	return files
}

func (o *operator) loadFile(ctx context.Context, path string) (greylist.Imported, []error) {
	if path == "-" {
		return o.greylist.Import(ctx, o.now, o.in, stdin)
	}
	f := o.files[path]
	if f == nil {
		var err error
		if f, err = os.Open(path); err != nil {
			return greylist.Imported{}, []error{err}
		}
		defer f.Close()
	}
	f.Seek(0, io.SeekStart) // it may be named twice
	return o.greylist.Import(ctx, o.now, f, path)
}

// statsJSON is what stats -json prints: delays with their bounds.
type statsJSON struct {
	greylist.Stats
	Delays []delayJSON `json:"delays"`
}

type delayJSON struct {
	Over  int64 `json:"over"`           // seconds
	UpTo  int64 `json:"upTo,omitempty"` // seconds; 0: no bound
	Count int64 `json:"count"`
}

func (o *operator) stats(ctx context.Context, q greylist.StatsQuery, asJSON bool) error {
	if q.By != "" && !o.clear {
		return fmt.Errorf("stats %s: with -storeAddresses=false nothing is known of clients, senders and recipients", q.By)
	}
	s, err := o.greylist.Stats(ctx, o.now, q)
	if err != nil {
		return err
	}
	bounds := greylist.DelayBounds()
	if asJSON {
		j := statsJSON{Stats: s}
		j.Since = s.Since.UTC()
		var over int64
		for i, n := range s.Delays {
			d := delayJSON{Over: over, Count: n}
			if i < len(bounds) {
				d.UpTo = int64(bounds[i] / time.Second)
				over = d.UpTo
			}
			j.Delays = append(j.Delays, d)
		}
		if j.Silent == nil {
			j.Silent = []greylist.Silent{}
		}
		return json.NewEncoder(o.out).Encode(j)
	}
	var b bytes.Buffer
	if q.By != "" {
		o.printGroups(&b, q.By, s.By)
		_, err = o.out.Write(b.Bytes())
		return err
	}
	printRecords(&b, s.Records)
	if q.What.Empty() { // of what was counted nobody knows whose it was
		if !s.Since.IsZero() {
			fmt.Fprintf(&b, "\nsince %s\n", o.stamp(s.Since))
		}
		printReasons(&b, s.Reasons)
		printMarks(&b, s.Marks)
		printDelays(&b, s.Delays, bounds)
	}
	o.printSilent(&b, s.Silent)
	_, err = o.out.Write(b.Bytes())
	return err
}

const maxGroups = 50

// printGroups prints who has most attempts.
func (o *operator) printGroups(w io.Writer, by string, groups []greylist.Group) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "waiting\tnever again\tpassed\ttries\tlast\t%s\n", by)
	for _, g := range groups[:min(len(groups), maxGroups)] {
		fmt.Fprintf(tw, "%d\t%d\t%d\t%d\t%s\t%s\n", g.Waits, g.Never, g.Passed, g.Tries, o.stamp(g.Last), clean(g.Name))
	}
	tw.Flush()
	if n := len(groups) - maxGroups; n > 0 {
		fmt.Fprintf(w, "and %d more; -json shows 1000\n", n)
	}
}

func printRecords(w io.Writer, records map[string]map[string]int64) {
	fmt.Fprintf(w, "%12s %10s  records of\n", "grey", "pass")
	for _, kind := range greylist.Kinds() {
		n := records[kind.String()]
		fmt.Fprintf(w, "%12d %10d  %s\n", n["grey"], n["pass"], kindTexts[kind])
	}
}

var kindTexts = map[greylist.Kind]string{
	greylist.KindOrigin:  "addresses and domains",
	greylist.KindAttempt: "origin, sender and recipient",
	greylist.KindPair:    "sender and recipient",
	greylist.KindTrap:    "addresses that wrote to a trap",
	greylist.KindClient:  "clients whose attempts are counted",
	greylist.KindVouched: "clients and domains vouched for",
	greylist.KindLearned: "people to whom our users have written",
	greylist.KindExpect:  "what is expected",
	greylist.KindReply:   "domains from which our users expect answers",
	greylist.KindOurs:    "domains of ours",
	greylist.KindWriter:  "users who have written today",

	greylist.KindProvider: "large mail providers",
}

var reasonTexts = map[greylist.Reason]string{
	greylist.Unseen:   "refused, not seen before",
	greylist.Early:    "refused, came again too early",
	greylist.Late:     "refused, came again too late",
	greylist.Trapped:  "refused, wrote to a trap",
	greylist.Retry:    "accepted, came again",
	greylist.Known:    "accepted, came again before",
	greylist.Paired:   "accepted, sender and recipient know each other",
	greylist.Expected: "accepted, expected",
	greylist.Vouched:  "accepted, vouched for",
	greylist.Exempted: "accepted, on a list",
}

func printReasons(w io.Writer, reasons map[greylist.Reason]int64) {
	var sum int64
	for _, r := range greylist.Reasons() {
		sum += reasons[r]
	}
	fmt.Fprintf(w, "\ndecisions: %d\n", sum)
	for _, r := range greylist.Reasons() {
		fmt.Fprintf(w, "%12d %6s  %-9s%s\n", reasons[r], percent(reasons[r], sum), r, reasonTexts[r])
	}
}

// printMarks says why mail was not vouched for.
func printMarks(w io.Writer, marks map[greylist.Mark]int64) {
	var sum int64
	for _, n := range marks {
		sum += n
	}
	fmt.Fprintf(w, "\nnot vouched for: %d\n", sum)
	for _, m := range greylist.Marks() {
		if n := marks[m]; n > 0 {
			fmt.Fprintf(w, "%12d %6s  %s\n", n, percent(n, sum), m)
		}
	}
}

// printDelays draws a histogram within 80 columns.
func printDelays(w io.Writer, delays []int64, bounds []time.Duration) {
	const bar = 48
	var sum, most int64
	for _, n := range delays {
		sum += n
		most = max(most, n)
	}
	fmt.Fprintf(w, "\nretries accepted: %d, by the time since the first attempt\n", sum)
	if sum == 0 {
		return
	}
	for i, n := range delays {
		label := "> " + span(bounds[len(bounds)-1])
		if i < len(bounds) {
			label = "<= " + span(bounds[i])
		}
		length := int(float64(n) / float64(most) * bar)
		if n > 0 {
			length = max(length, 1)
		}
		line := fmt.Sprintf("%9s %10d %6s  %s", label, n, percent(n, sum), strings.Repeat("#", length))
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func span(d time.Duration) string {
	if d < time.Hour {
		return fmt.Sprint(int(d/time.Minute), " min")
	}
	return fmt.Sprint(int(d/time.Hour), " h")
}

func percent(n, of int64) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(of))
}

const maxSilent = 20

func (o *operator) printSilent(w io.Writer, silent []greylist.Silent) {
	fmt.Fprintf(w, "\nnetworks that never came again\n")
	switch {
	case !o.clear:
		fmt.Fprintf(w, "    not known: needs -storeAddresses\n")
	case len(silent) == 0:
		fmt.Fprintf(w, "    none\n")
	}
	for _, s := range silent[:min(len(silent), maxSilent)] {
		fmt.Fprintf(w, "%12d  %s\n", s.Attempts, clean(s.Network))
	}
}
