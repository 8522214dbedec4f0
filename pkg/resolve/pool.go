package resolve

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/metrics"
)

const (
	maxSockets = 64  // UDP, of all servers
	maxQueries = 100 // over one socket, then it is replaced by one with another port
	socketIdle = 10 * time.Second
)

// A pool has the sockets for one server. Queries share the newest; an older
// one stays until its last query has ended. A socket that nobody used for a
// while is closed: a filter without work has none.
type pool struct {
	addr    netip.AddrPort
	ignored *metrics.Counter
	trouble func(error) // told of the errors of sockets
	readers sync.WaitGroup

	mu     sync.Mutex
	max    int
	open   []*socket // the newest last
	closed bool
}

// A socket is connected, so only packets of its server arrive. The fields are
// guarded by pool.mu.
type socket struct {
	conn    *net.UDPConn
	raw     syscall.RawConn
	err     error // why it was closed
	used    int   // queries so far
	pending map[uint16]*pending
}

// A pending query waits for its reply.
type pending struct {
	q  *query
	to receiver
}

func (p *pool) share(sockets int) {
	p.mu.Lock()
	p.max = max(sockets, 1)
	p.mu.Unlock()
}

func (p *pool) send(q *query, edns bool, to receiver) (func(), error) {
	s, id, w, err := p.register(q, to)
	if err != nil {
		p.trouble(err)
	}
	if s == nil {
		return nil, err
	}
	if err := s.write(q.packet(id, edns)); err != nil {
		p.trouble(err)
		waits := p.forget(s, id, w)
		p.mu.Lock()
		p.drop(s, err) // the error may be about an earlier packet
		p.mu.Unlock()
		if waits {
			return nil, err
		}
		// The reader was faster and tells it.
	}
	return func() { p.forget(s, id, w) }, nil
}

// write sends a packet at once or not at all: that there is no room for it now
// is no error, packets get lost.
func (s *socket) write(b []byte) error {
	var err error
	closed := s.raw.Write(func(fd uintptr) bool {
		_, err = syscall.Write(int(fd), b)
		return true
	})
	if err == syscall.EAGAIN || err == syscall.ENOBUFS {
		err = nil
	}
	return cmp.Or(closed, err)
}

// register gives the query a socket and an id. There may be an error beside
// a socket.
func (p *pool) register(q *query, to receiver) (*socket, uint16, *pending, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.pick()
	if s == nil {
		return nil, 0, nil, err
	}
	// The top-level generator of math/rand/v2 is ChaCha8 seeded by the system.
	id := uint16(rand.Uint32())
	for s.pending[id] != nil { // pick leaves half of them free
		id = uint16(rand.Uint32())
	}
	w := &pending{q, to}
	s.pending[id] = w
	s.used++
	return s, id, w, err
}

// pick returns the socket for the next query, and why it is not a new one if
// it should be.
func (p *pool) pick() (*socket, error) {
	if p.closed {
		return nil, net.ErrClosed
	}
	n := len(p.open)
	if n > 0 && p.open[n-1].used < maxQueries {
		return p.open[n-1], nil
	}
	var err error
	if n < p.max {
		var s *socket
		if s, err = dial(p.addr); err == nil {
			p.open = append(p.open, s)
			p.readers.Go(func() {
				if err := guard.Call(func() error { p.read(s); return nil }); err != nil {
					p.trouble(err)
					guard.Call(func() error { p.fail(s, err); return nil })
				}
			})
			return s, nil
		}
	}
	// No new socket to be had: an old one serves on.
	if n > 0 {
		if s := p.open[rand.IntN(n)]; len(s.pending) < 1<<15 {
			return s, err
		}
		err = errors.New("sockets busy")
	}
	return nil, err
}

func dial(addr netip.AddrPort) (*socket, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetReadBuffer(1 << 20) // bursts; the system gives what it allows
	return &socket{conn: conn, raw: raw, pending: make(map[uint16]*pending)}, nil
}

// forget ends the wait for a reply, and reports whether there was one.
func (p *pool) forget(s *socket, id uint16, w *pending) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.pending[id] != w {
		return false
	}
	delete(s.pending, id)
	if len(s.pending) == 0 && s.used >= maxQueries {
		p.drop(s, net.ErrClosed)
	}
	return true
}

// drop closes a socket; its reader ends, and tells those who wait.
func (p *pool) drop(s *socket, err error) {
	if i := slices.Index(p.open, s); i >= 0 {
		p.open = slices.Delete(p.open, i, i+1)
	}
	if s.err == nil {
		s.err = err
	}
	s.conn.Close()
}

// read hands replies to those who wait for them, until the socket is closed.
func (p *pool) read(s *socket) {
	buf := make([]byte, ednsSize+1) // one more: a longer packet is seen as such
	used := -1
	s.conn.SetReadDeadline(time.Now().Add(socketIdle))
	for {
		n, err := s.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.mu.Lock()
			idle := s.used == used && len(s.pending) == 0
			used = s.used
			if idle {
				p.drop(s, net.ErrClosed)
			}
			p.mu.Unlock()
			if idle {
				return
			}
			s.conn.SetReadDeadline(time.Now().Add(socketIdle))
			continue
		}
		if err != nil { // closed, or an ICMP message: port or host unreachable
			if !errors.Is(err, net.ErrClosed) {
				p.trouble(err)
			}
			p.fail(s, err)
			return
		}
		if n > ednsSize || !p.deliver(s, buf[:n]) {
			p.ignored.Inc()
		}
	}
}

func (p *pool) deliver(s *socket, b []byte) bool {
	if len(b) < headerSize {
		return false
	}
	id := binary.BigEndian.Uint16(b)
	p.mu.Lock()
	w := s.pending[id]
	p.mu.Unlock()
	if w == nil {
		return false
	}
	ans, err := decodeSafely(b, w.q, id)
	if err == errForeign {
		return false
	}
	if p.forget(s, id, w) {
		w.to(ans, err)
	}
	return true
}

// fail drops a socket and tells those who wait on it.
func (p *pool) fail(s *socket, err error) {
	p.mu.Lock()
	p.drop(s, err)
	err = s.err
	waiting := s.pending
	s.pending = nil
	p.mu.Unlock()
	for _, w := range waiting {
		w.to(nil, err)
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for len(p.open) > 0 {
		p.drop(p.open[0], net.ErrClosed)
	}
	p.mu.Unlock()
	p.readers.Wait()
}

func (p *pool) stream(ctx context.Context, q *query, edns bool) (*answer, error) {
	id := uint16(rand.Uint32())
	b, err := p.tcp(ctx, q.packet(id, edns))
	if err != nil {
		if ctx.Err() == nil {
			p.trouble(err)
		}
		return nil, err
	}
	ans, err := decodeSafely(b, q, id)
	if err == errTruncated {
		err = rcodeError("truncated answer over TCP")
	}
	return ans, err
}

// tcp sends one packet and reads one.
func (p *pool) tcp(ctx context.Context, b []byte) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	if _, err := conn.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	b = make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err = io.ReadFull(conn, b)
	return b, err
}
