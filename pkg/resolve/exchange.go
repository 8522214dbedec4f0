package resolve

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	maxFails     = 3 // queries in a row without an answer: the server is down
	firstBackoff = 5 * time.Second
	maxBackoff   = 5 * time.Minute
	maxTCP       = 16 // connections at a time
)

// An exchanger carries queries to one server and replies back.
type exchanger interface {
	// send sends q over UDP. Until stop is called, one reply at most goes
	// to the channel, which has room for it, marked with from.
	send(q *query, edns bool, from int, to chan<- reply) (stop func(), err error)

	// stream asks over TCP until ctx ends.
	stream(ctx context.Context, q *query, edns bool) (*answer, error)

	// share sets the number of sockets it may have open.
	share(sockets int)

	close()
}

// A reply is what came back: an answer, or an error of decode or the network.
type reply struct {
	from int
	ans  *answer
	err  error
}

// A server is one of those asked, with its health. A server that is down is
// asked last, and from time to time beside another one, which costs nobody a
// timeout, to see whether it is back.
type server struct {
	addr netip.AddrPort
	ex   exchanger
	log  limitedLog

	mu      sync.Mutex
	fails   int // in a row
	down    bool
	backoff time.Duration
	probe   time.Time // of the next query, while down
}

// alive notes an answer, of whatever kind.
func (s *server) alive() {
	s.mu.Lock()
	was := s.down
	s.fails, s.down = 0, false
	s.mu.Unlock()
	if was {
		s.log.warn("server answers again", slog.Any("server", s.addr))
	}
}

// failed notes a query that was not answered, in time or at all.
func (s *server) failed(now time.Time) {
	s.mu.Lock()
	s.fails++
	falls := !s.down && s.fails >= maxFails
	if falls {
		s.down = true
		s.backoff = firstBackoff
		s.probe = now.Add(s.backoff)
	}
	s.mu.Unlock()
	if falls {
		s.log.warn("server does not answer", slog.Any("server", s.addr))
	}
}

// due tells whether s is down and, once in a while, whether it is to be asked
// all the same.
func (s *server) due(now time.Time) (down, probe bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down && !now.Before(s.probe) {
		s.backoff = min(2*s.backoff, maxBackoff)
		s.probe = now.Add(s.backoff)
		probe = true
	}
	return s.down, probe
}

// A try is the state of one server in an exchange.
type try struct {
	*server
	out   bool // has answered with an error, is not asked again
	tcp   bool // is asked over TCP
	plain bool // is asked without EDNS0
}

// An exchange is one query on its way to the servers.
type exchange struct {
	r        *Resolver
	ctx      context.Context
	q        *query
	tries    []try
	patience time.Duration // with one server
	waiting  int           // replies that may come
	replies  chan reply
	stops    []func()
	last     error  // of a server
	where    string // that server
}

// Results of exchange.next beside the index of a server that has failed.
const (
	goOn    = -1
	expired = -2
)

// exchange asks the servers in turn. Those asked before may still answer
// while a later one is asked: the first answer counts.
func (r *Resolver) exchange(q *query) *answer {
	ctx, cancel := context.WithTimeout(r.ctx, r.opts.Timeout)
	defer cancel()
	conf := r.conf.Load()
	x := &exchange{r: r, ctx: ctx, q: q, patience: conf.interval, tries: make([]try, 0, len(conf.servers))}
	// Each server is asked once an attempt, and may be probed, asked again
	// without EDNS0, and over TCP.
	x.replies = make(chan reply, len(conf.servers)*(conf.attempts+3))
	defer x.stop()
	x.order(conf.servers)

	timer := time.NewTimer(x.patience)
	defer timer.Stop()
	for n := range conf.attempts {
		for i := range x.tries {
			if x.tries[i].out || !x.send(i) {
				continue
			}
			timer.Reset(x.patience)
			for {
				ans, event := x.next(timer)
				if ans != nil {
					return ans
				}
				if event == expired {
					x.tries[i].failed(time.Now())
				}
				if event == expired || event == i {
					break
				}
			}
		}
		if x.allOut() {
			return x.failure()
		}
		if x.waiting == 0 && n+1 < conf.attempts { // nobody could be reached: a pause
			timer.Reset(x.patience)
			if ans, _ := x.next(timer); ans != nil {
				return ans
			}
		}
	}
	for x.waiting > 0 && !x.allOut() {
		if ans, _ := x.next(nil); ans != nil {
			return ans
		}
	}
	return x.failure()
}

