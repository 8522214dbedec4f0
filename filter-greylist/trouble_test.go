package main

import (
	"testing"
	"time"
)

// A clock that was a year ahead does not have all new records swept as old.
func TestClockPutRight(t *testing.T) {
	c := new(check)
	if !c.now().IsZero() {
		t.Error("before the first line it is", c.now())
	}
	c.saw(noon.AddDate(1, 0, 0))
	c.saw(noon)
	if !c.now().Equal(noon) {
		t.Errorf("it is %v, want %v", c.now(), noon)
	}
}

// The first messages wait until the records are open: a server that begins with
// a slow disk, or with a file that is set aside, lets no spam in meanwhile.
func TestStoreTime(t *testing.T) {
	c := &check{flags: &flags{}, begun: time.Now().Add(-time.Hour)}
	if got := c.storeTime(); got != storeTimeout {
		t.Errorf("records that are not open after an hour have %v", got)
	}
	c.begun = time.Now().Add(time.Hour) // however slow this machine is
	if got := c.storeTime(); got < openTimeout {
		t.Errorf("records that are being opened have %v", got)
	}
	c.opened.Store(true)
	if got := c.storeTime(); got != storeTimeout {
		t.Errorf("records that have answered have %v", got)
	}
}
