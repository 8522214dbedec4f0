package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"opensmtpd-filters/pkg/exempt"
	"opensmtpd-filters/pkg/greylist"
	"opensmtpd-filters/pkg/greylist/sqlite"
)

var noon = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

func testSecret() ([]byte, error) { return []byte("0123456789abcdef"), nil }

// A desk is an operator and the filter beside which he works.
type desk struct {
	filter *greylist.Greylist
	operator
	out bytes.Buffer
}

// desks have the stores, each as the filter and the operator open them.
var desks = map[string]func(t *testing.T) (filter, operator greylist.Store){
	"memory": func(t *testing.T) (greylist.Store, greylist.Store) {
		m := greylist.NewMemory(0)
		return m, m
	},
	"sqlite": func(t *testing.T) (greylist.Store, greylist.Store) {
		path := filepath.Join(t.TempDir(), "greylist.db")
		filter := sqlite.Open(sqlite.Options{Path: path})
		filter.Get(t.Context(), []greylist.Key{{}}) // it is there now
		operator := sqlite.Open(sqlite.Options{Path: path, Existing: true})
		t.Cleanup(func() { operator.Close(); filter.Close() })
		return filter, operator
	},
}

func newDesk(filter, operator greylist.Store, clear bool) *desk {
	d := &desk{filter: greylist.New(greylist.Options{Store: filter, Secret: testSecret, Clear: clear})}
	d.operator = operatorOf(operator, clear)
	d.operator.out = &d.out
	return d
}

func operatorOf(s greylist.Store, clear bool) operator {
	return operator{
		greylist: greylist.New(greylist.Options{Store: s, Secret: testSecret, Clear: clear}),
		clear:    clear, in: strings.NewReader(""), now: noon,
	}
}

func forEachDesk(t *testing.T, clear bool, f func(t *testing.T, d *desk)) {
	for name, open := range desks {
		t.Run(name, func(t *testing.T) {
			filter, operator := open(t)
			f(t, newDesk(filter, operator, clear))
		})
	}
}

// attempt has the filter decide so long before noon.
func (d *desk) attempt(t *testing.T, ago time.Duration, addr, from, rcpt, spf string) greylist.Reason {
	t.Helper()
	a := greylist.Attempt{
		Time: noon.Add(-ago), Sender: from, Rcpts: []string{rcpt},
		Client: greylist.Client{Addr: netip.MustParseAddr(addr), Name: "host.isp.example", Class: greylist.Generic},
	}
	if spf != "" {
		a.SPF = greylist.SPFResult{Status: greylist.SPFPass, Domain: spf, Frees: true}
	}
	dec, err := d.filter.Decide(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return dec.Reason
}

// run returns what a command prints.
func (d *desk) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	d.out.Reset()
	err := d.command(t.Context(), args)
	return d.out.String(), err
}

func (d *desk) mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.run(t, args...)
	if err != nil {
		t.Fatalf("%s: %v", args, err)
	}
	return out
}

