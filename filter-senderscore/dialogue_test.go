package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/program"
)

func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){"filter-senderscore": main})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

// all is the filter with everything on. Nothing answers its queries, which must
// not matter.
var all = []string{"filter-senderscore", "-resolver", "127.0.0.1:1", "-timeout", "20ms", "-stateFile", "",
	"-blockBelow", "10", "-junkBelow", "70", "-slowFactor", "5000", "-scoreHeader"}

// The recorded sessions.
func TestTraces(t *testing.T) {
	filtertest.ReplayTraces(t, all...)
	filtertest.ReplayTraces(t, "filter-senderscore", "-testMode", "-junkBelow", "101", "-scoreHeader")
}

// What a killed filter has left does not delay the end, nor keep queries from
// being counted.
func TestStaleState(t *testing.T) {
	dns, err := filtertest.StartDNS("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	state := filepath.Join(t.TempDir(), "state")
	tmp := state + ".tmp"
	if err := os.WriteFile(tmp, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(tmp, old, old); err != nil {
		t.Fatal(err)
	}
	const stream = "config|ready\n" +
		"report|0.7|1.0|smtp-in|link-connect|7641df9771b4ed00|<unknown>|fail|203.0.113.5:40000|192.0.2.25:25\n" +
		"filter|0.7|1.0|smtp-in|data|7641df9771b4ed00|1ef1c203cc576e5d|\n"
	var out, errs bytes.Buffer
	status := program.Run(spec, []string{"-resolver", dns.Addr.String(), "-stateFile", state, "-commonList", ""},
		program.Streams{In: strings.NewReader(stream), Out: &out, Err: &errs})
	text, err := os.ReadFile(state)
	if status != 0 || err != nil || !strings.HasSuffix(string(text), " 1\n") || strings.Contains(errs.String(), "warning") {
		t.Errorf("status %d, state %q, %v, log\n%s", status, text, err, &errs)
	}
	if _, err := os.Stat(tmp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", tmp, err)
	}
}

func TestHostile(t *testing.T) { filtertest.Hostile(t, all...) }
