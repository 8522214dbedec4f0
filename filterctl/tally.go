package main

import (
	"hash/maphash"
	"slices"
)

// A tally counts by names, of which there may be any number. It is exact for a
// million of them. When there are more, those counted least make room, and lost says
// by how much a count may be too low. A name takes about 40 bytes of memory and its
// length, none of which the garbage collector looks at.
type tally struct {
	limit  int
	lost   uint32
	seed   maphash.Seed
	index  []uint64 // half the hash, and entry+1
	chunks [][]tallied
	n      int
	names  arena
}

const (
	tallyLimit  = 1_000_000
	tallyChunk  = 1 << 14
	manyEntries = 100_000 // past these a note is kept for what was counted twice
)

// A tallied name has its counts, by the index of a caller.
type tallied struct {
	name, note uint32 // in the arena
	counts     [4]uint32
}

func newTally(limit int) *tally {
	return &tally{limit: limit, seed: maphash.MakeSeed(), index: make([]uint64, 1024)}
}

func (t *tally) entry(i uint32) *tallied { return &t.chunks[i/tallyChunk][i%tallyChunk] }

// add counts n for a name; the note is something to show with it.
func (t *tally) add(name, note []byte, which, n int) {
	if len(name) == 0 || n <= 0 {
		return
	}
	name, note = name[:min(len(name), maxName)], note[:min(len(note), maxName)]
	slot, _ := t.find(name)
	if t.index[slot] == 0 {
		if t.n == t.limit {
			t.shrink()
		}
		if t.n*4 >= len(t.index)*3 {
			t.rehash(len(t.index) * 2)
		}
		at, mark := t.find(name)
		slot = at
		if t.n/tallyChunk == len(t.chunks) {
			t.chunks = append(t.chunks, make([]tallied, tallyChunk))
		}
		*t.entry(uint32(t.n)) = tallied{name: t.names.add(name)}
		t.n++
		t.index[slot] = mark | uint64(t.n)
	}
	e := t.entry(uint32(t.index[slot]) - 1)
	e.counts[which] += uint32(n)
	if e.note == 0 && len(note) > 0 && (t.n < manyEntries || e.total() > 1) {
		e.note = t.names.add(note)
	}
}

func (e *tallied) total() uint32 { return e.counts[0] + e.counts[1] + e.counts[2] + e.counts[3] }

// find returns the slot of a name, or the one where it belongs, and the half of the
// hash that goes there.
func (t *tally) find(name []byte) (slot int, mark uint64) {
	hash := maphash.Bytes(t.seed, name)
	mark = hash >> 32 << 32
	mask := len(t.index) - 1
	for slot = int(hash) & mask; ; slot = (slot + 1) & mask {
		i := t.index[slot]
		if i == 0 || i>>32 == hash>>32 && string(t.names.get(t.entry(uint32(i)-1).name)) == string(name) {
			return slot, mark
		}
	}
}

func (t *tally) rehash(size int) {
	t.index = make([]uint64, size)
	for i := range t.n {
		slot, mark := t.find(t.names.get(t.entry(uint32(i)).name))
		t.index[slot] = mark | uint64(i+1)
	}
}

// shrink forgets the half that was counted least, or all that are equal to those.
func (t *tally) shrink() {
	totals := make([]uint32, t.n)
	for i := range totals {
		totals[i] = t.entry(uint32(i)).total()
	}
	slices.Sort(totals)
	least := totals[len(totals)/2]
	old, oldNames, n := t.chunks, t.names, t.n
	size := len(t.index)
	t.chunks, t.names, t.n, t.index = nil, arena{}, 0, nil
	t.index = make([]uint64, size)
	t.lost += least
	for i := range n {
		e := old[i/tallyChunk][i%tallyChunk]
		if i%tallyChunk == tallyChunk-1 {
			old[i/tallyChunk] = nil
		}
		if e.total() <= least {
			continue
		}
		if t.n/tallyChunk == len(t.chunks) {
			t.chunks = append(t.chunks, make([]tallied, tallyChunk))
		}
		name := oldNames.get(e.name)
		e.name = t.names.add(name)
		if e.note != 0 {
			e.note = t.names.add(oldNames.get(e.note))
		}
		*t.entry(uint32(t.n)) = e
		t.n++
		slot, mark := t.find(name)
		t.index[slot] = mark | uint64(t.n)
	}
}

// top returns the names with the highest weights, at most n, the same order for the
// same counts.
func (t *tally) top(n int, weight func(counts [4]uint32) uint64) (names []topName) {
	for i := range t.n {
		e := t.entry(uint32(i))
		w := weight(e.counts)
		if w == 0 || len(names) == 2*n && w < names[n-1].weight {
			continue
		}
		name := topName{name: string(t.names.get(e.name)), counts: e.counts, weight: w}
		if e.note != 0 {
			name.note = string(t.names.get(e.note))
		}
		if names = append(names, name); len(names) > 2*n {
			slices.SortFunc(names, topName.before)
			names = names[:n]
		}
	}
	slices.SortFunc(names, topName.before)
	return names[:min(n, len(names))]
}

type topName struct {
	name, note string
	counts     [4]uint32
	weight     uint64
}

func (a topName) before(b topName) int {
	switch {
	case a.weight != b.weight && a.weight > b.weight:
		return -1
	case a.weight != b.weight:
		return 1
	case a.name < b.name:
		return -1
	case a.name > b.name:
		return 1
	}
	return 0
}

const maxName = 320 // bytes

// An arena holds short strings.
type arena struct{ blocks [][]byte }

const arenaBlock = 1 << 18

// add returns where a string is, never 0.
func (a *arena) add(s []byte) uint32 {
	n := len(a.blocks) - 1
	if n < 0 || len(a.blocks[n])+len(s)+2 > arenaBlock {
		a.blocks = append(a.blocks, make([]byte, 0, arenaBlock))
		if n++; n == 0 {
			a.blocks[0] = append(a.blocks[0], 0)
		}
	}
	at := uint32(n*arenaBlock + len(a.blocks[n]))
	a.blocks[n] = append(a.blocks[n], byte(len(s)), byte(len(s)>>8))
	a.blocks[n] = append(a.blocks[n], s...)
	return at
}

func (a *arena) get(at uint32) []byte {
	b := a.blocks[at/arenaBlock][at%arenaBlock:]
	n := int(b[0]) | int(b[1])<<8
	return b[2 : 2+n]
}
