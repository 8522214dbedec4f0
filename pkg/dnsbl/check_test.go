package dnsbl

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/resolve"
)

var _ Resolver = (*resolve.Resolver)(nil)

const ms = time.Millisecond

// A fake is a resolver in memory. Below each zone it has test entries, unless
// they are set.
type fake struct {
	mu      sync.Mutex
	records map[string]string // name to addresses, "fail", "hang", "panic" or text of TXT
	delay   map[string]time.Duration
	asked   []string
	flying  map[string]int // queries under way
	cached  bool           // all answers are from a cache
	six     string         // value of all names in the form of IPv6
	around  string         // value of names in the form of addresses that have no other, but for 127.0.0.1
}

func (f *fake) set(name, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[name] = value
}

func (f *fake) count(part string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range f.asked {
		if strings.Contains(name, part) {
			n++
		}
	}
	return n
}

// find returns the value of a name, or of *.zone.
func (f *fake) find(name string) (string, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, name)
	var delay time.Duration
	for zone, d := range f.delay {
		if strings.HasSuffix(name, zone) {
			delay = d
		}
	}
	if v, ok := f.records[name]; ok {
		return v, delay
	}
	best := ""
	for pattern := range f.records { // the longest
		if below, ok := strings.CutPrefix(pattern, "*"); ok && strings.HasSuffix(name, below) && len(pattern) > len(best) && !strings.HasPrefix(name, "txt ") && name != "." {
			best = pattern
		}
	}
	if best != "" && f.records[best] != "" {
		return f.records[best], delay
	}
	if best != "" && best != "*" && strings.HasPrefix(best, "*.invalid") {
		return "", delay
	}
	labels := strings.Split(name, ".")
	address := len(labels) >= 6 && len(labels) <= 8 && len(labels[3]) <= 3 && strings.Trim(labels[3], "0123456789") == "" || len(labels) >= 34 && len(labels[31]) == 1
	switch {
	case f.six != "" && len(labels) >= 34:
		return f.six, delay
	case f.around != "" && address && !strings.HasPrefix(name, "1.0.0.127.") && !strings.HasPrefix(name, "2.0.0.127.") && !strings.HasPrefix(name, "1.0.0.0.0.0.f.7"):
		return f.around, delay
	}
	switch {
	case strings.HasPrefix(name, "2.0.0.127."), strings.HasPrefix(name, "test."), strings.HasPrefix(name, "2.0.0.0.0.0.f.7.f.f.f.f."):
		return "127.0.0.2", delay
	}
	return "", delay
}

// reply returns what comes back for a name, and after how long.
func (f *fake) reply(name string) ([]netip.Addr, time.Duration, error) {
	value, delay := f.find(name)
	switch value {
	case "":
		return nil, delay, &net.DNSError{Name: name, IsNotFound: true}
	case "fail":
		return nil, delay, &net.DNSError{Name: name, IsTemporary: true, Err: "server answers SERVFAIL"}
	case "denied":
		return nil, delay, &net.DNSError{Name: name, IsNotFound: true}
	case "nodata":
		return nil, delay, &net.DNSError{Name: name, IsNotFound: true, UnwrapErr: resolve.ErrNoData}
	case "hang":
		return nil, 24 * time.Hour, errTimeout(name)
	case "panic":
		panic("fake panic")
	}
	var addrs []netip.Addr
	for s := range strings.FieldsSeq(value) {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, delay, nil
}

func errTimeout(name string) error {
	return &net.DNSError{Name: name, IsTemporary: true, IsTimeout: true, Err: "no answer in time"}
}

func (f *fake) FreshA(ctx context.Context, name string, _ resolve.Refusal) ([]netip.Addr, error) {
	addrs, delay, err := f.reply(name)
	select {
	case <-time.After(delay):
		return addrs, err
	case <-ctx.Done():
		return nil, errTimeout(name)
	}
}

// FreshNS knows the root, unless "." is set.
func (f *fake) FreshNS(ctx context.Context, name string) ([]string, error) {
	_, delay, err := f.reply(name + ".")
	if value, _ := f.find(name + "."); value == "" {
		return []string{"a.root-servers.net."}, nil
	}
	select {
	case <-time.After(delay):
		return nil, err
	case <-ctx.Done():
		return nil, errTimeout(name)
	}
}

// StartA gives up after 3 s. Who asks what is being asked shares the answer.
func (f *fake) StartA(name string, _ resolve.Refusal, then func([]netip.Addr, bool, error)) {
	addrs, delay, err := f.reply(name)
	if delay > 3*time.Second {
		addrs, delay, err = nil, 3*time.Second, errTimeout(name)
	}
	f.mu.Lock()
	fresh := f.flying[name] == 0 && !f.cached
	f.flying[name]++
	f.mu.Unlock()
	time.AfterFunc(delay, func() {
		f.mu.Lock()
		f.flying[name]--
		f.mu.Unlock()
		then(addrs, fresh, err)
	})
}

func (f *fake) Forget(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, "forget "+name)
}

