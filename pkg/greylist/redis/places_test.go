package redis

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/greylist"
)

// Two places with a store each, and senders that try at either by chance, as real
// ones try again: all are in, later than with one store. The times are in the log
// of -v.
func TestTwoPlaces(t *testing.T) {
	text, err := os.ReadFile("../testdata/retry-schedules.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var schedules [][]time.Duration
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(line, "#") || len(f) != 3 {
			continue
		}
		tries := []time.Duration{0}
		for _, word := range strings.Fields(f[2]) {
			var min, sec int
			if n, _ := fmt.Sscanf(word, "%d:%d", &min, &sec); n == 2 {
				tries = append(tries, time.Duration(min*60+sec)*time.Second)
			}
		}
		schedules = append(schedules, tries)
	}
	r := rand.New(rand.NewPCG(1, 2))
	delays := func(places int) (all []time.Duration) {
		var at []*greylist.Greylist
		for range places {
			at = append(at, greylist.New(greylist.Options{Secret: secretFunc}))
		}
		for n := range 5000 {
			tries := schedules[n%len(schedules)]
			for _, after := range tries {
				d, err := at[r.IntN(places)].Decide(t.Context(), attempt(n, n, after))
				if err != nil {
					t.Fatal(err)
				}
				if d.Accept {
					all = append(all, after)
					break
				}
			}
		}
		slices.Sort(all)
		return all
	}
	var last time.Duration
	for places := range 2 {
		d := delays(places + 1)
		if len(d) != 5000 || d[len(d)/2] < last {
			t.Errorf("%d of 5000 are in, half of them within %s, %s before", len(d), d[len(d)/2], last)
		}
		last = d[len(d)/2]
		t.Logf("places: %d, half of the mail within %s, nine of ten within %s", places+1, d[len(d)/2], d[len(d)*9/10])
	}
}
