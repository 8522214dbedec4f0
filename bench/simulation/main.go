// Simulation has a day of mail decided, on a clock of its own: ten thousand senders
// that try again as real ones do (testdata/retry-schedules.tsv of pkg/greylist), and
// a hundred thousand attempts of bots. It prints who waited, and how long, and what
// of the bots came in; exit status 1 says that somebody waited or came in who must
// not. Beside it a twentieth of that mail comes to Debian's postgrey, whose clock is that
// of the simulation by libfaketime.
//
//	go run ./bench/simulation [-seed N] [-postgrey=false]
package main

import (
	"container/heap"
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

const (
	senders   = 10_000
	bots      = 100_000
	twentieth = 20 // the share of postgrey
	day       = 24 * time.Hour
)

func main() {
	log.SetFlags(0)
	seed := flag.Uint64("seed", 1, "of all that is random")
	peer := flag.Bool("postgrey", true, "show a tenth of the mail to postgrey too")
	flag.Parse()
	schedules, err := readSchedules()
	if err != nil {
		log.Fatal(err)
	}
	ok := true
	for _, all := range []bool{false, true} {
		s := newSimulation(*seed, 1, schedules)
		g := newGate(all)
		if err := s.run(g); err != nil {
			log.Fatal(err)
		}
		who := "suspects"
		if all {
			who = "all"
		}
		fmt.Printf("filter-greylist -who %s -passTime 60s\n", who)
		s.print()
		fmt.Printf("records at most: %d\n\n", g.most)
		ok = s.right(all) && ok
	}
	if *peer {
		if err := besidePostgrey(newSimulation(*seed, twentieth, schedules)); err != nil {
			log.Fatal(err)
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// A schedule is when a server tries, from the first attempt on, and from how many
// addresses.
type schedule struct {
	addrs int
	tries []time.Duration
}

func readSchedules() (all []schedule, err error) {
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../pkg/greylist/testdata/retry-schedules.tsv"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(line, "#") || len(f) != 3 {
			continue
		}
		s := schedule{tries: []time.Duration{0}}
		fmt.Sscan(f[1], &s.addrs)
		for _, word := range strings.Fields(f[2]) {
			var min, sec int
			if n, _ := fmt.Sscanf(word, "%d:%d", &min, &sec); n != 2 {
				break // then every ...: enough
			}
			s.tries = append(s.tries, time.Duration(min*60+sec)*time.Second)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no schedules")
	}
	return all, nil
}

// A message is tried until it is in, or its server gives up.
type message struct {
	kind  *kind
	tries []time.Duration // after begin
	begin time.Time
	make  func(try int) greylist.Attempt
	next  int
	then  *message // sent two hours after this one is in
}

// A kind is a row of the table.
type kind struct {
	name             string
	messages, in     int
	atOnce           int             // in at the first try
	again            int             // messages that were refused at a try that was old enough
	waits            []time.Duration // of those that were in
	mayAgain, mayBot bool
	bot              bool
	attempts         int
}

type simulation struct {
	share     int // one in so many senders and bots
	rand      *rand.Rand
	schedules []schedule
	begin     time.Time
	queue     queue
	kinds     []*kind
}

func newSimulation(seed uint64, share int, schedules []schedule) *simulation {
	s := &simulation{
		share: share, rand: rand.New(rand.NewPCG(seed, 0)), schedules: schedules,
		begin: time.Now().Add(-10 * day).Truncate(time.Second),
	}
	s.addSenders()
	s.addBots()
	return s
}

// A greylister accepts attempts or refuses them.
type greylister interface {
	accept(context.Context, greylist.Attempt) (bool, error)
}

// A gate is filter-greylist's.
type gate struct {
	store    *greylist.Memory
	greylist *greylist.Greylist
	attempts int
	most     int // records
}

func newGate(all bool) *gate {
	g := &gate{store: greylist.NewMemory(0)}
	g.greylist = greylist.New(greylist.Options{Store: g.store, Policy: greylist.Policy{All: all}})
	return g
}

func (g *gate) accept(ctx context.Context, a greylist.Attempt) (bool, error) {
	d, err := g.greylist.Decide(ctx, a)
	if err != nil {
		return false, err
	}
	if g.attempts%1000 == 0 {
		if err := g.greylist.Flush(ctx); err != nil {
			return false, err
		}
		for range 16 { // as often as it would be in the time of a thousand attempts
			if _, _, err := g.store.Sweep(ctx, g.greylist.Expired(a.Time)); err != nil {
				return false, err
			}
		}
	}
	if g.attempts%10_000 == 0 {
		n := 0
		for range g.store.All(ctx) {
			n++
		}
		g.most = max(g.most, n)
	}
	g.attempts++
	return d.Accept, nil
}

func (s *simulation) kind(name string) *kind {
	k := &kind{name: name}
	s.kinds = append(s.kinds, k)
	return k
}

// word is a name without digits, of which there are many.
func (s *simulation) word() string {
	b := make([]byte, 10)
	for i := range b {
		b[i] = byte('a' + s.rand.IntN(26))
	}
	return string(b)
}

func (s *simulation) addr() netip.Addr {
	for {
		a := netip.AddrFrom4([4]byte{byte(1 + s.rand.IntN(223)), byte(s.rand.IntN(256)), byte(s.rand.IntN(256)), byte(1 + s.rand.IntN(254))})
		if !a.IsPrivate() && !a.IsLoopback() {
			return a
		}
	}
}

func (s *simulation) user() string { return s.word()[:4] + "@users.example" }

// addSenders adds those that come again.
func (s *simulation) addSenders() {
	for _, g := range []struct {
		name     string
		share    int // of a hundred
		pool     bool
		client   func(host int, domain string) greylist.Client
		spf      greylist.Status
		null     bool
		verp     bool
		mayAgain bool
	}{
		{"vouched for", 60, true, proper, greylist.SPFPass, false, false, false},
		{"pool, SPF, no good names", 8, true, hosting, greylist.SPFPass, false, false, false},
		{"pool, names, no SPF", 6, true, proper, greylist.SPFNone, false, false, false},
		{"pool, neither", 3, true, nameless, greylist.SPFNone, false, false, true},
		{"bounces of a pool", 5, true, proper, greylist.SPFNone, true, false, false},
		{"lists (VERP), no SPF", 6, false, hosting, greylist.SPFNone, false, true, false},
		{"small, neither SPF nor name", 12, false, nameless, greylist.SPFNone, false, false, false},
	} {
		k := s.kind(g.name)
		k.mayAgain = g.mayAgain
		for range senders / s.share * g.share / 100 {
			sched := s.schedules[s.rand.IntN(len(s.schedules))]
			domain := s.word() + ".example"
			hosts := 1
			if g.pool {
				hosts = max(sched.addrs, 3)
			}
			var addrs []netip.Addr
			for range hosts {
				addrs = append(addrs, s.addr())
			}
			write := func() func(int) greylist.Attempt {
				from, to, turn := s.word()+"@"+domain, s.user(), s.rand.IntN(hosts)
				if g.verp {
					from = fmt.Sprintf("list-bounces-%d-%s@%s", s.rand.IntN(1e9), strings.ReplaceAll(to, "@", "="), domain)
				}
				return func(try int) greylist.Attempt {
					host := (turn + try) % hosts
					c := g.client(host, domain)
					c.Addr = addrs[host]
					a := greylist.Attempt{Client: c, Helo: "x", Sender: from, Rcpts: []string{to}}
					a.SPF = greylist.SPFResult{Status: g.spf, Domain: domain, Frees: g.spf == greylist.SPFPass}
					if g.null {
						a.Sender = "<>"
					}
					return a
				}
			}
			first := &message{kind: k, tries: sched.tries, begin: s.sometime(), make: write()}
			first.then = &message{kind: s.second(k), tries: sched.tries, make: write()}
			s.add(first)
		}
	}
}

// second is the kind of the messages that follow.
func (s *simulation) second(k *kind) *kind {
	name := "  the next message"
	i := slices.Index(s.kinds, k)
	if i+1 < len(s.kinds) {
		return s.kinds[i+1]
	}
	next := s.kind(name)
	next.mayAgain = k.mayAgain
	return next
}

func (s *simulation) sometime() time.Time {
	return s.begin.Add(time.Duration(s.rand.Int64N(int64(day))))
}

func proper(host int, domain string) greylist.Client {
	return greylist.Client{Name: fmt.Sprintf("mx%d.%s", host, domain), Domain: domain}
}

func hosting(host int, domain string) greylist.Client {
	return greylist.Client{Name: fmt.Sprintf("v%d.host.example", host), Domain: "host.example", Class: greylist.Hosting}
}

func nameless(int, string) greylist.Client { return greylist.Client{Class: greylist.NoName} }

// bot is a client as bots are: without a name, at home, or in a data centre.
func (s *simulation) bot() greylist.Client {
	c := greylist.Client{Addr: s.addr(), Class: greylist.NoName}
	switch n := s.rand.IntN(100); {
	case n < 40:
	case n < 80:
		c.Name, c.Domain, c.Class = "h-"+s.word()+".dyn.isp.example", "isp.example", greylist.Dynamic
	case n < 95:
		c.Name, c.Domain, c.Class = s.word()+".cloud.example", "cloud.example", greylist.Hosting
	default:
		c.Name, c.Class = "mx."+s.word()+".example", greylist.Proper
		_, c.Domain, _ = strings.Cut(c.Name, ".")
	}
	return c
}

// addBots adds those that mostly do not come again. No two of their attempts have
// origin and recipient in common, and no three sender and recipient, but where they
// do come again.
func (s *simulation) addBots() {
	each := bots / s.share / 5
	serial := 0
	rcpt := func() string { serial++; return fmt.Sprintf("u%d@users.example", serial) }
	forged := func() (string, greylist.SPFResult) {
		domain := s.word() + ".example"
		st := []greylist.Status{greylist.SPFNone, greylist.SPFNone, greylist.SPFNeutral, greylist.SPFFail, greylist.SPFSoftFail, greylist.SPFTempError}[s.rand.IntN(6)]
		return s.word() + "@" + domain, greylist.SPFResult{Status: st, Domain: domain}
	}
	for _, b := range []struct {
		name  string
		tries []time.Duration
		rcpts int
		move  bool
		may   bool // come in
	}{
		{"one try", []time.Duration{0}, 1, false, false},
		{"many recipients, no retry", []time.Duration{0}, 30, false, false},
		{"retry at once", []time.Duration{0, time.Second, 5 * time.Second, 20 * time.Second}, 1, false, false},
		{"retry after a minute", []time.Duration{0, 65 * time.Second}, 1, false, true},
		{"retry from elsewhere", []time.Duration{0, 10 * time.Minute, 20 * time.Minute}, 1, true, true},
	} {
		k := s.kind("bots: " + b.name)
		k.bot, k.mayBot, k.mayAgain = true, b.may, true
		for left := each; left > 0; {
			client := s.bot()
			// A machine sends some, or blasts thousands.
			n := 1 + s.rand.IntN(20)
			if s.rand.IntN(500) == 0 {
				n = 3000
			}
			for range min(n, max(1, left/len(b.tries))) {
				from, spf := forged()
				var to []string
				for range b.rcpts {
					to = append(to, rcpt())
				}
				left -= len(b.tries)
				s.add(&message{kind: k, tries: b.tries, begin: s.sometime(), make: func(try int) greylist.Attempt {
					c := client
					if b.move && try > 0 {
						c = s.bot()
					}
					return greylist.Attempt{Client: c, Helo: "x", Sender: from, Rcpts: to, SPF: spf}
				}})
			}
		}
	}
}

// A queue has the message first that tries first.
type queue []*message

func (m *message) due() time.Time { return m.begin.Add(m.tries[m.next]) }

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due().Before(q[j].due()) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*message)) }
func (q *queue) Pop() any {
	m := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return m
}

