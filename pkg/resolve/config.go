package resolve

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"opensmtpd-filters/pkg/guard"
)

const (
	maxServers      = 8
	maxNameservers  = 3 // MAXNS of resolv.conf(5)
	maxAttempts     = 5 // as glibc's
	defaultAttempts = 2
	confInterval    = time.Second // between two looks at Conf
)

var localhost = netip.MustParseAddrPort("127.0.0.1:53")

// A config is what lookups use. It is replaced, never changed.
type config struct {
	servers  []*server
	attempts int
	interval time.Duration // until the next server is asked as well
}

// A fileConfig is what a resolv.conf(5) file says.
type fileConfig struct {
	servers  []netip.AddrPort
	attempts int
	interval time.Duration
}

// A confStamp tells whether the file was changed.
type confStamp struct {
	info    os.FileInfo
	problem bool // has been logged
}

// ParseServers reads a comma-separated list of at most eight servers, each an
// address with an optional port: 192.0.2.1, 192.0.2.1:5353, 2001:db8::1,
// [2001:db8::1]:5353, fe80::1%em0.
func ParseServers(list string) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	for f := range strings.SplitSeq(list, ",") {
		s, err := parseServer(strings.TrimSpace(f))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	if len(servers) > maxServers {
		return nil, fmt.Errorf("more than %d servers", maxServers)
	}
	return servers, nil
}

// parseServer takes [address]:port for IPv4 as well: OpenBSD's resolv.conf(5)
// has it.
func parseServer(s string) (netip.AddrPort, error) {
	host, port := s, "53"
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var rest string
		host, rest, ok = strings.Cut(inner, "]")
		if p, hasPort := strings.CutPrefix(rest, ":"); hasPort {
			port = p
		} else if !ok || rest != "" {
			host = ""
		}
	} else if strings.Count(s, ":") == 1 {
		host, port, _ = strings.Cut(s, ":")
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("server %q: not an address", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, fmt.Errorf("server %q: not a port", s)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// parseConf reads a resolv.conf(5) file. Lines it cannot use are left out;
// without a nameserver there is 127.0.0.1.
func parseConf(text []byte) fileConfig {
	c := fileConfig{attempts: defaultAttempts, interval: 5 * time.Second}
	cc, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err == nil {
		c.attempts = min(cc.Attempts, maxAttempts)
		c.interval = min(time.Duration(min(cc.Timeout, 30))*time.Second, 30*time.Second)
		for _, s := range cc.Servers {
			if ap, err := parseServer(s); err == nil && !slices.Contains(c.servers, ap) && len(c.servers) < maxNameservers {
				c.servers = append(c.servers, ap)
			}
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.AddrPort{localhost}
	}
	return c
}

// confDue reports whether it is time to look at Conf, to one caller a second.
func (r *Resolver) confDue(now time.Time) bool {
	if len(r.opts.Servers) > 0 {
		return false
	}
	last := r.looked.Load()
	return now.UnixNano()-last >= int64(confInterval) && r.looked.CompareAndSwap(last, now.UnixNano())
}

// checkConf reads Conf when it has changed. What is in force stays when it
// cannot be read.
func (r *Resolver) checkConf() {
	if !r.confMu.TryLock() { // a disk that hangs holds up one goroutine, not one a second
		return
	}
	defer r.confMu.Unlock()
	fi, err := os.Stat(r.opts.Conf)
	if err == nil && r.seen.info != nil && os.SameFile(fi, r.seen.info) &&
		fi.ModTime().Equal(r.seen.info.ModTime()) && fi.Size() == r.seen.info.Size() {
		return
	}
	var text []byte
	if err == nil {
		text, err = readConf(r.opts.Conf, fi)
	}
	if err != nil {
		if !r.seen.problem {
			r.opts.Log.Warn("cannot read resolver configuration", "err", err)
			r.seen.problem = true
		}
		if r.conf.Load() == nil {
			r.setConfig(parseConf(nil))
		}
		return
	}
	r.seen.info, r.seen.problem = fi, false
	r.setConfig(parseConf(text))
}

func readConf(name string, fi os.FileInfo) ([]byte, error) {
	if !fi.Mode().IsRegular() { // opening a FIFO would hang
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// setConfig puts c in force. Servers that stay keep their sockets and health.
func (r *Resolver) setConfig(c fileConfig) {
	old := r.conf.Load()
	// A lookup of one server asks at 0 and 1/3 of the deadline when the
	// answer to the first query is slow or lost; of two, at 0, 1/5, 2/5, 3/5.
	tries := len(c.servers) * c.attempts
	conf := &config{
		attempts: c.attempts,
		interval: min(c.interval, r.opts.Timeout/time.Duration(tries+1)),
	}
	var gone []*server
	if old != nil {
		gone = slices.Clone(old.servers)
	}
	for _, addr := range c.servers {
		i := slices.IndexFunc(gone, func(s *server) bool { return s.addr == addr })
		if i >= 0 {
			conf.servers = append(conf.servers, gone[i])
			gone = slices.Delete(gone, i, i+1)
			continue
		}
		conf.servers = append(conf.servers, &server{
			addr: addr, ex: r.dial(addr), log: guard.Complaints{Log: r.opts.Log},
			judged: r.judged.Load,
		})
	}
	for _, s := range conf.servers {
		s.ex.share(maxSockets / len(conf.servers))
	}
	r.conf.Store(conf)
	if old == nil || len(gone) == 0 && len(conf.servers) == len(old.servers) {
		return
	}
	r.opts.Log.Info("resolver configuration changed", "servers", r.Servers())
	r.cache.purge() // what the old servers said may be why they were replaced
	for _, s := range gone {
		s.ex.close()
	}
}
