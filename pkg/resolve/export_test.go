package resolve

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// A Reply is what a server in memory says. The zero value is that there is no such
// name.
type Reply struct {
	After time.Duration
	Addrs []netip.Addr
	Names []string
	Err   string // servfail, nodata, or drop
}

// InMemory returns a resolver of servers in memory, which are told the name and
// the type that is asked for.
func InMemory(o Options, servers ...func(name, typ string) Reply) *Resolver {
	for i := range servers {
		o.Servers = append(o.Servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53))
	}
	r := newResolver(o)
	r.dial = func(a netip.AddrPort) exchanger {
		server := servers[a.Addr().As4()[3]]
		return &fake{answer: func(k key, _ int) (time.Duration, *answer, error) {
			reply := server(k.name, dns.TypeToString[k.typ])
			switch {
			case reply.Err == "drop":
				return never, nil, nil
			case reply.Err == "servfail":
				return reply.After, nil, rcodeError("server answers SERVFAIL")
			case reply.Err == "nodata":
				return reply.After, noData(k.name), nil
			case reply.Addrs == nil && reply.Names == nil:
				return reply.After, notFound(k.name), nil
			}
			return reply.After, &answer{addrs: reply.Addrs, strs: reply.Names, ttl: time.Minute}, nil
		}}
	}
	r.start()
	return r
}
