package filtertest_test

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/filtertest"
)

// Our own runtime under hostile streams, with a handler for each line and without.
func TestRuntime(t *testing.T) {
	for name, lines := range map[string]func(*filter.Session[struct{}], []byte, *filter.Lines){
		"echo": nil,
		"put":  func(_ *filter.Session[struct{}], line []byte, out *filter.Lines) { out.Put(line) },
	} {
		t.Run(name, func(t *testing.T) {
			filtertest.Program{Func: func(in io.Reader, out io.Writer) {
				f := filter.New[struct{}](filter.Options{Log: slog.New(slog.DiscardHandler)})
				f.SetHeader("X-Test", func(*filter.Session[struct{}]) string { return "ok" })
				if lines != nil {
					f.OnDataLine(lines)
				}
				f.Run(context.Background(), in, out)
			}}.Hostile(t)
		})
	}
}