func (f *fake) TXT(ctx context.Context, name string) ([]string, error) {
	text, delay := f.find("txt " + name)
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, &net.DNSError{Name: name, IsTimeout: true}
	}
	if text == "" {
		return nil, &net.DNSError{Name: name, IsNotFound: true}
	}
	return []string{text}, nil
}

func newFake(records ...string) *fake {
	f := &fake{records: map[string]string{}, delay: map[string]time.Duration{}, flying: map[string]int{}}
	for i := 0; i < len(records); i += 2 {
		f.records[records[i]] = records[i+1]
	}
	return f
}

func parse(t testing.TB, text string) []List {
	t.Helper()
	var lists []List
	for arg := range strings.FieldsSeq(text) {
		l, errs := Parse(arg)
		if errs != nil {
			t.Fatal(errs)
		}
		lists = append(lists, l...)
	}
	return lists
}

// A buffer is a log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// fresh returns a checker whose zones are not tested.
func fresh(t testing.TB, o Options) *Checker {
	c := New(o)
	t.Cleanup(c.close)
	return c
}

// running returns a checker whose zones have been tested, and its log.
func running(t *testing.T, f *fake, o Options, lists string) (*Checker, *buffer) {
	t.Helper()
	log := new(buffer)
	o.Lists, o.Resolver = parse(t, lists), f
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	c := New(o)
	log.b.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() {
		c.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c, log
}

// matches reports whether a line has what the pattern says.
func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

func (r Result) brief() string {
	s := fmt.Sprintf("%v %d", r.Verdict, r.Score)
	for _, h := range r.Hits {
		s += fmt.Sprintf(" %s=%d", h.Label, h.Weight)
	}
	return s
}

var client = netip.MustParseAddr("203.0.113.7")

func TestVerdicts(t *testing.T) {
	c7 := "7.113.0.203."
	for _, tt := range []struct {
		name, lists    string
		block, junk    int
		records        []string
		want           string
		rdns, helo, fr string
	}{
		{name: "none", lists: "a.example*5", block: 5, want: "pass 0"},
		{name: "listed", lists: "a.example*5", block: 5, records: []string{c7 + "a.example", "127.0.0.2"}, want: "block 5 a.example=5"},
		{name: "junk", lists: "a.example*3", block: 5, junk: 3, records: []string{c7 + "a.example", "127.0.0.2"}, want: "junk 3 a.example=3"},
		{name: "below", lists: "a.example*2", block: 5, junk: 3, records: []string{c7 + "a.example", "127.0.0.2"}, want: "pass 2 a.example=2"},
		{name: "other code", lists: "a.example=127.0.0.3*5", block: 5, records: []string{c7 + "a.example", "127.0.0.2"}, want: "pass 0"},
		{name: "one of 30", lists: "a.example=127.0.0.30*5", block: 5, records: []string{c7 + "a.example", "127.0.0.2 127.0.0.30 127.0.0.31"}, want: "block 5 a.example=5"},
		{name: "entries of a zone add", lists: "x@a.example=127.0.0.2*2 y@a.example=127.0.0.3*3 z@a.example=127.0.0.4*4", block: 5,
			records: []string{c7 + "a.example", "127.0.0.2 127.0.0.3"}, want: "block 5 x=2 y=3"},
		{name: "entries of a label are one", lists: "a.example=127.0.0.2*2 a.example=127.0.0.3*3", junk: 5,
			records: []string{c7 + "a.example", "127.0.0.3 127.0.0.2"}, want: "junk 5 a.example=5"},
		{name: "allow", lists: "a.example*5 w.example*-3", block: 5, junk: 5, records: []string{c7 + "a.example", "127.0.0.2", c7 + "w.example", "127.0.0.2"}, want: "pass 2 a.example=5 w.example=-3"},
		{name: "sick allow list", lists: "a.example*5 w.example*-3", block: 5, records: []string{c7 + "a.example", "127.0.0.2", "*.w.example", "127.0.10.3"}, want: "block 5 a.example=5"},
		{name: "outside 127/8", lists: "a.example*5", block: 5, records: []string{c7 + "a.example", "203.0.113.1"}, want: "pass 0"},
		{name: "with a listing beside", lists: "a.example*5", block: 5, records: []string{c7 + "a.example", "127.0.0.2 203.0.113.1"}, want: "pass 0"},
		{name: "error code", lists: "a.example*5", block: 5, records: []string{c7 + "a.example", "127.255.255.254"}, want: "pass 0"},
		{name: "blocked code", lists: "list.dnswl.org=127.0.0.[0..255]*5", block: 5, records: []string{c7 + "list.dnswl.org", "127.0.0.255"}, want: "pass 0"},
		{name: "surbl bit 1", lists: "multi.surbl.org+helo*5", block: 5, records: []string{"bad.example.multi.surbl.org", "127.0.0.65"}, helo: "bad.example", want: "pass 0"},
		{name: "wildcard", lists: "a.example*5", block: 5, records: []string{"*.a.example", "127.0.0.2"}, want: "pass 0"},
		{name: "servfail", lists: "a.example*5 b.example*5", block: 5, records: []string{"*.a.example", "fail", c7 + "b.example", "127.0.0.2"}, want: "block 5 b.example=5"},
		{name: "hangs", lists: "a.example*4 b.example*4", block: 5, junk: 4, records: []string{"*.a.example", "hang", c7 + "b.example", "127.0.0.2"}, want: "junk 4 b.example=4"},
		{name: "panics", lists: "a.example*4 b.example*4", block: 4, records: []string{c7 + "a.example", "panic", c7 + "b.example", "127.0.0.2"}, want: "block 4 b.example=4"},
		{name: "+block", lists: "a.example*1+block", block: 5, records: []string{c7 + "a.example", "127.0.0.2"}, want: "block 1 a.example=1"},
		{name: "+junk", lists: "a.example*1+junk", block: 5, records: []string{c7 + "a.example", "127.0.0.2"}, want: "junk 1 a.example=1"},
		{name: "+junk and score", lists: "a.example*1+junk b.example*5", block: 5, records: []string{c7 + "a.example", "127.0.0.2", c7 + "b.example", "127.0.0.2"}, want: "block 6 a.example=1 b.example=5"},
		{name: "v6 only", lists: "a.example*5+v6", block: 5, records: []string{c7 + "a.example", "127.0.0.2"}, want: "pass 0"},
		{name: "dead", lists: "dnsbl.sorbs.net*5", block: 5, records: []string{c7 + "dnsbl.sorbs.net", "127.0.0.2"}, want: "pass 0"},
		{name: "domains", lists: "d.example*5+rdns+helo+from", block: 5, rdns: "mail.bad.example", helo: "h.bad.example", fr: "bad.example",
			records: []string{"bad.example.d.example", "127.0.1.2", "h.bad.example.d.example", "127.0.1.2"}, want: "block 5 d.example=5"},
		{name: "registered domain", lists: "multi.uribl.com+helo*5", block: 5, helo: "a.b.Bad.co.uk.", records: []string{"bad.co.uk.multi.uribl.com", "127.0.0.2"}, want: "block 5 multi.uribl.com=5"},
		{name: "name as long as names may be", lists: "d.example*5+from", block: 5, fr: strings.Repeat("a.", 118) + "bad.example", records: []string{"bad.example.d.example", "127.0.1.2"}, want: "block 5 d.example=5"},
		{name: "IP in a domain list", lists: "dbl.spamhaus.org=127.0.1.[0..255]+helo*5", block: 5, helo: "x.example", records: []string{"x.example.dbl.spamhaus.org", "127.0.1.255"}, want: "pass 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := running(t, newFake(tt.records...), Options{BlockAt: tt.block, JunkAt: tt.junk}, tt.lists)
				time.Sleep(10 * time.Second) // tests
				q := c.Begin(t.Context(), client)
				q.Domain(t.Context(), RDNS, tt.rdns)
				q.Domain(t.Context(), Helo, tt.helo)
				q.Domain(t.Context(), From, tt.fr)
				q.Wait(t.Context())
				if got := wait(t, q).brief(); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
			})
		})
	}
}

func TestDomainsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := fresh(t, Options{Lists: parse(t, "d.example+helo"), Resolver: f, JunkAt: 1})
		q := c.Begin(t.Context(), client)
		for _, s := range []string{"", "[192.0.2.1]", "192.0.2.1", "192.0.2.1.", "[IPv6:2001:db8::1]", "2001:db8::1", "localhost", "<unknown>", "a..b", "x.example.1",
			"b\xfcro.example", "a b.example", strings.Repeat("a", 64) + ".example", "a.example/" + "x"} {
			q.Domain(t.Context(), Helo, s)
			synctest.Wait()
			if len(f.asked) > 0 {
				t.Fatalf("%q: asked for %q", s, f.asked)
			}
		}
		q.Domain(t.Context(), Helo, "A.Example")
		q.Domain(t.Context(), Helo, "b.example")
		synctest.Wait()
		if f.count("a.example.d.example") != 1 || f.count("b.example.d.example") != 1 || len(q.asks) != 1 {
			t.Errorf("asked for %q, %d left", f.asked, len(q.asks))
		}
	})
}

// Of a name that is not ASCII the A-label form is asked, the same for all ways to
// write it.
func TestULabels(t *testing.T) {
	for _, tt := range []struct{ given, asked string }{
		{"bücher.example", "xn--bcher-kva.example"},
		{"BÜCHER.Example.", "xn--bcher-kva.example"},
		{"bu\u0308cher.example", "xn--bcher-kva.example"},
		{"mail.straße.example", "mail.xn--strae-oqa.example"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"почта。пример.example", "xn--80a1acny.xn--e1afmkfd.example"},
		{"_x.bücher.example", "_x.xn--bcher-kva.example"},
		{"b\xfccher.example", ""},
		{"\u200b.example", ""},
		{strings.Repeat("ü", 60) + ".example", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			c := fresh(t, Options{Lists: parse(t, "d.example.net+from"), Resolver: f, JunkAt: 1})
			q := c.Begin(t.Context(), client)
			q.Domain(t.Context(), From, tt.given)
			want := 0
			if tt.asked != "" {
				want = 1
			}
			if len(q.asks) != want || want == 1 && q.asks[0].name != tt.asked+".d.example.net" {
				t.Errorf("%q: %+v, want %s", tt.given, q.asks, tt.asked)
			}
		})
	}
}

