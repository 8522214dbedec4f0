package greylist

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/guard"
)

// A Kind says what a record is about. It is the last byte of its Key.
type Kind byte

const (
	KindOrigin  Kind = 1  // an origin that passes, whatever sender and recipient
	KindAttempt Kind = 2  // origin, sender and recipient
	KindPair    Kind = 3  // sender and recipient, from several networks
	KindTrap    Kind = 6  // a client that has written to a trap
	KindClient  Kind = 7  // how many attempts of a client wait
	KindVouched Kind = 8  // a client and a domain that were vouched for
	KindLearned Kind = 9  // somebody to whom a user of this server has written
	KindExpect  Kind = 10 // mail that is expected because the operator says so
	KindReply   Kind = 11 // a domain from which a user of this server may expect an answer
	KindOurs    Kind = 12 // a domain for which this server takes mail
	KindWriter  Kind = 13 // how much was learned from one user within a day

	KindProvider Kind = 14 // the networks of a large mail provider
)

var kindNames = map[Kind]string{
	KindOrigin: "origin", KindAttempt: "attempt", KindPair: "pair", KindTrap: "trap", KindClient: "client",
	KindVouched: "vouched", KindLearned: "learned", KindExpect: "expect", KindReply: "reply", KindOurs: "ours", KindWriter: "writer",
	KindProvider: "provider",
}

// Kinds are all of them.
func Kinds() []Kind { return slices.Sorted(maps.Keys(kindNames)) }

func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("kind%d", byte(k))
}

// Most returns how many records of a kind a store keeps, those used last; 0 if
// they have no bound of their own.
func (k Kind) Most() int {
	switch k {
	case KindVouched, KindLearned, KindReply:
		return 100_000
	case KindOurs, KindWriter:
		return 10_000
	case KindExpect, KindProvider:
		return maxExpected
	}
	return 0
}

// A Key names a record. It is a keyed hash, so that a store tells nobody who
// writes to whom. The first eight bytes are the same for records that one
// attempt needs together, which so lie near each other in a sorted store, and
// those of Shard for records that belong on one server of several; otherwise keys
// are as good as random.
type Key [16]byte

// Kind returns what the record is about.
func (k Key) Kind() Kind { return Kind(k[15]) }

// Shard returns the two bytes that are the same for all records about one
// recipient, and of the others for those whose first eight bytes are the same.
func (k Key) Shard() [2]byte { return [2]byte(k[13:15]) }

func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ParseKey reads what String returns.
func ParseKey(s string) (k Key, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) || kindNames[Kind(b[15])] == "" {
		return k, fmt.Errorf("%.40q is not a key of 32 hexadecimal digits", s)
	}
	return Key(b), nil
}

// A hasher makes keys.
type hasher struct {
	pool sync.Pool // of *sums
}

// sums makes sums, for one goroutine at a time.
type sums struct {
	mac  hash.Hash
	buf  []byte
	near string // the last neighbourhood, which often is the next
	sum  [8]byte
	rcpt string // the last recipient, which often is the next
	tag  [8]byte
}

func newHasher(secret []byte) *hasher {
	return &hasher{pool: sync.Pool{New: func() any { return &sums{mac: hmac.New(sha256.New, secret)} }}}
}

func (s *sums) of(tag byte, parts ...string) (out [8]byte) {
	b := append(s.buf[:0], tag)
	for _, p := range parts {
		b = append(b, byte(len(p)>>8), byte(len(p)))
		b = append(b, p...)
	}
	s.mac.Reset()
	s.mac.Write(b)
	s.buf = s.mac.Sum(b[:0])
	copy(out[:], s.buf)
	return out
}

// Tags of hashes that are not those of a kind.
const (
	neighbourhood = 0
	recipient     = 255
)

