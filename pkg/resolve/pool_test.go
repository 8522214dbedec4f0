package resolve

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The system reports a closed port once, to a read or to the next write:
// all queries of the socket must hear of it.
func TestClosedPortFailsAll(t *testing.T) {
	// Not a port that the system gives out: one of our own sockets would get it
	// now and then, and talk to itself.
	p := &pool{addr: netip.MustParseAddrPort("127.0.0.1:1"), trouble: func(error) {}}
	p.share(4)
	defer p.close()
	q := mustQuery(t, "example.org", dns.TypeA)
	for range 200 {
		const n = 5
		replies := make(chan error, n)
		sent := 0
		for range n {
			if _, err := p.send(q, true, func(_ *answer, err error) { replies <- err }); err == nil {
				sent++
			}
		}
		for range sent {
			select {
			case err := <-replies:
				if err == nil {
					t.Fatal("an answer from a closed port")
				}
			case <-time.After(20 * time.Second):
				t.Fatal("a query was not told")
			}
		}
	}
}

// A socket is closed after its hundredth query has ended, not before.
func TestSocketsAreReplaced(t *testing.T) {
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &pool{addr: l.LocalAddr().(*net.UDPAddr).AddrPort(), trouble: func(error) {}}
	p.share(3)
	q := mustQuery(t, "example.org", dns.TypeA)
	open := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.open)
	}
	ignore := func(*answer, error) {}
	var stops []func()
	send := func(n int) {
		t.Helper()
		for range n {
			stop, err := p.send(q, true, ignore)
			if err != nil {
				t.Fatal(err)
			}
			stops = append(stops, stop)
		}
	}
	for i, want := range []int{1, 2, 3, 3, 3} {
		send(maxQueries)
		if n := open(); n != want {
			t.Errorf("after %d queries: %d sockets, want %d", (i+1)*maxQueries, n, want)
		}
	}
	for _, stop := range stops {
		stop()
	}
	if n := open(); n != 0 {
		t.Errorf("%d sockets are left", n)
	}
	send(1)
	if n := open(); n != 1 {
		t.Errorf("%d sockets for one query", n)
	}
	p.close()
	if _, err := p.send(q, true, ignore); err == nil {
		t.Error("sent after close")
	}
}
