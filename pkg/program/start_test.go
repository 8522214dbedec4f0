package program

import (
	"strings"
	"testing"
)

// A check that is not made, or panics while it is, ends the start with a reason,
// before anything is said to smtpd.
func TestStartFault(t *testing.T) {
	var null []int
	for name, tt := range map[string]struct {
		open func() (Check, error)
		says string
	}{
		"none":            {func() (Check, error) { return nil, nil }, "no check to run"},
		"panic":           {func() (Check, error) { _ = null[1]; return nil, nil }, "index out of range"},
		"panic in Filter": {func() (Check, error) { return faulty{}, nil }, "no handlers"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs strings.Builder
			spec := Spec{Name: "filter-x", New: func(*Program) func() (Check, error) { return tt.open }}
			status := Run(spec, []string{"-commonList", ""}, Streams{strings.NewReader("config|ready\n"), &out, &errs})
			if status != 1 || out.Len() > 0 || !strings.Contains(errs.String(), tt.says) {
				t.Errorf("status %d, output %q, errors %q", status, &out, &errs)
			}
		})
	}
}

type faulty struct{ Check }

func (faulty) Filter() Runner { panic("no handlers") }
