package greylist

import (
	"strings"
	"time"
)

// decide is the decision as a function of the time, the attempt and the
// records, which it brings up to date.
func (g *Greylist) decide(p *plan, now int64, recs []Record) Decision {
	known := -1
	for _, list := range [][]int{p.free, p.attempt} {
		for _, i := range list {
			if g.renew(&recs[i], now) && known < 0 {
				known = i
			}
		}
	}
	paired := p.pair >= 0 && g.renew(&recs[p.pair], now)
	if known >= 0 && known < len(p.free) {
		return p.accept(Known, known) // as atHand does
	}
	for i := range recs {
		recs[i].clamp(now)
	}
	if trap := &recs[p.trap]; g.waits(KindTrap, *trap, now) {
		trap.Tries++
		trap.Last = now
		return p.refuse(Trapped, p.trap, trap.First+g.policy.TrapTime.Milliseconds()-now, trap.Tries)
	}
	switch {
	case known >= 0:
		return p.accept(Known, known)
	case paired:
		return p.accept(Paired, p.pair)
	}
	if d, ok := g.retry(p, now, recs, p.attempt); ok {
		return d
	}
	if d, ok := g.endless(p, now, recs); ok {
		return d
	}
	return g.greylist(p, now, recs)
}

// retry accepts if one of the records has waited long enough. All that the
// attempt has passes from now on.
func (g *Greylist) retry(p *plan, now int64, recs []Record, of []int) (Decision, bool) {
	oldest := -1
	for _, i := range of {
		if r := recs[i]; g.waits(KindAttempt, r, now) && now-r.First >= g.policy.PassTime.Milliseconds() &&
			(oldest < 0 || r.First < recs[oldest].First) {
			oldest = i
		}
	}
	if oldest < 0 {
		return Decision{}, false
	}
	first := recs[oldest].First
	d := p.accept(Retry, oldest)
	d.First, d.Delay, d.Tries = true, time.Duration(now-first)*time.Millisecond, recs[oldest].Tries+1
	for _, list := range [][]int{of, p.free} {
		for _, i := range list {
			r := &recs[i]
			if r.State != Grey {
				*r = p.blank[i]
				r.First = first
			}
			r.State, r.Last = Pass, now
			r.Tries++
		}
	}
	return d, true
}

// endless accepts by sender and recipient alone what comes again and again from
// other networks.
func (g *Greylist) endless(p *plan, now int64, recs []Record) (Decision, bool) {
	if p.pair < 0 || g.policy.PairTries < 0 {
		return Decision{}, false
	}
	r := &recs[p.pair]
	if !g.waits(KindPair, *r, now) {
		return Decision{}, false
	}
	nets := addNet(r.Nets, p.net)
	if r.Tries+1 < g.policy.PairTries || len(nets) < g.policy.PairNets*netLen || now-r.First < g.policy.PairSpan.Milliseconds() {
		return Decision{}, false
	}
	r.State, r.Last, r.Nets = Pass, now, ""
	r.Tries++
	d := p.accept(Paired, p.pair)
	d.First, d.Delay, d.Tries = true, time.Duration(now-r.First)*time.Millisecond, r.Tries
	return d, true
}

// greylist refuses, and counts the attempt.
func (g *Greylist) greylist(p *plan, now int64, recs []Record) Decision {
	of := p.attempt
	fresh, any := g.vacant(p, now, recs)
	quota := &recs[p.quota]
	crowded := any && g.waits(KindQuota, *quota, now) && quota.Tries >= g.policy.MaxPerNet
	// The network as a whole stands for what is not written in a crowd, also
	// for who comes again when that has gone.
	if n := recs[p.network]; fresh && (crowded || n.State != Absent && now-n.First <= g.life(KindNetwork)) {
		if g.passes(recs[p.network], now) {
			recs[p.network].Last = now
			d := p.accept(Known, p.network)
			d.Crowded = crowded
			return d
		}
		if d, ok := g.retry(p, now, recs, []int{p.network}); ok {
			d.Crowded = crowded
			return d
		}
		if crowded {
			of = []int{p.network}
		}
	}
	d := Decision{}
	for _, i := range of {
		r := &recs[i]
		reason := Unseen
		switch {
		case g.waits(KindAttempt, *r, now):
			reason = Early
			r.Tries++
			r.Last = now
		case crowded && i != p.network:
			continue
		default:
			if r.State == Grey {
				reason = Late
			}
			*r = p.blank[i]
			r.begin(now)
		}
		left := r.First + g.policy.PassTime.Milliseconds() - now
		if e := p.refuse(reason, i, left, r.Tries); d.Reason == "" || e.Left < d.Left || e.Left == d.Left && reason != Unseen {
			d = e
		}
	}
	d.Crowded = crowded
	if p.pair >= 0 && g.policy.PairTries > 0 {
		r := &recs[p.pair]
		switch {
		case g.waits(KindPair, *r, now):
			r.Tries++
			r.Last = now
			r.Nets = addNet(r.Nets, p.net)
		case !crowded:
			*r = p.blank[p.pair]
			r.begin(now)
			r.Nets = p.net
		}
	}
	if n := g.share(p); any && !crowded && n > 0 {
		if !g.waits(KindQuota, *quota, now) {
			*quota = p.blank[p.quota]
			quota.begin(now)
			quota.Tries = 0
		}
		quota.Tries += n
		quota.Last = now
	}
	return d
}

