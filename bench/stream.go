package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"

	"opensmtpd-filters/pkg/proto"
)

// stream writes what smtpd 7.8 sends to a filter that has registered every
// report and phase: sessions of one message each, fifty of them at a time.
type stream struct {
	w         *bufio.Writer
	rnd       *rand.Rand
	micros    int64
	dataLines int // of the message; the lines of smtpd's own Received come first
	buf       []byte
}

const overlap = 50

var text = []string{
	"Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod",
	"tempor incididunt ut labore et dolore magna aliqua. Ut enim ad minim veniam,",
	"quis nostrud | exercitation",
	"",
	"..a line that began with a dot",
	"SGVsbG8sIHdvcmxkLiBTR1ZzYkc4c0lIZHZjbXhrTGlCVFIxWnpZa2M0YzBsSVpIWmpiWGhyTGlB",
}

// write writes the handshake and n sessions.
func (g *stream) write(out io.Writer, n int) error {
	g.start(bufio.NewWriterSize(out, 1<<20))
	for _, c := range []string{"smtpd-version|7.8.0-portable", "protocol|0.7", "smtp-session-timeout|300", "subsystem|smtp-in", "admd|mx.example.org", "ready"} {
		fmt.Fprintf(g.w, "config|%s\n", c)
	}
	for done := 0; done < n; done += overlap {
		var all [][]proto.Line
		for i := range min(overlap, n-done) {
			all = append(all, g.session(done+i))
		}
		// A line of each in turn, so that sessions overlap as they do live.
		for left := len(all); left > 0; {
			left = 0
			for i, lines := range all {
				if len(lines) == 0 {
					continue
				}
				g.line(&lines[0])
				all[i] = lines[1:]
				left++
			}
		}
	}
	return g.w.Flush()
}

func (g *stream) start(w *bufio.Writer) {
	g.w = w
	g.rnd = rand.New(rand.NewPCG(1, 2))
	g.micros = 1_795_322_216_000_000
}

func (g *stream) line(l *proto.Line) {
	g.micros += int64(g.rnd.IntN(40))
	l.Version, l.Micros = proto.V07, g.micros
	g.buf = append(l.Append(g.buf[:0]), '\n')
	g.w.Write(g.buf)
}

func (g *stream) session(n int) []proto.Line {
	var lines []proto.Line
	id, msg := hexID(g.rnd.Uint64()), fmt.Sprintf("%08x", g.rnd.Uint32())
	report := func(e proto.Event, fields string) {
		l := proto.Line{Kind: proto.Report, Event: e, Session: id}
		if fields != "" {
			l.Fields = []byte(fields)
		}
		lines = append(lines, l)
	}
	request := func(p proto.Phase, fields string) {
		token := hexID(0xa9b73e0800000000 + uint64(p))
		lines = append(lines, proto.Line{Kind: proto.Request, Phase: p, Session: id, Token: token, Fields: []byte(fields)})
	}
	command := func(p proto.Phase, line, param, reply string) {
		report(proto.ProtocolClient, line)
		request(p, param)
		report(proto.FilterResponse, p.String()+"|proceed")
		report(proto.ProtocolServer, reply)
	}
	src := netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)})
	link := proto.Link{
		RDNS:   fmt.Sprintf("mail%d.sender.example", n),
		FCrDNS: proto.Pass,
		Src:    proto.Addr{AddrPort: netip.AddrPortFrom(src, uint16(1024+n%60000))},
		Dest:   proto.Addr{AddrPort: netip.MustParseAddrPort("192.0.2.25:25")},
	}
	from, to := fmt.Sprintf("user%d@sender.example", n), "bob@example.org"
	report(proto.LinkConnect, string(link.Append(nil)))
	request(proto.Connect, link.RDNS+"|"+src.String())
	report(proto.FilterResponse, "connected|proceed")
	report(proto.ProtocolServer, "220 mx.example.org ESMTP OpenSMTPD")
	report(proto.LinkGreeting, "mx.example.org")
	command(proto.Ehlo, "EHLO "+link.RDNS, link.RDNS, "250-mx.example.org Hello, pleased to meet you")
	report(proto.LinkIdentify, "EHLO|"+link.RDNS)
	for _, s := range []string{"250-8BITMIME", "250-ENHANCEDSTATUSCODES", "250-SIZE 36700160", "250-DSN", "250 HELP"} {
		report(proto.ProtocolServer, s)
	}
	command(proto.MailFrom, "MAIL FROM:<"+from+">", from, "250 2.0.0 Ok")
	report(proto.TxBegin, msg)
	report(proto.TxMail, msg+"|ok|"+from)
	command(proto.RcptTo, "RCPT TO:<"+to+">", to, "250 2.1.5 Destination address valid: Recipient ok")
	report(proto.TxEnvelope, msg+"|"+msg+"0bdf93e2")
	report(proto.TxRcpt, msg+"|ok|"+to)
	command(proto.Data, "DATA", "", `354 Enter mail, end with "." on a line by itself`)
	report(proto.TxData, msg+"|ok")
	if g.dataLines > 0 {
		for _, s := range []string{
			"Received: from " + link.RDNS + " (" + link.RDNS + " [" + src.String() + "])",
			"\tby mx.example.org (OpenSMTPD) with ESMTP id " + msg, "\tfor <" + to + ">;", "\tSun, 22 Nov 2026 04:36:56 +0000 (UTC)",
		} {
			request(proto.DataLine, s)
		}
		header := []string{"From: Sender <" + from + ">", "To: " + to, "Subject: test", "Date: Thu, 1 Jan 2026 00:00:00 +0000", "Message-ID: <x@sender.example>", ""}
		for i := range g.dataLines {
			if i < len(header) {
				request(proto.DataLine, header[i])
			} else {
				request(proto.DataLine, text[(n+i)%len(text)])
			}
		}
		request(proto.DataLine, ".")
	}
	command(proto.Commit, ".", "", "250 2.0.0 "+msg+" Message accepted for delivery")
	report(proto.TxCommit, msg+"|1538")
	report(proto.TxReset, msg)
	command(proto.Quit, "QUIT", "", "221 2.0.0 Bye")
	report(proto.LinkDisconnect, "")
	return lines
}

func hexID(n uint64) (id proto.ID) {
	copy(id[:], fmt.Sprintf("%016x", n))
	return id
}
