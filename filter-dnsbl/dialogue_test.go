package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
)

func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){"filter-dnsbl": main})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

// The recorded sessions, without and with data lines. Nothing answers queries
// there, which must not matter.
func TestTraces(t *testing.T) {
	filtertest.ReplayTraces(t, "filter-dnsbl", "-resolver", "127.0.0.1:1", "-timeout", "200ms", "-phase", "connect", "-blockAt", "5", "bl.example*5", "w.example*-5")
	filtertest.ReplayTraces(t, "filter-dnsbl", "-resolver", "127.0.0.1:1", "-timeout", "200ms", "-junkAt", "3",
		"-header", "-phase", "mail-from", "bl.example", "d.example+helo+from+rdns")
}

func TestHostile(t *testing.T) {
	filtertest.Hostile(t, "filter-dnsbl", "-resolver", "127.0.0.1:1", "-timeout", "200ms", "-blockAt", "5",
		"-header", "-phase", "rcpt-to", "bl.example*5", "d.example*5+helo+from+rdns")
}

// A thousand clients at once, half of them with the same address, and lists
// that take their time: one query for each list and address, and all decided.
// The queries are under way side by side; one after the other they would take
// minutes.
func TestBurst(t *testing.T) {
	const clients, delay = 1000, 100 * time.Millisecond
	script := ""
	for i := range 3 {
		script += fmt.Sprintf("*.l%d.example delay %v\n", i, delay)
		script += fmt.Sprintf("*.113.0.203.l%d.example A 127.0.0.2\n", i)
		script += fmt.Sprintf("2.0.0.127.l%d.example A 127.0.0.2\n", i)
	}
	srv := filtertest.NewDNS(t, script)
	p := filtertest.Program{Cmd: []string{"/bin/sh", "-c",
		"ulimit -n 256; exec filter-dnsbl -phase connect -v -timeout 60s -resolver " + srv.Addr.String() + " -junkAt 3 l0.example l1.example l2.example"}}.Start(t)
	for deadline := time.Now().Add(30 * time.Second); strings.Count(strings.Join(p.Log(), "\n"), "health=good") < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("lists are not tested:\n%q", p.Log())
		}
		time.Sleep(10 * time.Millisecond)
	}
	srv.Reset()
	start := time.Now()
	session := func(i int) string { return fmt.Sprintf("%016x", i+1) }
	distinct := map[string]bool{}
	for i := range clients {
		addr := fmt.Sprintf("203.0.113.%d", i%250)
		if i%2 == 1 {
			addr = "203.0.113.7"
		}
		distinct[addr] = true
		p.Send(fmt.Sprintf("report|0.7|1576146008.006099|smtp-in|link-connect|%s|<unknown>|fail|%s:4711|192.0.2.25:25", session(i), addr))
		p.Send(fmt.Sprintf("filter|0.7|1576146008.006099|smtp-in|connect|%s|7641df9771b4ed00|<unknown>|%s", session(i), addr))
	}
	for i := range clients {
		p.Expect(session(i), "connect", "junk")
	}
	t.Logf("%d clients decided after %v", clients, time.Since(start).Round(time.Millisecond))
	if got, want := srv.Total(), 3*len(distinct); got != want {
		t.Errorf("%d queries for %d addresses and 3 lists, want %d", got, len(distinct), want)
	}
	if took := time.Since(start); took > clients*delay/10 {
		t.Errorf("took %v", took)
	}
}

// An answer that comes too late for one session is there for the next.
func TestLate(t *testing.T) {
	srv := filtertest.NewDNS(t, "2.0.0.127.a.example A 127.0.0.2\n7.113.0.203.a.example A 127.0.0.2\n7.113.0.203.a.example delay 700ms\n")
	p := filtertest.Start(t, "filter-dnsbl", "-phase", "connect", "-timeout", "100ms", "-resolver", srv.Addr.String(), "-junkAt", "1", "a.example")
	for i := 1; ; i++ {
		session := fmt.Sprintf("%016x", i)
		p.Send(fmt.Sprintf("report|0.7|1576146008.006099|smtp-in|link-connect|%s|<unknown>|fail|203.0.113.7:4711|192.0.2.25:25", session))
		p.Send(fmt.Sprintf("filter|0.7|1576146008.006099|smtp-in|connect|%s|7641df9771b4ed00|<unknown>|203.0.113.7", session))
		if i == 1 {
			p.Expect(session, "connect", "proceed")
			for deadline := time.Now().Add(30 * time.Second); srv.Count("7.113.0.203.a.example", "A") == 0 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(2 * time.Second) // the answer is there 700 ms after the query
			continue
		}
		p.Expect(session, "connect", "junk")
		return
	}
}
