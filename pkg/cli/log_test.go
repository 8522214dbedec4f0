package cli

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"
)

type broken struct{}

func (broken) String() string { panic("broken") }

func TestLogLine(t *testing.T) {
	const id = "2b652056ec44d519"
	long := strings.Repeat("x", 2000)
	for _, tt := range []struct {
		log  func(*slog.Logger)
		want string
	}{
		{func(l *slog.Logger) {
			l.Info(id, "filter", "dnsbl", "action", "junk", "addr", netip.MustParseAddr("198.51.100.7"), "score", 5, "zen", 5, "t", 38*time.Millisecond+300*time.Microsecond)
		}, id + " filter=dnsbl action=junk addr=198.51.100.7 score=5 zen=5 t=38ms"},
		{func(l *slog.Logger) { l.Error(id, "panic", "index out of range", "stack", "a\n\tb") },
			id + ` error: panic="index out of range" stack="a\n\tb"`},
		{func(l *slog.Logger) { l.Warn("file not usable", "err", errors.New("permission denied")) },
			`warning: file not usable err="permission denied"`},
		{func(l *slog.Logger) { l.Error("no store") }, "error: no store"},
		{func(l *slog.Logger) { l.Debug("query sent", "n", 1) }, "debug: query sent n=1"},
		{func(l *slog.Logger) { l.Info("two\nlines \x1b[31m") }, `"two\nlines \x1b[31m"`},
		{func(l *slog.Logger) {
			l.Info("v", "empty", "", "blank", "a b", "quote", `a"b`, "eq", "<a=b@c>", "nul", "\x00", "cr", "a\rb", "utf", "é", "raw", "\xff", "back", `a\b`)
		}, `v empty="" blank="a b" quote="a\"b" eq=<a=b@c> nul="\x00" cr="a\rb" utf="\u00e9" raw="\xff" back=a\b`},
		{func(l *slog.Logger) {
			l.Info("v", "us", 812*time.Microsecond, "zero", time.Duration(0), "min", 90*time.Second, "day", 36*24*time.Hour, "neg", -5*time.Second, "f", 2.5, "b", true, "nil", nil,
				"time", time.Unix(0, 0).UTC(), "p", broken{}, "bad key", 1)
		}, `v us=0.812ms zero=0s min=1m30s day=36d neg=-5s f=2.5 b=true nil=<nil> time=1970-01-01T00:00:00Z p="%!v(PANIC=String method: broken)" "bad key"=1`},
		{func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).Info("m", slog.Group("h", "c", 3), "d", 4)
		}, "m a=1 g.b=2 g.h.c=3 g.d=4"},
		{func(l *slog.Logger) { l.Info("m", "a", long, "b", 1) }, "m a=" + long[:maxValue] + "... b=1"},
		{func(l *slog.Logger) { l.Info("m", "a", long, "b", long, "c", 1) }, "m a=" + long[:maxValue] + "... ..."},
		{func(l *slog.Logger) { l.Info(long) }, long[:maxValue] + "..."},
		{func(l *slog.Logger) { l.Info("m", "a", strings.Repeat("\x00", 2000)) }, `m a="` + strings.Repeat(`\x00`, 127) + `..."`},
		{func(l *slog.Logger) { l.Info("", "a", 1) }, "a=1"},
		{func(l *slog.Logger) { l.Info("") }, ""},
	} {
		var out bytes.Buffer
		l, flush := Logger(&out, true)
		tt.log(l)
		flush()
		if tt.want != "" {
			tt.want += "\n"
		}
		if out.String() != tt.want {
			t.Errorf("got  %swant %s", &out, tt.want)
		}
	}
	var out bytes.Buffer
	l, flush := Logger(&out, false)
	l.Debug("quiet")
	l.Info("loud")
	flush()
	if out.String() != "loud\n" {
		t.Errorf("without -v: %s", &out)
	}
}

