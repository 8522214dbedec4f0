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
	"text/tabwriter"
	"time"

	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/rdns"
)

// state is what is kept of a session.
type state struct {
	judged   *filter.Future[rdns.Finding] // nil: the client is not judged
	finding  rdns.Finding                 // valid once decided
	decided  bool
	reported string // the decision as it was last logged
}

// filter returns the filter with its handlers.
func (c *checker) filter() *filter.Filter[state] {
	// The DNS may be asked twice for one answer.
	deadline := 2*c.flags.Timeout.Value + 5*time.Second
	f := filter.New[state](filter.Options{Log: c.log, Metrics: c.metrics, Deadline: deadline})
	f.OnSession(c.begin)
	f.Decide(c.flags.phase, c.decide)
	if c.flags.header {
		f.SetHeader("X-Rdns-Class", c.headerValue)
	}
	return f
}

// begin judges a new client. Most names need no query; what must be asked is
// asked while the client still says hello.
func (c *checker) begin(s *filter.Session[state]) {
	addr := s.Src.Addr()
	if why := c.exempt(addr); why != "" {
		c.log.Debug(s.ID, "filter", "dyndns", "action", "proceed", "addr", addr, "why", why)
		return
	}
	s.Local.judged = c.judge(s, rdns.Client{Addr: addr, Name: s.RDNS, FCrDNS: s.FCrDNS})
}

// exempt says why an address is never judged, "" if it is.
func (c *checker) exempt(addr netip.Addr) string {
	if ipset.Private(addr) {
		return "local or private"
	}
	if m, ok := c.allowlist.Value().Lookup(addr); ok {
		return "allowlist " + m.String()
	}
	return ""
}

func (c *checker) judge(s *filter.Session[state], client rdns.Client) *filter.Future[rdns.Finding] {
	j := c.newJudge()
	return filter.Go(s, c.flags.Timeout.Value, func(ctx context.Context) rdns.Finding {
		return j.Judge(ctx, client)
	})
}

func (c *checker) newJudge() *rdns.Judge {
	return &rdns.Judge{
		Resolver: c.resolver,
		Allow:    c.allow.Value(),
		Match:    c.match.Value(),
		Helo:     c.flags.helo,
		Mismatch: c.flags.actions[rdns.Mismatch].name != "proceed",
	}
}

// decide answers when the time has come. The name given in HELO may clear a
// client that would not be let pass.
func (c *checker) decide(s *filter.Session[state], r filter.Request) filter.Response {
	s.Local.decided = false
	if s.Local.judged == nil {
		return filter.Proceed()
	}
	if s.User != "" {
		c.log.Debug(s.ID, "filter", "dyndns", "action", "proceed", "addr", s.Src.Addr(), "why", "authenticated")
		return filter.Proceed()
	}
	helo := s.Helo
	if r.Phase == filter.Helo || r.Phase == filter.Ehlo {
		helo = r.Arg // smtpd reports it once we have answered
	}
	return filter.Await(s.Local.judged, func(f rdns.Finding, err error) filter.Response {
		if errors.Is(err, filter.ErrBusy) { // as if the DNS did not answer
			j := c.newJudge()
			j.Resolver = nil
			f, err = j.Judge(context.Background(), rdns.Client{Addr: s.Src.Addr(), Name: s.RDNS, FCrDNS: s.FCrDNS}), nil
		}
		if err != nil || helo == "" || c.action(f).name == "proceed" {
			return c.conclude(s, r.Phase, f, err)
		}
		again := c.judge(s, rdns.Client{Addr: s.Src.Addr(), Name: s.RDNS, FCrDNS: s.FCrDNS, Helo: helo})
		return filter.Await(again, func(cleared rdns.Finding, err error) filter.Response {
			if err == nil {
				f = cleared
			}
			return c.conclude(s, r.Phase, f, nil)
		})
	})
}

// action returns what is to be done about a finding.
func (c *checker) action(f rdns.Finding) *action {
	if a := c.flags.actions[f.Class]; a != nil {
		return a
	}
	return &action{name: "proceed"}
}

// conclude logs the decision and returns the answer.
func (c *checker) conclude(s *filter.Session[state], asked filter.Phase, f rdns.Finding, err error) filter.Response {
	if err != nil {
		c.log.Warn(s.ID, "filter", "dyndns", "action", "proceed", "addr", s.Src.Addr(), "err", err)
		return filter.Proceed()
	}
	a := c.action(f)
	late := asked == filter.Commit && a.name == "junk"
	attrs := []any{"filter", "dyndns", "class", f.Class, "action", a, "addr", s.Src.Addr(), "name", shown(f.Name)}
	if f.Evidence != "" {
		attrs = append(attrs, "evidence", f.Evidence)
	}
	switch {
	case c.flags.DryRun:
		attrs = append(attrs, "dryRun", true)
	case late:
		attrs = append(attrs, "note", "too late to junk")
	}
	if line := fmt.Sprint(attrs...); line != s.Local.reported {
		s.Local.reported = line
		c.log.Info(s.ID, attrs...)
	}
	c.metrics.Counter(metrics.Label(metrics.Label("dyndns_decisions_total", "action", a.name), "class", f.Class.String())).Inc()
	s.Local.finding, s.Local.decided = f, true
	if c.flags.DryRun || late {
		return filter.Proceed()
	}
	return a.response(expand(c.reply(a, f.Class), f, s.Src.Addr().String()))
}

func shown(name string) string {
	if name == "" {
		return rdns.Unknown
	}
	return name
}

// headerValue is what X-Rdns-Class says.
func (c *checker) headerValue(s *filter.Session[state]) string {
	f := s.Local.finding
	if !s.Local.decided {
		return ""
	}
	if f.Evidence == "" {
		return f.Class.String()
	}
	return f.Class.String() + " (" + f.Evidence + ")"
}

// classify prints the classes of a file, by the names alone. Of a line, the
// first field that is an address and the one after it count.
func (c *checker) classify(path string, stdin io.Reader, stdout io.Writer) error {
	in := stdin
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
	w := bufio.NewWriter(stdout)
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
				for _, field := range []string{f.Class.String(), "\t", addr.String(), "\t", name, "\t", f.Evidence, "\n"} {
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

// lookup prints what would be done with a client, by what the DNS says now.
func (c *checker) lookup(addr netip.Addr, stdout io.Writer) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "address\t%s\n", addr)
	if why := c.exempt(addr); why != "" {
		fmt.Fprintf(w, "action\tproceed, never judged: %s\n", why)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.flags.Timeout.Value)
	defer cancel()
	f := c.newJudge().Judge(ctx, rdns.Client{Addr: addr, Name: rdns.Unknown})
	a := c.action(f)
	fmt.Fprintf(w, "name\t%s\n", shown(f.Name))
	fmt.Fprintf(w, "class\t%s\n", f.Class)
	fmt.Fprintf(w, "evidence\t%s\n", f.Evidence)
	fmt.Fprintf(w, "action\t%s at %s\n", a, c.flags.phase)
	if a.refuses() {
		fmt.Fprintf(w, "reply\t%s\n", expand(c.reply(a, f.Class), f, addr.String()))
	}
	return nil
}
