package main

import (
	"bytes"

	"opensmtpd-filters/pkg/guard"
	"opensmtpd-filters/pkg/maillog"
)

// A batch is a part of what a Joiner has found, in its order.
type batch struct {
	sessions []*maillog.Session // memory is kept for the next use
	items    []item
	n        int // sessions in use
}

type item struct {
	session *maillog.Session // or
	late    bool             // or another line
	id      uint32
	line    maillog.Line
}

const batchSize = 256

// beside returns a sink that hands everything to another one, which works in a
// goroutine of its own, and a function that waits until that has all.
func beside(to maillog.Sink) (maillog.Sink, func() error) {
	full, empty := make(chan *batch, 4), make(chan *batch, 6)
	for range cap(empty) {
		empty <- new(batch)
	}
	done := make(chan error, 1)
	guard.Go(nil, "counting", func() {
		err := guard.Call(func() error {
			for b := range full {
				b.hand(to)
				empty <- b
			}
			return nil
		})
		for b := range full { // after a panic
			empty <- b
		}
		done <- err
	})
	b := <-empty
	put := func(i item) {
		if b.items = append(b.items, i); len(b.items) == batchSize {
			full <- b
			b = <-empty
			b.items, b.n = b.items[:0], 0
		}
	}
	sink := maillog.Sink{
		Session: func(s *maillog.Session) {
			if b.n == len(b.sessions) {
				b.sessions = append(b.sessions, nil)
			}
			b.sessions[b.n] = s.Take(b.sessions[b.n])
			b.n++
			put(item{session: b.sessions[b.n-1]})
		},
		Late: func(id uint32, l maillog.Line, _ maillog.Event) {
			l.Text = bytes.Clone(l.Text)
			put(item{late: true, id: id, line: l})
		},
		Other: func(l maillog.Line, _ maillog.Event) {
			l.Text = bytes.Clone(l.Text)
			put(item{line: l})
		},
	}
	return sink, func() error {
		full <- b
		close(full)
		return <-done
	}
}

func (b *batch) hand(to maillog.Sink) {
	for _, i := range b.items {
		switch {
		case i.session != nil:
			to.Session(i.session)
		case i.late:
			to.Late(i.id, i.line, maillog.Parse(i.line.Text))
		default:
			to.Other(i.line, maillog.Parse(i.line.Text))
		}
	}
}
