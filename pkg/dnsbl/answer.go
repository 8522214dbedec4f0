package dnsbl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// A fault is an answer that is no listing, in words.
type fault struct {
	why    string
	remedy string
}

// decode says what the answer to a question means: the codes that may be
// listings, or the fault of a zone that is not to be believed. 127.0.1.255, with
// which domain lists answer questions about addresses, voids the answer and
// nothing else.
func (k known) decode(answer []netip.Addr, about Subject) (codes []netip.Addr, f *fault) {
	void := false
	for _, a := range answer {
		if f := k.fault(a); f != nil {
			return nil, f
		}
		void = void || (k.kind == domains || about != IP) && a.As4() == [4]byte{127, 0, 1, 255}
	}
	if void {
		return nil, nil
	}
	return answer, nil
}

// world is the fault of a zone that lists everybody.
func (k known) world(why string) *fault {
	if k.toAll != "" {
		return &fault{"lists the world: " + why, k.toAll}
	}
	return &fault{"lists the world: " + why, "remove the list"}
}

func (k known) fault(a netip.Addr) *fault {
	remedy := k.remedy
	if remedy == "" {
		remedy = lessQueries
	}
	if !a.Is4() || !loopback().Contains(a) {
		return &fault{fmt.Sprintf("answers %s, which is not within 127.0.0.0/8", a), "the zone has been given up, or the resolver invents answers: remove the list, or run a resolver of your own"}
	}
	b := a.As4()
	switch {
	case b[1] == 255 && b[2] == 255:
		why := fmt.Sprintf("answers with the error %s", a)
		switch b[3] {
		case 252:
			return &fault{why + ", a typing error in the zone", "correct the zone"}
		case 254:
			return &fault{why + ", asked through a public or open resolver", ownResolver}
		case 255:
			why += ", too many queries or not registered"
		}
		return &fault{why, remedy}
	case b == [4]byte{127, 0, 0, 255} || b[3]&k.blocked != 0:
		return &fault{fmt.Sprintf("answers %s, queries are refused", a), remedy}
	}
	return nil
}

// notListed reports whether an error of the resolver says clearly that there
// is no such record.
func notListed(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

func timedOut(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsTimeout
}

// reason is an error of the resolver without the name, which may hold a key.
func reason(err error) string {
	var e *net.DNSError
	switch {
	case !errors.As(err, &e):
		return "no answer"
	case e.IsTimeout:
		return "no answer in time"
	}
	return Clean(e.Err)
}
