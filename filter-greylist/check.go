package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/proto"
	"opensmtpd-filters/pkg/spf"
)

// What is counted, beside the decisions.
var (
	exemptTotal = metrics.Desc{Name: "filter_greylist_exempt_total",
		Help: "Messages that were not greylisted, by why: ours, or what is exempt.", Labels: []string{"by"}}
	storeErrorsTotal = metrics.Desc{Name: "filter_greylist_store_errors_total",
		Help: "Messages that passed, or were not learned from, because the records could not be used."}
)

// What a message waits for the store before it passes: more while the program
// begins, and the records may have to be opened, or made. A store on a server
// decides by itself before that.
const (
	storeTimeout  = 200 * time.Millisecond
	openTimeout   = 5 * time.Second
	serverTimeout = 5 * time.Second
)

// trapTime is how long a client is refused that has written to a trap.
const trapTime = 24 * time.Hour

// learnTimeout is for what no client waits for.
const learnTimeout = 5 * time.Second

// state is what is kept of a session.
type state struct {
	program.Visit
	host   string // as smtpd greets
	spf    *filter.Future[spf.Result]
	client *filter.Future[greylist.Client] // nil if who is known, or nobody has asked
	who    greylist.Client
	known  bool
	junked scope
	trap   string           // the line of -trap that the transaction has met, if it springs it only at DATA
	header string           // what X-Greylist says of the present message
	answer *program.Verdict // of the present transaction, once there is one
}

// Filter returns the filter with its handlers.
func (c *check) Filter() program.Runner {
	c.gate = &program.Gate[state]{
		Program:   c.Program,
		Visit:     func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
		Judge:     c.decide,
		Recipient: c.recipient,
		Exempted:  c.exempted,
		SPF:       func(s *filter.Session[state]) *filter.Future[spf.Result] { return s.Local.spf },
	}
	deadline := max(15*time.Second, c.Timeout.Value+5*time.Second)
	f := filter.New[state](filter.Options{Log: c.Log, Metrics: c.Metrics, Deadline: deadline})
	c.gate.Handle(f)
	if len(c.trapFiles) > 0 {
		f.On(filter.RcptTo, c.trap)
	}
	f.OnReport(proto.TxMail, c.mailed)
	f.OnReport(proto.TxReset, c.ended)
	f.OnReport(proto.FilterResponse, c.taken)
	f.OnReport(proto.TxRcpt, c.accepted)
	if c.learn {
		f.OnReport(proto.TxCommit, c.committed)
	}
	if c.Header {
		f.OnReport(proto.LinkGreeting, c.greeted)
		f.SetHeader(spec.Field, func(s *filter.Session[state]) string { return s.Local.header })
	}
	return f
}

func (c *check) greeted(s *filter.Session[state], l *proto.Line) {
	s.Local.host = string(l.Fields)
}

// mailed begins a transaction: while the client names its recipients, the DNS is
// asked about the sender.
func (c *check) mailed(s *filter.Session[state], _ *proto.Line) {
	if !c.gate.Begin(s) || s.Tx.ID == "" {
		return
	}
	c.client(s)
	if c.spfMode == "off" {
		return
	}
	addr, from, helo := s.Src.Addr(), s.Tx.From, s.Helo
	s.Local.spf = filter.GoTx(s, c.Timeout.Value, func(ctx context.Context) spf.Result {
		return c.spf.Check(ctx, spf.Query{Addr: addr, Helo: helo, Sender: from})
	})
}

// ended forgets a transaction: of the next smtpd may not tell, see decide.
func (c *check) ended(s *filter.Session[state], _ *proto.Line) {
	c.gate.Reset(s)
	s.Local.spf, s.Local.header, s.Local.trap, s.Local.answer = nil, "", "", nil
	if s.Local.junked == transaction {
		s.Local.junked = nothing
	}
}

// recipient says whether mail to a recipient is let through at trials.
func (c *check) recipient(addr string) exempt.Verdict {
	if len(c.onlyFiles) > 0 { // which may be empty, or become so
		if _, ok := c.only.Value().Lookup(addr); !ok {
			return exempt.Verdict{Exempt: true, By: "-onlyRecipients"}
		}
	}
	return exempt.Verdict{}
}

// exempted counts a message that is exempt, and says so in it.
func (c *check) exempted(s *filter.Session[state], v exempt.Verdict) {
	c.saw(s.Time())
	list := exemptBy(v.By)
	c.Metrics.Counter(exemptTotal, cmp.Or(list, "ours")).Inc()
	if v.Own {
		if a := s.Src.Addr(); a.IsValid() && s.User == "" && c.nat.saw(a, a.IsPrivate() || a.IsLoopback(), s.Time()) {
			c.Log.Warn("all clients have one private address, so nothing is greylisted: smtpd does not see who they are; have the addresses handed on, or see -trusted none", "addr", a)
		}
		return
	}
	if s.User == "" {
		c.nat.saw(s.Src.Addr(), false, s.Time())
	}
	// It is counted, and nothing else: no record is needed for that.
	c.greylist.Decide(context.Background(), greylist.Attempt{Time: s.Time(), Client: greylist.Client{Addr: s.Src.Addr(), Listed: v.By}, Exempt: v.By})
	c.setHeader(s, "not delayed ("+list+" on a list)")
}

