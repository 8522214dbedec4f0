// Package filter runs a program as a filter of OpenSMTPD's smtpd(8).
//
// smtpd starts a filter once, speaks with it on its standard streams, and does
// not forgive: a filter that ends, answers a request twice or prints a line
// that smtpd cannot read takes the mail server down, and a request without an
// answer holds its client for ever. This package keeps a program from all of
// that. Handlers return their answer as a value; the package writes it, once,
// in a form that smtpd takes at that phase, and lets the mail pass if a handler
// panics, does not return, or waits for something that does not come.
//
//	f := filter.New[state](filter.Options{Log: log})
//	f.OnSession(c.begin)                    // a client connects: start lookups
//	f.Decide(filter.MailFrom, c.decide)     // the decision, at MAIL FROM or soon after
//	os.Exit(f.Main())
//
// What smtpd tells of a connection is in its [Session], beside the program's own
// state of it. A handler runs while no other does, needs no lock, and must not
// wait: it runs in whatever goroutine has something for it, the one that reads from
// smtpd, or that of work that is done. What waits, a look-up in the DNS or a database, is started with [Go],
// best as soon as the client connects, and awaited with [Await] where its
// result is needed:
//
//	func (c *checker) begin(s *filter.Session[state]) {
//		addr := s.Src.Addr()
//		s.Local.listed = filter.Go(s, 2*time.Second, func(ctx context.Context) bool {
//			return c.lookup(ctx, addr)
//		})
//	}
//
//	func (c *checker) decide(s *filter.Session[state], _ filter.Request) filter.Response {
//		return filter.Await(s.Local.listed, func(listed bool, err error) filter.Response {
//			if listed && err == nil {
//				return filter.Junk()
//			}
//			return filter.Proceed()
//		})
//	}
//
// Work ends with what it was started for. A look-up of what the client gives for
// one message, a sender say, is started with [GoTx]: a client may name senders
// without end, and take each of them back. What is only waited for is a [Promise].
//
// How this works inside is told in HACKING.md, and at the top of engine.go. The
// protocol is described in smtpd-filters(7); package proto knows its lines.
package filter
