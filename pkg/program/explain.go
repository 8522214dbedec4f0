package program

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/spf"
)

// A Query is what explain is asked about: a client, and perhaps its mail.
type Query struct {
	Addr      netip.Addr // not valid: a domain is asked about
	Domain    string
	Name      string // the reverse name, as smtpd would report it
	Confirmed bool   // Name resolves to Addr
	HasSender bool
	Sender    string // without < and >; with HasSender "" is the null sender
	Rcpt      string // "" if none is given
	Helo      string
	Exempt    string // why the client is never judged, "" if it is; see Spec.Looks
}

// noName is what smtpd calls the name of a client that has none.
const noName = "<unknown>"

// ErrUsage says how explain is used.
var errExplain = errors.New("explain: want ADDRESS [SENDER [RECIPIENT [HELO]]], a null sender as <>")

// ParseQuery reads the arguments of explain.
func parseQuery(args []string, names bool) (q Query, err error) {
	if len(args) < 1 || len(args) > 4 {
		return q, errExplain
	}
	q.Addr, err = cli.ParseAddr(args[0])
	if err != nil {
		if !names || !cli.IsDomain(args[0]) {
			return q, fmt.Errorf("explain %s: %w", cli.Clean(args[0]), err)
		}
		q.Domain = strings.TrimSuffix(args[0], ".")
	}
	bare := func(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">") }
	if len(args) > 1 {
		q.HasSender, q.Sender = true, bare(args[1])
	}
	if len(args) > 2 {
		q.Rcpt = bare(args[2])
		if !strings.Contains(q.Rcpt, "@") {
			return q, fmt.Errorf("explain %s: %s is not the address of a recipient", cli.Clean(args[0]), cli.Clean(args[2]))
		}
	}
	if len(args) > 3 {
		q.Helo = args[3]
	}
	return q, nil
}

// explain prints what would be done now, and why.
func (p *Program) explain(check Check, args []string) error {
	q, err := parseQuery(args, p.spec.Names)
	if err != nil {
		return err
	}
	timeout := 10*time.Second + 3*p.Timeout.Value
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	t := new(Table)
	by, ok := p.explainExempt(ctx, &q, t)
	if ok {
		q.Exempt = by
	}
	if !ok || p.spec.Looks {
		err = check.Explain(ctx, q, t)
	}
	if ok {
		t.Row("answer", "proceed, never judged: %s", by)
	}
	return errors.Join(err, t.Write(p.Out))
}

// explainExempt says who the client is, and whether it is exempt.
func (p *Program) explainExempt(ctx context.Context, q *Query, t *Table) (by string, ok bool) {
	if !q.Addr.IsValid() {
		t.Row("domain", "%s", q.Domain)
		return "", false
	}
	t.Row("address", "%s", q.Addr)
	q.Name = noName
	if p.Resolver != nil {
		q.Name, q.Confirmed = reverseName(ctx, p, q.Addr)
		if q.Confirmed || q.Name == noName {
			t.Row("name", "%s", q.Name)
		} else {
			t.Row("name", "%s, which does not resolve to the address", q.Name)
		}
	}
	name := ""
	if q.Confirmed {
		name = q.Name
	}
	v := p.Exempt.Client(exempt.Client{Addr: q.Addr, Name: name})
	switch {
	case v.Exempt:
		return v.By, true
	case v.Reject && !p.spec.Refuses:
		t.Row("list", "%s says reject, which does not count here", v.By)
	}
	if p.spec.Phases != nil {
		return "", false
	}
	return p.ExplainMail(ctx, *q, p.Phase, t)
}

// ExplainMail says whether mail is exempt when a program decides at a phase, 0 for
// the end, by its sender or recipient. The frame asks for -phase; a program that
// has phases of its own does so itself in Explain.
func (p *Program) ExplainMail(ctx context.Context, q Query, at filter.Phase, t *Table) (by string, ok bool) {
	if q.HasSender && q.Sender != "" && (at == 0 || at >= filter.MailFrom) {
		pass := false
		if p.Exempt.SenderNeedsSPF(q.Sender) && p.Resolver != nil {
			r := p.spf().Check(ctx, spf.Query{Addr: q.Addr, Helo: q.Helo, Sender: q.Sender})
			t.Row("spf", "%s:%s", r.Status, r.Domain)
			pass = r.Status == spf.Pass
		}
		if v := p.Exempt.Sender(q.Sender, pass); v.Exempt {
			return v.By, true
		}
	}
	if q.Rcpt != "" && (at == 0 || at >= filter.RcptTo) {
		if v := p.Exempt.Recipient(q.Rcpt); v.Exempt {
			return v.By, true
		}
	}
	return "", false
}

// reverseName returns the name that smtpd would report, and whether it resolves
// to the address.
func reverseName(ctx context.Context, p *Program, addr netip.Addr) (name string, confirmed bool) {
	names, err := p.Resolver.PTR(ctx, addr)
	if err != nil || len(names) == 0 {
		return noName, false
	}
	name = strings.TrimSuffix(names[0], ".")
	addrs, _ := p.Resolver.Addrs(ctx, name)
	for _, a := range addrs {
		confirmed = confirmed || a.Unmap() == addr
	}
	return name, confirmed
}

func (p *Program) spf() *spf.Checker {
	return spf.New(spf.Options{Resolver: p.Resolver, Timeout: p.Timeout.Value, Metrics: p.Metrics})
}
