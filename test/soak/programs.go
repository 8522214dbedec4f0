//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

// programs are the filters in the order of the chain, with the flags that make
// each do all it can. Times are short, so that what expires does so in a run of
// minutes too.
var programs = []struct{ name, flags string }{
	{"filter-dyndns", "-dynamic junk -bogus reject -match dynamic -allowNames proper -allowClients clients -allowSenders senders -header -timeout 2s"},
	{"filter-dnsbl", "-blockAt 6 -junkAt 3 -phase helo -allowClients addresses -allowClients blocked -header " +
		"-minTTL 10s -maxTTL 30s bl@bl.example*5+txt wide@wide.example*3 good@wl.example*-2"},
	{"filter-senderscore", "-blockBelow 5 -junkBelow 40 -slowFactor 100 -slowMax 200ms -scoreHeader -allowlist addresses " +
		"-zone score.example -quota 0 -maxTTL 1m -stateFile " + smtpdtest.State + "/senderscore"},
	{"filter-greylist", "-passTime 2s -greyExp 1m -header -store sqlite:" + smtpdtest.State + "/greylist.db -timeout 2s " +
		"-allowClients clients -allowSenders senders -trap traps -maxGrey 5000"},
}

// metricsFile is the file of a program's counters.
func metricsFile(program string) string { return "state/" + program + ".prom" }

// filters are the programs as smtpd starts them.
func filters() []smtpdtest.Filter {
	var fs []smtpdtest.Filter
	for _, p := range programs {
		flags := strings.Fields(p.flags)
		for i, f := range flags {
			if _, ok := lists[f]; ok {
				flags[i] = smtpdtest.Dir + "/" + f
			}
		}
		fs = append(fs, smtpdtest.Filter{
			Name:    strings.TrimPrefix(p.name, "filter-"),
			Command: p.name + " -metrics " + smtpdtest.Dir + "/" + metricsFile(p.name) + " " + strings.Join(flags, " "),
		})
	}
	return fs
}

// lists are the files of the flags above; each is written again and again, by
// turns with each of its texts.
var lists = map[string][2]string{
	"dynamic":   {"*.extra.hosts.example\n", "*.extra.hosts.example\n([\n*.more.hosts.example\n"},
	"proper":    {"# none\n", "*.customer.hosts.example\n"},
	"addresses": {"192.0.2.0/24\n", "192.0.2.0/24\nnot an address\n" + manyNetworks()},
	"blocked":   {"203.0.113.66 reject\n", "203.0.113.66 reject\n203.0.113.0/26 dunno\n"},
	"clients":   {"192.0.2.0/24\n", "192.0.2.0/24\n*.friend.example\n"},
	"senders":   {"friend.example\n", "friend.example\n@\n"},
	"traps":     {"trap@" + smtpdtest.Domain + "\n", "trap@" + smtpdtest.Domain + "\ntrap2@\n"},
}

func manyNetworks() string {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "44.%d.%d.0/24\n", i>>8, i&255)
	}
	return b.String()
}

// Clients that have a name. All others have none, and none of their names
// exist.
const (
	goodHosts     = 64
	listedHosts   = 64
	dynamicHosts  = 256
	newcomerHosts = 2048
)

func goodHost(i int) string     { return fmt.Sprintf("45.1.0.%d", i%goodHosts+1) }
func listedHost(i int) string   { return fmt.Sprintf("45.2.0.%d", i%listedHosts+1) }
func dynamicHost(i int) string  { return fmt.Sprintf("45.3.0.%d", i%dynamicHosts) }
func newcomerHost(i int) string { i %= newcomerHosts; return fmt.Sprintf("45.%d.%d.9", 16+i>>8, i&255) }

