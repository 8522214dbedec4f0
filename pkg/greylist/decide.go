package greylist

import (
	"cmp"
	"time"
)

// decide is the decision as a function of the time, the attempt and the records,
// which it brings up to date. What passes without any, see atOnce, does not come
// here.
func (t *table) decide() Decision {
	if s := t.renew(); s != nil {
		return t.accept(Known, s) // and nothing more, as atHand does
	}
	for i := range t.recs {
		t.recs[i].clamp(t.now)
	}
	if s := t.passed(roleExpect); s != nil {
		return t.accept(Expected, s)
	}
	if s := t.passed(roleRecent); s != nil && !t.policy.All {
		return t.accept(Vouched, s)
	}
	if d, ok := t.trapped(); ok {
		return d
	}
	if s := t.passed(roleAttempt); s != nil {
		return t.accept(Known, s)
	}
	if s := t.passed(rolePair, roleLearned); s != nil && t.passed(roleOurs) == nil {
		return t.accept(Paired, s)
	}
	if d, ok := t.retry(); ok {
		return d
	}
	if d, ok := t.pair(); ok {
		return d
	}
	return t.refuseFirst()
}

// atTrap is what decide does for an attempt that names a trap, as far as the trap.
// It stores nothing else.
func (t *table) atTrap() Decision {
	for s, r := range t.each(roleFree, roleExpect, roleRecent) {
		c := *r
		if c.clamp(t.now); t.policy.passes(s.key.Kind(), c, t.now) {
			return t.accept(Known, s)
		}
	}
	d, ok := t.trapped()
	if !ok {
		return t.accept(Vouched, nil)
	}
	return d
}

// renew notes that passes are used. It returns that of an origin which is free.
func (t *table) renew() (free *slot) {
	for s, r := range t.each(roleFree, roleAttempt, rolePair, roleLearned) {
		c := *r
		if c.clamp(t.now); !t.policy.passes(s.key.Kind(), c, t.now) {
			continue
		}
		c.Last = t.now
		*r = c
		if s.role == roleFree && free == nil {
			free = s
		}
	}
	return free
}

// passed returns a slot of the roles whose record lets through.
func (t *table) passed(roles ...role) *slot {
	for s, r := range t.each(roles...) {
		if t.policy.passes(s.key.Kind(), *r, t.now) {
			return s
		}
	}
	return nil
}

// trapped refuses a client that has written to a trap, now or before. Who is
// vouched for never does: somebody else with a mailbox there would shut it out.
func (t *table) trapped() (Decision, bool) {
	if t.by != "" || t.attempt.Client.Provider != "" {
		return Decision{}, false
	}
	s, r := t.one(roleTrap)
	switch {
	case t.attempt.springs():
		tries := r.Tries
		*r = s.blank
		r.begin(t.now)
		r.Tries += tries
	case t.policy.waits(KindTrap, *r, t.now):
		r.Tries++
		r.Last = t.now
	default:
		return Decision{}, false
	}
	// What the client is told is what it would be told without a trap.
	d := t.refuse(Trapped, s, t.policy.PassTime.Milliseconds(), r.Tries)
	d.Trapped = time.Duration(t.policy.expiry(KindTrap, *r)-t.now) * time.Millisecond
	return d, true
}

// retry accepts if one of the records has waited long enough. What the attempt
// has for the recipients that have waited passes from now on, and so do its
// origins, unless the client is past its bound: then there is somebody behind its
// address who does not come again, and one who does is no reason to let both in.
func (t *table) retry() (Decision, bool) {
	var oldest *slot
	var record Record
	waited := make(map[string]int64) // recipients, and since when
	for s, r := range t.each(roleAttempt) {
		if !t.policy.waits(KindAttempt, *r, t.now) || t.now-r.First < t.policy.PassTime.Milliseconds() {
			continue
		}
		if since, ok := waited[s.rcpt]; !ok || r.First < since {
			waited[s.rcpt] = r.First
		}
		if oldest == nil || r.First < record.First {
			oldest, record = s, *r
		}
	}
	if oldest == nil {
		return Decision{}, false
	}
	crowded := t.crowded()
	t.leaves()
	for s, r := range t.each(roleAttempt) {
		if since, ok := waited[s.rcpt]; ok {
			t.pass(s, r, since)
		}
	}
	for s, r := range t.each(roleFree) {
		if t.frees(s, crowded) {
			t.pass(s, r, record.First)
		}
	}
	d := t.accept(Retry, oldest)
	d.First, d.Delay, d.Tries, d.Crowded = true, time.Duration(t.now-record.First)*time.Millisecond, record.Tries+1, crowded
	return d, true
}

