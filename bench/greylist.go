package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/sqlite"
)

const (
	greyRuns     = 3
	greyAttempts = 10_000 // of a run
	greyOpen     = 100    // sessions at a time
	greyFew      = 10_000 // records that are there before
	greyMax      = 100_000_000
)

// greylisting prints how many first attempts filter-greylist refuses, beside
// postgrey and with stores of up to the given number of records.
func greylisting(bin string, records int) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// On a disk, where those for temporary files may not be.
	dir, err := os.MkdirTemp(bin, "greylist")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("first attempts that are refused, %d sessions open, median of %d runs of %d\n", greyOpen, greyRuns, greyAttempts)
	fmt.Printf("  %-34s %8s %9s %9s\n", "", "a second", "median", "99%")
	if err := besidePostgrey(ctx, bin, dir); err != nil {
		return err
	}
	many := &greyStore{path: filepath.Join(dir, "many.db")}
	for _, n := range []int{1_000_000, 5_000_000} {
		if n > records {
			break
		}
		if err := many.fill(ctx, n); err != nil {
			return err
		}
		if err := besideFew(ctx, bin, dir, many, n); err != nil {
			return err
		}
	}
	return nil
}

// besidePostgrey has the same attempts refused by the filter and by two
// postgreys: as it is, and content with what the filter is content with, that
// an answer survives its process.
func besidePostgrey(ctx context.Context, bin, dir string) error {
	store := &greyStore{path: filepath.Join(dir, "greylist.db")}
	if err := store.fill(ctx, greyFew); err != nil {
		return err
	}
	f, err := startGreylist(ctx, bin, store)
	if err != nil {
		return err
	}
	defer f.stop()
	peers := []*postgrey{
		{name: "postgrey", survives: "a power cut", limit: " (at least 5)"},
		{name: "postgrey, DB_TXN_WRITE_NOSYNC", survives: "kill -9", config: "set_flags DB_TXN_WRITE_NOSYNC\n"},
	}
	if _, err := postgreyPath(); err != nil {
		fmt.Println("  postgrey is not installed; on Debian, as root: test/install.sh bench")
		peers = nil
	}
	for i, p := range peers {
		defer p.stop()
		if err := p.start(ctx, filepath.Join(dir, fmt.Sprint("postgrey", i)), store.attempts); err != nil {
			return err
		}
	}
	var samples []sample
	for range greyRuns {
		first := store.attempts
		store.attempts += greyAttempts
		for _, p := range peers {
			s, err := load(p.conns, p.depth, first, greyAttempts)
			if err != nil {
				return err
			}
			p.samples = append(p.samples, s)
		}
		s, err := load([]peer{f}, greyOpen, first, greyAttempts)
		if err != nil {
			return err
		}
		samples = append(samples, s)
	}
	ours := middleSample(samples)
	if err := survives(ctx, bin, store, f, ours.passed); err != nil {
		return err
	}
	fmt.Printf("  %-34s %s  survives kill -9%s\n", "filter-greylist", ours, passed(ours))
	for _, p := range peers {
		s := middleSample(p.samples)
		fmt.Printf("  %-34s %s  survives %s; %s; ratio %.1f%s%s\n", p.name, s, p.survives, p.how, ours.rate/s.rate, p.limit, passed(s))
	}
	return nil
}

// survives kills a filter that has just answered, and asks another whether it
// knows of the last thousand attempts. Some may have been let pass instead.
func survives(ctx context.Context, bin string, store *greyStore, f *greyFilter, passed int) error {
	const last = 1000
	first := store.attempts - last
	f.kill()
	f, err := startGreylist(ctx, bin, store)
	if err != nil {
		return err
	}
	defer f.stop()
	f.ahead = 61 * time.Second
	s, err := load([]peer{f}, greyOpen, first, last)
	if err == nil && s.refused > passed {
		err = fmt.Errorf("filter-greylist was killed, and has forgotten %d of the last %d attempts", s.refused-passed, last)
	}
	return err
}

// passed says so if attempts were let pass, which are not counted.
func passed(s sample) string {
	if s.passed == 0 {
		return ""
	}
	return fmt.Sprintf("; %d LET PASS", s.passed)
}

