package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// names prints what filter-dyndns takes for a name, reading and printing it
// included, without and with expressions to match.
func names(bin, dir string, runs int) {
	labelled, err := os.ReadFile("pkg/rdns/testdata/rdns-labelled.tsv")
	check(err)
	const times = 400
	input := filepath.Join(dir, "names")
	check(os.WriteFile(input, bytes.Repeat(labelled, times), 0o600))
	n := 0
	for line := range bytes.Lines(labelled) {
		if line[0] != '#' {
			n += times
		}
	}
	program := filepath.Join(bin, "filter-dyndns")
	classify := func(flags ...string) time.Duration {
		return median(runs, append([]string{program, "-classify", input}, flags...)) / time.Duration(n)
	}
	plain := classify()
	few, many := classify("-match", expressions(dir, 15)), classify("-match", expressions(dir, 1500))
	fmt.Println("processor time of filter-dyndns -classify for a name (at most 3µs)")
	fmt.Printf("  %-34s %8s\n", "no expressions", plain)
	fmt.Printf("  %-34s %8s\n", "15 expressions", few)
	fmt.Printf("  %-34s %8s  ratio %.2f (at most 2.0)\n", "1500 expressions", many, float64(many)/float64(few))
}

// expressions writes a file of n expressions as providers' names want them.
func expressions(dir string, n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "^[a-z]+-[0-9]+-[0-9]+-[0-9]+-[0-9]+\\.(dsl|cable|pool)\\.provider%d\\.example\\.net$\n", i)
	}
	path := filepath.Join(dir, fmt.Sprint("expressions-", n))
	check(os.WriteFile(path, b.Bytes(), 0o600))
	return path
}

// median returns the processor time that a command takes: it has one thread of
// work, and the machine may have others.
func median(runs int, command []string) time.Duration {
	var d []time.Duration
	for range runs {
		c := exec.Command(command[0], command[1:]...)
		c.Stderr = os.Stderr
		check(c.Run())
		d = append(d, c.ProcessState.UserTime()+c.ProcessState.SystemTime())
	}
	return middle(d)
}
