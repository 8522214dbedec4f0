package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
)

// A mode is how servers stand together.
type mode string

const (
	alone    mode = "" // one, or the first of several that answers
	sentinel mode = "sentinel"
	cluster  mode = "cluster"
	unixPath mode = "unix" // one, on the socket of a path
)

// A Location says where servers are and how they are spoken to.
type Location struct {
	Addrs  []string // host:port each; the path of a socket
	Prefix string   // of all names
	DB     int
	Master string // as the sentinels call it
	User   string
	CA     string // file of certificates; "": those of the system

	mode             mode
	tls              bool
	password         secret
	sentinelPassword secret
	next             atomic.Uint32 // of Addrs, if they are several servers that stand alone
}

// ParseURL reads one of
//
//	redis://[USER:PASSWORD@]HOST[:PORT],...[/DB]
//	redis+unix:///PATH
//	redis+sentinel://HOST[:PORT],...[/DB]?master=NAME
//	redis+cluster://HOST[:PORT],...
//
// Rediss is redis with TLS. What may follow as a query: prefix of all names, db,
// user, password, sentinelPassword and ca. A password that begins with @ is the
// name of the file that has it. The error shows no password.
func ParseURL(text string) (*Location, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	l := &Location{Prefix: "gl", mode: mode(kind), tls: base == "rediss"}
	if !ok || base != "redis" && base != "rediss" {
		return nil, errors.New("want redis://HOST:PORT")
	}
	switch l.mode {
	case alone, sentinel, cluster:
	case unixPath:
		if l.tls {
			return nil, errors.New("no TLS on a socket of the machine itself")
		}
	default:
		return nil, fmt.Errorf("redis+%.20q: not one of redis+sentinel, redis+cluster, redis+unix", kind)
	}
	rest, query, _ := strings.Cut(rest, "?")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if err := l.parseUser(rest[:i]); err != nil {
			return nil, err
		}
		rest = rest[i+1:]
	}
	if err := l.parseHosts(rest); err != nil {
		return nil, err
	}
	if err := l.parseQuery(query); err != nil {
		return nil, err
	}
	switch {
	case l.mode == sentinel && l.Master == "":
		return nil, errors.New("want ?master=NAME, as the sentinels call it")
	case l.mode != sentinel && (l.Master != "" || l.sentinelPassword != ""):
		return nil, errors.New("master and sentinelPassword are for redis+sentinel")
	case l.mode == cluster && l.DB != 0:
		return nil, errors.New("a cluster has database 0 only")
	case l.CA != "" && !l.tls:
		return nil, errors.New("ca is for rediss")
	case l.User != "" && l.password == "":
		return nil, errors.New("a user needs a password")
	}
	return l, nil
}

func (l *Location) parseUser(text string) error {
	user, password, _ := strings.Cut(text, ":")
	var err1, err2 error
	l.User, err1 = url.PathUnescape(user)
	text, err2 = url.PathUnescape(password)
	l.password = secret(text)
	if err1 != nil || err2 != nil {
		return errors.New("user and password: a % is written %25")
	}
	return nil
}

// parseHosts reads what is between user and query.
func (l *Location) parseHosts(text string) error {
	if l.mode == unixPath {
		name, err := url.PathUnescape(text)
		if err != nil || !path.IsAbs(name) {
			return errors.New("want redis+unix:///PATH")
		}
		l.Addrs = []string{name}
		return nil
	}
	hosts, db, _ := strings.Cut(text, "/")
	if err := l.parseDB(db); err != nil {
		return err
	}
	port := "6379"
	if l.mode == sentinel {
		port = "26379"
	}
	for h := range strings.SplitSeq(hosts, ",") {
		addr, err := hostPort(h, port)
		if err != nil {
			return err
		}
		l.Addrs = append(l.Addrs, addr)
	}
	return nil
}

