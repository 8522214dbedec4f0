package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/resolve"
)

// lists are twelve DNS lists as one meets them: weight, and how long they take;
// 0 is one that does not answer.
var lists = []struct {
	weight int
	delay  time.Duration
}{
	{5, 20 * time.Millisecond}, {1, 30 * time.Millisecond}, {1, 50 * time.Millisecond}, {1, 80 * time.Millisecond},
	{2, 100 * time.Millisecond}, {1, 150 * time.Millisecond}, {2, 200 * time.Millisecond}, {-2, 300 * time.Millisecond},
	{1, 500 * time.Millisecond}, {1, time.Second}, {1, 2 * time.Second}, {1, 0},
}

// verdicts prints how long clients wait for a verdict of filter-dnsbl, and how
// long it takes to ask the same lists in plainer ways.
func verdicts(bin string) {
	var script strings.Builder
	var args []string
	for i, l := range lists {
		zone := fmt.Sprintf("l%d.example", i)
		fmt.Fprintf(&script, "2.0.0.127.%s A 127.0.0.2\n", zone)
		if l.delay > 0 {
			fmt.Fprintf(&script, "*.%s delay %v\n2.0.0.127.%s delay 1ms\n", zone, l.delay, zone)
		} else {
			fmt.Fprintf(&script, "*.113.0.203.%s drop\n", zone)
		}
		args = append(args, fmt.Sprintf("%s*%d", zone, l.weight))
	}
	// 203.0.113.1 is on the first list, .2 on those that answer within 200 ms.
	for i := range lists[:7] {
		if i == 0 {
			fmt.Fprintf(&script, "1.113.0.203.l%d.example A 127.0.0.2\n", i)
		} else {
			fmt.Fprintf(&script, "2.113.0.203.l%d.example A 127.0.0.2\n", i)
		}
	}
	srv, err := filtertest.StartDNS("127.0.0.1:0", script.String())
	check(err)
	defer srv.Close()

	fmt.Println("a verdict of 12 lists that answer after 20 ms to 2 s, one never, -blockAt 5 -timeout 2s")
	fmt.Printf("  %-34s %10s %12s %10s\n", "client", "in turn", "wait for all", "by bounds")
	for i, client := range []string{"listed by the first, heavy one", "listed by several", "listed nowhere"} {
		addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})
		turn, all := plainly(srv, addr)
		f := startDNSBL(bin, srv, append([]string{"-blockAt", "5"}, args...))
		d := f.connect([]netip.Addr{addr})
		f.stop()
		fmt.Printf("  %-34s %10s %12s %10s\n", client, turn.Round(time.Millisecond), all.Round(time.Millisecond), d[0].Round(time.Millisecond))
	}
}

// plainly asks all lists, one after the other, and all at once.
func plainly(srv *filtertest.DNS, addr netip.Addr) (turn, all time.Duration) {
	ask := func(r *resolve.Resolver, i int) {
		r.A(context.Background(), dnsbl.Name(fmt.Sprintf("l%d.example", i), addr))
	}
	newResolver := func() *resolve.Resolver {
		return resolve.New(resolve.Options{Servers: []netip.AddrPort{srv.Addr}, Timeout: 2 * time.Second})
	}
	r := newResolver()
	start := time.Now()
	for i := range lists {
		ask(r, i)
	}
	turn = time.Since(start)
	r.Close()

	r = newResolver()
	defer r.Close()
	start = time.Now()
	var wg sync.WaitGroup
	for i := range lists {
		wg.Go(func() { ask(r, i) })
	}
	wg.Wait()
	return turn, time.Since(start)
}

