//go:build linux

package test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"

	_ "modernc.org/sqlite"
)

func owner(fi fs.FileInfo) uint32 {
	if fi == nil {
		return 0
	}
	return fi.Sys().(*syscall.Stat_t).Uid
}

// A stranger sends a mail from an address and to a user that nobody has seen.
type strangers struct{ n int }

func (s *strangers) mail() smtpdtest.Mail {
	s.n++
	return smtpdtest.Mail{Src: fmt.Sprintf("198.%d.%d.1", 18+s.n>>8, s.n&255), Sender: "a@sender.example", To: fmt.Sprint("user", s.n)}
}

// greylists waits until mail is greylisted, and returns that mail.
func (s server) greylists(from *strangers) (m smtpdtest.Mail) {
	s.t.Helper()
	s.eventually("mail is greylisted", func() bool {
		m = from.mail()
		return isGreyed(s.send(m))
	})
	return m
}

// works waits until mail is greylisted, and then accepted.
func (s server) works(from *strangers) {
	s.t.Helper()
	s.retried(s.greylists(from))
}

// passes sends mail, which is not greylisted.
func (s server) passes(n int, from *strangers) {
	s.t.Helper()
	for range n {
		if !s.answered(from) {
			s.t.Error("mail is greylisted")
		}
	}
}

// answered sends a mail that is accepted or greylisted, and soon.
func (s server) answered(from *strangers) (accepted bool) {
	s.t.Helper()
	begin := time.Now()
	res := s.send(from.mail())
	if !res.Accepted() && !isGreyed(res) {
		s.t.Errorf("answered %v", res)
	}
	if took := time.Since(begin); took > 10*time.Second {
		s.t.Errorf("a mail took %v", took)
	}
	return res.Accepted()
}

func (s server) wantLog(words ...string) {
	s.t.Helper()
	if _, err := s.WaitLog(words...); err != nil {
		s.t.Error(err)
	}
}

// Between attempt and retry smtpd is started anew.
func TestGreylistRestart(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s -header"))
		var from strangers
		restart := func() {
			if err := s.Restart(nil); err != nil {
				t.Fatal(err)
			}
			s.greylists(&from)
		}
		m := smtpdtest.Mail{Src: "203.0.113.7", Sender: "a@sender.example", To: "bob"}
		s.greyed(m)
		restart()
		s.retried(m)
		s.logged("action=proceed", "reason=retry", "addr=203.0.113.7 ")
		restart()
		m.Sender = "b@sender.example"
		s.accepted(m)
		s.logged("action=proceed", "reason=known", "addr=203.0.113.7 ")
	})
}

// Another process keeps the database for itself, at first while the filter runs,
// then when it begins.
func TestGreylistLocked(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		var from strangers
		before := from.mail()
		s.greyed(before)
		db, err := sql.Open("sqlite", "file:"+s.Path("state/greylist.db")+"?_pragma=busy_timeout(10000)")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		do := func(statement string) {
			t.Helper()
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		passesFor := func(d time.Duration) {
			for begin := time.Now(); time.Since(begin) < d; {
				s.passes(1, &from)
			}
		}
		do("BEGIN EXCLUSIVE")
		passesFor(5 * time.Second)
		s.wantLog("greylist database not usable", "locked")
		s.wantLog("filter=greylist", "action=proceed", "reason=store")
		do("ROLLBACK")
		s.works(&from)
		s.wantLog("greylist database works again")
		s.accepted(before)

		do("BEGIN EXCLUSIVE")
		if err := s.Restart(nil); err != nil {
			t.Fatal(err)
		}
		passesFor(5 * time.Second)
		do("ROLLBACK")
		s.works(&from)
	})
}

