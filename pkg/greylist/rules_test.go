package greylist

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A mail is an attempt in the making.
type mail struct {
	addr, from string
	to         []string
	name       string // confirmed, and proper, unless class says something else
	class      Mark
	spf        Status
	domain     string // that SPF is about; default: that of from
	helo       string
	junked     bool
	provider   string
	listed     string
}

func (m mail) attempt(at time.Duration) Attempt {
	a := Attempt{
		Time: epoch.Add(at), Sender: m.from, Rcpts: m.to, Helo: m.helo, Junked: m.junked,
		Client: Client{Addr: netip.MustParseAddr(m.addr), Name: m.name, Domain: registered(m.name), Class: m.class},
		SPF:    SPFResult{Status: m.spf, Domain: m.domain, Frees: m.spf == SPFPass},
	}
	if m.name == "" && m.class == Proper {
		a.Client.Class = NoName
	}
	if m.to == nil {
		a.Rcpts = []string{"bob@rcpt.example"}
	}
	if _, domain, ok := strings.Cut(m.from, "@"); ok && m.domain == "" {
		a.SPF.Domain = domain
	}
	if m.provider != "" {
		a.Client.Provider, a.Client.ProviderDomain = m.provider, m.provider+".example"
	}
	a.Client.Listed = m.listed
	return a
}

// try has a mail decided.
func try(t *testing.T, g *Greylist, at time.Duration, m mail) Decision {
	t.Helper()
	d, err := g.Decide(t.Context(), m.attempt(at))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// stored counts records by kind.
func stored(t *testing.T, g *Greylist) map[Kind]int {
	t.Helper()
	n := make(map[Kind]int)
	for e, err := range g.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n[e.Key.Kind()]++
	}
	return n
}

// Who is vouched for passes at once, and leaves no attempt; everybody else has a
// mark.
func TestVouched(t *testing.T) {
	good := mail{addr: "192.0.2.1", from: "ann@good.example", name: "mx.good.example", spf: SPFPass}
	with := func(change func(*mail)) mail {
		m := good
		change(&m)
		return m
	}
	for name, tt := range map[string]struct {
		m    mail
		by   string // empty: not vouched for
		mark Mark
	}{
		"name and SPF":         {good, "name:good.example", Proper},
		"SPF for the HELO":     {with(func(m *mail) { m.from, m.domain = "<>", "mx.good.example" }), "name:good.example", Proper},
		"bounce":               {with(func(m *mail) { m.from, m.spf, m.helo = "", SPFNone, "Out.Good.Example." }), "name:good.example", Proper},
		"bounce, other HELO":   {with(func(m *mail) { m.from, m.spf, m.helo = "", SPFNone, "out.evilgood.example" }), "", NoSPF},
		"not a bounce":         {with(func(m *mail) { m.spf, m.helo = SPFNone, "mx.good.example" }), "", NoSPF},
		"neutral":              {with(func(m *mail) { m.spf = SPFNeutral }), "", NoSPF},
		"permerror":            {with(func(m *mail) { m.spf = SPFPermError }), "", NoSPF},
		"fail":                 {with(func(m *mail) { m.spf = SPFFail }), "", SPFFailed},
		"softfail":             {with(func(m *mail) { m.spf = SPFSoftFail }), "", SPFFailed},
		"SPF does not answer":  {with(func(m *mail) { m.spf = SPFTempError }), "", DNSFail},
		"no SPF wanted":        {with(func(m *mail) { m.spf = SPFOff }), "name:good.example", Proper},
		"no name":              {with(func(m *mail) { m.name = "" }), "", NoName},
		"no name, no answer":   {with(func(m *mail) { m.name, m.class = "", DNSFail }), "", DNSFail},
		"no answer, and fail":  {with(func(m *mail) { m.name, m.class, m.spf = "", DNSFail, SPFFail }), "", SPFFailed},
		"dynamic":              {with(func(m *mail) { m.class = Dynamic }), "", Dynamic},
		"dynamic, no answer":   {with(func(m *mail) { m.class, m.spf = Dynamic, SPFTempError }), "", Dynamic},
		"hosting":              {with(func(m *mail) { m.class = Hosting }), "", Hosting},
		"unconfirmed":          {with(func(m *mail) { m.name, m.class = "", Unconfirmed }), "", Unconfirmed},
		"junked":               {with(func(m *mail) { m.junked = true }), "", Junked},
		"provider":             {with(func(m *mail) { m.name, m.provider = "", "big" }), "provider:big", Proper},
		"provider without SPF": {with(func(m *mail) { m.name, m.provider, m.spf = "", "big", SPFNone }), "", NoName},
		"provider's bounce":    {with(func(m *mail) { m.name, m.provider, m.spf, m.from, m.helo = "", "big", SPFNone, "<>", "o1.big.example" }), "provider:big", Proper},
		"listed":               {mail{addr: "192.0.2.1", from: "x@y.example", listed: "list.example"}, "list.example", Proper},
		"listed, but junked":   {mail{addr: "192.0.2.1", from: "x@y.example", listed: "list.example", junked: true}, "", Junked},
	} {
		g := New(Options{})
		d := try(t, g, 0, tt.m)
		if d.Accept != (tt.by != "") || d.By != tt.by || d.Suspect != tt.mark {
			t.Errorf("%s: %v by %q, mark %q; want %q, %q", name, d, d.By, d.Suspect, tt.by, tt.mark)
		}
		if d.Accept && len(stored(t, g)) != 0 {
			t.Errorf("%s: stored %v", name, stored(t, g))
		}
		// Classical greylisting knows no difference, but the mark, and lists.
		d = try(t, New(Options{Policy: Policy{All: true}}), 0, tt.m)
		if d.Accept != (tt.by != "" && tt.m.listed != "") || d.Suspect != tt.mark {
			t.Errorf("%s, all: %v, mark %q", name, d, d.Suspect)
		}
	}
}

