// Package peek asks the kernel what a TCP client has sent so far, without touching
// the connection, which is another program's. A mail server that has not greeted
// yet has nothing to read but what came too early.
//
// Linux tells any user, by sock_diag(7), for one connection in some microseconds.
// Elsewhere nothing is known.
//
// What is found is exact, and Unknown in every doubt:
//
//   - the end of a connection (FIN) takes a place in the sequence of bytes, and is
//     not one;
//   - for a connection that is not there the kernel answers with the socket that
//     listens, which is not it;
//   - behind a proxy the client's address is not that of the socket, so there is
//     no such connection;
//   - on a listener for all addresses it is not known which one the client has
//     called: each is asked for, and if a client has connections from one port to
//     two of them it is not known which is meant.
package peek

import "net/netip"

// State is what has been seen of a connection.
type State uint8

const (
	Unknown State = iota // not found, or not to be told from another
	Silent               // the client is there and has sent nothing
	Early                // the client has sent something, whether it is still there or not
	Gone                 // it was there, has sent nothing and left
)

// A Conn is a connection that is looked at. The addresses are to be set; one Conn
// is not to be looked at by two goroutines at once.
type Conn struct {
	Client   netip.AddrPort
	Listener netip.AddrPort // its address may be 0.0.0.0 or ::

	local  netip.Addr // that the client has called, once it was found
	cookie [8]byte    // the kernel's name of the socket, then
}

// Seen is what a look has found.
type Seen struct {
	State State
	Bytes uint64 // received; of Early
}