// order puts the servers that are down last, and asks one that is due.
func (x *exchange) order(servers []*server) {
	now := time.Now()
	var down []try
	probe := -1
	for _, s := range servers {
		isDown, due := false, false
		if len(servers) > 1 {
			isDown, due = s.due(now)
		}
		if !isDown {
			x.tries = append(x.tries, try{server: s})
			continue
		}
		if due {
			probe = len(down)
		}
		down = append(down, try{server: s})
	}
	up := len(x.tries)
	x.tries = append(x.tries, down...)
	if up > 0 && probe >= 0 {
		x.send(up + probe)
	}
}

func (x *exchange) stop() {
	for _, stop := range x.stops {
		stop()
	}
}

func (x *exchange) allOut() bool {
	for i := range x.tries {
		if !x.tries[i].out {
			return false
		}
	}
	return true
}

// failure is the answer when no server gave one.
func (x *exchange) failure() *answer {
	if x.last == nil {
		return timeout(x.q.name)
	}
	a := temporary(x.q.name, x.last.Error())
	a.err.Server = x.where
	return a
}

// note keeps the error of server i for failure.
func (x *exchange) note(i int, err error) {
	x.last, x.where = err, x.tries[i].addr.String()
}

func (x *exchange) send(i int) bool {
	t := &x.tries[i]
	stop, err := t.ex.send(x.q, !t.plain, i, x.replies)
	if err != nil {
		t.failed(time.Now())
		x.note(i, err)
		return false
	}
	x.waiting++
	x.stops = append(x.stops, stop)
	return true
}

// next waits for one thing to happen. It returns an answer that ends the
// exchange, or the index of a server that has failed, or goOn or expired.
func (x *exchange) next(timer *time.Timer) (*answer, int) {
	var expiry <-chan time.Time
	if timer != nil {
		expiry = timer.C
	}
	select {
	case re := <-x.replies:
		x.waiting--
		ans, event := x.reply(re)
		if event == goOn && timer != nil {
			timer.Reset(x.patience)
		}
		return ans, event
	case <-expiry:
		return nil, expired
	case <-x.ctx.Done():
		if x.r.ctx.Err() != nil {
			return temporary(x.q.name, "resolver closed"), goOn
		}
		return timeout(x.q.name), goOn
	}
}

func (x *exchange) reply(re reply) (*answer, int) {
	t := &x.tries[re.from]
	var code rcodeError
	switch {
	case re.err == nil:
		t.alive()
		return re.ans, goOn
	case errors.Is(re.err, errTruncated):
		t.alive()
		if !t.tcp {
			t.tcp = true
			x.stream(re.from)
		}
		return nil, goOn
	case errors.Is(re.err, errFormat) && !t.plain: // RFC 6891 section 7
		t.alive()
		t.plain = true
		if x.send(re.from) {
			return nil, goOn
		}
		return nil, re.from
	case errors.As(re.err, &code):
		t.alive()
		t.out = true
	default:
		t.failed(time.Now())
	}
	x.note(re.from, re.err)
	return nil, re.from
}

// stream asks server i over TCP; the reply comes as the others do.
func (x *exchange) stream(i int) {
	t := x.tries[i]
	x.r.count.tcp.Inc()
	x.waiting++
	x.r.wg.Go(func() {
		re := reply{from: i}
		select {
		case x.r.tcp <- struct{}{}:
			re.ans, re.err = t.ex.stream(x.ctx, x.q, !t.plain)
			<-x.r.tcp
		case <-x.ctx.Done():
			re.err = x.ctx.Err()
		}
		x.replies <- re
	})
}
