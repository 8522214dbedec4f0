package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"opensmtpd-filters/pkg/filtertest"
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

func TestHostile(t *testing.T) { filtertest.Hostile(t, all...) }