// exemptBy says who is on a list, by the line of it; "" if it is no list.
func exemptBy(by string) string {
	flag, _, _ := strings.Cut(by, " ")
	switch flag {
	case "-allowClients":
		return "client"
	case "-allowSenders":
		return "sender"
	case "-allowRecipients", "-onlyRecipients":
		return "recipient"
	}
	return ""
}

// decide says what is to be done when the envelope is known.
func (c *check) decide(s *filter.Session[state], r filter.Request, then func(program.Verdict) filter.Response) filter.Response {
	c.saw(s.Time())
	c.nat.saw(s.Src.Addr(), false, s.Time())
	if s.Local.answer != nil {
		return then(*s.Local.answer)
	}
	rcpts := s.Tx.Rcpts
	switch {
	case r.Phase == filter.RcptTo && s.Tx.From == "":
		return then(program.Verdict{}) // callouts come with the null sender and go before DATA
	case r.Phase == filter.RcptTo:
		rcpts = []string{r.Arg}
	case len(rcpts) == 0:
		// smtpd takes addresses of over 255 bytes and does not tell of them:
		// nobody shall pass by writing long ones.
		rcpts = []string{""}
	}
	return c.withAttempt(s, rcpts, func(a greylist.Attempt, result spf.Result) filter.Response {
		decided := func(d greylist.Decision, err error) filter.Response {
			if err != nil {
				return then(c.noStore(s, err))
			}
			v := c.verdict(s, a, d, result)
			s.Local.answer = &v
			return then(v)
		}
		if d, ok := c.greylist.DecideAtHand(a); ok {
			return decided(d, nil)
		}
		return ask(c, s, func(ctx context.Context) (greylist.Decision, error) {
			return c.greylist.Decide(ctx, a)
		}, decided)
	})
}

// ask goes on with what the records say, or an error if they are not there in
// time.
func ask[T any](c *check, s *filter.Session[state], work func(context.Context) (T, error), then func(T, error) filter.Response) filter.Response {
	type answer struct {
		value T
		err   error
	}
	return filter.Await(filter.Go(s, c.storeTime(), func(ctx context.Context) answer {
		v, err := work(ctx)
		if err == nil && !c.opened.Load() {
			c.opened.Store(true)
		}
		return answer{v, err}
	}), func(a answer, err error) filter.Response {
		return then(a.value, cmp.Or(err, a.err))
	})
}

// storeTime is what the store has for an answer.
func (c *check) storeTime() time.Duration {
	if c.server != nil {
		return serverTimeout
	}
	if c.opened.Load() {
		return storeTimeout
	}
	return max(storeTimeout, openTimeout-time.Since(c.begun))
}

// withSPF goes on when it is known what SPF says, or that it will not be.
func (c *check) withSPF(s *filter.Session[state], then func(spf.Result) filter.Response) filter.Response {
	if s.Local.spf == nil {
		return then(spf.Result{}) // off, or smtpd has not told of the sender
	}
	return filter.Await(s.Local.spf, func(r spf.Result, err error) filter.Response {
		if err != nil {
			r = spf.Result{Status: spf.TempError}
		}
		return then(r)
	})
}

// origin is the domain that SPF proves, of which what holds for one machine
// holds for all.
func origin(r spf.Result) string {
	if r.Status != spf.Pass || r.PerAddress {
		return ""
	}
	return r.Domain
}

// verdict is what is done about a decision.
func (c *check) verdict(s *filter.Session[state], a greylist.Attempt, d greylist.Decision, r spf.Result) program.Verdict {
	v := program.Verdict{Reason: string(d.Reason), By: d.By}
	if d.Reason == greylist.Trapped && s.Local.trap != "" {
		v.By = "-trap " + s.Local.trap
	}
	if !d.Accept {
		v.Action, v.Reply = cli.Action{Name: cli.Defer}, c.replyTo(s.Src.Addr(), d)
	}
	add := func(key string, value any, ok bool) {
		if ok {
			v.Keys = append(v.Keys, key, value)
		}
	}
	add("found", a.Client.Name, a.Client.Name != "" && !(s.FCrDNS && sameName(a.Client.Name, s.RDNS))) // smtpd had none, or cut it
	add("suspect", d.Suspect, d.Suspect != greylist.Proper)
	add("origin", d.Origin, true)
	add("left", seconds(d.Left), !d.Accept)
	add("delay", seconds(d.Delay), d.First)
	add("tries", d.Tries, d.Tries > 0)
	add("note", "client over -maxPerClient", d.Crowded)
	add("spf", c.shownSPF(r), true)
	c.setHeader(s, why(d, r))
	return v
}

func sameName(a, b string) bool { return strings.EqualFold(a, strings.TrimSuffix(b, ".")) }