// burst prints how long clients wait that connect at once, while every list
// answers after 100 ms, and the processor time of a query. The DNS server, which
// runs on the same machine, has its share in the wait.
func burst(bin string) {
	const runs = 5
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // for the server
	script := ""
	args := []string{"-junkAt", "3"}
	for i := range 3 {
		zone := fmt.Sprintf("l%d.example", i)
		script += fmt.Sprintf("*.%s delay 100ms\n*.0.203.%s A 127.0.0.2\n2.0.0.127.%s A 127.0.0.2\n", zone, zone, zone)
		args = append(args, zone)
	}
	srv, err := filtertest.StartDNS("127.0.0.1:0", script)
	check(err)
	defer srv.Close()
	fmt.Printf("clients that connect at once, 3 lists that answer after 100 ms, NOFILE 256; the median of %d runs\n", runs)
	idle := time.Duration(0)
	for _, n := range []int{0, 10, 1000} {
		var addrs []netip.Addr
		for i := range n {
			addrs = append(addrs, netip.AddrFrom4([4]byte{203, 0, byte(i / 250), byte(i % 250)}))
		}
		var half, all, used []time.Duration
		for range runs {
			f := startDNSBL(bin, srv, args)
			srv.Reset()
			if d := f.connect(addrs); n > 0 {
				slices.Sort(d)
				half, all = append(half, d[n/2]), append(all, d[n-1])
			}
			f.stop()
			used = append(used, f.cmd.ProcessState.UserTime()+f.cmd.ProcessState.SystemTime())
			if srv.Total() != 3*n || f.hits != n {
				fmt.Printf("  %d queries, %d clients junked, want %d and %d\n", srv.Total(), f.hits, 3*n, n)
			}
		}
		if n == 0 {
			idle = middle(used)
			continue
		}
		fmt.Printf("  %-34s half of them after %s, all after %s; %s of processor time a query\n", fmt.Sprint(n, " clients and addresses"),
			middle(half).Round(time.Millisecond), middle(all).Round(time.Millisecond), (max(0, middle(used)-idle) / time.Duration(3*n)).Round(time.Microsecond))
	}
}

// dnsblFilter is a filter-dnsbl whose lists have been tested.
type dnsblFilter struct {
	cmd  *exec.Cmd
	in   *bufio.Writer
	out  *bufio.Reader
	end  func() error
	hits int // answers other than proceed
}

func startDNSBL(bin string, srv *filtertest.DNS, args []string) *dnsblFilter {
	command := append([]string{"-c", `ulimit -n 256; exec "$0" "$@"`, filepath.Join(bin, "filter-dnsbl"), "-v", "-resolver", srv.Addr.String()}, args...)
	c := exec.Command("/bin/sh", command...)
	in, err := c.StdinPipe()
	check(err)
	out, err := c.StdoutPipe()
	check(err)
	log, err := c.StderrPipe()
	check(err)
	check(c.Start())
	f := &dnsblFilter{cmd: c, in: bufio.NewWriter(in), out: bufio.NewReader(out), end: in.Close}
	lines := bufio.NewReader(log)
	for good := 0; good < strings.Count(strings.Join(args, " "), ".example"); {
		line, err := lines.ReadString('\n')
		check(err)
		if strings.Contains(line, "health=good") {
			good++
		}
	}
	go func() { // it must not block
		for {
			if _, err := lines.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	fmt.Fprintln(f.in, "config|ready")
	check(f.in.Flush())
	for line := ""; line != "register|ready\n"; {
		line, err = f.out.ReadString('\n')
		check(err)
	}
	return f
}

// connect connects clients at once, and returns how long each waits.
func (f *dnsblFilter) connect(addrs []netip.Addr) []time.Duration {
	start := time.Now()
	go func() {
		for i, a := range addrs {
			fmt.Fprintf(f.in, "report|0.7|1795322216.000000|smtp-in|link-connect|%016x|<unknown>|fail|%s:4711|192.0.2.25:25\n", i, a)
			fmt.Fprintf(f.in, "filter|0.7|1795322216.000000|smtp-in|connect|%016x|a9b73e08bf78d91d|<unknown>|%s\n", i, a)
		}
		f.in.Flush()
	}()
	var d []time.Duration
	for range addrs {
		line, err := f.out.ReadString('\n')
		check(err)
		d = append(d, time.Since(start))
		if !strings.HasSuffix(line, "|proceed\n") {
			f.hits++
		}
	}
	return d
}

func (f *dnsblFilter) stop() {
	check(f.end())
	if err := f.cmd.Wait(); err != nil {
		fmt.Fprintln(os.Stderr, "filter-dnsbl:", err)
	}
}
