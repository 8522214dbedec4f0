//go:build linux

package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	checks "opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/test/smtpdtest"
)

// postscreenValues are values of postscreen_dnsbl_sites in the forms that
// postconf(5) and the howto of postscreen have: weights, filters, octets with
// ranges and sets, several entries of a zone, negative weights, over several lines,
// with commas or without.
var postscreenValues = []string{
	"zen.spamhaus.org*2 bl.spamcop.net*1 b.barracudacentral.org*1",
	"zen.spamhaus.org*3, bl.spamcop.net, psbl.surriel.com*2",
	"zen.spamhaus.org=127.0.0.[2..11]*3 list.dnswl.org=127.0.[0..255].[1..3]*-2",
	"zen.spamhaus.org=127.0.0.[10;11]*8\n\tzen.spamhaus.org=127.0.0.[4..7]*6\n\tzen.spamhaus.org=127.0.0.3*4\n\tzen.spamhaus.org=127.0.0.2*3",
	"list.dnswl.org=127.0.[0..255].0*-2, list.dnswl.org=127.0.[0..255].1*-3,\n list.dnswl.org=127.0.[0..255].[2..3]*-4 zen.spamhaus.org*3",
	"list.dnswl.org*-5 zen.spamhaus.org=127.0.0.[2..8]*2",
	"bl.mailspike.net=127.0.0.[10..14]*3 bl.mailspike.net=127.0.0.2*5 wl.mailspike.net=127.0.0.[17..20]*-2",
	"wl.mailspike.net*-3 bl.mailspike.net*3",
	"bl.private.example=127.0.[0..1;4].[1;3;5..9]*7 zen.spamhaus.org",
	"bl.private.example=127.[0..255].[0..255].[0..255]*2 bl.private.example=127.0.0.2 swl.spamhaus.org*-4",
	"hostkarma.junkemailfilter.com=127.0.0.2*2 hostkarma.junkemailfilter.com=127.0.0.4*1 hostkarma.junkemailfilter.com=127.0.1.2*1 hostkarma.junkemailfilter.com=127.0.0.1*-3",
	"b.barracudacentral.org=127.0.0.2*7,bl.spamcop.net*2,psbl.surriel.com*2,zen.spamhaus.org*-1",
	"ZEN.Spamhaus.ORG*3 zen.spamhaus.org*4",
}

// Score by score the same as a real postscreen, asked on the same zones.
func TestPostscreenScores(t *testing.T) {
	if err := smtpdtest.PostfixReady(); err != nil || !smtpdtest.Inside() {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("postfix is missing, or these are not the tests' own name spaces: run test/install.sh as root")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	codes := map[string][]string{
		"zen.spamhaus.org":              {"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.10", "127.0.0.11"},
		"list.dnswl.org":                {"127.0.5.0", "127.0.9.1", "127.0.15.2", "127.0.2.3"},
		"bl.mailspike.net":              {"127.0.0.2", "127.0.0.10", "127.0.0.12"},
		"wl.mailspike.net":              {"127.0.0.18", "127.0.0.20"},
		"bl.private.example":            {"127.0.0.2", "127.0.1.3", "127.0.4.7", "127.5.6.9", "127.0.0.1"},
		"hostkarma.junkemailfilter.com": {"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.1.2"},
		"bl.spamcop.net":                {"127.0.0.2"}, "b.barracudacentral.org": {"127.0.0.2"}, "psbl.surriel.com": {"127.0.0.2"},
		"swl.spamhaus.org": {"127.0.2.2"},
	}
	// About these no IPv6 address is asked: they list none.
	only4 := map[string]bool{"bl.spamcop.net": true, "b.barracudacentral.org": true, "bl.mailspike.net": true, "wl.mailspike.net": true, "hostkarma.junkemailfilter.com": true}
	var clients []netip.Addr
	for i := range 24 {
		clients = append(clients, netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}))
	}
	for i := range 6 {
		clients = append(clients, netip.MustParseAddr(fmt.Sprintf("2001:db8:77::%x", i+1)))
	}
	zones := []listZone{
		{smtpdtest.ListedAll, "ip4trie", "0.0.0.0/0 :127.0.0.2:\n"},
		{smtpdtest.ListedAll, "ip6trie", "::/0 :127.0.0.2:\n"},
	}
	for _, zone := range slices.Sorted(maps.Keys(codes)) {
		four, six := "127.0.0.2 :127.0.0.2:\n", ""
		for _, c := range clients {
			if rnd.IntN(2) == 0 {
				continue
			}
			code := codes[zone][rnd.IntN(len(codes[zone]))]
			if c.Is4() {
				four += fmt.Sprintf("%s :%s:\n", c, code)
				if rnd.IntN(4) == 0 { // several answers
					four += fmt.Sprintf("%s :%s:\n", c, codes[zone][rnd.IntN(len(codes[zone]))])
				}
			} else if !only4[zone] {
				six += fmt.Sprintf("%s :%s:\n", c, code)
			}
		}
		zones = append(zones, listZone{zone, "ip4set", four}, listZone{zone, "ip6trie", six})
	}
	serveZones(t, "127.0.0.1:53", zones)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(conf, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount("/etc/resolv.conf", syscall.MNT_DETACH) })

	r := resolve.New(resolve.Options{Conf: conf})
	defer r.Close()
	for _, value := range postscreenValues {
		var theirs map[netip.Addr]int
		var wait time.Duration
		err := smtpdtest.ErrBusy
		for pace := 50 * time.Millisecond; err == smtpdtest.ErrBusy && pace < 10*time.Second; pace *= 3 {
			theirs, wait, err = smtpdtest.Postscreen(value, clients, pace)
		}
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		lists, errs := checks.Parse(value)
		if errs != nil {
			t.Errorf("%s: %v", value, errs)
			continue
		}
		c := checks.New(checks.Options{Lists: lists, BlockAt: 3, Timeout: 20 * time.Second, Resolver: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { c.Run(ctx); close(done) }()
		c.Test(t.Context())
		var took time.Duration
		differ := 0
		for _, a := range clients {
			q := c.Begin(ctx, a)
			res := q.Verdict(ctx)
			took = max(took, res.Took)
			q.Wait(ctx)
			if ours := q.Now().Score; ours != theirs[a] {
				differ++
				t.Errorf("%s\n%v: %d, postscreen says %d", value, a, ours, theirs[a])
			}
		}
		cancel()
		<-done
		t.Logf("%d clients, %d scores differ; the last verdict after %v, postscreen's after %v: %s", len(clients), differ,
			took.Round(10*time.Microsecond), wait.Round(time.Millisecond), strings.Join(strings.Fields(value), " "))
	}
}
