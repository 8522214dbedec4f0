package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"

	"opensmtpd-filters/test/mixed"
)

// reports measures filterctl report: beside gzip -dc of the same log, and beside
// pflogsumm with a log of Postfix as large.
func reports(bin, dir string, lines int) error {
	fmt.Printf("filterctl report of a log of %d lines\n", lines)
	log := mixed.Log{Lines: lines, Distinct: 300_000, Seed: 1, Span: 30 * 24 * time.Hour}
	packed, plain, postfix := filepath.Join(dir, "maillog.gz"), filepath.Join(dir, "maillog"), filepath.Join(dir, "postfix")
	var counts mixed.Counts
	if err := writeTo(packed, func(w io.Writer) (err error) {
		z := gzip.NewWriter(w)
		counts, err = log.Write(z)
		return errors.Join(err, z.Close())
	}); err != nil {
		return err
	}
	var ours, peer []time.Duration // by turns, for the machine may have other work
	most := int64(0)
	for range 3 {
		took, _, err := used("gzip", "-dc", packed)
		if err != nil {
			return err
		}
		peer = append(peer, took)
		took, kB, err := used(filepath.Join(bin, "filterctl"), "report", packed)
		if err != nil {
			return err
		}
		ours, most = append(ours, took), max(most, kB)
	}
	o, p := middle(ours), middle(peer)
	fmt.Printf("  %-34s %8s  gzip -dc %8s  ratio %.2f (at most 2)\n", fmt.Sprintf("%d sessions, compressed", counts.Sessions), round(o), round(p), float64(o)/float64(p))
	fmt.Printf("  %-34s %.0f MB (at most 200)\n", "memory at most", float64(most)/1024)
	if err := os.Remove(packed); err != nil {
		return err
	}

	if _, err := exec.LookPath("pflogsumm"); err != nil {
		fmt.Println("  pflogsumm is not installed: test/install.sh bench")
		return nil
	}
	// A tenth of it: pflogsumm takes its time.
	log.Lines = lines / 10
	if err := writeTo(plain, func(w io.Writer) (err error) {
		_, err = log.Write(w)
		return err
	}); err != nil {
		return err
	}
	fi, err := os.Stat(plain)
	if err != nil {
		return err
	}
	other := 0
	if err := writeTo(postfix, func(w io.Writer) (err error) {
		other, err = log.WritePostfix(w, fi.Size())
		return err
	}); err != nil {
		return err
	}
	took, kB, err := used(filepath.Join(bin, "filterctl"), "report", plain)
	if err != nil {
		return err
	}
	theirs, theirkB, err := used("pflogsumm", postfix)
	if err != nil {
		return err
	}
	fmt.Printf("  %-34s %8s  pflogsumm %8s  ratio %.2f\n", fmt.Sprintf("%d MB, %d and %d lines", fi.Size()>>20, log.Lines, other), round(took), round(theirs), float64(took)/float64(theirs))
	fmt.Printf("  %-34s %.0f MB, pflogsumm %.0f MB\n", "memory at most", float64(kB)/1024, float64(theirkB)/1024)
	return nil
}

func writeTo(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// used returns how long a command takes, and the memory it had at most.
func used(name string, args ...string) (took time.Duration, kB int64, err error) {
	c := exec.Command(name, args...)
	c.Stderr = os.Stderr
	start := time.Now()
	if err := c.Run(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", c, err)
	}
	took = time.Since(start)
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		kB = u.Maxrss
	}
	return took, kB, nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
