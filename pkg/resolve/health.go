package resolve

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"opensmtpd-filters/pkg/guard"
)

const (
	checkTime = 2 * time.Second // between control questions, while somebody waits for the resolver
	idleCheck = time.Minute
	idleAfter = time.Minute
)

// A Trouble is what may be wrong with the resolver itself, whatever is asked.
type Trouble byte

const (
	Well    Trouble = iota
	Down            // does not answer
	CutOff          // answers control questions, and reaches none of those it is needed for
	Invents         // answers for names that do not exist
	Denies          // says that nothing exists, not even the root
	Filters         // removes addresses within 127.0.0.0/8, which is what DNS lists answer with
)

// String says what is wrong, and what is to be done about it.
func (t Trouble) String() string {
	switch t {
	case Down:
		return "the resolver does not answer"
	case CutOff:
		return "the resolver reaches none of the lists: look at its way to the Internet, or at its firewall"
	case Invents:
		return "the resolver invents answers for names that do not exist: run a resolver of your own"
	case Denies:
		return "the resolver says that nothing exists, not even the root"
	case Filters:
		return "the resolver removes addresses within 127.0.0.0/8, which is what lists answer with:" +
			" see private-address of unbound, stop-dns-rebind (and rebind-domain-ok) of dnsmasq"
	}
	return "the resolver is well"
}

// Useless reports whether nothing it answers is worth anything.
func (t Trouble) Useless() bool { return t != Well && t != Filters }

// An asker is a [Resolver].
type asker interface {
	FreshA(ctx context.Context, name string, refusal Refusal) ([]netip.Addr, error)
	FreshNS(ctx context.Context, name string) ([]string, error)
}

// A Health knows what is wrong with the resolver, and says it, once: that list
// after list fails has one cause then. It may be used from several goroutines.
type Health struct {
	resolver asker
	log      *slog.Logger
	well     func(Trouble)
	wake     chan struct{}

	mu      sync.Mutex
	trouble Trouble
	since   time.Time
	gone    func(context.Context) bool // whether the trouble is over
	used    time.Time
	checked time.Time // when it was last asked about
	asking  *judgement
}

// A judgement is what control questions are about to show.
type judgement struct {
	done    chan struct{}
	trouble Trouble
}

