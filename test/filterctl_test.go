//go:build linux

package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/test/smtpdtest"
)

// all are programs that a server of these tests has.
func everyProgram() []string { return append(filters(), "filterctl", "scripted") }

// refusedScore has Validity refuse the query that check makes.
var refusedScore = strings.Replace(smtpdtest.Reverse("192.0.2.1"), "in-addr.arpa", scoreZone, 1) + " A 127.255.255.255\n"

// check finds what smtpd -n does not see, says where it stands, and lets pass
// what smtpd starts with.
func TestFilterctlCheck(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, smtpdtest.Config{
			Release: r, Programs: everyProgram(), Zone: refusedScore,
			Filters: []smtpdtest.Filter{dyndnsFilter("-reply '550 5.7.1 \"%n\" is a line' -expr '^a b$'")},
			Files: map[string]string{
				"clients":   "192.0.2.0/24\nmail.example.net\n",
				"bad":       "192.0.2.0/24\n300.1.1.1\n",
				"more.conf": "filter \"inner\" proc-exec $cmd\n",
				"mode.prom": "",
			},
		})
		if _, err := s.Run("cp scripted filter-rspamd"); err != nil {
			t.Fatal(err)
		}
		end := "\nmatch from any for any reject\n"
		for _, tt := range []struct {
			name, conf string
			status     int
			want       []string // lines, C is the file
		}{
			{"a good file", `
filter "dnsbl" proc-exec "/run/test/filter-dnsbl -blockAt 5 -allowClients /run/test/clients 'zen.spamhaus.org=127.0.0.[2;3]*5'"
filter "dyndns" proc-exec "/run/test/filter-dyndns"
filter "greylist" proc-exec "/run/test/filter-greylist -store memory"
filter "all" chain { "dnsbl", "dyndns", "greylist" }
listen on lo port 2525 filter "all"`, 0, []string{
				"C: smtpd -n finds nothing wrong", "C:2: filter dnsbl: ok", "C:3: filter dyndns: ok", "C:4: filter greylist: ok",
			}},
			{"a typo in a flag", `
filter "dnsbl" \
	proc-exec "/run/test/filter-dnsbl -blockat 5 zen.spamhaus.org"
listen on lo filter "dnsbl"`, 1, []string{
				"C: smtpd -n finds nothing wrong", "C:2: filter dnsbl: filter-dnsbl: -blockat: no such flag; it is written -blockAt",
				"filterctl check: C is wrong",
			}},
			{"a list that is missing", `
filter "dnsbl" proc-exec "/run/test/filter-dnsbl -blockAt 5 -allowClients /etc/none zen.spamhaus.org"
listen on lo filter "dnsbl"`, 1, []string{"C:2: filter dnsbl: filter-dnsbl: open /etc/none: no such file or directory"}},
			{"a wrong line of a list", `
filter "dyndns" proc-exec "/run/test/filter-dyndns -allowClients /run/test/bad"
listen on lo filter "dyndns"`, 1, []string{"C:2: filter dyndns: filter-dyndns: /run/test/bad:2: "}},
			{"include and macros", `
cmd = '"/run/test/filter-dyndns -dynamik junk"'
include "/run/test/more.conf"
listen on lo filter "inner"`, 1, []string{"/run/test/more.conf:1: filter inner: filter-dyndns: -dynamik: no such flag"}},
			{"chains in a chain", `
filter "a" proc-exec "/run/test/filter-dyndns"
filter "b" chain { "a" }
filter "c" chain { "b" }
listen on lo filter "c"`, 1, []string{"C:4: no filter chain allowed within a filter chain: b", "C:2: filter a: ok"}},
			{"at connect with auth", `
filter "dnsbl" proc-exec "/run/test/filter-dnsbl -phase connect -blockAt 5 zen.spamhaus.org"
filter "late" proc-exec "/run/test/filter-dnsbl -blockAt 5 zen.spamhaus.org"
filter "all" chain { "dnsbl", "late" }
listen on lo port 2525 tls pki mx auth-optional filter "all"`, -1, []string{
				"C:2: warning: filter dnsbl decides at connect, and the listener of C:5 has auth: own users are judged before they can authenticate",
				"- C:3: warning",
			}},
			{"a filter of others, and proc", `
proc "mine" "/run/test/filter-dyndns" user nobody
proc "other" "/run/test/scripted"
filter "dyndns" proc "mine"
filter "other" proc "other"
filter "gone" proc-exec "filter-nothing -x"
filter "all" chain { "dyndns", "other", "gone" }
listen on lo filter "all"`, 1, []string{
				"C:2: filter dyndns: ok", "C:3: filter other: scripted is not one of ours: it is there, and was not run",
				"C:6: filter gone: filter-nothing is not in /usr/libexec/opensmtpd",
			}},
			{"no quotes", `
filter "dnsbl" proc-exec "/run/test/filter-dnsbl -blockAt 5 zen.spamhaus.org=127.0.0.[2;3]"
listen on lo filter "dnsbl"`, 1, []string{`C:2: filter dnsbl: sh ends the command at ";": put it in quotes`}},
			{"no such user", `
filter "dyndns" proc-exec "/run/test/filter-dyndns" user nobody-here
listen on lo filter "dyndns"`, 1, []string{"C:2: filter dyndns: user nobody-here: there is no such user, and smtpd would end"}},
			{"what is hardly meant", `
filter "junk" proc-exec "/run/test/filter-dyndns -metrics /run/test/state/m.prom"
filter "junk2" proc-exec "/run/test/filter-dyndns -metrics /run/test/state/m.prom"
filter "score" proc-exec "/run/test/filter-senderscore -blockBelow 10 -stateFile ''"
filter "grey" proc-exec "/run/test/filter-greylist -store sqlite:/run/test/none/g.db"
filter "own" phase connect match !rdns junk
filter "rspamd" proc-exec "/run/test/filter-rspamd"
filter "all" chain { "junk", "own", "rspamd" }
listen on lo filter "all"`, 0, []string{
				"C:8: warning: filter all: what junk junks has X-Spam: Yes when it comes to rspamd, which counts 5 points",
				"C:8: warning: filter all: what own junks",
				"C:3: warning: filter junk2 writes its metrics to /run/test/state/m.prom, as filter junk does",
				"C:3: warning: filter junk2 is on no listener",
				"C:4: warning: filter score: Validity does not answer this resolver",
				"C:5: warning: filter grey: /run/test/none is missing: install -d -m 700 -o opensmtpd /run/test/none",
			}},
		} {
			conf := tt.conf + end
			if err := s.WriteFile("check.conf", conf); err != nil {
				t.Fatal(err)
			}
			out, err := s.Run("./filterctl check -f /run/test/check.conf")
			if tt.status >= 0 && (err != nil) != (tt.status == 1) {
				t.Errorf("%s: status %v, want %d", tt.name, err, tt.status)
			}
			for _, line := range tt.want {
				line, no := strings.CutPrefix(strings.ReplaceAll(line, "C:", "/run/test/check.conf:"), "- ")
				line = strings.ReplaceAll(line, "C is", "/run/test/check.conf is")
				if strings.Contains("\n"+out, "\n"+line) == no {
					t.Errorf("%s: %q is there: %v, in\n%s", tt.name, line, !no, out)
				}
			}
		}

		// The server's own file, with which it has started.
		if out, err := s.Run("./filterctl check -f smtpd.conf"); err != nil || !strings.Contains(out, "filter dyndns: ok") {
			t.Errorf("%v\n%s", err, out)
		}
		// Nothing was made.
		if _, err := os.Stat(s.Path("state/m.prom")); err == nil {
			t.Error("check has made a metrics file")
		}
	})
}

