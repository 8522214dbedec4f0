package resolve

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
)

const (
	maxFails     = 3 // queries in a row without an answer: the server is down
	firstBackoff = 5 * time.Second
	maxBackoff   = 5 * time.Minute
	maxTCP       = 16 // connections at a time
)

// An exchanger carries queries to one server and replies back.
type exchanger interface {
	// send sends q over UDP and does not wait. Until stop is called, to is
	// called with one reply at most, from another goroutine.
	send(q *query, edns bool, to receiver) (stop func(), err error)

	// stream asks over TCP until ctx ends.
	stream(ctx context.Context, q *query, edns bool) (*answer, error)

	// share sets the number of sockets it may have open.
	share(sockets int)

	close()
}

// A receiver takes what came back: an answer, or an error of decode or the
// network.
type receiver func(*answer, error)

// A server is one of those asked, with its health. A server that is down is
// asked last, and from time to time beside another one, which costs nobody a
// timeout, to see whether it is back.
type server struct {
	addr   netip.AddrPort
	ex     exchanger
	log    guard.Complaints
	judged func() bool // somebody else says when no server answers

	mu      sync.Mutex
	fails   int       // in a row
	heard   time.Time // when it answered last
	down    bool
	said    bool // that it is
	backoff time.Duration
	probe   time.Time // of the next query, while down
}

// alive notes an answer, of whatever kind.
func (s *server) alive() {
	s.mu.Lock()
	said := s.said
	s.fails, s.down, s.said, s.heard = 0, false, false, time.Now()
	s.mu.Unlock()
	if said {
		s.log.Warn("server answers again", "server", s.addr)
	}
}

// failed notes a query that was not answered, in time or at all. Names for which
// there is no answer do not make a server one that is down: it counts only if
// nothing was heard of it since the query was sent.
func (s *server) failed(now, sent time.Time) {
	s.mu.Lock()
	if s.heard.After(sent) {
		s.mu.Unlock()
		return
	}
	s.fails++
	falls := !s.down && s.fails >= maxFails
	if falls {
		s.down = true
		s.backoff = firstBackoff
		s.probe = now.Add(s.backoff)
	}
	s.mu.Unlock()
	if falls && !s.judged() {
		s.say()
	}
}

// say logs that s is down, unless that is known.
func (s *server) say() {
	s.mu.Lock()
	news := s.down && !s.said
	s.said = s.said || news
	s.mu.Unlock()
	if news {
		s.log.Warn("server does not answer", "server", s.addr)
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
	rank  int  // in the configuration
	out   bool // has answered with an error, is not asked again
	tcp   bool // is being asked over TCP
	plain bool // is asked without EDNS0
	sent  time.Time
}

// An exchange is one query on its way to the servers. They are asked in turn;
// those asked before may still answer while a later one is asked, and the first
// answer counts. No goroutine waits for it: what happens, a reply or the end of a
// wait, calls on.
type exchange struct {
	r        *Resolver
	q        *query
	refusal  Refusal
	land     func(*answer) // called once, when it has ended
	deadline time.Time

	mu       sync.Mutex
	tries    []try
	up       int           // those that are not down come first
	attempts int           // left
	next     int           // the try that is next in this attempt
	current  int           // the try that is waited for, or nobody
	patience time.Duration // with one server
	timer    *time.Timer
	due      time.Time // of the timer
	waiting  int       // replies that may come
	stops    []func()
	last     error  // of a server
	where    string // that server
	ended    bool
}

const nobody = -1

// limit makes the exchange end in time should it never begin.
func (x *exchange) limit() {
	x.on(func() *answer {
		x.current = nobody
		x.wait(x.r.opts.Timeout)
		return nil
	})
}

// begin asks the first server.
func (x *exchange) begin() {
	x.on(func() *answer {
		conf := x.r.conf.Load()
		x.attempts, x.patience = conf.attempts, conf.interval
		x.order(conf.servers)
		return x.ask()
	})
}

// on calls f, whose result ends the exchange if it is not nil. A panic is a
// temporary error: it must not end a filter.
func (x *exchange) on(f func() *answer) {
	if a := x.locked(f); a != nil {
		x.land(a)
	}
}

func (x *exchange) locked(f func() *answer) (a *answer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return nil
	}
	if !x.r.log.Run("lookup", func() { a = f() }) {
		a = temporary(x.q.name, "internal error")
	}
	if a != nil {
		x.ended = true
		if x.timer != nil {
			x.timer.Stop()
		}
		for _, stop := range x.stops {
			stop()
		}
	}
	return a
}

// ask asks the next server in turn. When all have been asked, what may still
// come is waited for.
func (x *exchange) ask() *answer {
	for ; x.attempts > 0; x.attempts-- {
		for x.next < len(x.tries) {
			x.current = x.next
			x.next++
			if !x.tries[x.current].out && x.send(x.current) {
				x.wait(x.patience)
				return nil
			}
		}
		x.next, x.current = 0, nobody
		if x.waiting == 0 && x.attempts > 1 && !x.allOut() { // nobody could be reached: a pause
			x.attempts--
			x.wait(x.patience)
			return nil
		}
	}
	x.current = nobody
	if x.waiting == 0 || x.allOut() {
		return x.failure()
	}
	x.wait(x.r.opts.Timeout)
	return nil
}