// NewHealth returns the health of a resolver, which is well until it is found not
// to be. Well, if it is not nil, is called with what was wrong when that is over.
func NewHealth(r asker, log *slog.Logger, well func(Trouble)) *Health {
	if r, ok := r.(*Resolver); ok {
		r.judged.Store(true)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Health{resolver: r, log: log, well: well, wake: make(chan struct{}, 1)}
}

// Trouble returns what is wrong with the resolver.
func (h *Health) Trouble() Trouble {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trouble
}

// Use tells that somebody needs the resolver: while it is in trouble, it is asked
// more often then.
func (h *Health) Use() {
	now := time.Now()
	h.mu.Lock()
	h.used = now
	due := h.trouble.Useless() && now.Sub(h.checked) >= checkTime
	h.mu.Unlock()
	if due {
		h.awake()
	}
}

func (h *Health) awake() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Judge asks the control questions: for the servers of the root, and for a random
// name below invalid., which never exists (RFC 6761 section 6.4). It returns Well,
// Down if one of them is not answered, Invents, or Denies. Those who ask at the
// same time share the questions.
func (h *Health) Judge(ctx context.Context) Trouble {
	h.mu.Lock()
	j := h.asking
	if j == nil {
		j = &judgement{done: make(chan struct{})}
		h.asking = j
		guard.Go(h.log, "resolver", func() {
			defer func() {
				h.mu.Lock()
				h.asking = nil
				h.mu.Unlock()
				close(j.done)
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 2*checkTime)
			defer cancel()
			j.trouble = h.control(ctx)
		})
	}
	h.mu.Unlock()
	select {
	case <-j.done:
		return j.trouble
	case <-ctx.Done():
		return Down
	}
}

func (h *Health) control(ctx context.Context) Trouble {
	root := make(chan error, 1)
	guard.Go(h.log, "resolver", func() {
		err := errors.New("internal error")
		defer func() { root <- err }()
		_, err = h.resolver.FreshNS(ctx, "")
	})
	_, err := h.resolver.FreshA(ctx, RandomLabel()+".invalid", nil)
	rootErr := <-root
	switch {
	case err == nil:
		return Invents
	case !isNotFound(err) || rootErr != nil && !isNotFound(rootErr):
		return Down
	case rootErr != nil && !errors.Is(rootErr, ErrNoData): // which a simple forwarder may say
		return Denies
	}
	return Well
}

func isNotFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

// RandomLabel returns sixteen random letters: a label that nothing has.
func RandomLabel() string {
	b := make([]byte, 16)
	for i := range b {
		b[i] = 'a' + byte(rand.IntN(26))
	}
	return string(b)
}

// Blame takes note that the resolver is in trouble, and says so unless that is
// known. It stays in it until gone returns true, which is asked from time to time;
// nil is until the control questions are answered well, or for Filters until Clear.
func (h *Health) Blame(t Trouble, gone func(context.Context) bool) {
	if gone == nil {
		gone = func(ctx context.Context) bool { return h.Judge(ctx) == Well }
	}
	now := time.Now()
	h.mu.Lock()
	news := h.trouble != t
	if news {
		h.trouble, h.gone, h.since, h.checked = t, gone, now, now
	}
	h.mu.Unlock()
	if !news || t == Well {
		return
	}
	text := t.String()
	if t.Useless() {
		text += "; until that is over nothing is asked and mail passes"
	}
	h.log.Warn(text, "resolver", h.servers())
	h.awake()
}

func (h *Health) servers() any {
	if r, ok := h.resolver.(*Resolver); ok {
		return r.Servers()
	}
	return ""
}

// Clear ends a trouble if it is this one.
func (h *Health) Clear(t Trouble) {
	h.mu.Lock()
	is := t != Well && h.trouble == t
	since := h.since
	if is {
		h.trouble = Well
	}
	h.mu.Unlock()
	if !is {
		return
	}
	h.log.Info("the resolver is well again", "after", time.Since(since).Round(time.Second))
	if h.well != nil {
		h.well(t)
	}
}

// Run asks, while the resolver is in trouble, whether that is over, until ctx
// ends: every 2 s while the resolver is needed, else every minute.
func (h *Health) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		t, gone, wait := h.next()
		if t.Useless() {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		if !t.Useless() || wait > 0 {
			select {
			case <-h.wake:
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			continue
		}
		h.check(ctx, t, gone)
	}
}

// next returns the trouble, and when to see whether it is over.
func (h *Health) next() (t Trouble, gone func(context.Context) bool, wait time.Duration) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	wait = checkTime
	if now.Sub(h.used) > idleAfter {
		wait = idleCheck
	}
	return h.trouble, h.gone, max(h.checked.Add(wait).Sub(now), 0)
}

// check sees whether the trouble is over. What takes longer than until the next
// time is a no.
func (h *Health) check(ctx context.Context, t Trouble, gone func(context.Context) bool) {
	h.mu.Lock()
	h.checked = time.Now()
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	guard.Run(h.log, "resolver", func() {
		if gone(ctx) {
			h.Clear(t)
		}
	})
}

// Public reports whether an address is that of a well-known public resolver, which
// many lists do not answer.
func Public(a netip.Addr) bool {
	for _, p := range []string{
		"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844", // Google
		"1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3", "2606:4700:4700::1111", "2606:4700:4700::1001", // Cloudflare
		"9.9.9.9", "9.9.9.10", "9.9.9.11", "149.112.112.112", "149.112.112.10", "149.112.112.11", "2620:fe::fe", "2620:fe::9", // Quad9
		"208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53", // OpenDNS
		"4.2.2.1", "4.2.2.2", "4.2.2.3", "4.2.2.4", "64.6.64.6", "64.6.65.6", // Level 3, Verisign
		"94.140.14.14", "94.140.15.15", "77.88.8.8", "77.88.8.1", "185.228.168.9", "185.228.169.9", // AdGuard, Yandex, CleanBrowsing
		"76.76.2.0", "76.76.10.0", "193.110.81.0", "185.253.5.0", "86.54.11.100", "86.54.11.200", // ControlD, DNS0, DNS4EU
		"185.12.64.1", "185.12.64.2", "2a01:4ff:ff00::add:1", "2a01:4ff:ff00::add:2", // Hetzner's, which lists do not answer either
	} {
		if a == netip.MustParseAddr(p) {
			return true
		}
	}
	return false
}
