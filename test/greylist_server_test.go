//go:build linux

package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"opensmtpd-filters/test/redistest"
)

// A mailHost is a filter-greylist under what it takes for smtpd, which has any
// number of sessions at a time.
type mailHost struct {
	t       *testing.T
	cmd     *exec.Cmd
	args    []string
	log     safeBuffer
	slowest atomic.Int64

	writing sync.Mutex
	in      io.WriteCloser

	mu      sync.Mutex // not held while something is written
	next    int
	waiting map[string]chan string
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func startMailHost(t *testing.T, args ...string) *mailHost {
	t.Helper()
	args = append(args[:len(args):len(args)], "-trusted", "none", "-spf", "off", "-commonList", "")
	h := &mailHost{t: t, args: args, waiting: make(map[string]chan string)}
	h.cmd = exec.Command(filepath.Join(os.Getenv(binEnv), "filter-greylist"), args...)
	h.cmd.Stderr = &h.log
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	ready := make(chan bool)
	go func() {
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if sc.Text() == "register|ready" {
				close(ready)
			}
			f := strings.SplitN(sc.Text(), "|", 4)
			if f[0] != "filter-result" {
				continue
			}
			h.mu.Lock()
			answer := h.waiting[f[1]]
			delete(h.waiting, f[1])
			h.mu.Unlock()
			if answer == nil {
				t.Errorf("an answer that nobody waits for: %s", sc.Text())
				continue
			}
			answer <- f[3]
		}
	}()
	fmt.Fprint(h.in, "config|smtpd-version|7.8.0-portable\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n")
	<-ready
	return h
}

// ask has a client send mail, so long after the start of the clock of all hosts,
// and returns the filter's answer to DATA.
func (h *mailHost) ask(client, rcpt int, at time.Duration) string {
	answer := make(chan string, 1)
	now := clockBegin.Add(at)
	stamp := fmt.Sprintf("%d.%06d", now.Unix(), now.Nanosecond()/1000)
	var b bytes.Buffer
	h.mu.Lock()
	h.next++
	n := h.next
	id := fmt.Sprintf("%016x", n)
	h.waiting[id] = answer
	h.mu.Unlock()
	for _, line := range []string{
		fmt.Sprintf("link-connect|%s|dsl-10-%d-%d-1.dyn.example.net|pass|10.%[2]d.%[3]d.1:4711|192.0.2.25:25", id, client>>8, client&255),
		fmt.Sprintf("tx-begin|%s|%08x", id, n),
		fmt.Sprintf("tx-mail|%s|%08x|ok|a@sender.example", id, n),
		fmt.Sprintf("tx-rcpt|%s|%08x|ok|bob.%s@rcpt.example", id, n, letters(uint32(rcpt))),
	} {
		fmt.Fprintf(&b, "report|0.7|%s|smtp-in|%s\n", stamp, line)
	}
	fmt.Fprintf(&b, "filter|0.7|%s|smtp-in|data|%s|a9b73e08bf78d91d|\n", stamp, id)
	began := time.Now()
	if err := h.write(b.String()); err != nil {
		h.t.Error(err)
		return err.Error()
	}
	var text string
	select {
	case text = <-answer:
	case <-time.After(time.Minute):
		h.t.Errorf("no answer within a minute; the log: %.2000s", h.log.String())
	}
	took := int64(time.Since(began))
	for old := h.slowest.Load(); took > old && !h.slowest.CompareAndSwap(old, took); old = h.slowest.Load() {
	}
	h.write(fmt.Sprintf("report|0.7|%s|smtp-in|link-disconnect|%s\n", stamp, id))
	return text
}

func (h *mailHost) write(text string) error {
	h.writing.Lock()
	defer h.writing.Unlock()
	_, err := io.WriteString(h.in, text)
	return err
}

// clockBegin is near the present: nothing is done by a time ahead of the clock.
var clockBegin = time.Now().Add(-24 * time.Hour).Truncate(time.Second)

