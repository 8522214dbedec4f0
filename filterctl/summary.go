package main

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"opensmtpd-filters/pkg/maillog"
)

// What is counted by what became of it.
const (
	isAccepted = iota
	isJunked
	isDeferred
	isRefused
)

// The limits of what a report holds beside its tallies.
const (
	keptSessions = 20_000   // for the search
	keptBytes    = 32 << 20 // of them
	keptNever    = 1000     // mails that never came back
	keptWords    = 500      // of any table that is small as a rule
	keptBuckets  = 3000     // of time
)

// A summary is what is counted while a log is read.
type summary struct {
	connections [5]int // by verdict; the last is nothing
	local       int    // sessions of this machine
	auth        int    // sessions of users that logged in
	messages    [4]int
	broken      int // commands that smtpd did not understand
	partial     int // sessions whose beginning is not in the log

	filters    map[string]*filterCount
	server     words // what smtpd itself has said no to
	troubles   words
	clients    *tally
	rcpts      *tally
	lists      map[string]*listCount
	waits      waits
	retried    int // mails that were taken after they had waited
	never      []neverCame
	neverCount int
	delivered  words // by result
	times      buckets
	kept       ring
	messageOf  map[uint32]int // where in kept the session of a message is
	tooMany    map[string]bool

	d digest
}

func newSummary() *summary {
	return &summary{
		filters: map[string]*filterCount{}, lists: map[string]*listCount{},
		clients: newTally(tallyLimit), rcpts: newTally(tallyLimit), messageOf: map[uint32]int{},
		tooMany: map[string]bool{}, times: buckets{width: 60, counts: map[int64]*bucket{}},
	}
}

// A filterCount is what one filter of smtpd.conf has decided.
type filterCount struct {
	program    string
	actions    words
	would      words
	recipients int // refused in transactions of which one was counted already
	reasons    words
}

type listCount struct{ hit, decided, alone int }

type neverCame struct {
	Time                                  time.Time
	Addr, Name, From, Rcpt, Origin, Tries string
}

// sink is where the sessions of a log go.
func (s *summary) sink() maillog.Sink {
	return maillog.Sink{Session: s.session, Late: s.late, Other: s.other}
}

func (s *summary) session(m *maillog.Session) {
	d := &s.d
	d.read(m)
	at := s.times.at(m.Begin)
	if d.local {
		s.local++
	} else if d.connected {
		v := index(d.verdict())
		s.connections[v]++
		at.connections[v]++
	} else {
		s.partial++
	}
	if len(d.user) > 0 {
		s.auth++
	}
	for i := range d.messages {
		v := isAccepted
		if d.messages[i].junk {
			v = isJunked
		}
		s.messages[v]++
		at.messages[v]++
		s.clients.add(d.addr, d.name, v, 1)
	}
	for _, e := range d.envelopes {
		v := isAccepted
		for i := range d.messages {
			if d.messages[i].id == e.id && d.messages[i].junk {
				v = isJunked
			}
		}
		s.rcpts.add(e.to, nil, v, 1)
	}
	simple := true
	for i := range d.decisions {
		simple = s.decision(at, &d.decisions[i]) && simple
	}
	for i := range d.failures {
		simple = s.failure(at, &d.failures[i]) && simple
	}
	for i := range d.deliveries {
		simple = s.delivery(&d.deliveries[i]) && simple
	}
	if !simple {
		s.keep(m)
	}
}

func index(verdict string) int {
	return slices.Index([]string{accepted, junked, deferred, refused, nothing}, verdict)
}

// decision counts what a filter has decided, and reports whether the mail was simply
// let pass.
func (s *summary) decision(at *bucket, v *decision) bool {
	f := s.filters[string(v.filter)]
	if f == nil {
		if len(s.filters) == keptWords {
			s.tooMany["filters"] = true
			return true
		}
		f = &filterCount{program: string(v.program)}
		s.filters[string(v.filter)] = f
	}
	if v.more > 0 { // the other recipients of a transaction
		f.recipients += v.more
		if v.dryRun {
			return true
		}
		for i := range s.d.failures {
			if o := &s.d.failures[i]; o.by >= 0 && &s.d.decisions[o.by] == v {
				s.rcpts.add(o.address(), nil, mailIndex(v), 1)
			}
		}
		return false
	}
	f.actions.count(v.action)
	if v.dryRun && len(v.would) > 0 {
		f.reasons.count([]byte("would "), v.would, []byte(" "), v.reason)
	} else {
		reason := v.reason
		if len(reason) == 0 && len(v.by) > 0 {
			reason = []byte("exempt")
		}
		f.reasons.count(v.action, []byte(" "), reason)
	}
	s.list(v)
	if v.greylisted && v.delay > 0 {
		s.waits.add(v.delay)
		s.retried++
	}
	if v.dryRun {
		if len(v.would) > 0 {
			f.would.count(v.would)
		}
		return len(v.would) == 0
	}
	i := mailIndex(v)
	if v.refuses() {
		s.messages[i]++
		at.messages[i]++
		s.rcpts.add(v.rcpt, nil, i, 1)
		s.clients.add(s.d.addr, s.d.name, i, 1)
	}
	return i == isAccepted && (!v.greylisted || v.delay == 0)
}