func (s *simulation) add(m *message) {
	m.kind.messages++
	heap.Push(&s.queue, m)
}

func (s *simulation) run(g greylister) error {
	ctx := context.Background()
	for len(s.queue) > 0 {
		m := heap.Pop(&s.queue).(*message)
		a := m.make(m.next)
		a.Time = m.due()
		in, err := g.accept(ctx, a)
		if err != nil {
			return err
		}
		m.kind.attempts++
		age := m.tries[m.next]
		switch {
		case in:
			m.kind.in++
			if m.next == 0 {
				m.kind.atOnce++
			}
			m.kind.waits = append(m.kind.waits, age)
			if m.then != nil {
				m.then.begin = a.Time.Add(2 * time.Hour)
				s.add(m.then)
			}
		case age >= time.Minute:
			m.kind.again++
			fallthrough
		default:
			if m.next++; m.next < len(m.tries) {
				heap.Push(&s.queue, m)
			}
		}
	}
	return nil
}

// print shows the table.
func (s *simulation) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\tmessages\tattempts\tin\tat once\twait median\t99%%\tmost\trefused again\t\n")
	for _, k := range s.kinds {
		slices.Sort(k.waits)
		at := func(p float64) string {
			if len(k.waits) == 0 {
				return "-"
			}
			return k.waits[int(p*float64(len(k.waits)-1))].String()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t\n", k.name, k.messages, k.attempts, k.in, k.atOnce, at(0.5), at(0.99), at(1), k.again)
	}
	w.Flush()
}

// right reports whether nobody waited or came in who must not, and says who did.
func (s *simulation) right(all bool) bool {
	ok := true
	for _, k := range s.kinds {
		switch {
		case k.bot && !k.mayBot && k.in > 0,
			!k.bot && !k.mayAgain && (k.again > 0 || k.in < k.messages),
			strings.HasPrefix(k.name, "vouched") && !all && k.atOnce < k.messages:
			fmt.Printf("WRONG: %s\n", strings.TrimSpace(k.name))
			ok = false
		}
	}
	return ok
}
