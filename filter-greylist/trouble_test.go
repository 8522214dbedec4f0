package main

import (
	"testing"
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
