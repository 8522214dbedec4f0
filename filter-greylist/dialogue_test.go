package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
)

func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){"filter-greylist": main})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

// The recorded sessions. Nothing answers queries there, which must not matter.
func TestTraces(t *testing.T) {
	store := "sqlite:" + filepath.Join(t.TempDir(), "greylist.db")
	filtertest.ReplayTraces(t, "filter-greylist", "-store", store, "-resolver", "127.0.0.1:1", "-timeout", "200ms", "-trusted", "none")
	filtertest.ReplayTraces(t, "filter-greylist", "-store", "memory:", "-spf", "off", "-trusted", "none", "-phase", "rcpt-to", "-header")
}

func TestHostile(t *testing.T) {
	trap := filepath.Join("testdata", "traps")
	filtertest.Hostile(t, "filter-greylist", "-store", "memory:", "-resolver", "127.0.0.1:1", "-timeout", "200ms", "-header", "-trap", trap, "-trusted", "none")
	filtertest.Hostile(t, "filter-greylist", "-store", "memory:", "-spf", "off", "-phase", "rcpt-to", "-dryRun")
}
