package greylist

import (
	"context"
	"errors"
	"iter"
)

// A State says what a Record means.
type State uint8

const (
	Absent State = iota // no record
	Grey                // seen, not passed
	Pass                // lets through
)

func (s State) String() string {
	switch s {
	case Grey:
		return "grey"
	case Pass:
		return "pass"
	}
	return "absent"
}

// A Record is what is stored under a Key. The zero value is no record.
type Record struct {
	State State
	Tries int    // attempts; of KindClient and KindWriter what they count; of KindExpect the seconds it lives; of KindProvider failures in a row
	First int64  // first attempt, in milliseconds since the epoch
	Last  int64  // last attempt or use; of KindClient the last time it was past its bound
	Nets  string // of a pair: the networks seen, netLen bytes of hash each; of a provider: its networks, up to 8 KB

	// Net is the network of the client that makes a grey record, if it is not
	// the neighbourhood of the key: 8 bytes of hash, see Entry.Group.
	Net string

	// In clear for people, each empty if it does not apply or is not stored.
	// Client is an address, a space, and its name as in logs.
	Origin, Sender, Rcpt, Client string
}

// An Entry is a stored record with its key.
type Entry struct {
	Key    Key
	Record Record
}

// Group returns the client network, an IPv4 /24 or IPv6 /48, that a grey record
// is counted for.
func (e Entry) Group() string {
	if e.Record.Net != "" {
		return e.Record.Net
	}
	return string(e.Key[:8])
}

// A Store keeps records. It may be used by any number of goroutines, and what
// is stored by any number of processes. Nothing it does takes much longer than
// the context allows; what was not done then is an error.
type Store interface {
	// Update reads the records of different keys, calls f with them in that
	// order, and writes those that f has changed, all as one atomic step. A
	// record made zero is removed. When Update returns nil the step survives the
	// end of the process, unless the store works by itself for a while, see
	// ErrAway. F may be called more than once, only the last call
	// counts; after an error f may still be called, so that nothing it has
	// written may be read.
	Update(ctx context.Context, keys []Key, f func(recs []Record)) error

	// Get returns the records of the keys, in that order.
	Get(ctx context.Context, keys []Key) ([]Record, error)

	// All returns all records, in no order. Records written meanwhile may be
	// missing. It ends at the first error.
	All(ctx context.Context) iter.Seq2[Entry, error]

	// Sweep looks at the next records, a few thousand at most, removes those
	// that have expired, and says how many. Done is true when it has come to
	// the end; the next call begins again.
	Sweep(ctx context.Context, expired func(Key, Record) bool) (removed int, done bool, err error)

	// Count adds to named counters and returns all of them. One that has come to
	// zero again need not be kept, and is not for ever.
	Count(ctx context.Context, add map[string]int64) (map[string]int64, error)

	// Close writes what is left and ends the use of the store.
	Close() error
}

// A Cache is a Store that has records of origins at hand.
type Cache interface {
	// Peek returns the records of the keys if all are at hand, without
	// waiting. They may be a second old.
	Peek(keys []Key) ([]Record, bool)

	// Renew sets Last to now in those records that are passes with Last not
	// before since. It is written soon, but may be lost when the process is
	// killed. False: there is too much to write, use Update.
	Renew(keys []Key, now, since int64) bool
}

// An Expiring store removes what has expired by itself: it needs no Sweep, which
// finds nothing, and nothing is known of what expires.
type Expiring interface{ Expires() }

// ErrAway is the error of a store whose server does not answer, as long as that
// lasts. It has said so, works by itself meanwhile as far as decisions go, and
// hands in later what it has done.
var ErrAway = errors.New("the server of the store does not answer")

// ErrClosed is the error of a store after Close.
var ErrClosed = errors.New("store is closed")

// DefaultMaxGrey is the number of grey records kept by a store by default.
const DefaultMaxGrey = 1_000_000