// The file system is full, at first while the filter runs, then when it
// begins.
func TestGreylistFullDisk(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1s")
		c.StateSize = "512k"
		s := startGreylist(t, c)
		var from strangers
		s.works(&from)
		// It goes on in what room the files have, as long as that can be used again;
		// which of the two happens is a matter of how large the journal was.
		for range 50 {
			fill(t, s.Path("state/ballast"))
			s.answered(&from)
		}
		if strings.Contains(s.Log(), "greylist database not usable") {
			s.wantLog("greylist database not usable", "full")
			s.wantLog("filter=greylist", "action=proceed", "reason=store")
		}
		remove(t, s.Path("state/ballast"))
		s.works(&from)

		err := s.Restart(func() error {
			remove(t, s.Path("state/greylist.db*"))
			fill(t, s.Path("state/ballast"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.passes(5, &from)
		s.wantLog("greylist database not usable", "full")
		s.wantLog("filter=greylist", "action=proceed", "reason=store")
		remove(t, s.Path("state/ballast"))
		s.works(&from)
	})
}

// fill makes a file grow until there is no more room.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func remove(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %q, %v", pattern, files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

// The database is spoiled below the running filter, or while it is away.
func TestGreylistCorrupt(t *testing.T) {
	for name, spoil := range map[string]func(name string) error{
		"overwritten": func(name string) error {
			fi, err := os.Stat(name)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.CopyN(f, rand.Reader, fi.Size())
			return err
		},
		"cut": func(name string) error { return os.Truncate(name, 4097) },
	} {
		t.Run(name, func(t *testing.T) {
			onNewest(t, func(t *testing.T, r smtpdtest.Release) {
				s := startGreylist(t, greylist(r, "-passTime 1s"))
				var from strangers
				s.works(&from)
				for _, suffix := range []string{"", "-wal", "-shm"} {
					if err := spoil(s.Path("state/greylist.db" + suffix)); err != nil {
						t.Fatal(err)
					}
				}
				s.works(&from)
				if err := s.Restart(nil); err != nil {
					t.Fatal(err)
				}
				s.works(&from)

				if err := s.Restart(func() error { return spoil(s.Path("state/greylist.db")) }); err != nil {
					t.Fatal(err)
				}
				s.works(&from)
				s.wantLog("DATABASE IS CORRUPT")
				if aside, _ := filepath.Glob(s.Path("state/greylist.db.corrupt-*")); len(aside) == 0 {
					t.Error("no file was set aside")
				}
			})
		})
	}
}

// The filter may not write to the folder.
func TestGreylistFolder(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1s"))
		var from strangers
		s.works(&from)
		fi, err := os.Stat(s.Path("state"))
		if err != nil {
			t.Fatal(err)
		}
		if err := cmp.Or(os.Chown(s.Path("state"), 0, 0), os.Chmod(s.Path("state"), 0o755)); err != nil {
			t.Fatal(err)
		}
		remove(t, s.Path("state/*"))
		s.eventually("the file is gone", func() bool { return s.send(from.mail()).Accepted() })
		s.passes(3, &from)
		if err := s.Restart(nil); err != nil {
			t.Fatal(err)
		}
		s.passes(3, &from)
		s.wantLog("greylist database not usable", "permission denied")
		if err := os.Chown(s.Path("state"), int(owner(fi)), -1); err != nil {
			t.Fatal(err)
		}
		s.works(&from)
	})
}

// Two filters of a chain work on one file, and so on each message one after the
// other.
func TestGreylistTwoInChain(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		c := greylist(r, "-passTime 1s")
		c.Filters = append(c.Filters, greylistFilter("-passTime 1s"))
		c.Filters[1].Name = "second"
		s := startGreylist(t, c)
		m := smtpdtest.Mail{Src: "203.0.113.7", Sender: "a@sender.example", To: "bob"}
		s.greyed(m)
		s.retried(m)
		s.wantLog("greylist: ", "action=proceed", "reason=retry")
		s.wantLog("second: ", "action=proceed", "reason=known")
		var from strangers
		s.works(&from)
	})
}

// Below, the filter without smtpd.

// A feed is a running filter-greylist. Its attempts have no SPF.
type feed struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers map[string]chan string // by session
	mu      sync.Mutex
	log     strings.Builder // once done is closed
	done    chan struct{}
}

