//go:build linux

package peek

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t testing.TB) *Looker {
	t.Helper()
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// pair is a connection as both sides have it. Nobody reads from server.
type pair struct{ client, server *net.TCPConn }

// connect makes a connection from an address, whose port may be 0, to a listener
// under one of its addresses.
func connect(t testing.TB, l net.Listener, from, to netip.AddrPort) pair {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}))
	}}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return pair{c.(*net.TCPConn), s.(*net.TCPConn)}
}

func listen(t testing.TB, addr string) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func (p pair) from() netip.AddrPort { return p.client.LocalAddr().(*net.TCPAddr).AddrPort() }
func (p pair) to() netip.AddrPort   { return p.server.LocalAddr().(*net.TCPAddr).AddrPort() }

func (p pair) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p.client, text); err != nil {
		t.Fatal(err)
	}
}

// expect looks until it sees what it should: loopback takes its time too.
func expect(t *testing.T, l *Looker, c *Conn, want Seen) {
	t.Helper()
	var got Seen
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got, err = l.Look(c); err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
	}
	t.Fatalf("seen %v, want %v", got, want)
}

// look looks once.
func look(t *testing.T, l *Looker, c *Conn, want Seen) {
	t.Helper()
	if got, err := l.Look(c); got != want || err != nil {
		t.Fatalf("seen %v, %v, want %v", got, err, want)
	}
}

func each(t *testing.T, test func(t *testing.T, addr string)) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) { test(t, addr) })
	}
}

func TestBytes(t *testing.T) {
	l := open(t)
	each(t, func(t *testing.T, addr string) {
		at, to := listen(t, addr)
		p := connect(t, at, netip.AddrPort{}, to)
		c := &Conn{Client: p.from(), Listener: to}
		look(t, l, c, Seen{State: Silent})
		p.send(t, "E") // without an end of line
		expect(t, l, c, Seen{Early, 1})
		p.send(t, "HLO client.example.net\r\n")
		expect(t, l, c, Seen{Early, 25})
		if b := make([]byte, 10); true { // what was read counts too
			if _, err := io.ReadFull(p.server, b); err != nil {
				t.Fatal(err)
			}
		}
		look(t, l, c, Seen{Early, 25})
		look(t, l, &Conn{Client: p.from(), Listener: to}, Seen{Early, 25})
	})
}

// The FIN takes a place in the sequence.
func TestFIN(t *testing.T) {
	l := open(t)
	each(t, func(t *testing.T, addr string) {
		at, to := listen(t, addr)
		for _, text := range []string{"", "x", "QUIT\r\n"} {
			p := connect(t, at, netip.AddrPort{}, to)
			c := &Conn{Client: p.from(), Listener: to}
			p.send(t, text)
			if err := p.client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			want := Seen{State: Gone}
			if text != "" {
				want = Seen{Early, uint64(len(text))}
			}
			expect(t, l, c, want)
			p.client.Close()
			look(t, l, c, want)
		}
	})
}

// Where a connection was, the kernel answers with the listening socket.
func TestReset(t *testing.T) {
	l := open(t)
	each(t, func(t *testing.T, addr string) {
		at, to := listen(t, addr)
		p := connect(t, at, netip.AddrPort{}, to)
		c, late := &Conn{Client: p.from(), Listener: to}, &Conn{Client: p.from(), Listener: to}
		look(t, l, c, Seen{State: Silent})
		p.client.SetLinger(0)
		p.client.Close()
		expect(t, l, c, Seen{State: Gone})
		look(t, l, late, Seen{State: Unknown}) // it was never there for this one
	})
}

// A proxied client has no socket of its own.
func TestProxied(t *testing.T) {
	l := open(t)
	each(t, func(t *testing.T, addr string) {
		at, to := listen(t, addr)
		p := connect(t, at, netip.AddrPort{}, to)
		p.send(t, "PROXY")
		for _, client := range []string{"198.51.100.7:40000", "[2001:db8::7]:40000"} {
			c := &Conn{Client: netip.MustParseAddrPort(client), Listener: to}
			if c.Client.Addr().Is4() == to.Addr().Is4() {
				look(t, l, c, Seen{State: Unknown})
			}
		}
	})
}

// A new connection from the same port is another one.
func TestPortAgain(t *testing.T) {
	l := open(t)
	each(t, func(t *testing.T, addr string) {
		at, to := listen(t, addr)
		p := connect(t, at, netip.AddrPort{}, to)
		c := &Conn{Client: p.from(), Listener: to}
		look(t, l, c, Seen{State: Silent})
		p.client.SetLinger(0)
		p.client.Close()
		expect(t, l, c, Seen{State: Gone})
		q := connect(t, at, c.Client, to)
		q.send(t, "EHLO x\r\n")
		expect(t, l, &Conn{Client: c.Client, Listener: to}, Seen{Early, 8})
		look(t, l, c, Seen{State: Gone})
	})
}

