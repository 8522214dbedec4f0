package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/guard"
)

// applicationID is in the header of the file and says that it is ours.
const applicationID = 0x4F475231

// sides are the files that SQLite has beside its own.
var sides = [...]string{"-wal", "-shm", "-journal"}

// known returns the file at path, which is ours to write: it and those beside it
// are regular files with one name each and no links, and it is a greylist or
// empty. Nothing is written.
func known(path string) (os.FileInfo, error) {
	for _, side := range sides {
		if err := guard.Check(path + side); err != nil {
			return nil, err
		}
	}
	if err := guard.Check(path); err != nil {
		// The other name may be that of one who has just made the file.
		if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() || !unlinkNew(path, fi) {
			return nil, guard.Check(path)
		}
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return fi, identify(path)
}

// unlinkNew removes names that a file has kept from when it was made, and reports
// whether it has one name now.
func unlinkNew(path string, fi os.FileInfo) bool {
	names, _ := filepath.Glob(globEscape(path) + newSuffix + "*")
	for _, name := range names {
		if other, err := os.Lstat(name); err == nil && os.SameFile(fi, other) {
			os.Remove(name)
		}
	}
	return guard.Check(path) == nil
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

var errForeign = errors.New("is a database of another program, left as it is")

// identify returns errForeign if there is something in a database that is not
// ours. It reads the file alone: to look into the journal may change it. As others
// may write it meanwhile, nothing else that seems to be wrong means anything here.
func identify(path string) error {
	q := url.Values{"mode": {"ro"}, "immutable": {"1"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	var id int64
	if err := db.QueryRowContext(background(), "PRAGMA application_id").Scan(&id); err != nil {
		return nil
	}
	switch id {
	case applicationID:
		return nil
	case 0: // empty, or made by a version that did not say so
		var all, ours int
		err := db.QueryRowContext(background(), `SELECT count(*), count(CASE WHEN type = 'table' AND name = 'rec' AND sql LIKE '%origin%' THEN 1 END)
			FROM sqlite_master`).Scan(&all, &ours)
		if err != nil || all == 0 || ours == 1 {
			return nil
		}
	}
	return errForeign
}

const newSuffix = ".new-"

// missing is called, by tests, when a file was not found and is to be made.
var missing = func(path string) {}

// create makes the file, unless another process does so first. It is made under
// another name, so that nobody meets one that is half made, and while it is there
// is nothing beside it: a journal that is left of an earlier file must not be
// taken for its own, but one of a file that another process has made meanwhile is
// in use.
func create(path string) error {
	missing(path)
	unlock, err := lock(path)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := newFile(path)
	if err != nil {
		return err
	}
	tmp := f.Name()
	f.Close()
	defer func() {
		for _, side := range sides {
			os.Remove(tmp + side)
		}
		os.Remove(tmp)
	}()
	w := &writer{path: tmp}
	// Without waiting for the disk: mail may already be there, and should the
	// power fail there is nothing to lose yet.
	q := url.Values{"mode": {"rw"}, "_txlock": {"immediate"}, "_pragma": {"auto_vacuum(incremental)", "synchronous(off)", "journal_mode(wal)"}}
	if w.db, err = sql.Open("sqlite", (&url.URL{Scheme: "file", Path: tmp, RawQuery: q.Encode()}).String()); err != nil {
		return err
	}
	if w.conn, err = w.db.Conn(background()); err == nil {
		err = w.migrate()
		w.conn.Close()
	}
	if e := w.db.Close(); err == nil { // the journal goes into the file
		err = e
	}
	if err == nil {
		err = guard.Check(tmp + "-wal")
	}
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(tmp + "-wal"); err == nil && fi.Size() > 0 {
		return errors.New("cannot be written whole") // SQLite says nothing of it
	}
	for _, side := range sides {
		if err := os.Remove(path + side); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// newFile makes an empty file that only its owner may read.
func newFile(path string) (*os.File, error) {
	// What a killed process has left; nobody else is here.
	old, _ := filepath.Glob(globEscape(path) + newSuffix + "*")
	for _, name := range old {
		os.Remove(name)
	}
	return guard.Open(fmt.Sprintf("%s%s%d", path, newSuffix, os.Getpid()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// lock keeps other processes from giving the name of the file to another one. A
// file system that knows no locks has none.
func lock(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for until := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil || !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return func() { dir.Close() }, nil
		case time.Now().After(until):
			dir.Close()
			return nil, fmt.Errorf("%s is locked by another process", filepath.Dir(path))
		}
	}
}

// claim says in the file that it is ours.
func (w *writer) claim(ctx context.Context) error {
	var id int64
	if err := w.conn.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil || id == applicationID {
		return err
	}
	_, err := w.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	return err
}
