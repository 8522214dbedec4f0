package mixed

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"time"
)

// A Log describes a log that is made up, as large as one likes: lines as those of
// real runs, of sessions that overlap, at a pace that goes with the hour.
type Log struct {
	Lines    int // about so many
	Distinct int // so many clients are refused, and as many recipients get mail
	Seed     uint64
	End      time.Time // default: 1 December 2026, noon
	Span     time.Duration
}

// Counts are what is in a log.
type Counts struct {
	Lines, Accepted, Junked, Deferred, Refused, Waited, Never int
	Sessions                                                  int
	Clients, Recipients                                       int // different ones that were refused, or got mail
}

// Write writes the log and returns what is in it.
func (l Log) Write(w io.Writer) (Counts, error) {
	if l.End.IsZero() {
		l.End = time.Date(2026, 12, 1, 12, 0, 0, 0, time.Local)
	}
	if l.Span == 0 {
		l.Span = 24 * time.Hour
	}
	g := &generator{Log: l, out: bufio.NewWriterSize(w, 1<<20), rng: rand.New(rand.NewPCG(l.Seed, 1)),
		clients: make([]bool, l.Distinct), rcpts: make([]bool, l.Distinct)}
	// More mail by day: the time goes by the sum of the pace.
	total := 0.0
	const steps = 1000
	for i := range steps {
		total += g.pace(i * int(l.Span/time.Second) / steps)
	}
	done, sum := 0, 0.0
	for i := range steps {
		g.at = l.End.Add(-l.Span).Add(time.Duration(i) * l.Span / steps)
		sum += g.pace(i * int(l.Span/time.Second) / steps)
		until := int(float64(l.Lines) * sum / total)
		begun, n := g.at, until-done
		for done < until {
			g.at = begun.Add(time.Duration(done-until+n) * (l.Span / steps) / time.Duration(max(n, 1)))
			g.step()
			done = g.Counts.Lines
		}
	}
	for range g.open {
		g.drain()
	}
	for _, seen := range g.clients {
		if seen {
			g.Clients++
		}
	}
	for _, seen := range g.rcpts {
		if seen {
			g.Recipients++
		}
	}
	return g.Counts, g.out.Flush()
}

type generator struct {
	Log
	Counts
	out     *bufio.Writer
	rng     *rand.Rand
	at      time.Time
	open    [24][]string
	stamp   string
	second  int64
	clients []bool
	rcpts   []bool
}

// pace is how much mail there is at a time of the log, by the hour of its end.
func (g *generator) pace(second int) float64 {
	hour := g.End.Add(-g.Span).Add(time.Duration(second) * time.Second).Hour()
	if hour >= 7 && hour < 19 {
		return 3
	}
	return 1 + float64(hour%5)*0.2
}

// step writes one line.
func (g *generator) step() {
	i := g.rng.IntN(len(g.open))
	if len(g.open[i]) == 0 {
		g.open[i] = g.session()
	}
	g.write(i)
}

func (g *generator) drain() {
	for i := range g.open {
		for len(g.open[i]) > 0 {
			g.write(i)
		}
	}
}

func (g *generator) write(i int) {
	if s := g.at.Unix(); s != g.second {
		g.second, g.stamp = s, g.at.Format(time.Stamp)
	}
	_, _ = g.out.WriteString(g.stamp)
	_, _ = g.out.WriteString(" mx smtpd[4242]: ")
	_, _ = g.out.WriteString(g.open[i][0])
	_ = g.out.WriteByte('\n')
	g.open[i] = g.open[i][1:]
	g.Counts.Lines++
}

var lists = []string{"zen", "spamcop", "barracuda", "uceprotect"}