// What check finds, and smtpd -n does not, ends smtpd.
func TestFilterctlCheckTypo(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		c := smtpdtest.Config{Release: r, Bin: os.Getenv(binEnv), Programs: everyProgram(), Filters: []smtpdtest.Filter{dyndnsFilter("-dynamik junk")}}
		s, err := smtpdtest.Start(c)
		if err == nil {
			_ = s.Stop()
			t.Fatal("smtpd starts")
		}
		if !strings.Contains(err.Error(), "smtpd ended") || !strings.Contains(err.Error(), "-dynamik: no such flag") {
			t.Error(err)
		}
		if out, err := r.CheckConfig(c.String()); err != nil {
			t.Errorf("smtpd -n: %v\n%s", err, out)
		}
	})
}

// steps are what a client is at when smtpd asks its filters at a phase.
var steps = map[string]string{"greeting": "connect", "EHLO": "helo", "MAIL": "mail-from", "RCPT": "rcpt-to", "DATA": "data", "message": "commit"}

// A client gets what explain has said it would, whatever stands in the chain.
func TestFilterctlExplain(t *testing.T) {
	const (
		dyndns = "filter-dyndns -dynamic refuse -mismatch slow:1s"
		dnsbl  = "filter-dnsbl -timeout 20s -resolver " + listDNS + " -blockAt 3 zen.spamhaus.org*3"
		scored = "filter-senderscore -stateFile '' -timeout 20s -resolver " + scoreDNS + " -blockBelow 10 -junkBelow 70"
		grey   = greylistCommand + "-who all"
	)
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		serveScores(t)
		for _, chain := range [][]smtpdtest.Filter{
			{{Name: "dyndns", Command: dyndns}},
			{{Name: "greet", Command: "filter-greet -wait 0"}, {Name: "dyndns", Command: dyndns}, {Name: "score", Command: scored + " -phase rcpt-to"},
				{Name: "dnsbl", Command: dnsbl}, {Name: "greylist", Command: grey}},
			// Who stands first does not speak first.
			{{Name: "greylist", Command: grey}, {Name: "dnsbl", Command: dnsbl}, {Name: "score", Command: scored}, {Name: "dyndns", Command: dyndns}},
			// Junk at a phase moves the others to the next.
			{{Name: "noname", Builtin: "phase connect match !rdns junk"}, {Name: "score", Command: scored}, {Name: "dyndns", Command: "filter-dyndns -phase connect -dynamic junk"},
				{Name: "dnsbl", Command: dnsbl + " -phase mail-from"}},
			{{Name: "score", Command: scored + " -dryRun"}, {Name: "nofcrdns", Builtin: `phase mail-from match !fcrdns reject "550 no \"name\""`}, {Name: "dyndns", Command: "filter-dyndns -mismatch defer"}},
			{{Name: "dnsbl", Command: dnsbl + " -phase connect -reply '450 4.7.1 %i on %l, come again'"}, {Name: "greylist", Command: grey + " -spf off"}},
		} {
			t.Run("", func(t *testing.T) {
				explained(t, smtpdtest.Config{Release: r, Zone: dyndnsZone, Filters: chain, Programs: everyProgram()})
			})
		}
	})
}

