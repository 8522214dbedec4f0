// Package dnsbl asks DNS lists about mail clients (RFC 5782) and makes a
// verdict of what they answer.
//
// A list is a zone in the DNS. An address record below it says that something
// is listed, and as what: 127.0.0.2, 127.0.0.10. Some answers are no listing at
// all, but say that the one who asks is not welcome, that a zone has been
// abandoned, or that a resolver invents answers. Who takes these for listings
// refuses everybody's mail. A [Checker] knows them, tests each zone as RFC 5782
// section 5 says, and more, and does without a zone that is not well: health.go says
// when it is, selftest.go how that is found out, doubt.go what finds a list out that
// lists everybody but the test entries, and blame.go whether it is the resolver.
//
// The [Checker] asks all lists at once and answers as soon as what is missing
// cannot change the verdict.
//
// Zones may contain a key that the operator has paid for. Nothing that leaves
// this package contains one; see [Keys].
package dnsbl
