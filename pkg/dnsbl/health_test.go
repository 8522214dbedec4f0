package dnsbl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"opensmtpd-filters/pkg/metrics"
	"opensmtpd-filters/pkg/resolve"
)

func (c *Checker) zone(i int) *zone { return c.set.Load().zones[i] }

func addr4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

// verdict is that about an address, asked for at once.
func verdict(t *testing.T, c *Checker, a netip.Addr) Result {
	return wait(t, c.Begin(t.Context(), a))
}

// wait is Verdict. What is known without a wait, before and after it, is the same.
func wait(t *testing.T, q *Inquiry) Result {
	t.Helper()
	start := time.Now()
	before, ok := q.Known(t.Context())
	if time.Since(start) != 0 {
		t.Errorf("Known took %v", time.Since(start))
	}
	res := q.Verdict(t.Context())
	if ok && (before.brief() != res.brief() || res.Took != 0) {
		t.Errorf("%s is known, %s the verdict, after %v", before.brief(), res.brief(), res.Took)
	}
	if after, ok := q.Known(t.Context()); ok && after.brief() != res.brief() {
		t.Errorf("%s is known after the verdict, %s", after.brief(), res.brief())
	}
	return res
}

// Before a test has answered a listing counts nothing, and an allow list saves.
func TestUntested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("7.113.0.203.a.example", "127.0.0.2", "7.113.0.203.w.example", "127.0.0.2", "7.113.0.203.b.example", "127.0.0.2",
			neg4, "hang", "1.0.0.127.w.example", "hang", "1.0.0.127.b.example", "hang")
		c := fresh(t, Options{Lists: parse(t, "a.example*5 w.example*-9 b.example*1+block"), Resolver: f, BlockAt: 5, JunkAt: 5})
		q := c.Begin(t.Context(), client)
		q.Wait(t.Context())
		synctest.Wait()
		f.set(neg4, "")
		f.set("1.0.0.127.w.example", "")
		f.set("1.0.0.127.b.example", "")
		res := q.Verdict(t.Context())
		if res.brief() != "pass 0" || fmt.Sprint(res.Untested) != "[a.example w.example b.example]" {
			t.Errorf("before: %s, untested %v", res.brief(), res.Untested)
		}
		c.Test(t.Context())
		if res := q.Verdict(t.Context()); res.brief() != "block -3 a.example=5 w.example=-9 b.example=1" {
			t.Errorf("after: %s", res.brief())
		}
	})
}

// Nobody is refused or junked whom an allow list might save, before that list is
// tested.
func TestAllowUntested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("7.113.0.203.b.example", "127.0.0.2", "7.113.0.203.w.example", "127.0.0.2", "1.0.0.127.w.example", "hang")
		c := fresh(t, Options{Lists: parse(t, "b.example*5 w.example*-5"), Resolver: f, BlockAt: 5, JunkAt: 3})
		<-c.zone(0).start(c.zone(0).parts...).done
		q := c.Begin(t.Context(), client)
		q.Wait(t.Context())
		res := q.Verdict(t.Context())
		if res.brief() != "pass 5 b.example=5" || fmt.Sprint(res.Untested) != "[w.example]" {
			t.Errorf("%s, untested %v", res.brief(), res.Untested)
		}
	})
}

const (
	neg4 = "1.0.0.127.a.example"
	neg6 = "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.example"
	pos4 = "2.0.0.127.a.example"
)

