package filtertest

import (
	"embed"
	"io/fs"
	"testing"
)

//go:embed testdata/traces
var traces embed.FS

// Traces returns the recorded sessions: RELEASE/NN_name.in is what smtpd wrote, .out what a filter answered that
// registered everything and let everything pass.
func Traces() fs.FS {
	sub, err := fs.Sub(traces, "testdata/traces")
	if err != nil {
		return traces // not reached, the name is constant and valid
	}
	return sub
}

// ReplayTraces replays all recorded sessions, each in a subtest; see Replay.
func ReplayTraces(t *testing.T, cmd ...string) {
	Program{Cmd: cmd}.ReplayTraces(t)
}

// ReplayTraces is the function of the same name for this program.
func (p Program) ReplayTraces(t *testing.T) {
	files, err := fs.Glob(Traces(), "*/*.in")
	if err != nil || len(files) == 0 {
		t.Fatal("no traces:", err)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			data, err := fs.ReadFile(Traces(), file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.replay(data); err != nil {
				t.Fatal(err)
			}
		})
	}
}
