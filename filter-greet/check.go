package main

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/peek"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
)

var (
	clientsTotal = metrics.Desc{Name: "filter_greet_clients_total",
		Help: "Clients that were looked at before the greeting, by what was seen: early, nothing, gone or unknown.", Labels: []string{"saw"}}
	waitingClients = metrics.Desc{Name: "filter_greet_waiting",
		Help: "Clients that are held now."}
	rememberedClients = metrics.Desc{Name: "filter_greet_remembered",
		Help: "Clients that are known to have waited in silence."}
	crowdedTotal = metrics.Desc{Name: "filter_greet_crowded_total",
		Help: "Clients that were held for a shorter time or not at all, because of -maxWaiting."}
	talkTotal = metrics.Desc{Name: "filter_greet_talk_total",
		Help: "Clients that sent, after the greeting, what is no SMTP command (command), or more than one at once (pipelining).", Labels: []string{"saw"}}
)

// state is what is kept of a session.
type state struct {
	program.Visit
	test
	spoke bool   // a command, after the greeting
	word  string // the first that was none of SMTP
	piped bool   // smtpd refused what it sent at once
}

// A test is that of a client, before the greeting.
type test struct {
	on     bool      // there is one
	reason string    // why it is held so long, or not at all
	conn   peek.Conn // to be looked at once
	hold   *hold     // nil: not held
	wait   *filter.Future[found]
	ended  bool
	found  found
}

// Reasons of decisions.
const (
	early      = "early"      // it spoke before the greeting
	waited     = "waited"     // it was held
	remembered = "remembered" // it was once, and is not held again
	crowded    = "crowded"    // too many are
	gone       = "gone"       // it left
	looked     = "looked"     // -wait 0
	untested   = "untested"   // of a listener that is not tested, or greeted by an earlier filter's doing
)

// open begins to look at connections, if the system lets us.
func (c *check) open() {
	c.waiting.init(c.look)
	c.unseen = make(map[netip.AddrPort]bool)
	c.polite, _ = lru.New[netip.Prefix, time.Time](maxPolite) // the size is right
	l, err := peek.Open()
	switch {
	case err == nil:
		c.looker = l
	case errors.Is(err, errors.ErrUnsupported):
		c.blind = errors.New("not on " + runtime.GOOS)
	default:
		c.blind = err
		c.Warn("who speaks before the greeting cannot be seen, clients only wait: %v", err)
	}
}

// Filter returns the filter with its handlers.
func (c *check) Filter() program.Runner {
	c.Metrics.Gauge(waitingClients, func() float64 { return float64(c.waiting.len()) })
	c.Metrics.Gauge(rememberedClients, func() float64 { return float64(c.polite.Len()) })
	late := c.Phase == filter.RcptTo
	o := filter.Options{Log: c.Log, Metrics: c.Metrics, Deadline: max(15*time.Second, c.wait.Value+5*time.Second)}
	if !late {
		o.Reports = []proto.Event{proto.LinkAuth}
	}
	f := filter.New[state](o)
	c.gate = &program.Gate[state]{
		Program: c.Program,
		Only:    !late,
		Visit:   func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
		Judge:   c.judge,
	}
	c.gate.Handle(f)
	f.OnSession(c.begin)
	f.OnClose(c.end)
	f.OnReport(proto.ProtocolClient, c.said)
	f.OnReport(proto.ProtocolServer, c.answered)
	if late {
		f.On(filter.Connect, func(s *filter.Session[state], _ filter.Request) filter.Response {
			return c.await(s, filter.Proceed)
		})
	}
	if c.commands.Value == "refuse" {
		phases := []filter.Phase{filter.Helo, filter.Ehlo, filter.StartTLS, filter.Auth, filter.MailFrom}
		if !late { // else the gate has them
			phases = append(phases, filter.RcptTo, filter.Data)
		}
		for _, p := range phases {
			f.On(p, c.command)
		}
	}
	c.Beside("looks", c.waiting.run)
	return f
}

// begin decides how long a new client is held. The time runs from here, beside
// what earlier filters of a chain wait for.
func (c *check) begin(s *filter.Session[state]) {
	if !c.gate.Begin(s) || !slices.Contains(c.ports.Value, s.Dst.Port()) {
		return
	}
	t := &s.Local.test
	t.on, t.conn = true, peek.Conn{Client: s.Src, Listener: s.Dst}
	wait := c.wait.Value
	t.reason = waited
	switch n := c.waiting.len(); {
	case c.known(s):
		t.reason, wait = remembered, 0
	case wait == 0:
		t.reason = looked
	case n >= c.maxWaiting:
		t.reason, wait = crowded, 0
	case n >= c.maxWaiting/2 && wait > time.Second:
		t.reason, wait = crowded, time.Second
	}
	if t.reason == crowded {
		c.Metrics.Counter(crowdedTotal).Inc()
	}
	if wait > 0 {
		promise, done := filter.Promise[found]()
		t.wait, t.hold = promise, c.waiting.begin(t.conn, wait, done)
		c.Log.Debug(s.ID, "filter", "greet", "event", "held", "addr", s.Src.Addr(), "listener", s.Dst, "wait", wait)
	}
}

