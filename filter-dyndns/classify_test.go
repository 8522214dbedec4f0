package main

import (
	"strings"
	"testing"

	"opensmtpd-filters/pkg/program"
)

// Names that somebody has chosen, and zones of addresses, do not reach the terminal
// as they are.
func TestClassifyShowsCleanText(t *testing.T) {
	var out, errs strings.Builder
	in := "203.0.113.20\tx\x1b[2J.example\n203.0.113.21\tx\u009b2J.example\nfe80::1%\x1b]0;x\tname.example\n203.0.113.22\tmx.example.org\n"
	status := program.Run(spec, []string{"-commonList", "", "-classify", "-"}, program.Streams{In: strings.NewReader(in), Out: &out, Err: &errs})
	if status != 0 || strings.Count(out.String(), "\n") != 4 {
		t.Errorf("status %d: %q %q", status, out.String(), errs.String())
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b") {
		t.Errorf("printed %q", out.String())
	}
	if !strings.Contains(out.String(), "\t203.0.113.22\tmx.example.org\t") {
		t.Errorf("a plain name is not printed as it is: %q", out.String())
	}
}