func TestSelfTests(t *testing.T) {
	for _, tt := range []struct {
		name    string
		lists   string
		records []string
		health  string // of the first list
		log     string // one line, with these words
	}{
		{"good", "a.example", nil, "good", ""},
		{"no entry", "a.example", []string{pos4, ""}, "good, without a test entry", "lacks the test entry"},
		{"lists the world", "a.example", []string{"*.a.example", "127.0.0.2"}, "sick: lists the world", "list=a.example why=.*remove the list"},
		{"127.0.0.1 is listed", "a.example+v4", []string{neg4, "127.0.0.2"}, "sick: lists the world", "list=a.example why=.*remove the list"},
		{"a wildcard beside test entries", "a.example", []string{"*.a.example", "127.0.0.2", neg4, "", pos4, "127.0.0.2", neg6, ""}, "sick: lists the world", "list=a.example why=.*remove the list"},
		{"of domains", "a.example+from", []string{"*.a.example", "127.0.1.2", "invalid.a.example", ""}, "sick: lists the world", "remove the list"},
		{"of IPv6 only", "a.example", []string{neg6, "127.0.0.2"}, "good; IPv6 sick: lists the world", "list=a.example family=IPv6 why=.*remove the list"},
		{"parked", "a.example", []string{"*.a.example", "203.0.113.1"}, "sick: answers 203.0.113.1", "run a resolver of your own"},
		{"open resolver", "a.example", []string{"*.a.example", "127.255.255.254"}, "sick: answers with the error 127.255.255.254", "run a resolver of your own"},
		{"positive entry with error", "a.example+v4", []string{pos4, "127.255.255.255"}, "sick: answers with the error 127.255.255.255", "register"},
		{"throttled", "list.dnswl.org", []string{"*.list.dnswl.org", "127.0.10.3"}, "sick: lists the world", "ask less, or register"},
		{"white by design", "hostkarma.junkemailfilter.com", []string{"1.0.0.127.hostkarma.junkemailfilter.com", "127.0.0.1"}, "good", ""},
		{"white by design, and the world", "hostkarma.junkemailfilter.com", []string{"*.hostkarma.junkemailfilter.com", "127.0.0.2"}, "sick: lists the world", "remove the list"},
		{"off", "a.example", []string{"*.a.example", "fail", pos4, "fail", neg4, "fail", neg6, "fail"}, "off: does not answer", "list=a.example err=.*SERVFAIL"},
		{"off, silent", "a.example", []string{"*.a.example", "hang", pos4, "hang", neg4, "hang", neg6, "hang"}, "off: does not answer", "does not answer.* list=a.example err="},
		{"it makes nothing of a random name", "a.example+v4", []string{"*.a.example", "fail", pos4, "127.0.0.2", neg4, ""}, "good", ""},
		{"filtered", "a.example+v4 b.example+v4", []string{pos4, "nodata", "2.0.0.127.b.example", "nodata"}, "the resolver removes", "private-address of unbound, stop-dns-rebind .*of dnsmasq"},
		{"filtered, NXDOMAIN", "a.example+v4", []string{pos4, "", "txt " + pos4, "listed"}, "the resolver removes", "private-address of unbound, stop-dns-rebind .*of dnsmasq"},
		{"not filtered, one entry is there", "a.example+v4 b.example+v4", []string{pos4, "nodata"}, "good, without", "lacks the test entry.*list=a.example"},
		{"emptied, with a wildcard of TXT", "a.example+v4", []string{pos4, "", "txt " + pos4, "v=spf1 -all"}, "good, without", "lacks the test entry.*list=a.example"},
		{"invented", "a.example b.example", []string{"*", "127.0.0.1", pos4, "127.0.0.1", "2.0.0.127.b.example", "127.0.0.1"}, "the resolver invents", "resolver invents"},
		{"invented, 0.0.0.0", "a.example b.example", []string{"*", "0.0.0.0"}, "the resolver invents", "resolver invents"},
		{"invented, but for invalid.", "a.example b.example", []string{"*", "192.0.2.80", "*.invalid", ""}, "the resolver invents", "resolver invents"},
		{"denied", "a.example b.example", []string{pos4, "", "2.0.0.127.b.example", "", ".", "denied"}, "the resolver says that nothing", "says that nothing exists"},
		{"down", "a.example b.example", []string{"*", "fail", ".", "fail"}, "the resolver does not answer", "the resolver does not answer"},
		{"down, silent", "a.example", []string{"*", "hang", ".", "hang"}, "the resolver does not answer", "the resolver does not answer"},
		{"cut off", "a.example b.example", []string{"*", "fail", "*.invalid", ""}, "the resolver reaches none", "the resolver reaches none of the lists"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, log := running(t, newFake(tt.records...), Options{JunkAt: 1}, tt.lists)
				time.Sleep(30 * time.Second)
				if got := c.zone(0).health(); !strings.HasPrefix(got, tt.health) {
					t.Errorf("health %q, want %q", got, tt.health)
				}
				if got := log.String(); strings.Count(got, "\n") > 1 || !matches(tt.log, got) || tt.log == "" && got != "" {
					t.Errorf("log %q, want one line with %q", got, tt.log)
				}
			})
		})
	}
}