// same compares line by line, without what aligns columns.
func same(t *testing.T, got, want string) {
	t.Helper()
	strip := func(s string) string {
		return strings.TrimSpace(regexp.MustCompile(`(?m) +$|^[ \t]+`).ReplaceAllString(s, ""))
	}
	if got, want = strip(got), strip(want); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestWrongUse(t *testing.T) {
	d := newDesk(greylist.NewMemory(0), greylist.NewMemory(0), true)
	for _, tt := range []struct {
		args, want string
	}{
		{"list passes", "usage: filter-greylist [flags] list [grey|pass|pair|list] [WHAT...] [-json]; WHAT is client="},
		{"list grey pass", "usage: "},
		{"list -store x", "flags come before the command"},
		{"allow", "usage: filter-greylist [flags] allow KEY..."},
		{"delete", "usage: filter-greylist [flags] delete KEY...|WHAT..."},
		{"delete -json 192.0.2.1", "flags come before the command"},
		{"stats all", "usage: filter-greylist [flags] stats [client|sender|rcpt] [WHAT...] [-since TIME] [-json]; "},
		{"export -json", "flags come before the command"},
		{"export file", "usage: filter-greylist [flags] export"},
		{"list sender=", `"sender=": there is no text`},
		{"list rcpt=a*b", `"rcpt=a*b": * stands at either end only`},
		{"list to=bob@b.example", "usage: "},
		{"allow sender=a@b.example", `"a@b.example" is no key: give SENDER,RECIPIENT, or `},
		{"delete 192.0.2.1 rcpt=bob@b.example", "usage: "},
		{"stats -since", "stats -since -: not a time"},
		{"stats -since x", "stats -since x: not a time"},
		{"stats -for 1h", "flags come before the command"},
		{"expect", "usage: filter-greylist [flags] expect DOMAIN|USER@DOMAIN|ADDRESS [-for TIME] [RECIPIENT]"},
		{"expect x.example -for 0", "less than 1s"},
		{"expect x.example bob", `expect: "bob" is not the address of a recipient`},
		{"expect x", `expect: "x" is not a domain, an address of mail or of a client`},
		{"expect a@x.example b@y.example c@z.example", "usage: "},
		{"providers google", "usage: filter-greylist [flags] providers [-json]"},
	} {
		out, err := d.run(t, strings.Fields(tt.args)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%q: %q, %v", tt.args, out, err)
		}
	}
}

func TestList(t *testing.T) {
	forEachDesk(t, true, func(t *testing.T, d *desk) {
		d.attempt(t, 90*time.Minute, "203.0.113.7", "", "bob@rcpt.example", "")
		d.attempt(t, time.Hour, "203.0.113.7", "", "bob@rcpt.example", "")
		d.attempt(t, 25*time.Hour, "192.0.2.99", "late@s.example", "bob@rcpt.example", "") // has expired
		d.attempt(t, 21*time.Second, "192.0.2.1", "Alice@s.example", "bob@rcpt.example", "s.example")
		d.filter.Learn(t.Context(), greylist.Letter{Time: noon.Add(-240 * 24 * time.Hour), From: "bob@rcpt.example", To: []string{"old@s.example"}}) // too
		d.filter.Learn(t.Context(), greylist.Letter{Time: noon.Add(-2 * time.Hour), From: "bob@rcpt.example", To: []string{"carol@s.example"}})
		d.filter.Trap(t.Context(), greylist.Attempt{
			Time: noon.Add(-2 * time.Minute), Client: greylist.Client{Addr: netip.MustParseAddr("198.51.100.4"), Class: greylist.NoName}, Sender: "x@y.example", Rcpts: []string{"trap@rcpt.example"},
		})
		const (
			head  = "state  kind     tries  first            last             left  expires          origin            sender           recipient\n"
			young = "grey   attempt  1      Jan 15 11:59:39  Jan 15 11:59:39  39s   Jan 16 11:59:39  "
			trap  = "grey   trap     1      Jan 15 11:58:00  Jan 15 11:58:00  -     Jan 16 11:58:00  198.51.100.4"
		)
		out := d.mustRun(t, "list", "grey")
		// Of records with the same times the key decides.
		spf, net := young+"spf:s.example     -                bob@rcpt.example\n", young+"net:192.0.2.0/24  alice@s.example  bob@rcpt.example\n"
		if strings.Index(out, "spf:") > strings.Index(out, "net:192") {
			spf, net = net, spf
		}
		same(t, out, head+spf+net+trap+"      -                -\n")
		same(t, d.mustRun(t, "list", "pass"), `
			state  kind     tries  first            last             left  expires          origin              sender  recipient
			pass   origin   1      Jan 15 10:30:00  Jan 15 11:00:00  -     Feb 20 11:00:00  203.0.113.7         -       -
			pass   attempt  2      Jan 15 10:30:00  Jan 15 11:00:00  -     Feb 20 11:00:00  net:203.0.113.0/24  <>      bob@rcpt.example`)
		same(t, d.mustRun(t, "list", "pair"), `
			state  kind     tries  first            last             left  expires          origin     sender           recipient
			grey   pair     1      Jan 15 11:59:39  Jan 15 11:59:39  -     Jan 16 11:59:39  -          alice@s.example  bob@rcpt.example
			pass   reply    1      Jan 15 10:00:00  Jan 15 10:00:00  -     Jan 22 10:00:00  s.example  -                bob@rcpt.example
			pass   learned  1      Jan 15 10:00:00  Jan 15 10:00:00  -     Feb 20 10:00:00  -          carol@s.example  bob@rcpt.example`)
		if n := strings.Count(d.mustRun(t, "list"), "\n"); n != 9 {
			t.Errorf("%d lines, want a head and 8 records", n)
		}
		for _, args := range [][]string{{"list", "-json", "grey"}, {"list", "grey", "--json"}} {
			out := d.mustRun(t, args...)
			if strings.Count(out, "\n") != 3 {
				t.Errorf("%s: %s", args, out)
			}
			for line := range strings.Lines(out) {
				var r listedJSON
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					t.Fatal(err)
				}
				if k, err := greylist.ParseKey(r.Key); err != nil || k.Kind().String() != r.Kind {
					t.Errorf("key %q of kind %q: %v", r.Key, r.Kind, err)
				}
				switch {
				case r.Kind == "trap" && (!r.Passes.IsZero() || !r.Expires.Equal(noon.Add(24*time.Hour-2*time.Minute))),
					r.Kind == "attempt" && !r.Passes.Equal(noon.Add(39*time.Second)):
					t.Errorf("%+v", r)
				}
			}
		}
	})
}

