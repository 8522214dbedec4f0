package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
)

func TestMain(m *testing.M) {
	filtertest.Main(m, map[string]func(){"filter-greet": main})
}

func TestDialogues(t *testing.T) { testscript.Run(t, filtertest.Params("testdata")) }

// The recorded sessions: their clients are gone, so nobody is seen.
func TestTraces(t *testing.T) {
	filtertest.ReplayTraces(t, "filter-greet", "-resolver", "127.0.0.1:1", "-wait", "10ms")
	filtertest.ReplayTraces(t, "filter-greet", "-resolver", "127.0.0.1:1", "-wait", "0", "-early", "late", "-commands", "refuse")
}

func TestHostile(t *testing.T) {
	filtertest.Hostile(t, "filter-greet", "-resolver", "127.0.0.1:1", "-wait", "10ms", "-early", "late", "-commands", "refuse")
}
