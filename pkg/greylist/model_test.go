package greylist

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is the decision once more, in the plainest way: tables by name, a list of
// what was refused, and nothing but times.
type model struct {
	p       Policy
	grey    map[string]time.Time // origin, sender and recipient: first attempt
	pass    map[string]time.Time // last use
	pairs   map[string]*modelPair
	trap    map[string]time.Time
	vouched map[string]time.Time
	ours    map[string]time.Time
	learned map[string]time.Time // sender and writer: last use
	reply   map[string]time.Time // domain and writer
	expect  map[string]time.Time // what and recipient: until when
	clients map[string]*modelClient
}

type modelPair struct {
	first time.Time
	tries int
	nets  map[string]bool
}

type modelClient struct {
	first, last time.Time
	n           int
}

func newModel(p Policy) *model {
	return &model{
		p: p, grey: map[string]time.Time{}, pass: map[string]time.Time{}, pairs: map[string]*modelPair{}, trap: map[string]time.Time{},
		vouched: map[string]time.Time{}, ours: map[string]time.Time{}, learned: map[string]time.Time{}, reply: map[string]time.Time{},
		expect: map[string]time.Time{}, clients: map[string]*modelClient{},
	}
}

// within reports whether a time of a table is at most life ago. One in the future
// is now.
func within(m map[string]time.Time, name string, now time.Time, life time.Duration) bool {
	at, ok := m[name]
	if ok && at.After(now) {
		at = now
		m[name] = now
	}
	return ok && now.Sub(at) <= life
}

