package maillog

import (
	"cmp"
	"encoding/binary"
	"iter"
	"slices"
	"time"
)

// The limits of what is remembered of sessions that are not done.
const (
	maxLines   = 1000      // lines of a session
	maxSession = 128 << 10 // bytes of one
	maxBytes   = 24 << 20  // of all
	linger     = 1000      // sessions that have ended and may still be told of
)

// A Session is what was logged of one SMTP session, and of the delivery of its
// messages as far as that came soon.
type Session struct {
	ID    uint64
	Begin time.Time // of its first line
	Ended bool      // there is the line of its end
	Cut   int       // lines that were too many to keep

	lines    []byte
	n        int
	messages []uint32
	next     *Session // in the order of a queue
	before   *Session
}

// Lines returns the lines of the session in the order of the log, with their times.
// Texts are valid until the session is given back.
func (s *Session) Lines() iter.Seq2[time.Time, []byte] {
	return func(yield func(time.Time, []byte) bool) {
		for h, text := range s.records() {
			if !yield(s.time(h), text) {
				return
			}
		}
	}
}

// Events returns the lines as Parse has taken them apart.
func (s *Session) Events() iter.Seq2[time.Time, Event] {
	return func(yield func(time.Time, Event) bool) {
		for h, text := range s.records() {
			e := Event{Kind: h.kind, Session: h.session, Text: text[h.text:]}
			if h.filter > 0 {
				e.Filter = text[:h.filter]
			}
			if h.program > 0 {
				e.Program = text[h.text-h.program-1 : h.text-1]
			}
			if !yield(s.time(h), e) {
				return
			}
		}
	}
}

// A record is what stands before each line.
type record struct {
	time                  int64 // microseconds since the epoch
	session               uint64
	len                   int // of the line
	kind                  Kind
	filter, program, text int // length, length, and where it begins
}

const recordSize = 8 + 8 + 4 + 1 + 4*3

func (s *Session) records() iter.Seq2[record, []byte] {
	return func(yield func(record, []byte) bool) {
		for b := s.lines; len(b) > 0; {
			h := record{
				time: int64(binary.NativeEndian.Uint64(b)), session: binary.NativeEndian.Uint64(b[8:]),
				len: int(binary.NativeEndian.Uint32(b[16:])), kind: Kind(b[20]), filter: int(binary.NativeEndian.Uint32(b[21:])),
				program: int(binary.NativeEndian.Uint32(b[25:])), text: int(binary.NativeEndian.Uint32(b[29:])),
			}
			if !yield(h, b[recordSize:recordSize+h.len]) {
				return
			}
			b = b[recordSize+h.len:]
		}
	}
}

func (s *Session) time(h record) time.Time {
	if h.time == noTime {
		return time.Time{}
	}
	return time.UnixMicro(h.time).In(s.Begin.Location())
}

const noTime = -1 << 63

// Messages returns the ids of the messages that smtpd has taken.
func (s *Session) Messages() []uint32 { return s.messages }

// Take makes the session one of the caller, for the time after Sink.Session. Old is
// one that the caller does not need any more, or nil: its memory is used again.
func (s *Session) Take(old *Session) *Session {
	if old == nil {
		old = new(Session)
	}
	lines, messages := old.lines, old.messages
	old.ID, old.Begin, old.Ended, old.Cut, old.n, old.lines, old.messages = s.ID, s.Begin, s.Ended, s.Cut, s.n, s.lines, s.messages
	s.lines, s.messages = lines[:0], messages[:0]
	return old
}

// Copy returns a copy, in the memory of an old one if that is not nil and fits.
func (s *Session) Copy(old *Session) *Session {
	if old == nil || cap(old.lines) < len(s.lines) || cap(old.lines) > 2*len(s.lines)+1024 {
		old = &Session{lines: make([]byte, 0, (len(s.lines)+511)/512*512)}
	}
	lines, messages := append(old.lines[:0], s.lines...), append(old.messages[:0], s.messages...)
	*old = Session{ID: s.ID, Begin: s.Begin, Ended: s.Ended, Cut: s.Cut, n: s.n, lines: lines, messages: messages}
	return old
}

// Size is about the memory that the session takes, in bytes.
func (s *Session) Size() int { return cap(s.lines) + 4*cap(s.messages) + 128 }

// Append adds a line, such as one that Sink.Late was given.
func (s *Session) Append(l Line, e Event) {
	for range l.Count {
		if s.n == maxLines || len(s.lines)+len(l.Text) > maxSession {
			s.Cut++
			continue
		}
		s.n++
		us := int64(noTime)
		if !l.Time.IsZero() {
			us = l.Time.UnixMicro()
		}
		n := len(s.lines)
		s.lines = slices.Grow(s.lines, recordSize+len(l.Text))[:n+recordSize]
		b := s.lines[n : n+recordSize]
		binary.NativeEndian.PutUint64(b, uint64(us))
		binary.NativeEndian.PutUint64(b[8:], e.Session)
		binary.NativeEndian.PutUint32(b[16:], uint32(len(l.Text)))
		b[20] = byte(e.Kind)
		binary.NativeEndian.PutUint32(b[21:], uint32(len(e.Filter)))
		binary.NativeEndian.PutUint32(b[25:], uint32(len(e.Program)))
		binary.NativeEndian.PutUint32(b[29:], uint32(len(l.Text)-len(e.Text)))
		s.lines = append(s.lines, l.Text...)
	}
}