// An answer with an error code counts nothing and takes nothing: a test shows what
// it is worth. A zone that the test finds sick counts nothing and is not asked, and
// comes back with a good test.
func TestSickAndWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("7.113.0.203.a.example", "127.255.255.254", "8.113.0.203.a.example", "127.0.0.2")
		c, log := running(t, f, Options{BlockAt: 1}, "a.example+v4")
		eight := addr4(203, 0, 113, 8)
		time.Sleep(2 * time.Minute)
		tests := f.count("1.0.0.127")
		for range 10 {
			if res := verdict(t, c, client); res.brief() != "pass 0" {
				t.Errorf("an error code: %s", res.brief())
			}
		}
		synctest.Wait()
		if n := f.count("1.0.0.127") - tests; n != 1 {
			t.Errorf("%d tests after error codes, want one", n)
		}
		if res := verdict(t, c, eight); res.Verdict != Block {
			t.Errorf("after one error code: %+v", res)
		}
		f.set("*.a.example", "127.255.255.254")
		time.Sleep(2 * time.Minute)
		verdict(t, c, client)
		synctest.Wait()
		asked := f.count("9.113.0.203")
		for range 10 {
			if res := verdict(t, c, addr4(203, 0, 113, 9)); res.brief() != "pass 0" || fmt.Sprint(res.Silent) != "[a.example]" {
				t.Errorf("sick: %+v", res)
			}
		}
		if n := f.count("9.113.0.203") - asked; n != 0 {
			t.Errorf("%d queries to a sick zone", n)
		}
		if n := strings.Count(log.String(), "is sick"); n != 1 {
			t.Errorf("%d lines:\n%s", n, log)
		}
		f.set("*.a.example", "")
		for back := time.Now(); verdict(t, c, eight).Verdict != Block; time.Sleep(time.Second) {
			if time.Since(back) > time.Minute {
				t.Fatal("not back after a minute")
			}
		}
		if !strings.Contains(log.String(), "well again") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// A hit that is about to decide waits for a test, if the last good one is older
// than a minute: who is listed by a list that has come to list everybody is refused
// for a minute at most. The same for an allow list.
func TestBesideRefusals(t *testing.T) {
	for _, tt := range []struct {
		name, lists, zone string
		before, after     Verdict
		block, junk       int
	}{
		{"refusals", "a.example*5", "a.example", Pass, Block, 5, 0},
		{"junk", "a.example*5", "a.example", Pass, Junk, 0, 5},
		{"alone", "a.example*1+block", "a.example", Pass, Block, 5, 0},
		{"an allow list", "b.example*5 a.example*-5", "a.example", Block, Pass, 5, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake("*.113.0.203.b.example", "127.0.0.2")
				c, log := running(t, f, Options{BlockAt: tt.block, JunkAt: tt.junk}, tt.lists)
				time.Sleep(10 * time.Second)
				if v := verdict(t, c, client).Verdict; v != tt.before {
					t.Fatalf("%v", v)
				}
				f.mu.Lock()
				f.delay[".a.example"] = 300 * ms
				f.mu.Unlock()
				f.set("*.a.example", "127.0.0.2")
				turned := time.Now()
				wrong := 0
				for i := byte(0); i < 120; i++ {
					q := c.Begin(t.Context(), addr4(203, 0, 113, i))
					res := q.Verdict(t.Context())
					if res.Took > 2*time.Second {
						t.Errorf("took %v", res.Took)
					}
					if res.Verdict == tt.after {
						wrong++
						if since := time.Since(turned); since > 62*time.Second {
							t.Fatalf("%v after %v", res.Verdict, since)
						}
					}
					time.Sleep(time.Second)
				}
				if wrong == 0 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "list=a.example") {
					t.Errorf("%d times wrong, log %s", wrong, log)
				}
			})
		})
	}
}

