//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"opensmtpd-filters/pkg/filtertest"
	"opensmtpd-filters/pkg/sandbox"
	"opensmtpd-filters/test/redistest"
)

// ownFlags are flags with which a filter has a list, LIST, or a folder to write
// to, STATE, that only it has.
var ownFlags = map[string]string{
	"filter-dnsbl":       "-blockAt 1 @LIST",
	"filter-dyndns":      "-match LIST",
	"filter-greet":       "",
	"filter-greylist":    "-store sqlite:STATE/db -trap LIST -keyFile KEYS/key",
	"filter-senderscore": "-blockBelow 10 -stateFile STATE/state -allowlist LIST",
}

// ownList has something for LIST.
var ownList = map[string]string{
	"filter-dnsbl": "zen.example", "filter-dyndns": "*.dyn.example", "filter-greylist": "trap@example.org", "filter-senderscore": "192.0.2.1",
}

// None of the built filters, run by root, reads a file that everybody may read,
// nor writes to a folder in which everybody may write, if it is another than those
// on its command line; without a sandbox each does. Lists that are replaced are
// read again.
func TestSandbox(t *testing.T) {
	noteSources(t)
	if !strings.HasPrefix(sandbox.By(), "landlock ") {
		text := "needs a kernel with Landlock, which says: " + sandbox.By()
		if os.Getenv("CI") != "" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	for _, filter := range filters() {
		flags, known := ownFlags[filter]
		if !known {
			t.Errorf("no command line for %s", filter)
			continue
		}
		for _, on := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", filter, on), func(t *testing.T) { tryOutside(t, filter, flags, on) })
		}
	}
}

func tryOutside(t *testing.T, filter, flags string, on bool) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(dir+name), 0o755))
		must(os.WriteFile(dir+name, []byte(text+"\n"), 0o644))
	}
	must(os.Mkdir(dir+"/state", 0o700))
	for _, d := range []string{"/outside", "/outside/open", "/prom"} {
		must(os.Mkdir(dir+d, 0o777))
		must(os.Chmod(dir+d, 0o777))
	}
	write("/clients/allow", "192.0.2.1")
	write("/senders/allow", "ann@example.net")
	write("/keys/key", strings.Repeat("0123456789abcdef", 4))
	write("/outside/clients", "192.0.2.1\n192.0.2.2")
	own := ownList[filter]
	if own != "" {
		write("/own/list", own)
		write("/outside/own", own)
	}
	flags = strings.NewReplacer("LIST", dir+"/own/list", "STATE", dir+"/state", "KEYS", dir+"/keys").Replace(flags)
	args := append([]string{
		fmt.Sprintf("-sandbox=%v", on), "-commonList", "", "-resolver", "127.0.0.1:9", "-metrics", dir + "/prom/x.prom",
		"-allowClients", dir + "/clients/allow", "-allowSenders", dir + "/senders/allow",
	}, strings.Fields(flags)...)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv(binEnv), filter), args...)
	in, err := cmd.StdinPipe()
	must(err)
	log := new(sandboxLog)
	cmd.Stderr = log
	must(cmd.Start())
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
			t.Error(err)
		}
	}()
	// A signal may come before the filter listens, so it is sent again.
	hup := func(want string) {
		t.Helper()
		for n := 0; !strings.Contains(log.String(), want); n++ {
			if n%50 == 0 {
				_ = cmd.Process.Signal(syscall.SIGHUP)
			}
			select {
			case <-ctx.Done():
				t.Fatalf("waiting for %q in the log:\n%s", want, log)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	for { // it may not be sent before the filter would survive it
		if _, err := os.Stat(dir + "/prom/x.prom"); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("no metrics\n%s", log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := strings.Count(log.String(), "sandbox in force by="); n != map[bool]int{true: 1}[on] {
		t.Errorf("%d lines about the sandbox:\n%s", n, log)
	}
	statuses, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	must(err)
	for _, path := range statuses {
		text, err := os.ReadFile(path)
		if want := map[bool]string{true: "1", false: "0"}[on]; err == nil && !strings.Contains(string(text), "\nNoNewPrivs:\t"+want+"\n") {
			t.Errorf("%s has not no_new_privs %s", path, want)
		}
	}

	if _, err := io.WriteString(in, "config|ready\nreport|0.7|1576146008.006099|smtp-in|link-connect|7641df9771b4ed00|<unknown>|fail|8.8.8.8:33174|192.0.2.9:25\n"); err != nil {
		t.Error(err)
	}

	// A file of its name, by rename, is read.
	write("/senders/new", "ann@example.net\nbob@example.net")
	must(os.Rename(dir+"/senders/new", dir+"/senders/allow"))
	hup("file read again file=" + dir + "/senders/allow entries=2 ")

	// What is elsewhere is not.
	outside := map[string]string{"/clients/allow": "/outside/clients"}
	if own != "" {
		outside["/own/list"] = "/outside/own"
	}
	for name, to := range outside {
		must(os.Remove(dir + name))
		must(os.Symlink(dir+to, dir+name))
	}
	must(os.Rename(dir+"/prom", dir+"/old"))
	must(os.Symlink(dir+"/outside/open", dir+"/prom"))
	for name := range outside {
		if on {
			hup("file not usable, keeping what was read before file=" + dir + name)
		} else {
			hup("file read again file=" + dir + name)
		}
	}
	if on {
		hup("restart smtpd, once it is as it will stay folder=" + dir + "/outside\n")
		if !strings.Contains(log.String(), "permission denied") {
			t.Errorf("the log does not say why:\n%s", log)
		}
	}
	must(in.Close())
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	made, err := os.ReadDir(dir + "/outside/open")
	must(err)
	if on && len(made) > 0 {
		t.Errorf("%v was made outside", made)
	}
	if !on && len(made) == 0 {
		t.Errorf("nothing was written without a sandbox, so the test shows nothing:\n%s", log)
	}
	if filter == "filter-greylist" || filter == "filter-senderscore" {
		if made, err = os.ReadDir(dir + "/state"); err != nil || len(made) == 0 {
			t.Errorf("nothing was written to the folder of its state (%v)", err)
		}
	}
}

// A shared store is reached from the sandbox: with TLS, and on a socket.
func TestSandboxRedis(t *testing.T) {
	noteSources(t)
	cert, key := redistest.Certificates(t)
	port := redistest.FreePort(t)
	server := redistest.Start(t, redistest.Redis, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	keys := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keys, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := fs.ReadFile(filtertest.Traces(), "7.8-proto0.7/17_multi_rcpt.in")
	if err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{
		"tls":    "rediss://127.0.0.1:" + port + "?ca=" + cert,
		"named":  "redis://localhost:" + server.Port + "?prefix=named",
		"socket": "redis+unix://" + server.Socket + "?prefix=socket",
	} {
		t.Run(name, func(t *testing.T) {
			server.Do("FLUSHALL")
			cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binEnv), "filter-greylist"), "-store", url, "-keyFile", keys,
				"-who", "all", "-trusted", "none", "-resolver", "127.0.0.1:9", "-commonList", "")
			cmd.Stdin = bytes.NewReader(in)
			var log bytes.Buffer
			cmd.Stderr = &log
			if err := cmd.Run(); err != nil {
				t.Errorf("%v\n%s", err, &log)
			}
			if n := server.Do("DBSIZE"); n == "0" || !strings.Contains(log.String(), "sandbox ") {
				t.Errorf("%s keys on the server\n%s", n, &log)
			}
		})
	}
}

// A sandboxLog is the log of a filter. It may be written and read at the same time.
type sandboxLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *sandboxLog) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *sandboxLog) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
