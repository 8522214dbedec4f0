package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
)

// A client that gives names without end, and needs the answer to none, has the
// lists asked about one; what is decided by is always asked about.
func TestNamesWithoutEnd(t *testing.T) {
	srv := filtertest.NewDNS(t, "2.0.0.127.ip.example A 127.0.0.2\ntest.d.example A 127.0.0.2\nbad.example.d.example A 127.0.0.2\n")
	p := filtertest.Program{Cmd: []string{"filter-dnsbl", "-timeout", "10s", "-resolver", srv.Addr.String(),
		"-blockAt", "1", "-blockPhase", "data", "d.example+helo+from"}}.Start(t)
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