// frees reports whether a retry lets an origin pass as such. The domain counts
// only if not everybody is in it.
func (t *table) frees(s *slot, crowded bool) bool {
	if len(s.name) > 4 && s.name[:4] == "spf:" {
		return t.attempt.SPF.Frees
	}
	return !crowded
}

// pass makes a record one that lets through.
func (t *table) pass(s *slot, r *Record, first int64) {
	if r.State != Grey {
		*r = s.blank
		r.First = first
	}
	r.State, r.Last, r.Nets, r.Net = Pass, t.now, "", ""
	r.Tries++
}

// pair accepts by sender and recipient alone what comes again and again from other
// networks.
func (t *table) pair() (Decision, bool) {
	if t.policy.PairTries < 0 || t.passed(roleOurs) != nil {
		return Decision{}, false
	}
	var oldest *slot
	var since int64
	for s, r := range t.each(rolePair) {
		if !t.policy.waits(KindPair, *r, t.now) {
			continue
		}
		nets := addNet(r.Nets, t.net)
		if r.Tries+1 < t.policy.PairTries || len(nets) < t.policy.PairNets*netLen || t.now-r.First < t.policy.PairSpan.Milliseconds() {
			continue
		}
		if oldest == nil || r.First < since {
			oldest, since = s, r.First
		}
		t.pass(s, r, r.First)
	}
	if oldest == nil {
		return Decision{}, false
	}
	t.leaves()
	d := t.accept(Paired, oldest)
	d.First, d.Delay = true, time.Duration(t.now-since)*time.Millisecond
	for s, r := range t.each(rolePair) {
		if s == oldest {
			d.Tries = r.Tries
		}
	}
	return d, true
}

// refuseFirst refuses an attempt that nothing speaks for, and notes it.
func (t *table) refuseFirst() Decision {
	var d Decision
	fresh := true
	for s, r := range t.each(roleAttempt) {
		reason := Unseen
		switch {
		case t.policy.waits(KindAttempt, *r, t.now):
			reason, fresh = Early, false
			r.Tries++
			r.Last = t.now
		default:
			if r.State == Grey {
				reason = Late
			}
			*r = s.blank
			r.begin(t.now)
		}
		e := t.refuse(reason, s, r.First+t.policy.PassTime.Milliseconds()-t.now, r.Tries)
		if d.Reason == "" || cmp.Or(cmp.Compare(e.Left, d.Left), cmp.Compare(rank[e.Reason], rank[d.Reason])) < 0 {
			d = e
		}
	}
	if t.policy.PairTries > 0 && t.passed(roleOurs) == nil {
		for s, r := range t.each(rolePair) {
			if t.policy.waits(KindPair, *r, t.now) {
				r.Tries++
				r.Last = t.now
			} else {
				*r = s.blank
				r.begin(t.now)
			}
			r.Nets = addNet(r.Nets, t.net)
		}
	}
	if fresh {
		t.joins()
	}
	d.Crowded = t.crowded()
	return d
}

// rank orders the reasons of records that wait equally long.
var rank = map[Reason]int{Early: 0, Late: 1, Unseen: 2}