// A test takes no longer than a client has to wait; if it shows nothing, the
// refusal stands. There is one a minute at most.
func TestBesideRefusalsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.113.0.203.a.example", "127.0.0.2")
		c, _ := running(t, f, Options{BlockAt: 5}, "a.example*5+v4")
		time.Sleep(2 * time.Minute)
		f.set(neg4, "hang")
		n := f.count(neg4)
		for i := range byte(50) {
			res := verdict(t, c, addr4(203, 0, 113, i))
			if res.Verdict != Block || res.Took > 2*time.Second {
				t.Fatalf("%+v", res)
			}
		}
		if got := f.count(neg4) - n; got != 1 {
			t.Errorf("%d tests", got)
		}
	})
}

// A list with few clients refuses them: the decision waits for the test that the
// client itself has started.
func TestQuiet(t *testing.T) {
	for _, delay := range []time.Duration{0, 500 * ms} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("*.113.0.203.a.example", "127.0.0.2")
			f.delay[".a.example"] = delay
			c, _ := running(t, f, Options{BlockAt: 1}, "a.example")
			for i := range byte(30) {
				if res := verdict(t, c, addr4(203, 0, 113, i)); res.Verdict != Block || res.Took > 2*time.Second {
					t.Errorf("client %d: %+v", i, res)
				}
				time.Sleep(time.Hour)
			}
			// And a world of meanwhile refuses nobody.
			f.set("*.a.example", "127.0.0.2")
			if res := verdict(t, c, addr4(198, 51, 100, 1)); res.Verdict != Pass {
				t.Errorf("%+v", res)
			}
		})
	}
}

// Tests are made while the zone is in use.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, _ := running(t, f, Options{BlockAt: 1}, "a.example")
		time.Sleep(24 * time.Hour)
		if n := f.count("1.0.0.127"); n != 1 {
			t.Errorf("%d tests of an idle zone", n)
		}
		for range 4 {
			c.Begin(t.Context(), client)
			time.Sleep(15 * time.Minute)
		}
		if n := f.count("1.0.0.127"); n < 3 || n > 6 {
			t.Errorf("%d tests in an hour of use", n)
		}
	})
}

// What clients choose does not switch a list off: failures start a test, and that
// decides.
func TestFailures(t *testing.T) {
	for _, how := range []string{"fail", "hang"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("*.100.51.198.a.example", how, "7.113.0.203.a.example", "127.0.0.2")
			c, log := running(t, f, Options{BlockAt: 1}, "a.example+v4")
			time.Sleep(2 * time.Minute)
			n := f.count(neg4)
			for i := range byte(250) {
				verdict(t, c, addr4(198, 51, 100, i))
			}
			if res := verdict(t, c, client); res.Verdict != Block {
				t.Errorf("%s: %+v", how, res)
			}
			if got := f.count(neg4) - n; got < 1 || got > 11 {
				t.Errorf("%s: %d tests", how, got)
			}
			if log.String() != "" {
				t.Errorf("%s", log)
			}
		})
	}
}