// explained has clients come after explain has said what they would get.
func explained(t *testing.T, c smtpdtest.Config) {
	const stranger = "198.51.100.77"
	s := start(t, c)
	if strings.Contains(c.String(), greylistCommand) {
		s.waitDatabase()
	}
	for i, src := range []string{proper, dynamic, dynamic6, static, nofwd, stranger, "203.0.113.1", "203.0.113.4", "203.0.113.5", "203.0.113.42", "203.0.113.100"} {
		m := smtpdtest.Mail{Src: src, To: fmt.Sprint("bob", i), Sender: "ann@example.com", Helo: "mail.example.com"}
		out, err := s.Run(fmt.Sprintf("./filterctl explain -f smtpd.conf %s %s %s@%s %s", m.Src, m.Sender, m.To, smtpdtest.Domain, m.Helo))
		if err != nil {
			t.Fatal(err)
		}
		_, said, _ := strings.Cut(out, "\nthe client gets: ")
		said, _, _ = strings.Cut(said, "\n")
		res := s.send(m)
		var want string
		switch {
		case !res.Accepted():
			want = fmt.Sprintf("%s, at %s, of ", res.Reply, steps[res.Step])
		case s.outcome(smtpdtest.Mail{Src: src, To: fmt.Sprint("again", i), Sender: m.Sender, Helo: m.Helo}) == "junk":
			want = "its mail is accepted as junk"
		default:
			want = "its mail is accepted"
		}
		if !strings.HasPrefix(said, want) || strings.Contains(said, "junk") != strings.Contains(want, "junk") {
			t.Errorf("%s: explain says %q, the client gets %q\n%s", src, said, want, out)
		}
	}
}

