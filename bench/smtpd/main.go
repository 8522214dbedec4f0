//go:build linux

// Smtpd measures what filters cost a real mail server: beside none, beside a loop
// in Go and a program in C that say proceed to the same questions, and beside the
// filter-senderscore of Debian. It ends with status 1 if that is too much.
//
// Figures of a machine hold for that machine; the ratios are those of runs that
// took turns.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// What a filter may cost.
const (
	maxTime  = 1.5  // processor time a mail, of the bare loop's
	minMails = 0.85 // mails a second of four in a chain, of four bare loops'
	maxP50   = 1.3  // of a session, likewise
	maxGreet = 1.2  // p99 of the greetings, filter-greet before the four, of theirs without it
	original = "/var/cache/opensmtpd-filters/senderscore/usr/libexec/opensmtpd/filter-senderscore"
)

var (
	bin      = flag.String("bin", "bin", "`folder` of the built programs")
	runs     = flag.Int("runs", 5, "measure each this often, and take the median")
	last     = flag.Duration("time", 2*time.Second, "how long one run lasts")
	releases = flag.String("releases", "6.8.0p2,7.6.0", "`versions` of smtpd")
	only     = flag.String("only", "", "measure only the filters whose name begins with `this`")
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	flag.Parse()
	if !smtpdtest.Inside() {
		check(build())
		status, err := smtpdtest.Isolate()
		check(err)
		os.Exit(status)
	}
	check(smtpdtest.Setup())
	ok := true
	for _, r := range smtpdtest.Releases() {
		if !slices.Contains(strings.Split(*releases, ","), r.Version) {
			continue
		}
		if err := r.Ready(); err != nil {
			fmt.Println("not measured:", err)
			continue
		}
		ok = measure(r) && ok
	}
	if !ok {
		os.Exit(1)
	}
}

