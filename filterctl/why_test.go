package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const recorded = "../pkg/maillog/testdata/"

// filterctl runs a command and returns what it prints.
func filterctl(t *testing.T, in string, args ...string) (out, bad string, status int) {
	t.Helper()
	var o, e bytes.Buffer
	status = run(args, strings.NewReader(in), &o, &e)
	return o.String(), e.String(), status
}

// inOrder reports the first of some expressions that is not found behind the one
// before.
func inOrder(text string, exprs []string) string {
	for _, expr := range exprs {
		at := regexp.MustCompile(expr).FindStringIndex(text)
		if at == nil {
			return expr
		}
		text = text[at[1]:]
	}
	return ""
}

func TestWhy(t *testing.T) {
	const deferral = `deferred\n +client   192\.88\.99\.10 \(no name\)\n +mail     from <shop@sender.example> to <dave@example.org>\n`
	for _, file := range []string{"6.8.log", "7.6.rfc5424.gz", "7.9.iso.gz", "6.8.export.gz", "7.9.export.gz"} {
		for _, tt := range []struct {
			name, pattern string
			want          []string
		}{
			{"deferred, retried, accepted, delivered", "Shop@Sender.example", []string{
				deferral, `greylist  defer: new \(.*left=3s`, `smtpd     answers DATA with 451 4.7.1 Greylisted`, `came again \S+ later, in session \w{16}\n`,
				`accepted\n`, `greylist  proceed: retry \(.*delay=3s`, `takes message \w{8}\n`, `delivers to <dave@example.org>, user nobody after \ds: Delivered`,
				`filterctl allow client=192\.88\.99\.10\n$`}},
			{"refused", "198.51.100.66", []string{
				`refused\n +client   198\.51\.100\.66 \(no name\)\n`, `dnsbl     refuse: score \(score=5 bl.example=5`,
				`smtpd     answers RCPT TO:<ann@example.org> with 550 5.7.1 Service unavailable; client \[198.51.100.66\]`,
				`accepted\n`, `to <postmaster@example.org>`, `filterctl allow client=198\.51\.100\.66\n`}},
			{"junked, then deferred by the next", "info@doubtful.example", []string{
				`deferred\n`, `dnsbl     junk: score`, `greylist  defer: new`, `answers DATA with 451`, `has not come again`,
				`filterctl allow sender=doubtful.example `}},
			{"junked by one, deferred by the next, delivered", "home@provider.example", []string{
				`deferred\n`, `dyndns    junk: dynamic`, `greylist  defer: new`, `junked\n`, `takes message \w{8}, marked as junk`, `delivers to <erin@example.org>`}},
			{"by name", "p203-0-113-20.dip.provider.example", []string{`from <home@provider.example>`}},
			{"by domain", "doubtful.example", []string{`from <info@doubtful.example>`}},
			{"by network", "198.51.100.64/30", []string{`198\.51\.100\.66`, `198\.51\.100\.67`}},
			{"address of IPv6, written otherwise", "2001:DB8:1:0::80", []string{`client   2001:db8:1::80 \(mx6.good.example\)`, `accepted|delivers`}},
			{"one refused, one taken", "more@spammer.example", []string{`refused`, `answers RCPT TO:<ann@`, `refuse: .*more=1`, `answers RCPT TO:<bob@`, `delivers to <postmaster@`}},
			{"an unknown user", "nobody-here@example.org", []string{`refused`, `answers RCPT TO:<nobody-here@example.org> with 550 Invalid recipient`}},
			{"relayed", "friend@elsewhere.example", []string{`client   this machine`, `delivers to <friend@elsewhere.example> to 192.0.2.99`}},
		} {
			out, bad, status := filterctl(t, "", "why", tt.pattern, recorded+file)
			if missing := inOrder(out, tt.want); missing != "" || status != 0 || bad != "" {
				t.Errorf("%s, %s: no %s, status %d\n%s%s", file, tt.name, missing, status, out, bad)
			}
		}
	}
}

// Asked for one session, it tells also how the mail of that came again.
func TestWhySession(t *testing.T) {
	out, _, _ := filterctl(t, "", "why", "shop@sender.example", recorded+"7.9.log")
	ids := regexp.MustCompile(`(?m)^\S+ \S+  (\w{16})`).FindAllStringSubmatch(out, -1)
	if len(ids) < 2 {
		t.Fatalf("%s", out)
	}
	for _, id := range ids {
		again, bad, _ := filterctl(t, "", "why", id[1], recorded+"7.9.log")
		if again != out {
			t.Errorf("%s:\n%s%s\nwant\n%s", id[1], again, bad, out)
		}
	}
	text, err := os.ReadFile(recorded + "7.9.log")
	if err != nil {
		t.Fatal(err)
	}
	one, _, _ := filterctl(t, string(text), "why", ids[0][1], "-") // cannot be read twice
	if inOrder(one, []string{ids[0][1]}) != "" || strings.Contains(one, ids[1][1]) {
		t.Errorf("from standard input:\n%s", one)
	}
}

func TestWhyNothing(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"why", "want an address"},
		{"why nobody.example " + recorded + "7.9.log", "no session of nobody.example in"},
		{"why ubtful.example " + recorded + "7.9.log", "no session of"}, // only whole words
		{"why doubtful.example -since 1s " + recorded + "7.9.log", "no session of"},
		{"why a@b.example /nowhere/maillog", "/nowhere/maillog: no such file"},
	} {
		out, bad, status := filterctl(t, "", strings.Fields(tt.args)...)
		if out != "" || status != 1 || !strings.Contains(bad, tt.want) {
			t.Errorf("%s: status %d, %q, %q", tt.args, status, out, bad)
		}
	}
}

// What strangers write does not move the cursor.
func TestWhyHostile(t *testing.T) {
	log := "5f45b59b1594b3c3 smtp connected address=192.0.2.1 host=a\x1b[2J.example\n" +
		"5f45b59b1594b3c3 smtp failed-command command=\"RCPT TO:<\x1b]0;x\x07@example.org>\" result=\"550 \x9b\"\n" +
		"dnsbl: 5f45b59b1594b3c3 filter=dnsbl action=refuse reason=score addr=192.0.2.1 name=x from=<\"\x1b[1m\"@a.example> rcpt=<b@example.org> score=1\n"
	out, _, status := filterctl(t, log, "why", "192.0.2.1", "-")
	if status != 0 || strings.ContainsAny(out, "\x1b\x07\u009b") || !strings.Contains(out, `\u001b`) {
		t.Errorf("status %d, %q", status, out)
	}
}

func TestSystemLogs(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	for i, name := range []string{"maillog", "maillog.0.gz", "maillog.1.gz", "mail.log-20261201", "maillog.2.gz", "maillog.old", "mailer"} {
		path, written := filepath.Join(dir, name), now.Add(-time.Duration(i)*time.Hour)
		if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Chtimes(path, written, written)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, path := range systemLogs(dir, now.Add(-210*time.Minute)) {
		got = append(got, filepath.Base(path))
	}
	if strings.Join(got, " ") != "mail.log-20261201 maillog.1.gz maillog.0.gz maillog" {
		t.Errorf("%q", got)
	}
}
