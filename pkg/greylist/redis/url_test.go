package redis

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for _, tt := range []struct{ url, want, password string }{
		{"redis://h", "redis://h:6379?prefix=gl", ""},
		{"redis://h:1", "redis://h:1?prefix=gl", ""},
		{"redis://h/", "redis://h:6379?prefix=gl", ""},
		{"redis://a,b:1/2?prefix=mx", "redis://a:6379,b:1/2?prefix=mx", ""},
		{"redis://u:p%40%3A%2F%3F@h:1", "redis://h:1?user=u&prefix=gl", "p@:/?"},
		{"redis://u:p@q@h:1", "redis://h:1?user=u&prefix=gl", "p@q"},
		{"redis://:p@h", "redis://h:6379?prefix=gl", "p"},
		{"rediss://h?user=u&password=p%26q", "rediss://h:6379?user=u&prefix=gl", "p&q"},
		{"redis://[2001:db8::1],[2001:db8::2]:7,192.0.2.1", "redis://[2001:db8::1]:6379,[2001:db8::2]:7,192.0.2.1:6379?prefix=gl", ""},
		{"redis+unix:///run/r.sock?db=3", "redis+unix:///run/r.sock?db=3&prefix=gl", ""},
		{"redis+unix://:p@/run/r.sock", "redis+unix:///run/r.sock?prefix=gl", "p"},
		{"redis+sentinel://a,b:1/4?master=mail", "redis+sentinel://a:26379,b:1/4?master=mail&prefix=gl", ""},
		{"rediss+sentinel://a?master=mail&sentinelPassword=s&password=p", "rediss+sentinel://a:26379?master=mail&prefix=gl", "p"},
		{"redis+cluster://a,b:1", "redis+cluster://a:6379,b:1?prefix=gl", ""},
		{"rediss+cluster://a", "rediss+cluster://a:6379?prefix=gl", ""},
	} {
		l, err := ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if got := l.String(); got != tt.want || string(l.password) != tt.password {
			t.Errorf("%s: %s with %q, want %s with %q", tt.url, got, l.password, tt.want, tt.password)
		}
	}
	for url, want := range map[string]string{
		"":                               "want redis://",
		"redis:h":                        "want redis://",
		"rediss+unix:///a":               "no TLS",
		"redis+tcp://h":                  "not one of",
		"http://h":                       "want redis://",
		"redis://":                       "not HOST:PORT",
		"redis://h:x":                    "not HOST:PORT",
		"redis://h:0":                    "not HOST:PORT",
		"redis://h:65536":                "not HOST:PORT",
		"redis://h,":                     "not HOST:PORT",
		"redis://h h":                    "not HOST:PORT",
		"redis://h/x":                    "number of a database",
		"redis://h?db=-1":                "number of a database",
		"redis://h?prefix={a}":           "prefix",
		"redis://h?prefix=":              "want a value",
		"redis://h?pass=x":               "not one of",
		"redis://h?master=x":             "for redis+sentinel",
		"redis+sentinel://h":             "master=NAME",
		"redis+cluster://h/1":            "database 0",
		"redis+unix://run/r.sock":        "redis+unix:///PATH",
		"redis://h?ca=/x":                "for rediss",
		"redis://h?user=u":               "needs a password",
		"redis://u:%zz@h":                "%25",
		"redis://u:secret@h:x":           "not HOST:PORT",
		"redis://h?password=secret%zz":   "%25",
		"redis://h?passwort=secret":      "not one of",
		"redis://u:secret@h?prefix=a{b}": "prefix",
	} {
		l, err := ParseURL(url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v, want %q", url, l, err, want)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"redis://u:p@h:1,i:2/3?prefix=x", "redis+unix:///a?db=1", "rediss+sentinel://[::1]?master=m&password=@/x", "redis+cluster://a,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		l, err := ParseURL(url)
		if err != nil {
			return
		}
		shown, master, user := l.String(), l.Master, l.User
		if l.mode == unixPath || strings.ContainsAny(master+user, "&%+#") || master != "" || user != "" {
			return
		}
		if again, err := ParseURL(shown); err != nil || again.String() != shown {
			t.Errorf("%q is shown as %q: %v", url, shown, err)
		}
	})
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := ParseURL("redis://h?password=@" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Check(); err == nil {
		t.Error("no file, and no error")
	}
	write("\n")
	if err := l.Check(); err == nil {
		t.Error("an empty file, and no error")
	}
	write("  top secret \nmore\n")
	if got, err := l.password.read(); got != "top secret" || err != nil || l.Check() != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// What a sandbox must leave.
func TestLocationNeeds(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"redis://192.0.2.1", "[]  [6379] false"},
		{"rediss://:@/etc/redis.pw@a.example:1,[2001:db8::1]:2", "[/etc/redis.pw]  [1 2] false"},
		{"redis+unix:///run/redis/redis.sock?password=@/etc/pw", "[/etc/pw] /run/redis/redis.sock [] false"},
		{"redis+sentinel://a.example?master=m&sentinelPassword=@/etc/pw", "[/etc/pw]  [26379] true"},
		{"redis+cluster://a.example:7000,b.example", "[]  [7000 6379] true"},
	} {
		l, err := ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if got := fmt.Sprintf("%v %s %v %v", l.Files(), l.Socket(), l.Ports(), l.Moves()); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.url, got, tt.want)
		}
	}
}