// A listener for all addresses, IPv4 and IPv6 ones, or both at once.
func TestWildcard(t *testing.T) {
	l := open(t)
	for _, tt := range []struct{ listener, told, from, called string }{
		{"0.0.0.0:0", "0.0.0.0", "127.0.0.1:0", "127.0.0.1"},
		{"0.0.0.0:0", "0.0.0.0", "127.0.0.3:0", "127.0.0.1"},
		{"[::]:0", "::", "[::1]:0", "::1"},
		{"[::]:0", "::", "127.0.0.1:0", "127.0.0.1"}, // Go's take both
	} {
		t.Run(tt.listener+" from "+tt.from, func(t *testing.T) {
			at, to := listen(t, tt.listener)
			called := netip.AddrPortFrom(netip.MustParseAddr(tt.called), to.Port())
			listener := netip.AddrPortFrom(netip.MustParseAddr(tt.told), to.Port())
			p := connect(t, at, netip.MustParseAddrPort(tt.from), called)
			c := &Conn{Client: p.from(), Listener: listener}
			look(t, l, c, Seen{State: Silent})
			p.send(t, "x")
			expect(t, l, c, Seen{Early, 1})
			p.client.SetLinger(0)
			p.client.Close()
			expect(t, l, c, Seen{State: Gone})
		})
	}
}

// One source port to two of our addresses: which one speaks is not known, unless
// the other came later.
func TestTwoMatch(t *testing.T) {
	l := open(t)
	l.list = func() ([]netip.Addr, error) {
		var addrs []netip.Addr
		for _, a := range []string{"127.0.0.1", "127.0.0.2", "::1", "127.0.0.3"} {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs, nil
	}
	at, to := listen(t, "0.0.0.0:0")
	listener := netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())
	on := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), to.Port()) }

	first := connect(t, at, netip.MustParseAddrPort("127.0.0.9:0"), on("127.0.0.1"))
	c := &Conn{Client: first.from(), Listener: listener}
	look(t, l, c, Seen{State: Silent})
	second := connect(t, at, first.from(), on("127.0.0.3"))
	second.send(t, "EHLO x\r\n")
	expect(t, l, &Conn{Client: second.from(), Listener: second.to()}, Seen{Early, 8})

	both := &Conn{Client: second.from(), Listener: listener}
	look(t, l, both, Seen{State: Unknown})
	look(t, l, both, Seen{State: Unknown})
	look(t, l, c, Seen{State: Silent})
}

// What cannot be asked is Unknown, and an error.
func TestErrors(t *testing.T) {
	l := open(t)
	at, to := listen(t, "0.0.0.0:0")
	p := connect(t, at, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port()))
	p.send(t, "x")
	c := func() *Conn {
		return &Conn{Client: p.from(), Listener: netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())}
	}
	expect(t, l, c(), Seen{Early, 1})

	l.addrs = nil
	l.list = func() ([]netip.Addr, error) { return nil, syscall.EMFILE }
	if s, err := l.Look(c()); s.State != Unknown || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("no descriptors: %v, %v", s, err)
	}
	l.list = func() (addrs []netip.Addr, err error) {
		for i := range maxAddrs + 1 {
			addrs = append(addrs, netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}))
		}
		return addrs, nil
	}
	if s, err := l.Look(c()); s.State != Unknown || err == nil {
		t.Errorf("too many addresses: %v, %v", s, err)
	}
	l.Close()
	if s, err := l.Look(&Conn{Client: p.from(), Listener: p.to()}); s.State != Unknown || !errors.Is(err, syscall.EBADF) {
		t.Errorf("closed: %v, %v", s, err)
	}
}

// No answer makes it panic or see what is not there.
func FuzzParse(f *testing.F) {
	l := open(f)
	at, to := listen(f, "127.0.0.1:0")
	p := connect(f, at, netip.AddrPort{}, to)
	if _, err := l.Look(&Conn{Client: p.from(), Listener: to}); err != nil {
		f.Fatal(err)
	}
	f.Add(l.reply[:host.Uint32(l.reply[:])])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := parse(b)
		if s.asked = p.from(); err == nil && s.open() && len(b) < answerLen {
			t.Errorf("an open connection in %d bytes", len(b))
		}
	})
}

// As nobody, with this many sockets in the system.
func BenchmarkLook(b *testing.B) {
	if os.Geteuid() == 0 {
		if err := syscall.Setreuid(-1, 65534); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { syscall.Setreuid(-1, 0) })
	}
	l := open(b)
	at, to := listen(b, "127.0.0.1:0")
	var pairs []pair
	for _, sockets := range []int{10, 1000, 10_000} {
		all := b // they stay
		b.Run(fmt.Sprintf("sockets=%d", sockets), func(b *testing.B) {
			var limit syscall.Rlimit
			if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(sockets)+100 {
				b.Skipf("only %d descriptors: ulimit -n", limit.Cur)
			}
			for len(pairs) < sockets/2 {
				pairs = append(pairs, connect(all, at, netip.AddrPort{}, to))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				if s, err := l.Look(&Conn{Client: pairs[i%len(pairs)].from(), Listener: to}); s.State != Silent || err != nil {
					b.Fatal(s, err)
				}
			}
		})
	}
}