// hostPort adds a port if there is none.
func hostPort(text, port string) (string, error) {
	host := text
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if host == "" || strings.ContainsAny(host, " []") || err != nil || n == 0 {
		return "", fmt.Errorf("%.80q is not HOST:PORT", text)
	}
	return net.JoinHostPort(host, port), nil
}

func (l *Location) parseDB(text string) error {
	if text == "" {
		return nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return fmt.Errorf("%.20q is not the number of a database", text)
	}
	l.DB = int(n)
	return nil
}

func (l *Location) parseQuery(text string) error {
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		value, err := url.QueryUnescape(value)
		if err != nil || value == "" {
			return fmt.Errorf("%.40q: want a value; a %% is written %%25", name)
		}
		switch name {
		case "prefix":
			if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("{}*?[]\\", r) }) || len(value) > 64 {
				return fmt.Errorf("prefix %.80q: want letters and digits", value)
			}
			l.Prefix = value
		case "db":
			err = l.parseDB(value)
		case "master":
			l.Master = value
		case "user":
			l.User = value
		case "password":
			l.password = secret(value)
		case "sentinelPassword":
			l.sentinelPassword = secret(value)
		case "ca":
			l.CA = value
		default:
			return fmt.Errorf("%.40q: not one of prefix, db, master, user, password, sentinelPassword, ca", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// String returns the location as in logs: without passwords.
func (l *Location) String() string {
	scheme := "redis"
	if l.tls {
		scheme += "s"
	}
	if l.mode != alone {
		scheme += "+" + string(l.mode)
	}
	s := scheme + "://" + strings.Join(l.Addrs, ",")
	if l.DB != 0 && l.mode != unixPath {
		s += "/" + strconv.Itoa(l.DB)
	}
	query := "prefix=" + l.Prefix
	if l.DB != 0 && l.mode == unixPath {
		query = fmt.Sprint("db=", l.DB, "&", query)
	}
	if l.Master != "" {
		query = "master=" + l.Master + "&" + query
	}
	if l.User != "" {
		query = "user=" + l.User + "&" + query
	}
	return s + "?" + query
}

// Check reads the files that a location names.
func (l *Location) Check() error {
	_, err1 := l.password.read()
	_, err2 := l.sentinelPassword.read()
	_, err3 := l.tlsConfig()
	return errors.Join(err1, err2, err3)
}

// Files returns the files of passwords, which are read again for each connection.
func (l *Location) Files() (names []string) {
	for _, s := range []secret{l.password, l.sentinelPassword} {
		if name, ok := strings.CutPrefix(string(s), "@"); ok {
			names = append(names, name)
		}
	}
	return names
}

// Socket returns the path of a server's socket, "" if servers are on a network.
func (l *Location) Socket() string {
	if l.mode == unixPath {
		return l.Addrs[0]
	}
	return ""
}

// Ports returns the TCP ports of the servers.
func (l *Location) Ports() (ports []uint16) {
	if l.mode == unixPath {
		return nil
	}
	for _, a := range l.Addrs {
		_, port, _ := net.SplitHostPort(a)
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			ports = append(ports, uint16(n))
		}
	}
	return ports
}

// Moves reports whether servers tell of others, at any port: sentinels and those
// of a cluster do.
func (l *Location) Moves() bool { return l.mode == sentinel || l.mode == cluster }

// tlsConfig returns nil if there is no TLS.
func (l *Location) tlsConfig() (*tls.Config, error) {
	if !l.tls {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if l.CA == "" {
		if all, err := x509.SystemCertPool(); err == nil { // now: a sandbox may hide them later
			c.RootCAs = all
		}
		return c, nil
	}
	pem, err := os.ReadFile(l.CA)
	if err != nil {
		return nil, err
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", l.CA)
	}
	return c, nil
}

// A secret is a password, or @ and the file of it.
type secret string

// read returns the password.
func (s secret) read() (string, error) {
	name, ok := strings.CutPrefix(string(s), "@")
	if !ok {
		return string(s), nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "", fmt.Errorf("%s: no password", name)
	}
	return line, nil
}