// While the DNS does not answer, who was vouched for within a week passes, and
// nobody else.
func TestDNSFail(t *testing.T) {
	g := New(Options{})
	good := mail{addr: "192.0.2.1", from: "ann@mail.good.example", name: "mx.good.example", spf: SPFPass}
	for range 100 {
		try(t, g, 0, good)
	}
	if err := g.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := stored(t, g); n[KindVouched] != 1 || len(n) != 1 {
		t.Errorf("stored %v", n)
	}
	silent := good
	silent.name, silent.class, silent.spf = "", DNSFail, SPFTempError
	for name, tt := range map[string]struct {
		at   time.Duration
		m    func(*mail)
		want bool
	}{
		"the same":            {time.Hour, func(*mail) {}, true},
		"after a week":        {7*24*time.Hour + time.Second, func(*mail) {}, false},
		"its name is known":   {time.Hour, func(m *mail) { m.name, m.class = "mx.good.example", Proper }, true},
		"another of theirs":   {time.Hour, func(m *mail) { m.from = "ben@good.example" }, true},
		"another domain":      {time.Hour, func(m *mail) { m.from = "ben@bad.example" }, false},
		"another client":      {time.Hour, func(m *mail) { m.addr = "192.0.2.2" }, false},
		"the null sender":     {time.Hour, func(m *mail) { m.from = "<>" }, false},
		"junked":              {time.Hour, func(m *mail) { m.junked = true }, false},
		"a name of a home":    {time.Hour, func(m *mail) { m.name, m.class = "h.isp.example", Dynamic }, false},
		"SPF says something":  {time.Hour, func(m *mail) { m.spf = SPFFail }, false},
		"SPF has nothing":     {time.Hour, func(m *mail) { m.spf = SPFNone }, false},
		"there was no answer": {time.Hour, func(m *mail) { m.spf = SPFPass }, true},
	} {
		m := silent
		tt.m(&m)
		if d := try(t, g, tt.at, m); d.Accept != tt.want {
			t.Errorf("%s: %v", name, d)
		}
	}
	// Written once a day, however much mail there is.
	for hour := range 72 {
		try(t, g, time.Duration(hour)*time.Hour, good)
		if n := len(g.notes.waiting); (n == 1) != (hour > 0 && hour%24 == 0) {
			t.Errorf("hour %d: %d to be written", hour, n)
		}
		g.Flush(t.Context())
	}
}

