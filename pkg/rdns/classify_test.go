package rdns

import (
	"bufio"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

type sample struct {
	label string
	addr  netip.Addr
	name  string
}

// samples reads lines "label TAB address TAB name TAB note".
func samples(t testing.TB, file string) []sample {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []sample
	for in := bufio.NewScanner(f); in.Scan(); {
		if strings.HasPrefix(in.Text(), "#") || in.Text() == "" {
			continue
		}
		p := strings.Split(in.Text(), "\t")
		var addr netip.Addr
		if p[1] != "-" {
			if addr, err = netip.ParseAddr(p[1]); err != nil {
				t.Fatalf("%s: %q: %v", file, in.Text(), err)
			}
		}
		all = append(all, sample{p[0], addr, p[2]})
	}
	return all
}

// flagged tells whether a name is taken for an access line.
func flagged(c Class) bool { return c == Dynamic || c == Generic || c == Static }

// testSamples wants the share of the dynamic names flagged, and no legit name anything but proper.
func testSamples(t *testing.T, file string, share float64) {
	dyn, hit := 0, 0
	for _, s := range samples(t, file) {
		v := Classify(s.addr, s.name)
		switch s.label {
		case "dynamic":
			dyn++
			if flagged(v.Class) {
				hit++
			} else {
				t.Logf("missed: %s %s: %s (%s)", s.addr, s.name, v.Class, v.Evidence)
			}
		case "legit":
			if v.Class != Proper {
				t.Errorf("%s %s: %s (%s), want proper", s.addr, s.name, v.Class, v.Evidence)
			}
		default:
			t.Logf("%s: %s %s: %s (%s)", s.label, s.addr, s.name, v.Class, v.Evidence)
		}
	}
	t.Logf("%s: %d of %d dynamic names flagged", file, hit, dyn)
	if float64(hit) < share*float64(dyn) {
		t.Errorf("%d of %d dynamic names flagged, want %.0f %%", hit, dyn, 100*share)
	}
}

func TestLabelled(t *testing.T) { testSamples(t, "testdata/rdns-labelled.tsv", 0.94) }

func TestSchemes(t *testing.T) { testSamples(t, "testdata/schemes.tsv", 0.97) }

// The shares of names from public mail and logs. They may only rise.
func TestField(t *testing.T) {
	count := make(map[string]map[Class]int)
	total := make(map[string]int)
	for _, s := range samples(t, "testdata/rdns-field.tsv") {
		v := Classify(s.addr, s.name)
		if count[s.label] == nil {
			count[s.label] = make(map[Class]int)
		}
		count[s.label][v.Class]++
		total[s.label]++
		if s.label == "legit" && v.Class != Proper {
			t.Errorf("%s %s: %s (%s), want proper", s.addr, s.name, v.Class, v.Evidence)
		}
	}
	junked := func(label string) int { return count[label][Dynamic] + count[label][Bogus] }
	lines := total["dynamic"] + total["generic"]
	found := lines - count["dynamic"][Proper] - count["generic"][Proper]
	// Nine of the rented machines have a numeric top-level domain, which is bogus.
	for _, tt := range []struct {
		what        string
		n, of       int
		least, most float64 // percent
	}{
		{"access lines found", found, lines, 93, 100},
		{"dynamic lines junked", junked("dynamic"), total["dynamic"], 75, 100},
		{"all access lines junked", junked("dynamic") + junked("generic"), lines, 60, 100},
		{"rented machines taken for access lines", count["hosting"][Dynamic], total["hosting"], 0, 0},
		{"rented machines junked", junked("hosting"), total["hosting"], 0, 3.8},
	} {
		share := 100 * float64(tt.n) / float64(tt.of)
		t.Logf("%s: %d of %d, %.1f %%", tt.what, tt.n, tt.of, share)
		if share < tt.least || share > tt.most {
			t.Errorf("%s: %.1f %%, want %v to %v", tt.what, share, tt.least, tt.most)
		}
	}
}

// Names that hosting companies give their machines are never junked, whatever
// words their random part seems to hold. An unknown company counts as well.
func TestRandomNames(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func(alphabet string) func(n int) string {
		return func(n int) string {
			b := make([]byte, n)
			for i := range b {
				b[i] = alphabet[rnd.IntN(len(alphabet))]
			}
			return string(b)
		}
	}
	dec, hex := text("0123456789"), text("0123456789abcdef")
	letters, alnum := text("abcdefghijklmnopqrstuvwxyz"), text("abcdefghijklmnopqrstuvwxyz0123456789")
	uuid := func() string {
		return strings.Join([]string{hex(8), hex(4), "4" + hex(3), "a" + hex(3), hex(12)}, "-")
	}
	dashed := func(a netip.Addr) string { return strings.ReplaceAll(a.String(), ".", "-") }
	reversed := func(a netip.Addr) string {
		p := strings.Split(a.String(), ".")
		slices.Reverse(p)
		return strings.Join(p, ".")
	}
	schemes := []func(a netip.Addr) string{
		func(netip.Addr) string { return "vps-" + hex(8) + ".vps.ovh.net" },
		func(netip.Addr) string { return "vps-" + hex(8) + ".vps.ovh.ca" },
		func(netip.Addr) string { return "vps" + dec(6) + ".ovh.net" },
		func(a netip.Addr) string { return "ns" + dec(6) + ".ip-" + dashed(a)[:5] + ".eu" },
		func(netip.Addr) string { return uuid() + ".pub.instances.scw.cloud" },
		func(a netip.Addr) string { return dashed(a) + ".rev.poneytelecom.eu" },
		func(a netip.Addr) string { return "ec2-" + dashed(a) + ".eu-west-1.compute.amazonaws.com" },
		func(a netip.Addr) string { return "ec2-" + dashed(a) + ".compute-1.amazonaws.com" },
		func(netip.Addr) string { return "a" + hex(16) + ".awsglobalaccelerator.com" },
		func(a netip.Addr) string { return "static." + reversed(a) + ".clients.your-server.de" },
		func(a netip.Addr) string { return "li" + dec(4) + "-" + dec(2) + ".members.linode.com" },
		func(a netip.Addr) string { return dashed(a) + ".ip.linodeusercontent.com" },
		func(netip.Addr) string { return dec(6) + "-" + letters(2) + dec(5) + ".tmweb.ru" },
		func(netip.Addr) string { return "vmi" + dec(7) + ".contaboserver.net" },
		func(a netip.Addr) string { return "ip" + dashed(a) + ".pbiaas.com" },
		func(netip.Addr) string { return "s" + dec(8) + ".onlinehome-server.info" },
		func(a netip.Addr) string { return reversed(a) + ".bc.googleusercontent.com" },
		func(netip.Addr) string { return "vm-" + alnum(10) + ".westeurope.cloudapp.azure.com" },
		func(netip.Addr) string {
			return "ubuntu-s-1vcpu-1gb-" + letters(3) + "1-" + dec(2) + "." + alnum(7) + ".example"
		},
		func(netip.Addr) string { return "v2202" + dec(14) + ".happysrv.de" },
		func(netip.Addr) string { return "ov-" + hex(6) + ".infomaniak.ch" },
		func(a netip.Addr) string { return "ip-" + dashed(a) + ".ip.secureserver.net" },
		func(a netip.Addr) string { return dashed(a) + ".unifiedlayer.com" },
		func(a netip.Addr) string { return reversed(a) + "-static.reverse.softlayer.com" },
		func(a netip.Addr) string { return a.String() + ".choopa.net" },
		func(a netip.Addr) string { return "host" + reversed(a) + ".serverdedicati.aruba.it" },

		func(netip.Addr) string { return dec(6) + "-" + letters(2) + dec(5) + ".example.net" },
		func(netip.Addr) string { return letters(2) + "-" + dec(6) + ".example.net" },
		func(netip.Addr) string { return letters(3) + "-" + dec(5) + ".example.net" },
		func(netip.Addr) string { return letters(3) + dec(5) + ".example.net" },
		func(netip.Addr) string { return "node-" + hex(8) + ".cluster.example.com" },
		func(netip.Addr) string { return "app-" + hex(12) + ".example.com" },
		func(netip.Addr) string { return "i-" + hex(17) + ".example.com" },
		func(netip.Addr) string { return uuid() + ".example.net" },
		func(netip.Addr) string { return alnum(4) + "-" + alnum(4) + "-" + alnum(4) + ".example.net" },
		func(netip.Addr) string { return alnum(6) + "." + hex(6) + ".example.net" },
		func(a netip.Addr) string { return "ip-" + dashed(a) + "-" + hex(8) + ".example.net" },
	}
	for n := 6; n <= 32; n++ {
		schemes = append(schemes, func(netip.Addr) string { return hex(n) + ".example.net" })
		schemes = append(schemes, func(netip.Addr) string { return alnum(n) + ".example.net" })
	}
	n := 40000
	if testing.Short() {
		n = 2000
	}
	for _, scheme := range schemes {
		for range n {
			v := rnd.Uint32()
			addr := netip.AddrFrom4([4]byte{byte(v>>24)%100 + 50, byte(v >> 16), byte(v >> 8), byte(v)})
			name := scheme(addr)
			if v := Classify(addr, name); v.Class == Dynamic || v.Class == Bogus {
				t.Errorf("%s %s: %s (%s)", addr, name, v.Class, v.Evidence)
			}
		}
	}
}

// One line for each rule.
func TestClassify(t *testing.T) {
	const (
		v4 = "198.51.100.7"
		v6 = "2001:db8:12:3400::a0b:7"
	)
	tests := []struct {
		addr, name string
		class      Class
		evidence   string
	}{
		// Names that are none.
		{v4, "", None, "no name"},
		{v4, ".", None, "no name"},
		{v4, Unknown, None, "no name"},
		{v4, "..", Bogus, "not a host name"},
		{v4, "mail..example.org", Bogus, "not a host name"},
		{v4, ".example.org", Bogus, "not a host name"},
		{v4, "mail.ex ample.org", Bogus, "not a host name"},
		{v4, "m\xffil.example.org", Bogus, "not a host name"},
		{v4, "\u212a.example.org", Bogus, "not a host name"},
		{v4, "mail.example.org|pass", Bogus, "not a host name"},
		{v4, strings.Repeat("a", 64) + ".example", Bogus, "not a host name"},
		{v4, strings.Repeat("a", 63) + ".example", Proper, ""},
		{v4, strings.Repeat("a.", 126) + "a", Proper, ""},
		{v4, strings.Repeat("a.", 127) + "a", Bogus, "too long"},
		{v4, "localhost", Bogus, "localhost"},
		{v4, "LocalHost.LocalDomain.", Bogus, "localhost"},
		{v4, "undefined.hostname.localhost", Bogus, "localhost"},
		{v4, "mail", Bogus, "one label"},
		{v4, "7.100.51.198.in-addr.arpa", Bogus, "a reverse zone"},
		{v6, "1.0.0.2.ip6.arpa", Bogus, "a reverse zone"},
		{v4, v4, Bogus, "an address"},
		{v4, "node.28", Bogus, "a numeric top-level domain"},
		{v4, "a.b.4729", Bogus, "a numeric top-level domain"},
		{v4, "1.2.3", Bogus, "a numeric top-level domain"},
		{v4, "256.1.2.3", Bogus, "a numeric top-level domain"},
		{v4, "28", Bogus, "one label"},

		// A zone file without the last dot of a name.
		{v4, "mail.example.org.100.51.198.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "Example.ORG.7.100.51.198.in-addr.arpa.", Mismatch, "a name before its reverse zone"},
		{v4, "mail.example.org.51.198.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "mail.example.org.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "mail.example.org.0-63.100.51.198.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "mail.example.org.0/26.100.51.198.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "mail.xn--bcher-kva.xn--p1ai.100.51.198.in-addr.arpa", Mismatch, "a name before its reverse zone"},
		{v4, "h198-51-100-7.dyn.example.net.100.51.198.in-addr.arpa", Dynamic, "embed=4 dec; word=dyn"},
		{v4, "mail.100.51.198.in-addr.arpa", Bogus, "a reverse zone"},
		{v4, "7.0-63.100.51.198.in-addr.arpa", Bogus, "a reverse zone"},
		{v4, "localhost.localdomain.100.51.198.in-addr.arpa", Bogus, "localhost"},
		{v4, "mail.example.org.2.0.192.in-addr.arpa", Bogus, "a reverse zone"},
		{v4, "mail.example.org.8.b.d.0.1.0.0.2.ip6.arpa", Bogus, "a reverse zone"},
		{v6, "mail.example.org.8.b.d.0.1.0.0.2.ip6.arpa", Mismatch, "a name before its reverse zone"},
		{v6, "mail.example.org.7.100.51.198.in-addr.arpa", Bogus, "a reverse zone"},
		{v6, v6, Bogus, "not a host name"},
		{v4, "[198.51.100.7]", Bogus, "not a host name"},
		{v4, "mail_1.example.org", Proper, ""},

		// Forms of the address.
		{v4, "198.51.100.7.example.net", Generic, "embed=4 dec"},
		{v4, "H198x051_100-007.example.net", Generic, "embed=4 dec"},
		{v4, "7-100-51-198.example.net", Generic, "embed=4 dec"},
		{v4, "h51-198-7-100.example.net", Generic, "embed=4 dec"},
		{v4, "7.red-198-51-100.example.net", Generic, "embed=4 dec"},
		{v4, "198051100007.example.net", Generic, "embed=4 dec"},
		{v4, "198051-100007.example.net", Generic, "embed=4 dec"},
		{v4, "x051100007.example.net", Generic, "embed=3 dec"},
		{v4, "c-51-100-7.example.net", Generic, "embed=3 dec"},
		{v4, "c-7-100-51.example.net", Generic, "embed=3 dec"},
		{v4, "h7.198-51.example.net", Generic, "embed=3 dec"},
		{"198.1.2.3", "c-1-2-3.example.net", Proper, ""},
		{v4, "h198511007.example.net", Generic, "embed=4 run"},
		{v4, "h710051198.example.net", Generic, "embed=4 run"},
		{v4, "h198-51-1007.example.net", Generic, "embed=4 run"},
		{"198.51.100.77", "h1985110077x.example.net", Generic, "embed=4 run"},
		{"198.51.100.77", "h5110077.example.net", Generic, "embed=3 run"},
		{v4, "t-3325256711.example.net", Generic, "embed=4 int"},
		{v4, "c6336407.example.net", Generic, "embed=4 hex"},
		{v4, "pC6336407.example.net", Generic, "embed=4 hex"},
		{v4, "e-076433c6.example.net", Generic, "embed=4 hex"},
		{v4, "c6.33.6407.example.net", Generic, "embed=4 hex"},
		{"2.247.249.20", "x2f7f914.example.net", Generic, "embed=4 hex"},
		{v4, "g-c63364-7.example.net", Generic, "embed=3 hex"},
		{v4, "p336407.example.net", Generic, "embed=3 hex"},
		{v4, "user-3336p07.example.net", Dynamic, "embed=4 b32; word=user"},
		{v4, "u-1izrshz.example.net", Generic, "embed=4 b32"},
		{"78.128.57.64", "cs78128057.example.net", Generic, "embed=3 run"},
		{v4, "h100-7.example.net", Proper, ""},
		{v4, "h100-7.adsl.example.net", Dynamic, "embed=2 dec; word=adsl"},
		{v4, "h100007.adsl.example.net", Dynamic, "embed=2 dec; word=adsl"},
		{v4, "h1007.adsl.example.net", Dynamic, "embed=2 run; word=adsl"},
		{v4, "h100-7.cust.example.net", Dynamic, "embed=2 dec; word=cust"},
		{v4, "h100.s7.cust.example.net", Proper, ""},
		{v4, "h100-7.pool.example.net", Generic, "embed=2 dec; word=pool"},
		{v4, "h100x7.pool.example.net", Generic, "embed=2 dec; word=pool"},
		{v4, "pool100.h7.example.net", Proper, ""},
		{v4, "h1007.pool.example.net", Proper, ""},
		{v4, "h100-7.pool12.somebusiness.example", Generic, "embed=2 dec; word=pool"},
		{v4, "ip-100-7.example.net", Generic, "embed=2 dec; word=ip"},
		{v4, "ip-100-7.vpn.example.net", Proper, "exonerated=vpn"},
		{v4, "ip-100-7.bounce.example.net", Proper, "exonerated=bounce"},
		{v4, "vm-100-7.pool.example.net", Hosting, "embed=2 dec; word=vm"},
		{v4, "host-100-7.example.net", Proper, ""},
		{v4, "host-100-7.sometelecom.example", Generic, "embed=2 dec; company=telecom"},
		{v4, "vms100007pub.sometelecom.example", Proper, ""},
		{v4, "cs100007.sometelecom.example", Generic, "embed=2 dec; company=telecom"},
		{v4, "100-7.north.example.net", Generic, "embed=2 dec"},
		{v4, "7.100.example.net", Generic, "embed=2 dec"},
		{v4, "h100.s7.static.example.net", Proper, ""},
		{v4, "h100-7.static.example.net", Static, "embed=2 dec; word=static"},
		{v4, "mx-1-2-3-4.example.net", Proper, ""},
		{v4, "h-192-0-2-33.adsl.example.net", Dynamic, "embed=other; word=adsl"},
		{v4, "deadbeef.example.net", Proper, ""},
		{v6, "20010db80012340000000000" + "0a0b0007.example.net", Generic, "embed=16 hex"},
		{v6, "2001-0DB8-0012-3400-0000-0000-0A0B-0007.example.net", Generic, "embed=16 hex"},
		{v6, "2001-db8-12-3400-0-0-a0b-7.example.net", Generic, "embed=16 hex"},
		{v6, "2001-db8-12-3400--a0b-7.example.net", Generic, "embed=16 hex"},
		{v6, "7.0.0.0.b.0.a.0.0.0.0.0.0.0.0.0.0.0.4.3.2.1.0.0.8.b.d.0.1.0.0.2.example.net", Generic, "embed=16 hex"},
		{v6, "2001-db8-12-3400.example.net", Generic, "embed=8 hex"},
		{v6, "20010db800123400.example.net", Generic, "embed=8 hex"},
		{v6, "2001-db8-12.example.net", Proper, ""},
		{v6, "2001-db8-12.adsl.example.net", Dynamic, "embed=6 hex; word=adsl"},
		{v6, "2001-db8-12-3401--a0b-7.example.net", Proper, ""},
		{"::ffff:198.51.100.7", "h198-51-100-7.example.net", Generic, "embed=4 dec"},

		// Words.
		{v4, "h198-51-100-7.dyn.example.net", Dynamic, "embed=4 dec; word=dyn"},
		{v4, "h198-51-100-7.static.dynamic.example.net", Dynamic, "embed=4 dec; word=dynamic"},
		{v4, "h198-51-100-7.static.adsl.example.net", Static, "embed=4 dec; word=static"},
		{v4, "h198-51-100-7.hfc.somebusiness.net", Static, "embed=4 dec; word=hfc"},
		{v4, "p4711.hfc.somebusiness.net", Static, "word=hfc"},
		{v4, "h198-51-100-7.compute.example.net", Hosting, "embed=4 dec; word=compute"},
		{v4, "h198-51-100-7.example-server.net", Hosting, "embed=4 dec"},
		{v4, "7.ip-198-51-100.eu", Hosting, "embed=4 dec"},
		{v4, "198-51-100-7-pppoe-dynamic-ip.some-dot-net", Dynamic, "embed=4 dec; word=pppoe"},
		{v4, "7-100-51-198-pppoe-example.net", Dynamic, "embed=4 dec; word=pppoe"},
		{v4, "static-198.51.100.7-example.co.in", Static, "embed=4 dec; word=static"},
		{v4, "198.51.100.7-cable-example.net.pk", Dynamic, "embed=4 dec; word=cable"},
		{v4, "198-51-100-7.example.net.br", Dynamic, "embed=4 dec; company=net.br"},
		{v4, "198-51-100-7.somefibra.example", Dynamic, "embed=4 dec; company=fibr"},
		{v4, "198-51-100-7.static.somefibra.example", Static, "embed=4 dec; word=static"},
		{v4, "198-51-100-7.poneytelecom.eu", Hosting, "embed=4 dec"},
		{v4, "198-51-100-7.vps.somefibra.example", Hosting, "embed=4 dec; word=vps"},
		{v4, "198-51-100-7.grandhotel.example", Generic, "embed=4 dec"},
		{v4, "h198-51-100-7.vm3.cable.example.net", Dynamic, "embed=4 dec; word=cable"},
		{v4, "h198-51-100-7.dynamics.example.net", Generic, "embed=4 dec"},
		{v4, "h198-51-100-7.cable.co.uk", Dynamic, "embed=4 dec; company=cable"},
		{v4, "h198-51-100-7.mail.cable.co.uk", Proper, "exonerated=mail"},
		{v4, "h198-51-100-7.mail.example.net", Proper, "exonerated=mail"},
		{v4, "mail-198-51-100-7.dyn.example.net", Proper, "exonerated=mail"},
		{v4, "h198-51-100-7.mailer.example", Proper, "exonerated=mail"},
		{v4, "h198-51-100-7.dsl.mailer.example", Dynamic, "embed=4 dec; word=dsl"},
		{v4, "mta-198-51-100-7.example.net", Proper, "exonerated=mta"},
		{v4, "mx-ll-198.51.100-7.dynamic.example.net", Dynamic, "embed=4 dec; word=dynamic"},
		{v4, "cust845.cable.example.net", Dynamic, "word=cable"},
		{v4, "a4711-cust845.vm26.cable.example.net", Dynamic, "word=cable"},
		{v4, "a4711.vm26.cable.example.net", Proper, ""},
		{v4, "cust.cable.example.net", Proper, ""},
		{v4, "a4711.bb.example.net", Proper, ""},
		{v4, "cm4711.dhcp.example.net", Dynamic, "word=dhcp"},
		{v4, "8cpe3f2a4711.example.net", Proper, ""},
		{v4, "cpe4711.example.net", Proper, ""},
		{v4, "h198-51-100-7-bb947598.example.net", Generic, "embed=4 dec"},
		{v4, "h198-51-100-7-bb.example.net", Dynamic, "embed=4 dec; word=bb"},
		{v4, "dsl142.example.net", Dynamic, "word=dsl"},
		{v4, "adsl-42.example.net", Dynamic, "word=adsl"},
		{v4, "adsl1.example.net", Proper, ""},
		{v4, "dsl.example.net", Proper, ""},
		{"198.51.100.17", "hfc17.example.net", Dynamic, "word=hfc"},
		{"198.51.100.17", "hfc18.example.net", Proper, ""},
		{v4, "ddslppp221.example.net", Dynamic, "word=ddslppp"},
		{v4, "p4711.dslpool.example.net", Dynamic, "word=dslpool"},
		{v4, "h198-51-100-7.adslstatic.example.net", Static, "embed=4 dec; word=adslstatic"},
		{v4, "h198-51-100-7.customermex.example.net", Dynamic, "embed=4 dec; word=customermex"},
		{"198.51.100.17", "acity-1011-5-17.abo.example.net", Generic, "embed=last; word=abo"},
		{"198.51.100.17", "nas3-user17.example.net", Generic, "embed=last; word=user"},
		{"198.51.100.17", "user-a17.example.net", Proper, ""},
		{v4, "h198-51-100-7.xn--bro-dsl-n2a.example.net", Generic, "embed=4 dec"},
		{v4, "h-192-0-2-33.static.example.net", Static, "embed=other; word=static"},
		{v4, "h-192-0-2-33.sometelecom.example", Generic, "embed=other; company=telecom"},
		{v4, "h-192-0-2-33.example.net", Proper, ""},
		{v4, "a17.cable.example.net", Proper, ""},
		{"198.51.100.17", "a17.cable.example.net", Dynamic, "word=cable"},
		{"198.51.100.17", "cable17.example.net", Dynamic, "word=cable"},
		{"198.51.100.17", "cable-gw17.example.net", Proper, "exonerated=gw"},
		{"198.51.100.17", "cable-a17.example.net", Dynamic, "word=cable"},
		{v4, "p4711.cable.example.net", Dynamic, "word=cable"},
		{v4, "dhcp12.bb.example.net", Dynamic, "word=dhcp,bb"},
		{v4, "gw12.dhcp.bb.example.net", Proper, "exonerated=gw"},
		{v4, "pop12.dhcp.bb.example.net", Proper, "exonerated=pop"},
		{v4, "zeus.dynamic.example.net", Dynamic, "word=dynamic"},
		{v4, "dynamic-solutions.example.net", Proper, ""},
		{v4, "dynamic-ip-adsl.example.net", Dynamic, "word=dynamic"},
		{v4, "static.example.net", Static, "word=static"},
		{v4, "static-content.example.net", Proper, ""},
		{v4, "unassigned.example.net", Generic, "word=unassigned"},
		{v4, "h0002a5d76857.example.net", Dynamic, "embed=mac"},
		{v4, "cpebc4dfb6d3a53.example.net", Dynamic, "embed=mac"},
		{v4, "hbc4dfb6d3a53.example.net", Proper, ""},
		{v4, "h0002a5d76857.some-server.example", Proper, ""},
		{v4, "a0002a5d76857.example.net", Proper, ""},
		{v4, "s0106bcd165f5f2c3.vc.example.net", Dynamic, "embed=mac"},
		{v4, "vm0002a5d76857.example.net", Proper, ""},
		{v4, "v202401151234.example.net", Proper, ""},
		{v4, "v57ae4e16.example.net", Proper, ""},
		{v4, "hn.kd.ny.adsl", Dynamic, "word=adsl"},
		{v4, "mail.kd.ny.adsl", Proper, "exonerated=mail"},
	}
	for _, tt := range tests {
		want := Verdict{tt.class, tt.evidence}
		if got := Classify(netip.MustParseAddr(tt.addr), tt.name); got != want {
			t.Errorf("%s %q: %v, want %v", tt.addr, tt.name, got, want)
		}
	}
	for _, name := range []string{
		"p198-51-100-7.dynamisk.example.net", "198-51-100-7.dinamik.example.net", "198-51-100-7.breitband.example.net",
		"198-51-100-7.assinantes.example.net", "198-51-100-7.klanten.example.net", "198-51-100-7.laajakaista.example.net",
		"198-51-100-7.example-kabel.net", "198-51-100-7.glasvezelnet.example", "198-51-100-7.bandalarga.example",
		"198-51-100-7.superprovedor.example", "198-51-100-7.wimaxnet.example", "198-51-100-7.uztelekom.example",
		"198-51-100-7.a.example.ne.jp", "198-51-100-7.example.ad.jp", "198-51-100-7.example.net.id",
	} {
		if got := Classify(netip.MustParseAddr(v4), name); got.Class != Dynamic {
			t.Errorf("%s: %v, want dynamic", name, got)
		}
	}
	if got := Classify(netip.Addr{}, "h198-51-100-7.example.net"); got.Class != Proper {
		t.Errorf("no address: %v", got)
	}
}

// Mail servers with unlucky names are proper.
func TestUnlucky(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.42")
	for _, name := range []string{
		"mail.dsl-company.example", "dsl-company.example", "mx.dynamic.com.au", "srv1.dynamic.com.au", "dynamic.example", "dynamic1.co.uk",
		"mail.cable.net.br", "cable.co.jp", "post.telecom.example", "exchange.fibra.com.ar", "www.adsl.com.tr", "zeus.kabel.example.de",
		"mail.static.example.net", "mail-203-0-113-42.sometelecom.example", "203-0-113-42.smtp.somecable.example",
		"mx1.xn--kabel-brse-n4a.example", "xn--dsl-bro-n2a.example.de", "host42.example.com", "srv42.dyn.example.com", "web42.example.com",
		"mail2.pool.example.com", "out-113-42.pool.example.com", "a113-42.smtp-out.example.com", "mx42.client.example.com",
		"dialog42.example.com", "cabletown.example", "mobile.example.com", "fixed.example.com", "pppoe.example.com", "access42.example.com",
		"gw-cable.example.com", "gw.adsl.example.com", "lte-gw42.example.com", "vpn.dsl.example.com", "mail.t-online.example",
		"m4711.clients.example.com", "ip42.example.com", "113-42-mail.example.com", "hosted-by.dynamic-servers.example",
	} {
		if v := Classify(addr, name); v.Class != Proper && !(name == "pppoe.example.com" && v.Class == Dynamic) {
			t.Errorf("%s: %v, want proper", name, v)
		}
	}
}

func TestRegisteredDomain(t *testing.T) {
	for name, want := range map[string]string{
		"mx.a.Example.CO.UK.": "example.co.uk", "example.org": "example.org", "a.b.github.io": "b.github.io",
		"mail.example": "mail.example", "a.mail.example": "mail.example", "mx.xn--bcher-kva.de": "xn--bcher-kva.de",
		"co.uk": "", "github.io": "", "org": "", "": "", ".": "", "192.0.2.1": "", "node.28": "", "a b.org": "", "<unknown>": "",
	} {
		if got := RegisteredDomain(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestParseClass(t *testing.T) {
	for c := None; c <= Proper; c++ {
		if got, err := ParseClass(c.String()); got != c || err != nil {
			t.Errorf("%s: %s, %v", c, got, err)
		}
	}
	if c, err := ParseClass("Proper"); err == nil {
		t.Errorf("Proper is %s", c)
	}
	if s := Class(99).String(); s != "class(99)" {
		t.Error(s)
	}
}

func TestClassifyAllocates(t *testing.T) {
	addr := netip.MustParseAddr("209.85.128.49")
	for _, name := range []string{"mail-wm1-f49.google.com", "dynamics.example.org", "a128-49.smtp-out.example.org"} {
		if n := testing.AllocsPerRun(100, func() { Classify(addr, name) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, file := range []string{"testdata/rdns-labelled.tsv", "testdata/schemes.tsv", "testdata/rdns-field.tsv"} {
		for _, s := range samples(f, file) {
			f.Add(s.addr.AsSlice(), s.name)
		}
	}
	f.Add([]byte{1}, "\u212a..")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		addr, _ := netip.AddrFromSlice(b)
		v := Classify(addr, name)
		if v.Class == Mismatch && !strings.Contains(strings.ToLower(name), ".arpa") || v.Class > Proper || v.Class != Proper && v.Evidence == "" {
			t.Errorf("%s %q: %v", addr, name, v)
		}
		for _, c := range []byte(v.Evidence) {
			if c < ' ' || c > '~' {
				t.Errorf("%s %q: evidence %q", addr, name, v.Evidence)
			}
		}
		same := map[string]string{"again": name}
		if !strings.HasSuffix(name, ".") {
			same["dot"] = name + "."
		}
		if isASCII(name) && name != Unknown {
			same["upper"] = strings.ToUpper(name)
		}
		for what, s := range same {
			if w := Classify(addr, s); w != v {
				t.Errorf("%s: %s %q: %v, was %v", what, addr, s, w, v)
			}
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	all := samples(b, "testdata/rdns-labelled.tsv")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := &all[i%len(all)]
		Classify(s.addr, s.name)
	}
}
