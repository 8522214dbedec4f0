package redis

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/storetest"
	"opensmtpd-filters/test/redistest"
)

func TestMain(m *testing.M) {
	b := backend(nil)
	if !b.Child() {
		os.Exit(m.Run())
	}
}

// open opens a store that has time.
func open(url string, maxGrey int) (greylist.Store, error) {
	l, err := ParseURL(url)
	if err != nil {
		return nil, err
	}
	return Open(Options{Location: l, MaxGrey: maxGrey, Wait: time.Minute, Policy: greylist.Policy{WhiteExp: 10 * 24 * time.Hour}})
}

// backend has all places on the server of a URL, with a prefix each.
func backend(url func() string) storetest.Backend {
	var n atomic.Int64
	return storetest.Backend{
		Open:   open,
		Place:  func(t *testing.T) string { return fmt.Sprintf("%s?prefix=p%d", url(), n.Add(1)) },
		Shared: true, Expires: true,
	}
}

func TestStore(t *testing.T) {
	for _, kind := range redistest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := redistest.Start(t, kind)
			backend(func() string { return "redis+unix://" + s.Socket }).Run(t)
		})
	}
}
