package cli

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// servers reads one address.
func servers(s string) ([]netip.AddrPort, error) {
	a, err := ParseAddr(s)
	return []netip.AddrPort{netip.AddrPortFrom(a, 53)}, err
}

func newFlags() (*Flags, *Strings) {
	f := New(Options{
		Name:     "filter-x",
		Synopsis: []string{"[flags] list...", "[flags] -check ADDRESS list..."},
		Args:     true, DryRun: true, Metrics: true, Resolver: servers, Timeout: 2 * time.Second,
	})
	f.Int("blockAt", 0, "refuse from score `N` on, 0 is off")
	f.Var(&Duration{Value: 36 * 24 * time.Hour}, "whiteexp", "life of a pass record")
	f.String("reply", "550 no", "refuse with `TEXT`")
	var allow Strings
	f.Var(&allow, "allowSenders", "`FILE` of senders, repeatable")
	return f, &allow
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", ""},
		{"-n -v -dryRun -metrics /m -resolver ::1 -timeout 5 zone", ""},
		{"-allowSenders a -allowSenders b", ""},
		{"-h", flag.ErrHelp.Error()},
		{"-help", flag.ErrHelp.Error()},
		{"-version", ErrVersion.Error()},
		{"-blockat 3", "-blockat: no such flag; it is written -blockAt"},
		{"-nosuch", "-nosuch: no such flag"},
		{"-blockAt", "-blockAt: it needs a value"},
		{"-blockAt x", "-blockAt x: want a whole number"},
		{"-blockAt 99999999999999999999", "-blockAt 99999999999999999999: out of range"},
		{"-blockAt=", `-blockAt "": want a whole number`},
		{"-dryRun=maybe", "-dryRun maybe: want true or false"},
		{"-resolver nowhere", "-resolver nowhere: not an address"},
		{"-timeout 1ms", "-timeout 1ms: less than 10ms"},
		{"-timeout 1h", "-timeout 1h: more than 5m"},
		{"-timeout soon", "-timeout soon: not a time such as 5s, 1h30m, 30d or 300 (seconds)"},
		{"-timeout \"a:b", `-timeout "a:b: not a time such as 5s, 1h30m, 30d or 300 (seconds)`},
		{"---x", "bad flag syntax: ---x"},
	} {
		f, _ := newFlags()
		if err := f.Parse(strings.Fields(tt.args)); fmt.Sprint(err) != tt.want && (err != nil || tt.want != "") {
			t.Errorf("%s: error %v, want %s", tt.args, err, tt.want)
		}
	}
	f, allow := newFlags()
	if err := f.Parse(strings.Fields("-n -v -dryRun -metrics /m -resolver ::1 -timeout 5 -allowSenders a -allowSenders b zone")); err != nil {
		t.Fatal(err)
	}
	if !f.CheckOnly || !f.Verbose || !f.DryRun || f.Metrics != "/m" || len(f.Servers) != 1 || f.Timeout.Value != 5*time.Second {
		t.Errorf("common flags: %+v", f)
	}
	if allow.String() != "a, b" || f.Arg(0) != "zone" {
		t.Errorf("flag %v, argument %q", allow, f.Arg(0))
	}

	f = New(Options{Name: "filter-y"})
	if err := f.Parse([]string{"stray"}); err == nil || err.Error() != `unexpected argument "stray"` {
		t.Errorf("stray argument: %v", err)
	}
	for _, name := range []string{"dryRun", "metrics", "resolver", "timeout"} {
		if f.Lookup(name) != nil {
			t.Errorf("-%s was not asked for", name)
		}
	}
}

