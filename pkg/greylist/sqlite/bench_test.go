package sqlite

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// New triplets a second, by 64 sessions at a time, with 10,000 records stored
// before; GREYLIST_RECORDS says another number.
func BenchmarkDecideNew(b *testing.B) {
	records, _ := strconv.Atoi(os.Getenv("GREYLIST_RECORDS"))
	if records == 0 {
		records = 10_000
	}
	path := filepath.Join(b.TempDir(), "greylist.db")
	if dir := os.Getenv("GREYLIST_DIR"); dir != "" {
		path = filepath.Join(dir, fmt.Sprint("greylist-", records, ".db"))
	}
	s := Open(Options{Path: path, MaxGrey: 1 << 30})
	defer s.Close()
	key := greylist.KeyFile{Path: path + ".key", Create: true}
	g := greylist.New(greylist.Options{Store: s, Clear: true, Secret: key.Secret})
	var have int
	r, err := s.open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	r.db.QueryRow("SELECT n FROM counter WHERE name = ''").Scan(&have)
	var n atomic.Int64
	n.Store(int64(have))
	start := time.Unix(1_700_000_000, 0)
	attempt := func() {
		i := n.Add(1)
		d, err := g.Decide(b.Context(), greylist.Attempt{
			Time:   start.Add(time.Duration(i) * time.Millisecond),
			Client: greylist.Client{Addr: netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}), Class: greylist.NoName},
			Sender: fmt.Sprintf("someone.%s@sender.example", letters(i)), Rcpts: []string{"somebody@rcpt.example"},
		})
		if err != nil || d.Accept {
			b.Errorf("%v, %v", d, err)
		}
	}
	fill := make(chan struct{}, 64)
	for range (records - have) / 2 {
		fill <- struct{}{}
		go func() { attempt(); <-fill }()
	}
	for range cap(fill) {
		fill <- struct{}{}
	}
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			attempt()
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
	if text, err := os.ReadFile("/proc/self/status"); err == nil {
		_, rss, _ := strings.Cut(string(text), "VmRSS:")
		kb, _ := strconv.Atoi(strings.Fields(rss + " 0")[0])
		b.ReportMetric(float64(kb)/1024, "MB")
	}
}

// letters writes a number without digits, which would be taken for a serial.
func letters(n int64) string {
	var b []byte
	for ; n > 0; n /= 26 {
		b = append(b, byte('a'+n%26))
	}
	return string(b)
}
