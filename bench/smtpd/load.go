//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

const clients = 20 // each with an address of its own, one connection at a time

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{81, 2, 69, byte(10 + i)}) }

func name(i int) string { return fmt.Sprintf("mail%d.sender.example", i) }

// text is a mail of 3 kB.
var text = "From: <a@sender.example>\r\nTo: <bob@example.org>\r\nSubject: test\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <x@sender.example>\r\n\r\n" +
	strings.Repeat("Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod\r\n", 39) + ".\r\n"

// waiting are the clients that smtpd has not greeted yet. It lets five connections
// wait to be accepted; others would try again after a second, and that be measured.
var waiting = make(chan bool, 5)

// session sends one mail on a connection of its own. It reports whether the mail
// was taken, or deferred, and how long the client waited to be greeted.
func session(i int, sender string) (taken bool, greeting time.Duration, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(i), 0)), Timeout: time.Minute}
	waiting <- true
	begun := time.Now()
	greeted := sync.OnceFunc(func() {
		greeting = time.Since(begun)
		<-waiting
	})
	defer greeted()
	c, err := d.Dial("tcp", smtpdtest.Addr4+":25")
	if err != nil {
		return false, greeting, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return false, greeting, err
	}
	r := bufio.NewReader(c)
	for _, say := range []string{"", "EHLO " + name(i) + "\r\n", "MAIL FROM:<" + sender + ">\r\n", "RCPT TO:<bob@example.org>\r\n", "DATA\r\n", text, "QUIT\r\n"} {
		if _, err := io.WriteString(c, say); err != nil {
			return false, greeting, err
		}
		line := "   -"
		for len(line) > 3 && line[3] == '-' {
			if line, err = r.ReadString('\n'); err != nil {
				return false, greeting, fmt.Errorf("after %.10q: %w", say, err)
			}
		}
		greeted()
		if line[0] == '4' {
			return false, greeting, nil
		}
		if line[0] != '2' && line[0] != '3' {
			return false, greeting, fmt.Errorf("after %.10q: %q", say, line)
		}
	}
	return true, greeting, nil
}

// A sample is what one run has shown.
type sample struct {
	rate     float64       // mails a second
	p50, p99 time.Duration // of a session
	greeting time.Duration // p99 of what a client waits for it
	cpu      time.Duration // of all filters a mail
}

// load has all clients send mails for a time.
func load(s *smtpdtest.Server, sender string, last time.Duration) (sample, error) {
	var mu sync.Mutex
	var took, greetings []time.Duration
	var failed error
	before, err := cpuTime(s)
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for time.Since(start) < last {
				begun := time.Now()
				taken, greeting, err := session(i, sender)
				if err == nil && !taken {
					err = fmt.Errorf("mail of client %d was not taken", i)
				}
				mu.Lock()
				took, greetings = append(took, time.Since(begun)), append(greetings, greeting)
				if err != nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	after, err := cpuTime(s)
	if err := errors.Join(failed, err); err != nil {
		return sample{}, err
	}
	slices.Sort(took)
	slices.Sort(greetings)
	n := len(took)
	return sample{
		rate: float64(n) / elapsed.Seconds(),
		p50:  took[n/2], p99: took[n*99/100], greeting: greetings[n*99/100],
		cpu: (after - before) / time.Duration(n),
	}, nil
}

// warm sends a mail of each client until it is taken: then what is asked of the DNS
// is cached, and who has to wait has waited.
func warm(sender string) error {
	for i := range clients {
		for until := time.Now().Add(30 * time.Second); ; time.Sleep(300 * time.Millisecond) {
			taken, _, err := session(i, sender)
			if err != nil {
				return err
			}
			if taken {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("mail of client %d is not taken", i)
			}
		}
	}
	return nil
}

// cpuTime is the processor time that the filters have used, all of their threads.
func cpuTime(s *smtpdtest.Server) (sum time.Duration, err error) {
	for pid, program := range s.Processes() {
		if program == "smtpd" {
			continue
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		for _, t := range threads {
			b, err := os.ReadFile(t)
			if err != nil {
				continue // it has ended
			}
			var ns time.Duration
			if _, err := fmt.Sscan(string(b), &ns); err != nil {
				return 0, fmt.Errorf("%s: %w", t, err)
			}
			sum += ns
		}
	}
	return sum, nil
}
