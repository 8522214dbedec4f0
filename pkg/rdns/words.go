package rdns

import "strings"

// A kind is what one word of a name says about the machine.
type kind uint8

const (
	noKind   kind = iota
	dynamic       // says that the address changes: worth 3
	access        // a technology that homes are connected by: worth 2, of two letters 1
	customer      // a subscriber: worth 1
	line          // a subscriber, or a visitor of anything else: worth 1, but not both
	static        // an access line whose address stays
	marker        // announces an address: speaks only beside two bytes of it
	hosting       // a rented machine
	blank         // the provider's way of saying that there is no name
	server        // some server: speaks against words, not against an address
	post          // a mail server, unless the line is called an access line
	numKinds
)

// accuses tells whether words of the kind speak against a client.
func (k kind) accuses() bool { return noKind < k && k <= marker }

// kindOf gives the kind of a word, a run of two or more lower-case letters with no letter
// before or after it. Words that only mail servers have are in isMail.
func kindOf(w string) kind {
	switch w {
	case "dynamic", "dynamicip", "dynip", "ipdyn", "dynpool", "dynuser",
		"dynamique", "dynamisch", "dynamisk", "dinamico", "dinamica", "dinamic", "dinamik", "dinamis", "dinamicki",
		"dynamiczny", "dynamiczne", "dynamicky", "dynaaminen", "dinaminis", "dinamikus",
		"dialup", "dialups", "dialin", "einwahl", "discado", "conmutado", "pppoe", "pppoa":
		return dynamic

	case "dyn", "ddns", "dhcp", "ppp", "dsl", "dial", "dip", "isdn", "pptp", "vpdn", "lns", "bng", "bras", "cgn", "cgnat", "apn",
		"natpool", "ippool", "pooles",
		"hfc", "cable", "cablemodem", "modemcable", "modem", "docsis", "cm", "cmts", "ubr", "cpe", "clec", "ilec",
		"kabel", "kablo", "kaapeli", "cabo", "cablu",
		"fttb", "fttc", "fttp", "fttx", "pon", "fios", "uverse", "lightspeed", "flets",
		"glasfaser", "glasvezel", "swiatlowod", "valokuitu",
		"broadband", "bband", "bb", "bredband", "breitband", "laajakaista", "triband", "bandalarga", "bandaancha", "wline",
		"ftth", "gpon", "catv", "wimax", "umts", "gprs", "hsdpa", "hspa", "lte", "cdma", "vsat", "fwa",
		"resnet", "residential", "residencial", "residentiel", "dclient", "hsd", "hsi", "hsia",
		"ipad", "ipadfx", "ipbf", "ipbffx", "ipngn", "ipngnfx", "ipxg": // the access points of OCN
		return access

	case "cust", "customer", "customers", "kunde", "kunden", "privatkunden", "kund", "kunder", "klant", "klanten",
		"abo", "abon", "abonne", "abonnes", "abonent", "abonnent", "abonado", "abonados", "abbonato", "abbonati",
		"assinante", "assinantes", "suscriptor", "suscriptores", "zakaznik", "elofizeto", "asiakas", "pelanggan",
		"subs", "subscr", "subscriber", "subscribers":
		return customer

	case "client", "clients", "cliente", "clientes", "clienti", "clienten", "klient", "klienti", "klijent",
		"user", "users", "usr", "usuario", "usuarios", "utente", "utenti", "usager", "korisnik",
		"sub", "pool", "pools", "res", "home", "hogar", "domicile", "particulier", "particuliers", "retail", "access", "acceso", "acesso",
		"mobile", "mobil", "movil", "mob", "gsm", "wireless", "wifi", "wlan", "hotspot", "inalambrico",
		"fiber", "fibre", "fibra", "internet", "inet":
		return line

	case "static", "statics", "staticip", "ipstatic", "statisch", "statisk", "statique", "statico", "estatico", "estatica",
		"statik", "statikus", "statyczny", "staticky", "sabit",
		"sta", "stat", "fix", "fixed", "fixip", "fixedip", "fixe", "fijo", "fija", "fixo", "fixa", "fisso", "festip",
		"business", "biz", "leased", "dedicated", "ded", "sme", "soho", "sdsl", "shdsl",
		"rrcs", "wsip": // Road Runner and Cox for companies
		return static

	case "ip", "ipv":
		return marker

	case "vps", "vds", "vserver", "vm", "vmi", "vmd", "kvm", "compute", "cloud", "instance", "instances",
		"dedi", "dedie", "dedies", "dedicado", "dedicados", "colo", "colocation", "hosted", "hosting", "rootserver", "servers", "datacenter",
		"serverdedicati", "serveur", "serveurs", "servidor", "servidores", "sunucu":
		return hosting

	case "unassigned", "unallocated", "unconfigured", "undefined", "noptr", "nordns", "noreverse":
		return blank

	case "ns", "dns", "www", "web", "ftp", "srv", "server", "serv", "svr", "gw", "gate", "gateway", "fw",
		"firewall", "router", "vpn", "proxy", "office", "db", "sql", "dc", "ad", "vhost", "ntp", "git",
		"pop", "cas", "hub", "edge", "filter", "em", "cluster":
		return server

	case "mx", "mta", "out", "outgoing", "exch", "exchange", "owa", "notes", "domino", "zimbra", "kerio", "groupwise", "mdaemon",
		"post", "posta", "poste", "poczta", "correo", "correio", "courrier", "courriel", "posti", "pochta",
		"msa", "mda", "msg", "messaging", "messages",
		"list", "lists", "listserv", "news", "newsletter", "newsletters", "bounce", "bounces", "sender", "send", "sending",
		"delivery", "marketing", "campaign", "campaigns", "notify", "notifications", "alerts", "promo", "edm", "bulk",
		"spam", "antispam", "ironport", "esa", "barracuda", "mimecast", "proofpoint":
		return post
	}
	return noKind
}

