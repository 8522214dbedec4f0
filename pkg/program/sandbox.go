package program

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/reload"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/sandbox"
)

// Need says what the filter will do besides what the frame knows of, which are
// the lists of -allowClients and its like and those of Keep, the file of -metrics,
// and what the resolver needs.
func (p *Program) Need(n sandbox.Needs) { p.needs.Add(n) }

// resolverNeeds are those of a resolver that asks these servers, or those of the
// system. DNS over TCP is for answers that are too long for UDP.
func resolverNeeds(r *resolve.Resolver, system bool) sandbox.Needs {
	var n sandbox.Needs
	if system {
		n.Read = []string{resolve.SystemConf}
		n.Ports = []uint16{53} // whichever server the file will name
	}
	for _, s := range r.Servers() {
		n.Ports = append(n.Ports, s.Port())
	}
	return n
}

// newBox returns a sandbox for what was asked for.
func (p *Program) newBox() *sandbox.Sandbox {
	n := p.needs
	n.Read = append(n.Read, p.Exempt.Paths()...)
	for _, f := range p.files {
		n.Read = append(n.Read, f.Paths()...)
	}
	if p.Flags.Metrics != "" {
		n.Write = append(n.Write, p.Flags.Metrics)
	}
	return sandbox.New(n)
}

// Confine puts the sandbox in force, once all is known that the filter needs. The
// frame does so before the filter runs; a program does it itself before it begins
// what may hang on a disk, for all threads must take part. Nothing happens for a
// command, which somebody runs who may do what he asks for, nor with
// -sandbox=false.
func (p *Program) Confine() {
	if p.Operator || !p.real || !p.sandbox || p.box != nil {
		return
	}
	by := sandbox.By()
	if by == "" {
		p.Log.Info("no sandbox on this system")
		p.sandbox = false
		return
	}
	fmt.Fprint(io.Discard, time.Now()) // reads the time zone, which is elsewhere
	box := p.newBox()
	if err := box.Enter(); err != nil {
		p.Log.Warn("no sandbox, or not all of it", "err", err)
	} else {
		p.Log.Info("sandbox in force", boxArgs(box, by)...)
	}
	p.box = box
}

func boxArgs(s *sandbox.Sandbox, by string) []any {
	args := []any{"by", by, "read", words(s.Read), "write", words(s.Write)}
	if len(s.Unix) > 0 {
		args = append(args, "sockets", words(s.Unix))
	}
	return append(args, "tcp", ports(s))
}

func ports(s *sandbox.Sandbox) string {
	if s.Any {
		return "any"
	}
	return words(s.Ports)
}

// words writes a list as one word.
func words[T any](list []T) string {
	if len(list) == 0 {
		return "-"
	}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
}

// sandboxRows shows with -n what would be in force.
func (p *Program) sandboxRows(t *Table) {
	by := sandbox.By()
	if by == "" || !p.sandbox {
		return
	}
	box := p.newBox()
	t.Row("sandbox", "%s: read %s, write %s, connect to TCP ports %s", by, words(box.Read), words(box.Write), ports(box))
}

// watchSandbox says which folders cannot be used because of the sandbox: at once,
// when one is replaced, and then once an hour. It returns when ctx ends, even if a
// look at a folder hangs.
func (p *Program) watchSandbox(ctx context.Context) {
	guard.Keep(ctx, p.Log, "sandbox", p.lookOutside)
	<-ctx.Done()
}

func (p *Program) lookOutside(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(reload.Interval)
	defer tick.Stop()
	said := map[string]time.Time{}
	for {
		for _, dir := range p.box.Outside() {
			if time.Since(said[dir]) < time.Hour {
				continue
			}
			said[dir] = time.Now()
			p.Log.Warn("folder is not in the sandbox, its files cannot be used: restart smtpd, once it is as it will stay", "folder", dir)
		}
		select {
		case <-tick.C:
		case <-hup:
		case <-ctx.Done():
			return
		}
	}
}
