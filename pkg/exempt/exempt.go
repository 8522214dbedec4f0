// Package exempt says who is never judged, by one rule for all programs:
//
//   - the local socket, an authenticated user, and loopback;
//   - a client on a list: a line of the common list, then of -allowClients;
//   - a private network, or one of -trusted;
//   - a sender on a list, as far as SPF has proved it;
//   - a recipient on a list, such as postmaster.
//
// A program opens the lists once and asks at each step what it knows:
//
//	lists, err := exempt.Open(exempt.Options{
//		Clients: allowClients, Senders: allowSenders, Recipients: allowRecipients,
//		Common: exempt.CommonPath(), DefaultRecipients: true, Log: log,
//	})
//	if err != nil {
//		return err // a file that is wholly invalid: exit 1
//	}
//	go reload.Watch(ctx, lists)
//
//	v := lists.Client(exempt.Client{Addr: addr, Name: confirmed, User: user})
//	switch {
//	case v.Exempt: // v.By says why
//	case v.Reject: // a line says reject: filter-dnsbl refuses, others go on
//	}
//	if lists.SenderNeedsSPF(from) { ... ask } // else SPF is not asked for the list's sake
//	v = lists.Sender(from, spfPass)
//	v = lists.Recipient(rcpt)
//
// # Clients
//
// A line is one of these, and optionally permit (the default), reject or dunno:
//
//	192.0.2.1  198.51.100.0/24  2001:db8::/32   and all that ipset.ParsePrefix takes
//	example.com      the name example.com and all names below it
//	.example.com     names below it only; *.example.com is the same
//	/^mx[0-9]+\.example\.com$/   names that the expression matches, regardless of case
//
// Names count only if they are confirmed: if they resolve to the client. As in
// Postfix's cidr_table(5) the first line that names the client counts and there
// are
//
//	!192.0.2.0/24 reject     clients that are not in the network
//	if 192.0.2.0/24          lines up to endif are for these clients only; if !NET
//	endif
//
// Permit exempts. Reject says that the client is to be refused, which is for
// filter-dnsbl to do; everywhere else the client is then not exempt. After dunno
// the client is as one that no list names.
//
// # Senders
//
//	bob@example.com  example.com  .example.com  @example.com
//
// The last is exactly that domain. A line counts only with SPF pass for the
// sender's domain, or always if it begins with !. The null sender is on no list.
//
// # Recipients
//
//	bob@example.com  bob@  example.com  .example.com  @example.com  /expression/
//
// An expression sees the whole address in lower case, without < and >.
//
// Addresses are compared regardless of case; a source route, quotes that are not
// needed and the final dot of the domain do not matter; domains may be written in
// Unicode or as A-labels. A +extension does not matter unless the line has one.
//
// # The common list
//
// All programs read it, and filterctl(8) adds to it. Its lines begin with permit
// or reject:
//
//	permit client=192.0.2.7     # 2026-12-01 root: their admin called
//	permit sender=example.com   # counts with SPF pass only
//	permit rcpt=sales@
//	reject client=198.51.100.0/24
//
// Of several lines that name a client the last counts, for lines are added at
// the end and the newest word is meant. It comes before the lists of flags.
package exempt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/reload"
)

// CommonPath returns where the common list of a system is: beside its
// smtpd.conf.
func CommonPath() string {
	if runtime.GOOS == "linux" {
		return "/etc/opensmtpd-filters.list"
	}
	return "/etc/mail/filters.list"
}

// Options say which lists there are. The zero value has no list; private
// networks are exempt.
type Options struct {
	Clients    []string // files of -allowClients
	Senders    []string // files of -allowSenders
	Recipients []string // files of -allowRecipients
	Common     string   // the common list, "" for none; if it is missing it is empty, without a warning

	// DefaultRecipients exempts postmaster@ and abuse@, which must be reachable
	// (RFC 5321 section 4.5.1, RFC 2142), for a program that decides when the
	// recipient is known.
	DefaultRecipients bool

	Trusted Networks
	Refuses bool // the program refuses the clients of reject lines: no warning about them

	Log *slog.Logger // nil: no log
}

// Lists are the lists in force. They are safe for concurrent use.
type Lists struct {
	opts    Options
	clients *reload.File[Clients]
	senders *reload.File[Senders]
	rcpts   *reload.File[Recipients]
	common  *reload.File[*common]
}