// kindOfParts gives the kind of a word that kindOf does not know, by the two that
// it is made of, if glue is set (ddslppp), or by what it begins or ends with
// (telkomadsl); three letters there say little, and count if dsl is set.
func kindOfParts(w string, dsl, glue bool) kind {
	if len(w) < 3 {
		return noKind
	}
	if glue {
		if k := glued(w); k != noKind {
			return k
		}
	}
	switch {
	case isTechnology(w), dsl && (strings.HasPrefix(w, "dsl") || strings.HasSuffix(w, "dsl")),
		strings.HasPrefix(w, "cable"), strings.HasSuffix(w, "cable"):
		return access
	case strings.HasPrefix(w, "customer"), strings.HasPrefix(w, "subscriber"):
		return customer
	case strings.HasPrefix(w, "mx"), strings.HasPrefix(w, "mta"), strings.HasSuffix(w, "mta"), strings.HasSuffix(w, "out"):
		return post
	}
	return noKind
}

// isTechnology tells whether w begins or ends as the names of access technologies do.
func isTechnology(w string) bool {
	if len(w) < 4 {
		return false
	}
	switch w[:4] {
	case "adsl", "vdsl":
		return true
	}
	switch w[len(w)-4:] {
	case "adsl", "vdsl", "sdsl", "xdsl", "catv", "ftth", "gpon":
		return true
	}
	return false
}

// glued gives the kind of two accusing words written as one. The one that says
// more about the line counts: an address that changes, or stays.
func glued(w string) kind {
	for i := 3; i+3 <= len(w); i++ {
		first := part(w[:i])
		if !first.accuses() {
			continue
		}
		second := part(w[i:])
		switch {
		case !second.accuses():
		case first == dynamic || second == dynamic:
			return dynamic
		case first == static || second == static:
			return static
		default:
			return min(first, second)
		}
	}
	return noKind
}

// part gives the kind of a part of a word.
func part(w string) kind {
	if isTechnology(w) || len(w) == 4 && strings.HasSuffix(w, "dsl") {
		return access
	}
	return kindOf(w)
}

// mailStems are in names that only mail servers have.
var mailStems = newStems("mail", "smtp", "relay", "outbound", "imap", "postfix")

func isMail(name string) bool { return mailStems.find(name) != "" }

// stems are parts of words, by their first letter.
type stems [26][]string

func newStems(all ...string) *stems {
	var s stems
	for _, w := range all {
		s[w[0]-'a'] = append(s[w[0]-'a'], w)
	}
	return &s
}

// find gives a stem that is anywhere in s, "" if none is.
func (t *stems) find(s string) string {
	for i := 0; i+2 < len(s); i++ {
		if !isLetter(s[i]) {
			continue
		}
		for _, w := range t[s[i]-'a'] {
			if w[1] == s[i+1] && strings.HasPrefix(s[i:], w) {
				return w
			}
		}
	}
	return ""
}
