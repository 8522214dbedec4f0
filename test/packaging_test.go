//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/test/smtpdtest"
)

const (
	rules     = "../packaging/prometheus/opensmtpd-filters.rules.yml"
	ruleTests = "../packaging/prometheus/opensmtpd-filters.test.yml"
	dashboard = "../packaging/grafana/opensmtpd-filters.json"
	jailed    = "../packaging/fail2ban/opensmtpd-filters.conf"
)

// Alerts fire where something is wrong, are silent where nothing is, and are about
// metrics that there are.
func TestAlerts(t *testing.T) {
	promtool := prometheusTool(t, "promtool")
	for _, args := range [][]string{{"check", "rules", rules}, {"test", "rules", ruleTests}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	knownNames(t, rules, string(text))

	// A rule that is changed is noticed.
	dir := t.TempDir()
	tests, err := os.ReadFile(ruleTests)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{filepath.Base(ruleTests): tests, filepath.Base(rules): bytes.Replace(text, []byte("> 900"), []byte("> 90000"), 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", filepath.Join(dir, filepath.Base(ruleTests))).CombinedOutput(); err == nil {
		t.Errorf("promtool does not see that a rule was changed:\n%s", out)
	}
}

// knownNames has every metric in a text be one of the code.
func knownNames(t *testing.T, what, text string) {
	t.Helper()
	var names []string
	for _, m := range declaredMetrics(t) {
		names = append(names, m.name, m.name+"_bucket")
	}
	word := func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	for _, w := range strings.FieldsFunc(text, word) {
		if strings.HasPrefix(w, "filter_") && w != "filter_instance" && !slices.Contains(names, w) {
			t.Errorf("%s: nothing counts %s", what, w)
		}
	}
}

// queries returns the queries of the dashboard, of which Grafana replaces words.
func queries(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	knownNames(t, dashboard, string(text))
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all = append(all, strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$host", ".*", "$filter", ".*").Replace(q.Expr))
		}
	}
	return all
}

// Each query of the dashboard has an answer from what real filters have written.
func TestDashboard(t *testing.T) {
	noteSources(t)
	prometheus, exporter := prometheusTool(t, "prometheus"), prometheusTool(t, "prometheus-node-exporter")
	files := t.TempDir()
	for _, filter := range filters() {
		count(t, filter, filepath.Join(files, filter+".prom"))
	}
	count(t, "filter-greylist", filepath.Join(files, "records.prom"), "-store", "sqlite:"+filepath.Join(t.TempDir(), "greylist.db"))
	exporterAt, prometheusAt := freeAddress(t), freeAddress(t)
	conf := filepath.Join(t.TempDir(), "prometheus.yml")
	abs, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n- job_name: node\n  static_configs: [{targets: [%q]}]\n", abs, exporterAt)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	background(t, exporter, "--collector.disable-defaults", "--collector.textfile", "--collector.textfile.directory="+files, "--web.listen-address="+exporterAt)
	background(t, prometheus, "--config.file="+conf, "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+prometheusAt, "--log.level=warn")

	left := queries(t)
	if len(left) < 20 {
		t.Fatalf("only %d queries", len(left))
	}
	var last error
	for end := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		left = slices.DeleteFunc(left, func(q string) bool {
			n, err := answers(prometheusAt, q)
			if err != nil {
				last = err
			}
			return n > 0
		})
	}
	for _, q := range left {
		t.Errorf("no data for %s (%v)", q, last)
	}
}

// answers returns how many series a query has.
func answers(prometheus, query string) (int, error) {
	text, err := get("http://" + prometheus + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	var r struct {
		Data struct{ Result []json.RawMessage }
	}
	err = json.Unmarshal([]byte(text), &r)
	return len(r.Data.Result), err
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// background runs a program until the test ends.
func background(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), &log)
		}
	})
}

// fail2ban counts the clients that were refused, and no others, whatever they say.
func TestFail2ban(t *testing.T) {
	program, err := exec.LookPath("fail2ban-regex")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("fail2ban is not installed: run test/install.sh as root")
	}
	onNewest(t, func(t *testing.T, r smtpdtest.Release) {
		s := start(t, smtpdtest.Config{Release: r, Zone: dyndnsZone, Filters: []smtpdtest.Filter{
			{Name: "dry", Command: "filter-dyndns -dynamic refuse -dryRun"},
			{Name: "dyndns", Command: "filter-dyndns -dynamic refuse -mismatch defer -none junk -helo=false -phase rcpt-to"},
		}})
		// smtpd writes commands that it refuses as they come.
		for _, forged := range []string{`EHLO x" filter=x action=refuse addr=192.0.2.99`, `MAIL FROM:<"0123456789abcdef filter=x action=refuse addr=192.0.2.98 "@example.com>`} {
			c, err := s.Dial(proper)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Reply(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Do(forged); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if _, err := s.WaitLog("failed-command", "addr=192.0.2.9"); err != nil {
				t.Fatal(err)
			}
		}
		for _, src := range []string{dynamic, dynamic6, nofwd, noname, proper} {
			s.send(smtpdtest.Mail{Src: src, To: "bob"})
			if _, err := s.WaitLog("dyndns: ", "filter=dyndns", "action=", "addr="+src); err != nil {
				t.Fatal(err)
			}
		}
		var log strings.Builder
		for line := range strings.Lines(s.Log()) {
			log.WriteString("Dec  1 12:00:00 mx smtpd[77]: " + line)
		}
		dir := t.TempDir()
		for name, from := range map[string]string{"common.conf": "/etc/fail2ban/filter.d/common.conf", "opensmtpd-filters.conf": jailed} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(dir, "maillog")
		if err := os.WriteFile(file, []byte(log.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(program, "--out", "ip", file, filepath.Join(dir, "opensmtpd-filters.conf")).Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		want := []string{dynamic6, dynamic}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("fail2ban counts %q, want %q, in\n%s", got, want, &log)
		}
	})
}