// A list that does not answer any more is not asked, by the test after five
// failures, and probed: after 5 s doubling to a minute while there are clients, and
// to 30 minutes while there are none.
func TestOff(t *testing.T) {
	for _, how := range []string{"fail", "hang"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			c, log := running(t, f, Options{BlockAt: 1}, "a.example+v4")
			time.Sleep(10 * time.Second)
			for _, name := range []string{"*.a.example", neg4, pos4} {
				f.set(name, how)
			}
			for i := range byte(10) {
				go verdict(t, c, addr4(198, 51, 100, i))
			}
			time.Sleep(15 * time.Second)
			before := f.count("99.100.51.198")
			if res := verdict(t, c, addr4(198, 51, 100, 99)); res.Took != 0 || f.count("99.100.51.198") != before || fmt.Sprint(res.Silent) != "[a.example]" {
				t.Errorf("%s: %+v", how, res)
			}
			if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "does not answer") {
				t.Errorf("log:\n%s", log)
			}
			gaps := func(hours int, busy bool) (n int) {
				before := f.count(neg4)
				for range hours * 360 {
					if busy {
						c.Begin(t.Context(), client)
					}
					time.Sleep(10 * time.Second)
				}
				return f.count(neg4) - before
			}
			if n := gaps(1, true); n < 50 || n > 140 {
				t.Errorf("%s: %d questions of tests in an hour with clients", how, n)
			}
			if n := gaps(12, false); n < 20 || n > 70 {
				t.Errorf("%s: %d in twelve hours without", how, n)
			}
			f.set("*.a.example", "127.0.0.2")
			f.set("*.127.a.example", "")
			f.set(neg4, "")
			f.set(pos4, "127.0.0.2")
			c.Begin(t.Context(), client) // the first client after hours starts a test
			f.set("*.a.example", "")
			f.set("*.113.0.203.a.example", "127.0.0.2")
			for back := time.Now(); verdict(t, c, client).Verdict != Block; time.Sleep(time.Second) {
				if time.Since(back) > time.Minute {
					t.Fatalf("%s: not back after a minute", how)
				}
			}
		})
	}
}

// The resolver remembers the test entries of a list that is gone: it is off all the
// same, and clients do not wait for it.
func TestGoneBehindCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.a.example", "hang", neg4, "", pos4, "127.0.0.2")
		f.records["*.a.example"] = ""
		c, log := running(t, f, Options{BlockAt: 1}, "a.example+v4")
		time.Sleep(2 * time.Minute)
		f.set("*.a.example", "hang")
		for i := range byte(20) {
			go verdict(t, c, addr4(198, 51, 100, i))
		}
		time.Sleep(30 * time.Second)
		if res := verdict(t, c, client); res.Took != 0 || !strings.Contains(log.String(), "does not answer") {
			t.Errorf("%+v, log %s", res, log)
		}
	})
}

// A list that answers about addresses only, and to nothing else, is trusted.
func TestAnswersNoOtherNames(t *testing.T) {
	for _, how := range []string{"hang", "fail"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("*.a.example", how, neg4, "", pos4, "127.0.0.2", "*.51.198.a.example", "denied", "*.113.0.203.a.example", "127.0.0.2")
			c, _ := running(t, f, Options{BlockAt: 1}, "a.example+v4")
			for i := range byte(120) {
				verdict(t, c, addr4(198, 51, 100, i))
				res := verdict(t, c, addr4(203, 0, 113, i))
				if i > 10 && res.Verdict != Block || res.Took > 2*time.Second {
					t.Fatalf("%s: client %d: %+v", how, i, res)
				}
				time.Sleep(time.Second)
			}
		})
	}
}

// The families are trusted apart: a list that knows IPv4 only works, whatever it
// does with other questions.
func TestFamiliesApart(t *testing.T) {
	for _, how := range []string{"fail", "hang"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("*.113.0.203.a.example", "127.0.0.2")
			f.six = how
			c, log := running(t, f, Options{BlockAt: 1}, "a.example")
			for i := range byte(60) {
				if res := verdict(t, c, addr4(203, 0, 113, i)); res.Verdict != Block || res.Took > 2*time.Second {
					t.Errorf("%s: client %d: %+v", how, i, res)
				}
				time.Sleep(time.Second)
			}
			if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "family=IPv6") || !strings.Contains(log.String(), "+v4") {
				t.Errorf("%s: log %s", how, log)
			}
			if res := verdict(t, c, netip.MustParseAddr("2001:db8::1")); res.Took != 0 {
				t.Errorf("%s: a client of the other family waits %v", how, res.Took)
			}
		})
	}
}

