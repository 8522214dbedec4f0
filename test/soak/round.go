//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// A round is one run of smtpd.
type round struct {
	conf    smtpdtest.Config
	rate    float64 // clients a second
	length  time.Duration
	seed    uint64
	log     io.Writer
	trouble bool // bad weather, a full disk, lists that change

	server  *smtpdtest.Server
	crowd   *crowd
	ledger  *ledger
	watch   *watcher
	samples []sample
	drained time.Time // when the last mail had arrived
	state   state
}

// state is what the run does to the filters at present.
type state struct {
	weather             string
	full                bool
	rewritten, hangedUp int
	failures            []string
}

// mostClients is how many are there at once, at most. The slowest weather makes
// a client stay for three seconds or so; if there are more, the machine is too
// slow for them, and those that should come stay away.
func (r *round) mostClients() int { return 50 + int(5*r.rate) }

func (r *round) begin() (err error) {
	r.ledger, r.watch = newLedger(), &watcher{to: r.log}
	r.conf.Log = r.watch
	if r.server, err = smtpdtest.Start(r.conf); err != nil {
		return fmt.Errorf("%w\n%s", err, r.watch.tail())
	}
	r.crowd = newCrowd(r.server, r.ledger, r.seed)
	return nil
}

// end waits until nobody is waiting any more, stops smtpd, and returns what is
// wrong.
func (r *round) end() (bad []string) {
	collected := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(collected)
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
				r.collect()
			}
		}
	}()
	r.crowd.finish()
	close(stop)
	<-collected
	r.drain()
	if err := r.server.Check(); err != nil {
		bad = append(bad, err.Error())
	}
	if len(r.conf.Filters) > 0 && !r.ended() {
		bad = append(bad, r.freshMetrics()...)
	}
	r.watch.quiet()
	if err := r.server.Stop(); err != nil {
		bad = append(bad, err.Error())
	}
	bad = append(bad, r.state.failures...)
	bad = append(bad, r.ledger.verdict()...)
	bad = append(bad, r.watch.verdict()...)
	bad = append(bad, r.crowd.faults...)
	if len(bad) > 0 {
		bad = append(bad, "the end of the log:\n"+r.watch.tail())
	}
	return bad
}

// collect takes delivered mail out of the mailboxes.
func (r *round) collect() {
	if err := r.ledger.collect(r.server.Path("mail")); err != nil {
		r.fail("mailboxes: %v", err)
	}
}

// drain waits for what is still to be delivered, as long as something is.
func (r *round) drain() {
	for least, since := -1, time.Now(); time.Since(since) < 2*time.Minute; time.Sleep(100 * time.Millisecond) {
		r.collect()
		n := r.ledger.missing()
		if n == 0 {
			r.drained = time.Now()
			time.Sleep(time.Second) // for what should not come
			r.collect()
			return
		}
		if least < 0 || n < least {
			least, since = n, time.Now()
		}
		if r.ended() {
			return
		}
	}
}

func (r *round) ended() bool {
	select {
	case <-r.server.Exited():
		return true
	default:
		return false
	}
}

func (r *round) fail(format string, args ...any) {
	if len(r.state.failures) < 20 {
		r.state.failures = append(r.state.failures, fmt.Sprintf(format, args...))
	}
}

// freshMetrics waits until every program has written its counters once more,
// which it does when they change.
func (r *round) freshMetrics() (bad []string) {
	now := time.Now()
	stale := func(p string) bool {
		fi, err := os.Stat(r.server.Path(metricsFile(p)))
		return err != nil || !fi.ModTime().After(now) || fi.Size() == 0
	}
	for _, p := range programs {
		for stale(p.name) && !r.ended() {
			if time.Since(now) > 2*time.Minute {
				bad = append(bad, p.name+" does not write its counters any more")
				break
			}
			if err := r.visit(); err != nil {
				return append(bad, err.Error())
			}
			time.Sleep(time.Second)
		}
	}
	return bad
}

