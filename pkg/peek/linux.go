//go:build linux

package peek

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Looker looks at connections. It is safe for concurrent use.
type Looker struct {
	mu    sync.Mutex
	fd    int
	seq   uint32
	reply [1024]byte

	list   func() ([]netip.Addr, error)
	addrs  []netip.Addr // of this host
	listed time.Time    // when they were
}

// Open returns a Looker. It is an error if the kernel does not answer: netlink
// sockets are denied, or there is no tcp_diag.
func Open() (*Looker, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	l := &Looker{fd: fd, list: hostAddrs}
	if err := l.try(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// try looks for a socket that is there. A kernel without tcp_diag has no other
// answer than for one that is not.
func (l *Looker) try() error {
	var at net.Listener
	var err error
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		if at, err = net.Listen("tcp", addr); err == nil {
			break
		}
	}
	if err != nil {
		return nil // no address of our own to try with
	}
	defer at.Close()
	addr := at.Addr().(*net.TCPAddr).AddrPort()
	s, err := l.ask(netip.AddrPortFrom(addr.Addr(), 1), addr, nil)
	if err == nil && s.state != stateListen {
		err = errors.New("the kernel does not tell of sockets: modprobe tcp_diag")
	}
	return err
}

// Close ends the Looker.
func (l *Looker) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	fd := l.fd
	l.fd = -1
	return unix.Close(fd)
}

// Look says what the client has sent so far. On an error the connection is
// Unknown.
func (l *Looker) Look(c *Conn) (Seen, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.local.IsValid() {
		s, err := l.ask(c.Client, netip.AddrPortFrom(c.local, c.Listener.Port()), &c.cookie)
		if err == nil && !s.open() {
			return Seen{State: Gone}, nil
		}
		return s.seen(), err
	}
	addrs, err := l.candidates(c.Client.Addr().Unmap(), c.Listener.Addr().WithZone("").Unmap())
	if err != nil {
		return Seen{}, err
	}
	var found socket
	var local netip.Addr
	for _, a := range addrs {
		s, err := l.ask(c.Client, netip.AddrPortFrom(a, c.Listener.Port()), nil)
		switch {
		case err != nil:
			return Seen{}, err
		case !s.open():
		case found.open():
			return Seen{}, nil // which of them?
		default:
			found, local = s, a
		}
	}
	if !found.open() {
		return Seen{}, nil
	}
	c.local, c.cookie = local, found.cookie
	return found.seen(), nil
}

// A host with more addresses than this is better served by listeners with an
// address of their own: each one is a question.
const maxAddrs = 256

// listTime is how long the addresses of the host are taken for right.
const listTime = 10 * time.Second