// The same zone is one query however often it is named.
func TestOneQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := fresh(t, Options{Lists: parse(t, "a.example=127.0.0.2 a.example=127.0.0.3 b@A.example.*3 a.example+v6"), Resolver: f, JunkAt: 1})
		c.Begin(t.Context(), client).Verdict(t.Context())
		c.Begin(t.Context(), netip.MustParseAddr("::ffff:203.0.113.7")).Verdict(t.Context())
		c.Begin(t.Context(), netip.MustParseAddr("2001:db8::1%em0")).Verdict(t.Context())
		if f.count("7.113.0.203.a.example") != 2 || f.count(Name("a.example", netip.MustParseAddr("2001:db8::1"))) != 1 {
			t.Errorf("%q", f.asked)
		}
	})
}

// Names that come later have a time of their own.
func TestLaterQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.a.example", "hang", "*.d.example", "hang")
		c := fresh(t, Options{Lists: parse(t, "a.example d.example+helo+from"), Resolver: f, JunkAt: 1, Timeout: time.Second})
		start := time.Now()
		q := c.Begin(t.Context(), client)
		for _, after := range []time.Duration{600 * ms, 200 * ms} {
			time.Sleep(after)
			q.Domain(t.Context(), Helo, fmt.Sprint("x", after.Milliseconds(), ".example"))
		}
		if res := q.Verdict(t.Context()); time.Since(start) != 1800*ms || len(res.Silent) != 2 {
			t.Errorf("%+v after %v", res, time.Since(start))
		}
		q.Domain(t.Context(), From, "y.example")
		if q.Verdict(t.Context()); time.Since(start) != 2800*ms {
			t.Errorf("after %v", time.Since(start))
		}
		synctest.Wait() // the deadline of the verdict is that of the question
		if q.timer != nil {
			t.Error("a timer is left")
		}
	})
}

