package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"opensmtpd-filters/pkg/cli"
)

// defaultMaxWaiting is half of the sessions that smtpd takes, which are half of
// its descriptors but some (smtp.c), so that those who are held leave room for
// others.
func defaultMaxWaiting() int {
	const most = 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Max) > 1<<20 {
		return most
	}
	return max(1, min((int(limit.Max)/2-5)/2, most))
}

// oneOf reads one of some words. Reject is refuse.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == "reject" {
			s = "refuse"
		}
		if !slices.Contains(words, s) {
			return "", errors.New("not one of " + strings.Join(words, ", "))
		}
		return s, nil
	}
}

func parsePorts(s string) (ports []uint16, err error) {
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(field, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%s: want ports from 1 to 65535, with commas between them", cli.Clean(field))
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}