// candidates returns the addresses that a client may have called on a listener.
func (l *Looker) candidates(client, listener netip.Addr) ([]netip.Addr, error) {
	if !listener.IsUnspecified() {
		return []netip.Addr{listener}, nil
	}
	if now := time.Now(); l.addrs == nil || now.Sub(l.listed) > listTime {
		addrs, err := l.list()
		if err != nil {
			return nil, fmt.Errorf("addresses of the host: %w", err)
		}
		l.addrs, l.listed = addrs, now
	}
	var addrs []netip.Addr
	for _, a := range l.addrs {
		if a.Is4() == client.Is4() {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) > maxAddrs {
		return nil, fmt.Errorf("a listener for all addresses, and there are %d", len(addrs))
	}
	return addrs, nil
}

func hostAddrs() (addrs []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	return addrs, err
}

// States of tcp(7), as in tcp_states.h.
const (
	stateEstablished = 1
	stateCloseWait   = 8 // the client has sent a FIN
	stateListen      = 10
)

// socket is one that the kernel tells of. The zero value is none.
type socket struct {
	state  uint8
	client netip.AddrPort
	cookie [8]byte
	bytes  uint64         // received, with the FIN
	asked  netip.AddrPort // whose connection was asked for
}

// open reports whether s is the connection that was asked for, open on our side.
func (s socket) open() bool {
	return (s.state == stateEstablished || s.state == stateCloseWait) && s.client == s.asked
}

func (s socket) seen() Seen {
	switch {
	case !s.open():
		return Seen{}
	case s.state == stateEstablished && s.bytes == 0:
		return Seen{State: Silent}
	case s.state == stateEstablished:
		return Seen{Early, s.bytes}
	case s.bytes <= 1:
		return Seen{State: Gone}
	}
	return Seen{Early, s.bytes - 1}
}

// Messages of sock_diag(7): struct inet_diag_req_v2 and struct inet_diag_msg, each
// after a struct nlmsghdr; their common part is struct inet_diag_sockid.
const (
	headerLen   = unix.SizeofNlMsghdr
	requestLen  = headerLen + 8 + sockIDLen
	sockIDLen   = 48
	answerLen   = headerLen + 4 + sockIDLen + 20
	diagInfo    = 2 // INET_DIAG_INFO: struct tcp_info
	infoBytesAt = unsafe.Offsetof(unix.TCPInfo{}.Bytes_received)
)

var host = binary.NativeEndian

// ask asks for one connection, with the cookie of a socket for that one only. No
// such socket is no error.
func (l *Looker) ask(client, local netip.AddrPort, cookie *[8]byte) (socket, error) {
	client = netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	l.seq++
	q := request(l.seq, client, local, cookie)
	if err := unix.Sendto(l.fd, q[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return socket{}, fmt.Errorf("sock_diag: %w", err)
	}
	for {
		// The kernel has answered before Sendto returns.
		n, _, err := unix.Recvfrom(l.fd, l.reply[:], unix.MSG_DONTWAIT)
		if err != nil {
			return socket{}, fmt.Errorf("sock_diag: %w", err)
		}
		s, seq, err := parse(l.reply[:n])
		if seq != l.seq {
			continue // of a question that failed
		}
		s.asked = client
		return s, err
	}
}

func request(seq uint32, client, local netip.AddrPort, cookie *[8]byte) (q [requestLen]byte) {
	host.PutUint32(q[0:], requestLen)
	host.PutUint16(q[4:], unix.SOCK_DIAG_BY_FAMILY)
	host.PutUint16(q[6:], unix.NLM_F_REQUEST)
	host.PutUint32(q[8:], seq)

	r := q[headerLen:]
	r[0] = unix.AF_INET
	if client.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	r[1] = unix.IPPROTO_TCP
	r[2] = 1 << (diagInfo - 1)
	host.PutUint32(r[4:], ^uint32(0)) // any state

	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], client.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], client.Addr().AsSlice())
	if cookie != nil {
		copy(id[40:48], cookie[:])
	} else {
		host.PutUint64(id[40:], ^uint64(0)) // INET_DIAG_NOCOOKIE, twice
	}
	return q
}

var errAnswer = errors.New("sock_diag: an answer that is not understood")

// parse reads what the kernel answers.
func parse(b []byte) (s socket, seq uint32, err error) {
	if len(b) < headerLen+4 || int(host.Uint32(b)) > len(b) {
		return s, 0, errAnswer
	}
	seq = host.Uint32(b[8:])
	switch host.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		switch no := unix.Errno(-int32(host.Uint32(b[headerLen:]))); no {
		case 0, unix.ENOENT, unix.ESTALE: // not there, or another one by now
		default:
			err = fmt.Errorf("sock_diag: %w", no)
		}
		return s, seq, err
	case unix.SOCK_DIAG_BY_FAMILY:
	default:
		return s, seq, errAnswer
	}
	if len(b) < answerLen {
		return s, seq, errAnswer
	}
	s.state = b[headerLen+1]
	id := b[headerLen+4:]
	peer, ok := netip.AddrFromSlice(id[20:24])
	if b[headerLen] == unix.AF_INET6 {
		peer, ok = netip.AddrFromSlice(id[20:36])
	}
	if !ok {
		return s, seq, errAnswer
	}
	s.client = netip.AddrPortFrom(peer.Unmap(), binary.BigEndian.Uint16(id[2:]))
	s.cookie = [8]byte(id[40:48])
	if s.state != stateEstablished && s.state != stateCloseWait {
		return s, seq, nil
	}
	for rest := b[answerLen:]; len(rest) >= 4; {
		n := int(host.Uint16(rest))
		if n < 4 || n > len(rest) {
			break
		}
		if host.Uint16(rest[2:]) == diagInfo && n >= 4+int(infoBytesAt)+8 {
			s.bytes = host.Uint64(rest[4+infoBytesAt:])
			return s, seq, nil
		}
		rest = rest[min((n+3)&^3, len(rest)):]
	}
	return s, seq, errors.New("sock_diag: the kernel does not count bytes")
}