// Many may wait for one verdict.
func TestManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("7.113.0.203.a.example", "127.0.0.2")
		c := fresh(t, Options{Lists: parse(t, "a.example b.example"), Resolver: f, JunkAt: 1})
		c.Test(t.Context())
		f.delay["a.example"], f.delay["b.example"] = 10*ms, 20*ms
		q := c.Begin(t.Context(), client)
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				if res := q.Verdict(t.Context()); res.Verdict != Junk || time.Since(start) != 10*ms {
					t.Errorf("%+v after %v", res, time.Since(start))
				}
			})
			wg.Go(func() {
				if q.Wait(t.Context()); time.Since(start) != 20*ms {
					t.Errorf("all after %v", time.Since(start))
				}
			})
		}
		wg.Wait()
	})
}

// A panic while answers are added up ends neither the program nor, with a lock
// that stays held, all that waits.
func TestPanicInVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.a.example", "hang")
		var log buffer
		c := fresh(t, Options{Lists: parse(t, "a.example"), Resolver: f, JunkAt: 1, Log: slog.New(slog.NewTextHandler(&log, nil))})
		q := c.Begin(t.Context(), client)
		go q.Wait(t.Context())
		synctest.Wait()
		set := c.set.Load()
		set.entries = append(set.entries, nil) // panics
		for range 2 {
			if guard.Run(c.opts.Log, "lists", func() { q.Verdict(t.Context()) }) || guard.Run(c.opts.Log, "lists", func() { q.Now() }) {
				t.Fatal("no panic: the test is void")
			}
			time.Sleep(3 * time.Second)
		}
		set.entries = set.entries[:1]
		if res := q.Verdict(t.Context()); res.Verdict != Pass || len(res.Silent) != 1 {
			t.Errorf("%+v", res)
		}
	})
}

// The verdict comes with the last answer it needs.
func TestBounds(t *testing.T) {
	c7 := "7.113.0.203."
	for _, tt := range []struct {
		name, lists string
		block, junk int
		listed      string // zones
		delays      map[string]time.Duration
		verdict     string
		took        time.Duration
	}{
		{"block at once", "a.example*5 b.example*5", 5, 0, "a b", map[string]time.Duration{"a": 20 * ms, "b": 900 * ms}, "block 5", 20 * ms},
		{"an allow list may still save", "a.example*5 w.example*-1", 5, 0, "a", map[string]time.Duration{"a": 20 * ms, "w": 300 * ms}, "block 5", 300 * ms},
		{"an allow list cannot save", "a.example*9 w.example*-1", 5, 0, "a", map[string]time.Duration{"a": 20 * ms, "w": 300 * ms}, "block 9", 20 * ms},
		{"pass when it cannot be reached", "a.example*5 b.example*1 c.example*1", 5, 3, "", map[string]time.Duration{"a": 50 * ms, "b": 900 * ms, "c": 900 * ms}, "pass 0", 50 * ms},
		{"junk when nothing else", "a.example*3 b.example*1", 5, 3, "a", map[string]time.Duration{"a": 50 * ms, "b": 900 * ms}, "junk 3", 50 * ms},
		{"junk or block", "a.example*3 b.example*2", 5, 3, "a", map[string]time.Duration{"a": 50 * ms, "b": 900 * ms}, "junk 3", 900 * ms},
		{"pending +block", "a.example*0 b.example*0+block", 5, 0, "", map[string]time.Duration{"a": 900 * ms, "b": 50 * ms}, "pass 0", 50 * ms},
		{"pending +junk", "a.example*0 b.example*0+junk", 5, 0, "b", map[string]time.Duration{"a": 900 * ms, "b": 50 * ms}, "junk 0", 50 * ms},
		{"deadline", "a.example*5 b.example*5", 5, 0, "b", map[string]time.Duration{"a": 10 * ms, "b": time.Hour}, "pass 0", 2 * time.Second},
		{"deadline, with what there is", "a.example*5 w.example*-5", 5, 0, "a w", map[string]time.Duration{"a": 10 * ms, "w": time.Hour}, "block 5", 2 * time.Second},
		{"cannot do anything", "a.example*1 w.example*-5", 5, 0, "", map[string]time.Duration{"a": 10 * ms, "w": time.Hour}, "pass 0", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				for z := range strings.FieldsSeq(tt.listed) {
					f.set(c7+z+".example", "127.0.0.2")
				}
				c, _ := running(t, f, Options{BlockAt: tt.block, JunkAt: tt.junk, Timeout: 2 * time.Second}, tt.lists)
				synctest.Wait()
				f.mu.Lock()
				for z, d := range tt.delays {
					f.delay["."+z+".example"] = d
				}
				f.mu.Unlock()
				start := time.Now()
				res := wait(t, c.Begin(t.Context(), client))
				if got := fmt.Sprint(res.Verdict, " ", res.Score); got != tt.verdict || time.Since(start) != tt.took || res.Took != tt.took {
					t.Errorf("%s after %v, want %s after %v", got, time.Since(start), tt.verdict, tt.took)
				}
			})
		})
	}
}

