package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
)

// A client that gives names without end, and needs the answer to none, has the
// lists asked about one; what is decided by is always asked about.
func TestNamesWithoutEnd(t *testing.T) {
	srv := filtertest.NewDNS(t, "2.0.0.127.ip.example A 127.0.0.2\ntest.d.example A 127.0.0.2\nbad.example.d.example A 127.0.0.2\n")
	p := filtertest.Program{Cmd: []string{"filter-dnsbl", "-timeout", "10s", "-resolver", srv.Addr.String(),
		"-blockAt", "1", "-phase", "data", "d.example+helo+from"}}.Start(t)
	for deadline := time.Now().Add(30 * time.Second); srv.Count("test.d.example", "A") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the list is not tested")
		}
	}
	const id = "0000000000000001"
	report := func(event, fields string) {
		p.Send(fmt.Sprintf("report|0.7|1576146008.006099|smtp-in|%s|%s|%s", event, id, fields))
	}
	report("link-connect", "mx.example.net|pass|203.0.113.7:4711|192.0.2.25:25")
	for i := range 200 {
		report("link-identify", fmt.Sprintf("EHLO|h%d.helo.example", i))
		report("tx-begin", fmt.Sprintf("%08x", i))
		report("tx-mail", fmt.Sprintf("%08x|ok|a@u%d.from.example", i, i))
		report("tx-rollback", fmt.Sprintf("%08x", i))
		report("tx-reset", fmt.Sprintf("%08x", i))
	}
	decide := func(sender, answer string) {
		t.Helper()
		report("tx-begin", "0000ffff")
		report("tx-mail", "0000ffff|ok|"+sender)
		p.Send("filter|0.7|1576146008.006099|smtp-in|data|" + id + "|7641df9771b4ed00|")
		p.Expect(id, "data", answer)
		report("tx-reset", "0000ffff")
	}
	decide("a@good.from.example", "proceed")
	asked := 0
	for _, q := range srv.Queries() {
		if name := strings.ToLower(q.Name); strings.Contains(name, ".helo.example.") || strings.Contains(name, ".from.example.") {
			asked++
		}
	}
	if asked > 8 {
		t.Errorf("%d queries", asked)
	}
	if srv.Count("good.from.example.d.example", "A") == 0 || srv.Count("h199.helo.example.d.example", "A") == 0 {
		t.Errorf("not asked about what is decided by: %v", srv.Queries())
	}
}

// A file of lists is read again, on SIGHUP at once; a list that is new has been
// tested before it counts.
func TestListsReadAgain(t *testing.T) {
	srv := filtertest.NewDNS(t, "2.0.0.127.a.example A 127.0.0.2\n*.113.0.203.a.example A 127.0.0.2\n"+
		"2.0.0.127.b.example A 127.0.0.2\n*.100.51.198.b.example A 127.0.0.2\n*.world.example A 127.0.0.2\n")
	file := filepath.Join(t.TempDir(), "lists")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.example*5 # first\n")
	p := filtertest.Program{Cmd: []string{"filter-dnsbl", "-timeout", "10s", "-resolver", srv.Addr.String(), "-phase", "connect", "-blockAt", "5", "@" + file}}.Start(t)
	n := 0
	answer := func(addr, want string) {
		t.Helper()
		n++
		id := fmt.Sprintf("%016x", n)
		p.Send(fmt.Sprintf("report|0.7|1576146008.006099|smtp-in|link-connect|%s|<unknown>|fail|%s:4711|192.0.2.25:25", id, addr))
		p.Send(fmt.Sprintf("filter|0.7|1576146008.006099|smtp-in|connect|%s|7641df9771b4ed00|<unknown>|%s", id, addr))
		p.Expect(id, "connect", want)
	}
	refused := func(addr string) string {
		return "disconnect|550 5.7.1 Service unavailable; client [" + addr + "] blocked using "
	}
	answer("203.0.113.1", refused("203.0.113.1")+"a.example")
	answer("198.51.100.1", "proceed")
	again := func(n int) {
		t.Helper()
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			answer("192.0.2.1", "proceed")
			if strings.Count(strings.Join(p.Log(), "\n"), "lists read again") >= n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not read again: %q", p.Log())
			}
		}
	}
	write("b.example*5\nworld.example*9\n")
	again(1)
	answer("198.51.100.2", refused("198.51.100.2")+"b.example")
	answer("203.0.113.2", "proceed")
	write("b.example*5\na.example*5\nnot a list at all*\n")
	again(2)
	answer("203.0.113.3", refused("203.0.113.3")+"a.example")
}
