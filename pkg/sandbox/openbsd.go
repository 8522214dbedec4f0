//go:build openbsd

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// random is read by SQLite, which would else take the time of day for it.
const random = "/dev/urandom"

// promises are those of pledge(2), each with its reason.
func (s *Sandbox) promises() []string {
	p := []string{
		"error", // what was forgotten here is an error: a filter that is killed takes the mail server down
		"stdio", // what smtpd says and is told, memory, threads, clocks
		"rpath", // list files, resolv.conf
		"inet",  // DNS, over UDP and TCP; a shared store
	}
	if len(s.Write) > 0 {
		p = append(p,
			"wpath", // the database, the state file
			"cpath", // metrics and state files are made beside, and renamed; the journal of a database
			"fattr", // and get their mode
			"flock", // two processes that use one database
		)
	}
	if len(s.Unix) > 0 {
		p = append(p, "unix") // a store on a socket in the file system
	}
	if os.Getuid() == 0 {
		p = append(p,
			"chown", // a file of root's would be of no use to smtpd's user
			"id",    // the rights of a database's owner, taken before, are given back at the end
		)
	}
	return p
}

func (s *Sandbox) enter() error {
	err := s.unveil()
	if err != nil {
		// With the first call all the rest has gone out of sight.
		err = errors.Join(err, unix.Unveil("/", "rwc"))
	}
	return errors.Join(err, unix.UnveilBlock(), unix.PledgePromises(strings.Join(s.promises(), " ")))
}

func (s *Sandbox) unveil() error {
	rights := map[string]string{random: "r"}
	for _, dir := range s.Read {
		rights[dir] = "r"
	}
	for _, dir := range s.Unix {
		rights[dir] = "rw"
	}
	for _, dir := range s.Write {
		rights[dir] = "rwc"
	}
	for path, r := range rights {
		if err := unix.Unveil(path, r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unveil %s: %w", path, err)
		}
	}
	return nil
}

func by() []string { return []string{"pledge", "unveil"} }
