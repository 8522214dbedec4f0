package greylist

import (
	"container/heap"
	"container/list"
	"context"
	"iter"
	"maps"
	"sync"
)

const shards = 256

// A Memory is a Store that lives as long as the process.
type Memory struct {
	mu       sync.Mutex
	maxGrey  int
	records  [shards]map[Key]kept
	count    int                 // records
	grey     int                 // records that are grey
	groups   map[string]*group   // with their grey records
	heaviest groupHeap           // the same
	bounded  map[Kind]*list.List // keys of the kinds that have a bound, in the order of their use
	counters map[string]int64
	cursor   int
}

type kept struct {
	Record
	place *list.Element // in its group, or among those of its kind
}

// A group is a client network with its grey records.
type group struct {
	name     string
	attempts list.List // keys, in the order they were made
	counters list.List // those of KindClient: they go when there is nothing to count
	index    int       // in the heap
}

func (g *group) size() int { return g.attempts.Len() + g.counters.Len() }

func (g *group) list(k Kind) *list.List {
	if k == KindClient {
		return &g.counters
	}
	return &g.attempts
}

// oldest returns the key of the record that goes first.
func (g *group) oldest() Key {
	e := g.attempts.Front()
	if e == nil {
		e = g.counters.Front()
	}
	return e.Value.(Key)
}

// A groupHeap has the group with most records first, and of several that with the
// oldest.
type groupHeap struct {
	groups []*group
	first  func(*group) int64
}

func (h *groupHeap) Len() int { return len(h.groups) }
func (h *groupHeap) Less(i, j int) bool {
	a, b := h.groups[i], h.groups[j]
	if a.size() != b.size() {
		return a.size() > b.size()
	}
	return h.first(a) < h.first(b)
}
func (h *groupHeap) Swap(i, j int) {
	h.groups[i], h.groups[j] = h.groups[j], h.groups[i]
	h.groups[i].index, h.groups[j].index = i, j
}
func (h *groupHeap) Push(x any) {
	g := x.(*group)
	g.index = len(h.groups)
	h.groups = append(h.groups, g)
}
func (h *groupHeap) Pop() any {
	g := h.groups[len(h.groups)-1]
	h.groups = h.groups[:len(h.groups)-1]
	return g
}

// NewMemory returns a store of at most that many grey records; 0 is
// DefaultMaxGrey.
func NewMemory(maxGrey int) *Memory {
	if maxGrey <= 0 {
		maxGrey = DefaultMaxGrey
	}
	m := &Memory{
		maxGrey: maxGrey, groups: make(map[string]*group), bounded: make(map[Kind]*list.List), counters: make(map[string]int64),
	}
	m.heaviest.first = func(g *group) int64 {
		if g.size() == 0 {
			return 0
		}
		k := g.oldest()
		return m.records[k[0]][k].First
	}
	for i := range m.records {
		m.records[i] = make(map[Key]kept)
	}
	return m
}

// Update is part of Store.
func (m *Memory) Update(ctx context.Context, keys []Key, f func([]Record)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	recs := make([]Record, len(keys))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, k := range keys {
		recs[i] = m.records[k[0]][k].Record
	}
	f(recs)
	for i, k := range keys {
		m.put(k, recs[i])
	}
	for m.grey > m.maxGrey {
		m.put(m.heaviest.groups[0].oldest(), Record{})
	}
	return nil
}

func (m *Memory) put(k Key, r Record) {
	if r.State == Absent {
		r = Record{}
	}
	old := m.records[k[0]][k]
	if old.Record == r {
		return
	}
	now := kept{r, old.place}
	switch most := k.Kind().Most(); {
	case most > 0:
		now.place = m.use(k, old.place, r.State != Absent)
	case old.State == Grey && (r.State != Grey || r.First != old.First || r.Net != old.Net):
		m.leave(k, old)
		now.place = nil
		fallthrough
	default:
		if r.State == Grey && now.place == nil {
			now.place = m.join(k, r)
		}
	}
	before := len(m.records[k[0]])
	if r.State == Absent {
		delete(m.records[k[0]], k)
	} else {
		m.records[k[0]][k] = now
	}
	m.count += len(m.records[k[0]]) - before
	if now.place != nil && k.Kind().Most() == 0 {
		heap.Fix(&m.heaviest, m.groups[Entry{k, r}.Group()].index)
	}
	if l := m.bounded[k.Kind()]; l != nil && l.Len() > k.Kind().Most() {
		m.put(l.Front().Value.(Key), Record{})
	}
}

// use notes that a record of a kind with a bound is used, or gone.
func (m *Memory) use(k Key, place *list.Element, there bool) *list.Element {
	l := m.bounded[k.Kind()]
	if l == nil {
		l = list.New()
		m.bounded[k.Kind()] = l
	}
	if place != nil {
		l.Remove(place)
	}
	if !there {
		return nil
	}
	return l.PushBack(k)
}

// join puts a grey record into its group.
func (m *Memory) join(k Key, r Record) *list.Element {
	name := Entry{k, r}.Group()
	g := m.groups[name]
	if g == nil {
		g = &group{name: name}
		m.groups[name] = g
		heap.Push(&m.heaviest, g)
	}
	m.grey++
	return g.list(k.Kind()).PushBack(k)
}

// leave takes a grey record out of its group.
func (m *Memory) leave(k Key, old kept) {
	g := m.groups[Entry{k, old.Record}.Group()]
	g.list(k.Kind()).Remove(old.place)
	m.grey--
	if g.size() == 0 {
		heap.Remove(&m.heaviest, g.index)
		delete(m.groups, g.name)
		return
	}
	heap.Fix(&m.heaviest, g.index)
}

// Get is part of Store.
func (m *Memory) Get(ctx context.Context, keys []Key) ([]Record, error) {
	recs := make([]Record, len(keys))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, k := range keys {
		recs[i] = m.records[k[0]][k].Record
	}
	return recs, ctx.Err()
}

// Len returns the number of records.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// All is part of Store.
func (m *Memory) All(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i := range m.records {
			m.mu.Lock()
			part := maps.Clone(m.records[i])
			m.mu.Unlock()
			for k, r := range part {
				if !yield(Entry{k, r.Record}, nil) {
					return
				}
			}
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
		}
	}
}

// Sweep is part of Store.
func (m *Memory) Sweep(ctx context.Context, expired func(Key, Record) bool) (removed int, done bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, r := range m.records[m.cursor] {
		if expired(k, r.Record) {
			m.put(k, Record{})
			removed++
		}
	}
	m.cursor = (m.cursor + 1) % shards
	return removed, m.cursor == 0, ctx.Err()
}

// Count is part of Store.
func (m *Memory) Count(ctx context.Context, add map[string]int64) (map[string]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, n := range add {
		if m.counters[name] += n; m.counters[name] == 0 {
			delete(m.counters, name)
		}
	}
	return maps.Clone(m.counters), ctx.Err()
}

// Close is part of Store.
func (m *Memory) Close() error { return nil }
