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
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

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
	"list":   "[grey|pass|pair|list] [-json]",
	"allow":  "KEY...",
	"delete": "KEY...",
	"stats":  "[-json]",
	"export": "",
	"import": "[FILE...]",
}

func usageError(name string) error {
	return errors.New("usage: filter-greylist [flags] " + strings.TrimSpace(name+" "+usages[name]))
}

// command carries out one command, whose name args begins with.
func (o *operator) command(ctx context.Context, args []string) error {
	name, args := args[0], args[1:]
	asJSON := false
	if name == "list" || name == "stats" {
		n := len(args)
		args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "-json" || a == "--json" })
		asJSON = len(args) < n
	}
	for _, a := range args {
		if len(a) > 1 && a[0] == '-' {
			return fmt.Errorf("%s %s: flags come before the command; %w", name, clean(a), usageError(name))
		}
	}
	switch n := len(args); {
	case name == "list" && n == 1 && args[0] == "list":
		return o.listFiles(asJSON)
	case name == "list" && n == 0:
		return o.list(ctx, "", asJSON)
	case name == "list" && n == 1 && slices.Contains([]string{"grey", "pass", "pair"}, args[0]):
		return o.list(ctx, args[0], asJSON)
	case name == "allow" && n > 0:
		return o.each(ctx, args, o.allow)
	case name == "delete" && n > 0:
		return o.each(ctx, args, o.remove)
	case name == "stats" && n == 0:
		return o.stats(ctx, asJSON)
	case name == "export" && n == 0:
		return o.greylist.Export(ctx, o.out)
	case name == "import":
		return o.load(ctx, args)
	}
	return usageError(name)
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
func (o *operator) records(ctx context.Context, what string) iter.Seq2[greylist.Entry, error] {
	expired := o.greylist.Expired(o.now)
	return func(yield func(greylist.Entry, error) bool) {
		for e, err := range o.greylist.All(ctx) {
			if err == nil && (!wanted(e, what) || expired(e.Key, e.Record)) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (o *operator) list(ctx context.Context, what string, asJSON bool) error {
	w := bufio.NewWriter(o.out)
	var err error
	if asJSON {
		err = o.listJSON(ctx, what, w)
	} else {
		err = o.listTable(ctx, what, w, maxRows)
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
	Tries   int       `json:"tries"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Passes  time.Time `json:"passes,omitzero"`
	Expires time.Time `json:"expires"`
}

// listJSON prints records as they come, however many there are.
func (o *operator) listJSON(ctx context.Context, what string, w io.Writer) error {
	enc := json.NewEncoder(w)
	for e, err := range o.records(ctx, what) {
		if err != nil {
			return err
		}
		r := e.Record
		passes, expires := o.greylist.Times(o.now, e)
		if !passes.IsZero() {
			passes = passes.UTC()
		}
		if err := enc.Encode(listedJSON{
			Key: e.Key.String(), Kind: e.Key.Kind().String(), State: r.State.String(),
			Origin: r.Origin, Sender: r.Sender, Rcpt: r.Rcpt, Tries: r.Tries,
			First: o.date(r.First).UTC(), Last: o.date(r.Last).UTC(), Passes: passes, Expires: expires.UTC(),
		}); err != nil {
			return fmt.Errorf("%s: %w", e.Key, err)
		}
	}
	return nil
}

// maxRows bounds a table for people, and so what is kept to sort it.
const maxRows = 100_000

// listTable prints records, those used last first, up to limit of them.
func (o *operator) listTable(ctx context.Context, what string, w io.Writer, limit int) error {
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
	for e, err := range o.records(ctx, what) {
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
	return "allowed", o.greylist.Allow(ctx, o.now, key)
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
		n, bad := o.loadFile(ctx, path)
		errs = append(errs, bad...)
		if path == "-" {
			path = stdin
		}
		if _, err := fmt.Fprintf(o.out, "%s: %s stored\n", path, count(n)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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

func (o *operator) loadFile(ctx context.Context, path string) (stored int, errs []error) {
	if path == "-" {
		return o.greylist.Import(ctx, o.now, o.in, stdin)
	}
	f := o.files[path]
	if f == nil {
		var err error
		if f, err = os.Open(path); err != nil {
			return 0, []error{err}
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

func (o *operator) stats(ctx context.Context, asJSON bool) error {
	s, err := o.greylist.Stats(ctx, o.now)
	if err != nil {
		return err
	}
	bounds := greylist.DelayBounds()
	if asJSON {
		j := statsJSON{Stats: s}
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
	printRecords(&b, s.Records)
	printReasons(&b, s.Reasons)
	printMarks(&b, s.Marks)
	printDelays(&b, s.Delays, bounds)
	o.printSilent(&b, s.Silent)
	_, err = o.out.Write(b.Bytes())
	return err
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
