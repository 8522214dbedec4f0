package metrics

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// What a Set writes is read again.
func TestReadCounters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.prom")
	set := New(Options{Filter: "x", File: file})
	set.Counter(Desc{Name: "filter_x_things_total", Help: "Things.", Labels: []string{"kind"}}, `a "b\`).Add(3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	set.Run(ctx, nil) // writes at its end
	samples, err := ReadCounters(file)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range samples {
		found = found || s.Name == "filter_x_things_total" && s.Labels["kind"] == `a "b\` && s.Labels["filter"] == "x" && s.Value == 3
	}
	if !found {
		t.Errorf("%v", samples)
	}
	if err := os.WriteFile(file, []byte("nonsense here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadCounters(file); err == nil {
		t.Errorf("nonsense is read as %v", s)
	}
	if _, err := ReadCounters(file + "x"); err == nil {
		t.Error("a file that is not there")
	}
}
