package senderscore

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
)

const (
	// window is how many days a query counts, after its own.
	window = 30

	// keep is how many days the file and the process remember, those nearest to
	// today: a wrong clock drives nothing out that counts when it is right
	// again, and what it counted does not stay for ever.
	keep = 100

	// reserve is how many queries the file is ahead. So many are counted for
	// nothing when the process is killed, but none is forgotten.
	reserve = 50

	maxState   = 64 << 10 // bytes
	retryState = time.Minute
)

// A day is a number of days since the epoch, UTC.
type day int

func dayOf(t time.Time) day { return day(t.Unix() / (24 * 60 * 60)) }

func today() day { return dayOf(time.Now()) }

func (d day) String() string { return time.Unix(int64(d)*24*60*60, 0).UTC().Format(time.DateOnly) }

// near reports whether what was counted on d counts at now. A clock that was
// wrong for a while must not stop everything for years.
func (d day) near(now day) bool { return now-window <= d && d <= now+window }

// A count is the number of queries of each day, and the file that keeps it.
// Several processes may share a file: each adds its own.
type count struct {
	path string
	log  *slog.Logger
	kick chan struct{} // the reserve is used up

	mu    sync.Mutex
	file  map[day]int // as last read or written
	filed map[day]int // what of that is ours, the reserve included
	mine  map[day]int
}

func newCount(path string, log *slog.Logger) *count {
	c := &count{
		path:  path,
		log:   log,
		kick:  make(chan struct{}, 1),
		filed: make(map[day]int),
		mine:  make(map[day]int),
	}
	var err error
	c.file, err = readState(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("state file not usable, earlier queries may not count", "file", path, "err", err)
	}
	return c
}

// used returns how many queries count, and the day when the oldest of them no
// longer do.
func (c *count) used(now day) (n int, free day) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usedLocked(now)
}

func (c *count) usedLocked(now day) (n int, free day) {
	free = now + window + 1
	for _, m := range []map[day]int{c.file, c.mine} {
		for d, k := range m {
			if d.near(now) {
				n += k
				free = min(free, d+window+1)
			}
		}
	}
	for d, k := range c.filed {
		if d.near(now) {
			n -= k
		}
	}
	return n, free
}

// take counts one query unless the quota is spent. A quota of 0 is none.
func (c *count) take(now day, quota int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, _ := c.usedLocked(now); quota > 0 && n >= quota {
		return false
	}
	c.mine[now]++
	if c.mine[now] >= c.filed[now] {
		select {
		case c.kick <- struct{}{}:
		default:
		}
	}
	return true
}

// run writes the file at once, which shows whether that works, when the reserve
// is used up, and when ctx ends.
func (c *count) run(ctx context.Context) {
	if c.path == "" {
		return
	}
	failed := false
	ahead := 0
	for ctx.Err() == nil {
		err := guard.Call(func() error { return c.save(ahead) })
		if err != nil && !failed {
			c.log.Warn("state file not writable, a restart would forget queries, trying on", "file", c.path, "err", err)
		} else if err == nil && failed {
			c.log.Info("state file writable again", "file", c.path)
		}
		if failed = err != nil; failed {
			select {
			case <-time.After(retryState):
			case <-ctx.Done():
			}
		}
		select {
		case <-c.kick:
			ahead = reserve
		case <-ctx.Done():
		}
	}
	if err := c.save(0); err != nil && !failed {
		c.log.Warn("state file not written", "file", c.path, "err", err)
	}
}

// save adds what is ours to the file, and for today so much ahead.
func (c *count) save(ahead int) error {
	// Nobody else has one while the file is read.
	next, err := guard.BeginReplace(c.path, 0o644)
	if err != nil {
		return err
	}
	defer next.Drop()
	file, err := readState(c.path)
	c.mu.Lock()
	if err != nil {
		file = maps.Clone(c.file) // it is gone, or not what it was
	}
	now := today()
	prune(c.mine, now)
	want := maps.Clone(c.mine)
	if ahead > 0 {
		want[now] += ahead
	}
	for d, n := range c.filed {
		file[d] -= n
	}
	for d, n := range want {
		file[d] += n
	}
	for d := range file {
		file[d] = max(file[d], want[d])
	}
	maps.DeleteFunc(file, func(_ day, n int) bool { return n == 0 })
	prune(file, now)
	maps.DeleteFunc(want, func(d day, _ int) bool { return file[d] == 0 })
	c.mu.Unlock()

	if _, err := next.Write(formatState(file)); err != nil {
		return err
	}
	if err := next.Sync(); err != nil {
		return err
	}
	if err := next.Commit(); err != nil {
		return err
	}
	c.mu.Lock()
	c.file, c.filed = file, want
	c.mu.Unlock()
	return nil
}

// prune leaves the days that are kept.
func prune(days map[day]int, now day) {
	away := func(d day) day { return max(d-now, now-d) }
	byDistance := slices.SortedFunc(maps.Keys(days), func(a, b day) int { return cmp.Compare(away(a), away(b)) })
	for _, d := range byDistance[min(keep, len(days)):] {
		delete(days, d)
	}
}

func readState(path string) (map[day]int, error) {
	if path == "" {
		return map[day]int{}, nil
	}
	f, err := guard.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return map[day]int{}, err
	}
	defer f.Close()
	return parseState(f)
}

// parseState reads lines of a date and a number. What can be read counts even
// if there is an error.
func parseState(r io.Reader) (map[day]int, error) {
	days := make(map[day]int)
	var bad error
	lines := bufio.NewScanner(io.LimitReader(r, maxState))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		if len(f) == 2 {
			t, err1 := time.Parse(time.DateOnly, f[0])
			k, err2 := strconv.ParseUint(f[1], 10, 30)
			if err1 == nil && err2 == nil {
				days[dayOf(t)] += int(k)
				continue
			}
		}
		if bad == nil {
			bad = fmt.Errorf("line %d: not a date and a number", n)
		}
	}
	if err := lines.Err(); err != nil {
		bad = err
	}
	return days, bad
}

// formatState returns what parseState reads.
func formatState(days map[day]int) []byte {
	text := []byte("# Queries for sender scores, by day (UTC).\n")
	for _, d := range slices.Sorted(maps.Keys(days)) {
		text = fmt.Appendf(text, "%v %d\n", d, days[d])
	}
	return text
}
