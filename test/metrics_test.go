//go:build linux

package test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
)

// prometheusDir is where test/install.sh puts programs of Prometheus.
const prometheusDir = "/var/cache/opensmtpd-filters/prometheus"

// prometheusTool returns the path of one of them. If it is missing the test is
// skipped, and fails where CI is set.
func prometheusTool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(prometheusDir, name)
	if _, err := os.Stat(path); err != nil {
		msg := fmt.Sprintf("%s is missing; run test/install.sh as root (%v)", name, err)
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	return path
}

// metricsArgs are command lines with which each filter has something to count.
func metricsArgs(filter, dir string) (args []string, known bool) {
	list := filepath.Join(dir, "list")
	args, known = map[string][]string{
		"filter-dnsbl":       {"-blockAt", "1", "-allowClients", list, "zen@zen.example", "KEY.zen.dq.example"},
		"filter-dyndns":      {"-allowClients", list},
		"filter-greet":       {"-wait", "0", "-allowClients", list},
		"filter-greylist":    {"-store", "memory:", "-allowClients", list},
		"filter-senderscore": {"-blockBelow", "50", "-stateFile", "", "-allowClients", list},
	}[filter]
	if filter != "filter-greet" {
		args = append([]string{"-timeout", "50ms"}, args...)
	}
	return append([]string{"-resolver", "127.0.0.1:9"}, args...), known
}

// count lets a filter hear a recorded session and write its metrics to file. Of
// a flag that comes again the last one counts.
func count(t *testing.T, filter, file string, more ...string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte("192.0.2.0/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args, known := metricsArgs(filter, dir)
	if !known {
		t.Fatalf("no command line for %s", filter)
	}
	args = append(args, more...)
	in, err := fs.ReadFile(filtertest.Traces(), "7.8-proto0.7/17_multi_rcpt.in")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), filter), append([]string{"-metrics", file}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &log)
	}
}

func TestPromtool(t *testing.T) {
	noteSources(t)
	promtool := prometheusTool(t, "promtool")
	for _, filter := range filters() {
		file := filepath.Join(t.TempDir(), filter+".prom")
		count(t, filter, file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: promtool check metrics: %v\n%s", filter, err, out)
		}
		name := strings.TrimPrefix(filter, "filter-")
		for _, want := range []string{
			"filter_build_info{", "filter_start_time_seconds{", "filter_requests_total{", "filter_panics_total{",
			`filter_file_read_time_seconds{file="`, "filter_decisions_total{", "filter_resolve_seconds_bucket{",
		} {
			if !bytes.Contains(text, []byte("\n"+want)) {
				t.Errorf("%s has no %s", filter, want)
			}
		}
		for _, s := range series(string(text)) {
			if !strings.Contains(s, fmt.Sprintf("filter=%q,filter_instance=%q", name, filter)) {
				t.Errorf("%s does not say whose it is", s)
			}
		}
	}
}

// series returns the series of ours in Prometheus text, without their values.
func series(text string) (names []string) {
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); strings.HasPrefix(line, "filter_") && i > 0 {
			names = append(names, line[:i])
		}
	}
	slices.Sort(names)
	return names
}

// Two instances of each filter, side by side with all others, keep every series
// in what node_exporter serves.
func TestNodeExporter(t *testing.T) {
	noteSources(t)
	exporter := prometheusTool(t, "prometheus-node-exporter")
	dir := t.TempDir()
	var want []string
	for _, filter := range filters() {
		for _, instance := range []string{"", "-strict"} {
			file := filepath.Join(dir, filter+instance+".prom")
			count(t, filter, file)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, series(string(text))...)
		}
	}
	slices.Sort(want)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.CommandContext(t.Context(), exporter, "--collector.disable-defaults", "--collector.textfile",
		"--collector.textfile.directory="+dir, "--web.listen-address="+addr)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if text, err = get("http://" + addr + "/metrics"); err == nil || time.Now().After(end) {
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	if !strings.Contains(text, "\nnode_textfile_scrape_error 0\n") {
		t.Errorf("node_exporter has errors:\n%s", &log)
	}
	got := series(text)
	if len(want) < 100 || len(got) != len(want) {
		t.Errorf("node_exporter has %d series, the files %d\n%s", len(got), len(want), &log)
	}
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Errorf("lost: %s", s)
		}
	}
}

func get(url string) (string, error) {
	r, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}
