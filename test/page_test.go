//go:build linux

package test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/test/mixed"
)

// A browser is Debian's chromium without a window, and one page in it. It is told
// what to do by messages in JSON, each ended by a zero byte (Chrome DevTools
// Protocol).
type browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	session string
	id      int
	seen    []string // requests, lines of the console and errors
}

type devtools struct {
	ID        int             `json:"id,omitempty"`
	Method    string          `json:"method,omitempty"`
	Session   string          `json:"sessionId,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Exception json.RawMessage `json:"error,omitempty"`
}

// startBrowser starts it for the rest of the test.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("chromium-headless-shell is not installed: run test/install.sh")
	}
	in, to, err1 := os.Pipe()
	from, out, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "chromium") // to which its processes still write when it has ended
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--user-data-dir="+profile, "about:blank")
	cmd.ExtraFiles = []*os.File{in, out}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = errors.Join(in.Close(), out.Close())
	t.Cleanup(func() {
		_ = to.Close() // it ends
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = from.Close()
		_ = os.RemoveAll(profile)
	})
	if err := from.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil { // only for a hang
		t.Fatal(err)
	}
	b := &browser{t: t, to: to, from: bufio.NewReader(from)}
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// call makes the browser do something, and waits until it has.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.id++
	text, err := json.Marshal(params)
	if err != nil {
		b.t.Fatal(err)
	}
	text, err = json.Marshal(devtools{ID: b.id, Method: method, Session: b.session, Params: text})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatal(err)
	}
	for {
		m := b.next()
		if m.ID != b.id {
			continue
		}
		if m.Exception != nil {
			b.t.Fatalf("%s: %s", method, m.Exception)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
		return
	}
}

// next reads a message, and notes what a page must not do.
func (b *browser) next() (m devtools) {
	b.t.Helper()
	text, err := b.from.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
		b.t.Fatalf("chromium: %v", err)
	}
	switch m.Method {
	case "Network.requestWillBeSent":
		var p struct{ Request struct{ URL string } }
		_ = json.Unmarshal(m.Params, &p)
		if !strings.HasPrefix(p.Request.URL, "data:") {
			b.seen = append(b.seen, "request "+p.Request.URL)
		}
	case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
		b.seen = append(b.seen, m.Method+" "+string(m.Params))
	}
	return m
}

// open opens a file.
func (b *browser) open(path string) {
	b.t.Helper()
	b.seen = nil
	b.call("Page.navigate", map[string]any{"url": "file://" + path}, nil)
	for b.next().Method != "Page.loadEventFired" {
	}
}

// eval evaluates an expression of JavaScript.
func (b *browser) eval(expr string) (value any) {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expr, "returnByValue": true, "awaitPromise": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expr, r.ExceptionDetails)
	}
	return r.Result.Value
}

// ask writes into the search, as one who types does, and returns what is found.
func (b *browser) ask(question string) string {
	b.t.Helper()
	quoted, _ := json.Marshal(question)
	b.eval(`document.getElementById("query").value = ` + string(quoted) + `; document.getElementById("query").dispatchEvent(new Event("input", {bubbles: true}))`)
	return fmt.Sprint(b.eval(`new Promise(done => setTimeout(() => done(document.getElementById("search").innerText), 300))`))
}

// screenshot makes a picture of the whole page.
func (b *browser) screenshot(path string, width int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if wide := b.eval("document.documentElement.scrollWidth"); wide.(float64) > float64(width) {
		b.t.Errorf("%d pixels wide, the page needs %v", width, wide)
	}
}

// The page of filterctl report in a browser. With -artifacts the pictures stay.
func TestReportPage(t *testing.T) {
	noteSources(t)
	b := startBrowser(t)
	dir := t.ArtifactDir()
	log := filepath.Join(t.TempDir(), "maillog")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	_, err = mixed.Log{Lines: 60_000, Distinct: 2000, Seed: 1, Span: 30 * time.Hour}.Write(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	metrics := filepath.Join(t.TempDir(), "dnsbl.prom")
	if err := os.WriteFile(metrics, []byte(listMetrics), 0o644); err != nil {
		t.Fatal(err)
	}
	recorded, err := filepath.Abs("../pkg/maillog/testdata/7.9.log")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"recorded", []string{recorded}},
		{"large", []string{"-metrics", metrics, log}},
		{"anonymous", []string{"-anonymise", recorded}},
	} {
		page := filepath.Join(dir, tt.name+".html")
		cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "filterctl"), append([]string{"report", "-html", page}, tt.args...)...)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		b.open(page)
		if tt.name == "recorded" {
			got := b.ask("Why did shop@sender.example wait?")
			for _, want := range []string{"3 found", "deferred", "Told to wait by greylist: new; came again", "accepted", "Taken after it had waited 3s for greylisting"} {
				if !strings.Contains(got, want) {
					t.Errorf("the search does not say %q:\n%s", want, got)
				}
			}
			got = b.ask("why was 198.51.100.67 refused")
			for _, want := range []string{"2 found", "Refused by dnsbl: score"} {
				if !strings.Contains(got, want) {
					t.Errorf("the search does not say %q:\n%s", want, got)
				}
			}
			if got = b.ask("doubtful.example"); !strings.Contains(got, "1 found") || !strings.Contains(got, "answers DATA with 451") {
				t.Errorf("one that is found alone is not shown:\n%s", got)
			}
			if got = b.ask("<script>alert(1)</script>"); !strings.Contains(got, "Nothing found") {
				t.Errorf("the search says\n%s", got)
			}
			b.ask("Why did shop@sender.example wait?")
		}
		if tt.name == "anonymous" {
			if text := fmt.Sprint(b.eval("document.documentElement.outerHTML")); strings.Contains(text, "sender.example") || strings.Contains(text, "198.51.100") || strings.Contains(text, "example.org") {
				t.Error("there are real names in it")
			}
		}
		for _, shot := range []struct {
			width  int
			scheme string
		}{{1200, "light"}, {1200, "dark"}, {400, "light"}} {
			b.screenshot(filepath.Join(dir, fmt.Sprintf("%s-%s-%d.png", tt.name, shot.scheme, shot.width)), shot.width, shot.scheme)
		}
		if len(b.seen) != 1 || b.seen[0] != "request file://"+page {
			t.Errorf("%s: the page has done more than be read:\n%s", tt.name, strings.Join(b.seen, "\n"))
		}
	}
}

// What filter-dnsbl writes with -metrics, in part.
const listMetrics = `# TYPE filter_dnsbl_asked_total counter
filter_dnsbl_asked_total{filter="dnsbl",filter_instance="dnsbl",zone="zen"} 900
filter_dnsbl_asked_total{filter="dnsbl",filter_instance="dnsbl",zone="spamcop"} 900
filter_dnsbl_asked_total{filter="dnsbl",filter_instance="dnsbl",zone="uceprotect"} 800
# TYPE filter_dnsbl_errors_total counter
filter_dnsbl_errors_total{filter="dnsbl",filter_instance="dnsbl",kind="timeout",zone="spamcop"} 40
# TYPE filter_dnsbl_list_good gauge
filter_dnsbl_list_good{filter="dnsbl",filter_instance="dnsbl",zone="zen"} 1
filter_dnsbl_list_good{filter="dnsbl",filter_instance="dnsbl",zone="spamcop"} 1
filter_dnsbl_list_good{filter="dnsbl",filter_instance="dnsbl",zone="uceprotect"} 0
# TYPE filter_dnsbl_answer_seconds histogram
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="zen",le="0.05"} 890
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="zen",le="5"} 900
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="zen",le="+Inf"} 900
filter_dnsbl_answer_seconds_sum{filter="dnsbl",filter_instance="dnsbl",zone="zen"} 12
filter_dnsbl_answer_seconds_count{filter="dnsbl",filter_instance="dnsbl",zone="zen"} 900
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="spamcop",le="0.05"} 100
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="spamcop",le="5"} 860
filter_dnsbl_answer_seconds_bucket{filter="dnsbl",filter_instance="dnsbl",zone="spamcop",le="+Inf"} 900
filter_dnsbl_answer_seconds_sum{filter="dnsbl",filter_instance="dnsbl",zone="spamcop"} 1200
filter_dnsbl_answer_seconds_count{filter="dnsbl",filter_instance="dnsbl",zone="spamcop"} 900
`
