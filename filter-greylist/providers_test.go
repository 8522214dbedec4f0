package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/program"
	"opensmtpd-filters/pkg/spf"
)

// silence is what the DNS says of all providers but the first three.
func silence() string {
	var b strings.Builder
	for _, p := range providers[3:] {
		fmt.Fprintf(&b, "%s servfail\n", p.domain)
	}
	return b.String()
}

// A walker is a filter with a database, and a DNS.
type walker struct {
	dns  *filtertest.DNS
	args []string
}

// runs runs the filter until done says so of what is known of providers.
func (w *walker) runs(t *testing.T, done func(map[string]providerJSON) bool) {
	t.Helper()
	in, feed := io.Pipe()
	ended := make(chan int)
	go func() { ended <- run(w.args, in, io.Discard, io.Discard) }()
	defer func() {
		feed.Close()
		<-ended
	}()
	for range 1200 {
		if done(w.known(t)) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %+v", w.known(t))
}

// known is what the command says.
func (w *walker) known(t *testing.T) map[string]providerJSON {
	var out, errs bytes.Buffer
	all := make(map[string]providerJSON)
	if run(append(slices.Clone(w.args), "providers", "-json"), nil, &out, &errs) != 0 {
		return all // not made yet
	}
	for d := json.NewDecoder(&out); ; {
		var p providerJSON
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.Provider] = p
	}
}

func TestProviders(t *testing.T) {
	const first = `
gmail.com TXT "v=spf1 redirect=_spf.google.com"
_spf.google.com TXT "v=spf1 include:_n1.google.com " "include:_n2.goo" "gle.com ~all"
_n1.google.com TXT "v=spf1 ip4:198.51.100.0/24 ip6:2001:db8::/32 include:_spf.google.com ~all"
_n2.google.com TXT "v=spf1 ip4:0.0.0.0/0 ip4:203.0.113.0/25 ~all"
outlook.com TXT "v=spf1 ip4:192.0.2.0/25 include:dead.outlook.com -all"
dead.outlook.com servfail
`
	d, err := filtertest.StartDNS("127.0.0.1:0", first+silence())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	w := &walker{dns: d, args: []string{"-store", "sqlite:" + filepath.Join(t.TempDir(), "g.db"), "-resolver", d.Addr.String(), "-timeout", "1s", "-commonList", ""}}
	nets := func(s ...string) (all []netip.Prefix) {
		for _, n := range s {
			all = append(all, netip.MustParsePrefix(n))
		}
		return all
	}
	google, part := nets("198.51.100.0/24", "203.0.113.0/25", "2001:db8::/32"), nets("192.0.2.0/25")
	walkedAfter := func(at time.Time) func(map[string]providerJSON) bool {
		return func(k map[string]providerJSON) bool {
			return len(k) == len(providers) && !slices.ContainsFunc(providers, func(p provider) bool { return !k[p.name].Tried.After(at) })
		}
	}
	w.runs(t, walkedAfter(time.Time{}))
	k := w.known(t)
	if p := k["google"]; !slices.Equal(p.Networks, google) || p.State != "good" {
		t.Errorf("%+v", p)
	}
	if p := k["microsoft"]; !slices.Equal(p.Networks, part) || !strings.HasPrefix(p.State, "old, ") { // better than nothing
		t.Errorf("%+v", p)
	}
	if p := k["yahoo"]; len(p.Networks) != 0 || !strings.HasPrefix(p.State, "not known, ") {
		t.Errorf("%+v", p)
	}
	// A DNS that is dead, or says that there is nothing, changes nothing.
	for _, script := range []string{"* servfail\n", "* nxdomain\n", strings.Replace(first, `"v=spf1 ip4:198.51.100.0/24`, `"v=spf1 ip4:198.51.101.0/24`, 1) + "_n2.google.com servfail\n" + silence()} {
		if err := d.Set(script); err != nil {
			t.Fatal(err)
		}
		var last time.Time
		for _, p := range w.known(t) {
			if p.Tried.After(last) {
				last = p.Tried
			}
		}
		time.Sleep(time.Until(last.Add(time.Second))) // whole seconds
		w.runs(t, walkedAfter(last))
		k := w.known(t)
		if p := k["google"]; !slices.Equal(p.Networks, google) || p.State == "good" {
			t.Errorf("%+v", p)
		}
		if p := k["microsoft"]; !slices.Equal(p.Networks, part) {
			t.Errorf("%+v", p)
		}
	}
	// Others the next day.
	if err := d.Set(strings.Replace(first, "198.51.100.0/24", "198.51.102.0/24", 1) + silence()); err != nil {
		t.Fatal(err)
	}
	w.runs(t, func(k map[string]providerJSON) bool {
		return slices.Equal(k["google"].Networks, nets("198.51.102.0/24", "203.0.113.0/25", "2001:db8::/32")) && k["google"].State == "good"
	})
	var out, errs bytes.Buffer
	if run(append(slices.Clone(w.args), "explain", "198.51.102.7", "a@x.example", "b@example.org"), nil, &out, &errs) != 0 ||
		!strings.Contains(out.String(), "\nprovider      google\n") {
		t.Errorf("%s%s", &out, &errs)
	}
	out.Reset()
	if run(append(slices.Clone(w.args), "providers"), nil, &out, &errs) != 0 ||
		!strings.Contains(out.String(), "google\t3 networks, good, age ") || !strings.Contains(out.String(), "\n\t203.0.113.0/25\n") {
		t.Errorf("%s%s", &out, &errs)
	}
}

// Who comes from a provider, and what that is worth.
func TestFromProvider(t *testing.T) {
	for _, tt := range []struct {
		mode, addr, provider, exempt string
	}{
		{"group", "198.51.100.7", "google", ""},
		{"group", "::ffff:198.51.100.7", "google", ""},
		{"group", "2001:db8::7", "google", ""},
		{"group", "198.51.101.7", "", ""},
		{"skip", "198.51.100.7", "google", "-providers skip"},
		{"skip", "198.51.101.7", "", ""},
		{"off", "198.51.100.7", "", ""},
	} {
		c := &check{Program: new(program.Program), flags: &flags{providersMode: tt.mode}}
		if c.networks.of(netip.MustParseAddr(tt.addr)) != nil {
			t.Error("a provider before any is known")
		}
		c.networks.set([]greylist.Networks{{Provider: "google", Nets: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}}, {}})
		var a greylist.Attempt
		c.isClient(&a, greylist.Client{Addr: netip.MustParseAddr(tt.addr)}, spf.Result{})
		if a.Client.Provider != tt.provider || a.Exempt != tt.exempt || (a.Client.ProviderDomain != "") != (tt.provider != "") {
			t.Errorf("%+v: %+v", tt, a)
		}
	}
}
