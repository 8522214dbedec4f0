package greylist

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entryJSON is an Entry in text: one line of an export.
type entryJSON struct {
	Key    string    `json:"key,omitempty"`
	Kind   string    `json:"kind"`
	State  string    `json:"state"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Tries  int       `json:"tries"`
	Origin string    `json:"origin,omitempty"`
	Sender string    `json:"sender,omitempty"`
	Rcpt   string    `json:"rcpt,omitempty"`
	Client string    `json:"client,omitempty"`
	Nets   []byte    `json:"nets,omitempty"`
	Net    []byte    `json:"net,omitempty"`
}

// MarshalJSON writes an entry as Export does.
func (e Entry) MarshalJSON() ([]byte, error) {
	r := e.Record
	return json.Marshal(entryJSON{
		Key: e.Key.String(), Kind: e.Key.Kind().String(), State: r.State.String(),
		First: dateOf(r.First), Last: dateOf(r.Last), Tries: r.Tries,
		Origin: r.Origin, Sender: r.Sender, Rcpt: r.Rcpt, Client: r.Client, Nets: []byte(r.Nets), Net: []byte(r.Net),
	})
}

// dateOf keeps to the years that JSON has (RFC 3339).
func dateOf(ms int64) time.Time {
	const end = 253402300799999 // of the year 9999
	return time.UnixMilli(min(max(ms, 0), end)).UTC()
}

// Export writes all records, one a line, as JSON.
func (g *Greylist) Export(ctx context.Context, w io.Writer) error {
	bw := bufio.NewWriter(w)
	enc := json.NewEncoder(bw)
	for e, err := range g.store.All(ctx) {
		if err == nil {
			err = enc.Encode(e)
		}
		if err != nil {
			return errors.Join(err, bw.Flush())
		}
	}
	return bw.Flush()
}

// maxImportLine bounds a line of an import, in bytes.
const maxImportLine = 16 << 10

// Import reads records: lines of Export, of spamdb(8), or of "db_dump -p" for
// both databases of postgrey. What was stored before stays if it is newer. A
// line that is none of these gives an error "file:line: reason" and is skipped;
// trouble of the store ends the import. Lines that carry no record, or an
// expired one, do not count.
func (g *Greylist) Import(ctx context.Context, t time.Time, r io.Reader, file string) (stored int, errs []error) {
	h, err := g.hash()
	if err != nil {
		return 0, []error{err}
	}
	im := importer{greylist: g, hasher: h, now: t.UnixMilli()}
	br := bufio.NewReaderSize(r, maxImportLine)
	more := 0
	bad := func(n int, err error) {
		if len(errs) < maxImportErrors {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
		} else {
			more++
		}
	}
	var batch []Entry
	flush := func() error {
		n, err := g.merge(ctx, batch)
		stored += n
		batch = batch[:0]
		return err
	}
	for n := 1; ; n++ {
		b, err := br.ReadSlice('\n')
		line := strings.TrimRight(string(b), "\r\n")
		if err == bufio.ErrBufferFull {
			bad(n, errors.New("line too long"))
			line = ""
		}
		for err == bufio.ErrBufferFull {
			_, err = br.ReadSlice('\n')
		}
		if err != nil && err != io.EOF {
			bad(n, err)
			break
		}
		e, ok, wrong := im.line(line)
		if wrong != nil {
			bad(n, wrong)
		}
		if ok && !g.Expired(t)(e.Key, e.Record) {
			batch = append(batch, e)
		}
		if len(batch) == importStep || err == io.EOF {
			if err := flush(); err != nil {
				return stored, append(errs, err)
			}
		}
		if err == io.EOF {
			break
		}
	}
	if more > 0 {
		errs = append(errs, fmt.Errorf("%s: %d more bad lines", file, more))
	}
	return stored, errs
}

const (
	importStep      = 100
	maxImportErrors = 100
)

// merge stores entries of which there is nothing newer.
func (g *Greylist) merge(ctx context.Context, entries []Entry) (stored int, err error) {
	byKey := make(map[Key]Record)
	var keys []Key
	for _, e := range entries {
		if old, ok := byKey[e.Key]; !ok {
			keys = append(keys, e.Key)
		} else if !newer(e.Record, old) {
			continue
		}
		if !g.clear {
			e.Record.Origin, e.Record.Sender, e.Record.Rcpt, e.Record.Client = "", "", "", ""
		}
		byKey[e.Key] = e.Record
	}
	if len(keys) == 0 {
		return 0, nil
	}
	n := new(int)
	err = g.store.Update(ctx, keys, func(recs []Record) {
		*n = 0
		for i, k := range keys {
			if newer(byKey[k], recs[i]) {
				recs[i] = byKey[k]
				*n++
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return *n, nil
}

func newer(r, old Record) bool {
	if r.State != old.State {
		return r.State > old.State
	}
	return r.Last > old.Last
}

type importer struct {
	greylist *Greylist
	hasher   *hasher
	now      int64
	dump     bool   // within a db_dump
	dumpKey  string // waits for its value
	hasKey   bool
}

// line reads one line. Ok is false if it carries no record.
func (im *importer) line(s string) (e Entry, ok bool, err error) {
	switch {
	case im.dump && s == "DATA=END":
		im.dump, im.hasKey = false, false
		return
	case im.dump:
		im.hasKey = !im.hasKey
		if s, err = unprint(strings.TrimPrefix(s, " ")); im.hasKey {
			im.dumpKey = s
			return
		}
		if err != nil || im.dumpKey == "" {
			return // a bad key was an error already
		}
		return im.postgrey(im.dumpKey, s)
	case s == "HEADER=END":
		im.dump = true
		return
	case strings.TrimSpace(s) == "", strings.HasPrefix(s, "#"):
		return
	case strings.HasPrefix(s, "{"):
		return im.json(s)
	case strings.Contains(s, "|"):
		return im.spamdb(s)
	}
	if name, _, found := strings.Cut(s, "="); found && dumpHeaders[name] {
		if s == "format=bytevalue" {
			err = errors.New("a db_dump without -p")
		}
		return e, false, err
	}
	return e, false, fmt.Errorf("%s is no record", quoted(s))
}

var dumpHeaders = map[string]bool{
	"VERSION": true, "format": true, "type": true, "db_pagesize": true, "database": true,
	"db_lorder": true, "duplicates": true, "keys": true, "bt_minkey": true, "chksum": true, "h_nelem": true,
}

func (im *importer) json(s string) (e Entry, ok bool, err error) {
	var j entryJSON
	if err := json.Unmarshal([]byte(s), &j); err != nil {
		return e, false, err
	}
	var kind Kind
	for k, name := range kindNames {
		if name == j.Kind {
			kind = k
		}
	}
	if j.Kind == "quota" || j.Kind == "network" {
		return e, false, nil // of an earlier version
	}
	r := Record{
		Tries: min(max(j.Tries, 0), 1<<30), First: im.past(j.First.UnixMilli()), Last: im.past(j.Last.UnixMilli()),
		Origin: cutTo(j.Origin, 300), Sender: cutTo(j.Sender, 400), Rcpt: cutTo(j.Rcpt, 400),
		Client: cutTo(j.Client, 320), Nets: string(j.Nets), Net: string(j.Net),
	}
	switch j.State {
	case "grey":
		r.State = Grey
	case "pass":
		r.State = Pass
	}
	if kind == 0 || r.State == Absent || len(r.Nets) > maxNets*netLen || len(r.Nets)%netLen != 0 || len(r.Net) != 0 && len(r.Net) != groupLen {
		return e, false, errors.New("not a record")
	}
	// In clear it can be read whatever secret it was stored with.
	if r.Origin != "" || r.Sender != "" && r.Rcpt != "" {
		e = im.hasher.entry(kind, r.Origin, r.Sender, r.Rcpt)
		e.Record = r
		im.group(&e)
		return e, true, nil
	}
	e.Record = r
	if e.Key, err = ParseKey(j.Key); err == nil && e.Key.Kind() != kind {
		err = errors.New("kind and key differ")
	}
	return e, err == nil, err
}

// group sets the network that a record is counted for.
func (im *importer) group(e *Entry) {
	client, _, _ := strings.Cut(e.Record.Client, " ")
	addr, err := netip.ParseAddr(client)
	if e.Record.State != Grey || err != nil {
		return
	}
	if e.Record.Net = im.hasher.group(addr); e.Record.Net == string(e.Key[:8]) {
		e.Record.Net = ""
	}
}

func (im *importer) past(ms int64) int64 { return max(0, min(ms, im.now)) }

// spamdb reads a line of spamdb(8):
//
//	WHITE|192.0.2.1|||first|pass|expire|blocked|passed
//	GREY|192.0.2.1|helo|<from>|<to>|first|pass|expire|blocked|passed
//	TRAPPED|192.0.2.1|expire
//	SPAMTRAP|trap@example.org
func (im *importer) spamdb(s string) (e Entry, ok bool, err error) {
	f := strings.Split(s, "|")
	switch f[0] {
	case "SPAMTRAP":
		return e, false, nil // belongs into a file of traps
	case "TRAPPED":
		if len(f) != 3 {
			return e, false, errors.New("not a line of spamdb")
		}
	case "WHITE", "GREY":
		if len(f) != 9 && len(f) != 10 {
			return e, false, errors.New("not a line of spamdb")
		}
	default:
		return e, false, fmt.Errorf("%s is no record", quoted(s))
	}
	addr, err := netip.ParseAddr(f[1])
	if err != nil {
		return e, false, fmt.Errorf("%s is not an address", quoted(f[1]))
	}
	addr = addr.Unmap().WithZone("")
	p := im.greylist.policy
	host := hostOrigin(addr, p.Mask6)
	num := f[len(f)-1:]
	if f[0] != "TRAPPED" {
		num = f[len(f)-5:]
	}
	times := make([]int64, len(num))
	for i, n := range num {
		secs, err := strconv.ParseInt(n, 10, 64)
		if err != nil || secs < 0 || secs > 1<<40 {
			return e, false, fmt.Errorf("%s is not a number", quoted(n))
		}
		times[i] = secs * 1000
	}
	switch f[0] {
	case "TRAPPED":
		e = im.hasher.entry(KindTrap, host, "", "")
		first := im.past(times[0] - p.TrapTime.Milliseconds())
		e.Record.State, e.Record.Tries, e.Record.First, e.Record.Last = Grey, 1, first, first
		return e, times[0] > im.now, nil
	case "WHITE":
		e = im.hasher.entry(KindOrigin, host, "", "")
		// Its whiteexp is 36 days unless spamd(8) was told another.
		last := max(times[0], times[2]-(36*24*time.Hour).Milliseconds())
		e.Record.State, e.Record.First, e.Record.Last = Pass, im.past(times[0]), im.past(last)
		e.Record.Tries = int(min(times[3]/1000+times[4]/1000, 1<<30))
		return e, times[2] > im.now, nil
	}
	from, to := unbracket(f[len(f)-7]), unbracket(f[len(f)-6])
	if to == "" {
		return e, false, fmt.Errorf("no recipient")
	}
	net := "net:" + netOf(addr, p.Mask4, p.Mask6).String()
	e = im.hasher.entry(KindAttempt, net, NormalizeSender(from, to), NormalizeRcpt(to))
	e.Record.State, e.Record.First, e.Record.Last = Grey, im.past(times[0]), im.past(times[0])
	e.Record.Tries = int(max(1, min(times[3]/1000, 1<<30)))
	return e, times[2] > im.now, nil
}

func unbracket(s string) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "<"), ">")
}

// postgrey reads a record of its databases: "net/sender/rcpt" with "first,last"
// and mostly ",host", and "address" with "count,last". After the net there may
// be its length.
func (im *importer) postgrey(key, value string) (e Entry, ok bool, err error) {
	a, b, _ := strings.Cut(value, ",")
	b, _, _ = strings.Cut(b, ",")
	n, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	if err1 != nil || err2 != nil || n < 0 || last < 0 || n > 1<<40 || last > 1<<40 {
		return e, false, fmt.Errorf("%s is not a record of postgrey", quoted(value))
	}
	host, rest, attempt := strings.Cut(key, "/")
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return e, false, fmt.Errorf("%s is not a key of postgrey", quoted(key))
	}
	addr = addr.Unmap().WithZone("")
	p := im.greylist.policy
	if !attempt {
		e = im.hasher.entry(KindOrigin, hostOrigin(addr, p.Mask6), "", "")
		e.Record.State, e.Record.Tries = Pass, int(min(n, 1<<30))
		e.Record.First, e.Record.Last = im.past(last*1000), im.past(last*1000)
		return e, n >= 5, nil // its default of --auto-whitelist-clients
	}
	if bits, after, ok := strings.Cut(rest, "/"); ok && bits != "" && strings.Trim(bits, "0123456789") == "" && strings.Contains(after, "/") {
		rest = after
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 || i+1 == len(rest) {
		return e, false, fmt.Errorf("%s is not a key of postgrey", quoted(key))
	}
	from, to := rest[:i], rest[i+1:]
	net := "net:" + netOf(addr, p.Mask4, p.Mask6).String()
	e = im.hasher.entry(KindAttempt, net, NormalizeSender(from, to), NormalizeRcpt(to))
	r := &e.Record
	r.State, r.Tries, r.First, r.Last = Grey, 1, im.past(n*1000), im.past(last*1000)
	if (last-n)*1000 >= p.PassTime.Milliseconds() {
		r.State, r.Tries = Pass, 2
	}
	return e, true, nil
}

// unprint undoes what db_dump -p does to bytes that are not printable.
func unprint(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			b = append(b, s[i])
		case i+1 < len(s) && s[i+1] == '\\':
			b = append(b, '\\')
			i++
		default:
			if i+3 > len(s) {
				return "", errors.New("not a line of db_dump -p")
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("not a line of db_dump -p")
			}
			b = append(b, byte(n))
			i += 2
		}
	}
	return string(b), nil
}

// Keys returns the keys that an operator means: 32 hexadecimal digits as in an
// export, an address, net:NETWORK, spf:DOMAIN or another origin with a colon, or
// SENDER,RECIPIENT.
func (g *Greylist) Keys(text string) ([]Entry, error) {
	h, err := g.hash()
	if err != nil {
		return nil, err
	}
	if k, err := ParseKey(text); err == nil {
		return []Entry{{Key: k}}, nil
	}
	text = strings.TrimSpace(text)
	if addr, err := netip.ParseAddr(text); err == nil {
		host := hostOrigin(addr.Unmap().WithZone(""), g.policy.Mask6)
		return []Entry{h.entry(KindOrigin, host, "", ""), h.entry(KindTrap, host, "", ""), h.entry(KindClient, host, "", "")}, nil
	}
	if sender, rcpt, ok := strings.Cut(text, ","); ok && strings.Contains(rcpt, "@") {
		rcpt = NormalizeRcpt(unbracket(rcpt))
		sender = NormalizeSender(unbracket(sender), rcpt)
		return []Entry{h.entry(KindPair, "", sender, rcpt), h.entry(KindLearned, "", sender, rcpt)}, nil
	}
	kind, name, ok := strings.Cut(strings.ToLower(text), ":")
	switch {
	case ok && kind == "net":
		if p, err := netip.ParsePrefix(name); err == nil {
			return []Entry{h.entry(KindOrigin, "net:"+p.Masked().String(), "", "")}, nil // there is none
		}
	case ok && kind == "spf":
		name, err := parseDomain(asciiDomain(name))
		if err != nil {
			return nil, err
		}
		return []Entry{h.entry(KindOrigin, "spf:"+name, "", "")}, nil
	case ok && kind == "provider" && name != "":
		return []Entry{h.entry(KindOrigin, "provider:"+name, "", "")}, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is6() && p.Bits() == max(g.policy.Mask6, 64) {
		return g.Keys(p.Addr().String())
	}
	return nil, fmt.Errorf("%s is not a key, address, net:NETWORK, spf:DOMAIN or SENDER,RECIPIENT", quoted(text))
}

// Allow makes what Keys finds for the text a pass. Networks are for lists of
// clients.
func (g *Greylist) Allow(ctx context.Context, t time.Time, text string) error {
	entries, err := g.Keys(text)
	if err != nil {
		return err
	}
	e := entries[0]
	if strings.HasPrefix(strings.ToLower(text), "net:") {
		return fmt.Errorf("%s: a network belongs in a list of allowed clients", text)
	}
	switch k := e.Key.Kind(); k {
	case KindPair:
		if strings.HasPrefix(text, NullSender) || strings.HasPrefix(text, ",") {
			return fmt.Errorf("%s: everybody sends bounces; allow the address of the client, or list it", text)
		}
	case KindOrigin, KindAttempt, KindLearned:
	default:
		return fmt.Errorf("%s is the key of a %s record, which cannot pass", text, k)
	}
	if !g.clear {
		e.Record = Record{}
	}
	now := t.UnixMilli()
	return g.store.Update(ctx, []Key{e.Key}, func(recs []Record) {
		r := &recs[0]
		if r.State == Absent {
			*r = e.Record
			r.First = now
		}
		r.State, r.Last, r.Nets, r.Net = Pass, now, "", ""
	})
}

// Delete removes what Keys finds for the text, and the attempts that it names as
// far as they are stored in clear: those of an address's network, of an origin,
// or of a sender and recipient. It says how many records that was.
func (g *Greylist) Delete(ctx context.Context, text string) (removed int, err error) {
	entries, err := g.Keys(text)
	if err != nil {
		return 0, err
	}
	var keys []Key
	for _, e := range entries {
		keys = append(keys, e.Key)
	}
	if named := attemptsOf(text); named != nil {
		for e, err := range g.store.All(ctx) {
			if err != nil {
				return 0, err
			}
			if e.Key.Kind() == KindAttempt && named(e.Record) {
				keys = append(keys, e.Key)
			}
		}
	}
	for step := range slices.Chunk(keys, importStep) {
		n := new(int)
		err := g.store.Update(ctx, step, func(recs []Record) {
			*n = 0
			for i := range recs {
				if recs[i].State != Absent {
					*n++
				}
				recs[i] = Record{}
			}
		})
		if err != nil {
			return removed, err
		}
		removed += *n
	}
	return removed, nil
}

// attemptsOf says which attempts an operator means, nil if by a text that names
// one record.
func attemptsOf(text string) func(Record) bool {
	if _, err := ParseKey(text); err == nil {
		return nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap().WithZone("")
		return func(r Record) bool {
			p, err := netip.ParsePrefix(strings.TrimPrefix(r.Origin, "net:"))
			return err == nil && p.Contains(addr)
		}
	}
	if sender, rcpt, ok := strings.Cut(text, ","); ok {
		rcpt = NormalizeRcpt(unbracket(rcpt))
		sender = NormalizeSender(unbracket(sender), rcpt)
		_, domain := splitAddr(sender)
		return func(r Record) bool {
			return r.Rcpt == rcpt && (r.Sender == sender || r.Sender == "" && r.Origin == "spf:"+domain)
		}
	}
	origin := strings.TrimSuffix(strings.ToLower(text), ".")
	if p, err := netip.ParsePrefix(strings.TrimPrefix(origin, "net:")); err == nil {
		origin = "net:" + p.Masked().String()
	}
	return func(r Record) bool { return r.Origin == origin }
}
