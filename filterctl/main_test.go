package main

import (
	"strings"
	"testing"
)

// ctl runs a command line and returns the exit status and what it prints.
func ctl(args ...string) (status int, out, err string) {
	var o, e strings.Builder
	status = run(args, strings.NewReader(""), &o, &e)
	return status, o.String(), e.String()
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		args     string
		status   int
		out, err string // beginnings
	}{
		{"", 1, "", "usage: filterctl COMMAND"},
		{"-h", 0, "usage: filterctl COMMAND", ""},
		{"-version", 0, "filterctl ", ""},
		{"-version x", 0, "filterctl ", ""},
		{"chekc", 1, "", "filterctl: chekc: no such command"},
		{"-f x", 1, "", "filterctl: -f: no such command"},
	} {
		status, out, err := ctl(strings.Fields(tt.args)...)
		if status != tt.status || !strings.HasPrefix(out, tt.out) || !strings.HasPrefix(err, tt.err) || (out == "") != (tt.out == "") || (err == "") != (tt.err == "") {
			t.Errorf("%s: status %d, %q, %q", tt.args, status, out, err)
		}
	}
}
