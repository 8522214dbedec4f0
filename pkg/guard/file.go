package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var (
	errLink    = errors.New("is a link, which is not followed")
	errRegular = errors.New("not a regular file")
	errNames   = errors.New("has more than one name (hard link)")
	errMoved   = errors.New("was replaced while it was opened")
)

// Open opens a file, which is a regular one with this name only: no link is
// followed, no pipe waited for, no device touched. Flags are those of
// os.OpenFile but O_TRUNC, which would empty a file before it is known. A file
// that root makes with O_EXCL is given to the owner of its directory.
func Open(path string, flag int, perm fs.FileMode) (*os.File, error) {
	if flag&os.O_TRUNC != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EINVAL}
	}
	var f *os.File
	var err error
	for range 10 { // it may be replaced meanwhile
		if f, err = open(path, flag, perm); !errors.Is(err, errMoved) {
			break
		}
	}
	if err == nil && flag&os.O_EXCL != 0 && os.Geteuid() == 0 {
		if err = give(f, filepath.Dir(path)); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func open(path string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, perm)
	if err != nil {
		if flag&os.O_EXCL == 0 { // the systems have different errors for a link
			if e := Check(path); e != nil {
				return nil, e
			}
		}
		return nil, err
	}
	// The name is looked at after the file was opened: that it has one name
	// means something only if that is this one.
	fi, err := f.Stat()
	if err == nil {
		var named fs.FileInfo
		if named, err = os.Lstat(path); err == nil && !os.SameFile(fi, named) || errors.Is(err, fs.ErrNotExist) {
			err = &fs.PathError{Op: "open", Path: path, Err: errMoved}
		}
		if err == nil {
			err = regular(path, named)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Check returns an error if there is something at path that Open would not open.
// Nothing there is none.
func Check(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return regular(path, fi)
}

func regular(path string, fi fs.FileInfo) error {
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		return &fs.PathError{Op: "open", Path: path, Err: errLink}
	case !fi.Mode().IsRegular():
		return &fs.PathError{Op: "open", Path: path, Err: errRegular}
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		return &fs.PathError{Op: "open", Path: path, Err: errNames}
	}
	return nil
}

// give makes the owner of dir that of f. Only root can.
func give(f *os.File, dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid, gid := owner(fi)
	return f.Chown(uid, gid)
}

func owner(fi fs.FileInfo) (uid, gid int) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return os.Geteuid(), os.Getegid()
}

// Times of BeginReplace.
const (
	replaceWait = 5 * time.Second
	replaceStep = 10 * time.Millisecond
)

// A Replacement is a file that will take the place of another as a whole. Nobody
// else has one for the same file until it is committed or dropped.
type Replacement struct {
	*os.File
	path string
	done bool
}

// BeginReplace makes the file path.tmp that is to replace path, with mode perm
// whatever the umask. While another process does the same it waits; what a killed
// one has left is removed after 5 seconds, or at once if it is older than 10. What is at path, if anything, must be a
// regular file and no link.
//
// When it is root who does it the file is given to the owner of what it replaces,
// or to that of the directory: a filter could not replace a file of root's in a
// directory where only owners remove.
func BeginReplace(path string, perm fs.FileMode) (*Replacement, error) {
	old, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return nil, err
	default:
		if err := regular(path, old); errors.Is(err, errNames) {
			old = nil // of whoever made the other name; it stays what it is
		} else if err != nil {
			return nil, err
		}
	}
	f, err := exclusive(path+".tmp", perm)
	if err != nil {
		return nil, err
	}
	r := &Replacement{File: f, path: path}
	err = f.Chmod(perm)
	if err == nil && os.Geteuid() == 0 {
		if old != nil {
			uid, gid := owner(old)
			err = f.Chown(uid, gid)
		} else {
			err = give(f, filepath.Dir(path))
		}
	}
	if err != nil {
		r.Drop()
		return nil, err
	}
	return r, nil
}

// exclusive makes a file that was not there.
func exclusive(path string, perm fs.FileMode) (*os.File, error) {
	var seen fs.FileInfo
	end := time.Now().Add(4 * replaceWait)
	for until := time.Now().Add(replaceWait); ; {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, perm)
		if !errors.Is(err, fs.ErrExist) || time.Now().After(end) {
			return f, err
		}
		fi, err := os.Lstat(path)
		if err != nil {
			continue // gone meanwhile
		}
		if seen == nil || !os.SameFile(fi, seen) {
			seen, until = fi, time.Now().Add(replaceWait)
			// Nobody has written to it for long: an end must not wait for that.
			if old := fi.ModTime().Add(2 * replaceWait); old.Before(until) {
				until = old
			}
		}
		if time.Now().Before(until) {
			time.Sleep(replaceStep)
		} else if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// Commit puts the file in the place of the other one. Call Sync before if it must
// be there even if the power fails.
func (r *Replacement) Commit() error {
	r.done = true
	err := r.Close()
	if err == nil {
		err = os.Rename(r.Name(), r.path)
	}
	if err != nil {
		os.Remove(r.Name())
	}
	return err
}

// Drop removes the file instead. After Commit it does nothing.
func (r *Replacement) Drop() {
	if !r.done {
		r.done = true
		r.Close()
		os.Remove(r.Name())
	}
}

// Replace replaces the file at path by text, as BeginReplace and Commit do: a
// reader sees the old file or the new one.
func Replace(path string, perm fs.FileMode, text []byte) error {
	r, err := BeginReplace(path, perm)
	if err != nil {
		return err
	}
	defer r.Drop()
	if _, err := r.Write(text); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return r.Commit()
}
