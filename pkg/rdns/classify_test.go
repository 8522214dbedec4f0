package rdns

import (
	"bufio"
	"net/netip"
	"os"
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
		addr, err := netip.ParseAddr(p[1])
		if err != nil {
			t.Fatalf("%s: %q: %v", file, in.Text(), err)
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
		{v4, "h100-7.example.net", Proper, ""},
		{v4, "h100-7.adsl.example.net", Dynamic, "embed=2 dec; word=adsl"},
		{v4, "h100007.adsl.example.net", Dynamic, "embed=2 dec; word=adsl"},
		{v4, "h1007.adsl.example.net", Dynamic, "embed=2 run; word=adsl"},
		{v4, "h100-7.cust.example.net", Dynamic, "embed=2 dec; word=cust"},
		{v4, "h100.s7.cust.example.net", Proper, ""},
		{v4, "h100-7.pool.example.net", Proper, ""},
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
		{v4, "h198-51-100-7.vm3.cable.example.net", Dynamic, "embed=4 dec; word=cable"},
		{v4, "h198-51-100-7.dynamics.example.net", Generic, "embed=4 dec"},
		{v4, "h198-51-100-7.cable.co.uk", Generic, "embed=4 dec"},
		{v4, "h198-51-100-7.mail.example.net", Proper, "exonerated=mail"},
		{v4, "mail-198-51-100-7.dyn.example.net", Proper, "exonerated=mail"},
		{v4, "h198-51-100-7.mailer.example", Proper, "exonerated=mail"},
		{v4, "h198-51-100-7.dsl.mailer.example", Dynamic, "embed=4 dec; word=dsl"},
		{v4, "mta-198-51-100-7.example.net", Proper, "exonerated=mta"},
		{v4, "mx-ll-198.51.100-7.dynamic.example.net", Dynamic, "embed=4 dec; word=dynamic"},
		{v4, "cust845.cable.example.net", Dynamic, "word=cable"},
		{v4, "cust.cable.example.net", Proper, ""},
		{v4, "a17.cable.example.net", Proper, ""},
		{"198.51.100.17", "a17.cable.example.net", Dynamic, "word=cable"},
		{"198.51.100.17", "cable17.example.net", Proper, ""},
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
	if got := Classify(netip.Addr{}, "h198-51-100-7.example.net"); got.Class != Proper {
		t.Errorf("no address: %v", got)
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
	for _, name := range []string{"mail-wm1-f49.google.com", "dynamics.example.org", "a128-49.example.org"} {
		if n := testing.AllocsPerRun(100, func() { Classify(addr, name) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, file := range []string{"testdata/rdns-labelled.tsv", "testdata/schemes.tsv"} {
		for _, s := range samples(f, file) {
			f.Add(s.addr.AsSlice(), s.name)
		}
	}
	f.Add([]byte{1}, "\u212a..")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		addr, _ := netip.AddrFromSlice(b)
		v := Classify(addr, name)
		if v.Class == Mismatch || v.Class > Proper || v.Class != Proper && v.Evidence == "" {
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
