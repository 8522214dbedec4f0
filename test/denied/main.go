//go:build linux

// Command denied, called by its path, runs a program of its folder that may not make netlink sockets,
// as a service manager that denies them runs it.
//
//	denied PROGRAM [ARGUMENT ...]
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: denied PROGRAM [ARGUMENT ...]")
		os.Exit(1)
	}
	err := run(os.Args[1:])
	fmt.Fprintln(os.Stderr, "denied:", err)
	os.Exit(1)
}

func run(args []string) error {
	// seccomp(2): socket(AF_NETLINK, ...) gives EAFNOSUPPORT.
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // number of the call
		{Code: equal, Jf: 3, K: unix.SYS_SOCKET},
		{Code: load, K: 16}, // its first argument, for a little-endian machine
		{Code: equal, Jf: 1, K: unix.AF_NETLINK},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // it is this thread's, and what it runs
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return err
	}
	return unix.Exec(filepath.Join(filepath.Dir(os.Args[0]), args[0]), args, os.Environ())
}
