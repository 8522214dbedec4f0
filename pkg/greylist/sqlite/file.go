package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/guard"

	"modernc.org/sqlite"
)

// Result codes, see https://www.sqlite.org/rescode.html.
const (
	codeBusy    = 5
	codeLocked  = 6
	codeCorrupt = 11
	codeFull    = 13
	codeNotADB  = 26
)

func hasCode(err error, codes ...int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && slices.Contains(codes, e.Code()&0xff)
}

func isBusy(err error) bool    { return hasCode(err, codeBusy, codeLocked) }
func isFull(err error) bool    { return hasCode(err, codeFull) }
func isCorrupt(err error) bool { return hasCode(err, codeCorrupt, codeNotADB) }

// migrations make one version of the schema from the one before; the version is
// in user_version. One that has been released never changes.
var migrations = [...]string{
	`CREATE TABLE rec (
		k      BLOB NOT NULL PRIMARY KEY,
		state  INTEGER NOT NULL,
		tries  INTEGER NOT NULL,
		first  INTEGER NOT NULL,
		last   INTEGER NOT NULL,
		nets   BLOB NOT NULL,
		origin TEXT NOT NULL,
		sender TEXT NOT NULL,
		rcpt   TEXT NOT NULL
	) STRICT, WITHOUT ROWID`,

	// The empty name counts the grey records.
	`CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
	INSERT INTO counter SELECT '', count(*) FROM rec WHERE state = 1`,

	// Grey records are counted by client network, which is the first half of the
	// key or in net; other kinds, from 8 on, by kind. Networks as a whole (4) and
	// their quotas (5) are no more.
	`ALTER TABLE rec ADD COLUMN net BLOB NOT NULL DEFAULT x'';
	ALTER TABLE rec ADD COLUMN client TEXT NOT NULL DEFAULT '';
	DELETE FROM rec WHERE substr(k, 16, 1) IN (x'04', x'05');
	CREATE INDEX rec_net ON rec (net) WHERE net <> x'';
	CREATE INDEX rec_kind ON rec (substr(k, 16, 1), last) WHERE substr(k, 16, 1) >= x'08';
	CREATE TABLE waiting (net BLOB NOT NULL PRIMARY KEY, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
	CREATE INDEX waiting_heavy ON waiting (n) WHERE n >= 32;
	INSERT INTO waiting SELECT substr(k, 1, 8), count(*) FROM rec WHERE state = 1 GROUP BY 1;
	UPDATE counter SET n = (SELECT count(*) FROM rec WHERE state = 1) WHERE name = ''`,
}

const columns = "k, state, tries, first, last, nets, origin, sender, rcpt, net, client"

// Bounds of one statement.
const (
	maxKeys = 256 // read
	keyStep = 16  // to which their number is rounded, so that there are few such statements
	maxPuts = 8   // written
)

