package resolve

import (
	"context"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// The methods below are those of *[net.Resolver], for libraries that take one
// such as blitiri.com.ar/go/spf. Names in answers end with a dot.

// LookupTXT is [Resolver.TXT].
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	return r.TXT(ctx, name)
}

// LookupMX returns the MX records of a name, sorted by preference.
func (r *Resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	a := r.lookup(ctx, name, dns.TypeMX)
	var mxs []*net.MX
	for _, mx := range a.mx {
		mxs = append(mxs, &mx)
	}
	return mxs, a.error()
}

// LookupIPAddr returns the addresses of a name. It fails only when there are
// none: unlike [Resolver.Addrs], trouble with one family hides behind the
// other's addresses.
func (r *Resolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := r.Addrs(ctx, host)
	if len(addrs) == 0 {
		return nil, err
	}
	ips := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		ips[i].IP = a.AsSlice()
	}
	return ips, nil
}

// LookupAddr returns the names of an address in text form.
func (r *Resolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, notFound(addr).err
	}
	a := r.ptr(ctx, ip)
	return append([]string(nil), a.strs...), a.error()
}