func (h *mailHost) refuses(client, rcpt int, at time.Duration) {
	h.t.Helper()
	if a := h.ask(client, rcpt, at); !strings.HasPrefix(a, "reject|451 ") {
		h.t.Errorf("client %d to %d at %s: %s, want 451", client, rcpt, at, a)
	}
}

func (h *mailHost) accepts(client, rcpt int, at time.Duration) {
	h.t.Helper()
	if a := h.ask(client, rcpt, at); a != "proceed" {
		h.t.Errorf("client %d to %d at %s: %s, want proceed", client, rcpt, at, a)
	}
}

// learns is accepts for what another host has made: on a machine that has no time
// for it this one decides alone for a while.
func (h *mailHost) learns(client, rcpt int, at time.Duration) {
	h.t.Helper()
	a := ""
	for range 100 {
		if a = h.ask(client, rcpt, at); a == "proceed" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	h.t.Errorf("client %d to %d at %s: %s, want proceed", client, rcpt, at, a)
}

// end ends the input, and wants the filter to end well.
func (h *mailHost) end() {
	h.t.Helper()
	h.in.Close()
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("%v; the log: %.2000s", err, h.log.String())
	}
}

// command runs a command of the operator, with the flags of the host.
func (h *mailHost) command(words ...string) string {
	h.t.Helper()
	out, err := exec.Command(filepath.Join(os.Getenv(binEnv), "filter-greylist"), append(h.args[:len(h.args):len(h.args)], words...)...).CombinedOutput()
	if err != nil {
		h.t.Errorf("%v: %v\n%s", words, err, out)
	}
	return string(out)
}

// records returns how many records list shows.
func (h *mailHost) records() int { return strings.Count(h.command("export"), "\n") }

func keyFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte(strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// An attempt at one host, its retry at another. The operator's commands see the
// records of both, and they go to a database and back.
func TestServerTwoHosts(t *testing.T) {
	noteSources(t)
	for _, kind := range redistest.Kinds() {
		server := redistest.Start(t, kind)
		flags := []string{"-store", "redis+unix://" + server.Socket, "-keyFile", keyFile(t), "-storeAddresses"}
		a, b := startMailHost(t, flags...), startMailHost(t, flags...)
		a.refuses(1, 1, 0)
		b.refuses(1, 1, 59*time.Second)
		b.learns(1, 1, 60*time.Second)
		a.learns(1, 2, 61*time.Second)
		b.refuses(2, 1, 61*time.Second)
		if out := a.command("list", "grey"); !strings.Contains(out, "net:10.0.2.0/24") {
			t.Errorf("list: %s", out)
		}
		if out := a.command("explain", "10.0.2.1", "a@sender.example", "bob.ub@rcpt.example"); !strings.Contains(out, "record     attempt grey") {
			t.Errorf("explain: %s", out)
		}
		a.command("allow", "10.0.3.1")
		b.learns(3, 1, 62*time.Second)
		a.command("delete", "10.0.1.1")
		b.refuses(1, 3, 63*time.Second)
		// To a database, and to another place on the server.
		export := filepath.Join(t.TempDir(), "export")
		text := a.command("export")
		if err := os.WriteFile(export, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		file := startMailHost(t, "-store", "sqlite:"+filepath.Join(t.TempDir(), "greylist.db"), "-keyFile", flags[3])
		file.refuses(9, 9, 0)
		file.command("import", export)
		file.learns(3, 5, 64*time.Second)
		file.learns(2, 1, 125*time.Second)
		if err := os.WriteFile(export, []byte(file.command("export")), 0o600); err != nil {
			t.Fatal(err)
		}
		c := startMailHost(t, "-store", "redis+unix://"+server.Socket+"?prefix=other", "-keyFile", flags[3])
		c.command("import", export)
		c.learns(2, 7, 126*time.Second)
		c.learns(3, 7, 126*time.Second)
		for _, h := range []*mailHost{a, b, c, file} {
			h.end()
		}
		if out := a.command("stats"); !strings.Contains(out, "decisions: 7") {
			t.Errorf("stats: %s", out)
		}
	}
}

// 10,000 attempts of 1,000 messages at four hosts at once make the records that
// they make at one, and none is let in before its time.
func TestServerFourHosts(t *testing.T) {
	noteSources(t)
	const messages, attempts = 1000, 9 // and one later
	const want = 2*messages + 1        // an attempt and a client for each, and a domain of ours
	server := redistest.Start(t, redistest.Redis)
	key := keyFile(t)
	run := func(hosts int, prefix string) (records int) {
		var all []*mailHost
		for range hosts {
			all = append(all, startMailHost(t, "-store", "redis+unix://"+server.Socket+"?prefix="+prefix, "-keyFile", key, "-maxPerClient", "100"))
		}
		each := func(n int, do func(i int)) {
			var next atomic.Int64
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
						do(i)
					}
				})
			}
			wg.Wait()
		}
		each(messages*attempts, func(i int) { // of each message all at about the same time
			all[i%hosts].refuses(i/attempts, i/attempts, time.Duration(i%attempts)*5*time.Second)
		})
		eventually(t, "all is handed in", func() bool { records = all[0].records(); return records >= want })
		each(messages, func(i int) { all[(i+1)%hosts].learns(i, i, 101*time.Second) })
		each(messages, func(i int) { all[(i+2)%hosts].learns(i, i+messages, 102*time.Second) })
		for _, h := range all {
			h.end()
		}
		return records
	}
	one, four := run(1, "one"), run(4, "four")
	if one != want || four != want {
		t.Errorf("%d records at one host, %d at four, want %d", one, four, want)
	}
}

