package redis

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/test/redistest"
)

// A cluster has the records of one recipient on one master, and is one store.
func TestCluster(t *testing.T) {
	for _, kind := range redistest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			if testing.Short() && kind == redistest.Valkey {
				t.Skip("long")
			}
			var addrs []string
			for _, s := range redistest.StartCluster(t, kind) {
				addrs = append(addrs, s.Addr())
			}
			backend(func() string { return "redis+cluster://" + strings.Join(addrs, ",") }).Run(t)
		})
	}
}

func TestSentinel(t *testing.T) {
	master, _, sentinels := redistest.StartSentinel(t, redistest.Redis)
	addrs := []string{sentinels[0].Addr(), sentinels[1].Addr()}
	works(t, "redis+sentinel://"+strings.Join(addrs, ",")+"/3?master=mail&prefix=x")
	if n := master.Do("EVAL", "redis.call('SELECT', 3) return redis.call('DBSIZE')", 0); n == "0" {
		t.Error("not in database 3")
	}
}

// works tries what a store does once.
func works(t *testing.T, url string) {
	t.Helper()
	if err := try(t, url); err != nil {
		t.Error(err)
	}
}

func try(t *testing.T, url string) error {
	t.Helper()
	l, err := ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Location: l, Operator: true, Secret: func() ([]byte, error) { return []byte("0123456789abcdef"), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := greylist.Key{1, 2, 3, 15: byte(greylist.KindAttempt)}
	for n := range 3 {
		err := s.Update(t.Context(), []greylist.Key{k}, func(recs []greylist.Record) {
			if recs[0].Tries != n && n > 0 {
				t.Logf("%d", recs[0].Tries) // a guess
			}
			recs[0] = greylist.Record{State: greylist.Grey, Tries: n + 1, First: 1, Last: 1}
		})
		if err != nil {
			return err
		}
	}
	recs, err := s.Get(t.Context(), []greylist.Key{k})
	if err != nil || recs[0].Tries != 3 {
		return fmt.Errorf("%v %w", recs, err)
	}
	n := 0
	for _, err := range s.All(t.Context()) {
		if err != nil {
			return err
		}
		n++
	}
	if n != 1 {
		return fmt.Errorf("%d records", n)
	}
	if counts, err := s.Count(t.Context(), map[string]int64{"a": 2}); err != nil || counts["a"] < 2 || counts["a"]%2 != 0 {
		return fmt.Errorf("%v %w", counts, err)
	}
	return s.Update(t.Context(), []greylist.Key{k}, func(recs []greylist.Record) { recs[0] = greylist.Record{} })
}

func TestTLS(t *testing.T) {
	cert, key := redistest.Certificates(t)
	for _, kind := range redistest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			port := redistest.FreePort(t)
			redistest.Start(t, kind, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
			works(t, "rediss://127.0.0.1:"+port+"?ca="+cert)
			err := try(t, "rediss://127.0.0.1:"+port)
			if err == nil || !strings.Contains(err.Error(), "certificate") || !isRefusal(err) {
				t.Errorf("a certificate that nobody vouches for: %v", err)
			}
		})
	}
}

// rights are those of the user in the example.
func rights(t *testing.T) []any {
	t.Helper()
	text, err := os.ReadFile("../../../packaging/examples/redis/users.acl")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(text), ">CHANGE-ME ")
	if !ok {
		t.Fatalf("%s", text)
	}
	var words []any
	for _, word := range strings.Fields(line) {
		words = append(words, word)
	}
	return words
}

// The server of the example starts, and does what is needed.
func TestExample(t *testing.T) {
	dir := t.TempDir()
	example := func(name string, replace ...string) string {
		text, err := os.ReadFile(filepath.Join("../../../packaging/examples/redis", name))
		if err != nil {
			t.Fatal(err)
		}
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(strings.NewReplacer(replace...).Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	acl := example("users.acl", "CHANGE-ME", "hush")
	for _, kind := range redistest.Kinds() {
		s := redistest.Start(t, kind, example("redis.conf", "/etc/redis/users.acl", acl, "bind *", "#"))
		works(t, "redis://greylist:hush@"+s.Addr())
	}
}

func TestPassword(t *testing.T) {
	for _, kind := range redistest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := redistest.Start(t, kind)
			s.Do(append([]any{"ACL", "SETUSER", "mail", "on", ">second"}, rights(t)...)...)
			s.Do("CONFIG", "SET", "requirepass", "first:se/cr@et")
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte("second\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			addr := s.Addr()
			works(t, "redis://:first%3Ase%2Fcr%40et@"+addr)
			works(t, "redis://mail:second@"+addr)
			works(t, "redis://"+addr+"?user=mail&password=@"+file)
			works(t, "redis+unix://"+s.Socket+"?user=mail&password=@"+file)
			for _, bad := range []string{"redis://" + addr, "redis://mail:first@" + addr, "redis://:second@" + addr} {
				err := try(t, bad)
				if err == nil || !isRefusal(err) {
					t.Errorf("%s: %v", bad, err)
				} else if strings.Contains(err.Error(), "first") || strings.Contains(err.Error(), "second") {
					t.Errorf("the password is shown: %v", err)
				}
			}
		})
	}
}

// Of several servers that stand alone the first counts that can be connected to and
// writes.
func TestSeveral(t *testing.T) {
	master := redistest.Start(t, redistest.Redis)
	replica := redistest.Start(t, redistest.Redis, "--replicaof", "127.0.0.1", master.Port)
	nobody := "127.0.0.1:" + redistest.FreePort(t)
	works(t, "redis://"+nobody+","+master.Addr())
	url := "redis://" + nobody + "," + replica.Addr() + "," + master.Addr()
	l, err := ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Location: l, Operator: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := greylist.Key{15: byte(greylist.KindAttempt)}
	write := func() error {
		return s.Update(t.Context(), []greylist.Key{k}, func(recs []greylist.Record) { recs[0] = greylist.Record{State: greylist.Grey, First: 7} })
	}
	if err := write(); err == nil {
		t.Error("a replica writes")
	}
	if err := write(); err != nil {
		t.Error(err)
	}
}
