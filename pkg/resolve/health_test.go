package resolve

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func refuses(addrs []netip.Addr) bool { return len(addrs) > 0 && addrs[0] == two }

// That the second server is refused is no answer while the first is up: it is
// waited for.
func TestRefusalOfLater(t *testing.T) {
	serves := func(after time.Duration, addr netip.Addr) *fake { return &fake{answer: says(after, addr)} }
	servfail := &fake{answer: failsWith(ms, rcodeError("server answers SERVFAIL"))}
	silent := &fake{answer: says(never, one)}
	for _, tt := range []struct {
		name          string
		first, second *fake
		down          bool // the first one is known to be
		want          string
		took          time.Duration
	}{
		{"the first is slow", serves(900*ms, one), serves(ms, two), false, "[192.0.2.1] none", 900 * ms},
		{"the second too", serves(900*ms, one), serves(300*ms, two), false, "[192.0.2.1] none", 900 * ms},
		{"the first is refused", serves(ms, two), serves(ms, one), false, "[192.0.2.2] none", ms},
		{"the second is not", serves(900*ms, two), serves(ms, one), false, "[192.0.2.1] none", 401 * ms},
		{"the first fails", servfail, serves(ms, two), false, "[] temporary", 2 * ms},
		{"the first is silent", silent, serves(ms, two), false, "[] timeout", 2 * time.Second},
		{"the first is down", silent, serves(ms, two), true, "[192.0.2.2] none", ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := withFakes(t, Options{}, tt.first, tt.second)
				if tt.down {
					s := r.conf.Load().servers[0]
					s.down, s.probe = true, time.Now().Add(time.Hour)
				}
				start := time.Now()
				addrs, err := r.FreshA(t.Context(), "x.example", refuses)
				if got := fmt.Sprint(addrs, " ", kind(err)); got != tt.want || time.Since(start) != tt.took {
					t.Errorf("%s after %v, want %s after %v", got, time.Since(start), tt.want, tt.took)
				}
			})
		})
	}
}

// Names for which there is no answer do not make a server one that is down: anybody
// can have such names.
func TestNamesAreNotServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own := &fake{answer: func(k key, _ int) (time.Duration, *answer, error) {
			if strings.HasPrefix(k.name, "evil") {
				return never, nil, nil
			}
			return ms, &answer{addrs: []netip.Addr{one}}, nil
		}}
		r := withFakes(t, Options{}, own, &fake{answer: says(ms, two)})
		for i := range 50 {
			go r.FreshA(context.Background(), fmt.Sprint("evil", i, ".example"), refuses)
			time.Sleep(10 * ms)
			if addrs, err := r.FreshA(t.Context(), "good.example", refuses); err != nil || addrs[0] != one {
				t.Fatalf("%v, %v", addrs, err)
			}
			time.Sleep(200 * ms)
		}
		if r.conf.Load().servers[0].down {
			t.Error("the server is down")
		}
	})
}

// What the control questions say, and how often they are asked.
func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		name          string
		root, invalid string
		want          Trouble
	}{
		{"well", "ns", "", Well},
		{"a forwarder that knows no root", "nodata", "", Well},
		{"SERVFAIL", "servfail", "servfail", Down},
		{"silent", "drop", "drop", Down},
		{"remembers invalid.", "servfail", "", Down},
		{"remembers the root", "ns", "drop", Down},
		{"invents", "ns", "addr", Invents},
		{"invents only", "servfail", "addr", Invents},
		{"denies", "", "", Denies},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex // of what the goroutines of the resolver use, too
				root, invalid, asked := tt.root, tt.invalid, 0
				questions := func() int {
					mu.Lock()
					defer mu.Unlock()
					return asked
				}
				r := InMemory(Options{}, func(name, typ string) Reply {
					mu.Lock()
					defer mu.Unlock()
					say := invalid
					if name == "" {
						asked++
						say = root
					} else if !strings.HasSuffix(name, ".invalid") {
						t.Errorf("asked for %s", name)
					}
					switch say {
					case "ns":
						return Reply{Names: []string{"a.root-servers.net."}, After: ms}
					case "addr":
						return Reply{Addrs: []netip.Addr{one}, After: ms}
					}
					return Reply{Err: say, After: ms}
				})
				defer r.Close()
				var log bytes.Buffer
				var over []Trouble
				h := NewHealth(r, slog.New(slog.NewTextHandler(&log, nil)), func(t Trouble) {
					mu.Lock()
					defer mu.Unlock()
					over = append(over, t)
				})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan bool)
				go func() { h.Run(ctx); close(done) }()
				defer func() { cancel(); <-done }()
				for range 10 { // they share the questions
					go h.Judge(ctx)
				}
				if got := h.Judge(ctx); got != tt.want {
					t.Errorf("%v, want %v", got, tt.want)
				}
				if n := questions(); n > 2 {
					t.Errorf("%d questions at a time", n)
				}
				if tt.want == Well {
					return
				}
				h.Blame(tt.want, nil)
				h.Blame(tt.want, nil)
				rate := func(used bool) int {
					before := questions()
					for range 600 {
						if used {
							h.Use()
						}
						time.Sleep(time.Second)
					}
					return questions() - before
				}
				if n := rate(true); n < 100 || n > 610 {
					t.Errorf("%d questions in 10 minutes with clients", n)
				}
				time.Sleep(2 * time.Minute)
				if n := rate(false); n < 9 || n > 21 {
					t.Errorf("%d questions in 10 minutes without", n)
				}
				mu.Lock()
				root, invalid = "ns", ""
				mu.Unlock()
				h.Use()
				time.Sleep(5 * time.Second)
				if h.Trouble() != Well || len(over) != 1 || over[0] != tt.want {
					t.Errorf("5 s later %v, %v", h.Trouble(), over)
				}
				if n := strings.Count(log.String(), "level=WARN"); n != 1 {
					t.Errorf("%d warnings: %s", n, &log)
				}
			})
		})
	}
}

func TestPublic(t *testing.T) {
	for addr, want := range map[string]bool{"8.8.8.8": true, "1.1.1.1": true, "9.9.9.9": true, "2606:4700:4700::1111": true, "127.0.0.1": false, "192.0.2.53": false} {
		if got := Public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
