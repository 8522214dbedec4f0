package smtpdconf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// parse reads files, of which "conf" is the first.
func parse(files map[string]string) (*Config, []error) {
	return Parse("conf", Options{Open: func(name string) (io.ReadCloser, error) {
		text, ok := files[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}})
}

const example = `# of all forms
libexec = "/opt/filters"
include "filters.conf"

table aliases file:/etc/aliases
table domains { "example.org", "example.com"
	"example.net" }
filter "greylist" proc-exec \
	"filter-greylist -passTime 5m" user _grey \
	group mail chroot "/var/empty"
filter 'noname' phase connect match !rdns disconnect "550 no name"
filter all chain { dnsbl, noname
	greylist "second" }
listen on socket filter all
listen on 192.0.2.1 port 25 tls pki mx.example.org auth-optional <users> tag "filter" filter "all" hostname mx.example.org
listen on ::1 smtps pki mx auth filter { "dnsbl" }
listen on eth0
listen on 192.0.2.2 port submission tls pki mx filter greylist auth
action "in" maildir junk alias <aliases>
action "out" relay helo mx.example.org filter "noname"
match from any for local action "in"
`

func TestParse(t *testing.T) {
	c, errs := parse(map[string]string{
		"conf": example,
		"filters.conf": `filter dnsbl proc-exec "filter-dnsbl -blockAt 5 'zen.spamhaus.org*3 \
bl.spamcop.net*2' -reply \"550 %i\"" # DNS lists
proc rspam "/usr/libexec/filter-rspamd"
filter second proc rspam`,
	})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var got strings.Builder
	for _, p := range c.Procs {
		fmt.Fprintf(&got, "%s proc %s [%s] %s %s %s\n", p.Place, p.Name, p.Command, p.User, p.Group, p.Chroot)
	}
	for _, f := range c.Filters {
		fmt.Fprintf(&got, "%s filter %s: phase %q, %d\n", f.Place, f, f.Phase, len(f.All()))
	}
	for _, l := range c.Listeners {
		fmt.Fprintf(&got, "%s listen %s %v %s auth %v", l.Place, l.On, l.Ports(), l.Hostname, l.Auth)
		if l.Filter != nil {
			fmt.Fprintf(&got, " filter %s", l.Filter)
		}
		got.WriteString("\n")
	}
	for _, r := range c.Relays {
		fmt.Fprintf(&got, "%s relay %s filter %s\n", r.Place, r.Action, r.Filter)
	}
	want := `filters.conf:1 proc dnsbl [filter-dnsbl -blockAt 5 'zen.spamhaus.org*3 bl.spamcop.net*2' -reply "550 %i"]   
filters.conf:3 proc rspam [/usr/libexec/filter-rspamd]   
conf:8 proc greylist [filter-greylist -passTime 5m] _grey mail /var/empty
filters.conf:1 filter dnsbl: phase "", 1
filters.conf:4 filter second: phase "", 1
conf:8 filter greylist: phase "", 1
conf:11 filter noname: phase "connect match ! rdns disconnect \"550 no name\"", 1
conf:12 filter all: phase "", 4
conf:14 listen socket []  auth false filter all
conf:15 listen 192.0.2.1 [25] mx.example.org auth true filter all
conf:16 listen ::1 [465]  auth true filter { dnsbl }
conf:17 listen eth0 [25]  auth false
conf:18 listen 192.0.2.2 [587]  auth true filter greylist
conf:20 relay out filter noname
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// What smtpd makes of strings: see TestSmtpdConf in test, which compares.
func TestStrings(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`"a b"`, "a b"},
		{`'a "b"'`, `a "b"`},
		{`"a \"b\""`, `a "b"`},
		{`"a\ b"`, "a b"},
		{`"a\nb"`, `a\nb`},
		{`"a\\b"`, `a\\b`},
		{`"a\'b"`, `a\'b`},
		{"\"a\nb\"", "ab"},
		{"\"a \\\n  b\"", "a   b"},
		{`filter-x`, "filter-x"},
		{`fil\ter\"x`, `filter"x`},
		{`"a # b"`, "a # b"},
		{`"a $m"`, "a $m"},
		{`$m`, "m m"},
		{`$n`, "$m"},
	} {
		c, errs := parse(map[string]string{"conf": "m='\"m m\"'\nn='\"$m\"'\nfilter f proc-exec " + tt.in + "\n"})
		if len(errs) > 0 || len(c.Procs) != 1 || c.Procs[0].Command != tt.want {
			t.Errorf("%s: %v, %+v, want %s", tt.in, errs, c.Procs, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"filter f proc-exec \"x\"\nfilter c chain { f }\nfilter d chain { f, c }\n", "conf:3: no filter chain allowed within a filter chain: c"},
		{"filter f proc-exec \"x\"\n\nfilter f proc-exec \"y\"\n", "conf:3: filter already exists with that name: f"},
		{"listen on lo filter \"typo\"\n", "conf:1: no filter exist with that name: typo"},
		{"filter f proc g\n", "conf:1: no processor exist with that name: g"},
		{"proc g x\nfilter a proc g\nfilter b proc g\nfilter c chain { a, b }\n", "conf:4: no proc allowed twice within a filter chain: g"},
		{"filter f proc-exec filter-x -blockAt 5\n", "conf:1: syntax error"},
		{"fliter f proc-exec \"x\"\n", "conf:1: syntax error"},
		{"filter f proc-exec $x\n", "conf:1: macro 'x' not defined"},
		{"filter f proc-exec \"x\n\n", "conf:1: reached end of file while parsing quoted string"},
		{"\ninclude \"none\"\n", "conf:2: failed to include file none: file does not exist"},
		{"include \"conf\"\ninclude \"conf\"\n", "conf:1: failed to include file conf: more than 100 files: do they include each other?"},
		{"include \"more\"\n", "more:2: syntax error"},
		{"table t { a\nmatch from any reject\n", "conf:1: { without }"},
	} {
		_, errs := parse(map[string]string{"conf": tt.in, "more": "# fine\nfilter\n"})
		if len(errs) == 0 || errs[0].Error() != tt.want {
			t.Errorf("%q: %v, want %s", tt.in, errs, tt.want)
		}
	}
	if _, errs := Parse("x", Options{Open: func(string) (io.ReadCloser, error) { return nil, errors.New("no such file") }}); len(errs) != 1 {
		t.Error(errs)
	}
}

// A macro of the command line is not defined again by the file.
func TestMacros(t *testing.T) {
	c, errs := Parse("conf", Options{
		Macros: map[string]string{"m": `"from outside"`},
		Open: func(string) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("m = 'inside'\nfilter f proc-exec $m\n")), nil
		},
	})
	if len(errs) > 0 || c.Procs[0].Command != "from outside" {
		t.Error(errs, c.Procs)
	}
}