// share is what an attempt adds to the quota of its network. Of a large quota
// every eighth attempt, as its key has it, counts for eight: most networks are
// seen once, and to note that would cost as much as all the rest.
func (g *Greylist) share(p *plan) int {
	step := min(max(g.policy.MaxPerNet/16, 1), 8)
	k := p.keys[p.attempt[len(p.attempt)-1]]
	if int(k[14])%step != 0 {
		return 0
	}
	return step
}

// vacant says whether no record of the attempt itself is there, and whether any
// record would have to be made.
func (g *Greylist) vacant(p *plan, now int64, recs []Record) (fresh, any bool) {
	fresh = true
	for _, i := range p.attempt {
		if g.waits(KindAttempt, recs[i], now) {
			fresh = false
		} else {
			any = true
		}
	}
	return fresh, any || p.pair >= 0 && g.policy.PairTries > 0 && !g.waits(KindPair, recs[p.pair], now)
}

// passes reports whether a record lets through.
func (g *Greylist) passes(r Record, now int64) bool {
	return r.State == Pass && now-r.Last <= g.policy.WhiteExp.Milliseconds()
}

// renew notes that a record is used, if it lets through.
func (g *Greylist) renew(r *Record, now int64) bool {
	c := *r
	c.clamp(now)
	if !g.passes(c, now) {
		return false
	}
	c.Last = now
	*r = c
	return true
}

// waits reports whether a record stands for an attempt that is not too old.
func (g *Greylist) waits(k Kind, r Record, now int64) bool {
	return r.State == Grey && now-r.First <= g.life(k)
}

// clamp makes times of the future the present: a clock was wrong.
func (r *Record) clamp(now int64) {
	if r.State != Absent {
		r.First, r.Last = min(r.First, now), min(r.Last, now)
	}
}

func (r *Record) begin(now int64) {
	r.State, r.Tries, r.First, r.Last = Grey, 1, now, now
}

// addNet adds the hash of a network to those of a pair, unless it is there or
// there are enough.
func addNet(nets, net string) string {
	for i := 0; i+netLen <= len(nets); i += netLen {
		if nets[i:i+netLen] == net {
			return nets
		}
	}
	if len(nets) >= maxNets*netLen {
		return nets
	}
	return nets + net
}

func (p *plan) decision(reason Reason, i int) Decision {
	d := Decision{
		Reason: reason, Key: p.keys[i], Origins: p.origins, Sender: p.sender, Rcpt: p.rcpt,
		Origin: p.origins[len(p.origins)-2],
	}
	for n, j := range p.free {
		if i == j {
			d.Origin = p.origins[n]
		}
	}
	for n, j := range p.attempt { // as origins, but for the address
		if i == j && n < len(p.attempt)-1 {
			d.Origin = p.origins[n]
		} else if i == j {
			d.Origin = p.origins[len(p.origins)-1]
		}
	}
	if i == p.network {
		d.Origin = p.origins[len(p.origins)-1]
	}
	return d
}

func (p *plan) accept(reason Reason, i int) Decision {
	d := p.decision(reason, i)
	d.Accept = true
	return d
}

// refuse rounds what is left, in milliseconds, up to seconds.
func (p *plan) refuse(reason Reason, i int, left int64, tries int) Decision {
	d := p.decision(reason, i)
	d.Left = time.Duration(max(1, (left+999)/1000)) * time.Second
	d.Tries = tries
	return d
}

// String returns a decision as in logs.
func (d Decision) String() string {
	var b strings.Builder
	if d.Accept {
		b.WriteString("accept ")
	} else {
		b.WriteString("refuse ")
	}
	b.WriteString(string(d.Reason))
	b.WriteString(" ")
	b.WriteString(d.Origin)
	return b.String()
}