func (m *model) decide(a Attempt) (accept bool, reason Reason) {
	now, c := a.Time, a.Client
	null := a.Sender == ""
	_, domain, _ := strings.Cut(a.Sender, "@")
	host, net := c.Addr.String(), netOf(c.Addr, 24, 64).String()

	// Who is vouched for.
	may := a.SPF.Status == SPFPass || null && strings.HasSuffix(a.Helo, ".pool.example") && c.Domain == "pool.example" ||
		null && strings.HasSuffix(a.Helo, ".big.example") && c.Provider == "big"
	vouched := !a.Junked && may && (c.Class == Proper && c.Name != "" || c.Provider != "")
	unclear := !a.Junked && !vouched && (c.Class == DNSFail && (may || a.SPF.Status == SPFTempError) ||
		c.Class == Proper && c.Name != "" && !may && a.SPF.Status == SPFTempError)
	if a.Exempt != "" {
		return true, Exempted
	}
	if vouched && !m.p.All {
		if at, ok := m.vouched[host+domain]; !ok || at.After(now) || now.Sub(at) >= 24*time.Hour {
			m.vouched[host+domain] = now
		}
		return true, Vouched
	}

	// What it is known by.
	free := []string{"free " + host}
	var shared []string
	if a.SPF.Status == SPFPass {
		shared = append(shared, "spf "+a.SPF.Domain)
		free = append(free, "free spf "+a.SPF.Domain)
	}
	if c.Provider != "" {
		shared = append(shared, "provider "+c.Provider)
		free = append(free, "free provider "+c.Provider)
	}
	if c.Class == Proper && c.Name != "" {
		shared = append(shared, "name "+c.Domain)
	}
	keys := make(map[string][]string) // by recipient
	var all []string
	for _, r := range a.Rcpts {
		if keys[r] != nil {
			continue
		}
		for _, o := range append([]string{"net " + net}, shared...) {
			k := o + " " + a.Sender + " " + r
			if strings.HasPrefix(o, "spf") && a.SPF.Frees {
				k = o + " " + r
			}
			keys[r] = append(keys[r], k)
			all = append(all, k)
		}
	}
	pairs := !null && c.Name != "" && c.Class != Dynamic && a.SPF.Status != SPFFail

	// Passes are used, whatever decides.
	known, free1 := false, false
	for _, k := range append(slices.Clone(free), all...) {
		if within(m.pass, k, now, m.p.WhiteExp) {
			m.pass[k] = now
			known = true
			free1 = free1 || strings.HasPrefix(k, "free ")
		}
	}
	paired := false
	if pairs {
		for r := range keys {
			for _, t := range []map[string]time.Time{m.pass, m.learned} {
				k := "pair " + a.Sender + " " + r
				if within(t, k, now, m.p.WhiteExp) {
					t[k] = now
					paired = true
				}
			}
		}
	}
	if free1 {
		return true, Known
	}
	// From here on what is in the future is now.
	for _, k := range all {
		within(m.grey, k, now, 0)
	}
	for r := range keys {
		if mp := m.pairs[a.Sender+" "+r]; pairs && mp != nil && mp.first.After(now) {
			mp.first = now
		}
	}
	if cl := m.clients[host]; cl != nil {
		if cl.first.After(now) {
			cl.first = now
		}
		if cl.last.After(now) {
			cl.last = now
		}
	}
	within(m.trap, host, now, 0)
	if pairs {
		within(m.ours, domain, now, 0)
	}
	if unclear {
		within(m.vouched, host+domain, now, 0)
	}

	// What is expected.
	var what []string
	proper := c.Class == Proper && c.Name != ""
	if a.SPF.Status == SPFPass && !null {
		what = append(what, a.Sender, domain, "example")
	}
	if proper {
		what = append(what, c.Name, c.Domain)
		if !null && domain == c.Domain {
			what = append(what, a.Sender)
		}
	}
	what = append(what, host)
	for _, w := range what {
		for r := range keys {
			within(m.reply, w+" "+r, now, 0)
		}
	}
	for _, w := range what {
		for r := range keys {
			for _, to := range []string{"", r} {
				if until, ok := m.expect[w+" "+to]; ok && !now.After(until) {
					return true, Expected
				}
			}
			if within(m.reply, w+" "+r, now, 7*24*time.Hour) {
				return true, Expected
			}
		}
	}
	if unclear && !m.p.All && within(m.vouched, host+domain, now, 7*24*time.Hour) {
		return true, Vouched
	}
	if !vouched && c.Provider == "" {
		if a.Trap && !null {
			m.trap[host] = now
		}
		if within(m.trap, host, now, m.p.TrapTime) {
			return false, Trapped
		}
	}
	if known {
		return true, Known
	}
	isOurs := within(m.ours, domain, now, m.p.WhiteExp)
	if paired && !isOurs {
		return true, Paired
	}

	// A retry.
	waiting := func(k string) bool { return within(m.grey, k, now, m.p.GreyExp) }
	waited := map[string]bool{}
	for r, ks := range keys {
		for _, k := range ks {
			waited[r] = waited[r] || waiting(k) && now.Sub(m.grey[k]) >= m.p.PassTime
		}
	}
	if slices.Contains(values(waited), true) {
		crowded := m.crowded(host, now)
		m.leave(host, now)
		for r, ks := range keys {
			for _, k := range ks {
				if waited[r] {
					delete(m.grey, k)
					m.pass[k] = now
				}
			}
		}
		for _, k := range free {
			if strings.HasPrefix(k, "free spf") && a.SPF.Frees || !strings.HasPrefix(k, "free spf") && !crowded {
				m.pass[k] = now
			}
		}
		return true, Retry
	}

	// The pair.
	if pairs && !isOurs {
		through := false
		for r := range keys {
			name := a.Sender + " " + r
			mp := m.pairs[name]
			if mp == nil || now.Sub(mp.first) > m.p.GreyExp {
				continue
			}
			nets := len(mp.nets)
			if !mp.nets[net] {
				nets++
			}
			if mp.tries+1 >= 3 && nets >= 2 && now.Sub(mp.first) >= 15*time.Minute {
				delete(m.pairs, name)
				m.pass["pair "+name] = now
				through = true
			}
		}
		if through {
			m.leave(host, now)
			return true, Paired
		}
		for r := range keys {
			name := a.Sender + " " + r
			mp := m.pairs[name]
			if mp == nil || now.Sub(mp.first) > m.p.GreyExp {
				mp = &modelPair{first: now, nets: make(map[string]bool)}
				m.pairs[name] = mp
				delete(m.pass, "pair "+name)
			}
			mp.tries++
			mp.nets[net] = true
		}
	}

	// Refused.
	reason = Early
	fresh := true
	for _, k := range all {
		if waiting(k) {
			fresh = false
			continue
		}
		delete(m.pass, k)
		m.grey[k] = now
	}
	if fresh {
		reason = Unseen // or Late
		m.join(host, now)
	}
	return false, reason
}