func (c *check) end(s *filter.Session[state]) {
	if h := s.Local.hold; h != nil {
		c.waiting.drop(h)
	}
}

// await gives then's answer when it is known what the client does before the
// greeting. It is for connect: smtpd greets when that is answered, and what is
// sent later is not early.
func (c *check) await(s *filter.Session[state], then func() filter.Response) filter.Response {
	t := &s.Local.test
	switch {
	case !t.on:
		return then()
	case t.hold == nil:
		c.conclude(s, found{Seen: c.look(&t.conn)})
		return then()
	}
	return filter.Await(t.wait, func(f found, _ error) filter.Response {
		c.conclude(s, f)
		return then()
	})
}

// conclude remembers what was found.
func (c *check) conclude(s *filter.Session[state], f found) {
	t := &s.Local.test
	t.ended, t.found = true, f
	c.Metrics.Counter(clientsTotal, saw(f.State)).Inc()
	switch {
	case f.State == peek.Early:
		t.reason = early
		c.polite.Remove(client(s.Src.Addr()))
	case f.State == peek.Gone:
		t.reason = gone
	case f.State == peek.Silent && t.reason == waited:
		c.keep(s)
	}
}

// known reports whether a client has waited in silence not long ago.
func (c *check) known(s *filter.Session[state]) bool {
	until, ok := c.polite.Get(client(s.Src.Addr()))
	return ok && s.Time().Before(until)
}

func (c *check) keep(s *filter.Session[state]) {
	if d := c.remember.Value; d > 0 {
		c.polite.Add(client(s.Src.Addr()), s.Time().Add(d))
	}
}

// client returns who is remembered: an IPv4 address or an IPv6 /64.
func client(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// look looks at a connection once.
func (c *check) look(conn *peek.Conn) peek.Seen {
	if c.looker == nil {
		return peek.Seen{}
	}
	seen, err := c.looker.Look(conn)
	if err != nil {
		c.Complain.Warn("a client could not be looked at, it waits and passes", "err", err)
	}
	return seen
}

// judge says what is done about a client, or about its mail with -early late.
func (c *check) judge(s *filter.Session[state], r filter.Request, then func(program.Verdict) filter.Response) filter.Response {
	if r.Phase == filter.Connect {
		return c.await(s, func() filter.Response { return then(c.verdict(s)) })
	}
	if c.commands.Value == "refuse" && s.Local.word != "" {
		return then(c.noCommand(s))
	}
	return then(c.verdict(s))
}

func (c *check) verdict(s *filter.Session[state]) program.Verdict {
	t := s.Local.test
	if !t.ended {
		return program.Verdict{Reason: untested, Quiet: !t.on}
	}
	v := program.Verdict{Reason: t.reason, Keys: []any{"saw", saw(t.found.State)}}
	if t.found.State == peek.Early {
		v.Keys = append(v.Keys, "bytes", t.found.Bytes)
		v.Action = c.action()
		v.Reply = c.reply()
	}
	if t.hold != nil {
		v.Keys = append(v.Keys, "t", t.found.after)
	}
	return v
}

// action is what is done with who speaks too early.
func (c *check) action() cli.Action {
	switch c.early.Value {
	case "refuse":
		return cli.Action{Name: cli.Disconnect}
	case "late":
		return cli.Action{Name: cli.Refuse}
	}
	return cli.Action{Name: c.early.Value}
}

// A server that refuses at its greeting says 554 (RFC 5321 section 3.1); that a
// client is to wait for it stands in section 4.3.1.
func (c *check) reply() cli.Reply {
	r := cli.Reply{Code: 554, Enhanced: "5.5.1", Text: "you spoke before the greeting (RFC 5321 section 4.3.1)"}
	if c.early.Value == "late" {
		r.Code = 550
	}
	return r
}

// saw is a state in the log.
func saw(s peek.State) string {
	switch s {
	case peek.Silent:
		return "nothing"
	case peek.Early:
		return "early"
	case peek.Gone:
		return "gone"
	}
	return "unknown"
}

// Explain says what would be done with a client.
func (c *check) Explain(_ context.Context, q program.Query, t *program.Table) error {
	action := c.action()
	then := action.String()
	if c.early.Value == "late" {
		then = "refuse at rcpt-to"
	}
	switch {
	case c.blind != nil:
		then = "proceed"
		t.Row("look", "none: %v", c.blind)
	default:
		t.Row("look", "the kernel tells who speaks")
	}
	t.Row("wait", "%s on port %s, unless the filter at work remembers the client", &c.wait, c.ports)
	t.Row("answer", "proceed; if it speaks before the greeting: %s", then)
	if action.Refuses() && c.blind == nil {
		t.Row("reply", "%s", c.reply())
	}
	return nil
}

// Config shows what the system lets us see.
func (c *check) Config(t *program.Table) {
	if c.blind != nil {
		t.Row("look", "none: %v", c.blind)
		return
	}
	t.Row("look", "the kernel tells who speaks")
	if a := c.action(); a.Refuses() {
		t.Row("reply", "%s", c.reply())
	}
}

// Close ends the looks.
func (c *check) Close() error {
	if l, ok := c.looker.(*peek.Looker); ok {
		return l.Close()
	}
	return nil
}