// session returns the lines of a session.
func (g *generator) session() []string {
	g.Sessions++
	id := fmt.Sprintf("%016x", g.rng.Uint64()|1<<60)
	n := g.rng.IntN(g.Distinct)
	if g.rng.IntN(10) < 3 {
		n = g.rng.IntN(1 + g.rng.IntN(40)) // some come again and again
	}
	n %= g.Distinct
	addr := strconv.Itoa(20+n>>20&0x3f) + "." + strconv.Itoa(n>>12&0xff) + "." + strconv.Itoa(n>>4&0xff) + "." + strconv.Itoa(n&0xf+1)
	rn := g.rng.IntN(g.Distinct)
	if g.rng.IntN(3) > 0 {
		rn = g.rng.IntN(min(g.Distinct, 60))
	}
	rcpt := "<user" + strconv.Itoa(rn) + "@example.org>"
	name, host := "-", "<unknown>"
	if n%3 == 0 {
		host = "host" + strconv.Itoa(n) + ".provider.example"
		name = host
	}
	from := "<sender" + strconv.Itoa(n%977) + "@domain" + strconv.Itoa(n%1013) + ".example>"
	who := " addr=" + addr + " name=" + name + " from=" + from
	connected := id + " smtp connected address=" + addr + " host=" + host
	quit := id + " smtp disconnected reason=quit"
	dyndns := "dyndns: " + id + " filter=dyndns action=proceed reason=proper" + who
	switch kind := g.rng.IntN(100); {
	case kind < 45:
		g.Refused++
		g.clients[n] = true
		list := lists[min(g.rng.IntN(6), 3)]
		reason, by := "score", ""
		if kind < 5 {
			reason, by = "alone", " by="+list
		}
		return []string{connected, dyndns,
			"dnsbl: " + id + " filter=dnsbl action=refuse reason=" + reason + by + who + " rcpt=" + rcpt + " score=5 " + list + "=5 code=" + list + ":127.0.0.2 t=38ms",
			id + " smtp failed-command command=\"RCPT TO:" + rcpt + "\" result=\"550 5.7.1 Service unavailable; client [" + addr + "] blocked using " + list + "\"",
			quit}
	case kind < 60:
		g.Deferred++
		g.clients[n] = true
		lines := []string{connected, dyndns,
			"dnsbl: " + id + " filter=dnsbl action=proceed reason=score" + who + " rcpt=" + rcpt + " score=0 t=12ms",
			"greylist: " + id + " filter=greylist action=defer reason=new" + who + " rcpt=" + rcpt + " suspect=noname origin=net:" + addr + "/24 left=60s tries=1 spf=none:domain.example",
			id + " smtp failed-command command=\"DATA\" result=\"451 4.7.1 Greylisted, please try again in 60 seconds\"",
			quit}
		if kind < 50 {
			g.Never++
			lines = append(lines, "greylist: filter=greylist event=noretry"+who+" rcpt="+rcpt+" origin=net:"+addr+"/24 tries=1 first=2026-11-30T11:00:00Z")
		}
		return lines
	default:
		msg := fmt.Sprintf("%08x", g.rng.Uint32())
		env := msg + fmt.Sprintf("%08x", g.rng.Uint32())
		grey := "greylist: " + id + " filter=greylist action=proceed reason=known" + who + " rcpt=" + rcpt + " origin=" + addr + " spf=pass:domain.example"
		if kind < 65 {
			g.Waited++
			wait := 60 + int(g.rng.ExpFloat64()*500)
			grey = "greylist: " + id + " filter=greylist action=proceed reason=retry" + who + " rcpt=" + rcpt + " suspect=noname origin=net:" + addr + "/24 delay=" + (time.Duration(wait) * time.Second).String() + " tries=2 spf=none:domain.example"
		}
		if kind >= 95 {
			g.Junked++
			dyndns = "dyndns: " + id + " filter=dyndns action=junk reason=dynamic" + who + " evidence=\"embed=4 dec; word=dip\""
		} else {
			g.Accepted++
		}
		g.rcpts[rn] = true
		return []string{connected, dyndns,
			"dnsbl: " + id + " filter=dnsbl action=proceed reason=score" + who + " rcpt=" + rcpt + " score=0 t=12ms",
			grey,
			id + " smtp message msgid=" + msg + " size=" + strconv.Itoa(1000+g.rng.IntN(100000)) + " nrcpt=1 proto=ESMTP",
			id + " smtp envelope evpid=" + env + " from=" + from + " to=" + rcpt,
			quit,
			"0000000000000000 mda delivery evpid=" + env + " from=" + from + " to=" + rcpt + " rcpt=" + rcpt + " user=user delay=0s result=Ok stat=Delivered"}
	}
}

// WritePostfix writes a log of Postfix with as many bytes, of as many different
// clients.
func (l Log) WritePostfix(w io.Writer, bytes int64) (lines int, err error) {
	out := bufio.NewWriterSize(w, 1<<20)
	rng := rand.New(rand.NewPCG(l.Seed, 2))
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)
	for n := int64(0); n < bytes && err == nil; {
		at = at.Add(20 * time.Millisecond)
		c := rng.IntN(l.Distinct)
		addr := fmt.Sprintf("%d.%d.%d.%d", 20+c>>20&0x3f, c>>12&0xff, c>>4&0xff, c&0xf+1)
		host := "unknown[" + addr + "]"
		from, to := fmt.Sprintf("<sender%d@domain%d.example>", c%977, c%1013), fmt.Sprintf("<user%d@example.org>", rng.IntN(l.Distinct))
		head := at.Format(time.Stamp) + " mx postfix/"
		var texts []string
		if rng.IntN(100) < 60 {
			texts = []string{
				"smtpd[4242]: connect from " + host,
				"smtpd[4242]: NOQUEUE: reject: RCPT from " + host + ": 554 5.7.1 Service unavailable; Client host [" + addr + "] blocked using zen.example; from=" + from + " to=" + to + " proto=ESMTP helo=<client.example.net>",
				"smtpd[4242]: disconnect from " + host + " ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4",
			}
		} else {
			q := fmt.Sprintf("%010X", rng.Uint64()>>24)
			texts = []string{
				"smtpd[4242]: connect from " + host,
				"smtpd[4242]: " + q + ": client=" + host,
				"cleanup[4243]: " + q + ": message-id=<" + q + "@client.example.net>",
				"qmgr[4244]: " + q + ": from=" + from + ", size=" + strconv.Itoa(1000+rng.IntN(100000)) + ", nrcpt=1 (queue active)",
				"smtpd[4242]: disconnect from " + host + " ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5",
				"local[4245]: " + q + ": to=" + to + ", relay=local, delay=0.04, delays=0.03/0/0/0, dsn=2.0.0, status=sent (delivered to maildir)",
				"qmgr[4244]: " + q + ": removed",
			}
		}
		for _, text := range texts {
			var k int
			if k, err = fmt.Fprint(out, head, text, "\n"); err != nil {
				return lines, err
			}
			n += int64(k)
			lines++
		}
	}
	return lines, out.Flush()
}