// besideFew compares a store of n records with one of few.
func besideFew(ctx context.Context, bin, dir string, many *greyStore, n int) error {
	f, err := startGreylist(ctx, bin, many)
	if err != nil {
		return err
	}
	defer f.stop()
	// What has been filled in is what the filter would have stored itself.
	if s, err := load([]peer{f}, greyOpen, 0, greyOpen); err != nil {
		return err
	} else if s.refused != 0 {
		return errors.New("filter-greylist does not know the attempts it was given")
	}
	var samples, fews []sample
	for range greyRuns {
		s, err := few(ctx, bin, dir)
		if err != nil {
			return err
		}
		fews = append(fews, s)
		first := many.attempts
		many.attempts += greyAttempts
		if s, err = load([]peer{f}, greyOpen, first, greyAttempts); err != nil {
			return err
		}
		samples = append(samples, s)
	}
	rss, err := residentMB(f.cmd.Process.Pid)
	if err != nil {
		return err
	}
	s, o := middleSample(samples), middleSample(fews)
	fmt.Printf("  %-34s %s%s\n", fmt.Sprint(greyFew, " records before"), o, passed(o))
	fmt.Printf("  %-34s %s  ratio %.2f (at most 4.0), %.1f MB resident (at most 80)%s\n", fmt.Sprint(n, " records before"), s, o.rate/s.rate, rss, passed(s))
	return nil
}

func few(ctx context.Context, bin, dir string) (sample, error) {
	dir, err := os.MkdirTemp(dir, "few")
	if err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	store := &greyStore{path: filepath.Join(dir, "few.db")}
	if err := store.fill(ctx, greyFew); err != nil {
		return sample{}, err
	}
	f, err := startGreylist(ctx, bin, store)
	if err != nil {
		return sample{}, err
	}
	defer f.stop()
	return load([]peer{f}, greyOpen, store.attempts, greyAttempts)
}

// attempt returns the i-th of attempts that have only the recipient in common.
func attempt(i int, t time.Time) greylist.Attempt {
	net := 11<<16 + i
	return greylist.Attempt{
		Time:   t,
		Client: greylist.Client{Addr: netip.AddrFrom4([4]byte{byte(net >> 16), byte(net >> 8), byte(net), byte(1 + i%250)}), Class: greylist.NoName},
		Sender: "someone." + letters(i) + "@sender.example",
		Rcpts:  []string{"somebody@rcpt.example"},
	}
}

// letters writes a number without digits, which would be taken for a serial.
func letters(n int) string {
	b := []byte{byte('a' + n%26)}
	for n /= 26; n > 0; n /= 26 {
		b = append(b, byte('a'+n%26))
	}
	return string(b)
}

// A greyFilter is a filter-greylist at work.
type greyFilter struct {
	cmd   *exec.Cmd
	in    *bufio.Writer
	out   *bufio.Reader
	end   func() error
	log   string
	ahead time.Duration // of the clock
}

