package dnsbl

import "strings"

// A kind is what a zone lists.
type kind byte

const (
	addresses kind = iota
	domains
	scores // an answer for good and bad: nothing without a match
)

// Families of addresses that a zone lists.
const (
	ip4 = 1 << iota
	ip6
	both = ip4 | ip6
)

// A known zone is one whose answers are known.
type known struct {
	zone     string
	kind     kind
	families int
	weight   int
	match    string // default; empty is 127.0.0.0/8
	test     string // listed name, if not 2.0.0.127 or TEST
	blocked  byte   // bits of the last octet that say that queries are refused
	parent   bool   // wants registered domains, not names below them
	remedy   string // when it does not answer, or not this resolver
	toAll    string // remedy when it lists everybody
	white1   bool   // 127.0.0.1 is listed by design
	codes    []code
}

// A code says what an answer means.
type code struct{ match, text string }

const (
	ownResolver = "run a resolver of your own on this host, or register for a key"
	lessQueries = "ask less, or register with the list"
)

// knownZones are the living ones. Weights are meant for a threshold of 5: what
// nobody should refuse for alone stays below.
func knownZones() []known {
	zen := []code{
		{"127.0.0.2", "SBL, spam source"}, {"127.0.0.3", "CSS, snowshoe spam"}, {"127.0.0.[4..7]", "XBL, infected machine"},
		{"127.0.0.9", "DROP, hijacked network"}, {"127.0.0.10", "PBL, end user line, by the provider"}, {"127.0.0.11", "PBL, end user line"},
		{"127.0.0.20", "AuthBL, brute force"}, {"127.0.0.30", "BCL, botnet controller"},
	}
	dbl := []code{
		{"127.0.1.2", "spam domain"}, {"127.0.1.4", "phishing"}, {"127.0.1.5", "malware"}, {"127.0.1.6", "botnet controller"},
		{"127.0.1.[102..106]", "abused legitimate domain"},
	}
	dnswl := []code{{"127.0.[0..255].0", "no trust"}, {"127.0.[0..255].1", "low trust"}, {"127.0.[0..255].2", "medium trust"}, {"127.0.[0..255].3", "high trust"}}
	mailspike := []code{
		{"127.0.0.2", "spam wave"}, {"127.0.0.10", "worst reputation"}, {"127.0.0.11", "very bad reputation"}, {"127.0.0.12", "bad reputation"},
		{"127.0.0.[13..16]", "neutral"}, {"127.0.0.17", "possibly good"}, {"127.0.0.18", "good"}, {"127.0.0.19", "very good"}, {"127.0.0.20", "excellent"},
	}
	abusix := []code{
		{"127.0.0.2", "black"}, {"127.0.0.3", "black, heuristic"}, {"127.0.0.4", "exploited machine"},
		{"127.0.0.11", "policy, generic reverse name"}, {"127.0.0.12", "policy, no reverse name"}, {"127.0.0.200", "black, by hand"},
	}
	rpbl := []code{{"bit:1", "bot"}, {"bit:2", "no authentication"}, {"bit:4", "spam trap"}, {"bit:8", "suspect attachment"}, {"bit:16", "sender score"}}
	surbl := []code{
		{"bit:4", "DM"}, {"bit:8", "phishing"}, {"bit:16", "malware"}, {"bit:32", "CT"}, {"bit:64", "abuse"}, {"bit:128", "cracked"},
	}
	uribl := []code{{"bit:2", "black"}, {"bit:4", "grey"}, {"bit:8", "red"}}
	swl := []code{{"127.0.2.[0..255]", "sender that Spamhaus vouches for"}}
	karma := []code{
		{"127.0.0.1", "white"}, {"127.0.0.2", "black"}, {"127.0.0.3", "yellow, sends good mail and bad"}, {"127.0.0.4", "brown"},
		{"127.0.0.5", "not to be listed"}, {"127.0.[1..2].[0..255]", "what it has done lately"},
	}
	listed := []code{{"127.0.0.2", "listed"}}
	const key = "check the key"
	const validity = "register the address of your resolver at my.validity.com"
	return []known{
		{zone: "zen.spamhaus.org", families: both, weight: 5, match: "127.0.0.[2..11]", remedy: ownResolver, codes: zen},
		{zone: "zen.dq.spamhaus.net", families: both, weight: 5, match: "127.0.0.[2..11]", remedy: key, codes: zen},
		{zone: "sbl.spamhaus.org", families: both, weight: 5, match: "127.0.0.[2..9]", remedy: ownResolver, codes: zen},
		{zone: "xbl.spamhaus.org", families: both, weight: 5, match: "127.0.0.[4..7]", remedy: ownResolver, codes: zen},
		{zone: "pbl.spamhaus.org", families: both, weight: 4, match: "127.0.0.[10..11]", remedy: ownResolver, codes: zen},
		{zone: "authbl.dq.spamhaus.net", families: both, weight: 3, match: "127.0.0.20", remedy: key, codes: zen},
		{zone: "dbl.spamhaus.org", kind: domains, weight: 4, match: "127.0.1.[2..99]", test: "dbltest.com", remedy: ownResolver, codes: dbl},
		{zone: "dbl.dq.spamhaus.net", kind: domains, weight: 4, match: "127.0.1.[2..99]", test: "dbltest.com", remedy: key, codes: dbl},
		{zone: "zrd.dq.spamhaus.net", kind: domains, weight: 2, match: "127.0.2.[2..24]", remedy: key,
			codes: []code{{"127.0.2.[2..24]", "domain first seen hours ago"}}},
		{zone: "sbl.dq.spamhaus.net", families: both, weight: 5, match: "127.0.0.[2..9]", remedy: key, codes: zen},
		{zone: "xbl.dq.spamhaus.net", families: both, weight: 5, match: "127.0.0.[4..7]", remedy: key, codes: zen},
		{zone: "pbl.dq.spamhaus.net", families: both, weight: 4, match: "127.0.0.[10..11]", remedy: key, codes: zen},
		{zone: "swl.spamhaus.org", families: both, weight: -2, remedy: ownResolver, codes: swl},
		{zone: "swl.dq.spamhaus.net", families: both, weight: -2, remedy: key, codes: swl},
		{zone: "bl.spamcop.net", families: ip4, weight: 2, codes: listed},
		{zone: "b.barracudacentral.org", families: ip4, weight: 3, remedy: "register the address of your resolver at barracudacentral.org", codes: listed},
		{zone: "psbl.surriel.com", families: both, weight: 2, codes: listed},
		{zone: "dnsbl-1.uceprotect.net", families: both, weight: 2, codes: []code{{"127.0.0.2", "single address"}}},
		{zone: "dnsbl-2.uceprotect.net", families: both, weight: 1, codes: []code{{"127.0.0.2", "its provider's network"}}},
		{zone: "dnsbl-3.uceprotect.net", families: both, weight: 1, codes: []code{{"127.0.0.2", "all networks of its provider"}}},
		{zone: "ips.backscatterer.org", families: both, weight: 1, codes: []code{{"127.0.0.2", "sends bounces; of use for MAIL FROM:<> only"}}},
		{zone: "bl.mailspike.net", families: ip4, weight: 3, match: "127.0.0.[2;10..12]", remedy: lessQueries, codes: mailspike},
		{zone: "z.mailspike.net", families: ip4, weight: 3, match: "127.0.0.2", remedy: lessQueries, codes: mailspike},
		{zone: "rep.mailspike.net", kind: scores, families: ip4, weight: 1, remedy: lessQueries, codes: mailspike},
		{zone: "wl.mailspike.net", families: ip4, weight: -1, match: "127.0.0.[18..20]", remedy: lessQueries, codes: mailspike},
		{zone: "bl.spameatingmonkey.net", families: ip4, weight: 2, match: "127.0.0.[2..3]", remedy: lessQueries},
		{zone: "bl.ipv6.spameatingmonkey.net", families: ip6, weight: 2, match: "127.0.0.[2..3]", remedy: lessQueries},
		{zone: "uribl.spameatingmonkey.net", kind: domains, weight: 2, parent: true, remedy: lessQueries},
		{zone: "fresh15.spameatingmonkey.net", kind: domains, weight: 1, parent: true, remedy: lessQueries},
		{zone: "list.dnswl.org", families: both, weight: -2, match: "127.0.[0..255].[1..3]", remedy: lessQueries, codes: dnswl,
			toAll: "it answers so who asks too much: ask less, or register at dnswl.org"},
		{zone: "combined.mail.abusix.zone", families: both, weight: 4, match: "127.0.0.[2..4;11..12;200]", remedy: key, codes: abusix},
		{zone: "black.mail.abusix.zone", families: both, weight: 4, match: "127.0.0.[2..3;200]", remedy: key, codes: abusix},
		{zone: "exploit.mail.abusix.zone", families: both, weight: 4, match: "127.0.0.4", remedy: key, codes: abusix},
		{zone: "dynamic.mail.abusix.zone", families: both, weight: 3, match: "127.0.0.11", remedy: key, codes: abusix},
		{zone: "noip.mail.abusix.zone", families: both, weight: 2, match: "127.0.0.12", remedy: key, codes: abusix},
		{zone: "white.mail.abusix.zone", families: both, weight: -2, remedy: key},
		{zone: "dblack.mail.abusix.zone", kind: domains, weight: 3, remedy: key},
		{zone: "multi.surbl.org", kind: domains, weight: 3, match: "bit:252", test: "test.surbl.org", blocked: 1, parent: true, remedy: ownResolver, codes: surbl},
		{zone: "multi.uribl.com", kind: domains, weight: 3, match: "bit:2", test: "2.0.0.127", blocked: 1, parent: true, remedy: ownResolver, codes: uribl},
		{zone: "bl.score.senderscore.com", families: ip4, weight: 2, match: "bit:31", remedy: validity, codes: rpbl},
		{zone: "score.senderscore.com", kind: scores, families: ip4, weight: 1, remedy: validity,
			codes: []code{{"127.0.4.[0..69]", "bad score"}, {"127.0.4.[70..79]", "poor score"}, {"127.0.4.[80..100]", "good score"}}},
		// It answers for good and bad, and 127.0.0.1 is its white.
		{zone: "hostkarma.junkemailfilter.com", families: ip4, weight: 2, match: "127.0.0.2", white1: true, codes: karma},
		{zone: "nobl.junkemailfilter.com", families: ip4, weight: -1, white1: true},
		{zone: "iadb.isipp.com", families: ip4, weight: -1},
		{zone: "iadb2.isipp.com", families: ip4, weight: -1},
		{zone: "ips.whitelisted.org", families: both, weight: -1},
		{zone: "bip.virusfree.cz", families: both, weight: 2},
		{zone: "bl.blocklist.de", families: both, weight: 2},
		{zone: "dnsbl.spfbl.net", families: both, weight: 2},
		{zone: "dnswl.spfbl.net", families: both, weight: -1},
		{zone: "truncate.gbudb.net", families: ip4, weight: 2, codes: listed},
	}
}

