//go:build linux

package sandbox

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Rights of folders, see landlock(7). Files are made and renamed within a folder,
// never from one to another; nothing is executed.
const (
	readRights  landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	writeRights landlock.AccessFSSet = readRights | ll.AccessFSWriteFile | ll.AccessFSTruncate |
		ll.AccessFSMakeReg | ll.AccessFSRemoveFile
)

// random is read by SQLite, which would else take the time of day for it.
const random = "/dev/urandom"

func (s *Sandbox) enter() error {
	// Without it an ordinary user may not restrict himself; it comes first, for
	// it helps where there is no Landlock too.
	err := ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// Up to version 9, which leaves UDP alone: whom DNS servers are asked through
	// may change. Older kernels do what they can.
	c := landlock.V9.BestEffort()
	rules := []landlock.Rule{landlock.PathAccess(ll.AccessFSReadFile, random).IgnoreIfMissing()}
	add := func(rights landlock.AccessFSSet, dirs []string) {
		if len(dirs) > 0 {
			rules = append(rules, landlock.PathAccess(rights, dirs...).IgnoreIfMissing())
		}
	}
	add(readRights, s.Read)
	add(writeRights, s.Write)
	add(ll.AccessFSResolveUnix, s.Unix)
	if s.Any {
		c.HandledAccessNet &^= ll.AccessNetConnectTCP
	} else {
		for _, port := range s.Ports {
			rules = append(rules, landlock.ConnectTCP(port))
		}
	}
	return c.Restrict(rules...)
}

func by() []string {
	v, err := ll.LandlockGetABIVersion()
	switch {
	case err == nil:
		return []string{fmt.Sprintf("landlock %d", v), "no_new_privs"}
	case errors.Is(err, unix.EOPNOTSUPP):
		return []string{"no_new_privs", "but not landlock: the kernel was started without it"}
	}
	return []string{"no_new_privs", "but not landlock: the kernel has none"}
}
