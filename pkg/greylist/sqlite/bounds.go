package sqlite

import (
	"bytes"
	"database/sql"
	"math/rand/v2"
	"slices"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// What a transaction changes in the numbers of records that have a bound.
type changes struct {
	grey   int64
	groups map[string]int64 // grey records of a client network
	kinds  map[greylist.Kind]int64
}

func newChanges() changes {
	return changes{groups: make(map[string]int64), kinds: make(map[greylist.Kind]int64)}
}

// add counts n records like this one.
func (c *changes) add(e greylist.Entry, n int64) {
	kind := e.Key.Kind()
	switch {
	case e.Record.State == greylist.Absent:
	case kind.Most() > 0:
		c.kinds[kind] += n
	case waits(e):
		c.grey += n
		c.groups[e.Group()] += n
	}
}

const (
	evictRows = 2000 // looked at to find the oldest
	evictTime = 20 * time.Millisecond
	evictMore = 1000 // a thousandth of a kind more than need be, so that it is not the next step's turn too
	heavy     = 32   // grey records of a network that may be the one with most, as in the index
)

// bound stores the numbers of records, and removes those for which there is no
// room: looking for them so many times at most, and, if evict is set, though none
// was made.
func (w *writer) bound(maxGrey, looks int, evict bool) error {
	if err := w.countKinds(); err != nil {
		return err
	}
	if err := w.countGroups(); err != nil {
		return err
	}
	if w.changes.grey == 0 && !evict {
		return nil
	}
	n, err := w.greyCount()
	if err != nil || n <= int64(maxGrey) {
		return err
	}
	if err := w.evict(n-int64(maxGrey), looks); err != nil {
		return err
	}
	if err := w.countGroups(); err != nil {
		return err
	}
	_, err = w.greyCount()
	return err
}

// greyCount brings the stored number of grey records up to date.
func (w *writer) greyCount() (n int64, err error) {
	err = w.grow.QueryRowContext(background(), "", w.changes.grey).Scan(&n)
	w.changes.grey = 0
	return n, err
}

// countGroups brings the numbers of the networks up to date.
func (w *writer) countGroups() error {
	groups := w.changes.groups
	var names []string
	for name, n := range groups {
		if n != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		w.wrote++
		if _, err := w.group.ExecContext(background(), []byte(name), groups[name]); err != nil {
			return err
		}
		if groups[name] < 0 {
			if _, err := w.conn.ExecContext(background(), "DELETE FROM waiting WHERE net = ? AND n <= 0", []byte(name)); err != nil {
				return err
			}
		}
	}
	clear(groups)
	return nil
}

// countKinds brings the numbers of the kinds that have a bound up to date, and
// removes of those past it the ones used longest ago.
func (w *writer) countKinds() error {
	for kind, delta := range w.changes.kinds {
		if delta == 0 {
			continue
		}
		var n int64
		if err := w.grow.QueryRowContext(background(), kindCounter(kind), delta).Scan(&n); err != nil {
			return err
		}
		most := int64(kind.Most())
		if n <= most {
			continue
		}
		res, err := w.conn.ExecContext(background(), `DELETE FROM rec WHERE k IN (SELECT k FROM rec
			WHERE substr(k, 16, 1) = ?1 AND substr(k, 16, 1) >= x'08' ORDER BY last LIMIT ?2)`,
			[]byte{byte(kind)}, n-most+most/evictMore)
		if err != nil {
			return err
		}
		gone, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if gone == 0 { // somebody else has removed them
			gone = n
		}
		if err := w.grow.QueryRowContext(background(), kindCounter(kind), -gone).Scan(&n); err != nil {
			return err
		}
	}
	clear(w.changes.kinds)
	return nil
}

// kindCounter names the number of records of a kind.
func kindCounter(k greylist.Kind) string { return "\x01" + k.String() }

// A waiting record is one that may have to go.
type waiting struct {
	k     greylist.Key
	first int64
}

// evict removes grey records: of the network that has most the oldest, and the
// oldest of all when none has many. It stops when enough are gone, or it has looked so
// many times, or others have waited long enough.
func (w *writer) evict(excess int64, looks int) error {
	for end := time.Now().Add(evictTime); excess > 0 && looks > 0 && !time.Now().After(end); looks-- {
		net, n, err := w.heaviest()
		if err != nil {
			return err
		}
		var gone int64
		if net == nil {
			gone, err = w.evictOldest(excess)
		} else {
			gone, err = w.evictFrom(net, min(n, excess))
		}
		if err != nil {
			return err
		}
		if err := w.countGroups(); err != nil {
			return err
		}
		if gone == 0 && net == nil {
			return nil
		}
		excess -= gone
	}
	return nil
}

// heaviest returns the network that has most grey records, nil if none has many, and
// how many of them may go before it is looked for again: until another has as many,
// but an eighth.
func (w *writer) heaviest() (net []byte, n int64, err error) {
	rows, err := w.conn.QueryContext(background(), "SELECT net, n FROM waiting WHERE n >= 32 ORDER BY n DESC LIMIT 2")
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	next := int64(heavy - 1)
	var most int64
	for first := true; rows.Next(); first = false {
		var name sql.RawBytes
		var has int64
		if err := rows.Scan(&name, &has); err != nil {
			return nil, 0, err
		}
		if first {
			net, most = bytes.Clone(name), has
		} else {
			next = has
		}
	}
	return net, max(most/8, most-next), rows.Err()
}

// evictFrom removes up to n grey records of a network, the oldest of those it looks
// at. What counts the attempts of a client goes when there is nothing to count.
func (w *writer) evictFrom(net []byte, n int64) (gone int64, err error) {
	// The end of a key is random, so those after any are a fair sample.
	from, end := make([]byte, 16), bytes.Repeat([]byte{0xff}, 16)
	copy(from, net)
	copy(end, net)
	for i := len(net); i < len(from); i++ {
		from[i] = byte(rand.Uint32())
	}
	begin := append(bytes.Clone(net), make([]byte, 16-len(net))...)
	var found []waiting
	for _, part := range [][2][]byte{{from, end}, {begin, from}} {
		if err := w.scanWaiting(&found, "SELECT k, first FROM rec WHERE k >= ? AND k <= ? AND state = 1 ORDER BY k LIMIT ?",
			part[0], part[1], evictRows-len(found)); err != nil {
			return 0, err
		}
	}
	whole := len(found) < evictRows
	if err := w.scanWaiting(&found, "SELECT k, first FROM rec WHERE net = ?1 AND net <> x'' AND state = 1 LIMIT ?2", net, evictRows); err != nil {
		return 0, err
	}
	if len(found) == 0 { // somebody else has removed them
		_, err := w.conn.ExecContext(background(), "DELETE FROM waiting WHERE net = ?", net)
		return 0, err
	}
	attempts := slices.DeleteFunc(slices.Clone(found), func(r waiting) bool { return r.k.Kind() == greylist.KindClient })
	if len(attempts) > 0 {
		found = attempts
	}
	if !whole {
		n = max(n, int64(len(found)/8))
	}
	return w.remove(found, n, func(greylist.Key) string { return string(net) })
}

// evictOldest removes the oldest grey records. Keys being random, the rows that
// follow any key are a fair sample; of each sample the oldest eighth goes.
func (w *writer) evictOldest(excess int64) (gone int64, err error) {
	from, looked := w.next, 0
	var grey []waiting
	groups := make(map[greylist.Key]string)
	scan := func(query string, args ...any) error {
		rows, err := w.conn.QueryContext(background(), query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var k, net sql.RawBytes
			var e greylist.Entry
			if err := rows.Scan(&k, &net, &e.Record.State, &e.Record.First); err != nil {
				return err
			}
			looked++
			copy(e.Key[:], k)
			w.next = e.Key
			if e.Record.State == greylist.Grey && e.Key.Kind().Most() == 0 {
				e.Record.Net = string(net)
				groups[e.Key] = e.Group()
				grey = append(grey, waiting{e.Key, e.Record.First})
			}
		}
		return rows.Err()
	}
	if err := scan("SELECT k, net, state, first FROM rec WHERE k > ? ORDER BY k LIMIT ?", from[:], evictRows); err != nil {
		return 0, err
	}
	whole := false
	if looked < evictRows {
		w.next = greylist.Key{}
		if err := scan("SELECT k, net, state, first FROM rec WHERE k <= ? ORDER BY k LIMIT ?", from[:], evictRows-looked); err != nil {
			return 0, err
		}
		whole = looked < evictRows
	}
	if !whole {
		excess = int64(len(grey)/8 + 1)
	}
	return w.remove(grey, excess, func(k greylist.Key) string { return groups[k] })
}

// scanWaiting appends the records of a result.
func (w *writer) scanWaiting(to *[]waiting, query string, args ...any) error {
	rows, err := w.conn.QueryContext(background(), query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k sql.RawBytes
		var r waiting
		if err := rows.Scan(&k, &r.first); err != nil {
			return err
		}
		copy(r.k[:], k)
		if r.k.Kind().Most() == 0 {
			*to = append(*to, r)
		}
	}
	return rows.Err()
}

// remove deletes the n oldest of some records.
func (w *writer) remove(from []waiting, n int64, group func(greylist.Key) string) (gone int64, err error) {
	slices.SortFunc(from, func(a, b waiting) int { return int(min(max(a.first-b.first, -1), 1)) })
	for _, r := range from[:min(n, int64(len(from)))] {
		if _, err := w.del.ExecContext(background(), r.k[:]); err != nil {
			return gone, err
		}
		w.wrote++
		w.changes.grey--
		w.changes.groups[group(r.k)]--
		gone++
	}
	return gone, nil
}

// waits reports whether a record is one of those that maxGrey bounds.
func waits(e greylist.Entry) bool {
	return e.Record.State == greylist.Grey && e.Key.Kind().Most() == 0
}