func startFeed(t *testing.T, dir string) *feed {
	t.Helper()
	f := &feed{answers: map[string]chan string{}, done: make(chan struct{})}
	f.cmd = exec.Command(filepath.Join(os.Getenv(binEnv), "filter-greylist"),
		"-store", "sqlite:"+filepath.Join(dir, "greylist.db"), "-who", "all", "-spf", "off", "-resolver", "127.0.0.1:9")
	f.cmd.Stderr = &f.log
	var err error
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.cmd.Process.Kill() })
	if _, err := io.WriteString(f.in, "config|smtpd-version|7.8.0-portable\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|subsystem|smtp-in\nconfig|admd|mx\nconfig|ready\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for line := ""; line != "register|ready\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatalf("no register|ready: %v", err)
		}
	}
	go func() {
		defer close(f.done)
		for {
			line, err := r.ReadString('\n')
			if err != nil { // a line cut short is no answer
				_ = f.cmd.Wait()
				return
			}
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 4)
			if len(fields) == 4 && fields[0] == "filter-result" {
				f.mu.Lock()
				c := f.answers[fields[1]]
				delete(f.answers, fields[1])
				f.mu.Unlock()
				if c != nil {
					c <- fields[3]
				}
			}
		}
	}()
	return f
}

// kill kills the filter, and waits for its end.
func (f *feed) kill() {
	_ = f.cmd.Process.Kill()
	<-f.done
}

// end ends the filter's input, waits for it and returns what it has logged.
func (f *feed) end(t *testing.T) string {
	t.Helper()
	_ = f.in.Close()
	select {
	case <-f.done:
	case <-time.After(time.Minute):
		t.Fatal("the filter goes on without input")
	}
	if status := f.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d:\n%s", status, f.log.String())
	}
	return f.log.String()
}

// attempt is a session up to DATA, at a time in seconds. Its number says where it
// comes from, and who it is for. The answer is empty if there is none.
func (f *feed) attempt(session int, second int64, n uint32) (answer string) {
	addr := netip.AddrFrom4([4]byte{byte(100 + n>>16), byte(n >> 8), byte(n), 7}) // each in a network of its own
	id := fmt.Sprintf("%016x", session)
	c := make(chan string, 1)
	f.mu.Lock()
	f.answers[id] = c
	f.mu.Unlock()
	report := fmt.Sprintf("report|0.7|%d.000000|smtp-in|", second)
	_, err := io.WriteString(f.in, report+"link-connect|"+id+"|mx.feed.example|pass|"+addr.String()+":1234|192.0.2.25:25\n"+
		report+"link-identify|"+id+"|EHLO|client.example.net\n"+
		report+"tx-begin|"+id+"|11223344\n"+
		report+"tx-mail|"+id+"|11223344|ok|a@sender.example\n"+
		report+"tx-rcpt|"+id+"|11223344|ok|"+letters(n)+"@example.org\n"+
		fmt.Sprintf("filter|0.7|%d.000000|smtp-in|data|%s|%016x|\n", second, id, ^uint64(session)))
	if err != nil {
		return ""
	}
	select {
	case answer = <-c:
	case <-f.done:
		select {
		case answer = <-c:
		default:
			return ""
		}
	}
	_, _ = io.WriteString(f.in, report+"tx-rollback|"+id+"|11223344\n"+report+"tx-reset|"+id+"|11223344\n"+report+"link-disconnect|"+id+"\n")
	return answer
}

// letters writes a number as a word.
func letters(n uint32) string {
	word := "u"
	for ; n > 0; n /= 26 {
		word += string(rune('a' + n%26))
	}
	return word
}

func isReject(answer string) bool { return strings.HasPrefix(answer, "reject|451 4.7.1 Greylisted") }

// waitFeed starts a filter, and waits until it stores: mail that comes before
// passes.
func waitFeed(t *testing.T, dir string, sessions *int, second int64) *feed {
	t.Helper()
	f := startFeed(t, dir)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		*sessions++
		answer := f.attempt(*sessions, second, uint32(1<<20+*sessions))
		if isReject(answer) {
			return f
		}
		if time.Now().After(deadline) {
			t.Fatalf("a stranger is answered %q", answer)
		}
	}
}