// Whoever never comes again gets nothing in, from however many addresses it writes,
// to however many people; and neither does it keep out who sits behind the same
// address, or beside it.
func TestNeverAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		n    int
		gap  time.Duration
		addr func(i int) string
		from func(i int) string
		to   func(i int) []string
		spf  Status
	}{
		"one address": {n: 3000, gap: time.Second,
			addr: func(int) string { return "198.51.100.9" }, from: func(i int) string { return word(i) + "@bad.example" }},
		"one sender": {n: 3000, gap: time.Second,
			addr: func(int) string { return "198.51.100.9" }, from: func(int) string { return "s@bad.example" },
			to: func(i int) []string { return []string{word(i) + "@rcpt.example"} }},
		"one sender with SPF": {n: 3000, gap: time.Second,
			addr: func(int) string { return "198.51.100.9" }, from: func(int) string { return "s@bad.example" },
			to: func(i int) []string { return []string{word(i) + "@rcpt.example"} }, spf: SPFPass},
		"a hundred recipients each": {n: 300, gap: time.Second,
			addr: func(int) string { return "198.51.100.9" }, from: func(i int) string { return word(i) + "@bad.example" },
			to: func(i int) (to []string) {
				for n := range 100 {
					to = append(to, word(i*100+n)+"@rcpt.example")
				}
				return to
			}},
		"a day": {n: 3000, gap: 86 * time.Second,
			addr: func(int) string { return "198.51.100.9" }, from: func(i int) string { return word(i) + "@bad.example" }},
		"a /24": {n: 3000, gap: time.Second,
			addr: func(i int) string { return fmt.Sprint("198.51.100.", i%250+1) }, from: func(i int) string { return word(i) + "@bad.example" }},
		"an IPv6 /64": {n: 3000, gap: time.Second,
			addr: func(i int) string { return fmt.Sprintf("2001:db8:bad:1::%x", i+1) }, from: func(i int) string { return word(i) + "@bad.example" }},
		"an IPv6 /48": {n: 3000, gap: time.Second,
			addr: func(i int) string { return fmt.Sprintf("2001:db8:bad:%x::1", i+1) }, from: func(i int) string { return word(i) + "@bad.example" }},
	} {
		for _, most := range []int{0, 500} { // of the store
			t.Run(fmt.Sprint(name, most), func(t *testing.T) {
				store := NewMemory(most)
				g := New(Options{Store: store})
				bot := func(i int) mail {
					m := mail{addr: tt.addr(i), from: tt.from(i), spf: tt.spf}
					if tt.to != nil {
						m.to = tt.to(i)
					}
					return m
				}
				for i := range tt.n {
					if d := try(t, g, time.Duration(i)*tt.gap, bot(i)); d.Accept {
						t.Fatalf("%d: %v", i, d)
					}
				}
				if store.grey > 21*tt.n+tt.n || most > 0 && store.grey > most {
					t.Errorf("%d records", store.grey)
				}
			})
		}
	}
}

