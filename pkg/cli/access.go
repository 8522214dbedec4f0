package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// StateDir returns the folder for what a restart of the program must not forget:
// /var/lib/NAME on Linux, /var/db/NAME on the BSDs (hier(7)).
func StateDir(program string) string {
	if runtime.GOOS == "linux" {
		return "/var/lib/" + program
	}
	return "/var/db/" + program
}

// CheckReadable returns an error if a file is there that the user of the filters
// cannot read, with the line that helps. The user is the one who runs the
// program, or if that is root, for whom everything can be read, smtpd's.
func CheckReadable(path string) error {
	who, ok := filterUser()
	if !ok {
		return nil
	}
	return who.check(path, 4)
}

// CheckWritable is CheckReadable for a file that the filter writes, or makes if
// it is not there: then the folder counts.
func CheckWritable(path string) error {
	who, ok := filterUser()
	if !ok {
		return nil
	}
	return who.checkWritable(path)
}

func (a account) checkWritable(path string) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: install -d -m 700 -o %s %s", dir, a.name, dir)
	}
	if err := a.check(dir, 2|1); err != nil {
		return err
	}
	return a.check(path, 4|2)
}

// An account is a user with the groups it is in.
type account struct {
	name   string
	uid    uint64
	groups map[uint64]bool
}

// filterUser returns who runs the filters, false if that is not known.
func filterUser() (account, bool) {
	if uid := os.Geteuid(); uid != 0 {
		who := account{strconv.Itoa(uid), uint64(uid), map[uint64]bool{uint64(os.Getegid()): true}}
		groups, _ := os.Getgroups()
		for _, g := range groups {
			who.groups[uint64(g)] = true
		}
		if u, err := user.LookupId(who.name); err == nil {
			who.name = u.Username
		}
		return who, true
	}
	u, err := SMTPDUser()
	if err != nil {
		return account{}, false
	}
	return accountOf(u)
}

// SMTPDUser returns the user as whom smtpd runs filters unless smtpd.conf says
// another.
func SMTPDUser() (u *user.User, err error) {
	for _, name := range []string{"_smtpd", "opensmtpd", "smtpd"} { // the BSDs, Debian, others
		if u, err = user.Lookup(name); err == nil {
			return u, nil
		}
	}
	return nil, errors.New("there is no user _smtpd, opensmtpd or smtpd: is OpenSMTPD installed?")
}

// accountOf returns a user with the one group that smtpd lets a filter have.
func accountOf(u *user.User) (account, bool) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return account{u.Username, uid, map[uint64]bool{gid: true}}, err == nil && err2 == nil
}

// CheckWritableBy is CheckWritable for a given user.
func CheckWritableBy(u *user.User, path string) error {
	who, ok := accountOf(u)
	if !ok {
		return nil
	}
	return who.checkWritable(path)
}

// check returns an error if what is at path does not give the rights to the
// account, as bits of others: 4 to read, 2 to write, 1 to search. Nothing there
// is none.
func (a account) check(path string, rights fs.FileMode) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && !a.may(fi, 1) {
			return fmt.Errorf("%s: %s may not enter %s: chmod o+x %s", path, a.name, dir, dir)
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	fi, err := os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || a.may(fi, rights) {
		return err
	}
	if rights&2 == 0 {
		return fmt.Errorf("%s: %s may not read it: chgrp %s %s && chmod g+r %s", path, a.name, a.name, path, path)
	}
	return fmt.Errorf("%s: %s may not write there: chown %s %s", path, a.name, a.name, path)
}

// may reports whether a file gives the rights to the account. Only the bits of
// the first of owner, group and others that fits count.
func (a account) may(fi fs.FileInfo, rights fs.FileMode) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	mode := fi.Mode().Perm()
	switch {
	case !ok || a.uid == 0:
		return true
	case uint64(st.Uid) == a.uid:
		mode >>= 6
	case a.groups[uint64(st.Gid)]:
		mode >>= 3
	}
	return mode&rights == rights
}
