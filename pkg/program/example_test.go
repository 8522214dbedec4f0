package program_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/resolve"
)

// A whole filter: it junks the mail of clients whose HELO name has no dot. Its
// main function would be
//
//	func main() { program.Main(spec) }
func Example() {
	stream := "config|ready\n" +
		"report|0.7|1795321925.000001|smtp-in|link-connect|4c04727b7583d924|mx.example.com|pass|198.51.100.7:40000|192.0.2.25:25\n" +
		"report|0.7|1795321925.000002|smtp-in|link-identify|4c04727b7583d924|EHLO|laptop\n" +
		"filter|0.7|1795321925.000003|smtp-in|mail-from|4c04727b7583d924|ad7a3812bd503368|ann@example.com\n"
	var out strings.Builder
	program.Run(spec, []string{"-commonList", ""}, program.Streams{In: strings.NewReader(stream), Out: &out, Err: os.Stderr})
	_, answers, _ := strings.Cut(out.String(), "register|ready\n")
	fmt.Print(answers)
	// Output: filter-result|4c04727b7583d924|ad7a3812bd503368|junk
}

var spec = program.Spec{Name: "filter-helo", Phase: "mail-from", New: newCheck}

// check is the filter as configured.
type check struct {
	*program.Program
	action cli.Action
}

// state is what is kept of a session.
type state struct{ program.Visit }

func newCheck(p *program.Program) func() (program.Check, error) {
	c := &check{Program: p, action: cli.Action{Name: cli.Junk}}
	p.Var(&c.action, "short", "what to do with names without a dot: `ACTION` is proceed, junk, defer or refuse")
	return func() (program.Check, error) {
		if p.Phase < filter.Helo {
			return nil, cli.BadFlag("phase", p.Phase.String(), errors.New("the HELO name is not known there"))
		}
		c.OpenResolver(resolve.Options{})
		return c, nil
	}
}

func (c *check) Filter() program.Runner {
	f := filter.New[state](filter.Options{Log: c.Log, Metrics: c.Metrics})
	gate := &program.Gate[state]{
		Program: c.Program,
		Visit:   func(s *filter.Session[state]) *program.Visit { return &s.Local.Visit },
		Judge: func(s *filter.Session[state], r filter.Request, then func(program.Verdict) filter.Response) filter.Response {
			helo := s.Helo
			if r.Phase == filter.Helo || r.Phase == filter.Ehlo {
				helo = r.Arg // smtpd reports it once it is accepted
			}
			return then(c.verdict(helo))
		},
	}
	gate.Handle(f)
	return f
}

// verdict is the check itself, for mail and for explain.
func (c *check) verdict(helo string) program.Verdict {
	if strings.Contains(helo, ".") {
		return program.Verdict{Reason: "proper"}
	}
	reply := cli.Reply{Code: 550, Enhanced: "5.7.1", Text: "your HELO name is not one"}
	if c.action.Name == cli.Defer {
		reply = reply.Temporary()
	}
	return program.Verdict{Action: c.action, Reply: reply, Reason: "short", Keys: []any{"helo", helo}}
}

func (c *check) Explain(_ context.Context, q program.Query, t *program.Table) error {
	if q.Helo == "" {
		t.Row("answer", "depends on the HELO name")
		return nil
	}
	v := c.verdict(q.Helo)
	t.Row("answer", "%s: %s", &v.Action, v.Reason)
	return nil
}

func (c *check) Config(*program.Table) {}
