//go:build linux

package mixed

import (
	"slices"
	"strings"
)

// A Report is what filterctl report is to find, by the account of what was sent.
type Report struct {
	Connections Connections
	Messages    Fates
	BadCommands int

	Filters    map[string]FilterReport `json:"-"`
	Would      int                     `json:"-"` // clients that the dry run would have refused
	Clients    map[string]Fates        `json:"-"`
	Recipients map[string]Fates        `json:"-"`
	Lists      map[string]int          `json:"-"` // hits
	Waited     int                     `json:"-"`
	Never      int                     `json:"-"`
	Delivered  int                     `json:"-"`
	Server     int                     `json:"-"` // refused by smtpd itself
}

// Connections are those over the network by what became of them, and others.
type Connections struct {
	Total, Accepted, Junked, Deferred, Refused, Nothing, Local, Authenticated, Cut int
}

// Fates count mails by what became of them.
type Fates struct{ Accepted, Junked, Deferred, Refused int }

// Add adds other counts.
func (f *Fates) Add(o Fates) {
	f.Accepted += o.Accepted
	f.Junked += o.Junked
	f.Deferred += o.Deferred
	f.Refused += o.Refused
}

// Total is the sum of all.
func (f Fates) Total() int { return f.Accepted + f.Junked + f.Deferred + f.Refused }

// A Client, or a Recipient, has its mails.
type (
	Client struct {
		Addr string
		Fates
	}
	Recipient struct {
		Rcpt string
		Fates
	}
)

// A FilterReport is how often a filter has done what is not to proceed.
type FilterReport struct{ Junk, Defer, Refuse, More int }

// Fates is what became of one mail.
func (f Fate) Fates() Fates {
	switch {
	case f.Result.Accepted() && f.Junk != "":
		return Fates{Junked: 1}
	case f.Result.Accepted():
		return Fates{Accepted: 1}
	case f.Result.Reply.Code < 500:
		return Fates{Deferred: 1}
	}
	return Fates{Refused: 1}
}

// Report counts what the clients were told.
func (r *Run) Report() Report {
	rep := Report{
		BadCommands: r.BadCommands,
		Filters:     map[string]FilterReport{"trial": {}, "dyndns": {}, "dnsbl": {}, "greylist": {}},
		Clients:     map[string]Fates{}, Recipients: map[string]Fates{}, Lists: map[string]int{},
		Waited: len(r.Waits), Never: r.NoRetry,
	}
	conns := make([]Fates, r.Connections+1)
	sources := map[int]string{}
	add := func(to map[string]Fates, key string, n Fates) {
		sum := to[key]
		sum.Add(n)
		to[key] = sum
	}
	filter := func(name string, n FilterReport) {
		f := rep.Filters[name]
		rep.Filters[name] = FilterReport{f.Junk + n.Junk, f.Defer + n.Defer, f.Refuse + n.Refuse, f.More + n.More}
	}
	for _, f := range r.Fates {
		n := f.Fates()
		conns[f.Conn].Add(n)
		sources[f.Conn] = f.Mail.Src
		to := f.Mail.To
		if !strings.Contains(to, "@") {
			to += "@example.org"
		}
		if f.By != "smtpd" {
			add(rep.Recipients, to, n)
		}
		if f.More {
			filter(f.By, FilterReport{More: 1})
			continue
		}
		rep.Messages.Add(n)
		add(rep.Clients, f.Mail.Src, n)
		rep.Delivered += n.Accepted + n.Junked
		switch {
		case f.By == "smtpd":
			rep.Server++
		case f.By != "":
			filter(f.By, FilterReport{Defer: n.Deferred, Refuse: n.Refused})
		}
		switch { // junked, whatever the next filter says
		case f.Mail.Src == Dynamic:
			filter("dyndns", FilterReport{Junk: 1})
		case f.Mail.Src == Grey || f.Mail.Src == Doubtful:
			filter("dnsbl", FilterReport{Junk: 1})
			rep.Lists["grey.example"]++
		}
		if f.By == "dnsbl" {
			rep.Lists["bl.example"]++
		}
	}
	c := &rep.Connections
	c.Total, c.Local, c.Authenticated = r.Connections, r.Local, r.Auth
	for i, n := range conns[1:] {
		switch {
		case n.Refused > 0:
			c.Refused++
		case n.Deferred > 0:
			c.Deferred++
		case n.Junked > 0:
			c.Junked++
		case n.Accepted > 0:
			c.Accepted++
		default:
			c.Nothing++
		}
		if slices.Contains([]string{Gone, Gone2, Nameless, Other, Grey, Listed, Listed2}, sources[i+1]) {
			rep.Would++
		}
	}
	rep.Would++ // Rude
	for _, to := range []string{"ann@example.org", "friend@elsewhere.example"} {
		one := Fates{Accepted: 1}
		rep.Messages.Add(one)
		add(rep.Recipients, to, one)
		rep.Delivered++
	}
	return rep
}
