package greylist

import (
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
	grey     list.List // keys of grey records, in the order they were made
	counters map[string]int64
	cursor   int
}

type kept struct {
	Record
	place *list.Element // in grey
}

// NewMemory returns a store of at most that many grey records; 0 is
// DefaultMaxGrey. Past them those made first go.
func NewMemory(maxGrey int) *Memory {
	if maxGrey <= 0 {
		maxGrey = DefaultMaxGrey
	}
	m := &Memory{maxGrey: maxGrey, counters: make(map[string]int64)}
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
	for m.grey.Len() > m.maxGrey {
		m.put(m.grey.Front().Value.(Key), Record{})
	}
	return nil
}

func (m *Memory) put(k Key, r Record) {
	old := m.records[k[0]][k]
	if old.Record == r {
		return
	}
	place := old.place
	if place != nil && (r.State != Grey || r.First != old.First) {
		m.grey.Remove(place)
		place = nil
	}
	if place == nil && r.State == Grey {
		place = m.grey.PushBack(k)
	}
	if r.State == Absent {
		delete(m.records[k[0]], k)
	} else {
		m.records[k[0]][k] = kept{r, place}
	}
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
		m.counters[name] += n
	}
	return maps.Clone(m.counters), ctx.Err()
}

// Close is part of Store.
func (m *Memory) Close() error { return nil }