// A mail server behind the address of an infected machine is let in when it comes
// again, and so is its neighbour; the machine gets nothing in, before or after.
func TestInfectedOffice(t *testing.T) {
	for _, most := range []int{0, 6000} { // of the store: ten minutes of this
		g := New(Options{Store: NewMemory(most)})
		const office = "198.51.100.9"
		n := 0
		bot := func(at time.Duration) Decision {
			n++
			return try(t, g, at, mail{addr: office, from: word(n) + "@bad.example", to: []string{word(n*7) + "@rcpt.example"}})
		}
		server := mail{addr: office, from: "ann@office.example", spf: SPFPass, to: []string{"bob@rcpt.example", "carol@rcpt.example"}}
		nospf := mail{addr: office, from: "ann@plain.example"}
		neighbour := mail{addr: "198.51.100.10", from: "dan@next.example"}
		for s := range 1000 {
			at := time.Duration(s) * time.Second
			switch s {
			case 300: // in the middle of it
				for _, m := range []mail{server, nospf, neighbour} {
					if d := try(t, g, at, m); d.Accept {
						t.Errorf("%v", d)
					}
				}
			case 700:
				for _, m := range []mail{server, nospf, neighbour} {
					if d := try(t, g, at, m); d.Reason != Retry || d.Crowded != (m.addr == office) {
						t.Errorf("%d records, %s: %v", most, m.from, d)
					}
				}
				// Of the domain that SPF proves the next message does not wait.
				next := server
				next.from, next.to = "ben@office.example", []string{"eve@rcpt.example"}
				if d := try(t, g, at, next); d.Reason != Known {
					t.Errorf("%v", d)
				}
			}
			for range 10 {
				if d := bot(at); d.Accept {
					t.Fatalf("%d: %v", n, d)
				}
			}
		}
		// Until a day after the last too many.
		if d := try(t, g, 20*time.Hour, nospf); d.Reason != Known {
			t.Errorf("%v", d)
		}
		again := mail{addr: office, from: "new@plain.example"}
		try(t, g, 20*time.Hour, again)
		if d := try(t, g, 20*time.Hour+5*time.Minute, again); d.Reason != Retry {
			t.Errorf("%v", d)
		}
		if d := bot(20*time.Hour + 6*time.Minute); d.Accept {
			t.Errorf("%v", d)
		}
		again.from = "newer@plain.example"
		try(t, g, 3*24*time.Hour, again)
		if d := try(t, g, 3*24*time.Hour+5*time.Minute, again); d.Reason != Retry || d.Crowded {
			t.Errorf("when the machine is clean: %v", d)
		}
		again.from = "newest@plain.example"
		if d := try(t, g, 3*24*time.Hour+6*time.Minute, again); d.Reason != Known {
			t.Errorf("when the machine is clean: %v", d)
		}
	}
}

// A server that comes again is counted by what waits, not by what it sends.
func TestBusyServer(t *testing.T) {
	g := New(Options{Policy: Policy{MaxPerClient: 5}})
	for n := range 100 {
		m := mail{addr: "192.0.2.1", from: word(n) + "@plain.example"}
		at := time.Duration(n) * 10 * time.Minute
		g.Delete(t.Context(), "192.0.2.1") // else it is free from the first on
		for range 3 {
			if d := try(t, g, at, m); d.Accept || d.Crowded {
				t.Fatal(d)
			}
		}
		if d := try(t, g, at+5*time.Minute, m); d.Reason != Retry || d.Crowded {
			t.Fatal(d)
		}
	}
}

// What a provider's one bad customer does is not laid at the door of the others.
func TestBadCustomer(t *testing.T) {
	g := New(Options{})
	customer := func(from string, spf Status) mail {
		return mail{addr: "192.0.2.1", from: from, provider: "big", spf: spf}
	}
	bad := customer("bad@evil.example", SPFFail)
	bad.to = []string{"trap@rcpt.example"}
	a := bad.attempt(0)
	for range 3 {
		if d, err := g.Trap(t.Context(), a); err != nil || !d.Accept {
			t.Errorf("%v, %v", d, err)
		}
	}
	a.Trap = true
	if d, err := g.Decide(t.Context(), a); err != nil || d.Reason != Unseen {
		t.Errorf("%v, %v", d, err)
	}
	if d := try(t, g, time.Second, customer("ann@big.example", SPFPass)); !d.Accept {
		t.Error(d)
	}
	plain := customer("ben@plain.example", SPFNone)
	try(t, g, time.Second, plain)
	plain.addr = "203.0.113.77"
	if d := try(t, g, time.Hour, plain); d.Reason != Retry {
		t.Error(d)
	}
}