// Open reads the lists. It is an error if a file has lines and none is valid;
// single bad lines and files that are missing or cannot be read are logged, see
// Bad.
func Open(o Options) (*Lists, error) {
	l := &Lists{opts: o}
	var errs [4]error
	l.clients, errs[0] = reload.Open(reload.Options[Clients]{Paths: o.Clients, Parse: ParseClients, Merge: MergeClients, Log: o.Log})
	l.senders, errs[1] = reload.Open(reload.Options[Senders]{Paths: o.Senders, Parse: ParseSenders, Merge: MergeSenders, Log: o.Log})
	l.rcpts, errs[2] = reload.Open(reload.Options[Recipients]{
		Paths: o.Recipients, Parse: ParseRecipients, Log: o.Log,
		Merge: func(lists ...Recipients) Recipients {
			if o.DefaultRecipients {
				lists = append(lists, DefaultRecipients())
			}
			return MergeRecipients(lists...)
		},
	})
	var path []string
	if o.Common != "" {
		path = []string{o.Common}
	}
	l.common, errs[3] = reload.Open(reload.Options[*common]{Paths: path, Parse: parseCommon, Optional: true, Log: o.Log})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return l, nil
}

// Watch keeps the lists up to date until ctx ends: a file is read again within 30
// seconds after it has changed, and on SIGHUP.
func (l *Lists) Watch(ctx context.Context) {
	reload.Watch(ctx, l.clients, l.senders, l.rcpts, l.common)
}

// A Client is who is connected.
type Client struct {
	Addr  netip.Addr // not valid: Local
	Name  string     // confirmed: it resolves to Addr. Else ""
	User  string     // authenticated as, "" if not
	Local bool       // on the local socket
}

// A Verdict says whether somebody is exempt. The zero Verdict is: no.
type Verdict struct {
	Exempt bool
	Reject bool // only of Client: a list says so. Never with Exempt
	Own    bool // only of Client, with Exempt: not because of a list; log it only if verbose

	// By is what decided, as for the key by of the log: "local",
	// "authenticated", "private", "-trusted 192.0.2.0/24",
	// "-allowClients /etc/mail/clients:12", "/etc/mail/filters.list:3"; also set
	// if a line says dunno. "" if there is nothing.
	By string
}

// Client says whether a client is exempt, by who it is and by the lists.
func (l *Lists) Client(c Client) Verdict {
	if v := l.sure(c); v.Exempt {
		return v
	}
	addr := c.Addr.Unmap()
	m, ok := l.common.Value().clientsOf().Lookup(addr, c.Name)
	by := m.String()
	if !ok {
		m, ok = l.clients.Value().Lookup(addr, c.Name)
		by = "-allowClients " + m.String()
	}
	switch {
	case ok && m.Action == Permit:
		return Verdict{Exempt: true, By: by}
	case ok && m.Action == Reject:
		return Verdict{Reject: true, By: by}
	}
	v := l.opts.Trusted.Verdict(addr)
	if !v.Exempt && ok {
		v.By = by
	}
	return v
}

// Own says whether a client is one of ours, whatever the lists say of it: on the
// local socket, authenticated, in a private network or one of -trusted.
func (l *Lists) Own(c Client) Verdict {
	if v := l.sure(c); v.Exempt {
		return v
	}
	return l.opts.Trusted.Verdict(c.Addr)
}

// sure is what no line of a list can change: a list of networks that nobody
// should have must not shut out the machine itself.
func (l *Lists) sure(c Client) Verdict {
	addr := c.Addr.Unmap()
	switch {
	case c.Local || !addr.IsValid():
		return Verdict{Exempt: true, Own: true, By: "local"}
	case c.User != "":
		return Verdict{Exempt: true, Own: true, By: "authenticated"}
	case addr.IsLoopback() && !l.opts.Trusted.none:
		return Verdict{Exempt: true, Own: true, By: "local"}
	}
	return Verdict{}
}

// Sender says whether mail of an envelope sender is exempt. SPFPass is that SPF
// passes for the domain of the sender, not only for the name in HELO, by a record
// that does not let everybody send.
func (l *Lists) Sender(addr string, spfPass bool) Verdict {
	if p, ok := l.senders.Value().Lookup(addr, spfPass); ok {
		return Verdict{Exempt: true, By: "-allowSenders " + p.String()}
	}
	if p, ok := l.common.Value().sendersOf().Lookup(addr, spfPass); ok {
		return Verdict{Exempt: true, By: p.String()}
	}
	return Verdict{}
}