// mailIndex is what a decision makes of a mail.
func mailIndex(v *decision) int {
	switch string(v.action) {
	case "refuse":
		return isRefused
	case "defer":
		return isDeferred
	case "junk":
		return isJunked
	}
	return isAccepted
}

// list counts the hits of DNS lists in a decision of filter-dnsbl.
func (s *summary) list(v *decision) {
	if !v.coded || string(v.program) != "dnsbl" {
		return
	}
	word := v.action
	if v.dryRun && len(v.would) > 0 {
		word = v.would
	}
	decided := string(word) == "refuse" || string(word) == "junk" || string(word) == "defer"
	var hits []string
	for f := v.event.Fields(); f.Next(); {
		if string(f.Key) != "code" {
			continue
		}
		label, _, _ := bytes.Cut(f.Value(), []byte(":"))
		if weight := v.event.Get(string(label)); len(weight) == 0 || weight[0] == '-' {
			decided = decided && len(weight) == 0 // one that speaks for the client
			if len(weight) > 0 {
				s.listOf(string(label)).hit++
				continue
			}
		}
		hits = append(hits, string(label))
	}
	for _, label := range hits {
		l := s.listOf(label)
		l.hit++
		if decided {
			l.decided++
			if len(hits) == 1 {
				l.alone++
			}
		}
	}
}

func (s *summary) listOf(label string) *listCount {
	l := s.lists[label]
	if l == nil {
		l = &listCount{}
		if len(s.lists) == keptWords {
			s.tooMany["lists"] = true
			return l
		}
		s.lists[label] = l
	}
	return l
}

// failure counts what smtpd itself has refused, or a filter of others, and reports
// whether it was nothing.
func (s *summary) failure(at *bucket, f *failure) bool {
	switch code := f.code(); {
	case f.by >= 0:
		return true
	case f.broken():
		s.broken++
		return true
	case code/100 == 4 || code/100 == 5:
		i := isRefused
		if code/100 == 4 {
			i = isDeferred
		}
		s.messages[i]++
		at.messages[i]++
		s.clients.add(s.d.addr, s.d.name, i, 1)
		// Without the address in it.
		text, _, _ := bytes.Cut(f.result, []byte(": "))
		text, _, _ = bytes.Cut(text, []byte("<"))
		s.server.count([]byte(f.verb()), []byte(" "), bytes.TrimSpace(text))
		return false
	}
	return true
}

func (s *summary) delivery(v *delivery) bool {
	s.delivered.count(bytes.ToLower(v.result))
	return bytes.EqualFold(v.result, []byte("ok"))
}

// late is told of deliveries whose session is counted already.
func (s *summary) late(id uint32, l maillog.Line, e maillog.Event) {
	v := readDelivery(l.Time, id, e)
	for range l.Count {
		s.delivery(&v)
	}
	if i, ok := s.messageOf[id]; ok {
		kept := s.kept.sessions[i]
		s.kept.bytes -= kept.Size()
		kept.Append(l, e)
		s.kept.bytes += kept.Size()
	}
}

// other is told of what filters say beside sessions.
func (s *summary) other(l maillog.Line, e maillog.Event) {
	switch {
	case e.Kind == maillog.Trouble:
		text, _, _ := bytes.Cut(e.Text, []byte("="))
		if i := bytes.LastIndexByte(text, ' '); i > 0 && len(text) < len(e.Text) {
			text = text[:i]
		}
		for range l.Count {
			s.troubles.count(e.Filter, []byte(": "), text)
		}
	case e.Kind == maillog.Notice && string(e.Get("event")) == "noretry":
		s.neverCount += l.Count
		get := func(key string) string { return string(unbracket(e.Get(key))) }
		n := neverCame{Time: l.Time, Addr: get("addr"), Name: get("name"), From: get("from"), Rcpt: get("rcpt"), Origin: get("origin"), Tries: get("tries")}
		if n.Addr == "" {
			n.Addr = get("key")
		}
		if s.never = append(s.never, n); len(s.never) > 2*keptNever {
			s.never = append([]neverCame(nil), s.never[keptNever:]...)
		}
	}
}

// words count words, of which there are few as a rule.
type words struct {
	list  []counted
	index map[string]int // in list, once that is longer
}