func TestSlogConformance(t *testing.T) {
	var out bytes.Buffer
	var flush func()
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		out.Reset()
		var l *slog.Logger
		l, flush = Logger(&out, true)
		return l.Handler()
	}, func(t *testing.T) map[string]any {
		flush()
		words := strings.Fields(out.String())
		m := map[string]any{slog.LevelKey: "INFO", slog.MessageKey: words[0]}
		if !strings.HasSuffix(t.Name(), "zero-time") {
			m[slog.TimeKey] = "left to smtpd"
		}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			names := strings.Split(key, ".")
			in := m
			for _, name := range names[:len(names)-1] {
				if in[name] == nil {
					in[name] = map[string]any{}
				}
				in = in[name].(map[string]any)
			}
			in[names[len(names)-1]] = value
		}
		return m
	})
}

// A record is one line of printable ASCII, whatever is in it.
func FuzzLog(f *testing.F) {
	f.Add("message", "key", "value")
	f.Add("2b652056ec44d519", "a\nb", "\x1b[31m\u2028")
	f.Fuzz(func(t *testing.T, msg, key, value string) {
		var out bytes.Buffer
		l, flush := Logger(&out, true)
		l.With(key, value).WithGroup(key).Warn(msg, key, value)
		flush()
		line, ok := strings.CutSuffix(out.String(), "\n")
		if !ok || !plain(line) || len(line) > maxLine+10 {
			t.Errorf("%d bytes: %q", len(line), &out)
		}
		if len(value) < 100 && len(key) < 20 && len(msg) < 20 && word(value) != value {
			_, v, _ := strings.Cut(line, word(key)+"=")
			if q, err := strconv.QuotedPrefix(v); err != nil {
				t.Errorf("value of %q: %v", line, err)
			} else if got, _ := strconv.Unquote(q); got != value {
				t.Errorf("value of %q is %q, want %q", line, got, value)
			}
		}
	})
}

// A stalled writer is one whose reader sleeps.
type stalled struct {
	out  bytes.Buffer
	free chan struct{}
}

func (s *stalled) Write(b []byte) (int, error) {
	<-s.free
	return s.out.Write(b)
}

func TestLogStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stalled{free: make(chan struct{})}
		l, flush := Logger(s, false)
		start := time.Now()
		l.Info("line", "n", 0)
		synctest.Wait() // the writer has that one
		const lost = 500
		for n := range maxQueue + lost {
			l.Info("line", "n", n+1)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("the caller waited for %v", d)
		}
		close(s.free)
		synctest.Wait()
		l.Info("later")
		flush()
		lines := strings.Split(strings.TrimSuffix(s.out.String(), "\n"), "\n")
		if len(lines) != maxQueue+3 {
			t.Errorf("%d lines", len(lines))
		}
		for i, want := range map[int]string{
			0: "line n=0", 1: fmt.Sprintf("warning: %d log lines dropped", lost), 2: "line n=1",
			maxQueue + 1: fmt.Sprintf("line n=%d", maxQueue), maxQueue + 2: "later",
		} {
			if i < len(lines) && lines[i] != want {
				t.Errorf("line %d is %s, want %s", i, lines[i], want)
			}
		}
	})
}

func TestLogFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stalled{free: make(chan struct{})}
		l, flush := Logger(s, false)
		for range maxQueue * 2 {
			l.Info("line")
		}
		start := time.Now()
		flush()
		if d := time.Since(start); d != flushTime {
			t.Errorf("flush took %v", d)
		}
		flush()
		l.Info("too late")
		close(s.free) // so that the writer ends
	})
}

type failing struct {
	bytes.Buffer
	fail bool
}

func (f *failing) Write(b []byte) (int, error) {
	if f.fail {
		return 0, errors.New("broken pipe")
	}
	return f.Buffer.Write(b)
}

func TestLogWriteError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &failing{fail: true}
		l, flush := Logger(w, false)
		l.Info("one")
		l.Info("two")
		synctest.Wait()
		w.fail = false
		l.Info("three")
		flush()
		if got, want := w.String(), "warning: 2 log lines dropped\nthree\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	l, flush := Logger(discard{}, false)
	defer flush()
	addr := netip.MustParseAddr("198.51.100.7")
	b.ReportAllocs()
	for b.Loop() {
		l.Info("2b652056ec44d519", "filter", "dnsbl", "action", "junk", "addr", addr, "score", 5, "t", 38*time.Millisecond)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
