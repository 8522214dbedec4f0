package maillog

import (
	"container/list"
	"encoding/binary"
	"iter"
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
	place    *list.Element
}

// Lines returns the lines of the session in the order of the log, with their times.
// Texts are valid until the session is given back.
func (s *Session) Lines() iter.Seq2[time.Time, []byte] {
	return func(yield func(time.Time, []byte) bool) {
		for b := s.lines; len(b) > 0; {
			us := int64(binary.NativeEndian.Uint64(b))
			n := int(binary.NativeEndian.Uint32(b[8:]))
			var t time.Time
			if us != noTime {
				t = time.UnixMicro(us).In(s.Begin.Location())
			}
			if !yield(t, b[12:12+n]) {
				return
			}
			b = b[12+n:]
		}
	}
}

const noTime = -1 << 63

// Messages returns the ids of the messages that smtpd has taken.
func (s *Session) Messages() []uint32 { return s.messages }

// Keep returns a copy for the time after Sink.Session.
func (s *Session) Keep() *Session { return s.KeepIn(nil) }

// KeepIn is Keep with the memory of a copy that is not needed any more.
func (s *Session) KeepIn(old *Session) *Session {
	if old == nil || cap(old.lines) > 2*len(s.lines)+256 {
		old = new(Session)
	}
	lines, messages := append(old.lines[:0], s.lines...), append(old.messages[:0], s.messages...)
	*old = *s
	old.lines, old.messages, old.place = lines, messages, nil
	return old
}

// Size is about the memory that the session takes, in bytes.
func (s *Session) Size() int { return cap(s.lines) + 4*cap(s.messages) + 128 }

// Append adds a line, such as one that Sink.Late was given.
func (s *Session) Append(l Line) {
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
		s.lines = binary.NativeEndian.AppendUint64(s.lines, uint64(us))
		s.lines = binary.NativeEndian.AppendUint32(s.lines, uint32(len(l.Text)))
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
	open     list.List // *Session in the order of their beginning
	ended    list.List // in that of their end
	bytes    int       // of all
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
		j.append(s, l)
	} else if j.sink.Late != nil {
		j.sink.Late(id, l, e)
	}
}

func (j *Joiner) append(s *Session, l Line) {
	before := cap(s.lines)
	s.Append(l)
	j.bytes += cap(s.lines) - before
	for j.bytes > maxBytes {
		oldest := j.ended.Front()
		if oldest == nil {
			oldest = j.open.Front()
		}
		if oldest == nil {
			return
		}
		j.done(oldest.Value.(*Session))
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
		j.open.Remove(s.place)
		s.place = j.ended.PushBack(s)
	}
	j.append(s, l)
	for j.ended.Len() > linger {
		j.done(j.ended.Front().Value.(*Session))
	}
}

func (j *Joiner) begin(l Line, id uint64) *Session {
	s := new(Session)
	if n := len(j.free); n > 0 {
		s, j.free = j.free[n-1], j.free[:n-1]
		*s = Session{lines: s.lines[:0], messages: s.messages[:0]}
	}
	s.ID, s.Begin = id, l.Time
	s.place = j.open.PushBack(s)
	j.sessions[id] = s
	j.bytes += cap(s.lines)
	return s
}

// done gives a session away.
func (j *Joiner) done(s *Session) {
	if s.Ended {
		j.ended.Remove(s.place)
	} else {
		j.open.Remove(s.place)
	}
	delete(j.sessions, s.ID)
	for _, id := range s.messages {
		if j.messages[id] == s {
			delete(j.messages, id)
		}
	}
	if j.sink.Session != nil {
		j.sink.Session(s)
	}
	j.bytes -= cap(s.lines)
	if cap(s.lines) <= 16<<10 && len(j.free) < linger {
		j.free = append(j.free, s)
	}
}

// Close gives all sessions away that are left, those that have ended first.
func (j *Joiner) Close() {
	for _, l := range []*list.List{&j.ended, &j.open} {
		for l.Len() > 0 {
			j.done(l.Front().Value.(*Session))
		}
	}
}
