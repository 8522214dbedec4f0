package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"

	"opensmtpd-filters/pkg/proto"
)

// open opens n sessions up to their EHLO and waits until all are answered.
func (g *stream) open(in io.Writer, out io.Reader, n int) error {
	answered := make(chan error, 1)
	go func() {
		lines := bufio.NewReader(out)
		for left := 2 * n; left > 0; {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				answered <- err
				return
			}
			if bytes.HasPrefix(line, []byte("filter-result|")) {
				left--
			}
		}
		answered <- nil
		io.Copy(io.Discard, out)
	}()
	w := bufio.NewWriter(in)
	fmt.Fprintln(w, "config|ready")
	g.start(w)
	for i := range n {
		for _, l := range g.session(i) {
			if l.Event == proto.ProtocolClient && bytes.HasPrefix(l.Fields, []byte("MAIL")) {
				break
			}
			g.line(&l)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return <-answered
}

// residentMB returns the resident memory of a process in megabytes.
func residentMB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
	var kb float64
	if _, err := fmt.Sscan(string(rest[:min(len(rest), 32)]), &kb); err != nil {
		return 0, fmt.Errorf("VmRSS of process %d: %w", pid, err)
	}
	return kb / 1000, nil
}
