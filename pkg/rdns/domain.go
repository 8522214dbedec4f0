package rdns

import (
	"strings"

	"golang.org/x/net/publicsuffix"
)

// RegisteredDomain gives the domain below a public suffix that name lies in,
// lower-case and without trailing dot: example.co.uk for mx.a.example.co.uk. Suffixes
// of companies that let strangers' names below their own count as public. It is ""
// for an address, a public suffix, and what is no name of a host.
func RegisteredDomain(name string) string {
	name = normal(name)
	if name == "" || bogus(name) != "" {
		return ""
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return ""
	}
	return domain
}

// registered gives the offset in name of the domain that was registered: the
// public suffix and one label. Suffixes of companies that let names below their
// own do not count. It is len(name) when nothing was registered: in
// hn.kd.ny.adsl the top-level domain is a word of kind access.
func registered(name string) int {
	suffix, icann := publicsuffix.PublicSuffix(name)
	for !icann {
		_, parent, ok := strings.Cut(suffix, ".")
		if !ok {
			k := kindOf(suffix)
			if k == noKind {
				k = kindOfParts(suffix, true, true)
			}
			if k == dynamic || k == access {
				return len(name)
			}
			break
		}
		suffix, icann = publicsuffix.PublicSuffix(parent)
	}
	end := len(name) - len(suffix) - 1
	if end <= 0 {
		return 0
	}
	return 1 + strings.LastIndexByte(name[:end], '.')
}

// hostingStems are in the domains of companies that rent machines: words of the
// trade, and companies that have none in their name.
var hostingStems = newStems(
	"server", "srv", "host", "cloud", "vps", "vds", "coloc", "dedi", "rack", "datacenter", "data-center", "usercontent", "seedbox",

	"aliyun", "amazonaws", "awsglobal", "azure", "choopa", "contabo", "digitalocean", "exoscale", "hetzner",
	"hstgr", "infomaniak", "ionos", "kamatera", "kimsufi", "leaseweb", "linode", "netcup", "ovh", "poneytelecom", "quadranet",
	"scaleway", "selectel", "softlayer", "theplanet", "timeweb", "tmweb", "turnkeyinternet", "unifiedlayer",
	"vultr", "wholesaleinternet", "worldstream",
)

// accessStems are in the names of companies that sell access lines: words in the
// languages of the world, and large companies that have none in their name.
var accessStems = newStems(
	"telecom", "telekom", "telkom", "telco", "telefon", "telenet", "telcel",
	"cable", "kabel", "kablo", "netcabo", "tvcabo", "cabovisao", "catv", "dsl",
	"fiber", "fibr", "ftth", "gpon", "glasfaser", "glasvezel", "broad", "bredband", "breitband", "bandalarga", "bandaancha",
	"wireless", "wifi", "wi-fi", "wimax", "wisp", "mobil", "movil", "cellular", "gsm", "satelit", "satellit",
	"internet", "provedor", "conexao", "conect", "connect", "acesso", "speed", "homenet", "dialup", "dialin",
	"comunica", "kommunik",

	"adelphia", "ameritech", "arcor", "atlanticbb", "bbox", "bbtec", "beeline", "bellsouth", "bezeq", "blueyonder", "bluewin", "btcentral",
	"btopenworld", "charter", "chello", "comcast", "corbina", "frontier", "hananet", "hansenet", "insightbb", "kornet", "mediacom",
	"megafon", "mindspring", "netvision", "numericable", "optonline", "optusnet", "pacbell", "proxad", "rima-tde", "sbcglobal", "so-net",
	"superonline", "swbell", "threembb", "tiscali", "t-ipconnect", "t-online", "ttnet", "unitymedia", "videotron", "verizon", "virginm",
	"vodafone", "wanadoo", "wideopenwest", "windstream", "ziggo",
)

// isHosting tells whether machines are rented under a registered domain.
func isHosting(domain string) bool { return hostingStems.find(domain) != "" }

// accessWord gives what says that the company of a registered domain sells
// access lines: a word or the name of the company, the ending of its name, or a suffix
// kept for networks. It is "" for other companies.
func accessWord(domain string) string {
	company, suffix, _ := strings.Cut(domain, ".")
	if s := accessStems.find(company); s != "" {
		return s
	}
	switch company {
	case "alice", "arnet", "bell", "bsnl", "claro", "cox", "free", "kpn", "mts", "mtnl", "ntl", "ono", "orange", "rcn", "rogers", "rr", "sfr",
		"shaw", "upc", "vivo", "volia", "vsnl":
		return company
	}
	switch {
	case strings.HasPrefix(company, "tel"), strings.HasSuffix(company, "tel") && !strings.HasSuffix(company, "hotel"):
		return "tel"
	case strings.HasSuffix(company, "tv"):
		return "tv"
	case strings.HasSuffix(company, "link"):
		return "link"
	}
	// Registries that keep a suffix for those who run networks.
	switch suffix {
	case "net.br", "ne.jp", "ad.jp", "ne.kr", "net.tw", "net.hk", "net.id", "net.th", "net.tr", "net.il",
		"net.ar", "net.uk", "net.za", "net.sg", "net.my", "net.ae", "net.sa":
		return suffix
	}
	return ""
}
