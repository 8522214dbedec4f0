package greylist_test

import (
	"testing"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Backend{
		Open:  func(_ string, maxGrey int) (greylist.Store, error) { return greylist.NewMemory(maxGrey), nil },
		Place: func(*testing.T) string { return "" },
	}.Run(t)
}