func (h *hasher) key(kind Kind, near, origin, sender, rcpt string) (k Key) {
	s := h.pool.Get().(*sums)
	defer h.pool.Put(s)
	if near != s.near || near == "" {
		s.near, s.sum = near, s.of(neighbourhood, near)
	}
	shard := s.sum[6:]
	if rcpt != "" {
		if rcpt != s.rcpt {
			s.rcpt, s.tag = rcpt, s.of(recipient, rcpt)
		}
		shard = s.tag[:]
	}
	own := s.of(byte(kind), origin, sender, rcpt)
	copy(k[:8], s.sum[:])
	copy(k[8:13], own[:])
	copy(k[13:15], shard)
	k[15] = byte(kind)
	return k
}

// entry returns the key of a record that has all its clear text.
func (h *hasher) entry(kind Kind, origin, sender, rcpt string) Entry {
	near := origin
	switch kind {
	case KindPair, KindLearned:
		near = sender + "\x00" + rcpt
	case KindAttempt, KindClient, KindExpect, KindOrigin, KindTrap:
		if a, ok := originAddr(origin); ok {
			// Independent of -mask4 and -mask6, or a change of them would
			// lose all passes.
			near = netOf(a, 24, 64).String()
			if kind != KindOrigin && kind != KindTrap {
				near = groupOf(a)
			}
		}
	}
	return Entry{
		Key:    h.key(kind, near, origin, sender, rcpt),
		Record: Record{Origin: origin, Sender: sender, Rcpt: rcpt},
	}
}

// groupOf names the network that a blast of attempts is blamed on.
func groupOf(a netip.Addr) string { return netOf(a, 24, 48).String() }

// group is the same as it is in keys and records.
func (h *hasher) group(a netip.Addr) string {
	k := h.key(0, groupOf(a), "", "", "")
	return string(k[:8])
}

// rank orders recipients in a way that nobody outside can foresee.
func (h *hasher) rank(rcpt string) Key { return h.key(0, "", rcpt, "", "") }

// originAddr returns the address, or the first of the network, that an origin
// is made of.
func originAddr(origin string) (netip.Addr, bool) {
	s := strings.TrimPrefix(origin, "net:")
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), true
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil
}

func netOf(a netip.Addr, mask4, mask6 int) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := mask6
	if a.Is4() {
		bits = mask4
	}
	p, _ := a.Prefix(min(max(bits, 0), a.BitLen()))
	return p
}

// A KeyFile is a file with the secret that keys are made with: 64 hexadecimal
// digits. The same file makes the same keys on every host.
type KeyFile struct {
	Path   string
	Create bool // make it if there is none

	mu     sync.Mutex
	secret []byte
	tried  time.Time
	err    error
}

// Secret returns the secret. A failure is remembered for a second.
func (f *KeyFile) Secret() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.secret == nil && (f.tried.IsZero() || time.Since(f.tried) >= time.Second) {
		f.secret, f.err = f.load()
		f.tried = time.Now()
	}
	return f.secret, f.err
}

func (f *KeyFile) load() ([]byte, error) {
	secret, err := readSecret(f.Path)
	if !errors.Is(err, fs.ErrNotExist) || !f.Create {
		return secret, err
	}
	b := make([]byte, 32)
	rand.Read(b)
	// Written elsewhere and linked, so that of two processes that start at the
	// same time one makes the file and both read the same.
	tmp, err := guard.Open(f.Path+"."+rand.Text()[:10], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		err = fmt.Errorf("%s cannot be made: %w", f.Path, pe.Err)
	}
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintf(tmp, "%x\n", b)
	if err2 := tmp.Sync(); err == nil {
		err = err2
	}
	if err2 := tmp.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return nil, err
	}
	if err := os.Link(tmp.Name(), f.Path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readSecret(f.Path)
}

// readSecret follows links: a key may be kept elsewhere, and is only read.
func readSecret(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if fi, err := file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	b := make([]byte, 1024)
	n, err := file.Read(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(b[:n])))
	if err != nil || len(secret) < 16 {
		return nil, fmt.Errorf("%s: not a key of 32 or more hexadecimal digits", path)
	}
	return secret, nil
}
