// Bench measures the suite against plain tools, in one run on one machine, and
// prints ratios. The figures themselves say little on a machine that is shared.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

func main() {
	log.SetFlags(0)
	runs := flag.Int("runs", 5, "measure each command this often, and take the median")
	bin := flag.String("bin", "bin", "folder of the built programs")
	records := flag.Int("records", 5_000_000, "measure filter-greylist with up to this many records stored")
	lines := flag.Int("lines", 10_000_000, "measure filterctl report with a log of about this many lines; 0: not at all")
	flag.Parse()
	dir, err := os.MkdirTemp("", "bench")
	check(err)
	defer os.RemoveAll(dir)

	messages := filepath.Join(dir, "messages")
	generate(messages, &stream{dataLines: 30}, 20_000)
	commands := filepath.Join(dir, "commands")
	generate(commands, &stream{}, 200_000)

	pass := []string{filepath.Join(*bin, "passthrough")}
	awk := []string{"mawk", "-F|", "{print $5}"}
	fmt.Println("pass-through of a recorded stream, beside mawk -F'|' '{print $5}' on the same one")
	compare("20,000 sessions of 30 lines", messages, *runs, pass, awk, 1.5)
	compare("200,000 sessions, no data lines", commands, *runs, pass, awk, 2)
	idle(pass, 10_000)
	names(*bin, dir, *runs)
	burst(*bin)
	verdicts(*bin)
	if *lines > 0 {
		check(reports(*bin, dir, *lines))
	}
	check(greylisting(*bin, *records))
}

func generate(path string, g *stream, sessions int) {
	f, err := os.Create(path)
	check(err)
	check(g.write(f, sessions))
	check(f.Close())
}

// compare prints how long ours takes, as a multiple of peer.
func compare(what, input string, runs int, ours, peer []string, limit float64) {
	var a, b []time.Duration
	for range runs {
		a = append(a, measure(ours, input))
		b = append(b, measure(peer, input))
	}
	o, p := middle(a), middle(b)
	fmt.Printf("  %-34s %8s  mawk %8s  ratio %.2f (at most %.1f)\n", what, o.Round(time.Millisecond), p.Round(time.Millisecond), float64(o)/float64(p), limit)
}

func middle(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func measure(command []string, input string) time.Duration {
	f, err := os.Open(input)
	check(err)
	defer f.Close()
	c := exec.Command(command[0], command[1:]...)
	c.Stdin, c.Stderr = f, os.Stderr
	start := time.Now()
	check(c.Run())
	return time.Since(start)
}

// idle prints the memory of a filter with open sessions.
func idle(command []string, sessions int) {
	c := exec.Command(command[0], command[1:]...)
	in, err := c.StdinPipe()
	check(err)
	out, err := c.StdoutPipe()
	check(err)
	check(c.Start())
	check((&stream{}).open(in, out, sessions))
	rss, err := residentMB(c.Process.Pid)
	check(err)
	check(in.Close())
	check(c.Wait())
	fmt.Printf("  %-34s %.1f MB resident (at most 20)\n", fmt.Sprintf("%d sessions open and idle", sessions), rss)
}

func check(err error) {
	if err != nil {
		log.Fatalln("bench:", err)
	}
}
