package redistest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Do asks a server something, and returns what it says, as text.
func (s *Server) Do(args ...any) string {
	s.tb.Helper()
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
	defer c.Close()
	v, err := c.Do(context.Background(), args...).Result()
	if err != nil && err != redis.Nil {
		s.tb.Errorf("%v: %v", args, err)
	}
	return fmt.Sprint(v)
}

// Info returns a number that the server tells of itself.
func (s *Server) Info(section, field string) (n int64) {
	s.tb.Helper()
	for line := range strings.Lines(s.Do("INFO", section)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n
}

// Addr is where the server listens.
func (s *Server) Addr() string { return "127.0.0.1:" + s.Port }

// StartCluster runs three masters with a third of the slots each.
func StartCluster(tb testing.TB, kind Kind) []*Server {
	tb.Helper()
	var servers []*Server
	args := []string{"--cluster", "create"}
	for range 3 {
		s := Start(tb, kind, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000")
		servers = append(servers, s)
		args = append(args, s.Addr())
	}
	cli(tb, append(args, "--cluster-yes", "--cluster-replicas", "0")...)
	for _, s := range servers {
		await(tb, "the cluster stands", func() bool { return strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_state:ok") })
	}
	return servers
}

// Reshard moves slots from one master of a cluster to another.
func Reshard(tb testing.TB, from, to *Server, slots int) {
	tb.Helper()
	cli(tb, "--cluster", "reshard", from.Addr(), "--cluster-from", from.Do("CLUSTER", "MYID"), "--cluster-to", to.Do("CLUSTER", "MYID"),
		"--cluster-slots", fmt.Sprint(slots), "--cluster-yes")
}

func cli(tb testing.TB, args ...string) {
	tb.Helper()
	if out, err := exec.Command("redis-cli", args...).CombinedOutput(); err != nil {
		tb.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
}

func await(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("waited in vain: %s", what)
}

// StartSentinel runs a master, a replica and three sentinels, which call the master
// mail and agree within a second that it is down.
func StartSentinel(tb testing.TB, kind Kind) (master, replica *Server, sentinels []*Server) {
	tb.Helper()
	master = Start(tb, kind)
	replica = Start(tb, kind, "--replicaof", "127.0.0.1", master.Port)
	for range 3 {
		dir := tb.TempDir()
		s := &Server{Dir: dir, Port: FreePort(tb), Socket: filepath.Join(dir, "s"), tb: tb, kind: kind}
		file := filepath.Join(s.Dir, "sentinel.conf")
		text := fmt.Sprintf(`port %s
bind 127.0.0.1
unixsocket %s
dir %s
sentinel monitor mail 127.0.0.1 %s 2
sentinel down-after-milliseconds mail 500
sentinel failover-timeout mail 3000
`, s.Port, s.Socket, s.Dir, master.Port)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		s.Args = []string{file, "--sentinel"}
		s.Start()
		tb.Cleanup(s.Kill)
		sentinels = append(sentinels, s)
	}
	await(tb, "the replica follows", func() bool { return strings.Contains(replica.Do("INFO", "replication"), "master_link_status:up") })
	for _, s := range sentinels {
		await(tb, "sentinels know each other", func() bool {
			info := s.Do("INFO", "sentinel")
			return strings.Contains(info, "slaves=1,sentinels=3")
		})
	}
	return master, replica, sentinels
}

// Certificates makes one for 127.0.0.1 that is its own authority, and returns the
// files of it and its key.
func Certificates(tb testing.TB) (cert, key string) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redistest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		tb.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	write := func(name, kind string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			tb.Fatal(err)
		}
		return name
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret)
}
