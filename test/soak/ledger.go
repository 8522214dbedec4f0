//go:build linux

package main

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// A fate is what the server said about a mail.
type fate byte

const (
	unknown  fate = iota // the client did not wait for it
	accepted             // to be delivered once to each recipient
	refused              // never
)

// A ledger knows each mail that was sent, and what has been delivered. It holds
// little of a mail that is done with.
type ledger struct {
	mu      sync.Mutex
	seed    maphash.Seed
	last    uint64
	open    map[uint64]*entry
	done    map[uint64]bool // true: each recipient had it, as it should be
	counts  ledgerCounts
	taken   ledgerCounts // by take
	faults  []string     // the first of them
	nfaults int
}

type ledgerCounts struct {
	accepted, refused, unknown int // mails
	owed, delivered            int // for each recipient of the accepted ones
}

type entry struct {
	fate fate
	told bool // fate is final
	sum  uint64
	got  map[string]int // by recipient, wanted or not
	rcpt map[string]bool
}

func newLedger() *ledger {
	return &ledger{seed: maphash.MakeSeed(), open: map[uint64]*entry{}, done: map[uint64]bool{}}
}

// mark begins the line from which on a mail must arrive as it was sent. What
// comes before may be folded, and gets more fields.
const mark = "soak-mail-"

// offer writes a mail down that is about to be sent. Body returns the text from
// the mark line on, for the mail's number, with lines ending in CRLF and not yet
// dot-stuffed.
func (l *ledger) offer(body func(id uint64) []byte) (id uint64, text []byte) {
	l.mu.Lock()
	l.last++
	id = l.last
	l.mu.Unlock()
	text = body(id)
	e := &entry{sum: l.sum(text), got: map[string]int{}, rcpt: map[string]bool{}}
	l.mu.Lock()
	l.open[id] = e
	l.mu.Unlock()
	return id, text
}

// sum is that of a text without its line ends: a long line arrives as several.
func (l *ledger) sum(text []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	for line := range bytes.Lines(text) {
		_, _ = h.Write(bytes.TrimRight(line, "\r\n"))
	}
	return h.Sum64()
}

// expect says who shall get a mail if it is accepted. It comes before the last
// dot is sent.
func (l *ledger) expect(id uint64, rcpts []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rcpts {
		l.open[id].rcpt[r] = true
	}
}

// settle says what became of a mail.
func (l *ledger) settle(id uint64, f fate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.open[id]
	e.fate, e.told = f, true
	switch f {
	case accepted:
		l.counts.accepted++
		l.counts.owed += len(e.rcpt)
	case refused:
		l.counts.refused++
		if len(e.got) > 0 {
			l.fault("mail %d was refused, and delivered", id)
		}
		l.close(id, false)
	case unknown:
		l.counts.unknown++
	}
	l.check(id, e)
}

// check closes an entry that has all it should have.
func (l *ledger) check(id uint64, e *entry) {
	if e.told && e.fate == accepted && len(e.got) >= len(e.rcpt) {
		l.close(id, true)
	}
}

func (l *ledger) close(id uint64, delivered bool) {
	delete(l.open, id)
	l.done[id] = delivered
}

func (l *ledger) fault(format string, args ...any) {
	if l.nfaults++; len(l.faults) < 20 {
		l.faults = append(l.faults, fmt.Sprintf(format, args...))
	}
}

// delivered takes note of a file that the server has put into a mailbox.
func (l *ledger) delivered(rcpt string, text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := bytes.Index(text, []byte("\n"+mark))
	if i < 0 {
		l.fault("%s was delivered what nobody has sent: %.300q", rcpt, text)
		return
	}
	text = text[i+1:]
	digits, _, _ := bytes.Cut(text[len(mark):], []byte("\n"))
	id, err := strconv.ParseUint(string(digits), 10, 64)
	e := l.open[id]
	switch {
	case err != nil || e == nil && id > l.last:
		l.fault("%s was delivered what nobody has sent: %.100q", rcpt, text)
		return
	case e == nil && l.done[id]:
		l.fault("mail %d was delivered again, to %s", id, rcpt)
		return
	case e == nil:
		l.fault("mail %d was refused, and delivered to %s", id, rcpt)
		return
	}
	if !e.rcpt[rcpt] {
		l.fault("mail %d was delivered to %s, to whom it was not sent", id, rcpt)
		return
	}
	if e.got[rcpt]++; e.got[rcpt] > 1 {
		l.fault("mail %d was delivered twice to %s", id, rcpt)
		return
	}
	if l.sum(text) != e.sum {
		l.fault("mail %d was changed on its way to %s", id, rcpt)
	}
	l.counts.delivered++
	l.check(id, e)
}

// collect reads and removes what is in the mailboxes.
func (l *ledger) collect(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*", "new", "*"))
	if err != nil {
		return err
	}
	junk, err := filepath.Glob(filepath.Join(dir, "*", ".Junk", "new", "*"))
	if err != nil {
		return err
	}
	for _, f := range append(files, junk...) {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.Remove(f); err != nil {
			return err
		}
		box, err := filepath.Rel(dir, f)
		if err != nil {
			return err
		}
		l.delivered(box[:bytes.IndexByte([]byte(box), filepath.Separator)], text)
	}
	return nil
}

// missing returns how many deliveries are still owed.
func (l *ledger) missing() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.open {
		if e.told && e.fate == accepted {
			n += len(e.rcpt) - len(e.got)
		}
	}
	return n
}

func (l *ledger) snapshot() ledgerCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// take returns the counts since it was last called.
func (l *ledger) take() ledgerCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, last := l.counts, l.taken
	l.taken = now
	return ledgerCounts{
		accepted: now.accepted - last.accepted, refused: now.refused - last.refused, unknown: now.unknown - last.unknown,
		owed: now.owed - last.owed, delivered: now.delivered - last.delivered,
	}
}

// verdict returns what is wrong when nothing more will come.
func (l *ledger) verdict() []string {
	missing := l.missing()
	l.mu.Lock()
	defer l.mu.Unlock()
	bad := l.faults
	if more := l.nfaults - len(l.faults); more > 0 {
		bad = append(bad, fmt.Sprintf("and %d more like these", more))
	}
	if missing > 0 {
		bad = append(bad, fmt.Sprintf("accepted and never delivered: %d", missing))
	}
	return bad
}