func startGreylist(ctx context.Context, bin string, store *greyStore) (*greyFilter, error) {
	log, err := os.Create(store.path + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := exec.CommandContext(ctx, filepath.Join(bin, "filter-greylist"), "-store", "sqlite:"+store.path, "-passTime", "60s",
		"-spf", "off", "-trusted", "none", "-phase", "data", "-maxGrey", strconv.Itoa(greyMax))
	c.Stderr = log
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	f := &greyFilter{cmd: c, in: bufio.NewWriterSize(in, 64<<10), out: bufio.NewReader(out), end: in.Close, log: log.Name()}
	if err := f.ready(store); err != nil {
		f.kill()
		return nil, err
	}
	return f, nil
}

// ready waits until the filter refuses: before its file is open it does not.
func (f *greyFilter) ready(store *greyStore) error {
	fmt.Fprint(f.in, "config|smtpd-version|7.8.0-portable\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n")
	if err := f.flush(); err != nil {
		return err
	}
	for line := ""; line != "register|ready\n"; {
		var err error
		if line, err = f.line(); err != nil {
			return err
		}
	}
	for range 100 {
		s, err := load([]peer{f}, 1, store.attempts, 1)
		store.attempts++
		if err != nil || s.refused == 1 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("filter-greylist refuses nothing, and says: %s", lastLine(f.log))
}

func (f *greyFilter) line() (string, error) {
	line, err := f.out.ReadString('\n')
	if err != nil {
		err = fmt.Errorf("filter-greylist: %w; it says: %s", err, lastLine(f.log))
	}
	return line, err
}

func (f *greyFilter) send(i int) {
	now := f.now()
	a := attempt(i, time.Time{})
	fmt.Fprintf(f.in, "report|0.7|%s|smtp-in|link-connect|%016x|<unknown>|fail|%s:4711|192.0.2.25:25\n", now, i, a.Client.Addr)
	fmt.Fprintf(f.in, "report|0.7|%s|smtp-in|tx-begin|%016x|%08x\n", now, i, i)
	fmt.Fprintf(f.in, "report|0.7|%s|smtp-in|tx-mail|%016x|%08x|ok|%s\n", now, i, i, a.Sender)
	fmt.Fprintf(f.in, "report|0.7|%s|smtp-in|tx-rcpt|%016x|%08x|ok|%s\n", now, i, i, a.Rcpts[0])
	fmt.Fprintf(f.in, "filter|0.7|%s|smtp-in|data|%016x|a9b73e08bf78d91d|\n", now, i)
}

func (f *greyFilter) now() string {
	t := time.Now().Add(f.ahead)
	return fmt.Sprintf("%d.%06d", t.Unix(), t.Nanosecond()/1000)
}

func (f *greyFilter) flush() error { return f.in.Flush() }

func (f *greyFilter) more() bool { return f.out.Buffered() > 0 }

func (f *greyFilter) answer() (int, bool, error) {
	line, err := f.line()
	if err != nil {
		return 0, false, err
	}
	var id string
	field := strings.SplitN(line, "|", 5)
	if len(field) > 3 {
		id = field[1]
	}
	i, err := strconv.ParseUint(id, 16, 32)
	if err != nil {
		return 0, false, fmt.Errorf("filter-greylist: %q", line)
	}
	fmt.Fprintf(f.in, "report|0.7|%s|smtp-in|link-disconnect|%s\n", f.now(), id)
	return int(i), field[3] == "reject" && strings.HasPrefix(field[4], "451 "), nil
}

func (f *greyFilter) stop() {
	f.end()
	f.cmd.Wait()
}

func (f *greyFilter) kill() {
	f.cmd.Process.Kill()
	f.cmd.Wait()
}

func lastLine(path string) string {
	b, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// A greyStore is a file of filter-greylist.
type greyStore struct {
	path     string
	attempts int // made, or about to be
	records  int // filled in
}

// fill makes attempts, an hour ago, until there are that many records.
func (s *greyStore) fill(ctx context.Context, records int) error {
	st := sqlite.Open(sqlite.Options{Path: s.path, MaxGrey: greyMax})
	defer st.Close()
	key := greylist.KeyFile{Path: s.path + ".key", Create: true}
	past := time.Now().Add(-time.Hour)
	for s.records < records {
		c := new(collector)
		g := greylist.New(greylist.Options{Store: c, Clear: true, Secret: key.Secret})
		for want := min(records-s.records, 1_000_000); len(c.entries) < want; s.attempts++ {
			if _, err := g.Decide(ctx, attempt(s.attempts, past)); err != nil {
				return err
			}
		}
		if err := c.write(ctx, st); err != nil {
			return err
		}
		s.records += len(c.entries)
	}
	return nil
}

// A collector is a store in which nothing is found. It collects what is to be
// stored: in the order of their keys records are written much faster.
type collector struct {
	greylist.Store
	entries []greylist.Entry
}

func (c *collector) Update(_ context.Context, keys []greylist.Key, f func([]greylist.Record)) error {
	recs := make([]greylist.Record, len(keys))
	f(recs)
	for i, r := range recs {
		if r.State != greylist.Absent {
			c.entries = append(c.entries, greylist.Entry{Key: keys[i], Record: r})
		}
	}
	return nil
}

func (c *collector) write(ctx context.Context, to greylist.Store) error {
	slices.SortFunc(c.entries, func(a, b greylist.Entry) int { return slices.Compare(a.Key[:], b.Key[:]) })
	const workers, step = 16, 256 // those that wait at the same time become one transaction
	var errs [workers]error
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				from := int(next.Add(step)) - step
				if from >= len(c.entries) {
					return
				}
				part := c.entries[from:min(from+step, len(c.entries))]
				keys := make([]greylist.Key, len(part))
				for i, e := range part {
					keys[i] = e.Key
				}
				errs[w] = to.Update(ctx, keys, func(recs []greylist.Record) {
					for i, e := range part {
						recs[i] = e.Record
					}
				})
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs[:]...)
}
