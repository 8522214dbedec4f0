package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func logTo(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

type nasty struct{}

func (nasty) String() string { panic("in String") }

func breaks(v any) {
	var list []int
	switch v {
	case "no such index":
		_ = list[len(list)]
	default:
		panic(v)
	}
}

func TestPanics(t *testing.T) {
	for _, v := range []any{"text", "no such index", errors.New("error"), 17, nasty{}, nil} {
		t.Run(fmt.Sprintf("%T", v), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log := logTo(&out)
				Go(log, "some work", func() { breaks(v) })
				synctest.Wait()
				if s := out.String(); !strings.HasPrefix(s, `level=ERROR msg="some work" panic=`) || !strings.Contains(s, "guard.breaks guard_test.go:") ||
					strings.Count(s, "\n") != 1 {
					t.Errorf("%q", s)
				}
				out.Reset()
				AfterFunc(log, time.Second, "a timer", func() { breaks(v) })
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if !strings.HasPrefix(out.String(), `level=ERROR msg="a timer" panic=`) {
					t.Errorf("%q", out.String())
				}
				if Run(nil, "", func() { breaks(v) }) {
					t.Error("Run says that it returned")
				}
				var p *Panic
				if err := Call(func() error { breaks(v); return nil }); !errors.As(err, &p) || !strings.HasPrefix(err.Error(), "panic: ") {
					t.Errorf("Call returns %v", err)
				}
			})
		})
	}
	if !Run(nil, "", func() {}) || Call(func() error { return context.Canceled }) != context.Canceled {
		t.Error("what does not panic is not what it was")
	}
}

// What must run as long as the program does goes on after a panic, but not in
// circles.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		Keep(ctx, nil, "work", func(context.Context) { calls.Add(1); panic("again") })
		time.Sleep(time.Hour)
		if n := calls.Load(); n < 60 || n > 70 {
			t.Errorf("%d calls in an hour", n)
		}
		cancel()
		synctest.Wait()
		was := calls.Load()
		time.Sleep(time.Hour)
		if calls.Load() != was {
			t.Error("called after the end")
		}
		calls.Store(0)
		Keep(t.Context(), nil, "work", func(context.Context) {
			if calls.Add(1) < 3 {
				panic("at first")
			}
		})
		time.Sleep(time.Hour)
		if n := calls.Load(); n != 3 {
			t.Errorf("%d calls of what returns at the third", n)
		}
	})
}

func TestComplaints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		c := Complaints{Log: logTo(&out)}
		c.Over("never")
		args := make([]any, 2, 8) // room that is not ours to write in
		args[0], args[1] = "err", "full"
		for range 90 {
			c.Warn("disk", args...)
			time.Sleep(time.Second)
		}
		c.Error("other")
		c.Say(slog.LevelWarn, "other", "2b652056ec44d519")
		c.Over("all is well")
		c.Over("all is well")
		time.Sleep(time.Minute)
		c.Warn("disk")
		want := `level=WARN msg=disk err=full
level=WARN msg=disk err=full more=59
level=ERROR msg=other
level=INFO msg="all is well"
level=WARN msg=disk more=29
`
		if out.String() != want {
			t.Errorf("got\n%swant\n%s", out.String(), want)
		}
		if args = args[:4]; args[2] != nil {
			t.Error("the arguments of the caller were written to")
		}
	})
}

// However many kinds there are, they take no more than so much.
func TestComplaintsBounded(t *testing.T) {
	var out bytes.Buffer
	c := Complaints{Log: logTo(&out), Every: time.Hour}
	for i := range 10_000 {
		c.Warn(fmt.Sprint("kind ", i))
	}
	if n := strings.Count(out.String(), "\n"); n != maxKinds+1 || len(c.kinds) != n {
		t.Errorf("%d lines, %d kinds", n, len(c.kinds))
	}
	var none Complaints
	none.Warn("nobody listens")
	none.Over("nobody listens")
}