// build makes the programs that ours are compared with.
func build() error {
	if err := smtpdtest.Build(*bin, "./bench/smtpd/bare"); err != nil {
		return err
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		fmt.Println("without a program in C: gcc is missing; test/install.sh bench installs it")
		return os.RemoveAll(filepath.Join(*bin, "plain"))
	}
	out, err := exec.Command("gcc", "-O2", "-static", "-o", filepath.Join(*bin, "plain"), "bench/smtpd/plain/plain.c").CombinedOutput()
	if err != nil {
		return fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return nil
}

// A filter is one of ours, as it is measured.
type filter struct {
	name, command string
	sender        string
	chain         bool // it is in the chain
}

const (
	vouched = "a@sender.example" // SPF passes
	unknown = "a@other.example"  // there is none, so it had to wait
)

var filters = []filter{
	{"dyndns", "filter-dyndns", vouched, true},
	{"senderscore", "filter-senderscore -blockBelow 10 -blockPhase connect -stateFile " + smtpdtest.State + "/senderscore", vouched, true},
	{"dnsbl", "filter-dnsbl -blockAt 5 bl.example", vouched, true},
	{"greylist, known", "filter-greylist -passTime 1s -store sqlite:" + smtpdtest.State + "/greylist.db", unknown, true},
	{"greylist, vouched for", "filter-greylist -passTime 1s -store sqlite:" + smtpdtest.State + "/greylist.db", vouched, false},
	{"greet", greet, vouched, false},
	{"senderscore -scoreHeader", scoreHeader, vouched, false},
}

const (
	greet       = "filter-greet -wait 1s"
	scoreHeader = "filter-senderscore -scoreHeader"
)

// A row is one way to run smtpd, and what was measured of it.
type row struct {
	name    string
	filters []smtpdtest.Filter
	files   map[string]string
	sender  string
	peer    *row // what it is compared with
	check   func(r *row) string
	samples []sample
}

func measure(r smtpdtest.Release) (ok bool) {
	rows := table()
	for range *runs {
		for _, w := range rows {
			s, err := w.run(r)
			if err != nil {
				log.Fatalf("%s: %v", w.name, err)
			}
			w.samples = append(w.samples, s)
		}
	}
	fmt.Printf("\nsmtpd %s, %d connections from %d addresses, a mail of 3 kB each, nothing refused; the median of %d runs of %v\n",
		r.Version, clients, clients, *runs, *last)
	fmt.Printf("  %-38s %27s   %8s %8s %8s %8s %10s\n", "", "mails  p50  time: ratios", "mails/s", "p50", "p99", "greeting", "time/mail")
	ok = true
	for _, w := range rows {
		ratios, verdict := "", ""
		if w.peer != nil {
			ratios = fmt.Sprintf("%.2f  %.2f  %.2f", w.ratio(rate), w.ratio(p50), w.ratio(cpu))
			if w.check != nil {
				if verdict = w.check(w); verdict != "" {
					ok = false
				}
			}
		}
		fmt.Printf("  %-38s %27s   %8.0f %7.1fms %7.1fms %6.1fms %8.2fms  %s\n", w.name, ratios,
			w.median(rate), w.median(p50), w.median(p99), w.median(hello), w.median(cpu), verdict)
	}
	return ok
}

// What is measured; times in milliseconds.
func rate(s sample) float64  { return s.rate }
func p50(s sample) float64   { return s.p50.Seconds() * 1000 }
func p99(s sample) float64   { return s.p99.Seconds() * 1000 }
func cpu(s sample) float64   { return s.cpu.Seconds() * 1000 }
func hello(s sample) float64 { return s.greeting.Seconds() * 1000 }

func (w *row) median(of func(sample) float64) float64 {
	var all []float64
	for _, s := range w.samples {
		all = append(all, of(s))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// ratio is the median of the ratios of runs that followed each other.
func (w *row) ratio(of func(sample) float64) float64 {
	var all []float64
	for i, s := range w.samples {
		all = append(all, of(s)/of(w.peer.samples[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func tooDear(w *row) string {
	if w.ratio(cpu) > maxTime {
		return fmt.Sprintf("want at most %.2f of the time", maxTime)
	}
	return ""
}

func tooSlow(w *row) string {
	switch {
	case w.ratio(rate) < minMails:
		return fmt.Sprintf("want at least %.2f of the mails", minMails)
	case w.ratio(p50) > maxP50:
		return fmt.Sprintf("want at most %.1f of the p50", maxP50)
	}
	return ""
}

// greetedLate is for clients that filter-greet knows.
func greetedLate(w *row) string {
	if r := w.ratio(hello); r > maxGreet {
		return fmt.Sprintf("greetings (p99) %.2f of the four's, want at most %.1f", r, maxGreet)
	}
	return ""
}

// table returns what is measured.
func table() (rows []*row) {
	add := func(r *row) *row {
		rows = append(rows, r)
		return r
	}
	all := *only == ""
	if all {
		add(&row{name: "no filter", sender: vouched})
	}
	_, noC := os.Stat(filepath.Join(*bin, "plain"))
	ours, bare, plain := &row{name: "four in a chain", sender: unknown}, &row{name: "four bare loops", sender: unknown}, &row{name: "four in C", sender: unknown}
	bare.files = map[string]string{}
	plain.files = bare.files
	for _, f := range filters {
		file := "registrations-" + strings.Fields(strings.ReplaceAll(f.name, ",", ""))[0]
		registered, err := registrations(f.command)
		check(err)
		files := map[string]string{file: registered}
		peer := func(program string) []smtpdtest.Filter {
			return []smtpdtest.Filter{{Name: program + file, Command: program + " " + smtpdtest.Dir + "/" + file}}
		}
		own := []smtpdtest.Filter{{Name: file, Command: f.command}}
		if f.chain {
			ours.filters = append(ours.filters, own...)
			bare.filters = append(bare.filters, peer("bare")...)
			plain.filters = append(plain.filters, peer("plain")...)
			bare.files[file] = registered
		}
		if !strings.HasPrefix(f.name, *only) {
			continue
		}
		b := add(&row{name: "  bare loop as " + f.name, filters: peer("bare"), files: files, sender: f.sender})
		w := add(&row{name: f.name, filters: own, sender: f.sender, peer: b, check: tooDear})
		if all && noC == nil {
			add(&row{name: "  in C as " + f.name, filters: peer("plain"), files: files, sender: f.sender, peer: b})
		}
		if f.command == scoreHeader && all {
			addOriginal(add, w)
		}
	}
	if all || *only == "chain" {
		add(bare)
		ours.peer, ours.check = bare, tooSlow
		add(ours)
		five := append([]smtpdtest.Filter{{Name: "greet", Command: greet}}, ours.filters...)
		add(&row{name: "filter-greet and the four", filters: five, sender: unknown, peer: ours, check: greetedLate})
		if noC == nil {
			plain.peer = bare
			add(plain)
		}
	}
	return rows
}

// addOriginal adds the program whose flags filter-senderscore has.
func addOriginal(add func(*row) *row, ours *row) {
	const program = "original-senderscore"
	data, err := os.ReadFile(original)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Println("without Debian's filter-senderscore; test/install.sh bench unpacks it")
		return
	}
	check(err)
	check(os.WriteFile(filepath.Join(*bin, program), data, 0o755))
	add(&row{
		name: "  the original -scoreHeader", sender: vouched, peer: ours,
		filters: []smtpdtest.Filter{{Name: "original", Command: program + " -scoreHeader"}},
	})
}

// registrations returns what a filter asks smtpd for.
func registrations(command string) (string, error) {
	args := strings.Fields(command)
	for i, a := range args {
		if strings.HasPrefix(a, "sqlite:") {
			args[i] = "memory:"
		}
	}
	c := exec.Command(filepath.Join(*bin, args[0]), args[1:]...)
	c.Stdin = strings.NewReader("config|ready\n")
	out, err := c.Output()
	before, _, found := bytes.Cut(out, []byte("register|ready\n"))
	if err != nil || !found {
		return "", fmt.Errorf("%s: %w, %q", command, err, out)
	}
	return string(before), nil
}

// zone is what the filters find in the DNS. Smtpd has the names of the clients from
// a file.
func zone() (zone, hosts string) {
	zone = "2.0.0.127.bl.example A 127.0.0.2\n" +
		"*.score.senderscore.com A 127.0.4.95\n" +
		"sender.example TXT \"v=spf1 ip4:81.2.69.0/24 -all\"\n"
	for i := range clients {
		zone += smtpdtest.Host(addr(i).String(), name(i))
		hosts += fmt.Sprintf("%s %s\n", addr(i), name(i))
	}
	return zone, hosts
}

// run starts smtpd, sends mails and stops it.
func (w *row) run(r smtpdtest.Release) (sample, error) {
	c := smtpdtest.Config{
		Release: r, Bin: *bin, Filters: w.filters, Files: w.files,
		Resolv: "lookup file\nnameserver 127.0.0.1\n", Log: io.Discard,
	}
	c.Zone, c.Hosts = zone()
	s, err := smtpdtest.Start(c)
	if err != nil {
		return sample{}, err
	}
	defer s.Stop()
	if _, err := s.Run("smtpctl pause mda"); err != nil {
		return sample{}, err
	}
	if err := warm(w.sender); err != nil {
		return sample{}, err
	}
	if _, err := load(s, w.sender, *last/4); err != nil {
		return sample{}, err
	}
	return load(s, w.sender, *last)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