// Killed in the midst of its work, and started again, over and over, the filter
// knows whom it has refused and whom it has accepted.
func TestGreylistKill(t *testing.T) {
	noteSources(t)
	dir := t.TempDir()
	const (
		rounds  = 200
		workers = 8
	)
	second := int64(1_800_000_000)
	var sessions int
	var refused, accepted []uint32 // answered in the round before
	var next uint32
	total := 0
	for round := range rounds {
		second += 100
		f := waitFeed(t, dir, &sessions, second)
		var mu sync.Mutex
		session := func() int { mu.Lock(); defer mu.Unlock(); sessions++; return sessions }
		for _, n := range accepted {
			if answer := f.attempt(session(), second, n); answer != "proceed" {
				t.Fatalf("round %d: %d was accepted, and is answered %q now", round, n, answer)
			}
		}
		old := refused
		refused, accepted = nil, nil
		// Retries and new attempts until the filter is killed. A retry's own answer
		// may be lost, that of an attempt not.
		var wg sync.WaitGroup
		answered := make(chan struct{}, 1<<20)
		for w := range workers {
			wg.Go(func() {
				for i := w; i < len(old); i += workers {
					switch answer := f.attempt(session(), second, old[i]); answer {
					case "proceed":
						mu.Lock()
						accepted = append(accepted, old[i])
						mu.Unlock()
						answered <- struct{}{}
					case "":
						return
					default:
						t.Errorf("round %d: %d was refused 100 s ago, and is answered %q now", round, old[i], answer)
					}
				}
				for {
					mu.Lock()
					next++
					n := next
					mu.Unlock()
					answer := f.attempt(session(), second, n)
					if answer == "" {
						return
					}
					if isReject(answer) { // or the store was slow
						mu.Lock()
						refused = append(refused, n)
						mu.Unlock()
					}
					answered <- struct{}{}
				}
			})
		}
		for range len(old) + round%40 {
			select {
			case <-answered:
			case <-f.done:
			}
		}
		f.kill()
		wg.Wait()
		total += len(refused)
		if strings.Contains(f.log.String(), "reason=store") {
			t.Logf("round %d: the machine is slow:\n%s", round, f.log.String())
		}
		if t.Failed() {
			t.Fatalf("round %d:\n%s", round, f.log.String())
		}
	}
	if total < rounds*5 {
		t.Errorf("%d attempts in %d rounds show little", total, rounds)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "*corrupt*")); len(aside) > 0 {
		t.Errorf("set aside: %q", aside)
	}
	t.Logf("%d attempts remembered", total)
}

// Two processes, one file.
func TestGreylistTwoProcesses(t *testing.T) {
	noteSources(t)
	dir := t.TempDir()
	second := int64(1_800_000_000)
	var sessions int
	a := waitFeed(t, dir, &sessions, second)
	b := waitFeed(t, dir, &sessions, second)
	const n = 300
	var wg sync.WaitGroup
	each := func(do func(f *feed, session int, i uint32)) {
		for j, f := range []*feed{a, b} {
			for w := range 4 {
				first := sessions + 1 + (4*j+w)*n
				wg.Go(func() {
					for i := w; i < n; i += 4 {
						do(f, first+i, uint32(i))
					}
				})
			}
		}
		wg.Wait()
		sessions += 8 * n
	}
	// Both at once see the same attempt.
	each(func(f *feed, session int, i uint32) {
		if answer := f.attempt(session, second, i); !isReject(answer) {
			t.Errorf("first attempt %d: %s", i, answer)
		}
	})
	// What one has accepted the other knows. One of them has not yet seen it.
	second += 60
	each(func(f *feed, session int, i uint32) {
		if f == []*feed{a, b}[i%2] {
			if answer := f.attempt(session, second, i); answer != "proceed" {
				t.Errorf("retry %d: %s", i, answer)
			}
		}
	})
	second++
	each(func(f *feed, session int, i uint32) {
		if f == []*feed{b, a}[i%2] {
			if answer := f.attempt(session, second, i); answer != "proceed" {
				t.Errorf("after retry %d: %s", i, answer)
			}
		}
	})
	logs := a.end(t) + b.end(t)
	for want, count := range map[string]int{"reason=retry": n, "reason=known": n, "reason=early": n} {
		if got := strings.Count(logs, want); got != count {
			t.Errorf("%d times %s, want %d", got, want, count)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(os.Getenv(binEnv), "filter-greylist"), "-store", "sqlite:"+filepath.Join(dir, "greylist.db"), "list", "pair", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(n) {
		if got := strings.Count(string(out), `"`+letters(i)+`@example.org"`); got != 1 {
			t.Errorf("%d records of the pair of %d", got, i)
			break
		}
	}
}
