package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/maillog"
)

// logs are the logs that a command reads.
type logs struct {
	k     *call
	since cli.Duration
	usual time.Duration // how far back the system's log is read without -since
	from  time.Time     // what is older is skipped; zero: nothing

	lines   int64
	first   time.Time // of the lines read
	last    time.Time
	shown   time.Time // when the progress was last shown
	started time.Time
}

func newLogs(k *call, usual time.Duration) *logs {
	l := &logs{k: k, usual: usual}
	k.Var(&l.since, "since", "look back `TIME`, as 2h or 7d; without it at all of the files that are named")
	return l
}

const logDir = "/var/log"

// read hands each line of smtpd on, of the files or of the system's log.
func (l *logs) read(files []string, add func(maillog.Line)) error {
	l.started = time.Now()
	if l.since.Value > 0 {
		l.from = l.started.Add(-l.since.Value)
	}
	defer l.clear()
	if len(files) > 0 {
		for _, path := range files {
			if err := l.file(path, add); err != nil {
				return err
			}
		}
		return nil
	}
	if l.from.IsZero() {
		l.from = l.started.Add(-l.usual)
	}
	files = systemLogs(logDir, l.from)
	if len(files) == 0 {
		return l.journal(add)
	}
	for _, path := range files {
		if err := l.file(path, add); err != nil {
			return err
		}
	}
	return nil
}

// systemLogs returns the log of the mail system and its older parts, as newsyslog
// and logrotate name them, that were written to after a time, the oldest first.
func systemLogs(dir string, from time.Time) (files []string) {
	written := map[string]time.Time{}
	for _, name := range []string{"maillog", "mail.log"} {
		all, _ := filepath.Glob(filepath.Join(dir, name) + "*")
		for _, path := range all {
			suffix := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), name), ".gz")
			fi, err := os.Stat(path)
			if strings.Trim(suffix, ".-0123456789") == "" && err == nil && fi.Mode().IsRegular() && fi.ModTime().After(from) {
				files = append(files, path)
				written[path] = fi.ModTime()
			}
		}
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Or(written[a].Compare(written[b]), cmp.Compare(b, a)) })
	return files
}

// journal reads the journal of systemd, where nothing else writes a log.
func (l *logs) journal(add func(maillog.Line)) error {
	cmd := exec.Command("journalctl", "-o", "export", "-t", "smtpd", "--since", fmt.Sprintf("@%d", l.from.Unix()))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s has no maillog and no mail.log that was written in that time, and there is no journal: name the file", logDir)
	}
	err = l.readLines(out, time.Now(), nil, add)
	return errors.Join(err, cmd.Wait())
}

func (l *logs) file(path string, add func(maillog.Line)) error {
	var f *maillog.File
	var err error
	if path == "-" && l.k.in != os.Stdin {
		return l.readLines(l.k.in, time.Now(), nil, add)
	}
	if f, err = maillog.Open(path); err != nil {
		return err
	}
	defer f.Close()
	if err := l.readLines(f, f.Written(), f.Progress, add); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// readLines hands on the lines of one log.
func (l *logs) readLines(r io.Reader, written time.Time, progress func() (read, size int64), add func(maillog.Line)) error {
	lines := maillog.NewReader(r, written)
	before := l.lines
	for lines.Next() {
		line := lines.Line()
		if l.lines = before + lines.Lines(); l.lines&0x3fff == 0 {
			l.progress(progress)
		}
		if !line.Time.IsZero() {
			if line.Time.Before(l.from) {
				continue
			}
			if l.first.IsZero() || line.Time.Before(l.first) {
				l.first = line.Time
			}
			if line.Time.After(l.last) {
				l.last = line.Time
			}
		}
		add(line)
	}
	l.lines = before + lines.Lines()
	return lines.Err()
}

// progress shows on a terminal how far it is.
func (l *logs) progress(of func() (read, size int64)) {
	now := time.Now()
	if of == nil || now.Sub(l.shown) < 200*time.Millisecond || now.Sub(l.started) < time.Second || !isTerminal(os.Stderr) {
		return
	}
	l.shown = now
	read, size := of()
	if size == 0 {
		fmt.Fprintf(os.Stderr, "\r%s lines ", thousands(l.lines))
		return
	}
	const width = 40
	n := int(min(read, size) * width / size)
	fmt.Fprintf(os.Stderr, "\r[%s%s] %3d%%  %s lines ", strings.Repeat("#", n), strings.Repeat("-", width-n), min(read, size)*100/size, thousands(l.lines))
}

// clear takes the progress from the terminal.
func (l *logs) clear() {
	if !l.shown.IsZero() {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// thousands writes 1234567 as 1,234,567.
func thousands[N int | int64 | uint32](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
