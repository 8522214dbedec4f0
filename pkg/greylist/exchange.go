package greylist

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"

	"strconv"
	"strings"
	"time"

	"opensmtpd-filters/pkg/ipset"
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

// dateOf keeps to the years that JSON has (RFC 3339), and to whole seconds, which
// is all that many programs read.
func dateOf(ms int64) time.Time {
	const end = 253402300799999 // of the year 9999
	return time.UnixMilli(min(max(ms, 0), end)).UTC().Truncate(time.Second)
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

// Imported is what an import has found.
type Imported struct {
	Stored  int      // records
	Traps   []string // recipients for a list of traps
	Clients []string // networks for a list of clients: they are too large to be records
}

// Import reads records: lines of Export, of spamdb(8), of "db_dump -p" for both
// databases of postgrey, and addresses and networks as of a table of pf(4). What was
// stored before stays if it is newer. A line that is none of these gives an error
// "file:line: reason" and is skipped; many give one. Trouble of the store ends the
// import. Lines that carry no record, or an expired one, do not count.
func (g *Greylist) Import(ctx context.Context, t time.Time, r io.Reader, file string) (Imported, []error) {
	h, err := g.hash()
	if err != nil {
		return Imported{}, []error{err}
	}
	br := bufio.NewReaderSize(r, maxImportLine)
	if err := foreign(br, file); err != nil {
		return Imported{}, []error{err}
	}
	im := importer{greylist: g, hasher: h, now: t.UnixMilli()}
	bad := badLines{file: file}
	var batch []Entry
	flush := func() error {
		n, err := g.merge(ctx, batch)
		im.found.Stored += n
		batch = batch[:0]
		return err
	}
	add := func(e Entry) error {
		if !g.Expired(t)(e.Key, e.Record) {
			batch = append(batch, e)
		}
		if len(batch) < importBatch {
			return nil
		}
		return flush()
	}
	for n := 1; ; n++ {
		b, err := br.ReadSlice('\n')
		line := strings.TrimRight(string(b), "\r\n")
		if err == bufio.ErrBufferFull {
			bad.add(n, errors.New("line too long"))
			line = ""
		}
		for err == bufio.ErrBufferFull {
			_, err = br.ReadSlice('\n')
		}
		if err != nil && err != io.EOF {
			bad.add(n, err)
			break
		}
		e, ok, wrong := im.line(line)
		switch {
		case wrong != nil:
			bad.add(n, wrong)
		case strings.Trim(line, " \t") != "" && line[0] != '#':
			bad.good++
		}
		if ok {
			if err := add(e); err != nil {
				return im.found, append(bad.errors(), err)
			}
		}
		if err == io.EOF {
			break
		}
	}
	for e := range im.hosts() {
		if err := add(e); err != nil {
			return im.found, append(bad.errors(), err)
		}
	}
	if err := flush(); err != nil {
		return im.found, append(bad.errors(), err)
	}
	return im.found, bad.errors()
}

const (
	importStep      = 500    // records of one step of the store
	importBatch     = 50_000 // sorted together
	maxImportErrors = 10
)

// noRecord is what a line is that no program writes which is known here.
type noRecord struct{ text string }

func (e noRecord) Error() string { return quoted(e.text) + " is no record" }

const importReads = "import reads lines of export, spamdb(8), db_dump -p of Postgrey's databases, addresses and networks"

// badLines are those of a file, few of which are told.
type badLines struct {
	file     string
	good     int
	told     []error
	more     int
	first    error // line that is no record
	foreign  int   // their number
	firstBad int
}

func (b *badLines) add(n int, err error) {
	if errors.As(err, new(noRecord)) {
		if b.foreign++; b.foreign == 1 {
			b.first, b.firstBad = err, n
		}
		return
	}
	if len(b.told) < maxImportErrors {
		b.told = append(b.told, fmt.Errorf("%s:%d: %w", b.file, n, err))
	} else {
		b.more++
	}
}

func (b *badLines) errors() []error {
	errs := b.told
	if b.more > 0 {
		errs = append(errs, fmt.Errorf("%s: %d more bad lines", b.file, b.more))
	}
	switch {
	case b.foreign == 0:
	case b.good == 0 && errs == nil:
		errs = append(errs, fmt.Errorf("%s: nothing in it is a record, as line %d: %w; %s", b.file, b.firstBad, b.first, importReads))
	case b.foreign == 1:
		errs = append(errs, fmt.Errorf("%s:%d: %w; %s", b.file, b.firstBad, b.first, importReads))
	default:
		errs = append(errs, fmt.Errorf("%s:%d: %w, nor are %d other lines; %s", b.file, b.firstBad, b.first, b.foreign-1, importReads))
	}
	return errs
}

// foreign says what a file is that has no lines, and what to do with it.
func foreign(br *bufio.Reader, file string) error {
	head, _ := br.Peek(512)
	begins := func(s string) bool { return strings.HasPrefix(string(head), s) }
	magic := func(at int) bool {
		if len(head) < at+4 {
			return false
		}
		for _, m := range []uint32{0x00053162, 0x00061561, 0x00042253} { // btree, hash, queue
			if binary.LittleEndian.Uint32(head[at:]) == m || binary.BigEndian.Uint32(head[at:]) == m {
				return true
			}
		}
		return false
	}
	switch {
	case begins("SQLite format 3\x00"):
		return fmt.Errorf("%s: is a database of SQLite; if it is one of filter-greylist, give what \"-store sqlite:FILE export\" prints", file)
	case magic(12):
		return fmt.Errorf("%s: is a Berkeley database; give what \"db_dump -p FILE\" prints", file)
	case magic(0):
		return fmt.Errorf("%s: is a Berkeley database; give what spamdb(8) prints", file)
	case begins("\x1f\x8b"), begins("BZh"), begins("\xfd7zXZ\x00"), begins("\x28\xb5\x2f\xfd"):
		return fmt.Errorf("%s: is compressed; give what is in it", file)
	case bytes.IndexByte(head, 0) >= 0:
		return fmt.Errorf("%s: is no text; %s", file, importReads)
	}
	return nil
}

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
	// Neighbours lie near each other in a store.
	slices.SortFunc(keys, func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
	for step := range slices.Chunk(keys, importStep) {
		n := new(int)
		err := g.store.Update(ctx, step, func(recs []Record) {
			*n = 0
			for i, k := range step {
				if newer(byKey[k], recs[i]) {
					recs[i] = byKey[k]
					*n++
				}
			}
		})
		if err != nil {
			return stored, err
		}
		stored += *n
	}
	return stored, nil
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
	hex      bool   // that was made without -p
	dumpKey  string // waits for its value
	hasKey   bool
	nets     []netip.Prefix // of a table
	not      []netip.Prefix // that it excludes
	found    Imported
}

// line reads one line. Ok is false if it carries no record.
func (im *importer) line(s string) (e Entry, ok bool, err error) {
	switch {
	case im.dump && s == "DATA=END":
		im.dump, im.hasKey = false, false
		return
	case im.dump:
		im.hasKey = !im.hasKey
		if s, err = im.undump(strings.TrimPrefix(s, " ")); im.hasKey {
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
		if name == "format" {
			im.hex = s == "format=bytevalue"
		}
		return e, false, err
	}
	return im.plain(s)
}

// plain reads a line of a table of addresses. A network waits until it is known what
// the table excludes.
func (im *importer) plain(s string) (e Entry, ok bool, err error) {
	word, _, _ := strings.Cut(s, "#")
	word, not := strings.CutPrefix(strings.TrimSpace(word), "!")
	net, err := ipset.ParsePrefix(strings.TrimSpace(word))
	if err != nil {
		return e, false, noRecord{s}
	}
	if !not && net.IsSingleIP() {
		return im.pass(net.Addr()), true, nil
	}
	if not {
		im.not = append(im.not, net)
	} else {
		im.nets = append(im.nets, net)
	}
	return e, false, nil
}

// pass is the record of an address that a table has.
func (im *importer) pass(a netip.Addr) Entry {
	e := im.hasher.entry(KindOrigin, hostOrigin(a, im.greylist.policy.Mask6), "", "")
	e.Record.State, e.Record.First, e.Record.Last = Pass, im.now, im.now
	return e
}

const maxHosts = 256 // of a network that become records

// hosts yields records for the networks of a table. Those with too many addresses
// are for a list.
func (im *importer) hosts() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, net := range im.nets {
			size := net.Addr().BitLen()
			if size == 128 {
				size = max(im.greylist.policy.Mask6, 64)
			}
			if size-net.Bits() > 8 {
				im.found.Clients = append(im.found.Clients, net.String())
				continue
			}
			a := net.Addr()
			for range min(maxHosts, 1<<max(0, size-net.Bits())) {
				if !slices.ContainsFunc(im.not, func(p netip.Prefix) bool { return p.Contains(a) }) && !yield(im.pass(a)) {
					return
				}
				a = nextHost(a, size)
			}
		}
	}
}

