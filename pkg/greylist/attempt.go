package greylist

import (
	"net/netip"
	"strings"
	"time"
)

// An Attempt is one try to deliver a message, and what others found out about
// it.
type Attempt struct {
	Time   time.Time
	Client Client
	Helo   string    // as given
	Sender string    // as given; empty or <> is the null sender
	Rcpts  []string  // the accepted recipients, as given
	SPF    SPFResult // of the sender's domain, or of Helo for the null sender

	Junked bool   // an earlier filter has junked it
	Exempt string // why it is not greylisted, whatever it is; empty if nothing says so
	Trap   bool   // one of the recipients is a trap
}

// A Client is who makes an attempt.
type Client struct {
	Addr   netip.Addr
	Name   string // the reverse name if it resolves to Addr, else empty
	Domain string // the registered domain of Name
	Class  Mark   // what Name is like: Proper, or the mark it deserves
	Shown  string // the name for people; default: Name

	Provider       string // the large mail provider whose published networks Addr is in, empty if none
	ProviderDomain string // the domain its names are in
	Listed         string // the list of good senders that has Addr, empty if none
}

// An SPFResult is what the sender's policy says of the client (RFC 7208). A record that
// lets everybody send counts as none.
type SPFResult struct {
	Status Status
	Domain string // the domain of the identity that was checked
	Frees  bool   // pass, and known not to be one for everybody: a retry frees the domain
}

// A Status is a result of SPF (RFC 7208 section 2.6).
type Status string

const (
	SPFNone      Status = "none"
	SPFNeutral   Status = "neutral"
	SPFPass      Status = "pass"
	SPFFail      Status = "fail"
	SPFSoftFail  Status = "softfail"
	SPFTempError Status = "temperror"
	SPFPermError Status = "permerror"
	SPFOff       Status = "off" // not asked, and not wanted
)

// A Mark says why mail cannot be vouched for.
type Mark string

const (
	Proper      Mark = "" // nothing: the name is that of a mail server
	NoName      Mark = "noname"
	Unconfirmed Mark = "unconfirmed" // the name does not resolve to the address
	Dynamic     Mark = "dynamic"
	Generic     Mark = "generic"
	Static      Mark = "static"
	Hosting     Mark = "hosting"
	NoSPF       Mark = "nospf"
	SPFFailed   Mark = "spffail" // fail or softfail
	Junked      Mark = "junked"
	DNSFail     Mark = "dnsfail" // the DNS does not answer, and nothing else is wrong
)

// Marks are all of them but Proper.
func Marks() []Mark {
	return []Mark{NoName, Unconfirmed, Dynamic, Generic, Static, Hosting, NoSPF, SPFFailed, Junked, DNSFail}
}

// vouch says whether mail is vouched for, and by what, or else its mark: by a
// confirmed proper name together with SPF, by a large provider together with
// SPF, or by a list. An earlier filter's doubt is worth more than all of them.
func (a *Attempt) vouch() (by string, suspect Mark) {
	c := &a.Client
	switch {
	case a.Junked:
		return "", Junked
	case c.Listed != "":
		return c.Listed, Proper
	case c.Provider != "" && a.sendsFor():
		return "provider:" + c.Provider, Proper
	case c.Class != Proper && c.Class != DNSFail:
		return "", c.Class
	case c.Class == Proper && c.Name == "":
		return "", NoName
	}
	if !a.sendsFor() && a.SPF.Status != SPFOff {
		switch a.SPF.Status {
		case SPFTempError:
			return "", DNSFail
		case SPFFail, SPFSoftFail:
			return "", SPFFailed
		}
		return "", NoSPF
	}
	if c.Class == DNSFail {
		return "", DNSFail
	}
	return "name:" + c.Domain, Proper
}

// sendsFor says whether the client may send for the sender: SPF says so, or, for
// the null sender, it calls itself by a name in its own domain or its provider's.
func (a *Attempt) sendsFor() bool {
	return a.SPF.Status == SPFPass ||
		a.null() && (inDomain(a.Helo, a.Client.Domain) || inDomain(a.Helo, a.Client.ProviderDomain))
}

// null reports whether the sender is the null sender.
func (a *Attempt) null() bool { return a.Sender == "" || a.Sender == NullSender }

// pairs reports whether the attempt says something about its sender and
// recipients, whatever its address: who sends bounces is everybody, and bots have
// no name, that of a home, or a sender that SPF denies them.
func (a *Attempt) pairs() bool {
	return !a.null() && a.Client.Name != "" && a.Client.Class != Dynamic &&
		a.SPF.Status != SPFFail && a.SPF.Status != SPFSoftFail
}

// springs reports whether the attempt springs a trap. Bounces do not: spam is sent
// in the name of traps too.
func (a *Attempt) springs() bool {
	return a.Trap && !a.null() && a.Client.Provider == ""
}

// senderDomain is the domain of the sender, as in keys; empty for the null sender.
func (a *Attempt) senderDomain() string {
	if a.null() {
		return ""
	}
	_, domain := splitAddr(a.Sender)
	return asciiDomain(domain)
}

// inDomain reports whether a name is a domain or in it.
func inDomain(name, domain string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	domain = strings.TrimSuffix(strings.ToLower(domain), ".")
	return domain != "" && (name == domain || strings.HasSuffix(name, "."+domain))
}
