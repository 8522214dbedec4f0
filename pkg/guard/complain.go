package guard

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxKinds bounds the kinds of complaints that have a time of their own; those
// past it share one.
const maxKinds = 256

// Complaints logs each kind of complaint at most once a minute, the next time with
// the number of those left out, as in
//
//	warning: socket error err="too many open files" more=17
//
// The zero value logs nothing. It is safe for concurrent use and must not be
// copied.
type Complaints struct {
	Log   *slog.Logger
	Every time.Duration // default a minute

	mu    sync.Mutex
	kinds map[string]*kind
	said  bool // since the last Over
}

type kind struct {
	next time.Time
	kept int
}

// Warn logs a warning. Each msg, a constant, is a kind.
func (c *Complaints) Warn(msg string, args ...any) {
	c.Say(slog.LevelWarn, msg, msg, args...)
}

// Error logs an error. Each msg, a constant, is a kind.
func (c *Complaints) Error(msg string, args ...any) {
	c.Say(slog.LevelError, msg, msg, args...)
}

// Say logs msg, which may be a session id, as one of its kind. It reports whether
// it was logged.
func (c *Complaints) Say(level slog.Level, of, msg string, args ...any) bool {
	if c.Log == nil {
		return false
	}
	kept, ok := c.take(of)
	if !ok {
		return false
	}
	if kept > 0 {
		args = append(args[:len(args):len(args)], slog.Int("more", kept))
	}
	c.Log.Log(context.Background(), level, msg, args...)
	return true
}

// Run calls f here. A panic is logged as an error, each what, a constant, being a
// kind. It reports whether f has returned without one.
func (c *Complaints) Run(what string, f func()) (ok bool) {
	err := Call(func() error { f(); return nil })
	if err != nil {
		c.Panic(what, err.(*Panic))
	}
	return err == nil
}

// Panic logs one that was recovered.
func (c *Complaints) Panic(what string, p *Panic) {
	c.Error(what, "panic", p.text(), "stack", p.Stack)
}

func (c *Complaints) take(of string) (kept int, ok bool) {
	now := time.Now()
	every := c.Every
	if every <= 0 {
		every = time.Minute
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.kinds[of]
	if k == nil {
		if c.kinds == nil {
			c.kinds = make(map[string]*kind)
		}
		if len(c.kinds) >= maxKinds {
			of = ""
		}
		if k = c.kinds[of]; k == nil {
			k = new(kind)
			c.kinds[of] = k
		}
	}
	if now.Before(k.next) {
		k.kept++
		return 0, false
	}
	kept = k.kept
	*k = kind{next: now.Add(every)}
	c.said = true
	return kept, true
}

// Over logs, as information, that what was complained of is over, if anything was
// logged since the last time.
func (c *Complaints) Over(msg string, args ...any) {
	c.mu.Lock()
	said := c.said
	c.said = false
	c.mu.Unlock()
	if said {
		c.Log.Info(msg, args...)
	}
}
