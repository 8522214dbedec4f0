package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
)

func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){"filter-dyndns": main})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

// The recorded sessions, without and with data lines. Nothing answers queries
// there, which must not matter.
func TestTraces(t *testing.T) {
	filtertest.ReplayTraces(t, "filter-dyndns", "-resolver", "127.0.0.1:1")
	filtertest.ReplayTraces(t, "filter-dyndns", "-resolver", "127.0.0.1:1", "-header", "-phase", "connect")
}

func TestHostile(t *testing.T) {
	filtertest.Hostile(t, "filter-dyndns", "-resolver", "127.0.0.1:1", "-header")
}

// Signals: SIGHUP is survived, with and without files to read again; SIGTERM
// and SIGINT end the filter in order.
func TestSignals(t *testing.T) {
	names := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(names, []byte("*.dyn.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"-match", names}} {
		for _, end := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
			c := exec.Command("filter-dyndns", args...)
			in, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			expect := func(send, want string) {
				t.Helper()
				if _, err := io.WriteString(in, send); err != nil {
					t.Fatal(err)
				}
				for {
					line, err := lines.ReadString('\n')
					if err != nil {
						t.Fatalf("waiting for %q: %v", want, err)
					}
					if line == want {
						return
					}
				}
			}
			expect("config|ready\n", "register|ready\n")
			for range 3 {
				c.Process.Signal(syscall.SIGHUP)
				expect("filter|0.7|1.0|smtp-in|commit|0000000000000001|0000000000000002|\n",
					"filter-result|0000000000000001|0000000000000002|proceed\n")
			}
			c.Process.Signal(end)
			if err := c.Wait(); err != nil {
				t.Errorf("%v, %v: %v", args, end, err)
			}
		}
	}
}
