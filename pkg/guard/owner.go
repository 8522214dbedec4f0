package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// BecomeOwner is for a program that root runs on a file in a directory which may
// belong to another user, such as that of a filter: whoever owns a directory
// decides what the names in it mean, and must not decide about the files of root.
// So the whole process gets the rights of that user, with his groups, until
// restore is called. It is called before anything there is opened or looked at.
//
// That is the owner of the first directory on the way to path, from the root
// down, that is not root's; or, in a directory of root's in which others may write
// too, the owner of what is there. A link on the way is followed in directories
// that are root's alone; path itself must not be one. If path is in a directory of root's, nothing changes, and
// neither if it is not root who runs the program.
func BecomeOwner(path string) (restore func(), err error) {
	restore = func() {}
	if os.Geteuid() != 0 {
		return restore, nil
	}
	uid, gid, err := decider(path)
	if err != nil || uid == 0 {
		return restore, err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return restore, err
	}
	egid := os.Getegid()
	restore = func() {
		err := syscall.Seteuid(0)
		err = errors.Join(err, syscall.Setegid(egid), syscall.Setgroups(groups))
		if err != nil {
			panic(err) // cannot happen: the real user is root
		}
	}
	gid, own := groupsOf(uid, gid)
	err = syscall.Setgroups(own)
	if err == nil {
		err = syscall.Setegid(gid)
	}
	if err == nil {
		err = syscall.Seteuid(uid)
	}
	if err != nil {
		restore()
		return func() {}, fmt.Errorf("%s: cannot become its owner, user %d: %w", path, uid, err)
	}
	return restore, nil
}

// groupsOf returns the groups of a user, the first one alone. One who is not known
// has the given group.
func groupsOf(uid, gid int) (int, []int) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return gid, []int{gid}
	}
	if n, err := strconv.Atoi(u.Gid); err == nil {
		gid = n
	}
	groups := []int{gid}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil && n != gid && len(groups) < 16 {
			groups = append(groups, n)
		}
	}
	return gid, groups
}

const maxLinks = 32

// decider returns who decides what path means: 0 if that is root alone.
func decider(path string) (uid, gid int, err error) {
	if !filepath.IsAbs(path) { // not cleaned: two dots may follow a link
		dir, err := os.Getwd()
		if err != nil {
			return 0, 0, err
		}
		path = dir + "/" + path
	}
	at, rest := "/", parts(path)
	for links := 0; ; {
		dir, err := os.Lstat(at)
		if err != nil {
			return 0, 0, err
		}
		if uid, gid := owner(dir); uid != 0 {
			return uid, gid, nil
		}
		shared := dir.Mode()&0o022 != 0
		if len(rest) == 0 {
			return 0, 0, nil
		}
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		fi, err := os.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			if shared && (dir.Mode()&fs.ModeSticky == 0 || len(rest) > 0) {
				return 0, 0, sharedError(at)
			}
			return 0, 0, nil
		}
		if err != nil {
			return 0, 0, err
		}
		if uid, gid := owner(fi); uid != 0 && (shared || !fi.IsDir()) {
			return uid, gid, nil
		}
		// What is root's in a sticky directory was put there by root, but for a
		// hard link.
		if st, ok := fi.Sys().(*syscall.Stat_t); shared && (dir.Mode()&fs.ModeSticky == 0 || ok && !fi.IsDir() && st.Nlink > 1) {
			return 0, 0, sharedError(at)
		}
		switch {
		case fi.IsDir():
			at = next
		case fi.Mode()&fs.ModeSymlink != 0 && len(rest) > 0:
			if links++; links > maxLinks {
				return 0, 0, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
			}
			to, err := os.Readlink(next)
			if err != nil {
				return 0, 0, err
			}
			if filepath.IsAbs(to) {
				at = "/"
			}
			rest = slices.Concat(parts(to), rest)
		default: // or a file on the way
			return 0, 0, nil
		}
	}
}

func sharedError(dir string) error {
	return fmt.Errorf("%s belongs to root, but others may write in it: run this as the user of the filter, or make him its owner with chown(8)", dir)
}

// parts returns the names of a path. Two dots stay, for a link may come before.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}