// visit is a client that sends nothing.
func (r *round) visit() error {
	c, err := r.server.Dial(goodHost(0))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Reply(); err != nil {
		return err
	}
	for _, line := range []string{"EHLO mail0.hosts.example", "MAIL FROM:<user@d0.a.senders.example>", "RCPT TO:<u1@" + smtpdtest.Domain + ">", "RSET", "QUIT"} {
		if _, err := c.Do(line); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return nil
}

// mostMissing is how many mails smtpd may owe while its speed is measured: it
// accepts faster than it delivers.
const mostMissing = 300

// capacity returns how many clients a second smtpd serves at most.
func capacity(conf smtpdtest.Config, seed uint64, length time.Duration, log io.Writer) (rate float64, bad []string, err error) {
	r := &round{conf: conf, seed: seed, log: log}
	if err := r.begin(); err != nil {
		return 0, nil, err
	}
	begin := time.Now()
	var next func()
	next = func() {
		for r.ledger.missing() > mostMissing && time.Since(begin) < length {
			time.Sleep(10 * time.Millisecond)
		}
		if time.Since(begin) < length && !r.ended() {
			r.crowd.start(false, next)
		}
	}
	for range 24 {
		r.crowd.start(false, next)
	}
	for time.Since(begin) < length {
		time.Sleep(200 * time.Millisecond)
		r.collect()
	}
	bad = r.end()
	return float64(r.crowd.sessions.Load()) / r.drained.Sub(begin).Seconds(), bad, nil
}

// run lets clients come at a steady pace.
func (r *round) run() (bad []string, err error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	if r.trouble {
		r.crowd.retry = 3 * time.Second
	}
	interval := min(max(r.length/18, 5*time.Second), time.Minute)
	tableHead(os.Stdout)
	begin := time.Now()
	now := func() time.Duration { return time.Since(begin) }
	var s sample
	last := usage(r.server.Processes())
	looked, started, skipped := time.Duration(0), 0, 0
	for now() < r.length && !r.ended() {
		for due := int(now().Seconds() * r.rate); started < due; started++ {
			if r.crowd.inFlight() >= r.mostClients() {
				skipped++
				continue
			}
			r.crowd.start(true, func() {})
		}
		if r.trouble {
			r.disturb(now())
		}
		if now()-looked >= time.Second {
			looked = now()
			r.collect()
			used := usage(r.server.Processes())
			s.low = lower(s.low, used)
			s.full = s.full || r.state.full
			if !strings.Contains(s.weather, r.state.weather) {
				s.weather = r.state.weather
			}
			if end := r.length; looked >= time.Duration(len(r.samples)+1)*interval || looked+time.Second >= end {
				s.at, s.skipped, s.clients = looked, skipped, r.crowd.take()
				s.open, s.mails = r.crowd.inFlight(), r.ledger.take()
				for name, u := range s.low {
					u.cpu = used[name].cpu - last[name].cpu
					s.low[name] = u
				}
				s.row(os.Stdout)
				r.samples = append(r.samples, s)
				s, last, skipped = sample{}, used, 0
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if r.ended() {
		bad = append(bad, "smtpd has ended")
	} else if r.trouble {
		r.calm()
	}
	bad = append(bad, r.end()...)
	if r.trouble {
		bad = append(bad, rises(r.samples, r.length)...)
	}
	total := r.ledger.snapshot()
	fmt.Printf("mails: %d accepted for %d mailboxes, %d delivered; %d refused, %d broken off by the client; %d lines logged\n",
		total.accepted, total.owed, total.delivered, total.refused, total.unknown, r.watch.lines)
	return bad, nil
}

// disturb does to the filters what belongs to this time of the run.
func (r *round) disturb(now time.Duration) {
	cycle := cycleOf(r.length)
	part := float64(now%cycle) / float64(cycle)
	for _, w := range weathers {
		if part >= w.until {
			continue
		}
		if w.name != r.state.weather {
			r.weather(w)
		}
		break
	}
	full := part >= diskFullFrom && part < diskFullTo
	if full != r.state.full {
		r.disk(full)
	}
	if n := int(float64(now) / float64(cycle) * rewrites); n != r.state.rewritten {
		r.state.rewritten = n
		for name, texts := range lists {
			if err := r.rewrite(name, texts[n%2]); err != nil {
				r.fail("%v", err)
			}
		}
	}
	if n := int(float64(now) / float64(cycle) * hangups); n != r.state.hangedUp {
		r.state.hangedUp = n
		for _, p := range programs {
			if err := r.server.Signal(p.name, syscall.SIGHUP); err != nil {
				r.fail("SIGHUP: %v", err)
			}
		}
	}
}

// calm ends all trouble.
func (r *round) calm() {
	r.weather(weathers[0])
	r.disk(false)
}

func (r *round) weather(w weather) {
	r.state.weather = w.name
	r.server.DNS.Reset()
	if err := r.server.DNS.Set(zone + w.lines); err != nil {
		r.fail("DNS: %v", err)
	}
}

// disk fills the file system of the filters' records, or makes room.
func (r *round) disk(full bool) {
	r.state.full = full
	path := r.server.Path("state/fill")
	if !full {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.fail("disk: %v", err)
		}
		return
	}
	f, err := os.Create(path)
	if err != nil {
		r.fail("disk: %v", err)
		return
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.fail("disk: %v", err)
	}
}

// rewrite gives a list another text, in place or as a new file.
func (r *round) rewrite(name, text string) error {
	if r.state.rewritten%4 < 2 {
		return r.server.WriteFile(name, text)
	}
	if err := r.server.WriteFile(name+".new", text); err != nil {
		return err
	}
	return os.Rename(r.server.Path(name+".new"), r.server.Path(name))
}

// A watcher reads the log of smtpd and the filters. It keeps what tells of
// trouble, and the end.
type watcher struct {
	mu    sync.Mutex
	to    io.Writer
	part  []byte // of a line
	ring  [200]string
	lines int
	bad   []string
	over  bool
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.to.Write(p)
	w.part = append(w.part, p...)
	for {
		i := bytes.IndexByte(w.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.line(string(w.part[:i]))
		w.part = w.part[i+1:]
	}
}

func (w *watcher) line(line string) {
	w.ring[w.lines%len(w.ring)] = line
	w.lines++
	own := true
	for _, p := range programs {
		own = own && !strings.HasPrefix(line, strings.TrimPrefix(p.name, "filter-")+": ")
	}
	bad := own && smtpdtest.Trouble(line) || !own && (strings.Contains(line, "panic") || strings.Contains(line, "goroutine "))
	if bad && !w.over && len(w.bad) < 20 {
		w.bad = append(w.bad, "log: "+line)
	}
}

// quiet says that smtpd is being stopped.
func (w *watcher) quiet() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

func (w *watcher) verdict() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bad
}

// tail returns the end of the log.
func (w *watcher) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for i := max(0, w.lines-40); i < w.lines; i++ {
		b.WriteString(w.ring[i%len(w.ring)] + "\n")
	}
	return b.String()
}