// zone is what the DNS says in fine weather. smtpd asks for reverse names and
// for those below hosts.example; these come soon in any weather, since smtpd
// waits over a minute for one that does not come.
var zone = func() string {
	var b strings.Builder
	for _, z := range []string{"bl.example", "wide.example", "wl.example", "score.example", "hosts.example", "senders.example", "in-addr.arpa", "ip6.arpa"} {
		fmt.Fprintf(&b, "%s SOA ns.%s. root.%s. 1 3600 600 86400 10\n", z, z, z)
	}
	reversed := func(addr, zone string) string {
		return strings.TrimSuffix(smtpdtest.Reverse(addr), "in-addr.arpa") + zone
	}
	for i := range goodHosts {
		a := goodHost(i)
		b.WriteString(smtpdtest.Host(a, fmt.Sprintf("mail%d.hosts.example", i)))
		fmt.Fprintf(&b, "%s A 127.0.4.%d\n", reversed(a, "score.example"), 80+i%20)
		fmt.Fprintf(&b, "%s 10 A 127.0.0.2\n", reversed(a, "wl.example"))
	}
	for i := range listedHosts {
		a := listedHost(i)
		b.WriteString(smtpdtest.Host(a, fmt.Sprintf("out%d.hosts.example", i)))
		fmt.Fprintf(&b, "%s A 127.0.4.%d\n", reversed(a, "score.example"), i)
		fmt.Fprintf(&b, "%s 10 A 127.0.0.2\n", reversed(a, "wide.example"))
		if i%2 == 0 {
			fmt.Fprintf(&b, "%s 10 A 127.0.0.2\n%[1]s 10 TXT \"listed for this and that\"\n", reversed(a, "bl.example"))
		}
	}
	for i := range dynamicHosts {
		a := dynamicHost(i)
		b.WriteString(smtpdtest.Host(a, strings.ReplaceAll(a, ".", "-")+".dip.pool.hosts.example"))
	}
	for i := range newcomerHosts {
		b.WriteString(smtpdtest.Host(newcomerHost(i), fmt.Sprintf("mx%d.hosts.example", i)))
	}
	for _, z := range []string{"bl.example", "wide.example", "wl.example"} {
		fmt.Fprintf(&b, "2.0.0.127.%s 10 A 127.0.0.2\n", z) // RFC 5782 section 5
	}
	b.WriteString("*.senders.example 10 TXT \"v=spf1 ip4:45.0.0.0/8 -all\"\n")
	b.WriteString("*.strict.senders.example 10 TXT \"v=spf1 a mx include:more.senders.example -all\"\n")
	b.WriteString("*.silent.example drop\n")
	return b.String()
}()

// A weather is what the DNS adds to zone for a part of each cycle.
type weather struct {
	name  string
	until float64 // part of the cycle
	lines string
}

var weathers = []weather{
	{"fine", 0.25, ""},
	{"slow", 0.45, "*.bl.example delay 700ms\n*.wide.example delay 400ms\n*.wl.example delay 50ms\n*.score.example delay 1s\n" +
		"*.senders.example delay 300ms\n*.in-addr.arpa delay 20ms\n"},
	{"dead", 0.60, "*.bl.example drop\n*.wide.example drop\n*.wl.example drop\n*.score.example drop\n*.senders.example drop\n"},
	{"lying", 0.80, "*.bl.example A 127.0.0.2\n*.wide.example wrongid\n*.wl.example garbage\n*.score.example A 127.0.0.1\n" +
		"*.a.senders.example lame\n*.b.senders.example truncate\n*.c.senders.example tcpdrop\n*.d.senders.example noise\n*.senders.example servfail\n"},
	{"fine", 1, ""},
}

// What else goes wrong in each cycle, as parts of it.
const (
	diskFullFrom = 0.35
	diskFullTo   = 0.70
	rewrites     = 8 // of each list
	hangups      = 4 // SIGHUP to each program
)

// stateSize is that of the small file system for records.
const stateSize = "32m"

// cycleOf returns how long a cycle lasts in a run, so that each third of the
// run has as many as the others.
func cycleOf(run time.Duration) time.Duration {
	third := run / 3
	return third / max(1, third.Round(4*time.Minute)/(4*time.Minute))
}

func anyAddress(n int) string {
	return netip.AddrFrom4([4]byte{46, byte(n >> 16), byte(n >> 8), byte(n)}).String()
}
