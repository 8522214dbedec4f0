//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A use is what the processes of one program use.
type use struct {
	rss     int64 // bytes, of all its processes
	fds     int
	threads int
	cpu     time.Duration // since they began
}

// ticks is the unit of times in /proc, the same on every Linux.
const ticks = 10 * time.Millisecond

// usage returns what programs use, by name, given their processes.
func usage(processes map[int]string) map[string]use {
	all := map[string]use{}
	for pid, name := range processes {
		u, err := usageOf(pid)
		if err != nil {
			continue // it has ended
		}
		sum := all[name]
		sum.rss += u.rss
		sum.fds += u.fds
		sum.threads += u.threads
		sum.cpu += u.cpu
		all[name] = sum
	}
	return all
}

func usageOf(pid int) (u use, err error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return u, err
	}
	u.fds = len(fds)
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 of proc(5) on
	if len(f) < 22 {
		return u, fmt.Errorf("%s/stat: %q", proc, stat)
	}
	for _, i := range []int{14, 15, 16, 17} { // own, and of children that have ended
		n, err := strconv.ParseInt(f[i-3], 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(n) * ticks
	}
	if u.threads, err = strconv.Atoi(f[20-3]); err != nil {
		return u, err
	}
	pages, err := strconv.ParseInt(f[24-3], 10, 64)
	u.rss = pages * int64(os.Getpagesize())
	return u, err
}

// A sample is what happened in one interval.
type sample struct {
	at      time.Duration // its end, since the run began
	weather string
	full    bool // the disk, at some time in it
	clients crowdCounts
	skipped int // clients that did not come, because too many were there
	open    int // clients there at its end
	mails   ledgerCounts
	low     map[string]use // the least of each, seen each second; cpu is what was spent
}

// lower takes the lower of each of two looks at the same programs.
func lower(a, b map[string]use) map[string]use {
	if a == nil {
		return b
	}
	low := map[string]use{}
	for name, x := range b {
		y, ok := a[name]
		if !ok {
			y = x
		}
		low[name] = use{rss: min(x.rss, y.rss), fds: min(x.fds, y.fds), threads: min(x.threads, y.threads)}
	}
	return low
}
