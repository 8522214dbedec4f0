package main

import (
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