// Without addresses there are keys, and a retry may come.
func TestListKeys(t *testing.T) {
	forEachDesk(t, false, func(t *testing.T, d *desk) {
		d.attempt(t, time.Hour, "192.0.2.1", "alice@s.example", "bob@rcpt.example", "")
		m := regexp.MustCompile(`\n(grey   attempt .* 0s .*)  ([0-9a-f]{32})  -       -\n$`).FindStringSubmatch(d.mustRun(t, "list", "grey"))
		if m == nil {
			t.Fatalf("%s", &d.out)
		}
		same(t, d.mustRun(t, "delete", m[2]), m[2]+": deleted 1 record")
		if n := strings.Count(d.mustRun(t, "list", "grey"), "\n"); n != 1 {
			t.Errorf("%s", &d.out)
		}
	})
}

// What a client sent does nothing to the terminal.
func TestClean(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "-"},
		{"a|b@x.example", "a|b@x.example"},
		{"jürgen@x.example", "jürgen@x.example"},
		{"\x1b[2J@x.example", `"\x1b[2J@x.example"`},
		{"a b@x.example", `"a b@x.example"`},
		{"a\u202eb@x.example", `"a\u202eb@x.example"`},
		{"a\x9bb@x.example", `"a\x9bb@x.example"`},
		{"a\u009bb@x.example", `"a\u009bb@x.example"`},
		{`"a"@x.example`, `"\"a\"@x.example"`},
	} {
		if got := clean(tt.in); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.in, got, tt.want)
		}
	}
	d := newDesk(greylist.NewMemory(0), nil, true)
	d.greylist = d.filter
	d.attempt(t, time.Hour, "192.0.2.1", "\x1b[2J\t@s.example", "bob@rcpt.example", "")
	if out := d.mustRun(t, "list"); strings.ContainsAny(out, "\x1b\t") {
		t.Errorf("%q", out)
	}
}

// An endless store has that many records, and then perhaps an error.
type endless struct {
	*greylist.Memory
	n   int
	err error
}

func (s endless) All(context.Context) iter.Seq2[greylist.Entry, error] {
	return func(yield func(greylist.Entry, error) bool) {
		for i := s.n - 1; i >= 0; i-- {
			e := greylist.Entry{
				Key:    greylist.Key{byte(i >> 16), byte(i >> 8), byte(i), 15: byte(greylist.KindAttempt)},
				Record: greylist.Record{State: greylist.Grey, First: noon.UnixMilli(), Last: noon.UnixMilli() - int64(i)},
			}
			if !yield(e, nil) {
				return
			}
		}
		if s.err != nil {
			yield(greylist.Entry{}, s.err)
		}
	}
}

