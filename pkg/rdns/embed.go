package rdns

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// An embedding is how much of an address a name repeats.
type embedding struct {
	octets int    // bytes of the address in the name
	enough bool   // no accident: 3 of 4 bytes, 8 of 16
	near   bool   // nothing but a separator stands between two of them
	label  bool   // two of them are in one label, apart
	bare   bool   // the name begins with two of them, and a new label after
	ends   bool   // a label ends with two of them
	form   string // "dec", "run", "int", "hex"
	end    int    // offset in the name where it ends
	other  bool   // the name holds a whole IPv4 address, another one
}

// embed looks for addr in name. Everything is compared with this one address:
// four numbers or eight hex digits that are not the address mean nothing.
func embed(addr netip.Addr, name string) embedding {
	if addr.Is4() {
		return embed4(addr.As4(), name)
	}
	if addr.Is6() {
		return embed6(addr.As16(), name)
	}
	return embedding{}
}

// maxNumbers bounds the numbers looked at in one name.
const maxNumbers = 48

// A number is a run of digits, or a part of one: three digits of a run of 6, 9 or 12.
type number struct {
	v          int16 // -1: not an octet
	start, end uint8 // of a name of up to 253 bytes
}

// embed4 knows these forms of a.b.c.d, and the highest count of bytes wins:
//
//	dec  numbers that follow one another, whatever stands between them and
//	     padded with zeros or not: all four in any order (78-34-40-20,
//	     20.red-78-34-40, 078034040020), three if they have five digits, or
//	     four and the order forwards or backwards (fia160-115-100)
//	run  numbers run together, padded or not: 7834.4020, dynamic78344020
//	int  the address as a 32-bit integer
//	hex  eight digits forwards or backwards, seven if the first is zero, six for
//	     the first or the last three bytes
//	b32  a token of seven digits to the base 32, or of six or seven to the base 36
//
// Two numbers that follow one another are reported, and not enough: every
// larger mail system names its machines by the last two.
func embed4(a [4]byte, name string) embedding {
	var best embedding
	take := func(octets int, form string, end int) {
		if octets > best.octets {
			best.octets, best.form, best.end = octets, form, end
			best.enough = octets >= 3
		}
	}
	addr := binary.BigEndian.Uint32(a[:])
	swapped := bits.ReverseBytes32(addr)

	var nums [maxNumbers]number
	n := 0
	var digits [256]byte // all digits of the name
	var starts [maxNumbers + 1]int
	var ends [maxNumbers]int
	runs, total := 0, 0
	for i := 0; i < len(name) && n+4 <= maxNumbers; i++ {
		if !isDigit(name[i]) {
			continue
		}
		j := i + 1
		for j < len(name) && isDigit(name[j]) {
			j++
		}
		starts[runs], ends[runs] = total, j
		total += copy(digits[total:], name[i:j])
		runs++
		starts[runs] = total
		switch run := name[i:j]; {
		case len(run) <= 3:
			nums[n] = number{octet(run), uint8(i), uint8(j)}
			n++
		case len(run) == 6 || len(run) == 9 || len(run) == 12:
			for k := i; k < j; k += 3 {
				nums[n] = number{octet(name[k : k+3]), uint8(k), uint8(k + 3)}
				n++
			}
		default:
			nums[n] = number{-1, uint8(i), uint8(j)}
			n++
			if len(run) >= 8 && len(run) <= 10 {
				if v, err := strconv.ParseUint(run, 10, 32); err == nil && (uint32(v) == addr || uint32(v) == swapped) {
					take(4, "int", j)
				}
			}
		}
		i = j
	}

	for i := 0; i+1 < n && best.octets < 4; i++ {
		w := nums[i:n]
		if len(w) >= 4 && sameOctets(w[:4], a) {
			take(4, "dec", int(w[3].end))
			break
		}
		if len(w) >= 3 && threeOctets(w[:3], a) {
			take(3, "dec", int(w[2].end))
		}
		if twoOctets(w[:2], a) {
			take(2, "dec", int(w[1].end))
			near := int(w[1].start) <= int(w[0].end)+1
			ends := near && int(w[1].end) < len(name) && name[w[1].end] == '.'
			best.near = best.near || near
			best.ends = best.ends || ends
			best.bare = best.bare || ends && w[0].start == 0
			best.label = best.label || w[0].end < w[1].start && strings.IndexByte(name[w[0].end:w[1].start], '.') < 0
		}
		if len(w) >= 4 && isChain(w[:4], name) {
			best.other = true
		}
	}
	if best.octets < 4 && total >= 4 {
		joined(a, digits[:total], starts[:runs+1], func(octets, run int) {
			take(octets, "run", ends[run])
			best.near = best.near || octets > 2 // two bytes are four digits of anything
		})
	}
	if best.octets < 4 {
		hex4(addr, swapped, name, take)
	}
	if best.octets < 4 {
		base32(addr, name, take)
	}
	return best
}

