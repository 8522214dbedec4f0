// Passthrough is the least a filter of all phases and data lines does.
package main

import (
	"os"

	"opensmtpd-filters/pkg/filter"
)

func main() {
	f := filter.New[struct{}](filter.Options{})
	for _, p := range []filter.Phase{
		filter.Connect, filter.Helo, filter.Ehlo, filter.StartTLS, filter.Auth, filter.MailFrom,
		filter.RcptTo, filter.Data, filter.Commit, filter.Rset, filter.Quit, filter.Noop,
	} {
		f.On(p, func(*filter.Session[struct{}], filter.Request) filter.Response { return filter.Proceed() })
	}
	f.OnDataLine(func(_ *filter.Session[struct{}], line []byte, out *filter.Lines) { out.Put(line) })
	os.Exit(f.Main())
}
