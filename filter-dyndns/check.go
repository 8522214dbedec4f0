package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/rdns"
	"opensmtpd-filters/pkg/reload"
)

var classesTotal = metrics.Desc{Name: "filter_dyndns_classes_total",
	Help: "Decisions about clients, by class of their names.", Labels: []string{"class"}}

// state is what is kept of a session.
type state struct {
	program.Visit
	judged  *filter.Future[rdns.Finding] // nil: the client is not judged
	finding rdns.Finding                 // valid once decided
	decided bool
}

// Filter returns the filter with its handlers.
func (c *check) Filter() program.Runner {
	// The DNS may be asked twice for one answer.
	deadline := 2*c.Timeout.Value + 5*time.Second
	f := filter.New[state](filter.Options{Log: c.Log, Metrics: c.Metrics, Deadline: deadline})
	f.OnSession(c.begin)
	c.gate = &program.Gate[state]{
		Program: c.Program,
		Visit:   func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
		Judge:   c.decide,
	}
	c.gate.Handle(f)
	if c.Header {
		f.SetHeader(spec.Field, c.headerValue)
	}
	return f
}

// begin judges a new client. Most names need no query; what must be asked is
// asked while the client still says hello.
func (c *check) begin(s *filter.Session[state]) {
	if c.gate.Begin(s) {
		s.Local.judged = c.judge(s, rdns.Client{Addr: s.Src.Addr(), Name: s.RDNS, FCrDNS: s.FCrDNS})
	}
}

func (c *check) judge(s *filter.Session[state], client rdns.Client) *filter.Future[rdns.Finding] {
	j := c.newJudge()
	if !j.Asks(client) {
		return filter.Done(j.Judge(context.Background(), client))
	}
	return filter.Go(s, c.Timeout.Value, func(ctx context.Context) rdns.Finding {
		return j.Judge(ctx, client)
	})
}

func (c *check) newJudge() *rdns.Judge {
	return &rdns.Judge{
		Resolver: c.Resolver,
		Allow:    c.names.Value(),
		Match:    c.match.Value(),
		Helo:     c.helo,
		Mismatch: !c.actions[rdns.Mismatch].Passes(),
	}
}

// decide says what is to be done. The name given in HELO may clear a client that
// would not be let pass.
func (c *check) decide(s *filter.Session[state], r filter.Request, then func(program.Verdict) filter.Response) filter.Response {
	s.Local.decided = false
	helo := s.Helo
	if r.Phase == filter.Helo || r.Phase == filter.Ehlo {
		helo = r.Arg // smtpd reports it once we have answered
	}
	conclude := func(f rdns.Finding) filter.Response {
		s.Local.finding, s.Local.decided = f, true
		c.Metrics.Counter(classesTotal, f.Class.String()).Inc()
		v := c.verdict(f, s.Src.Addr())
		if f.Name != "" && f.Name != strings.TrimSuffix(s.RDNS, ".") {
			v.Keys = append(v.Keys, "found", f.Name) // smtpd had none, or cut it
		}
		return then(v)
	}
	return filter.Await(s.Local.judged, func(f rdns.Finding, err error) filter.Response {
		if err != nil {
			return then(program.Verdict{Reason: "error", Keys: []any{"err", err}})
		}
		if !c.heloMatters(f, helo) {
			return conclude(f)
		}
		again := c.judge(s, rdns.Client{Addr: s.Src.Addr(), Name: s.RDNS, FCrDNS: s.FCrDNS, Helo: helo})
		return filter.Await(again, func(cleared rdns.Finding, err error) filter.Response {
			if err == nil {
				f = cleared
			}
			return conclude(f)
		})
	})
}

// heloMatters reports whether a client that was judged by its reverse name is to be
// judged again by the name it gives in HELO. That name can only clear it.
func (c *check) heloMatters(f rdns.Finding, helo string) bool {
	a := c.action(f)
	return c.helo && helo != "" && !a.Passes()
}

// verdict is what is done about a finding.
func (c *check) verdict(f rdns.Finding, addr netip.Addr) program.Verdict {
	v := program.Verdict{Action: c.action(f), Reason: f.Class.String()}
	v.Reply = expand(c.reply(v.Action, f.Class), f, addr.String())
	if f.Evidence != "" {
		v.Keys = []any{"evidence", f.Evidence}
	}
	return v
}

func shown(name string) string {
	if name == "" {
		return rdns.Unknown
	}
	return name
}