// What is remembered says nothing of the health of a list.
func TestCacheIsNoHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.100.51.198.a.example", "fail", "7.113.0.203.a.example", "127.0.0.2")
		m := metrics.New(metrics.Options{})
		c, _ := running(t, f, Options{BlockAt: 1, Metrics: m}, "a.example+v4")
		synctest.Wait()
		ask := func(a netip.Addr, cached bool) {
			f.mu.Lock()
			f.cached = cached
			f.mu.Unlock()
			verdict(t, c, a)
		}
		for i := range byte(4) {
			ask(addr4(198, 51, 100, i), false)
			for range 10 {
				ask(client, true)                 // an answer
				ask(addr4(198, 51, 100, i), true) // and a failure
			}
		}
		if n := c.zone(0).parts[0].failures; n != 4 {
			t.Errorf("%d failures", n)
		}
		if n := m.Value(`filter_dnsbl_errors_total{kind="failure",zone="a.example"}`); n != 4 {
			t.Errorf("%v errors counted", n)
		}
	})
}

// An answer that comes too late for everybody is a failure.
func TestLateIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, _ := running(t, f, Options{BlockAt: 1, Timeout: time.Second}, "a.example+v4")
		synctest.Wait()
		f.mu.Lock()
		f.delay[".a.example"] = 1500 * ms
		f.mu.Unlock()
		for i := range byte(4) {
			start := time.Now()
			res := verdict(t, c, addr4(203, 0, 113, i))
			if took := time.Since(start); took != time.Second || fmt.Sprint(res.Silent) != "[a.example]" {
				t.Errorf("%+v after %v", res, took)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := c.zone(0).parts[0].failures; n != 4 {
			t.Errorf("%d failures", n)
		}
	})
}

// rbldnsd's 0/0 with !127.0.0.1 passes every test of single names. After 50
// networks in a row, all listed, random entries are asked for.
func TestWorldAround(t *testing.T) {
	for _, six := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			c, log := running(t, f, Options{BlockAt: 5}, "a.example*5")
			time.Sleep(time.Minute)
			synctest.Wait()
			f.around = "127.0.0.2"
			at := func(i int) netip.Addr {
				if six {
					return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i), 15: 1})
				}
				return addr4(198, byte(i>>8), byte(i), 9)
			}
			refused := 0
			for i := range 4000 {
				if verdict(t, c, at(i)).Verdict == Block {
					refused++
				}
				time.Sleep(time.Second)
			}
			if refused < 49 || refused > 51 {
				t.Errorf("%d refused", refused)
			}
			if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "random entries are listed, 16 of 16") {
				t.Errorf("%s", log)
			}
			f.mu.Lock()
			f.around = ""
			f.mu.Unlock()
			f.set("*.113.0.203.a.example", "127.0.0.2")
			time.Sleep(2 * time.Minute)
			verdict(t, c, client)
			time.Sleep(time.Minute)
			if !six && verdict(t, c, client).Verdict != Block {
				t.Error("not back")
			}
		})
	}
}

// A botnet that is listed, from thousands of networks, must not drive a list into
// doubt, even if the random entries are not answered.
func TestBotnet(t *testing.T) {
	for _, how := range []string{"", "hang", "fail"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			c, log := running(t, f, Options{BlockAt: 5}, "a.example*5")
			time.Sleep(time.Minute)
			for i := range 256 {
				f.set(fmt.Sprintf("*.%d.77.a.example", i), "127.0.0.2")
			}
			synctest.Wait()
			f.around = how
			for i := range 3000 {
				if res := verdict(t, c, addr4(77, byte(i>>8), byte(i), 9)); res.Verdict != Block || res.Took > 2*time.Second {
					t.Fatalf("%q: client %d: %+v", how, i, res)
				}
				time.Sleep(100 * ms)
			}
			if log.String() != "" {
				t.Errorf("%s", log)
			}
		})
	}
}

// The random entries are of the family, spread over it, and no two tests ask for
// the same.
func TestSamples(t *testing.T) {
	c := fresh(t, Options{Lists: parse(t, "a.example+ip+from"), Resolver: newFake(), JunkAt: 1})
	for _, p := range c.zone(0).parts {
		first := strings.Join(p.sample(), " ")
		if len(strings.Fields(first)) != samples || first == strings.Join(p.sample(), " ") {
			t.Errorf("%v: %s", p.family, first)
		}
	}
	for i := range samples {
		a := sample4(i)
		if first := int(a.As4()[0]); first < 1+i*222/samples || first > 1+(i+1)*223/samples {
			t.Errorf("sample %d: %v", i, a)
		}
		if a := sample6(i); a.As16()[0] < 0x20 || a.As16()[0] > 0x2f {
			t.Errorf("sample %d: %v", i, a)
		}
	}
}