// why says in X-Greylist what became of a message.
func why(d greylist.Decision, r spf.Result) string {
	switch {
	case d.First:
		return fmt.Sprintf("delayed %d seconds", int64(d.Delay/time.Second))
	case d.Reason == greylist.Vouched:
		return "not delayed (vouched for by " + d.By + ")"
	case d.Reason == greylist.Expected:
		return "not delayed (expected)"
	case d.Reason == greylist.Exempted && strings.HasPrefix(d.By, "-spf"):
		return "not delayed (SPF pass for " + r.Domain + ")"
	case d.Reason == greylist.Exempted:
		return "not delayed (a large provider)"
	case d.Reason == greylist.Paired:
		return "not delayed (sender is known)"
	case d.Accept:
		return "not delayed (" + d.Origin + " is known)"
	}
	return fmt.Sprintf("not delayed (dry run, would be refused as %s)", d.Reason)
}

// seconds is a time as replies and X-Greylist have it.
func seconds(d time.Duration) string { return fmt.Sprint(int64(d/time.Second), "s") }

// shownSPF is the result with what it is about.
func (c *check) shownSPF(r spf.Result) string {
	status := r.Status.String()
	switch {
	case c.spfMode == "off":
		status = "off"
	case r.Everybody:
		status = "everyone"
	}
	if r.Domain == "" {
		return status
	}
	return status + ":" + r.Domain
}

// noStore lets a message pass that the store has no answer to.
func (c *check) noStore(s *filter.Session[state], err error) program.Verdict {
	c.trouble("mail passes", err)
	c.setHeader(s, "not delayed (no access to the records)")
	return program.Verdict{Reason: "store"}
}

// trouble says that the records cannot be used.
func (c *check) trouble(so string, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer in time")
	}
	c.Metrics.Counter(storeErrorsTotal).Inc()
	c.Complain.Say(slog.LevelWarn, so, "the records cannot be used, "+so, "store", c.url, "err", err)
}

// setHeader sets what X-Greylist says of the present message.
func (c *check) setHeader(s *filter.Session[state], what string) {
	host := s.Local.host
	if host == "" {
		host, _ = os.Hostname()
	}
	s.Local.header = fmt.Sprintf("%s by filter-greylist at %s; %s", what, host, s.Time().Format(time.RFC1123Z))
}

// replyTo is what a refused client is told.
func (c *check) replyTo(addr netip.Addr, d greylist.Decision) cli.Reply {
	_, domain, _ := strings.Cut(d.Rcpt, "@")
	return c.reply.Expand(
		"%s", fmt.Sprint(int64(d.Left/time.Second)),
		"%m", fmt.Sprint(int64(math.Ceil(d.Left.Minutes()))),
		"%i", addr.String(), "%o", d.Origin, "%d", domain)
}

// trap refuses a client that writes to somebody who does not exist, and
// remembers it. Whoever is known is let alone, and so are bounces and callouts:
// spam is also sent in the name of traps, and good servers answer it.
func (c *check) trap(s *filter.Session[state], r filter.Request) filter.Response {
	at, ok := c.traps.Value().Lookup(r.Arg)
	if !ok || !c.gate.Begin(s) || s.Tx.ID != "" && s.Tx.From == "" {
		return c.gate.Rcpt(s, r)
	}
	c.saw(s.Time())
	return c.gate.Sender(s, s.Tx.From, func(v exempt.Verdict) filter.Response {
		if v.Exempt {
			return c.gate.Rcpt(s, r)
		}
		return c.withAttempt(s, []string{r.Arg}, func(a greylist.Attempt, result spf.Result) filter.Response {
			// A mail server may verify a sender, for which it goes no further.
			if a.Exempt == "" && a.Client.Name != "" && a.Client.Class == greylist.Proper {
				s.Local.trap = at.String()
				return c.gate.Rcpt(s, r)
			}
			return ask(c, s, func(ctx context.Context) (greylist.Decision, error) {
				return c.greylist.Trap(ctx, a)
			}, func(d greylist.Decision, err error) filter.Response {
				if err != nil {
					c.trouble("mail passes", err)
				}
				if err != nil || d.Accept {
					return c.gate.Rcpt(s, r)
				}
				v := c.verdict(s, a, d, result)
				v.By = "-trap " + at.String()
				return c.gate.Refuse(s, r, v)
			})
		})
	})
}

// committed learns to whom our users write.
func (c *check) committed(s *filter.Session[state], _ *proto.Line) {
	if !c.Exempt.Own(program.ClientOf(s)).Exempt || s.Tx.From == "" || len(s.Tx.Rcpts) == 0 {
		return
	}
	c.saw(s.Time())
	id, from, addr, name := s.ID, s.Tx.From, "local", program.ShownName(s.RDNS, s.FCrDNS)
	if !s.Unix() {
		addr = s.Src.Addr().String()
	}
	l := greylist.Letter{Time: s.Time(), From: from, To: s.Tx.Rcpts, Relayed: !s.Unix() && s.User == ""}
	filter.GoOn(s, learnTimeout, func(ctx context.Context) error {
		n, err := c.greylist.Learn(ctx, l)
		if err != nil {
			c.trouble("nothing is learned", err)
			return err
		}
		c.Log.Debug(id, "filter", "greylist", "event", "learned", "addr", addr, "name", name, "from", "<"+from+">", "rcpts", n)
		return nil
	})
}
