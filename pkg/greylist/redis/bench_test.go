package redis

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/test/redistest"
)

// Decisions of 64 sessions at a time, beside as many bare PINGs of the same client
// at a time: how many a second, the ratio, and the round trips of one, as the server
// counts scripts.
func BenchmarkDecide(b *testing.B) {
	for _, kind := range redistest.Kinds() {
		b.Run(string(kind), func(b *testing.B) {
			server := redistest.Start(b, kind)
			l, err := ParseURL("redis+unix://" + server.Socket)
			if err != nil {
				b.Fatal(err)
			}
			var stores [2]*Store // of two hosts
			var hosts [2]*greylist.Greylist
			for i := range stores {
				if stores[i], err = Open(Options{Location: l, Wait: time.Minute, Secret: secretFunc}); err != nil {
					b.Fatal(err)
				}
				defer stores[i].Close()
				hosts[i] = greylist.New(greylist.Options{Store: stores[i], Secret: secretFunc})
			}
			scripts := func() int64 { return server.Info("commandstats", "cmdstat_evalsha") }
			each := func(n int, do func(i int)) time.Duration {
				began := time.Now()
				var next atomic.Int64
				var wg sync.WaitGroup
				for range 64 {
					wg.Go(func() {
						for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
							do(i)
						}
					})
				}
				wg.Wait()
				return time.Since(began)
			}
			first := 0
			for _, what := range []struct {
				name string
				host int
				at   time.Duration
				want greylist.Reason
			}{{"new", 0, 0, greylist.Unseen}, {"retry at another host", 1, time.Minute, greylist.Retry}, {"known to that host", 1, 2 * time.Minute, greylist.Known}} {
				b.Run(what.name, func(b *testing.B) {
					if what.host == 0 { // what others retry later
						first += 1 << 20
					}
					before := scripts()
					took := each(b.N, func(i int) {
						a := attempt((first+i)%60_000, first+i, what.at)
						if d, err := hosts[what.host].Decide(b.Context(), a); err != nil || d.Reason != what.want && what.host == 0 {
							b.Errorf("%s, %v", d.Reason, err)
						}
					})
					trips := scripts() - before
					pings := each(b.N, func(int) {
						if err := stores[0].client.Ping(b.Context()).Err(); err != nil {
							b.Error(err)
						}
					})
					b.ReportMetric(float64(b.N)/took.Seconds(), "decisions/s")
					b.ReportMetric(float64(b.N)/pings.Seconds(), "pings/s")
					b.ReportMetric(took.Seconds()/pings.Seconds(), "x_ping")
					b.ReportMetric(float64(trips)/float64(b.N), "trips/op")
				})
			}
		})
	}
}
