package filter

import (
	"fmt"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/proto"
)

// A client that stays connected for long, with commands of which no report tells,
// is judged like any other.
func TestQuietSession(t *testing.T) {
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.Decide(Connect, func(*Session[none], Request) Response { return Reject(550, "5.7.1", "no") })
		return f
	}
	later := func(line string, hours int) string {
		return strings.Replace(line, "1795322216", fmt.Sprint(1795322216+hours*3600), 1)
	}
	play(t, f, func(p *peer) {
		p.send(connect(1))
		for h := range 60 { // the others
			p.send(later(connect(2+h), h), later(report(2+h, proto.LinkDisconnect, ""), h))
		}
		p.send(later(ask(1, MailFrom, "a@spam.example"), 60))
		p.want(result(1, MailFrom, "reject|550 5.7.1 no"))
	})
}

// A sender that smtpd does not take, because of its options, begins no transaction:
// what was decided of it does not count for the next one, also where an earlier
// filter has taken the next MAIL FROM.
func TestDecideAfterRefusedSender(t *testing.T) {
	f := func(o Options) *Filter[none] {
		f := New[none](o)
		f.Decide(MailFrom, func(s *Session[none], r Request) Response {
			if r.Arg == "friend" {
				return Proceed()
			}
			return Reject(550, "5.7.1", "no")
		})
		return f
	}
	play(t, f, func(p *peer) {
		p.send(connect(1), ask(1, MailFrom, "friend"), report(1, proto.TxMail, "00000000|permfail|friend"),
			report(1, proto.TxMail, "00000002|ok|spam"), ask(1, RcptTo, "bob"))
		p.want(result(1, MailFrom, "proceed"), result(1, RcptTo, "reject|550 5.7.1 no"))
	})
}