// dsn returns the name of the database with its settings. Kilobytes bound the
// pages kept in memory; the system caches the file anyway.
func dsn(path string, kilobytes int, more ...string) string {
	q := url.Values{
		"mode":    {"rw"},
		"_txlock": {"immediate"},
		"_pragma": append([]string{
			"busy_timeout(100)",
			"auto_vacuum(incremental)", // take effect when the file is made
			"journal_mode(wal)",
			"synchronous(normal)",
			fmt.Sprintf("wal_autocheckpoint(%d)", maxJournal), // if those of the store are late
			"temp_store(memory)",
			"mmap_size(0)",
			fmt.Sprintf("cache_size(-%d)", kilobytes),
			"journal_size_limit(2097152)",
		}, more...),
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// A reader reads beside the writer.
type reader struct {
	db *sql.DB
}

// get returns the records of keys.
func (r *reader) get(ctx context.Context, keys []greylist.Key) ([]greylist.Record, error) {
	recs := make([]greylist.Record, len(keys))
	place := make(map[greylist.Key]int)
	for i, k := range keys {
		place[k] = i
	}
	for part := range slices.Chunk(keys, maxKeys) {
		rows, err := r.db.QueryContext(ctx, selectKeys(len(part)), keyArgs(part)...)
		if err != nil {
			return nil, err
		}
		if err := scan(rows, func(e greylist.Entry) { recs[place[e.Key]] = e.Record }); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

func selectKeys(n int) string {
	return "SELECT " + columns + " FROM rec WHERE k IN (?" + strings.Repeat(",?", n-1) + ")"
}

func insertRows(n int) string {
	const values = "(?,?,?,?,?,?,?,?,?,?,?)"
	return "REPLACE INTO rec (" + columns + ") VALUES " + values + strings.Repeat(","+values, n-1)
}

// rowArgs appends what insertRows wants for a record.
func rowArgs(args []any, k greylist.Key, r *greylist.Record) []any {
	return append(args, k[:], int64(r.State), r.Tries, r.First, r.Last, []byte(r.Nets), r.Origin, r.Sender, r.Rcpt, []byte(r.Net), r.Client)
}

func keyArgs(keys []greylist.Key) []any {
	args := make([]any, len(keys), maxKeys)
	for i := range keys {
		args[i] = keys[i][:]
	}
	return args
}

// scan calls f with each record of a result.
func scan(rows *sql.Rows, f func(greylist.Entry)) error {
	defer rows.Close()
	for rows.Next() {
		var k, nets, net sql.RawBytes
		var e greylist.Entry
		r := &e.Record
		if err := rows.Scan(&k, &r.State, &r.Tries, &r.First, &r.Last, &nets, &r.Origin, &r.Sender, &r.Rcpt, &net, &r.Client); err != nil {
			return err
		}
		copy(e.Key[:], k)
		r.Nets, r.Net = string(nets), string(net)
		f(e)
	}
	return rows.Err()
}

// page returns up to n records that follow a key.
func (r *reader) page(ctx context.Context, after greylist.Key, n int) ([]greylist.Entry, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT "+columns+" FROM rec WHERE k > ? ORDER BY k LIMIT ?", after[:], n)
	if err != nil {
		return nil, err
	}
	var page []greylist.Entry
	err = scan(rows, func(e greylist.Entry) { page = append(page, e) })
	return page, err
}

// find returns up to n records of those a query matches that follow a key; of a
// kind that has a bound all, whatever n.
func (r *reader) find(ctx context.Context, q greylist.Query, after greylist.Key, n int) ([]greylist.Entry, error) {
	where, args := "k > ?", []any{after[:]}
	limit := " ORDER BY k LIMIT ?"
	if q.Kind != 0 {
		where, args = where+" AND substr(k, 16, 1) = ?", append(args, []byte{byte(q.Kind)})
	}
	if q.Kind.Most() > 0 {
		where = strings.Replace(where, "k >", "+k >", 1) + " AND substr(k, 16, 1) >= x'08'" // by the index
		limit, n = " LIMIT ?", q.Kind.Most()*2
	}
	for _, part := range []struct{ condition, text string }{
		{"instr(rcpt, ?) > 0", q.Rcpt},
		{"(instr(sender, ?) > 0 OR instr(origin, ?) > 0)", q.Sender},
		{"(instr(client, ?) > 0 OR instr(origin, ?) > 0)", q.Client},
	} {
		if part.text != "" {
			where += " AND " + part.condition
			for range strings.Count(part.condition, "?") {
				args = append(args, part.text)
			}
		}
	}
	rows, err := r.db.QueryContext(ctx, "SELECT "+columns+" FROM rec WHERE "+where+limit, append(args, n)...)
	if err != nil {
		return nil, err
	}
	var page []greylist.Entry
	err = scan(rows, func(e greylist.Entry) { page = append(page, e) })
	return page, err
}

// checkpoint copies from the journal to the file what nobody is in the way of.
// It returns the pages of the journal, and how many of them have been copied.
func (r *reader) checkpoint() (pages, copied int, err error) {
	err = guard.Call(func() error { // the writer will meet a panic too
		return r.db.QueryRowContext(background(), "PRAGMA wal_checkpoint(PASSIVE)").Scan(new(int), &pages, &copied)
	})
	return pages, copied, err
}

// checkpoint copies all of the journal to the file and empties it. It reports
// whether that was done: somebody who reads may be in the way, for longer than
// SQLite waits.
func (w *writer) checkpoint() (done bool, err error) {
	var busy int
	err = w.conn.QueryRowContext(background(), "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, new(int), new(int))
	return busy == 0 && err == nil, err
}

// pages returns the size of the file.
func (w *writer) pages() (n int64, err error) {
	err = w.conn.QueryRowContext(background(), "PRAGMA page_count").Scan(&n)
	return n, err
}

// maxPages sets the size past which the file is full.
func (w *writer) maxPages(n int64) error {
	return w.conn.QueryRowContext(background(), fmt.Sprintf("PRAGMA max_page_count = %d", n)).Scan(new(int64))
}

// greyNow returns the number of grey records.
func (w *writer) greyNow() (n int64, err error) {
	err = w.conn.QueryRowContext(background(), "SELECT n FROM counter WHERE name = ''").Scan(&n)
	return n, err
}

// close waits for a checkpoint, but not for ever: the connection that is closed
// last takes the journal away by its name, which may be that of another by then.
func (r *reader) close() {
	ctx, cancel := context.WithTimeout(background(), closeTime/2)
	defer cancel()
	if conn, err := r.db.Conn(ctx); err == nil {
		defer conn.Close()
	}
	r.db.Close()
}

func counters(ctx context.Context, db interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}) (map[string]int64, error) {
	rows, err := db.QueryContext(ctx, "SELECT name, n FROM counter WHERE name >= ' '")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := make(map[string]int64)
	for rows.Next() {
		var name string
		var n int64
		if err := rows.Scan(&name, &n); err != nil {
			return nil, err
		}
		counts[name] = n
	}
	return counts, rows.Err()
}

// A writer is the one connection of a process that writes. It serves one
// goroutine.
type writer struct {
	path   string
	db     *sql.DB
	conn   *sql.Conn
	reader *reader
	file   os.FileInfo // as opened
	wal    os.FileInfo

	read    [maxKeys/keyStep + 1]*sql.Stmt // by the number of keys, in steps
	put     [maxPuts + 1]*sql.Stmt         // by the number of records
	del     *sql.Stmt
	touch   *sql.Stmt
	grow    *sql.Stmt
	group   *sql.Stmt
	version *sql.Stmt

	data    int64                 // PRAGMA data_version
	changes changes               // of this transaction
	rows    map[greylist.Key]*row // of this transaction
	wrote   int                   // rows, in this transaction
	shrink  bool
	next    greylist.Key // where the search for the oldest goes on
}

// A row is a record within a transaction: as stored, and as it shall be. What
// the steps of a transaction read is read at once, and written at its end.
type row struct{ old, now greylist.Record }

// background is the context of the writing goroutine: what it has begun it ends.
func background() context.Context { return context.Background() }

func openWriter(o Options) (_ *writer, err error) {
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, err
	}
	w := &writer{path: path, rows: make(map[greylist.Key]*row), changes: newChanges()}
	if w.file, err = known(path); errors.Is(err, fs.ErrNotExist) && !o.Existing {
		if err = create(path); err == nil {
			w.file, err = known(path)
		}
	}
	if err != nil {
		return nil, err
	}
	if w.db, err = sql.Open("sqlite", dsn(path, 8192)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.conn, err = w.db.Conn(background()); err != nil {
		return nil, err
	}
	if err := w.migrate(); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&w.put[1], insertRows(1)},
		{&w.put[maxPuts], insertRows(maxPuts)},
		{&w.del, "DELETE FROM rec WHERE k = ?"},
		{&w.touch, "UPDATE rec SET last = ?2, first = min(first, ?2) WHERE k = ?1 AND state = 2 AND last >= ?3 AND last <> ?2"},
		{&w.grow, "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n RETURNING n"},
		{&w.group, "INSERT INTO waiting VALUES (?, ?) ON CONFLICT (net) DO UPDATE SET n = n + excluded.n"},
		{&w.version, "PRAGMA data_version"},
	} {
		if *s.stmt, err = w.conn.PrepareContext(background(), s.text); err != nil {
			return nil, err
		}
	}
	if _, err = w.changed(); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(path, 1024, "query_only(true)"))
	if err != nil {
		return nil, err
	}
	// One connection, opened now: one opened later might be to another file
	// of that name, and take our journal for its own.
	db.SetMaxOpenConns(1)
	w.reader = &reader{db}
	if err = db.PingContext(background()); err != nil {
		return nil, err
	}
	w.wal, _ = os.Lstat(path + "-wal")
	return w, nil
}

func (w *writer) migrate() error {
	var version int
	if err := w.conn.QueryRowContext(background(), "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	var id int64
	if err := w.conn.QueryRowContext(background(), "PRAGMA application_id").Scan(&id); err != nil {
		return err
	}
	if version == len(migrations) && id == applicationID {
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	err := func() error {
		if err := w.conn.QueryRowContext(background(), "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		if version < 0 || version > len(migrations) {
			return fmt.Errorf("made by a newer version of this program (schema %d)", version)
		}
		if err := w.claim(background()); err != nil {
			return err
		}
		for _, m := range migrations[version:] {
			if _, err := w.conn.ExecContext(background(), m); err != nil {
				return err
			}
		}
		if _, err := w.conn.ExecContext(background(), fmt.Sprintf("PRAGMA user_version = %d", len(migrations))); err != nil {
			return err
		}
		_, err := w.conn.ExecContext(background(), "COMMIT")
		return err
	}()
	if err != nil {
		w.rollback()
	}
	return err
}

// replaced reports whether the name belongs to another file now, or to none.
func (w *writer) replaced() bool {
	fi, err := os.Lstat(w.path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(fi, w.file)
}

// close closes the file. SQLite leaves the journal of a file that was replaced
// where it is, to be taken for one of the new file.
func (w *writer) close() {
	if w.reader != nil {
		w.reader.close()
	}
	if w.replaced() {
		if fi, err := os.Lstat(w.path + "-wal"); err == nil && w.wal != nil && os.SameFile(fi, w.wal) {
			os.Remove(w.path + "-wal")
			os.Remove(w.path + "-shm")
		}
	}
	// SQLite keeps a connection open while it has statements.
	for _, s := range slices.Concat(w.read[:], w.put[:], []*sql.Stmt{w.del, w.touch, w.grow, w.group, w.version}) {
		if s != nil {
			s.Close()
		}
	}
	if w.conn != nil {
		w.conn.Close()
	}
	if w.db != nil {
		w.db.Close()
	}
}

// changed reports whether another connection has written since the last call.
func (w *writer) changed() (bool, error) {
	var v int64
	if err := w.version.QueryRowContext(background()).Scan(&v); err != nil {
		return false, err
	}
	changed := v != w.data
	w.data = v
	return changed, nil
}

func (w *writer) begin() error {
	w.changes, w.wrote = newChanges(), 0
	clear(w.rows)
	_, err := w.conn.ExecContext(background(), "BEGIN IMMEDIATE")
	return err
}

func (w *writer) rollback() {
	w.conn.ExecContext(background(), "ROLLBACK")
}

// commit writes what the steps have changed, removes what is too much if there
// are more grey records than before, or if asked to, and ends the transaction.
func (w *writer) commit(maxGrey, looks int, evict bool) error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.bound(maxGrey, looks, evict); err != nil {
		return err
	}
	_, err := w.conn.ExecContext(background(), "COMMIT")
	return err
}

// recount sets the number of grey records, as it was before this transaction, to
// what a sweep has found, if it is far off: somebody else has removed records.
// Else it is the better one, for records come and go while a sweep looks for them.
func (w *writer) recount(found int64) error {
	_, err := w.conn.ExecContext(background(), "UPDATE counter SET n = ?1 WHERE name = '' AND abs(n - ?1) > 10 + n / 2", found)
	return err
}

// update is one step of greylist.Store.Update.
func (w *writer) update(keys []greylist.Key, f func([]greylist.Record)) error {
	if err := w.load(keys); err != nil {
		return err
	}
	recs := make([]greylist.Record, len(keys))
	for i, k := range keys {
		recs[i] = w.rows[k].now
	}
	if err := call(f, recs); err != nil {
		return err
	}
	for i, k := range keys {
		if recs[i].State == greylist.Absent {
			recs[i] = greylist.Record{}
		}
		w.rows[k].now = recs[i]
	}
	return nil
}

// load reads the records of keys, but for those that have been read.
func (w *writer) load(keys []greylist.Key) error {
	var missing []greylist.Key
	for _, k := range keys {
		if w.rows[k] == nil {
			w.rows[k] = new(row)
			missing = append(missing, k)
		}
	}
	for part := range slices.Chunk(missing, maxKeys) {
		args := keyArgs(part)
		for len(args)%keyStep != 0 {
			args = append(args, args[0])
		}
		stmt := &w.read[len(args)/keyStep]
		var err error
		if *stmt == nil {
			if *stmt, err = w.conn.PrepareContext(background(), selectKeys(len(args))); err != nil {
				return err
			}
		}
		rows, err := (*stmt).QueryContext(background(), args...)
		if err != nil {
			return err
		}
		if err := scan(rows, func(e greylist.Entry) { *w.rows[e.Key] = row{e.Record, e.Record} }); err != nil {
			return err
		}
	}
	return nil
}

// flush writes the records that have changed, in the order of the file.
func (w *writer) flush() error {
	var puts []greylist.Key
	for k, r := range w.rows {
		if r.now == r.old {
			continue
		}
		w.wrote++
		w.changes.add(greylist.Entry{Key: k, Record: r.old}, -1)
		w.changes.add(greylist.Entry{Key: k, Record: r.now}, 1)
		if r.now.State != greylist.Absent {
			puts = append(puts, k)
		} else if _, err := w.del.ExecContext(background(), k[:]); err != nil {
			return err
		}
	}
	slices.SortFunc(puts, func(a, b greylist.Key) int { return bytes.Compare(a[:], b[:]) })
	var args []any
	for len(puts) > 0 {
		n := maxPuts
		if len(puts) < n {
			n = 1
		}
		args = args[:0]
		for _, k := range puts[:n] {
			args = rowArgs(args, k, &w.rows[k].now)
		}
		if _, err := w.put[n].ExecContext(background(), args...); err != nil {
			return err
		}
		puts = puts[n:]
	}
	return nil
}

// call calls f, whose panic spoils nothing but its own step.
func call(f func([]greylist.Record), recs []greylist.Record) error {
	if err := guard.Call(func() error { f(recs); return nil }); err != nil {
		return jobError{err}
	}
	return nil
}

// renew sets the last use of passes.
func (w *writer) renew(passes map[greylist.Key]renewal) error {
	for k, n := range passes {
		if _, err := w.touch.ExecContext(background(), k[:], n.now, n.since); err != nil {
			return err
		}
		w.wrote++
	}
	return nil
}

func (w *writer) count(add map[string]int64) error {
	for name, n := range add {
		if name < " " {
			continue // ours
		}
		w.wrote++
		if _, err := w.conn.ExecContext(background(), "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", name, n); err != nil {
			return err
		}
		if n < 0 {
			if _, err := w.conn.ExecContext(background(), "DELETE FROM counter WHERE name = ? AND n = 0", name); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	keepFree    = 256 // pages, or a quarter of the file, to be used again
	vacuumPages = 150 // given back at a time
)

// vacuum gives a part of what is free back to the file system.
func (w *writer) vacuum() error {
	var pages, free int64
	if err := w.conn.QueryRowContext(background(), "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	if err := w.conn.QueryRowContext(background(), "PRAGMA freelist_count").Scan(&free); err != nil {
		return err
	}
	if free <= max(keepFree, pages/4) {
		return nil
	}
	_, err := w.conn.ExecContext(background(), fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages))
	return err
}
