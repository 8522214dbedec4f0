// Package sandbox takes from a process what it does not need: pledge(2) and
// unveil(2) on OpenBSD, Landlock and no_new_privs on Linux, nothing elsewhere. It
// is for programs that know, once their flags are read, which files they will read
// and write, and to which ports they will connect.
//
//	box := sandbox.New(sandbox.Needs{Read: lists, Write: []string{database}, Ports: []uint16{53}})
//	if err := box.Enter(); err != nil {
//		... // go on without
//	}
//
// What is allowed is a folder, never a file alone: a file may then be replaced by
// another of its name, as editors and rename(2) do. A folder is known by what it
// is, not by its name: one that takes its place later is outside. Outside tells.
package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Needs are what a process will do. Descriptors that are open stay so, sockets
// for UDP can always be made.
type Needs struct {
	Read  []string // files, with all that is in their folders
	Write []string // files, beside which others are made, renamed and removed
	Ports []uint16 // of TCP, to connect to
	Any   bool     // TCP connections to ports that are not known yet
	Unix  []string // sockets to connect to, with all that are in their folders
}

// Add adds what is needed besides.
func (n *Needs) Add(more Needs) {
	n.Read = append(n.Read, more.Read...)
	n.Write = append(n.Write, more.Write...)
	n.Ports = append(n.Ports, more.Ports...)
	n.Any = n.Any || more.Any
	n.Unix = append(n.Unix, more.Unix...)
}

// A Sandbox is what will be allowed, or is.
type Sandbox struct {
	Read, Write, Unix []string // folders, those that are there
	Ports             []uint16
	Any               bool

	files   []string // that were named
	folders []os.FileInfo
}

// New returns a sandbox for what is needed. It looks at the folders, and changes
// nothing.
func New(n Needs) *Sandbox {
	s := &Sandbox{Ports: slices.Clone(n.Ports), Any: n.Any}
	s.Read, s.Write, s.Unix = s.allow(n.Read), s.allow(n.Write), s.allow(n.Unix)
	slices.Sort(s.Ports)
	s.Ports = slices.Compact(s.Ports)
	return s
}

// allow returns the folders of files.
func (s *Sandbox) allow(files []string) []string {
	var found []string
	for _, file := range files {
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
		s.files = append(s.files, file)
		for _, dir := range folders(file) {
			dir, err := filepath.EvalSymlinks(dir)
			if err != nil || slices.Contains(found, dir) {
				continue
			}
			fi, err := os.Stat(dir)
			if err != nil || !fi.IsDir() {
				continue
			}
			found = append(found, dir)
			s.folders = append(s.folders, fi)
		}
	}
	slices.Sort(found)
	return found
}

const maxLinks = 16

// folders returns those that decide what a name means: its own and, if it is a
// link, that of what it leads to, over all steps.
func folders(file string) []string {
	var dirs []string
	for range maxLinks {
		dirs = append(dirs, filepath.Dir(file))
		to, err := os.Readlink(file)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			// Two dots in it mean the folder's own parent, wherever a link to
			// the folder is.
			dir := filepath.Dir(file)
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real
			}
			to = filepath.Join(dir, to)
		}
		file = to
	}
	return dirs
}

// Outside returns the folders, of the files that were named, that are not among
// those that are allowed: they were not there, others have taken their names, or a
// link leads elsewhere now. What is in them cannot be used.
func (s *Sandbox) Outside() []string {
	var out []string
	for _, file := range s.files {
		for _, dir := range folders(file) {
			if !s.inside(dir) && !slices.Contains(out, dir) {
				out = append(out, dir)
			}
		}
	}
	return out
}

// inside reports whether a folder is allowed, or in one that is.
func (s *Sandbox) inside(dir string) bool {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for {
		if fi, err := os.Stat(dir); err == nil && slices.ContainsFunc(s.folders, func(f os.FileInfo) bool { return os.SameFile(f, fi) }) {
			return true
		}
		up := filepath.Dir(dir)
		if up == dir {
			return false
		}
		dir = up
	}
}

// Enter puts the sandbox in force for all threads, for good. Whatever is wrong,
// the process can go on; what is not in force then is in the error.
//
// All threads have to take part: none may be in a system call that cannot be
// interrupted, as one on a disk that hangs.
func (s *Sandbox) Enter() error { return s.enter() }

// By says what enforces a sandbox on this system, "" if nothing does.
func By() string { return strings.Join(by(), ", ") }
