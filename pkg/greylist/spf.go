package greylist

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/spf"
	lru "github.com/hashicorp/golang-lru/v2"
)

// A Resolver is what SPF needs of the DNS.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// A Result is what SPF says of an attempt.
type Result struct {
	Status   string // pass, fail, softfail, neutral, none, temperror, permerror (RFC 7208 section 2.6)
	Domain   string // of the identity checked: the sender's, or the HELO name for the null sender
	Everyone bool   // the record lets any address pass
}

// Origin returns the domain, if SPF proves it: the address passes, and not only
// because every address does. Else it is empty.
func (r Result) Origin() string {
	if r.Status != string(spf.Pass) || r.Everyone {
		return ""
	}
	return r.Domain
}

const (
	spfCacheSize = 4096
	spfKeep      = 10 * time.Minute
	spfKeepError = 30 * time.Second
	spfTimeout   = 5 * time.Second
)

// An SPF checks senders. It asks once for the same address, domain and HELO
// name, and keeps the result for ten minutes, a temporary error for half one.
type SPF struct {
	resolver Resolver
	timeout  time.Duration

	mu    sync.Mutex
	cache *lru.Cache[spfKey, *spfCall]
}

type spfKey struct {
	addr         netip.Addr
	domain, helo string
}

type spfCall struct {
	done   chan struct{}
	until  time.Time // valid once done
	result Result
}

// NewSPF returns a checker whose checks take no longer than timeout; 0 is 5 s.
func NewSPF(r Resolver, timeout time.Duration) *SPF {
	if timeout <= 0 {
		timeout = spfTimeout
	}
	cache, _ := lru.New[spfKey, *spfCall](spfCacheSize)
	return &SPF{resolver: r, timeout: timeout, cache: cache}
}

// Check says whether the address may send for the sender's domain, or for the
// HELO name if the sender is null (RFC 7208 section 2.4). A check that the end
// of ctx or the timeout cuts short is a temporary error.
func (s *SPF) Check(ctx context.Context, addr netip.Addr, sender, helo string) Result {
	addr = addr.Unmap().WithZone("")
	helo = strings.TrimSuffix(strings.ToLower(helo), ".")
	local, domain := splitAddr(strings.ToLower(sender))
	if sender == "" || sender == NullSender {
		local, domain = "postmaster", helo
	}
	if name, err := parseDomain(domain); err != nil || !strings.Contains(name, ".") || !addr.IsValid() {
		return Result{Status: string(spf.None), Domain: domain}
	}
	key := spfKey{addr, domain, helo}
	s.mu.Lock()
	call, ok := s.cache.Get(key)
	if ok {
		select {
		case <-call.done:
			ok = time.Now().Before(call.until)
		default:
		}
	}
	if !ok {
		call = &spfCall{done: make(chan struct{})}
		s.cache.Add(key, call)
		// Others may wait for it: it does not end with this context.
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
		go func() {
			defer cancel()
			call.result = Result{Status: string(spf.TempError), Domain: domain}
			call.until = time.Now().Add(spfKeepError)
			defer close(call.done)
			defer func() { recover() }() // a record from the network: none, if it breaks the library
			r := s.ask(work, addr, local+"@"+domain, helo, domain)
			if r.Status != string(spf.TempError) {
				call.until = time.Now().Add(spfKeep)
			}
			call.result = r
		}()
	}
	s.mu.Unlock()
	wait := time.NewTimer(s.timeout)
	defer wait.Stop()
	select {
	case <-call.done:
		return call.result
	case <-ctx.Done():
	case <-wait.C:
	}
	return Result{Status: string(spf.TempError), Domain: domain}
}

func (s *SPF) ask(ctx context.Context, addr netip.Addr, sender, helo, domain string) Result {
	r := Result{Status: s.status(ctx, addr, sender, helo), Domain: domain}
	if r.Status != string(spf.Pass) {
		return r
	}
	// Addresses of documentation (RFC 5737, RFC 3849), which nobody lists.
	r.Everyone = true
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		if r.Everyone {
			status := s.status(ctx, netip.MustParseAddr(a), sender, helo)
			if status == string(spf.TempError) {
				return Result{Status: status, Domain: domain}
			}
			r.Everyone = status == string(spf.Pass)
		}
	}
	return r
}

func (s *SPF) status(ctx context.Context, addr netip.Addr, sender, helo string) string {
	status, _ := spf.CheckHostWithSender(addr.AsSlice(), helo, sender, spf.WithContext(ctx), spf.WithResolver(s.resolver))
	if ctx.Err() != nil {
		status = spf.TempError // it may have been counted as no answer
	}
	return string(status)
}
