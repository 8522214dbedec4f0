package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/cli"
)

// A store that is gone says so once a minute, however much mail comes.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, flush := cli.Logger(&out, false)
		n := trouble{log: log}
		for range 150 {
			n.note("2b652056ec44d519", "why", "store", "err", errors.New("disk full"))
			time.Sleep(time.Second)
		}
		flush()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 3 || lines[0] != `2b652056ec44d519 warning: why=store err="disk full"` ||
			lines[1] != `2b652056ec44d519 warning: why=store err="disk full" more=59` {
			t.Errorf("%q", lines)
		}
	})
}

// A clock that was a year ahead does not have all new records swept as old.
func TestClockPutRight(t *testing.T) {
	c := new(checker)
	if !c.now().IsZero() {
		t.Error("before the first line it is", c.now())
	}
	c.saw(noon.AddDate(1, 0, 0))
	c.saw(noon)
	if !c.now().Equal(noon) {
		t.Errorf("it is %v, want %v", c.now(), noon)
	}
}
