// Package redistest runs real Redis and Valkey servers for tests.
package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Kind is a program that serves.
type Kind string

// What is tested with.
const (
	Redis  Kind = "redis-server"
	Valkey Kind = "valkey-server"
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{Redis, Valkey} }

// valkeyRoot is the Debian 13 that test/install.sh makes, with its valkey-server.
const valkeyRoot = "/var/cache/opensmtpd-filters/trixie"

// command returns the program as it can be run here.
func (k Kind) command() ([]string, error) {
	if k == Redis {
		path, err := exec.LookPath(string(Redis))
		if err != nil {
			return nil, errors.New("redis-server is missing: as root, test/install.sh")
		}
		return []string{path}, nil
	}
	path := filepath.Join(valkeyRoot, "usr/bin", string(Valkey))
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%s is missing: as root, test/install.sh", path)
	}
	// With the libraries of its own Debian.
	loaders, _ := filepath.Glob(filepath.Join(valkeyRoot, "usr/lib*/ld-linux*.so*"))
	libraries, _ := filepath.Glob(filepath.Join(valkeyRoot, "usr/lib/*-linux-gnu*"))
	if len(loaders) == 0 || len(libraries) == 0 {
		return nil, fmt.Errorf("%s has no C library", valkeyRoot)
	}
	return []string{loaders[0], "--library-path", strings.Join(libraries, ":"), "--argv0", string(Valkey), path}, nil
}

// A Server is a program at work, or one that was.
type Server struct {
	Dir    string // its own
	Port   string // 127.0.0.1:Port
	Socket string // path of its socket, if it listens there
	Args   []string

	tb   testing.TB
	kind Kind
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

// Start runs a server on a port of its own, and its socket, with these arguments
// more, until the test ends. If the program is missing the test is skipped, but
// in CI it fails.
func Start(tb testing.TB, kind Kind, args ...string) *Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "redistest") // short, for the name of a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{Dir: dir, Port: FreePort(tb), Args: args, tb: tb, kind: kind}
	s.Socket = filepath.Join(dir, "s")
	s.Start()
	tb.Cleanup(s.Kill)
	return s
}

// FreePort returns a port that nobody listens on and that no client is given: one
// that waits for a server would be connected to itself. A cluster listens 10000
// above too.
func FreePort(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		port := fmt.Sprint(10_000 + rand.IntN(12_000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	tb.Fatal("no port")
	return ""
}

// Start runs the server again after Kill.
func (s *Server) Start() {
	s.tb.Helper()
	command, err := s.kind.command()
	if err != nil {
		if os.Getenv("CI") != "" {
			s.tb.Fatal(err)
		}
		s.tb.Skip(err)
	}
	options := []string{"--dir", s.Dir, "--port", s.Port, "--bind", "127.0.0.1", "--unixsocket", s.Socket, "--appendonly", "no", "--save", "", "--repl-diskless-sync-delay", "0"}
	if slices.Contains(s.Args, "--sentinel") {
		options = nil // it has all of that in a file
	}
	command = append(command, s.Args...)
	s.cmd = exec.Command(command[0], slices.Concat(command[1:], options)...)
	s.cmd.SysProcAttr = endsWithUs()
	s.log = new(bytes.Buffer)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	for range 1000 {
		if c, err := net.Dial("unix", s.Socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Kill()
	s.tb.Fatalf("%s does not listen:\n%s", s.kind, s.log)
}

// Kill ends the server at once. What it held is gone.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

// Stop halts the server: connections stay, and nothing is answered until
// Continue.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP) }

// Continue ends Stop.
func (s *Server) Continue() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Error(err)
	}
}

// Log returns what the server has printed. It has to be dead.
func (s *Server) Log() string { return s.log.String() }