// sessions has a host judge n newcomers and n mails of a known client at once, and
// in the middle of it something happens to the server.
func (h *mailHost) sessions(n int, happens func()) {
	var wg sync.WaitGroup
	gate := make(chan bool, 2*n)
	for i := range n {
		wg.Go(func() { h.refuses(1000+i, 1, 2*time.Minute); gate <- true })
		wg.Go(func() { h.accepts(1, i, 2*time.Minute); gate <- true })
	}
	for range n / 2 {
		<-gate
	}
	happens()
	wg.Wait()
}

// Whatever happens to the server in the middle of 1,000 sessions: every one is
// answered, newcomers wait, and who is known does not. Afterwards the server has
// what was decided meanwhile. How long the slowest answer took is in the log of -v.
func TestServerFaults(t *testing.T) {
	noteSources(t)
	for _, tt := range []struct {
		name          string
		via           bool
		happens, ends func(*redistest.Server, *redistest.Proxy)
	}{
		{"nothing", false, func(*redistest.Server, *redistest.Proxy) {}, func(*redistest.Server, *redistest.Proxy) {}},
		{"killed", false, func(s *redistest.Server, _ *redistest.Proxy) { s.Kill() }, func(s *redistest.Server, _ *redistest.Proxy) { s.Start() }},
		{"stopped", false, func(s *redistest.Server, _ *redistest.Proxy) { s.Stop() }, func(s *redistest.Server, _ *redistest.Proxy) { s.Continue() }},
		{"restarted empty", false, func(s *redistest.Server, _ *redistest.Proxy) { s.Kill(); s.Start() }, func(*redistest.Server, *redistest.Proxy) {}},
		{"read-only", false, func(s *redistest.Server, _ *redistest.Proxy) { s.Do("REPLICAOF", "127.0.0.1", "1") },
			func(s *redistest.Server, _ *redistest.Proxy) { s.Do("REPLICAOF", "NO", "ONE") }},
		{"full", false, func(s *redistest.Server, _ *redistest.Proxy) { s.Do("CONFIG", "SET", "maxmemory", "1") },
			func(s *redistest.Server, _ *redistest.Proxy) { s.Do("CONFIG", "SET", "maxmemory", "0") }},
		{"cut in the middle of an answer", true, func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(2) },
			func(_ *redistest.Server, p *redistest.Proxy) { p.Cut(0) }},
		{"another password", false, func(s *redistest.Server, _ *redistest.Proxy) {
			s.Do("CONFIG", "SET", "requirepass", "other")
			s.DoAs("other", "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
		}, func(s *redistest.Server, _ *redistest.Proxy) { s.DoAs("other", "CONFIG", "SET", "requirepass", "") }},
		{"slow", true, func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(200 * time.Millisecond) },
			func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := redistest.Start(t, redistest.Redis)
			proxy := redistest.NewProxy(t, server.Addr())
			addr := server.Addr()
			if tt.via {
				addr = proxy.Addr
			}
			key := keyFile(t)
			h := startMailHost(t, "-store", "redis://"+addr, "-keyFile", key)
			eventually(t, "the server is met", func() bool { return server.Do("EXISTS", "gl:born") == "1" })
			h.refuses(1, 1, 0)
			h.accepts(1, 1, time.Minute)
			h.slowest.Store(0)
			h.sessions(500, func() { tt.happens(server, proxy) })
			t.Logf("the slowest of 1000 answers took %s", time.Duration(h.slowest.Load()).Round(time.Millisecond))
			tt.ends(server, proxy)
			if strings.Contains(h.log.String(), "decides alone") {
				eventually(t, "the server is back", func() bool { return strings.Contains(h.log.String(), "greylist server is back") })
			}
			h.accepts(1, 1000, 3*time.Minute)
			other := startMailHost(t, "-store", "redis://"+server.Addr(), "-keyFile", key)
			eventually(t, "all is handed in", func() bool { return other.records() >= 2*500 })
			lost := 0
			for i := range 500 {
				if a := other.ask(1000+i, 1, 4*time.Minute); a != "proceed" {
					lost++
				}
			}
			t.Logf("another host does not know %d of 500 newcomers", lost)
			other.learns(1, 9, 5*time.Minute)
			h.end()
			other.end()
		})
	}
}