// octet gives the value of one to three digits, -1 if it is over 255.
func octet(s string) int16 {
	var v int16
	for i := range len(s) {
		v = v*10 + int16(s[i]-'0')
	}
	if v > 255 {
		return -1
	}
	return v
}

// used finds v among the bytes of a that are not marked, and marks it.
func used(v int16, a [4]byte, mark *[4]bool) bool {
	for k, b := range a {
		if !mark[k] && v == int16(b) {
			mark[k] = true
			return true
		}
	}
	return false
}

// sameOctets tells whether w holds the four bytes of a, in any order.
func sameOctets(w []number, a [4]byte) bool {
	var mark [4]bool
	for i := range w {
		if !used(w[i].v, a, &mark) {
			return false
		}
	}
	return true
}

func threeOctets(w []number, a [4]byte) bool {
	var mark [4]bool
	digits := 0
	for i := range w {
		if !used(w[i].v, a, &mark) {
			return false
		}
		digits += width(int(w[i].v))
	}
	if digits >= 5 {
		return true
	}
	x, y, z := byte(w[0].v), byte(w[1].v), byte(w[2].v)
	for k := range 2 {
		if p, q, r := a[k], a[k+1], a[k+2]; x == p && y == q && z == r || x == r && y == q && z == p {
			return digits >= 4
		}
	}
	return false
}

// twoOctets tells whether w holds two neighbours of a, one of them over 9.
func twoOctets(w []number, a [4]byte) bool {
	x, y := w[0].v, w[1].v
	if x < 10 && y < 10 {
		return false
	}
	for k := range 3 {
		if p, q := int16(a[k]), int16(a[k+1]); x == p && y == q || x == q && y == p {
			return true
		}
	}
	return false
}

// isChain tells whether w is four numbers with one separator between each.
func isChain(w []number, name string) bool {
	for i := range w {
		if w[i].v < 0 {
			return false
		}
		if i == 0 {
			continue
		}
		if w[i].start != w[i-1].end+1 || strings.IndexByte("-._x", name[w[i-1].end]) < 0 {
			return false
		}
	}
	return true
}

func width(v int) int {
	switch {
	case v >= 100:
		return 3
	case v >= 10:
		return 2
	}
	return 1
}

// joined looks for bytes of a written without padding, one after the other, from
// the start of one run of digits to the end of the same or a later one.
// Fewer than seven digits are an accident; two bytes in four digits are
// reported as two.
func joined(a [4]byte, digits []byte, starts []int, found func(octets, run int)) {
	rev := [4]byte{a[3], a[2], a[1], a[0]}
	for i := 0; i+1 < len(starts); i++ {
		for _, o := range [2]*[4]byte{&a, &rev} {
			for from := range 3 {
				end := starts[i]
				for k := from; k < 4; k++ {
					if end = eat(digits, end, o[k]); end < 0 {
						break
					}
					octets, length := k-from+1, end-starts[i]
					if octets < 2 || length < 4 || octets > 2 && length < 7 {
						continue
					}
					for r := i + 1; r < len(starts) && starts[r] <= end; r++ {
						if starts[r] == end && (octets > 2 || r == i+1) {
							found(octets, r-1)
						}
					}
				}
			}
		}
	}
}

// eat gives the offset after the decimal form of b at digits[i:], -1 if it is not
// there. Some providers pad all bytes but the first: cs78128057 is 78.128.57.
func eat(digits []byte, i int, b byte) int {
	n := width(int(b))
	if n < 3 && i+3 <= len(digits) && digits[i] == '0' && b != 0 {
		n = 3
	}
	if i+n > len(digits) {
		return -1
	}
	v := int(b)
	for k := i + n - 1; k >= i; k-- {
		if digits[k] != byte('0'+v%10) {
			return -1
		}
		v /= 10
	}
	return i + n
}

func hex4(addr, swapped uint32, name string, take func(int, string, int)) {
	var v uint32
	run, all := 0, 0 // digits since another character; the same, a separator not counting as one
	for i := 0; i <= len(name); i++ {
		var c byte = ' '
		if i < len(name) {
			c = name[i]
		}
		if x := nibble(c); x >= 0 {
			v = v<<4 | uint32(x)
			run++
			all++
			if all >= 8 && (v == addr || v == swapped) {
				take(4, "hex", i+1)
			}
			continue
		}
		if run == 7 || run == 8 {
			if addr>>28 == 0 && v&(1<<28-1) == addr {
				take(4, "hex", i)
			}
		}
		if run == 6 || run == 7 {
			if low := v & (1<<24 - 1); low == addr>>8 || low == addr&(1<<24-1) {
				take(3, "hex", i)
			}
		}
		run = 0
		if c != '-' && c != '.' && c != '_' {
			all = 0
		}
	}
}

