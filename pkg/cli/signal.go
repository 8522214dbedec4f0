package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Signals returns a context that ends with the first SIGTERM or SIGINT (the
// second has its usual effect), and a channel that has a value after a SIGHUP.
// From then on SIGPIPE is ignored: to write where nobody reads gives an error.
// Stop gives up both.
func Signals(parent context.Context) (ctx context.Context, hup <-chan os.Signal, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	ctx, cancel := signal.NotifyContext(parent, syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, cancel)
	return ctx, c, func() {
		cancel()
		signal.Stop(c)
	}
}