// sh says what ends a command, and what its first word is.
func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		in, program string
		ends        string // what sh takes for something else
	}{
		{"filter-dnsbl -blockAt 5 zen.spamhaus.org", "filter-dnsbl", ""},
		{"/opt/a/filter-dnsbl", "filter-dnsbl", ""},
		{`"/opt/a b/filter-dnsbl" x`, "filter-dnsbl", ""},
		{`/opt/a\ b/filter-dnsbl x`, "filter-dnsbl", ""},
		{"  filter-x", "filter-x", ""},
		{"filter-dnsbl 'zen=127.0.0.[2;3]'", "filter-dnsbl", ""},
		{"filter-dnsbl zen=127.0.0.[2;3]", "filter-dnsbl", ";3]"},
		{"filter-x a#b", "filter-x", ""},
		{"filter-x # why", "filter-x", "# why"},
		{"filter-x 2>&1", "filter-x", ""},
		{"filter-x 2>>/dev/null -v", "filter-x", ""},
		{"filter-x | logger", "filter-x", "| logger"},
		{"filter-x&", "filter-x", "&"},
		{`filter-x "a;b" \; 'c|d'`, "filter-x", ""},
		{"filter-x a\nb", "filter-x", "\nb"},
	} {
		if got := Program(tt.in); got != tt.program {
			t.Errorf("%s: program %s", tt.in, got)
		}
		ends := ""
		if i := End(tt.in); i >= 0 {
			ends = tt.in[i:]
		}
		if ends != tt.ends {
			t.Errorf("%s: ends with %q", tt.in, ends)
		}
		if strings.ContainsAny(tt.in, "&|\n") {
			continue
		}
		// As words of another command what is left is all there is.
		out, err := exec.Command("/bin/sh", "-c", `set -- `+tt.in+` LAST; printf %s "$1"; eval 'test "${'$#'}" = LAST'`).CombinedOutput()
		if tt.ends == "" && (err != nil || string(out) != Path(tt.in)) {
			t.Errorf("%s: sh says %q, %v", tt.in, out, err)
		} else if tt.ends != "" && err == nil && len(out) > 0 {
			t.Errorf("%s: sh sees all of it", tt.in)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example, "filter x proc-exec \"y\"\n")
	f.Add("m=\"$m\"\n$m $m\ninclude \"more\"\ninclude 'conf'", "\\\n\"")
	f.Add("filter a chain {\nlisten on lo filter {", "\x01$\x02'\\")
	f.Fuzz(func(t *testing.T, conf, more string) {
		c, errs := parse(map[string]string{"conf": conf, "more": more})
		for _, e := range errs {
			var at *Error
			if errors.As(e, &at) && (at.File != "conf" && at.File != "more" || at.Line < 0) {
				t.Errorf("%v", e)
			}
		}
		for _, f := range c.Filters {
			if f.Name == "" && len(errs) == 0 && !strings.ContainsAny(conf+more, `"'`) {
				t.Error("a filter without a name")
			}
			forms := 0
			for _, ok := range []bool{f.Proc != nil, f.Phase != "", f.Chain != nil} {
				if ok {
					forms++
				}
			}
			if forms > 1 {
				t.Errorf("%+v", f)
			}
		}
		for _, p := range c.Procs {
			if n := len(p.Command); n > maxString {
				t.Errorf("a command of %d bytes", n)
			}
			End(p.Command)
			Program(p.Command)
		}
	})
}