// SenderNeedsSPF reports whether Sender may say yes with SPF pass and says no
// without.
func (l *Lists) SenderNeedsSPF(addr string) bool {
	return !l.Sender(addr, false).Exempt && l.Sender(addr, true).Exempt
}

// Recipient says whether mail to a recipient is exempt.
func (l *Lists) Recipient(addr string) Verdict {
	if p, ok := l.rcpts.Value().Lookup(addr); ok {
		return Verdict{Exempt: true, By: "-allowRecipients " + p.String()}
	}
	if p, ok := l.common.Value().rcptsOf().Lookup(addr); ok {
		return Verdict{Exempt: true, By: p.String()}
	}
	return Verdict{}
}

// Bad returns what is wrong with the files as they are: bad lines, which are
// skipped, and files that are missing or cannot be read. For -n, which then
// exits 1.
func (l *Lists) Bad() []error {
	var errs []error
	for _, bad := range [][]error{l.clients.Bad(), l.senders.Bad(), l.rcpts.Bad(), l.common.Bad()} {
		errs = append(errs, bad...)
	}
	return errs
}

// Rows returns what is in force for -n, each a name and a value.
func (l *Lists) Rows() [][2]string {
	rows := [][2]string{
		{"entries of -allowClients", fmt.Sprint(l.clients.Value().Len())},
		{"entries of -allowSenders", fmt.Sprint(l.senders.Value().Len())},
		{"entries of -allowRecipients", fmt.Sprint(l.rcpts.Value().Len())},
	}
	if l.opts.Common != "" {
		rows = append(rows, [2]string{"entries of " + l.opts.Common, fmt.Sprint(l.common.Value().Len())})
	}
	return rows
}

// Warnings returns what is no error but hardly meant: a line that lets nearly
// everybody pass, a domain in which anybody can have a name, reject lines in a
// program that refuses nobody by them. For -n and the start.
func (l *Lists) Warnings() []error {
	var errs []error
	clients := l.clients.Value()
	errs = append(errs, clients.warnings(!l.opts.Refuses)...)
	errs = append(errs, l.senders.Value().warnings()...)
	errs = append(errs, l.common.Value().clientsOf().warnings(false)...)
	return append(errs, l.common.Value().sendersOf().warnings()...)
}

// Networks are those whose clients are ours, the flag -trusted. The zero value is
// the private ones, see ipset.Private.
type Networks struct {
	nets []netip.Prefix
	none bool // private ones are like others
	text string
}

// Set reads networks, separated by commas, that are trusted besides the private
// ones; with none among them those are not.
func (n *Networks) Set(s string) error {
	m := Networks{text: s}
	for _, word := range splitComma(s) {
		if word == "none" {
			m.none = true
			continue
		}
		p, err := ipset.ParsePrefix(word)
		if err != nil {
			return err
		}
		m.nets = append(m.nets, p)
	}
	*n = m
	return nil
}

func (n *Networks) String() string { return n.text }

// Words returns the networks, each as -n shows it.
func (n *Networks) Words() []string {
	var words []string
	if !n.none {
		words = append(words, "private networks")
	}
	for _, p := range n.nets {
		words = append(words, p.String())
	}
	return words
}

// Verdict says whether an address is in the networks.
func (n *Networks) Verdict(addr netip.Addr) Verdict {
	addr = addr.Unmap()
	if !n.none && ipset.Private(addr) {
		return Verdict{Exempt: true, Own: true, By: "private"}
	}
	for _, p := range n.nets {
		if p.Contains(addr.WithZone("")) { // no network contains a zone
			return Verdict{Exempt: true, Own: true, By: "-trusted " + p.String()}
		}
	}
	return Verdict{}
}

// Paths and ReadAt tell when which file was read, see pkg/metrics.
func (l *Lists) Paths() []string {
	var paths []string
	for _, f := range l.files() {
		paths = append(paths, f.Paths()...)
	}
	return paths
}

// ReadAt returns when a file was last read without error, zero for never.
func (l *Lists) ReadAt(path string) time.Time {
	for _, f := range l.files() {
		if t := f.ReadAt(path); !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

type timed interface {
	Paths() []string
	ReadAt(string) time.Time
}

func (l *Lists) files() []timed { return []timed{l.clients, l.senders, l.rcpts, l.common} }