// wait sets the timer.
func (x *exchange) wait(d time.Duration) {
	now := time.Now()
	d = min(d, x.deadline.Sub(now))
	x.due = now.Add(d)
	if x.timer == nil {
		x.timer = guard.AfterFunc(x.r.opts.Log, d, "lookup", x.expired)
	} else {
		x.timer.Reset(d)
	}
}

func (x *exchange) expired() {
	x.on(func() *answer {
		now := time.Now()
		switch {
		case now.Before(x.due): // it was set again meanwhile
			return nil
		case !now.Before(x.deadline):
			return timeout(x.q.name)
		case x.current >= 0:
			x.tries[x.current].failed(now, x.tries[x.current].sent)
		}
		return x.ask()
	})
}

// order puts the servers that are down last, and asks one that is due.
func (x *exchange) order(servers []*server) {
	now := time.Now()
	x.tries = make([]try, 0, len(servers))
	var down []try
	probe := nobody
	for i, s := range servers {
		isDown, due := false, false
		if len(servers) > 1 {
			isDown, due = s.due(now)
		}
		if !isDown {
			x.tries = append(x.tries, try{server: s, rank: i})
			continue
		}
		if due {
			probe = len(down)
		}
		down = append(down, try{server: s, rank: i})
	}
	x.up = len(x.tries)
	x.tries = append(x.tries, down...)
	if x.up > 0 && probe >= 0 {
		x.probe(x.up + probe)
	}
}

// probe asks server i, which is down. It may be slower than those that are not,
// so what it says is a sign of life even after the exchange has ended.
func (x *exchange) probe(i int) {
	s := x.tries[i].server
	stop, err := s.ex.send(x.q, true, func(ans *answer, err error) {
		var code rcodeError
		if err == nil || errors.Is(err, errTruncated) || errors.As(err, &code) {
			s.alive()
		}
		x.reply(i, ans, err)
	})
	if err != nil {
		return
	}
	x.waiting++
	guard.AfterFunc(x.r.opts.Log, x.r.opts.Timeout, "lookup", stop)
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
	t.sent = time.Now()
	stop, err := t.ex.send(x.q, !t.plain, func(ans *answer, err error) { x.reply(i, ans, err) })
	if err != nil {
		t.failed(time.Now(), t.sent)
		x.note(i, err)
		return false
	}
	x.waiting++
	x.stops = append(x.stops, stop)
	return true
}

// reply takes what came back from server i.
func (x *exchange) reply(i int, ans *answer, err error) {
	x.on(func() *answer { return x.replied(i, ans, err) })
}

func (x *exchange) replied(i int, ans *answer, err error) *answer {
	x.waiting--
	if err == nil && i > 0 && x.up > 0 && x.refusal != nil && x.refusal(ans.addrs) {
		err = errRefused
	}
	switch {
	case err == nil:
		x.tries[i].alive()
		for j := range x.tries {
			if x.tries[j].rank < x.tries[i].rank { // if it is down, another one stands in
				x.tries[j].say()
			}
		}
		return ans
	case !time.Now().Before(x.deadline):
		return timeout(x.q.name)
	case x.goOn(i, err):
		if x.current >= 0 {
			x.wait(x.patience)
		}
		return nil
	}
	x.note(i, err)
	switch {
	case i == x.current:
		return x.ask()
	case x.current < 0 && (x.waiting == 0 || x.allOut()):
		return x.failure()
	}
	return nil
}

// goOn reports whether another reply of server i may follow an error.
func (x *exchange) goOn(i int, err error) bool {
	t := &x.tries[i]
	var code rcodeError
	switch {
	case errors.Is(err, errTruncated):
		t.alive()
		if !t.tcp {
			t.tcp = true
			x.stream(i)
		}
		return true
	case errors.Is(err, errFormat) && !t.plain: // RFC 6891 section 7
		t.alive()
		t.plain = true
		return x.send(i)
	case errors.As(err, &code):
		t.alive()
		t.out = true
	default:
		t.failed(time.Now(), t.sent)
	}
	return false
}

// stream asks server i over TCP; the reply comes as the others do.
func (x *exchange) stream(i int) {
	t := x.tries[i]
	x.r.count.tcp.Inc()
	x.waiting++
	ctx, cancel := context.WithDeadline(x.r.ctx, x.deadline)
	x.stops = append(x.stops, cancel)
	x.r.wg.Go(func() {
		x.r.log.Run("lookup", func() {
			var ans *answer
			err := errors.New("internal error")
			select {
			case x.r.tcp <- struct{}{}:
				x.r.log.Run("lookup", func() { ans, err = t.ex.stream(ctx, x.q, !t.plain) })
				<-x.r.tcp
			case <-ctx.Done():
				err = ctx.Err()
			}
			x.on(func() *answer {
				x.tries[i].tcp = false
				return x.replied(i, ans, err)
			})
		})
	})
}
