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
	dir := t.TempDir()
	list := filepath.Join(dir, "list")
	os.WriteFile(list, []byte("192.0.2.0/24\n("+nasty+"\n"), 0o600)
	names := filepath.Join(dir, "names")
	os.WriteFile(names, []byte("192.0.2.1\t"+nasty+".example.net\n"+nasty+"\n"), 0o600)
	for _, args := range [][]string{
		{"-classify", names}, {"-classify", dir + "/" + nasty}, {"-match", list, "-n"}, {"-allowClients", list, "-n"}, {"explain", "192.0.2.1", nasty, nasty, nasty}, {"explain", nasty}, {"-expr", "(" + nasty},
		{"-phase", nasty}, {"-check", nasty}, {"-" + nasty}, {nasty}, {"-reply", nasty},
	} {
		var out, errs bytes.Buffer
		program.Run(spec, args, program.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
		if text := out.String() + errs.String(); strings.ContainsAny(text, "\x1b\x7f\u009b\u202e") || strings.Contains(text, "\xff") {
			t.Errorf("%q prints %q", args, text)
		}
	}
}
