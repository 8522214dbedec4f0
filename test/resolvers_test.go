//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	checks "opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/test/smtpdtest"
)

const (
	zoneServer   = "127.0.0.1:5311"
	realResolver = "127.0.0.1:5312"
)

// daemon runs a DNS server with a configuration until the function it returns is
// called, or the test ends.
func daemon(t *testing.T, conf string, args ...string) (stop func()) {
	t.Helper()
	name, err := exec.LookPath(args[0])
	if err != nil || !smtpdtest.Inside() {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%s is missing, or these are not the tests' own name spaces: run test/install.sh as root", args[0])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(conf, "@DIR@", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "@CONF@", file)
	}
	cmd := exec.Command(name, args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("%s:\n%s", args[0], &out)
		}
	})
	return stop
}

// unbound asks the servers of the lists, and knows a root that has them only.
func unbound(t *testing.T, more string) (stop func()) {
	port := strings.Split(realResolver, ":")[1]
	conf := fmt.Sprintf(`server:
  interface: 127.0.0.1@%s
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "@DIR@"
  pidfile: ""
  use-syslog: no
  do-not-query-localhost: no
  module-config: "iterator"
  %s
remote-control:
  control-enable: no
auth-zone:
  name: "."
  for-upstream: yes
  for-downstream: no
  zonefile: "@DIR@/conf.root"
`, port, more)
	for _, z := range []string{"zen.spamhaus.org", "bl.spamcop.net", "list.dnswl.org"} {
		conf += fmt.Sprintf("stub-zone:\n  name: %q\n  stub-addr: %s\n", z, strings.Replace(listDNS, ":", "@", 1))
	}
	conf = strings.Replace(conf, `  zonefile: "@DIR@/conf.root"`, `  zonefile: "`+rootZone(t)+`"`, 1)
	return daemon(t, conf, "unbound", "-d", "-c", "@CONF@")
}

func rootZone(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "root")
	text := ". 86400 SOA a.root. nobody. 1 1800 900 604800 86400\n. 86400 NS a.root.\na.root. 86400 A 127.0.0.1\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// A safeLog is a log that may be read while it is written.
type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// asking returns a checker that asks a server about lists.
func asking(t *testing.T, server, lists string) (*checks.Checker, *safeLog) {
	t.Helper()
	log := new(safeLog)
	l := slog.New(slog.NewTextHandler(log, nil))
	servers, err := resolve.ParseServers(server)
	if err != nil {
		t.Fatal(err)
	}
	parsed, errs := checks.Parse(lists)
	if errs != nil {
		t.Fatal(errs)
	}
	r := resolve.New(resolve.Options{Servers: servers, Timeout: 3 * time.Second, Log: l})
	c := checks.New(checks.Options{Lists: parsed, BlockAt: 3, Timeout: 20 * time.Second, Resolver: r, Log: l})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { c.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		r.Close()
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	return c, log
}

// eventually waits until a thing is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func blocked(c *checks.Checker, addr string) bool {
	ctx := context.Background()
	return c.Begin(ctx, netip.MustParseAddr(addr)).Verdict(ctx).Verdict == checks.Block
}

// Unbound and dnsmasq that remove addresses within 127.0.0.0/8, and no longer do;
// and unbound that is away for a while. It is said once, of the resolver.
func TestRealResolvers(t *testing.T) {
	const lists = "zen.spamhaus.org bl.spamcop.net"
	dnsmasq := func(t *testing.T, more ...string) func() {
		args := []string{"dnsmasq", "-k", "-C", "/dev/null", "-u", "root", "-p", strings.Split(realResolver, ":")[1], "--listen-address=127.0.0.1", "--bind-interfaces",
			"--no-resolv", "--no-hosts", "--pid-file=", "--server=" + strings.Replace(listDNS, ":", "#", 1)}
		return daemon(t, "", append(args, more...)...)
	}
	for _, tt := range []struct {
		name      string
		bad, good func(*testing.T) func()
	}{
		{"unbound", func(t *testing.T) func() { return unbound(t, "private-address: 127.0.0.0/8") }, func(t *testing.T) func() { return unbound(t, "") }},
		{"dnsmasq", func(t *testing.T) func() { return dnsmasq(t, "--stop-dns-rebind") },
			func(t *testing.T) func() {
				return dnsmasq(t, "--stop-dns-rebind", "--rebind-domain-ok=/spamhaus.org/spamcop.net/")
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serveLists(t)
			stop := tt.bad(t)
			c, log := asking(t, realResolver, lists)
			eventually(t, "the resolver is blamed", func() bool { return strings.Contains(log.String(), "127.0.0.0/8") })
			if blocked(c, "203.0.113.1") {
				t.Error("blocked")
			}
			stop()
			tt.good(t)
			eventually(t, "a listed client is refused", func() bool { return blocked(c, "203.0.113.6") || blocked(c, "203.0.113.7") })
			if n := strings.Count(log.String(), "level=WARN"); n != 1 {
				t.Errorf("%d lines, want one", n)
			}
		})
	}
	t.Run("unbound is away", func(t *testing.T) {
		serveLists(t)
		stop := unbound(t, "")
		c, log := asking(t, realResolver, lists)
		eventually(t, "a listed client is refused", func() bool { return blocked(c, "203.0.113.1") })
		stop()
		n := 0
		eventually(t, "the resolver is blamed", func() bool {
			n++
			blocked(c, fmt.Sprintf("198.51.100.%d", n%250))
			return strings.Contains(log.String(), "the resolver does not answer")
		})
		unbound(t, "")
		eventually(t, "a listed client is refused again", func() bool { return blocked(c, "203.0.113.6") })
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d lines, want one", n)
		}
	})
}

// Lists that list everybody, as nsd and rbldnsd serve them: a wildcard beside the
// test entries, and 0/0 without 127.0.0.1.
func TestRealWorlds(t *testing.T) {
	t.Run("nsd", func(t *testing.T) {
		zone := filepath.Join(t.TempDir(), "zone")
		text := "$ORIGIN bl.example.\n$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n* A 127.0.0.2\n2.0.0.127 A 127.0.0.2\n"
		if err := os.WriteFile(zone, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		daemon(t, fmt.Sprintf("server:\n  ip-address: %s\n  username: \"\"\n  zonesdir: \"@DIR@\"\n  database: \"\"\n  pidfile: \"\"\n  xfrdfile: \"@DIR@/xfrd\"\n  zonelistfile: \"@DIR@/list\"\n"+
			"remote-control:\n  control-enable: no\nzone:\n  name: bl.example\n  zonefile: %s\n", strings.Replace(zoneServer, ":", "@", 1), zone), "nsd", "-d", "-c", "@CONF@")
		c, log := asking(t, zoneServer, "bl.example*5+v4")
		eventually(t, "the list is found out", func() bool { return strings.Contains(log.String(), "lists the world") })
		if blocked(c, "198.51.100.1") {
			t.Error("a good client is refused")
		}
	})
	t.Run("rbldnsd", func(t *testing.T) {
		serveZones(t, zoneServer, []listZone{{"bl.example", "ip4trie", "0.0.0.0/0 :127.0.0.2:\n!127.0.0.1\n"}})
		c, log := asking(t, zoneServer, "bl.example*5+v4")
		c.Test(t.Context())
		refused := 0
		for i := range 250 {
			if blocked(c, fmt.Sprintf("198.51.%d.1", i)) {
				refused++
			}
		}
		if refused > 51 {
			t.Errorf("%d refused", refused)
		}
		eventually(t, "the list is found out", func() bool { return strings.Contains(log.String(), "random entries are listed, 16 of 16") })
	})
}