// What an operator allows or denies holds for the filters at work.
func TestFilterctlAllowDeny(t *testing.T) {
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		const list = " -f smtpd.conf -list " + smtpdtest.Dir + "/list "
		command := "filter-dnsbl -timeout 20s -resolver " + listDNS + " -blockAt 3 -commonList " + smtpdtest.Dir + "/list zen.spamhaus.org*3"
		s := start(t, smtpdtest.Config{
			Release: r, Programs: everyProgram(), Files: map[string]string{"list": "# ours\n"},
			Zone:    dyndnsZone,
			Filters: []smtpdtest.Filter{{Name: "dnsbl", Command: command}},
		})
		run := func(line string, ok bool, want string) {
			t.Helper()
			out, err := s.Run(line)
			if (err == nil) != ok || !strings.Contains(out, want) {
				t.Errorf("%s: %v\n%s\nwant %s", line, err, out, want)
			}
		}
		n := 0
		comes := func(src, sender, want string) {
			t.Helper()
			n++
			if got := s.outcome(smtpdtest.Mail{Src: src, Sender: sender, To: fmt.Sprint("bob", n)}); got != want {
				t.Errorf("%s from %s: %s, want %s", src, sender, got, want)
			}
		}
		const listed, stranger = "203.0.113.1", "198.51.100.77"
		comes(listed, "ann@example.com", "RCPT 550")
		comes(stranger, "ann@example.com", "inbox")
		run("./filterctl allow"+list+listed+" a good one", true, "/list:2: permit client="+listed+" # ")
		run("./filterctl deny"+list+stranger, true, "/list:3: reject client="+stranger+" # ")
		run("./filterctl allow"+list+listed, true, "/list:2 has it already")
		run("./filterctl allow"+list+"sender=club@example.net", true, "It counts for mail for which SPF passes.")
		run("./filterctl deny"+list+"sender=club@example.net", false, "reject takes client= only")
		run("./filterctl deny -f smtpd.conf -list /run/test/other "+stranger, false, "has no filter-dnsbl that reads /run/test/other")
		if err := s.Signal("filter-dnsbl", syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.eventually("the list is read", func() bool {
			res := s.send(smtpdtest.Mail{Src: stranger, To: "someone"})
			return !res.Accepted()
		})
		comes(listed, "ann@example.com", "inbox")
		comes(stranger, "ann@example.com", "RCPT 550")
		if _, err := s.WaitLog("action=proceed", "by=", "/list:2", "addr="+listed); err != nil {
			t.Error(err)
		}
		if err := s.WriteFile("none.conf", "filter \"dyndns\" proc-exec \"/run/test/filter-dyndns\"\n"); err != nil {
			t.Fatal(err)
		}
		run("./filterctl deny -f none.conf -list /run/test/list 192.0.2.1", false, "none.conf has no filter-dnsbl that reads")
	})
}