func values(m map[string]bool) (v []bool) {
	for _, b := range m {
		v = append(v, b)
	}
	return v
}

func (m *model) join(host string, now time.Time) {
	c := m.clients[host]
	if c == nil {
		c = &modelClient{first: now}
		m.clients[host] = c
	}
	if now.Sub(c.first) > m.p.GreyExp {
		if c.n > m.p.MaxPerClient {
			if c.last = c.last.Add(m.p.GreyExp); c.last.After(now) {
				c.last = now
			}
		}
		c.first, c.n = now, 0
	}
	if c.n++; c.n > m.p.MaxPerClient {
		c.last = now
	}
}

func (m *model) leave(host string, now time.Time) {
	if c := m.clients[host]; c != nil && c.n > 0 {
		if c.n > m.p.MaxPerClient {
			c.last = now
		}
		c.n--
	}
}

func (m *model) crowded(host string, now time.Time) bool {
	c := m.clients[host]
	if c == nil || c.last.IsZero() {
		return false
	}
	until := c.last.Add(m.p.GreyExp)
	if c.n > m.p.MaxPerClient {
		until = until.Add(m.p.GreyExp)
	}
	return !now.After(until)
}

func (m *model) learn(l Letter) {
	now := l.Time
	_, from, _ := strings.Cut(l.From, "@")
	within(m.ours, from, now, 0)
	for _, to := range l.To {
		_, domain, _ := strings.Cut(to, "@")
		within(m.ours, domain, now, 0)
		within(m.learned, "pair "+to+" "+l.From, now, 0)
		within(m.reply, domain+" "+l.From, now, 0)
	}
	if l.Relayed && !within(m.ours, from, now, m.p.WhiteExp) {
		return
	}
	for _, to := range l.To {
		_, domain, _ := strings.Cut(to, "@")
		if within(m.ours, domain, now, m.p.WhiteExp) {
			continue
		}
		m.learned["pair "+to+" "+l.From] = now
		m.reply[domain+" "+l.From] = now
	}
}

// sweep forgets what means nothing any more.
func (m *model) sweep(now time.Time) {
	for _, t := range []struct {
		m    map[string]time.Time
		life time.Duration
	}{{m.grey, m.p.GreyExp}, {m.pass, m.p.WhiteExp}, {m.trap, m.p.TrapTime}, {m.vouched, 7 * 24 * time.Hour},
		{m.ours, m.p.WhiteExp}, {m.learned, m.p.WhiteExp}, {m.reply, 7 * 24 * time.Hour}, {m.expect, 0}} {
		for name, at := range t.m {
			if now.Sub(at) > t.life {
				delete(t.m, name)
			}
		}
	}
	for name, pair := range m.pairs {
		if now.Sub(pair.first) > m.p.GreyExp {
			delete(m.pairs, name)
		}
	}
	for host, c := range m.clients {
		if now.Sub(c.first) > m.p.GreyExp && !m.crowded(host, now) {
			delete(m.clients, host)
		}
	}
}

func drawAttempt(t *rapid.T, now time.Time) Attempt {
	a := Attempt{
		Time:   now,
		Client: Client{Addr: netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 3).Draw(t, "net")), byte(rapid.IntRange(1, 2).Draw(t, "host"))})},
		Helo:   rapid.SampledFrom([]string{"x", "mx.pool.example", "out.big.example"}).Draw(t, "helo"),
		Sender: rapid.SampledFrom([]string{"a@s.example", "b@s.example", "a@pool.example", ""}).Draw(t, "from"),
		Rcpts:  rapid.SliceOfN(rapid.SampledFrom([]string{"x@r.example", "y@r.example", "z@r.example"}), 1, 3).Draw(t, "to"),
		Junked: rapid.IntRange(0, 4).Draw(t, "junked") == 0,
		Trap:   rapid.IntRange(0, 30).Draw(t, "trap") == 0,
	}
	if rapid.IntRange(0, 30).Draw(t, "exempt") == 0 {
		a.Exempt = "a list"
	}
	c := &a.Client
	c.Class = rapid.SampledFrom([]Mark{NoName, NoName, DNSFail, Proper, Generic, Dynamic, Unconfirmed}).Draw(t, "class")
	if c.Class == Proper || c.Class == Generic || c.Class == Dynamic {
		c.Name, c.Domain = "mx.pool.example", "pool.example"
	}
	if rapid.IntRange(0, 5).Draw(t, "provider") == 0 {
		c.Provider, c.ProviderDomain = "big", "big.example"
	}
	a.SPF.Status = rapid.SampledFrom([]Status{SPFNone, SPFNone, SPFNeutral, SPFPass, SPFFail, SPFTempError}).Draw(t, "spf")
	if _, domain, ok := strings.Cut(a.Sender, "@"); ok {
		a.SPF.Domain = domain
	} else {
		a.SPF.Domain = a.Helo
	}
	if a.SPF.Status == SPFPass && !strings.Contains(a.SPF.Domain, ".") {
		a.SPF.Status = SPFNone
	}
	a.SPF.Frees = a.SPF.Status == SPFPass && rapid.IntRange(0, 2).Draw(t, "frees") > 0
	return a
}

