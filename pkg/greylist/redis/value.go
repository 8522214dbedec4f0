package redis

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"opensmtpd-filters/pkg/greylist"
)

// names makes and reads the names of records: a prefix; within braces, by which a
// cluster chooses the server, the key's shard; and the rest of the key.
type names struct{ prefix string }

func (n names) of(k greylist.Key) string {
	var rest [14]byte
	copy(rest[:], k[:13])
	rest[13] = k[15]
	b := make([]byte, 0, len(n.prefix)+26)
	b = append(b, n.prefix...)
	b = append(b, ':', '{')
	shard := k.Shard()
	b = hex.AppendEncode(b, shard[:])
	b = append(b, '}')
	return string(base64.RawURLEncoding.AppendEncode(b, rest[:]))
}

// key reads what of returns. Ok is false for any other name.
func (n names) key(name string) (k greylist.Key, ok bool) {
	text, ok := strings.CutPrefix(name, n.prefix+":{")
	if !ok || len(text) != 24 || text[4] != '}' {
		return k, false
	}
	shard, err1 := hex.DecodeString(text[:4])
	rest, err2 := base64.RawURLEncoding.DecodeString(text[5:])
	if err1 != nil || err2 != nil {
		return k, false
	}
	copy(k[:13], rest)
	copy(k[13:], shard)
	k[15] = rest[13]
	return k, n.of(k) == name
}

// The first byte of a value: the version of its form, 0, what follows, and the
// state in the lowest bits.
const (
	stateBits = 0x03
	hasNets   = 0x04
	hasNet    = 0x08
	hasClear  = 0x10
	known     = stateBits | hasNets | hasNet | hasClear
)

// timeLen is the length of a time, milliseconds since the epoch: until the year
// 10889.
const timeLen = 6

// encode returns the value of a record, "" for none. The last timeLen bytes are
// Last, by which alone uses of a pass differ. Without addresses it has 20 bytes
// or less, a pair up to 50.
func encode(r greylist.Record) string {
	if r.State == greylist.Absent {
		return ""
	}
	head := byte(r.State) & stateBits
	b := make([]byte, 1, 64)
	b = appendTime(b, r.First)
	b = binary.AppendUvarint(b, uint64(max(0, r.Tries)))
	if r.Nets != "" {
		head |= hasNets
		b = appendText(b, r.Nets)
	}
	if r.Net != "" {
		head |= hasNet
		b = appendText(b, r.Net)
	}
	if r.Origin != "" || r.Sender != "" || r.Rcpt != "" || r.Client != "" {
		head |= hasClear
		for _, s := range []string{r.Origin, r.Sender, r.Rcpt, r.Client} {
			b = appendText(b, s)
		}
	}
	b[0] = head
	return string(appendTime(b, r.Last))
}

func appendTime(b []byte, ms int64) []byte {
	ms = min(max(ms, 0), 1<<(8*timeLen)-1)
	for i := timeLen - 1; i >= 0; i-- {
		b = append(b, byte(ms>>(8*i)))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decode reads a value. What is none, or of a later version, is no record.
func decode(v string) greylist.Record {
	if len(v) < 1+2*timeLen+1 || v[0]&^known != 0 {
		return greylist.Record{}
	}
	d := decoder{rest: v[1 : len(v)-timeLen]}
	r := greylist.Record{State: greylist.State(v[0] & stateBits)}
	r.First = timeOf(d.next(timeLen))
	r.Tries = int(min(d.number(), 1<<31-1))
	r.Last = timeOf(v[len(v)-timeLen:])
	if v[0]&hasNets != 0 {
		r.Nets = d.text()
	}
	if v[0]&hasNet != 0 {
		r.Net = d.text()
	}
	if v[0]&hasClear != 0 {
		r.Origin, r.Sender, r.Rcpt, r.Client = d.text(), d.text(), d.text(), d.text()
	}
	if d.bad || d.rest != "" || r.State != greylist.Grey && r.State != greylist.Pass {
		return greylist.Record{}
	}
	return r
}

// A decoder reads a value from its beginning.
type decoder struct {
	rest string
	bad  bool
}

func (d *decoder) next(n uint64) (s string) {
	if d.bad = d.bad || n > uint64(len(d.rest)); d.bad {
		return ""
	}
	s, d.rest = d.rest[:n], d.rest[n:]
	return s
}

func (d *decoder) number() uint64 {
	n, used := binary.Uvarint([]byte(d.rest[:min(len(d.rest), binary.MaxVarintLen64)]))
	if d.bad = d.bad || used <= 0; d.bad {
		return 0
	}
	d.rest = d.rest[used:]
	return n
}

func (d *decoder) text() string { return d.next(d.number()) }

func timeOf(s string) (ms int64) {
	for i := range len(s) {
		ms = ms<<8 | int64(s[i])
	}
	return ms
}

// sameButLast reports whether two values are records that differ in their last
// use alone.
func sameButLast(a, b string) bool {
	return len(a) > timeLen && len(a) == len(b) && a[:len(a)-timeLen] == b[:len(b)-timeLen]
}