// Another server takes over from a master that is killed, and shards move from one
// master of a cluster to another, while mail comes.
func TestServerMoves(t *testing.T) {
	noteSources(t)
	under := func(t *testing.T, store string, happens func()) {
		h := startMailHost(t, "-store", store, "-keyFile", keyFile(t))
		h.refuses(1, 1, 0)
		h.accepts(1, 1, time.Minute)
		h.slowest.Store(0)
		var stop atomic.Bool
		var wg sync.WaitGroup
		var n atomic.Int64
		for range 16 {
			wg.Go(func() {
				for !stop.Load() {
					i := int(n.Add(1))
					h.refuses(2+i%60_000, 1, 2*time.Minute)
					h.accepts(1, i, 2*time.Minute)
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		happens()
		stop.Store(true)
		wg.Wait()
		t.Logf("the slowest of %d answers took %s; the log: %s", 2*n.Load(), time.Duration(h.slowest.Load()).Round(time.Millisecond), grep(h.log.String(), "greylist server"))
		h.end()
	}
	t.Run("Sentinel", func(t *testing.T) {
		master, replica, sentinels := redistest.StartSentinel(t, redistest.Redis)
		under(t, "redis+sentinel://"+sentinels[0].Addr()+","+sentinels[1].Addr()+"?master=mail", func() {
			time.Sleep(time.Second)
			master.Kill()
			eventually(t, "another server takes over", func() bool { return strings.Contains(replica.Do("INFO", "replication"), "role:master") })
			before, _ := strconv.Atoi(replica.Do("DBSIZE"))
			eventually(t, "it is written to", func() bool { n, _ := strconv.Atoi(replica.Do("DBSIZE")); return n > before+100 })
		})
	})
	t.Run("Cluster", func(t *testing.T) {
		servers := redistest.StartCluster(t, redistest.Redis)
		under(t, "redis+cluster://"+servers[0].Addr()+","+servers[1].Addr(), func() {
			time.Sleep(time.Second)
			redistest.Reshard(t, servers[0], servers[1], 2000)
			redistest.Reshard(t, servers[1], servers[2], 1000)
		})
	})
}

// grep returns the lines that have a word.
func grep(text, word string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found += line
		}
	}
	return found
}