func TestListMany(t *testing.T) {
	const limit, more = 100, 310
	d := newDesk(nil, endless{greylist.NewMemory(0), limit + more, nil}, false)
	if err := d.listTable(d.records(t.Context(), "", greylist.What{}), &d.out, limit); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(d.out.String(), "\n")
	if len(lines) != limit+3 || lines[limit+1] != "and 310 that were used before these; -json shows all" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-2])
	}
	for i, line := range lines[1 : limit+1] {
		if key := (greylist.Key{1: byte(i >> 8), 2: byte(i), 15: byte(greylist.KindAttempt)}); !strings.Contains(line, key.String()) {
			t.Errorf("line %d is %s", i, line)
		}
	}
	if n := strings.Count(d.mustRun(t, "list", "-json"), "\n"); n != limit+more {
		t.Errorf("%d lines of JSON", n)
	}
}

// What could be read is shown.
func TestListError(t *testing.T) {
	broken := errors.New("disk I/O error")
	for _, args := range [][]string{{"list"}, {"list", "-json"}, {"export"}} {
		d := newDesk(nil, endless{greylist.NewMemory(0), 3, broken}, false)
		if out, err := d.run(t, args...); !errors.Is(err, broken) || strings.Count(out, "\n") < 3 {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
}

func TestListFiles(t *testing.T) {
	dir := t.TempDir()
	clients, senders := filepath.Join(dir, "clients"), filepath.Join(dir, "senders")
	os.WriteFile(clients, []byte("\ufeff192.0.2.0/24 # ours\n\nno such line here\n/^mx[0-9]#/\nmail.example"), 0o600)
	os.WriteFile(senders, []byte("# none\n!s.example\n"), 0o600)
	d := newDesk(greylist.NewMemory(0), nil, true)
	same(t, d.mustRun(t, "list", "list"), "list  entry  place")
	d.lists = func() ([]listEntry, error) {
		c, err := readList("-allowClients", []string{clients}, exempt.ParseClients)
		s, err2 := readList("-allowSenders", []string{senders}, exempt.ParseSenders)
		return append(c, s...), errors.Join(err, err2)
	}
	same(t, strings.ReplaceAll(d.mustRun(t, "list", "list"), dir+"/", ""), `
		list           entry         place
		-allowClients  192.0.2.0/24  clients:1
		-allowClients  /^mx[0-9]#/   clients:4
		-allowClients  mail.example  clients:5
		-allowSenders  !s.example    senders:2`)
	want := fmt.Sprintf("{\"list\":\"-allowSenders\",\"entry\":\"!s.example\",\"place\":\"%s:2\"}\n", senders)
	if out := d.mustRun(t, "list", "list", "-json"); !strings.HasSuffix(out, want) {
		t.Errorf("%s", out)
	}
	os.Remove(senders)
	if out, err := d.run(t, "list", "list"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAllowDelete(t *testing.T) {
	forEachDesk(t, true, func(t *testing.T, d *desk) {
		if r := d.attempt(t, time.Minute, "192.0.2.1", "alice@s.example", "bob@rcpt.example", ""); r != greylist.Unseen {
			t.Fatal(r)
		}
		out, err := d.run(t, "allow", "192.0.2.1", "net:192.0.2.0/24", "hello", "spf:S.example", "dave@t.example,bob@rcpt.example")
		same(t, out, "192.0.2.1: allowed\nspf:S.example: allowed, mail for which SPF passes\n"+
			"dave@t.example,bob@rcpt.example: allowed, mail of clients whose name is confirmed and not that of a home line, unless SPF says they may not send it")
		want := "net:192.0.2.0/24: a network belongs in a list of -allowClients\n" +
			`"hello" is not a key, address, net:NETWORK, spf:DOMAIN, provider:NAME or SENDER,RECIPIENT`
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		// The running filter knows.
		for _, tt := range []struct {
			addr, from, spf string
			want            greylist.Reason
		}{
			{"192.0.2.1", "alice@s.example", "", greylist.Known},
			{"203.0.113.9", "alice@s.example", "s.example", greylist.Known},
			{"203.0.113.9", "Dave+news@t.example", "", greylist.Paired},
			{"203.0.113.9", "eve@t.example", "", greylist.Unseen},
		} {
			if r := d.attempt(t, 0, tt.addr, tt.from, "bob@rcpt.example", tt.spf); r != tt.want {
				t.Errorf("%+v: %s", tt, r)
			}
		}
		d.filter.Trap(t.Context(), greylist.Attempt{Time: noon, Client: greylist.Client{Addr: netip.MustParseAddr("192.0.2.8"), Class: greylist.NoName}, Sender: "x@y.example", Rcpts: []string{"trap@rcpt.example"}})
		out, err = d.run(t, "delete", "192.0.2.1", "192.0.2.9", "192.0.2.8", "net:192.0.2.0/24")
		if err == nil || err.Error() != "192.0.2.9: no such record\nnet:192.0.2.0/24: no such record" {
			t.Errorf("%v", err)
		}
		same(t, out, "192.0.2.1: deleted 3 records\n192.0.2.8: deleted 1 record")
		if out := d.mustRun(t, "list", "pass"); strings.Contains(out, "192.0.2.1") || !strings.Contains(out, "spf:s.example") {
			t.Errorf("%s", out)
		}
	})
}

func TestImportExport(t *testing.T) {
	forEachDesk(t, true, func(t *testing.T, d *desk) {
		dump := filepath.Join(t.TempDir(), "dump")
		white := fmt.Sprintf("WHITE|192.0.2.%%d|||%d|%d|%d|3|20\n", noon.Unix()-1000, noon.Unix()-500, noon.Unix()+86400)
		os.WriteFile(dump, fmt.Appendf(nil, white+"nonsense\n"+white, 1, 2), 0o600)
		d.in = strings.NewReader(fmt.Sprintf(white+"WHITE|x\n", 3))
		out, err := d.run(t, "import", dump, "-", dump+".none")
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, want := range []string{dump + `:2: "nonsense" is no record`, "stdin:2: ", dump + ".none: no such file"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: not %s", err, want)
			}
		}
		same(t, strings.ReplaceAll(out, dump, "dump"), "dump: 2 records stored\nstdin: 1 record stored\ndump.none: 0 records stored")
		if r := d.attempt(t, 0, "192.0.2.3", "alice@s.example", "bob@rcpt.example", ""); r != greylist.Known {
			t.Error(r)
		}
		d.attempt(t, 0, "203.0.113.1", "alice@s.example", "bob@rcpt.example", "s.example")

		other := newDesk(greylist.NewMemory(0), nil, true)
		other.greylist = other.filter
		text := d.mustRun(t, "export")
		other.in = strings.NewReader(text)
		same(t, other.mustRun(t, "import"), fmt.Sprintf("stdin: %d records stored", strings.Count(text, "\n")))
		same(t, other.mustRun(t, "list"), d.mustRun(t, "list"))
		other.in = strings.NewReader(text)
		same(t, other.mustRun(t, "import"), "stdin: 0 records stored")
	})
}

// flush has the filter store what it has counted, as it does every minute.
func (d *desk) flush(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.filter.Run(ctx, func() time.Time { return time.Time{} }, nil)
}

func TestStats(t *testing.T) {
	forEachDesk(t, true, func(t *testing.T, d *desk) {
		if out := d.mustRun(t, "stats"); strings.Contains(out, "NaN") || strings.Contains(out, "#") || !strings.Contains(out, "came again\n    none") {
			t.Errorf("%s", out)
		}
		for i, delay := range []time.Duration{time.Minute, 5 * time.Minute, 301 * time.Second, 302 * time.Second, 303 * time.Second, 5 * time.Hour} {
			addr, from := fmt.Sprintf("192.0.%d.1", i), fmt.Sprintf("u%s@s.example", strings.Repeat("x", i))
			d.attempt(t, 6*time.Hour, addr, from, "bob@rcpt.example", "")
			d.attempt(t, 6*time.Hour-delay, addr, from, "bob@rcpt.example", "")
			d.attempt(t, time.Minute, addr, from, "bob@rcpt.example", "")
		}
		d.attempt(t, time.Hour, "203.0.113.1", "a@s.example", "bob@rcpt.example", "")
		d.attempt(t, time.Hour, "203.0.113.1", "b@s.example", "bob@rcpt.example", "")
		d.attempt(t, time.Hour, "198.51.100.1", "c@s.example", "bob@rcpt.example", "")
		d.flush(t)
		out := d.mustRun(t, "stats")
		same(t, out, `
        grey       pass  records of
           0          6  addresses and domains
           3          6  origin, sender and recipient
           9          0  sender and recipient
           0          0  addresses that wrote to a trap
           8          0  clients whose attempts are counted
           0          0  clients and domains vouched for
           0          0  people to whom our users have written
           0          0  what is expected
           0          0  domains from which our users expect answers
           0          0  domains of ours
           0          0  users who have written today
           0          0  large mail providers

decisions: 21
           9  42.9%  new      refused, not seen before
           0   0.0%  early    refused, came again too early
           0   0.0%  late     refused, came again too late
           0   0.0%  trapped  refused, wrote to a trap
           6  28.6%  retry    accepted, came again
           6  28.6%  known    accepted, came again before
           0   0.0%  pair     accepted, sender and recipient know each other
           0   0.0%  expected accepted, expected
           0   0.0%  vouched  accepted, vouched for
           0   0.0%  exempt   accepted, on a list

not vouched for: 21
          21 100.0%  generic

retries accepted: 6, by the time since the first attempt
 <= 1 min          1  16.7%  ################
 <= 2 min          0   0.0%
 <= 5 min          1  16.7%  ################
<= 10 min          3  50.0%  ################################################
<= 15 min          0   0.0%
<= 30 min          0   0.0%
   <= 1 h          0   0.0%
   <= 2 h          0   0.0%
   <= 4 h          0   0.0%
   <= 8 h          1  16.7%  ################
  <= 24 h          0   0.0%
   > 24 h          0   0.0%

networks that never came again
           2  203.0.113.0/24
           1  198.51.100.0/24`)
		for line := range strings.Lines(out) {
			if len(line) > 81 {
				t.Errorf("wider than 80 columns: %s", line)
			}
		}
		var j struct {
			Records map[string]map[string]int64
			Reasons map[string]int64
			Delays  []delayJSON
			Silent  []greylist.Silent
		}
		if err := json.Unmarshal([]byte(d.mustRun(t, "stats", "-json")), &j); err != nil {
			t.Fatal(err)
		}
		if j.Records["origin"]["pass"] != 6 || j.Reasons["new"] != 9 || len(j.Silent) != 2 || len(j.Delays) != len(greylist.DelayBounds())+1 ||
			j.Delays[3] != (delayJSON{300, 600, 3}) || j.Delays[len(j.Delays)-1] != (delayJSON{86400, 0, 0}) {
			t.Errorf("%s", &d.out)
		}
	})
	d := newDesk(greylist.NewMemory(0), greylist.NewMemory(0), false)
	if out := d.mustRun(t, "stats"); !strings.Contains(out, "needs -storeAddresses") {
		t.Errorf("%s", out)
	}
	if out := d.mustRun(t, "stats", "-json"); !strings.Contains(out, `"silent":[]`) {
		t.Errorf("%s", out)
	}
}

// A database that is not there is said so, and not made.
func TestNoDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "greylist.db")
	s := sqlite.Open(sqlite.Options{Path: path, Existing: true})
	defer s.Close()
	d := newDesk(nil, s, true)
	for _, args := range [][]string{{"list"}, {"list", "-json"}, {"stats"}, {"export"}, {"allow", "192.0.2.1"}, {"delete", "192.0.2.1"}} {
		if _, err := d.run(t, args...); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