// joins counts an attempt that begins to wait.
func (t *table) joins() {
	s, r := t.one(roleClient)
	if r.State == Absent {
		*r = s.blank
		r.State, r.First = Grey, t.now
	}
	if exp := t.policy.GreyExp.Milliseconds(); t.now-r.First > exp {
		if r.Tries > t.policy.MaxPerClient { // it was until these had expired
			r.Last = min(r.Last+exp, t.now)
		}
		r.First, r.Tries = t.now, 0
	}
	r.Tries++
	t.noteCrowd(r)
}

// leaves counts an attempt that waits no more.
func (t *table) leaves() {
	if _, r := t.one(roleClient); r.State != Absent && r.Tries > 0 {
		t.noteCrowd(r)
		r.Tries--
	}
}

func (t *table) noteCrowd(r *Record) {
	if r.Tries > t.policy.MaxPerClient {
		r.Last = t.now
	}
}

// crowded reports whether more attempts of the client wait than one mail server
// would have waiting, or have done within GreyExp.
func (t *table) crowded() bool {
	_, r := t.one(roleClient)
	return t.policy.crowded(*r, t.now)
}

func (p *Policy) crowded(r Record, now int64) bool {
	return r.State == Grey && r.Last > 0 && now <= p.crowdedUntil(r)
}

// crowdedUntil is GreyExp after the last time that too many waited: that is the
// last one noted, or when they expire.
func (p *Policy) crowdedUntil(r Record) int64 {
	if r.Tries > p.MaxPerClient {
		return r.Last + 2*p.GreyExp.Milliseconds()
	}
	return r.Last + p.GreyExp.Milliseconds()
}

// expiry returns the last moment at which a record means something.
func (p *Policy) expiry(k Kind, r Record) int64 {
	switch k {
	case KindTrap:
		return r.First + p.TrapTime.Milliseconds()
	case KindClient:
		return max(r.First+p.GreyExp.Milliseconds(), p.crowdedUntil(r))
	case KindVouched, KindReply:
		return r.Last + week
	case KindWriter:
		return r.First + day
	case KindExpect:
		return r.First + int64(r.Tries)*1000
	case KindProvider:
		return r.Last + month
	}
	if r.State == Pass {
		return r.Last + p.WhiteExp.Milliseconds()
	}
	return r.First + p.GreyExp.Milliseconds()
}

const (
	day   = int64(24 * time.Hour / time.Millisecond)
	week  = 7 * day
	month = 30 * day
)

// passes reports whether a record lets through.
func (p *Policy) passes(k Kind, r Record, now int64) bool {
	return r.State == Pass && now <= p.expiry(k, r)
}

// waits reports whether a record stands for an attempt that is not too old.
func (p *Policy) waits(k Kind, r Record, now int64) bool {
	return r.State == Grey && now <= p.expiry(k, r)
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

// decision is what an answer by the record of a slot has in common with others; s
// is nil if none decided.
func (p *plan) decision(reason Reason, s *slot) Decision {
	d := Decision{
		Reason: reason, Suspect: p.suspect, Origin: p.host, Origins: p.origins, Sender: p.sender, Rcpt: p.rcpt,
	}
	if s == nil {
		return d
	}
	d.Key = s.key
	switch s.role {
	case roleFree, roleAttempt:
		d.Origin = s.name
	case roleExpect:
		d.By = "expected " + s.name
	case roleRecent:
		d.By = "vouched for within a week"
	}
	if s.rcpt != "" {
		d.Rcpt = s.rcpt
	}
	return d
}

func (p *plan) accept(reason Reason, s *slot) Decision {
	d := p.decision(reason, s)
	d.Accept = true
	return d
}

// refuse rounds what is left, in milliseconds, up to seconds.
func (p *plan) refuse(reason Reason, s *slot, left int64, tries int) Decision {
	d := p.decision(reason, s)
	d.Left = time.Duration(max(1, (left+999)/1000)) * time.Second
	d.Tries = tries
	return d
}

// String returns a decision as in logs.
func (d Decision) String() string {
	word := "refuse "
	if d.Accept {
		word = "accept "
	}
	return word + string(d.Reason) + " " + d.Origin
}