// Twelve lists with 20 to 2000 ms, with many sets of those that list the client:
// the verdict is the one that all answers give, it is not given before it is
// certain, and not after the last answer that was needed.
func TestTwelveLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, lists, delays := twelve()
		c, _ := running(t, f, Options{BlockAt: 6, JunkAt: 4, Timeout: 2500 * ms}, lists)
		synctest.Wait()
		f.mu.Lock()
		for zone, d := range delays {
			f.delay["."+zone] = d
		}
		f.mu.Unlock()
		var bounds, all time.Duration
		n := 0
		for set := 0; set < 1<<len(c.opts.Lists); set += 13 {
			addr := netip.AddrFrom4([4]byte{198, 51, byte(set >> 8), byte(set)})
			var last time.Duration
			for i, l := range c.opts.Lists {
				if set&(1<<i) != 0 {
					f.set(Name(l.zone, addr), "127.0.0.2")
				}
				last = max(last, delays[l.zone])
			}
			tested(c)
			res := wait(t, c.Begin(t.Context(), addr))
			want, needed := oracle(c.opts, set, delays)
			if res.Verdict != want || res.Took != needed {
				t.Fatalf("lists %012b: %v after %v, want %v after %v", set, res.Verdict, res.Took, want, needed)
			}
			bounds += res.Took
			all += last
			n++
		}
		t.Logf("mean wait: by bounds %v, for all %v, one after the other %v", bounds/time.Duration(n), all/time.Duration(n), sum(delays))
	})
}

// tested makes all lists as well as a test does.
func tested(c *Checker) {
	for _, z := range c.set.Load().zones {
		z.mu.Lock()
		for _, p := range z.parts {
			p.good, p.tested = time.Now(), time.Now()
		}
		z.mu.Unlock()
	}
}

func sum(delays map[string]time.Duration) (d time.Duration) {
	for _, x := range delays {
		d += x
	}
	return d
}

func twelve() (f *fake, lists string, delays map[string]time.Duration) {
	delays = map[string]time.Duration{}
	for i, d := range []time.Duration{20, 25, 30, 40, 55, 80, 120, 180, 300, 500, 1000, 2000} {
		zone := fmt.Sprintf("l%d.example", i)
		weight := []int{2, 5, 1, -2, 3, 1, 2, -1, 1, 3, -4, 2}[i]
		lists += fmt.Sprintf("%s*%d ", zone, weight)
		delays[zone] = d * ms
	}
	return newFake(), lists, delays
}

// oracle tries every continuation: the verdict is certain as soon as all of
// them give the same.
func oracle(o Options, set int, delays map[string]time.Duration) (Verdict, time.Duration) {
	score := func(set int) (s int) {
		for i, l := range o.Lists {
			if set&(1<<i) != 0 {
				s += l.Weight
			}
		}
		return s
	}
	verdict := func(set int) Verdict {
		switch s := score(set); {
		case s >= o.BlockAt:
			return Block
		case s >= o.JunkAt:
			return Junk
		}
		return Pass
	}
	// The lists answer in their order.
	for known := 0; ; known++ {
		certain := true
		for rest := 0; rest < 1<<(len(o.Lists)-known); rest++ {
			if verdict(set&(1<<known-1)|rest<<known) != verdict(set) {
				certain = false
				break
			}
		}
		if certain {
			if known == 0 {
				return verdict(set), 0
			}
			return verdict(set), delays[o.Lists[known-1].zone]
		}
	}
}

