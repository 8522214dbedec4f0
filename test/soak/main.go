//go:build linux

// Command soak runs all filters in a chain under a real smtpd for as long as it
// is told, with clients of every kind, a DNS that is fine, slow, dead and lying
// by turns, a disk that is full by turns, and lists that change: at half of what
// the machine does without filters, which is measured first.
//
// It fails if an accepted mail is lost, changed or delivered twice, if anything
// is not answered, if smtpd or a filter ends or logs a panic, or if what a
// filter needs rises: memory, descriptors, threads, processor time a client. A
// slow machine alone makes nothing fail.
//
// It runs as root, in a network of its own, after the filters were built into
// bin/.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		status = 1
	}
	os.Exit(status)
}

// flags are those of the command line.
type flags struct {
	length  time.Duration
	version string
	bin     string
	log     string
	seed    uint64
	rate    float64
}

func run() (status int, err error) {
	var f flags
	flag.DurationVar(&f.length, "for", 3*time.Minute, "run with filters for `TIME`")
	flag.StringVar(&f.version, "smtpd", "", "under this `VERSION` of smtpd (default the newest)")
	flag.StringVar(&f.bin, "bin", "bin", "the filters are in `FOLDER`")
	flag.StringVar(&f.log, "log", "", "write the log of smtpd and the filters to `FILE`")
	flag.Uint64Var(&f.seed, "seed", uint64(time.Now().UnixNano()), "`NUMBER` that chooses what clients do")
	flag.Float64Var(&f.rate, "rate", 0, "`N` clients a second (default half of what the machine does without filters)")
	flag.Parse()
	if flag.NArg() > 0 || f.length < time.Minute {
		return 1, errors.New("usage: soak [-for TIME, at least 1m] [-smtpd VERSION] [-log FILE] [-seed N] [-rate N]")
	}
	release, err := f.release()
	if err != nil {
		return 1, err
	}
	if !smtpdtest.Inside() {
		for _, p := range programs {
			if _, err := os.Stat(filepath.Join(f.bin, p.name)); err != nil {
				return 1, fmt.Errorf("%w; run make first, and this from the top folder", err)
			}
		}
		if err := release.Ready(); err != nil {
			return 1, err
		}
		return smtpdtest.Isolate()
	}
	if err := smtpdtest.Setup(); err != nil {
		return 1, err
	}
	bad, err := soak(f, release)
	if err != nil {
		return 1, err
	}
	if len(bad) > 0 {
		fmt.Printf("\nFAILED\n%s\n", strings.Join(bad, "\n"))
		return 1, nil
	}
	fmt.Printf("\nall is well\n")
	return 0, nil
}

// release returns the smtpd to run.
func (f flags) release() (smtpdtest.Release, error) {
	all := smtpdtest.Releases()
	if f.version == "" {
		return all[len(all)-1], nil
	}
	var known []string
	for _, r := range all {
		if r.Version == f.version {
			return r, nil
		}
		known = append(known, r.Version)
	}
	return smtpdtest.Release{}, fmt.Errorf("-smtpd %s: not one of %s", f.version, strings.Join(known, ", "))
}

// soak measures, runs, and returns what is wrong.
func soak(f flags, release smtpdtest.Release) (bad []string, err error) {
	var log io.Writer = io.Discard
	if f.log != "" {
		file, err := os.Create(f.log)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		log = file
	}
	fmt.Printf("OpenSMTPD %s, seed %d\n", release.Version, f.seed)
	without := smtpdtest.Config{Release: release, Zone: zone}

	rate := f.rate
	if rate == 0 {
		length := min(max(f.length/20, 15*time.Second), time.Minute)
		full, bad, err := capacity(without, f.seed, length, log)
		if err != nil || bad != nil {
			return bad, err
		}
		rate = full / 2
		fmt.Printf("without filters: %.0f clients a second at most; from here on %.0f\n", full, rate)
	}

	fmt.Printf("\nwithout filters\n")
	r := &round{conf: without, rate: rate, length: min(max(f.length/10, 20*time.Second), 5*time.Minute), seed: f.seed, log: log}
	if bad, err = r.run(); err != nil || bad != nil {
		return bad, err
	}

	fmt.Printf("\nwith filters\n")
	with := without
	with.Bin, with.Filters, with.StateSize, with.Files = f.bin, filters(), stateSize, map[string]string{}
	for name, texts := range lists {
		with.Files[name] = texts[0]
	}
	r = &round{conf: with, rate: rate, length: f.length, seed: f.seed, log: log, trouble: true}
	return r.run()
}