// Whatever happens, the decision is that of the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{WhiteExp: 3 * 24 * time.Hour, MaxPerClient: rapid.IntRange(1, 4).Draw(t, "most"), All: rapid.Bool().Draw(t, "all")}
		g := New(Options{Policy: p})
		m := newModel(g.policy)
		now := epoch
		steps := rapid.IntRange(1, 80).Draw(t, "steps")
		for range steps {
			jump := rapid.OneOf(
				rapid.Int64Range(0, 120_000), rapid.SampledFrom([]int64{0, 59_999, 60_000, 60_001, 900_000}),
				rapid.Int64Range(-3_600_000, 3_600_000), rapid.Int64Range(0, 4*86400_000),
				rapid.SampledFrom([]int64{86400_000, 86400_001, 3 * 86400_000, 3*86400_000 + 1}),
			).Draw(t, "jump")
			now = now.Add(time.Duration(jump) * time.Millisecond)
			switch rapid.IntRange(0, 40).Draw(t, "event") {
			case 0:
				for done := false; !done; {
					_, done, _ = g.store.Sweep(t.Context(), g.Expired(now))
				}
				m.sweep(now)
			case 1:
				l := Letter{
					Time: now, From: rapid.SampledFrom([]string{"x@r.example", "y@r.example"}).Draw(t, "writer"),
					To:      []string{rapid.SampledFrom([]string{"a@s.example", "b@s.example", "a@pool.example"}).Draw(t, "to"), "z@r.example"},
					Relayed: rapid.Bool().Draw(t, "relayed"),
				}
				if _, err := g.Learn(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				m.learn(l)
			case 2:
				rcpt := rapid.SampledFrom([]string{"x@r.example", "x@s.example"}).Draw(t, "ours")
				if err := g.Ours(now, rcpt); err != nil {
					t.Fatal(err)
				}
				_, domain, _ := strings.Cut(rcpt, "@")
				if at, ok := m.ours[domain]; !ok || at.After(now) || now.Sub(at) >= 24*time.Hour {
					m.ours[domain] = now
				}
			case 3:
				what := rapid.SampledFrom([]string{"a@s.example", "s.example", "pool.example", "10.0.1.1"}).Draw(t, "what")
				rcpt := rapid.SampledFrom([]string{"", "x@r.example"}).Draw(t, "for")
				if err := g.Expect(t.Context(), now, what, rcpt, time.Hour); err != nil {
					t.Fatal(err)
				}
				m.expect[what+" "+rcpt] = now.Add(time.Hour)
			default:
				a := drawAttempt(t, now)
				before, _, err := g.Explain(t.Context(), a)
				if err != nil {
					t.Fatal(err)
				}
				d, err := g.Decide(t.Context(), a)
				if err != nil {
					t.Fatal(err)
				}
				accept, reason := m.decide(a)
				got := d.Reason
				if got == Late {
					got = Unseen
				}
				if d.Accept != accept || reason != got && (accept || reason == Trapped) {
					t.Fatalf("%+v: got %v, want %v %s", a, d, accept, reason)
				}
				if fmt.Sprint(before.Accept, before.Reason, before.Left) != fmt.Sprint(d.Accept, d.Reason, d.Left) {
					t.Fatalf("%+v: explained as %v, then %v", a, before, d)
				}
				if !d.Accept && (d.Left < time.Second || d.Left > time.Minute) {
					t.Fatalf("%v left", d.Left)
				}
			}
			if err := g.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