// Lists are replaced while they are in use. Those that stay are as they were.
func TestUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.113.0.203.a.example", "127.0.0.2", "*.113.0.203.b.example", "127.0.0.2", "*.c.example", "127.0.0.2")
		c, _ := running(t, f, Options{BlockAt: 5}, "a.example*5 c.example*5")
		time.Sleep(10 * time.Second)
		before := c.Begin(t.Context(), client)
		n := f.count(neg4)
		c.Use(parse(t, "a.example*2 b.example*4 c.example*9"))
		time.Sleep(10 * time.Second)
		if res := verdict(t, c, client); res.brief() != "block 6 a.example=2 b.example=4" {
			t.Errorf("after: %s", res.brief())
		}
		if res := before.Verdict(t.Context()); res.brief() != "block 5 a.example=5" {
			t.Errorf("an inquiry of before: %s", res.brief())
		}
		if f.count(neg4) != n {
			t.Error("a list that stays is tested again")
		}
		c.Use(nil)
		if res := verdict(t, c, client); res.brief() != "pass 0" {
			t.Errorf("without lists: %s", res.brief())
		}
	})
}

var _ resolve.Refusal = (*zone)(nil).refusal

// A list whose test entry is taken away and which lists on: what was taken for a
// resolver that filters is not said again and again.
func TestEntryTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.113.0.203.a.example", "127.0.0.2")
		c, log := running(t, f, Options{BlockAt: 1}, "a.example+v4")
		time.Sleep(time.Minute)
		f.set(pos4, "nodata")
		for i := range byte(200) {
			if i > 2 && verdict(t, c, addr4(203, 0, 113, i)).Verdict != Block {
				t.Fatalf("client %d passes", i)
			}
			time.Sleep(10 * time.Second)
		}
		if n := strings.Count(log.String(), "level=WARN"); n > 2 {
			t.Errorf("%d lines: %s", n, log)
		}
	})
}

// What a list is worth: how often it was asked, had a hit, had one that others had
// too, and was the one that decided. Once for each client, however often the verdict
// is asked for.
func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake("*.0.0.10.a.example", "127.0.0.2", "*.51.198.a.example", "127.0.0.2", "*.51.198.b.example", "127.0.0.2", "7.113.0.203.a.example", "127.0.0.2",
			"8.113.0.203.a.example", "127.0.0.2", "8.113.0.203.b.example", "127.0.0.2", "8.113.0.203.c.example", "127.0.0.2", "9.113.0.203.c.example", "127.0.0.2")
		m := metrics.New(metrics.Options{})
		c, _ := running(t, f, Options{BlockAt: 5, Metrics: m}, "a.example*5 b.example*3 c.example*2 w.example*-1")
		time.Sleep(10 * time.Second)
		for _, last := range []byte{7, 8, 9, 10} {
			q := c.Begin(t.Context(), addr4(203, 0, 113, last))
			q.Wait(t.Context())
			for range 3 {
				q.Verdict(t.Context())
			}
		}
		for name, want := range map[string]float64{
			`filter_dnsbl_asked_total{zone="a.example"}`: 4, `filter_dnsbl_asked_total{zone="w.example"}`: 4,
			`filter_dnsbl_hits_total{zone="a.example"}`: 2, `filter_dnsbl_hits_total{zone="b.example"}`: 1, `filter_dnsbl_hits_total{zone="c.example"}`: 2,
			`filter_dnsbl_shared_hits_total{zone="a.example"}`: 1, `filter_dnsbl_shared_hits_total{zone="c.example"}`: 1,
			// Of the client that all list b and c are enough, and so is a.
			`filter_dnsbl_decisive_total{zone="a.example"}`: 1, `filter_dnsbl_decisive_total{zone="b.example"}`: 0, `filter_dnsbl_decisive_total{zone="c.example"}`: 0,
		} {
			if got := m.Value(name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
	})
}