// count counts a word that is made of parts, unless there are too many others.
func (w *words) count(parts ...[]byte) {
	var buf [256]byte
	word := buf[:0]
	for _, p := range parts {
		word = append(word, p...)
	}
	for i := range w.list[:min(len(w.list), 16)] {
		if w.list[i].What == string(word) {
			w.list[i].Count++
			return
		}
	}
	i, ok := w.index[string(word)]
	if !ok && len(w.list) >= keptWords {
		word = []byte(others)
		i, ok = w.index[others]
	}
	if !ok {
		if w.index == nil {
			w.index = map[string]int{}
		}
		i = len(w.list)
		w.index[string(word)] = i
		w.list = append(w.list, counted{What: string(word)})
	}
	w.list[i].Count++
}

const others = "others"

// A ring keeps the newest sessions.
type ring struct {
	sessions    [keptSessions]*maillog.Session
	first, next int // the oldest, and the place behind the newest
	n           int
	bytes       int
}

// keep keeps a session for the search.
func (s *summary) keep(m *maillog.Session) {
	r := &s.kept
	var old *maillog.Session
	if r.n == keptSessions {
		old = s.forget()
	}
	kept := m.Copy(old)
	r.sessions[r.next] = kept
	r.bytes += kept.Size()
	for _, id := range kept.Messages() {
		s.messageOf[id] = r.next
	}
	r.n++
	r.next = (r.next + 1) % keptSessions
	for r.bytes > keptBytes && r.n > 1 {
		s.forget()
	}
}

// forget drops the oldest session that is kept.
func (s *summary) forget() *maillog.Session {
	r := &s.kept
	old := r.sessions[r.first]
	for _, id := range old.Messages() {
		delete(s.messageOf, id)
	}
	r.sessions[r.first] = nil
	r.bytes -= old.Size()
	r.n--
	r.first = (r.first + 1) % keptSessions
	return old
}

// newest are the sessions that are kept, the newest first.
func (r *ring) newest() (all []*maillog.Session) {
	for _, s := range r.sessions {
		if s != nil {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b *maillog.Session) int { return cmp.Or(b.Begin.Compare(a.Begin), cmp.Compare(b.ID, a.ID)) })
	return all
}

// waits are times, exact to the second for a day and to the minute for forty.
type waits struct {
	seconds [86400]uint32
	minutes [40 * 24 * 60]uint32
	n       int
}

func (w *waits) add(d time.Duration) {
	w.n++
	if s := int(d / time.Second); s < len(w.seconds) {
		w.seconds[s]++
	} else {
		w.minutes[min(s/60, len(w.minutes)-1)]++
	}
}

// each calls f with each time, rising, and how often it was.
func (w *waits) each(f func(d time.Duration, n int) bool) {
	for s, n := range w.seconds {
		if n > 0 && !f(time.Duration(s)*time.Second, int(n)) {
			return
		}
	}
	for m, n := range w.minutes {
		if n > 0 && !f(time.Duration(m)*time.Minute, int(n)) {
			return
		}
	}
}

// quantile is the time that a part of all have not exceeded.
func (w *waits) quantile(q float64) (at time.Duration) {
	left := int(q*float64(w.n) + 0.999999)
	w.each(func(d time.Duration, n int) bool {
		at = d
		left -= n
		return left > 0
	})
	return at
}

// buckets are counts by time: of a minute each, or longer if the log is.
type buckets struct {
	width  int64 // seconds, one of widths
	counts map[int64]*bucket
	last   *bucket
	lastAt int64
	none   bucket // what has no time
}

type bucket struct {
	messages    [4]uint32
	connections [5]uint32
}

// widths are those of buckets, in seconds; each is a multiple of the one before.
var widths = []int64{60, 5 * 60, 15 * 60, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 28 * 86400, 280 * 86400, 2800 * 86400}

func (b *buckets) at(t time.Time) *bucket {
	if t.IsZero() {
		return &b.none
	}
	_, zone := t.Zone()
	seconds := t.Unix() + int64(zone) // so that a day begins at midnight
	at := floor(seconds, b.width)
	if b.last != nil && b.lastAt == at {
		return b.last
	}
	c := b.counts[at]
	if c == nil && len(b.counts) >= keptBuckets {
		b.counts = b.widen(wider(b.width))
		b.width, b.last = wider(b.width), nil
		return b.at(t)
	}
	if c == nil {
		c = new(bucket)
		b.counts[at] = c
	}
	b.last, b.lastAt = c, at
	return c
}

// wider is the next of widths, the last for ever.
func wider(width int64) int64 {
	i := slices.Index(widths, width)
	if i+1 < len(widths) {
		return widths[i+1]
	}
	return width * 10
}

// widen returns the counts by longer times.
func (b *buckets) widen(width int64) map[int64]*bucket {
	wide := map[int64]*bucket{}
	for at, c := range b.counts {
		to := wide[floor(at, width)]
		if to == nil {
			to = new(bucket)
			wide[floor(at, width)] = to
		}
		for i, n := range c.messages {
			to.messages[i] += n
		}
		for i, n := range c.connections {
			to.connections[i] += n
		}
	}
	return wide
}

func floor(n, width int64) int64 {
	if n < 0 {
		n -= width - 1
	}
	return n / width * width
}
