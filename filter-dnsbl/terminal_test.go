package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/program"
)

// Nothing that came from a file does anything to a terminal.
func TestTerminal(t *testing.T) {
	const nasty = "\x1b[2J\x7f\u009b31m\u202e\x9b\xff"
	list := filepath.Join(t.TempDir(), "list")
	os.WriteFile(list, []byte("zen.example "+nasty+"\n"+nasty+"\n"), 0o600)
	for _, args := range [][]string{
		{"@" + list}, {"-n", "@" + list}, {"-n", nasty}, {"-allowClients", list, "-n", "zen.example"}, {"-check", nasty, "zen.example"},
		{"-" + nasty}, {"-phase", nasty, "zen.example"}, {"-reply", nasty, "zen.example"}, {"@" + nasty},
	} {
		var out, errs bytes.Buffer
		program.Run(spec, args, program.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
		if text := out.String() + errs.String(); strings.ContainsAny(text, "\x1b\x7f\u009b\u202e") || strings.Contains(text, "\xff") {
			t.Errorf("%q prints %q", args, text)
		}
	}
}