// lookupZone returns what is known about a zone, with or without a key. Of
// another one nothing is known: it lists addresses, and weighs 1.
func lookupZone(zone string) known {
	rest := ""
	if k := keyOf(zone); k != "" {
		rest = strings.TrimPrefix(zone[len(k):], ".")
	}
	for _, k := range knownZones() {
		if k.zone == zone || k.zone == rest {
			return k
		}
	}
	return known{families: both, weight: 1}
}

// deadZones are those that have ended. Some list the world now. A zone below
// one of these is dead too if there is a star.
func deadZones() [][2]string {
	const (
		emptied = "emptied"
		world   = "listed the world"
		gone    = "gone"
		gated   = "for customers of Validity only"
	)
	return [][2]string{
		{"*.sorbs.net", emptied + " 2024-06"},
		{"ix.dnsbl.manitu.net", emptied + " 2025-01"},
		{"dnsbl.inps.de", gone + " since 2020-05"},
		{"*.ahbl.org", world + " 2015"},
		{"relays.ordb.org", world + " 2008"},
		{"list.dsbl.org", gone + " since 2008"},
		{"bl.spamcannibal.org", world + " 2018"},
		{"bl.emailbasura.org", world + " 2019-10"},
		{"*.burnt-tech.com", world + " 2019"},
		{"spamtrap.drbl.drand.net", world + " 2024-03"},
		{"*.njabl.org", emptied + " 2013"},
		{"db.wpbl.info", gone}, {"virbl.dnsbl.bit.nl", gone}, {"combined.rbl.msrbl.net", gone}, {"ubl.unsubscore.com", gone},
		{"dul.ru", gone}, {"dnsbl.sectoor.de", gone}, {"rhs.mailpolice.com", gone}, {"wormrbl.imp.ch", gone},
		{"dnsbl.cyberlogic.net", gone}, {"bl.csma.biz", gone}, {"blackholes.mail-abuse.org", gone}, {"opm.blitzed.org", gone},
		{"cbl.abuseat.org", "part of xbl.spamhaus.org"},
		{"sa-trusted.bondedsender.org", gated}, {"plus.bondedsender.org", gated}, {"sa-accredit.habeas.com", gated}, {"hul.habeas.com", gated}, {"accredit.habeas.com", gated}, {"query.bondedsender.org", gated},
		{"bl.nszones.com", "a copy of other lists"}, {"*.psky.me", "bad data"},
	}
}

// dead says why a zone is not asked, "" if it is.
func dead(zone string) string {
	for _, d := range deadZones() {
		suffix, below := strings.CutPrefix(d[0], "*")
		if zone == strings.TrimPrefix(suffix, ".") || below && strings.HasSuffix(zone, suffix) {
			return d[1]
		}
	}
	return ""
}