// A Sink gets what a Joiner finds. Each function may be nil.
type Sink struct {
	Session func(*Session)                      // a session that is over; valid during the call
	Late    func(msgid uint32, l Line, e Event) // a delivery whose session was given away, or is not in the log
	Other   func(l Line, e Event)               // a line of no session: a Notice or Trouble of a filter
}

// A Joiner puts the lines of sessions together. Filters and the parts of smtpd
// write by themselves, so a session may be told of after its end; it is given to the
// Sink when some thousand others have ended, or before if there are too many.
type Joiner struct {
	sink     Sink
	sessions map[uint64]*Session
	messages map[uint32]*Session
	open     queue // in the order of their beginning
	ended    queue // in that of their end
	bytes    int   // of all
	free     []*Session
}

// NewJoiner returns a Joiner.
func NewJoiner(sink Sink) *Joiner {
	return &Joiner{sink: sink, sessions: map[uint64]*Session{}, messages: map[uint32]*Session{}}
}

// Add adds a line.
func (j *Joiner) Add(l Line) {
	e := Parse(l.Text)
	switch {
	case e.Kind == Delivery:
		j.delivery(l, e)
	case e.Session == 0:
		if j.sink.Other != nil && e.Kind != Other {
			j.sink.Other(l, e)
		}
	case e.Kind != Other:
		j.add(l, e)
	}
}

func (j *Joiner) delivery(l Line, e Event) {
	id, ok := e.MessageID()
	if !ok {
		return
	}
	if s := j.messages[id]; s != nil {
		j.append(s, l, e)
	} else if j.sink.Late != nil {
		j.sink.Late(id, l, e)
	}
}

func (j *Joiner) append(s *Session, l Line, e Event) {
	before := cap(s.lines)
	s.Append(l, e)
	j.bytes += cap(s.lines) - before
	for j.bytes > maxBytes {
		oldest := cmp.Or(j.ended.first, j.open.first)
		if oldest == nil {
			return
		}
		j.done(oldest)
	}
}

func (j *Joiner) add(l Line, e Event) {
	s := j.sessions[e.Session]
	if s == nil {
		s = j.begin(l, e.Session)
	}
	if e.Kind == Message {
		if id, ok := e.MessageID(); ok && len(s.messages) < maxLines {
			s.messages = append(s.messages, id)
			j.messages[id] = s
		}
	}
	if e.Kind == Disconnected && !s.Ended {
		s.Ended = true
		j.open.remove(s)
		j.ended.push(s)
	}
	j.append(s, l, e)
	for j.ended.n > linger {
		j.done(j.ended.first)
	}
}

func (j *Joiner) begin(l Line, id uint64) *Session {
	s := new(Session)
	if n := len(j.free); n > 0 {
		s, j.free = j.free[n-1], j.free[:n-1]
		*s = Session{lines: s.lines[:0], messages: s.messages[:0]}
	}
	if cap(s.lines) == 0 {
		s.lines = make([]byte, 0, 1500) // of most
	}
	s.ID, s.Begin = id, l.Time
	j.open.push(s)
	j.sessions[id] = s
	j.bytes += cap(s.lines)
	return s
}

// done gives a session away.
func (j *Joiner) done(s *Session) {
	if s.Ended {
		j.ended.remove(s)
	} else {
		j.open.remove(s)
	}
	delete(j.sessions, s.ID)
	for _, id := range s.messages {
		if j.messages[id] == s {
			delete(j.messages, id)
		}
	}
	j.bytes -= cap(s.lines)
	if j.sink.Session != nil {
		j.sink.Session(s)
	}
	if cap(s.lines) <= 8<<10 && len(j.free) < linger {
		j.free = append(j.free, s)
	}
}

// Close gives all sessions away that are left, those that have ended first.
func (j *Joiner) Close() {
	for _, q := range []*queue{&j.ended, &j.open} {
		for q.first != nil {
			j.done(q.first)
		}
	}
}

// A queue has sessions in an order.
type queue struct {
	first, last *Session
	n           int
}

func (q *queue) push(s *Session) {
	s.before, s.next = q.last, nil
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
	q.n++
}

func (q *queue) remove(s *Session) {
	if s.before == nil {
		q.first = s.next
	} else {
		s.before.next = s.next
	}
	if s.next == nil {
		q.last = s.before
	} else {
		s.next.before = s.before
	}
	s.before, s.next = nil, nil
	q.n--
}