// A command of a program has no flags but its own, and -h.
func TestCommand(t *testing.T) {
	f := New(Options{Name: "x check", Command: true})
	f.String("f", "/etc/smtpd.conf", "the `FILE` to check")
	for _, name := range []string{"n", "v", "version"} {
		if err := f.Parse([]string{"-" + name}); err == nil || err.Error() != "-"+name+": no such flag" {
			t.Errorf("-%s: %v", name, err)
		}
	}
	if err := f.Parse([]string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestExit(t *testing.T) {
	f, _ := newFlags()
	for _, tt := range []struct {
		err         error
		status      int
		out, stderr string // prefixes
	}{
		{nil, 0, "", ""},
		{flag.ErrHelp, 0, "usage: filter-x [flags] list...\n       filter-x [flags] -check ADDRESS list...\n\n", ""},
		{ErrVersion, 0, "filter-x " + Version() + " (go", ""},
		{errors.Join(errors.New("one"), errors.New("two")), 1, "", "filter-x: one\nfilter-x: two\n"},
	} {
		var out, stderr strings.Builder
		status := f.Exit(tt.err, &out, &stderr)
		if status != tt.status || !strings.HasPrefix(out.String(), tt.out) || !strings.HasPrefix(stderr.String(), tt.stderr) ||
			(out.Len() == 0) != (tt.out == "") || (stderr.Len() == 0) != (tt.stderr == "") {
			t.Errorf("%v: status %d, stdout %q, stderr %q", tt.err, status, &out, &stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	f, _ := newFlags()
	var out strings.Builder
	f.Usage(&out)
	want := `usage: filter-x [flags] list...
       filter-x [flags] -check ADDRESS list...

  -allowSenders FILE  FILE of senders, repeatable
  -blockAt N          refuse from score N on, 0 is off (default 0)
  -dryRun             decide and log, but let everything pass
  -metrics FILE       write counters to FILE every 15s, as Prometheus text
  -n                  check the configuration, print what is in force, and exit
  -reply TEXT         refuse with TEXT (default 550 no)
  -resolver ADDRESS,...
                      ask the DNS servers ADDRESS,..., each with an optional
                      :port, instead of those of /etc/resolv.conf
  -timeout TIME       decide without the answers that take longer than TIME
                      (default 2s)
  -v                  log more
  -version            print the version and exit
  -whiteexp TIME      life of a pass record (default 36d)

A TIME is 5s, 1h30m, 30d, or a number of seconds.
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// Another name of a flag sets the same; hidden it is not shown, but taken.
func TestSameAs(t *testing.T) {
	f := New(Options{Name: "filter-x"})
	n := f.Int("blockAt", 5, "refuse from score `N` on")
	on := f.Bool("header", false, "add the field")
	f.SameAs("at", "blockAt")
	f.SameAs("scoreHeader", "header")
	f.Hide("at", "header")
	if err := f.Parse([]string{"-at", "7", "-header"}); err != nil || *n != 7 || !*on {
		t.Errorf("%v, %d, %v", err, *n, *on)
	}
	shown := ""
	f.FlagRows(func(name, value string) { shown += name + " " + value + "\n" })
	if shown != "-blockAt 7\n-scoreHeader true\n-v false\n" {
		t.Errorf("shown:\n%s", shown)
	}
	if err := f.Parse([]string{"-at", "x"}); err == nil || err.Error() != "-at x: want a whole number" {
		t.Error(err)
	}
}

func TestFlagRows(t *testing.T) {
	f, _ := newFlags()
	f.SameAs("pass", "whiteexp")
	f.Hide("pass")
	if err := f.Parse([]string{"-n", "-timeout", "90", "-reply", "550 no", "-pass", "3d"}); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	f.FlagRows(func(name, value string) { fmt.Fprintf(&out, "%s=%s\n", name, value) })
	want := `-allowSenders=
-blockAt=0
-dryRun=false
-metrics=
-reply=550 no
-resolver=
-timeout=1m30s
-v=false
-whiteexp=3d
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		in   string
		want time.Duration // -1: an error
		out  string
	}{
		{"5s", 5 * time.Second, "5s"},
		{"300", 300 * time.Second, "5m"},
		{"0", 0, "0s"},
		{"1h30m", 90 * time.Minute, "1h30m"},
		{"1m30s", 90 * time.Second, "1m30s"},
		{"1h5s", time.Hour + 5*time.Second, "1h0m5s"},
		{"1.5s", 1500 * time.Millisecond, "1.5s"},
		{"30d", 30 * day, "30d"},
		{"36h", 36 * time.Hour, "1d12h"},
		{"1d12h", 36 * time.Hour, "1d12h"},
		{"0d", 0, "0s"},
		{"36500d", 36500 * day, "36500d"},
		{in: "", want: -1},
		{in: "d", want: -1},
		{in: "-5s", want: -1},
		{in: "-5", want: -1},
		{in: "-1d", want: -1},
		{in: "1d-1h", want: -1},
		{in: "1.5", want: -1},
		{in: "1.5d", want: -1},
		{in: "30 d", want: -1},
		{in: "1w", want: -1},
		{in: "1d1d", want: -1},
		{in: "36501d", want: -1},
		{in: "36500d2562047h", want: -1},
		{in: "99999999999999999999", want: -1},
		{in: "4294967296", want: -1},
	} {
		d, err := ParseDuration(tt.in)
		if tt.want == -1 {
			if err == nil {
				t.Errorf("%q: got %v, want an error", tt.in, d)
			}
		} else if err != nil || d != tt.want || format(d) != tt.out {
			t.Errorf("%q: got %v (%s), %v, want %v (%s)", tt.in, d, format(d), err, tt.want, tt.out)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1d12h", "300", "1h0m0.5s", "36500d2562047h47m16.854775807s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 {
			t.Errorf("%q is %v", s, d)
		}
		// A time of more than maxDays, written in hours, is not read back.
		if e, err := ParseDuration(format(d)); d <= 36500*24*time.Hour && (err != nil || e != d) {
			t.Errorf("%q is %v, written %q, read as %v, %v", s, d, format(d), e, err)
		}
	})
}
