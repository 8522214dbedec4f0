package rdns

import "strings"

// A kind is what one word of a name says about the machine.
type kind uint8

const (
	noKind   kind = iota
	dynamic       // says that the address changes: worth 3
	access        // a technology that homes are connected by: worth 2
	customer      // a subscriber: worth 1
	line          // a subscriber, or a visitor of anything else: worth 1, but not both
	static        // an access line whose address stays
	hosting       // a rented machine
	blank         // the provider's way of saying that there is no name
	server        // some server: speaks against words, not against an address
	post          // a mail server, unless the line is called an access line
	numKinds
)

// kindOf gives the kind of a word, a run of two or more lower-case letters with no letter
// before or after it. Words that only mail servers have are in isMail.
func kindOf(w string) kind {
	switch w {
	case "dynamic", "dynamicip", "dynip", "ipdyn", "dynpool", "dynuser",
		"dynamique", "dynamisch", "dinamico", "dinamica", "dinamic", "dinamik",
		"dialup", "dialups", "dialin", "pppoe", "pppoa":
		return dynamic

	case "dyn", "dyncable", "ddns", "dhcp", "ppp", "dial", "dip", "isdn", "pptp", "lns", "bng", "bras",
		"natpool", "ippool", "pooles",
		"hfc", "cable", "cablemodem", "modemcable", "modem", "docsis", "cm", "cmts", "kabel", "cpe",
		"fttb", "fttc", "fttp", "fttx", "pon", "fios", "uverse", "lightspeed",
		"broadband", "bband", "bb", "bredband", "triband", "wline",
		"wimax", "umts", "gprs", "hsdpa", "hspa", "lte", "cdma", "vsat",
		"resnet", "residential", "residencial", "dclient", "hsd", "hsi", "hsia",
		"ipad", "ipadfx", "ipbf", "ipbffx", "ipngn", "ipngnfx", "ipxg": // the access points of OCN
		return access

	case "cust", "customer", "customers", "kunde", "kunden", "abo", "abon", "abonne", "abonent", "assinante",
		"subs", "subscriber", "subscribers":
		return customer

	case "client", "clients", "cliente", "clientes", "clienti", "klient",
		"user", "users", "usr", "usuario", "sub", "pool", "pools", "res", "home", "retail", "access",
		"mobile", "mobil", "movil", "mob", "gsm", "wireless", "wifi", "wlan", "hotspot",
		"fiber", "fibre", "fibra", "internet", "inet":
		return line

	case "static", "staticip", "ipstatic", "statisch", "statique", "statico", "estatico", "estatica",
		"sta", "stat", "fix", "fixed", "fixip", "fixedip", "fijo", "fija", "fixo", "fisso",
		"business", "biz", "leased", "dedicated", "ded", "sme", "soho", "sdsl", "shdsl",
		"rrcs", "wsip": // Road Runner and Cox for companies
		return static

	case "vps", "vds", "vserver", "vm", "vmi", "vmd", "kvm", "compute", "cloud", "instance", "instances",
		"dedi", "colo", "colocation", "hosted", "hosting", "rootserver", "servers", "datacenter":
		return hosting

	case "unassigned", "unallocated", "unconfigured", "undefined", "noptr", "nordns", "noreverse":
		return blank

	case "ns", "dns", "www", "web", "ftp", "srv", "server", "serv", "svr", "gw", "gate", "gateway", "fw",
		"firewall", "router", "vpn", "proxy", "office", "db", "sql", "dc", "ad", "vhost", "ntp", "git",
		"pop", "cas", "hub", "edge", "filter", "em", "cluster":
		return server

	case "mx", "mta", "out", "outgoing", "exch", "exchange", "owa", "notes", "domino", "zimbra", "kerio", "groupwise", "mdaemon",
		"post", "posta", "poste", "poczta", "correo", "correio",
		"msa", "mda", "msg", "messaging", "messages",
		"list", "lists", "listserv", "news", "newsletter", "newsletters", "bounce", "bounces", "sender", "send", "sending",
		"delivery", "marketing", "campaign", "campaigns", "notify", "notifications", "alerts", "promo", "edm", "bulk",
		"spam", "antispam", "ironport", "esa", "barracuda", "mimecast", "proofpoint":
		return post
	}
	switch {
	case strings.HasPrefix(w, "dsl"), strings.HasSuffix(w, "dsl"), strings.HasPrefix(w, "adsl"), strings.HasPrefix(w, "vdsl"),
		strings.HasSuffix(w, "catv"), strings.HasSuffix(w, "ftth"), strings.HasSuffix(w, "gpon"):
		return access
	case strings.HasPrefix(w, "mx"), strings.HasPrefix(w, "mta"), strings.HasSuffix(w, "mta"), strings.HasSuffix(w, "out"):
		return post
	}
	return noKind
}

// isMail tells whether a name, or a part of one, holds a word that only mail servers have.
func isMail(name string) bool {
	for _, s := range [...]string{"mail", "smtp", "relay", "outbound", "imap", "postfix"} {
		if strings.Contains(name, s) {
			return true
		}
	}
	return false
}

// isHosting tells whether machines are rented under a registered domain.
func isHosting(domain string) bool {
	for _, s := range [...]string{"server", "host", "cloud", "vps", "coloc", "datacenter", "usercontent",
		"amazonaws", "linode", "vultr", "digitalocean", "hetzner", "ovh", "scaleway", "rackspace"} {
		if strings.Contains(domain, s) {
			return true
		}
	}
	return false
}