// Traps shut out who is not vouched for and has no pass, in words that tell nothing.
func TestTrap(t *testing.T) {
	bot := mail{addr: "192.0.2.1", from: "x@bad.example", to: []string{"trap@rcpt.example"}}
	trap := func(g *Greylist, at time.Duration, m mail) Decision {
		t.Helper()
		d, err := g.Trap(t.Context(), m.attempt(at))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	g := New(Options{Policy: Policy{PassTime: 5 * time.Minute}})
	first := mail{addr: "192.0.2.1", from: "y@bad.example"}
	try(t, g, 0, first)
	if d := trap(g, time.Minute, bot); d.Accept || d.Reason != Trapped || d.Left != 5*time.Minute || d.Trapped != 24*time.Hour {
		t.Errorf("%v, %v left, %v in truth", d, d.Left, d.Trapped)
	}
	if d := try(t, g, time.Hour, first); d.Reason != Trapped || d.Left != 5*time.Minute || d.Trapped != 23*time.Hour+time.Minute {
		t.Errorf("%v, %v left, %v in truth", d, d.Left, d.Trapped)
	}
	if d := try(t, g, time.Hour, mail{addr: "192.0.2.2", from: "y@bad.example"}); d.Reason != Retry {
		t.Errorf("neighbour: %v", d)
	}
	if d := try(t, g, 25*time.Hour+time.Minute, first); d.Reason == Trapped {
		t.Error(d)
	}
	for name, m := range map[string]mail{
		"bounce":     {addr: "192.0.2.9", from: "<>"},
		"vouched":    {addr: "192.0.2.9", from: "a@good.example", name: "mx.good.example", spf: SPFPass},
		"provider":   {addr: "192.0.2.9", from: "a@bad.example", provider: "big", spf: SPFFail},
		"free":       {addr: "192.0.2.2", from: "other@bad.example"},
		"free by it": {addr: "192.0.2.9", from: "a@known.example", spf: SPFPass},
	} {
		g.Allow(t.Context(), epoch, "spf:known.example")
		m.to = bot.to
		if d := trap(g, 2*time.Hour, m); !d.Accept {
			t.Errorf("%s: %v", name, d)
		}
		m.to = nil
		if d := try(t, g, 3*time.Hour, m); d.Reason == Trapped {
			t.Errorf("%s: %v", name, d)
		}
	}
	// What passes by sender and recipient alone does not pass a client that has
	// written to a trap.
	g = New(Options{})
	friend := mail{addr: "192.0.2.1", from: "friend@far.example", name: "h.isp.example", class: Static}
	g.Learn(t.Context(), Letter{Time: epoch, From: "bob@rcpt.example", To: []string{"friend@far.example"}})
	trap(g, 0, bot)
	if d := try(t, g, time.Second, friend); d.Reason != Trapped {
		t.Error(d)
	}
	// Every refusal is counted, once.
	if n := g.tally.counts[counted{epoch.Unix() / 3600, "reason trapped"}]; n != 2 {
		t.Errorf("%d refusals counted", n)
	}
}

// A retry may name other recipients, in any order, and some or one of them.
func TestRetryRecipients(t *testing.T) {
	var to []string
	for n := range 100 {
		to = append(to, word(n)+"@Rcpt.example")
	}
	reversed := slices.Clone(to)
	slices.Reverse(reversed)
	for name, tt := range map[string]struct {
		first, again []string
		want         bool
	}{
		"the same":            {to[:3], to[:3], true},
		"reversed":            {to[:3], reversed[97:], true},
		"twice the same":      {to[:3], []string{to[2], strings.ToLower(to[2])}, true},
		"the last":            {to[:3], to[2:3], true},
		"of twenty the last":  {to[:20], to[19:20], true},
		"one more":            {to[:3], append(slices.Clone(to[50:60]), to[1]), true},
		"a hundred, reversed": {to, reversed, true},
		"a hundred, rotated":  {to, slices.Concat(to[50:], to[:50]), true},
		"a hundred, in parts": {to, to[:90], true},
		"others":              {to[:3], to[3:6], false},
	} {
		for _, spf := range []Status{SPFNone, SPFPass} {
			g := New(Options{})
			m := mail{addr: "192.0.2.1", from: "list@s.example", to: tt.first, spf: spf}
			if d := try(t, g, 0, m); d.Accept {
				t.Error(d)
			}
			if n := stored(t, g)[KindAttempt]; n > 2*maxRcpts {
				t.Errorf("%s: %d records", name, n)
			}
			m.to = tt.again
			if d := try(t, g, 5*time.Minute, m); d.Accept != tt.want {
				t.Errorf("%s, SPF %s: %v", name, spf, d)
			}
		}
	}
}

// A pool with names of one domain is known at its first retry, whoever writes, and
// also when it bounces; but anybody may have a name in a large domain.
func TestPoolByName(t *testing.T) {
	for _, from := range []string{"<>", "ann@big.example", "bounce-123-x@big.example"} {
		for _, spf := range []Status{SPFNone, SPFNeutral, SPFFail} {
			g := New(Options{})
			m := func(i int, from string) mail {
				return mail{addr: fmt.Sprintf("10.%d.0.1", i), from: from, name: fmt.Sprintf("out%d.big.example", i), spf: spf}
			}
			try(t, g, 0, m(0, from))
			if d := try(t, g, 61*time.Second, m(1, from)); d.Reason != Retry || d.Origin != "name:big.example" {
				t.Errorf("%s, SPF %s: %v", from, spf, d)
			}
			if d := try(t, g, 70*time.Second, m(2, "ben@big.example")); d.Accept {
				t.Errorf("%s, SPF %s: the domain is free: %v", from, spf, d)
			}
		}
	}
}

// The pair is for clients with names, not for bots.
func TestPairCounts(t *testing.T) {
	for name, tt := range map[string]struct {
		m    mail
		want bool
	}{
		"names of three domains": {mail{from: "a@s.example", class: Static}, true},
		"no names":               {mail{from: "a@s.example", class: NoName}, false},
		"unconfirmed":            {mail{from: "a@s.example", class: Unconfirmed}, false},
		"homes":                  {mail{from: "a@s.example", class: Dynamic}, false},
		"SPF fail":               {mail{from: "a@s.example", class: Static, spf: SPFFail}, false},
		"SPF softfail":           {mail{from: "a@s.example", class: Static, spf: SPFSoftFail}, false},
		"SPF neutral":            {mail{from: "a@s.example", class: Static, spf: SPFNeutral}, true},
		"our own domain":         {mail{from: "a@ours.example", class: Static}, false},
		"the null sender":        {mail{from: "<>", class: Static}, false},
	} {
		g := New(Options{})
		g.Ours(epoch, "bob@Ours.example")
		g.Flush(t.Context())
		attempt := func(i int, at time.Duration) Decision {
			m := tt.m
			m.addr = fmt.Sprintf("10.%d.0.1", i)
			if m.class != NoName && m.class != Unconfirmed {
				m.name = fmt.Sprintf("mx.d%d.example", i)
			}
			return try(t, g, at, m)
		}
		attempt(0, 0)
		attempt(1, 400*time.Second)
		if d := attempt(2, 1000*time.Second); d.Accept != tt.want || d.Accept && d.Reason != Paired {
			t.Errorf("%s: %v", name, d)
		}
		// The pair is no pass for who would not have made it.
		m := tt.m
		m.addr, m.class = "10.9.0.1", NoName
		if d := try(t, g, 1001*time.Second, m); d.Accept {
			t.Errorf("%s, then without a name: %v", name, d)
		}
	}
}

// What leaves is learned, for a while and within bounds.
func TestLearn(t *testing.T) {
	g := New(Options{})
	for _, rcpt := range []string{"root@ours.example"} {
		g.Ours(epoch, rcpt)
	}
	g.Flush(t.Context())
	learn := func(l Letter) int {
		t.Helper()
		l.Time = epoch
		n, err := g.Learn(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var many []string
	for n := range 1500 {
		many = append(many, fmt.Sprintf("%s@d%d.example", word(n), n))
	}
	for name, tt := range map[string]struct {
		l    Letter
		want int
	}{
		"ours to a stranger":       {Letter{From: "bob@ours.example", To: []string{"ann@Big.example"}}, 1},
		"ours to us":               {Letter{From: "bob@ours.example", To: []string{"root@OURS.example", "ann@big.example"}}, 1},
		"relayed, ours":            {Letter{From: "cat@ours.example", To: []string{"ann@big.example"}, Relayed: true}, 1},
		"relayed, a stranger's":    {Letter{From: "x@far.example", To: []string{"ann@big.example"}, Relayed: true}, 0},
		"relayed, a stranger's in": {Letter{From: "x@far.example", To: []string{"bob@ours.example"}, Relayed: true}, 0},
		"bounce":                   {Letter{From: "<>", To: []string{"ann@big.example"}}, 0},
		"a thousand a day":         {Letter{From: "dan@ours.example", To: many}, 1000},
	} {
		if n := learn(tt.l); n != tt.want {
			t.Errorf("%s: %d learned", name, n)
		}
	}
	if n := learn(Letter{From: "dan@ours.example", To: []string{"new@big.example"}}); n != 0 {
		t.Errorf("past the bound of a day: %d learned", n)
	}
	clients := 0
	for name, tt := range map[string]struct {
		at   time.Duration
		m    mail
		want Reason
	}{
		"her answer":             {1, mail{from: "Ann@big.example", name: "h.isp.example", class: Static}, Paired},
		"without a name":         {1, mail{from: "ann@big.example"}, Unseen},
		"from a home":            {1, mail{from: "ann@big.example", name: "h.isp.example", class: Dynamic}, Unseen},
		"forged":                 {1, mail{from: "ann@big.example", name: "h.isp.example", class: Static, spf: SPFFail}, Unseen},
		"to somebody else":       {1, mail{from: "ann@big.example", name: "h.isp.example", class: Static, to: []string{"eve@ours.example"}}, Unseen},
		"a colleague":            {1, mail{from: "ben@tickets.big.example", name: "h.isp.example", class: Static, spf: SPFPass}, Expected},
		"a colleague, by name":   {1, mail{from: "ben@tickets.example", name: "out.big.example"}, Expected},
		"a colleague, no proof":  {1, mail{from: "ben@big.example", name: "h.isp.example", class: Static}, Unseen},
		"a bounce of theirs":     {1, mail{from: "<>", name: "out.big.example"}, Expected},
		"a colleague, too late":  {8 * 24 * time.Hour, mail{from: "ben@big.example", name: "h.isp.example", class: Static, spf: SPFPass}, Unseen},
		"a colleague to another": {1, mail{from: "ben@big.example", name: "h.isp.example", class: Static, spf: SPFPass, to: []string{"eve@ours.example"}}, Unseen},
		"half a domain":          {1, mail{from: "ben@notbig.example", name: "h.isp.example", class: Static, spf: SPFPass}, Unseen},
	} {
		clients++
		tt.m.addr = fmt.Sprintf("10.1.%d.7", clients)
		if tt.m.to == nil {
			tt.m.to = []string{"bob@ours.example"}
		}
		if d := try(t, g, tt.at, tt.m); d.Reason != tt.want {
			t.Errorf("%s: %v, want %s", name, d, tt.want)
		}
	}
}

func TestExpect(t *testing.T) {
	for _, tt := range []struct {
		what, rcpt string
		m          mail
		want       bool
	}{
		{"shop.example", "", mail{from: "order@mail.shop.example", spf: SPFPass}, true},
		{"Shop.example.", "", mail{from: "order@shop.example", spf: SPFPass}, true},
		{"shop.example", "", mail{from: "order@shop.example"}, false},
		{"shop.example", "", mail{from: "order@shop.example", spf: SPFFail}, false},
		{"shop.example", "", mail{from: "x@esp.example", name: "out.shop.example"}, true},
		{"shop.example", "", mail{from: "x@esp.example", name: "out.shop.example", class: Generic}, false},
		{"shop.example", "", mail{from: "<>", name: "out.shop.example"}, true},
		{"shop.example", "", mail{from: "x@notshop.example", spf: SPFPass}, false},
		{"shop.example", "bob@rcpt.example", mail{from: "x@shop.example", spf: SPFPass}, true},
		{"shop.example", "bob@rcpt.example", mail{from: "x@shop.example", spf: SPFPass, to: []string{"eve@rcpt.example"}}, false},
		{"<Order+1@shop.example>", "", mail{from: "order+1@shop.example", spf: SPFPass}, true},
		{"order@shop.example", "", mail{from: "order@shop.example", name: "mx.shop.example"}, true},
		{"order@shop.example", "", mail{from: "order@shop.example", name: "mx.other.example"}, false},
		{"order@shop.example", "", mail{from: "other@shop.example", spf: SPFPass}, false},
		{"bücher.example", "", mail{from: "x@xn--bcher-kva.example", spf: SPFPass}, true},
		{"192.0.2.1", "", mail{from: "x@y.example"}, true},
		{"::ffff:192.0.2.1", "", mail{from: "x@y.example"}, true},
		{"192.0.2.2", "", mail{from: "x@y.example"}, false},
		{"2001:db8:1::1", "", mail{addr: "2001:db8:1::2", from: "x@y.example"}, true},
	} {
		g := New(Options{})
		if err := g.Expect(t.Context(), epoch, tt.what, tt.rcpt, time.Hour); err != nil {
			t.Fatal(err)
		}
		if tt.m.addr == "" {
			tt.m.addr = "192.0.2.1"
		}
		if tt.m.class == Proper && tt.m.name == "" {
			tt.m.class = NoName
		}
		if d := try(t, g, time.Hour, tt.m); d.Accept != tt.want || d.Accept && d.Reason != Expected {
			t.Errorf("%s for %s: %+v: %v", tt.what, tt.rcpt, tt.m, d)
		}
		if d := try(t, g, time.Hour+time.Second, tt.m); d.Accept {
			t.Errorf("%s for %s: still %v", tt.what, tt.rcpt, d)
		}
	}
	g := New(Options{})
	for _, what := range []string{"", "com", "a b.example", "x@", "@", "*.shop.example", "shop..example"} {
		if err := g.Expect(t.Context(), epoch, what, "", time.Hour); err == nil {
			t.Errorf("%q: no error", what)
		}
	}
	for n := range maxExpected + 1 {
		err := g.Expect(t.Context(), epoch, word(n)+".example", "", time.Hour)
		if (err != nil) != (n == maxExpected) {
			t.Fatalf("%d: %v", n, err)
		}
	}
	if err := g.Expect(t.Context(), epoch.Add(2*time.Hour), "last.example", "", time.Hour); err != nil {
		t.Error("when the others have expired:", err)
	}
}

// A retry of a domain that may not be everybody's frees the client alone.
func TestFrees(t *testing.T) {
	for _, frees := range []bool{true, false} {
		g := New(Options{})
		attempt := func(at time.Duration, addr, rcpt string) Decision {
			a := mail{addr: addr, from: "a@any.example", spf: SPFPass, to: []string{rcpt}}.attempt(at)
			a.SPF.Frees = frees
			d, err := g.Decide(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		attempt(0, "198.51.100.7", "bob@rcpt.example")
		if d := attempt(70*time.Second, "203.0.113.7", "bob@rcpt.example"); d.Reason != Retry {
			t.Error(d)
		}
		// Who else is in such a domain is somebody else.
		a := mail{addr: "45.9.9.9", from: "b@any.example", spf: SPFPass}.attempt(75 * time.Second)
		a.SPF.Frees = frees
		if d, err := g.Decide(t.Context(), a); err != nil || d.Accept != frees {
			t.Errorf("frees %v: %v, %v", frees, d, err)
		}
		if d := attempt(80*time.Second, "203.0.113.7", "eve@rcpt.example"); d.Reason != Known {
			t.Error(d)
		}
		if d := attempt(90*time.Second, "45.9.9.9", "eve@rcpt.example"); d.Accept != frees {
			t.Errorf("frees %v: %v", frees, d)
		}
	}
}