// doctor finds each fault that is planted, and nothing where there is none.
func TestFilterctlDoctor(t *testing.T) {
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		serveLists(t)
		unbound(t, "")
		const filtering, public, lying = "127.0.0.1:5313", "8.8.8.8:53", "127.0.0.1:5314"
		filter := func(t *testing.T) { // what unbound is told to do in many tutorials
			t.Helper()
			daemon(t, "no-resolv\nno-hosts\nbind-interfaces\nlisten-address=127.0.0.1\nport=5313\npid-file=\nuser=root\nserver="+
				strings.Replace(realResolver, ":", "#", 1)+"\nstop-dns-rebind\n", "dnsmasq", "--keep-in-foreground", "--conf-file=@CONF@")
		}
		filter(t)
		for at, script := range map[string]string{public: "", lying: "*.invalid A 192.0.2.99\n*.org A 192.0.2.99\n*.net A 192.0.2.99\n"} {
			dns, err := filtertest.StartDNS(at, script)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(dns.Close)
		}
		s := start(t, smtpdtest.Config{
			Release: r, Programs: everyProgram(),
			Zone: smtpdtest.Host("192.0.2.25", "mx.example.org") + smtpdtest.Pointer("192.0.2.26", "mx.example.org"),
		})
		if _, err := s.Run("mkdir a b && cp filter-dyndns a && cp scripted b/filter-dyndns && chmod 755 a b"); err != nil {
			t.Fatal(err)
		}
		well := "filter \"dnsbl\" proc-exec \"/run/test/filter-dnsbl -blockAt 3 -timeout 20s -resolver " + realResolver + " zen.spamhaus.org bl.spamcop.net\"\nlisten on 192.0.2.25 filter \"dnsbl\"\n"
		for _, tt := range []struct {
			name, conf, before string
			bad                []string // beginnings of what follows BAD, but for the clock
		}{
			{"nothing", well, "", nil},
			{"public resolver", strings.Replace(well, realResolver, public, 1), "", []string{
				"C:1: filter dnsbl: a public resolver is asked", "resolver " + public + ": 8.8.8.8 is a public resolver",
				"resolver " + public + ": answers for names, and has the test entry of none of the lists", "C:1: filter dnsbl: zen.spamhaus.org: ",
			}},
			{"127/8 filter", strings.Replace(well, realResolver, filtering, 1), "", []string{
				"resolver " + filtering + ": the resolver removes addresses within 127.0.0.0/8", "C:1: filter dnsbl: the resolver removes addresses",
			}},
			{"lying resolver", strings.Replace(well, realResolver, lying, 1), "", []string{
				"resolver " + lying + ": the resolver invents answers for names that do not exist", "C:1: filter dnsbl: the resolver invents",
			}},
			{"unwritable state", well + "filter \"grey\" proc-exec \"/run/test/filter-greylist -resolver " + realResolver + " -store sqlite:/run/test/mail/g.db -metrics /run/test/g.prom\"\n", "", []string{
				"C:3: filter grey: /run/test: opensmtpd may not write there",
			}},
			{"no FCrDNS", well + "listen on 192.0.2.26\nlisten on 2001:db8::26\nlisten on 10.0.0.1\n", "", []string{
				"address 192.0.2.26: its name mx.example.org does not resolve to it", "address 2001:db8::26: it has no name",
			}},
			{"two filters of one name", well, "PATH=/run/test/a:/run/test/b:$PATH ", []string{
				"/run/test/a/filter-dyndns: there is another, /run/test/b/filter-dyndns",
			}},
			{"another of our name", well, "PATH=/run/test/b:$PATH ", []string{"/run/test/b/filter-dyndns: is another program of this name, not ours"}},
			{"few descriptors", well, "ulimit -n 64; ", []string{"descriptors of who asks: at most 64 descriptors"}},
			{"a wrong flag", well + "filter \"grey\" proc-exec \"/run/test/filter-greylist -nosuch\"\n", "", []string{"C:3: filter grey: filter-greylist: -nosuch: no such flag; see filterctl check"}},
			{"a list that is gone", strings.Replace(well, "bl.spamcop.net", "gone.spamhaus.example", 1), "", []string{"C:1: filter dnsbl: gone.spamhaus.example: "}},
		} {
			if err := s.WriteFile("d.conf", tt.conf); err != nil {
				t.Fatal(err)
			}
			out, err := s.Run(tt.before + "./filterctl doctor -f /run/test/d.conf")
			var bad []string
			for line := range strings.Lines(out) {
				line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "BAD  ")
				if ok && !strings.HasPrefix(line, "clock: ") { // of this machine
					bad = append(bad, strings.ReplaceAll(line, "/run/test/d.conf", "C"))
				}
			}
			if !slices.EqualFunc(bad, tt.bad, strings.HasPrefix) {
				t.Errorf("%s: finds %q, want %q\n%s", tt.name, bad, tt.bad, out)
			}
			if len(bad) > 0 && err == nil {
				t.Errorf("%s: status 0", tt.name)
			}
		}
	})
}
