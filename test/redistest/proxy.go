package redistest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A Proxy stands before a server and does with its answers what a network does.
type Proxy struct {
	Addr string

	mu    sync.Mutex
	to    string
	delay time.Duration
	cut   int // bytes of each answer, then the connection ends; 0: it does not
	conns map[net.Conn]bool
}

// NewProxy listens until the test ends, and connects its clients to an address.
func NewProxy(tb testing.TB, to string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), to: to, conns: make(map[net.Conn]bool)}
	tb.Cleanup(func() { l.Close(); p.CloseAll() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

// Delay has each answer wait.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Cut ends connections after so many bytes of an answer; 0 does not.
func (p *Proxy) Cut(n int) { p.set(func() { p.cut = n }) }

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// CloseAll ends all connections.
func (p *Proxy) CloseAll() {
	p.set(func() {
		for c := range p.conns {
			c.Close()
		}
	})
}

func (p *Proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		client.Close()
		return
	}
	p.set(func() { p.conns[client], p.conns[server] = true, true })
	end := func() {
		client.Close()
		server.Close()
		p.set(func() { delete(p.conns, client); delete(p.conns, server) })
	}
	go func() { io.Copy(server, client); end() }()
	defer end()
	b := make([]byte, 64<<10)
	for {
		n, err := server.Read(b)
		var delay time.Duration
		var cut int
		p.set(func() { delay, cut = p.delay, p.cut })
		time.Sleep(delay)
		if cut > 0 {
			client.Write(b[:min(n, cut)])
			return
		}
		if _, e := client.Write(b[:n]); e != nil || err != nil {
			return
		}
	}
}