// nextHost is the address after one, or the next network of so many bits.
func nextHost(a netip.Addr, bits int) netip.Addr {
	b := a.AsSlice()
	for i, add := (bits-1)/8, 1<<(7-(bits-1)%8); i >= 0 && add > 0; i-- {
		sum := int(b[i]) + add
		b[i], add = byte(sum), sum>>8
	}
	next, _ := netip.AddrFromSlice(b)
	return next
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
	if kind == 0 || r.State == Absent || !netsFit(kind, r.Nets) || len(r.Net) != 0 && len(r.Net) != groupLen {
		return e, false, noRecord{s}
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

// netsFit says whether what a record has as networks can be that.
func netsFit(k Kind, nets string) bool {
	if k == KindProvider {
		return len(nets) <= maxNetworks
	}
	return len(nets) <= maxNets*netLen && len(nets)%netLen == 0
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
		if len(f) != 2 || !strings.Contains(f[1], "@") {
			return e, false, errors.New("not a line of spamdb")
		}
		im.found.Traps = append(im.found.Traps, unbracket(f[1]))
		return e, false, nil
	case "TRAPPED":
		if len(f) != 3 {
			return e, false, errors.New("not a line of spamdb")
		}
	case "WHITE", "GREY":
		if len(f) != 9 && len(f) != 10 {
			return e, false, errors.New("not a line of spamdb")
		}
	default:
		return e, false, noRecord{s}
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
	e.Record.Client = addr.String() + " -"
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

// undump undoes what db_dump does to a key or value.
func (im *importer) undump(s string) (string, error) {
	if im.hex {
		b, err := hex.DecodeString(s)
		return string(b), err
	}
	return unprint(s)
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
