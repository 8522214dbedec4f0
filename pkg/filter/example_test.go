package filter_test

import (
	"context"
	"os"
	"strings"
	"time"

	"opensmtpd-filters/pkg/filter"
)

// state is what the filter keeps of a session.
type state struct {
	listed *filter.Future[bool]
}

// lookup stands for something that takes its time.
func lookup(_ context.Context, addr string) bool {
	return strings.HasPrefix(addr, "198.51.100.")
}

// A filter that junks mail of clients that some list has.
func Example() {
	f := filter.New[state](filter.Options{})
	f.OnSession(func(s *filter.Session[state]) {
		addr := s.Src.Addr().String()
		s.Local.listed = filter.Go(s, 2*time.Second, func(ctx context.Context) bool {
			return lookup(ctx, addr)
		})
	})
	f.Decide(filter.MailFrom, func(s *filter.Session[state], _ filter.Request) filter.Response {
		if s.User != "" { // one of ours
			return filter.Proceed()
		}
		return filter.Await(s.Local.listed, func(listed bool, err error) filter.Response {
			if listed && err == nil {
				return filter.Junk()
			}
			return filter.Proceed()
		})
	})

	// A program ends with os.Exit(f.Main()). Here it gets a recorded stream.
	f.Run(context.Background(), strings.NewReader(`config|ready
report|0.7|1795322216.499901|smtp-in|link-connect|30872ff1275fec9a|mail.sender.example|pass|198.51.100.7:35341|192.0.2.25:25
filter|0.7|1795322216.500686|smtp-in|mail-from|30872ff1275fec9a|a9b73e0de58517b9|sender@client.example.net
`), os.Stdout)
	// Output:
	// register|report|smtp-in|link-connect
	// register|report|smtp-in|link-identify
	// register|report|smtp-in|link-tls
	// register|report|smtp-in|link-auth
	// register|report|smtp-in|link-disconnect
	// register|report|smtp-in|tx-mail
	// register|report|smtp-in|tx-rcpt
	// register|report|smtp-in|tx-reset
	// register|filter|smtp-in|mail-from
	// register|filter|smtp-in|rcpt-to
	// register|filter|smtp-in|data
	// register|filter|smtp-in|commit
	// register|ready
	// filter-result|30872ff1275fec9a|a9b73e0de58517b9|junk
}
