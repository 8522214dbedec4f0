//go:build linux

package test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// Clients name senders without end whose zones never answer, and take each back,
// or stay. They get few questions asked, and good mail is decided meanwhile.
// FLOOD=1m makes it last that long, to look at the times.
func TestGreylistFlood(t *testing.T) {
	lasts := 5 * time.Second
	if d, err := time.ParseDuration(os.Getenv("FLOOD")); err == nil {
		lasts = d
	}
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := startGreylist(t, greylist(r, "-passTime 1h"))
		var begun, longest atomic.Int64
		good := func() {
			begin := time.Now()
			m := smtpdtest.Mail{Src: "203.0.113.1", Sender: fmt.Sprintf("%d@pool.example", begun.Add(1)), To: "bob"}
			if res := s.send(m); !isGreyed(res) && !res.Accepted() { // it is, when the disk is slow
				t.Errorf("mail from %s: %v", m.Sender, res)
			}
			took := int64(time.Since(begin))
			for {
				if old := longest.Load(); took <= old || longest.CompareAndSwap(old, took) {
					return
				}
			}
		}
		for range 20 {
			good()
		}
		t.Logf("without attackers: the slowest of 20 mails took %v", time.Duration(longest.Swap(0)).Round(time.Millisecond))

		var wg sync.WaitGroup
		var named atomic.Int64
		end := time.Now().Add(lasts)
		clients := []string{"198.51.100.7", "198.51.100.7", "198.51.100.7", "198.51.100.8", "198.18.0.9"}
		for i, src := range clients {
			wg.Go(func() {
				for n := 0; time.Now().Before(end); n++ {
					c, err := s.Dial(src)
					if err != nil {
						t.Error(err)
						return
					}
					c.Reply()
					c.Do("EHLO client.example.net")
					for k := 0; time.Now().Before(end); k++ {
						r, err := c.Do(fmt.Sprintf("MAIL FROM:<a@u%d-%d-%d.silent.example>", i, n, k))
						if err != nil || r.Code != 250 {
							break
						}
						named.Add(1)
						if r, err := c.Do("RSET"); err != nil || r.Code != 250 {
							break
						}
					}
					c.Close()
				}
			})
		}
		for i := range 30 { // these stay
			wg.Go(func() {
				c, err := s.Dial("198.51.100.9")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.Reply()
				c.Do("EHLO client.example.net")
				c.Do(fmt.Sprintf("MAIL FROM:<a@slow%d.silent.example>", i))
				c.Do("RCPT TO:<bob@example.org>")
				time.Sleep(time.Until(end))
			})
		}
		mails := 0
		for ; mails < 20 || time.Now().Before(end); mails++ {
			good()
		}
		wg.Wait()
		asked := 0
		for _, q := range s.DNS.Queries() {
			if strings.HasSuffix(strings.TrimSuffix(strings.ToLower(q.Name), "."), ".silent.example") {
				asked++
			}
		}
		t.Logf("with attackers, who named %d senders: %d queries for them, the slowest of %d mails took %v", named.Load(), asked, mails, time.Duration(longest.Load()).Round(time.Millisecond))
		// Fifty of one client at once, then one a second; a query is sent up to
		// four times.
		if most := 4 * 4 * (50 + int(lasts/time.Second)); asked > most {
			t.Errorf("%d queries for senders of the attackers, want at most %d", asked, most)
		}
		if strings.Contains(s.Log(), "no answer in time") {
			t.Error("somebody was not answered in time")
		}
	})
}