// Text is asked for only after a hit and only where it is shown, and made
// harmless.
func TestText(t *testing.T) {
	const key = "abcdefghij0123456789klmnop"
	zone := key + ".bl.example"
	for _, tt := range []struct {
		lists, text, want string
		reason            bool
		block, queries    int
	}{
		{"x@Z*5", "listed", "", false, 5, 0},
		{"x@Z*5", "listed", "listed", true, 5, 1},
		{"x@Z*4", "listed", "", true, 5, 0},
		{"x@Z*1+txt", "listed", "", false, 5, 0}, // nobody is refused
		{"x@Z*5+txt", "listed", "listed", false, 5, 1},
		{"x@Z*5+txt", "listed", "", true, -5, 0}, // -dryRun
		{"x@Z*5", "a\r\n250 ok\x00|\xff see https://x.example/" + key + "/7", "a 250 ok | see https://x.example/KEY/7", true, 5, 1},
		{"x@Z*5", strings.Repeat("y", 60000), strings.Repeat("y", 200), true, 5, 1},
		{"x@Z*5", "", "", true, 5, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("7.113.0.203."+zone, "127.0.0.2", "txt 7.113.0.203."+zone, tt.text)
			c, log := running(t, f, Options{BlockAt: max(tt.block, -tt.block), JunkAt: 1, Reason: tt.reason, DryRun: tt.block < 0}, strings.ReplaceAll(tt.lists, "Z", zone))
			synctest.Wait()
			res := c.Begin(t.Context(), client).Verdict(t.Context())
			if len(res.Hits) != 1 || res.Hits[0].Text != tt.want || f.count("txt ") != tt.queries {
				t.Errorf("%s: %+v, %d queries", tt.lists, res.Hits, f.count("txt "))
			}
			if strings.Contains(log.String()+fmt.Sprint(res), key) {
				t.Error("the key is shown")
			}
		})
	}
}

// A slow TXT does not delay the verdict past the deadline.
func TestTextDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("7.113.0.203.a.example", "127.0.0.2", "txt 7.113.0.203.a.example", "late")
		c, _ := running(t, f, Options{BlockAt: 1, Reason: true, Timeout: time.Second}, "a.example")
		synctest.Wait()
		f.mu.Lock()
		f.delay["a.example"] = 700 * ms
		f.mu.Unlock()
		res := c.Begin(t.Context(), client).Verdict(t.Context())
		if res.Verdict != Block || res.Took != time.Second || res.Hits[0].Text != "" {
			t.Errorf("%+v", res)
		}
	})
}

// No question outlives its context.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.a.example", "hang")
		c := fresh(t, Options{Lists: parse(t, "a.example"), Resolver: f, BlockAt: 1, Timeout: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q := c.Begin(ctx, client)
		start := time.Now()
		if res := q.Verdict(ctx); res.Verdict != Pass || time.Since(start) != time.Second {
			t.Errorf("%+v after %v", res, time.Since(start))
		}
		synctest.Wait()
		if f.count("7.113.0.203") != 1 || c.set.Load().zones[0].parts[0].failures != 0 {
			t.Errorf("the end of the program counts as a failure")
		}
	})
}

func TestRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("2.0.0.127.zen.spamhaus.org", "127.0.0.2 127.0.0.4", "*.down.example", "fail")
		c := fresh(t, Options{Lists: parse(t, "zen.spamhaus.org down.example dnsbl.sorbs.net dbl.spamhaus.org+from"), Resolver: f, BlockAt: 1})
		c.Test(t.Context())
		q := c.Begin(t.Context(), netip.MustParseAddr("127.0.0.2"))
		q.Wait(t.Context())
		var got []string
		for _, r := range q.Rows() {
			got = append(got, fmt.Sprintf("%s %v %v %v %q %d %s %s", r.Label, r.Asked, r.Hit, r.Codes, r.Meaning, r.Weight, r.Failure, r.Health))
		}
		want := []string{
			`zen.spamhaus.org true true [127.0.0.2 127.0.0.4] ["SBL, spam source" "XBL, infected machine"] 5  good`,
			`down.example false false [] [] 1 not asked off: does not answer`,
			`dnsbl.sorbs.net false false [] [] 0  not asked: it is dead, emptied 2024-06`,
			`dbl.spamhaus.org false false [] [] 4  good, without a test entry`,
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q\nwant\n%q", got, want)
		}
	})
}

// What twelve lists cost in time of the machine.
func BenchmarkVerdict(b *testing.B) {
	f, lists, _ := twelve()
	c := fresh(b, Options{Lists: parse(b, lists), Resolver: f, BlockAt: 6, JunkAt: 4})
	for b.Loop() {
		f.asked = f.asked[:0]
		c.Begin(b.Context(), client).Verdict(b.Context())
	}
}
