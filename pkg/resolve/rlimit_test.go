//go:build unix

package resolve_test

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

// limitFiles leaves room for n more descriptors until the test ends or the
// function is called.
func limitFiles(t *testing.T, n int) (restore func()) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Skip(err)
	}
	low := old
	low.Cur = 128
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	var files []*os.File
	restore = sync.OnceFunc(func() {
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
		for _, f := range files {
			f.Close()
		}
	})
	t.Cleanup(restore)
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		files = append(files, f)
	}
	if len(files) < n {
		t.Skip("more than 128 descriptors in use")
	}
	for _, f := range files[:n] {
		f.Close()
	}
	return restore
}

func TestFewDescriptors(t *testing.T) {
	srv := filtertest.NewDNS(t, "*.list.example A 127.0.0.2\n*.list.example delay 20ms")
	set := metrics.New(metrics.Options{})
	r := asking(t, resolve.Options{Metrics: set}, srv)
	limitFiles(t, 3)
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			if _, err := r.A(t.Context(), fmt.Sprint(i, ".list.example")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if set.Value("filter_resolve_socket_errors_total") == 0 {
		t.Error("no socket errors counted: the limit was not felt")
	}
}

func TestNoDescriptors(t *testing.T) {
	srv := filtertest.NewDNS(t, "* A 127.0.0.2")
	r := asking(t, resolve.Options{Timeout: 500 * time.Millisecond, ErrorTTL: 1}, srv)
	restore := limitFiles(t, 0)
	_, err := r.A(t.Context(), "example.org")
	if err == nil {
		t.Error("an answer without a socket")
	}
	restore()
	if _, err := r.A(t.Context(), "example.org"); err != nil {
		t.Error("still:", err)
	}
}