// base32 looks for a token that is the address to the base 32 (user-3336p07 is
// 198.51.100.7), or 36.
func base32(addr uint32, name string, take func(int, string, int)) {
	for start, end := 0, 0; start < len(name); start = end + 1 {
		end = start
		for end < len(name) && name[end] != '.' && name[end] != '-' && name[end] != '_' {
			end++
		}
		if n := end - start; n != 6 && n != 7 {
			continue
		}
		var v32, v36 uint64
		for i := start; i < end; i++ {
			d := uint64(name[i] - '0')
			if isLetter(name[i]) {
				d = uint64(name[i]-'a') + 10
			}
			v32, v36 = v32<<5|d, v36*36+d
		}
		if v32 == uint64(addr) && end-start == 7 || v36 == uint64(addr) {
			take(4, "b32", end)
		}
	}
}

// nibble gives the value of a lower-case hex digit, -1 for other bytes.
func nibble(c byte) int { return int(nibbles[c]) }

var nibbles = func() (t [256]int8) {
	for c := range t {
		t[c] = int8(strings.IndexByte("0123456789abcdef", byte(c)))
	}
	return t
}()

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// embed6 knows these forms of an IPv6 address: 32 digits or the first or last
// 16, forwards or backwards, with or without separators; and groups between
// dashes without leading zeros, the whole address with "--" for "::" or the first
// groups of it. The first two or three groups are the provider: they are
// reported, and not enough.
func embed6(a [16]byte, name string) embedding {
	var best embedding
	take := func(octets int, form string, end int) {
		if octets > best.octets {
			best = embedding{octets: octets, form: form, end: end, enough: octets >= 8, near: true}
		}
	}
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	rhi, rlo := reverseNibbles(lo), reverseNibbles(hi)
	var vh, vl uint64
	all := 0
	for i := range len(name) {
		x := nibble(name[i])
		if x < 0 {
			if c := name[i]; c != '-' && c != '.' && c != '_' {
				all = 0
			}
			continue
		}
		vh, vl = vh<<4|vl>>60, vl<<4|uint64(x)
		all++
		if all >= 32 && (vh == hi && vl == lo || vh == rhi && vl == rlo) {
			take(16, "hex", i+1)
			return best
		}
		// A last half such as ::25 is all zeros but for a number.
		if all >= 16 && (vl == hi || vl == rlo || lo>>48 != 0 && (vl == lo || vl == rhi)) {
			take(8, "hex", i+1)
		}
	}

	var words [8]uint16
	for k := range words {
		words[k] = binary.BigEndian.Uint16(a[2*k:])
	}
	for i := 0; i < len(name); i++ {
		if nibble(name[i]) < 0 || i > 0 && nibble(name[i-1]) >= 0 {
			continue
		}
		n, end := groups(words, name[i:])
		if n >= 2 {
			take(2*n, "hex", i+end)
		}
	}
	return best
}

// groups counts the leading groups of the address that s begins with, and
// gives the offset where they end: 8 when the rest follows after a "--".
func groups(words [8]uint16, s string) (n, end int) {
	i := 0
	for n < 8 {
		w, j, ok := group(s, i)
		if !ok || w != words[n] {
			return n, end
		}
		n, end = n+1, j
		if n == 8 || j >= len(s) || s[j] != '-' {
			return n, end
		}
		i = j + 1
		if i < len(s) && s[i] == '-' {
			break
		}
	}
	var tail [8]uint16
	m := 0
	for i++; m < 8-n; m++ {
		w, j, ok := group(s, i)
		if !ok {
			break
		}
		tail[m] = w
		i = j
		if i >= len(s) || s[i] != '-' {
			m++
			break
		}
		i++
	}
	for k := n; k < 8; k++ {
		want := uint16(0)
		if k >= 8-m {
			want = tail[k-(8-m)]
		}
		if words[k] != want {
			return n, end
		}
	}
	return 8, i
}

// group reads one to four hex digits at s[i:].
func group(s string, i int) (w uint16, end int, ok bool) {
	end = i
	for end < len(s) && end < i+5 {
		x := nibble(s[end])
		if x < 0 {
			break
		}
		w = w<<4 | uint16(x)
		end++
	}
	return w, end, end > i && end <= i+4
}

func reverseNibbles(v uint64) uint64 {
	v = bits.ReverseBytes64(v)
	return v>>4&0x0f0f0f0f0f0f0f0f | v<<4&0xf0f0f0f0f0f0f0f0
}
