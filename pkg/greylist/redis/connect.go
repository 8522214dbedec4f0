package redis

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// bufferSize is enough for a decision, of which there are many, and not too much
// for connections that are idle.
const bufferSize = 4 << 10

// connect makes a client, which connects when it is asked something. It never
// asks twice: what has failed is decided alone.
func (l *Location) connect() (redis.UniversalClient, error) {
	logging.Disable() // it writes to standard error, where only our log belongs
	tls, err := l.tlsConfig()
	if err != nil {
		return nil, err
	}
	password, err := l.password.read()
	if err != nil {
		return nil, err
	}
	sentinelPassword, err := l.sentinelPassword.read()
	if err != nil {
		return nil, err
	}
	login := func(context.Context) (string, string, error) {
		if now, err := l.password.read(); err == nil { // it may have been replaced
			return l.User, now, nil
		}
		return l.User, password, nil
	}
	if password == "" {
		login = nil
	}
	switch l.mode {
	case cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: l.Addrs, TLSConfig: tls, CredentialsProviderContext: login, Protocol: 2,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialTimeout: dialTime, DialerRetries: 1, PoolSize: poolSize, PipelinePoolSize: -1,
			ReadBufferSize: bufferSize, WriteBufferSize: bufferSize, DisableIdentity: true,
		}), nil
	case sentinel:
		return redis.NewFailoverClient(&redis.FailoverOptions{
			SentinelAddrs: l.Addrs, MasterName: l.Master, SentinelPassword: sentinelPassword,
			TLSConfig: tls, CredentialsProviderContext: login, DB: l.DB, Protocol: 2,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialTimeout: dialTime, DialerRetries: 1, PoolSize: poolSize, PipelinePoolSize: -1,
			ReadBufferSize: bufferSize, WriteBufferSize: bufferSize, DisableIdentity: true,
		}), nil
	}
	network := "tcp"
	if l.mode == unixPath {
		network = "unix"
	}
	o := &redis.Options{
		Network: network, Addr: l.Addrs[0], TLSConfig: tls, CredentialsProviderContext: login, DB: l.DB, Protocol: 2,
		ContextTimeoutEnabled: true, MaxRetries: -1, DialTimeout: dialTime, DialerRetries: 1, PoolSize: poolSize, PipelinePoolSize: -1,
		ReadBufferSize: bufferSize, WriteBufferSize: bufferSize, DisableIdentity: true,
	}
	if len(l.Addrs) > 1 {
		o.Dialer = l.dialAny(o)
	}
	return redis.NewClient(o), nil
}

// dialAny connects to the first of several servers that can be connected to,
// beginning with the one of last time.
func (l *Location) dialAny(o *redis.Options) func(context.Context, string, string) (net.Conn, error) {
	dial := redis.NewDialer(o)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var errs []error
		from := l.next.Load()
		for i := range uint32(len(l.Addrs)) {
			conn, err := dial(ctx, network, l.Addrs[(from+i)%uint32(len(l.Addrs))])
			if err == nil {
				l.next.CompareAndSwap(from, from+i)
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

// leave has another server connected to from now on: this one does not write.
func (l *Location) leave() { l.next.Add(1) }