// headerValue is what X-Rdns-Class says.
func (c *check) headerValue(s *filter.Session[state]) string {
	f := s.Local.finding
	if !s.Local.decided || !c.gate.Judged(s) {
		return ""
	}
	if f.Evidence == "" {
		return f.Class.String()
	}
	return f.Class.String() + " (" + f.Evidence + ")"
}

// Command prints the classes of a file, by the names alone. Of a line, the first
// field that is an address and the one after it count.
func (c *check) Command(args []string) error {
	path, in := args[1], c.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	j := c.newJudge()
	j.Resolver = nil
	w := bufio.NewWriter(c.Out)
	lines := bufio.NewReader(in)
	var bad []error
	for n := 1; ; n++ {
		line, err := lines.ReadString('\n')
		text := strings.TrimRight(line, "\r\n")
		if text != "" && text[0] != '#' {
			if addr, name, ok := addressAndName(text); ok {
				f := rdns.Finding{Verdict: rdns.Verdict{Class: rdns.None, Evidence: "no name"}}
				if name != "" && name != rdns.Unknown {
					f = j.Judge(context.Background(), rdns.Client{Addr: addr, Name: name, FCrDNS: true})
				}
				for _, field := range []string{f.Class.String(), "\t", shownField(addr.String()), "\t", shownField(name), "\t", shownField(f.Evidence), "\n"} {
					w.WriteString(field)
				}
			} else if len(bad) < 100 {
				bad = append(bad, fmt.Errorf("%s:%d: not an address, a TAB and a name", path, n))
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s:%d: %w", path, n, err))
			break
		}
	}
	return errors.Join(append(bad, w.Flush())...)
}

// shownField returns a field that came from a file of names, which anybody may
// have given.
func shownField(s string) string {
	if s == "" {
		return ""
	}
	return cli.Clean(s)
}

func addressAndName(line string) (addr netip.Addr, name string, ok bool) {
	for {
		field, rest, more := strings.Cut(line, "\t")
		if !more {
			return netip.Addr{}, "", false
		}
		// Most fields that are no address need no error made for them.
		if strings.ContainsAny(field, ".:") {
			if addr, err := netip.ParseAddr(field); err == nil {
				name, _, _ = strings.Cut(rest, "\t")
				return addr, name, true
			}
		}
		line = rest
	}
}

// Explain looks a client up and says what would be done.
func (c *check) Explain(ctx context.Context, q program.Query, t *program.Table) error {
	f := c.newJudge().Judge(ctx, rdns.Client{Addr: q.Addr, Name: q.Name, FCrDNS: q.Confirmed, Helo: q.Helo})
	a := c.action(f)
	if shown(f.Name) != q.Name {
		t.Row("judged name", "%s", shown(f.Name))
	}
	t.Row("class", "%s", f.Class)
	t.Row("evidence", "%s", f.Evidence)
	t.Row("answer", "%s at %s", &a, c.Phase)
	if a.Refuses() {
		t.Row("reply", "%s", expand(c.reply(a, f.Class), f, q.Addr.String()))
	}
	return nil
}

// Config shows the replies and how many names the files have.
func (c *check) Config(t *program.Table) {
	for class := rdns.None; class < rdns.Proper; class++ {
		if a := c.actions[class]; a.Refuses() {
			t.Row("reply to "+class.String(), "%s", c.reply(*a, class))
		}
	}
	t.Row("entries of -allowNames", "%d", c.names.Value().Len())
	t.Row("entries of -match, -expr", "%d", c.match.Value().Len())
}

// patterns opens files of expressions, and adds those of the command line.
func (c *check) patterns(paths, expr []string) (*reload.File[*rdns.Patterns], error) {
	for _, e := range expr {
		if e = strings.TrimSpace(e); e == "" || e[0] == '#' || strings.Contains(e, "\n") {
			return nil, fmt.Errorf("-expr %q: not an expression", e)
		}
	}
	more, bad := rdns.ParsePatterns(strings.NewReader(strings.Join(expr, "\n")), "-expr")
	files, err := reload.Open(reload.Options[*rdns.Patterns]{
		Paths: paths, Parse: rdns.ParsePatterns, Log: c.Log,
		Merge: func(files ...*rdns.Patterns) *rdns.Patterns { return rdns.Merge(append(files, more)...) },
	})
	if err == nil {
		c.Keep(files)
	}
	return files, errors.Join(append(bad, err)...)
}
