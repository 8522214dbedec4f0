// Package maillog reads what smtpd(8) and its filters have logged: lines of syslog
// in all its formats, the events in them, and the sessions that those make.
//
//	f, err := maillog.Open("/var/log/maillog")
//	lines := maillog.NewReader(f, f.Written())
//	sessions := maillog.NewJoiner(maillog.Sink{Session: show})
//	for lines.Next() {
//		sessions.Add(lines.Line())
//	}
//	sessions.Close()
//
// A log is not to be trusted: it may be cut, mixed up and out of order, and much of
// it was written by strangers. What is no line of smtpd is skipped, nothing grows
// without limit, and no input is an error.
package maillog
