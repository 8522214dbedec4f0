package rdns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// A zone is a resolver that knows these records. A name or address with the
// value "fail" gets no clear answer; what is not there does not exist.
type zone map[string]string

func (z zone) get(ctx context.Context, key string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch v := z[key]; v {
	case "":
		return nil, &net.DNSError{Err: "no such host", Name: key, IsNotFound: true}
	case "fail":
		return nil, &net.DNSError{Err: "server failure", Name: key, IsTemporary: true}
	default:
		return strings.Fields(v), nil
	}
}

func (z zone) PTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	return z.get(ctx, addr.String())
}

func (z zone) addrs(ctx context.Context, name string, v4 bool) ([]netip.Addr, error) {
	all, err := z.get(ctx, strings.ToLower(name))
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, s := range all {
		if a := netip.MustParseAddr(s); a.Is4() == v4 {
			addrs = append(addrs, a)
		}
	}
	if addrs == nil {
		return nil, &net.DNSError{Err: "no such record", Name: name, IsNotFound: true}
	}
	return addrs, nil
}

func (z zone) A(ctx context.Context, name string) ([]netip.Addr, error) {
	return z.addrs(ctx, name, true)
}

func (z zone) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	return z.addrs(ctx, name, false)
}

const long = "2a02-8388-6582-fe80-0000-0000-0000-0006.cable.dynamic.v6.surfer.at"

func TestJudge(t *testing.T) {
	const (
		dyn  = "p5ddb3ec9.dip0.t-ipconnect.de"
		mail = "mail.example.org"
	)
	addr := netip.MustParseAddr("93.219.62.201")
	six := netip.MustParseAddr("2a02:8388:6582:fe80::6")
	tests := []struct {
		what  string
		zone  zone
		c     Client
		class Class
		name  string
		why   string // part of the evidence
	}{
		{"a proper name needs no query", zone{mail: "fail", addr.String(): "fail"},
			Client{addr, mail, true, "x.example"}, Proper, mail, ""},
		{"dynamic", nil, Client{addr, dyn, true, ""}, Dynamic, dyn, "embed=4 hex"},
		{"mapped address", nil, Client{netip.MustParseAddr("::ffff:93.219.62.201"), dyn, true, ""}, Dynamic, dyn, ""},

		{"no name, clearly", nil, Client{addr, Unknown, false, ""}, None, "", "no name"},
		{"the root as a name", zone{addr.String(): "."}, Client{addr, "", false, ""}, None, "", ""},
		{"no name because of the DNS", zone{addr.String(): "fail"}, Client{addr, Unknown, false, ""}, Proper, "", "dns=unclear"},
		{"no name, but there is one", zone{addr.String(): mail + ".", mail: addr.String()},
			Client{addr, Unknown, false, ""}, Proper, mail, ""},
		{"no name, but there is a dynamic one", zone{addr.String(): dyn, dyn: addr.String()},
			Client{addr, Unknown, false, ""}, Dynamic, dyn, "embed=4 hex"},
		{"no name, but there is a bogus one", zone{addr.String(): "localhost"}, Client{addr, Unknown, false, ""}, Bogus, "localhost", ""},
		{"no name, but there is an allowed one", zone{addr.String(): "p5ddb3ec9.allowed.example", "p5ddb3ec9.allowed.example": addr.String()},
			Client{addr, Unknown, false, ""}, Proper, "p5ddb3ec9.allowed.example", "allow="},
		{"no name, but an allowed one of another", zone{addr.String(): "mx.allowed.example"},
			Client{addr, Unknown, false, ""}, Mismatch, "mx.allowed.example", ""},
		{"no name, cleared by HELO", zone{mail: addr.String()}, Client{addr, Unknown, false, mail}, Proper, "", "helo=mail.example.org; was=none"},
		{"no name, HELO of another host", zone{mail: "192.0.2.1"}, Client{addr, Unknown, false, mail}, None, "", ""},
		{"no name, HELO dynamic", zone{dyn: addr.String()}, Client{addr, Unknown, false, dyn}, None, "", ""},
		{"mismatch, cleared by HELO", zone{addr.String(): "old.example.org", mail: addr.String()},
			Client{addr, "old.example.org", false, mail}, Proper, "old.example.org", "helo=mail.example.org; was=mismatch"},
		{"mismatch, HELO the same name", zone{addr.String(): mail}, Client{addr, mail, false, mail}, Mismatch, mail, ""},
		{"dot forgotten, cleared by HELO", zone{mail: addr.String()},
			Client{addr, mail + ".62.219.93.in-addr.arpa", false, mail}, Proper, mail + ".62.219.93.in-addr.arpa", "was=mismatch"},
		{"dot forgotten", nil, Client{addr, mail + ".62.219.93.in-addr.arpa", false, ""}, Mismatch, mail + ".62.219.93.in-addr.arpa", ""},

		{"mismatch, clearly", zone{addr.String(): mail}, Client{addr, mail, false, ""}, Mismatch, mail, ""},
		{"mismatch, another address", zone{addr.String(): mail, mail: "192.0.2.1"}, Client{addr, mail, false, ""}, Mismatch, mail, ""},
		{"mismatch, only the other family", zone{addr.String(): mail, mail: "2001:db8::1"}, Client{addr, mail, false, ""}, Mismatch, mail, ""},
		{"mismatch comes before the match list", zone{addr.String(): "a.matched.example"},
			Client{addr, "a.matched.example", false, ""}, Mismatch, "a.matched.example", ""},
		{"mismatch, but it does resolve", zone{mail: addr.String()}, Client{addr, mail, false, ""}, Proper, mail, ""},
		{"mismatch, but another name resolves", zone{addr.String(): mail + " b." + mail, "b." + mail: addr.String()},
			Client{addr, mail, false, ""}, Proper, "b." + mail, ""},
		{"no clear address", zone{addr.String(): mail, mail: "fail"}, Client{addr, mail, false, ""}, Proper, mail, "dns=unclear"},
		{"no clear other names", zone{addr.String(): "fail"}, Client{addr, mail, false, ""}, Proper, mail, "dns=unclear"},
		{"no clear address of a dynamic name", zone{dyn: "fail"}, Client{addr, dyn, false, ""}, Dynamic, dyn, "embed=4 hex"},
		{"bogus comes before mismatch", nil, Client{addr, "localhost", false, ""}, Bogus, "localhost", ""},

		{"cut", zone{six.String(): long, long: six.String()}, Client{six, long[:64], false, ""}, Dynamic, long, "embed=16"},
		{"as long as a cut name, but it resolves", zone{six.String(): "fail"},
			Client{six, "a" + long[3:], true, ""}, Dynamic, "a" + long[3:], "word=dynamic"},
		{"cut and mismatch", zone{six.String(): long}, Client{six, long[:64], false, ""}, Mismatch, long, ""},
		{"cut and not clear", zone{six.String(): "fail"}, Client{six, long[:64], false, ""}, Proper, strings.TrimSuffix(long[:64], "."), "dns=unclear"},

		{"allowed", nil, Client{addr, "p5ddb3ec9.allowed.example", true, ""}, Proper, "p5ddb3ec9.allowed.example", "allow=allow:2"},
		{"allowed, but not its name", nil, Client{addr, "x.allowed.example", false, ""}, Mismatch, "x.allowed.example", ""},
		{"allowed, but dynamic and not its name", nil, Client{addr, "p5ddb3ec9.allowed.example", false, ""}, Mismatch, "p5ddb3ec9.allowed.example", ""},
		{"allowed, and it does resolve", zone{"x.allowed.example": addr.String()}, Client{addr, "x.allowed.example", false, ""}, Proper, "x.allowed.example", "allow=allow:2"},
		{"allowed, and no clear address", zone{"x.allowed.example": "fail"}, Client{addr, "x.allowed.example", false, ""}, Proper, "x.allowed.example", "allow=allow:2"},
		{"allowed, but not its name, and no clear other names", zone{addr.String(): "fail"}, Client{addr, "x.allowed.example", false, ""}, Proper, "x.allowed.example", "dns=unclear"},
		{"allowed, but not its name, beside many", zone{addr.String(): "x.allowed.example a.example b.example c.example d.example"},
			Client{addr, "x.allowed.example", false, ""}, Proper, "x.allowed.example", "dns=unclear"},
		{"allowed, but not its name, beside one not clear", zone{addr.String(): "x.allowed.example a.example", "a.example": "fail"},
			Client{addr, "x.allowed.example", false, ""}, Proper, "a.example", "dns=unclear"},
		{"allowed, not clear, and never reported", zone{addr.String(): "a.example x.allowed.example", "x.allowed.example": "fail"},
			Client{addr, Unknown, false, ""}, Proper, "x.allowed.example", "dns=unclear"},
		{"bogus and allowed", zone{"intranet": addr.String()}, Client{addr, "intranet", false, ""}, Proper, "intranet", "allow=allow:3"},
		{"bogus and allowed, but not its name", nil, Client{addr, "intranet", false, ""}, Bogus, "intranet", ""},
		{"matched", nil, Client{addr, "mail.matched.example", true, ""}, Dynamic, "mail.matched.example", "match=match:1"},

		{"cleared by HELO", zone{mail: addr.String()}, Client{addr, dyn, true, "Mail.example.org."}, Proper, dyn, "helo=Mail.example.org; was=dynamic"},
		{"matched, cleared by HELO", zone{mail: addr.String()}, Client{addr, "a.matched.example", true, mail}, Proper, "a.matched.example", "helo="},
		{"bogus, cleared by HELO", zone{mail: addr.String()}, Client{addr, "localhost", true, mail}, Proper, "localhost", "helo="},
		{"HELO of another host", zone{mail: "192.0.2.1"}, Client{addr, dyn, true, mail}, Dynamic, dyn, ""},
		{"HELO not clear", zone{mail: "fail"}, Client{addr, dyn, true, mail}, Dynamic, dyn, ""},
		{"HELO dynamic itself", zone{dyn: addr.String()}, Client{addr, dyn, true, dyn}, Dynamic, dyn, ""},
		{"HELO matched itself", zone{"b.matched.example": addr.String()}, Client{addr, dyn, true, "b.matched.example"}, Dynamic, dyn, ""},
		{"HELO an address", zone{}, Client{addr, dyn, true, "[93.219.62.201]"}, Dynamic, dyn, ""},
		{"HELO one label", zone{"pc": addr.String()}, Client{addr, dyn, true, "pc"}, Dynamic, dyn, ""},
		{"HELO anybody can have", zone{"mail.93-219-62-201.sslip.example": addr.String()}, Client{addr, dyn, true, "mail.93-219-62-201.sslip.example"}, Dynamic, dyn, ""},
		{"no address", nil, Client{Name: dyn}, Proper, dyn, "no address"},
	}
	allow, _ := ParsePatterns(strings.NewReader("# ours\n*.allowed.example\n^intranet$\n"), "allow")
	match, _ := ParsePatterns(strings.NewReader(`.*\.matched\..*`), "match")
	for _, tt := range tests {
		j := &Judge{Resolver: tt.zone, Allow: allow, Match: match, Helo: true, Mismatch: true}
		f := j.Judge(t.Context(), tt.c)
		if f.Class != tt.class || f.Name != tt.name || !strings.Contains(f.Evidence, tt.why) {
			t.Errorf("%s: %s %q (%s), want %s %q (%s)", tt.what, f.Class, f.Name, f.Evidence, tt.class, tt.name, tt.why)
		}
	}

	for _, name := range []string{dyn, long[:64]} {
		f := new(Judge).Judge(t.Context(), Client{addr, name, false, mail})
		if want := map[string]Class{dyn: Dynamic}[name]; name == dyn && f.Class != want || name != dyn && f.Class != Proper {
			t.Errorf("without resolver: %s: %s (%s)", name, f.Class, f.Evidence)
		}
	}
	j := &Judge{Resolver: zone{mail: addr.String()}}
	if f := j.Judge(t.Context(), Client{addr, dyn, true, mail}); f.Class != Dynamic {
		t.Errorf("HELO clears although it is off: %s (%s)", f.Class, f.Evidence)
	}
}

// Who the client is, for other filters: the name counts when it is confirmed.
func TestJudgeConfirmed(t *testing.T) {
	const mail = "mail.example.org"
	addr := netip.MustParseAddr("93.219.62.201")
	six := netip.MustParseAddr("2a02:8388:6582:fe80::6")
	for _, tt := range []struct {
		what               string
		zone               zone
		c                  Client
		name               string
		confirmed, unclear bool
	}{
		{"the mail server says so", zone{mail: "fail"}, Client{addr, mail + ".", true, ""}, mail, true, false},
		{"the DNS says so", zone{mail: addr.String()}, Client{addr, mail, false, ""}, mail, true, false},
		{"another name", zone{addr.String(): "a.example b.example", "b.example": addr.String()}, Client{addr, mail, false, ""}, "b.example", true, false},
		{"another name, one not clear", zone{addr.String(): "a.example b.example", "a.example": "fail", "b.example": addr.String()}, Client{addr, mail, false, ""}, "b.example", true, false},
		{"none found, but there is one", zone{addr.String(): mail, mail: addr.String()}, Client{addr, Unknown, false, ""}, mail, true, false},
		{"cut", zone{six.String(): long, long: six.String()}, Client{six, long[:64], false, ""}, long, true, false},
		{"cut, and not its name", zone{six.String(): long}, Client{six, long[:64], false, ""}, long, false, false},
		{"cut, and not clear", zone{six.String(): "fail"}, Client{six, long[:64], false, ""}, strings.TrimSuffix(long[:64], "."), false, true},
		{"not its name", nil, Client{addr, mail, false, ""}, mail, false, false},
		{"no clear address", zone{mail: "fail"}, Client{addr, mail, false, ""}, mail, false, true},
		{"no clear other names", zone{addr.String(): "fail"}, Client{addr, mail, false, ""}, mail, false, true},
		{"no name", nil, Client{addr, Unknown, false, ""}, "", false, false},
		{"no name, and not clear", zone{addr.String(): "fail"}, Client{addr, Unknown, false, ""}, "", false, true},
		{"bogus", zone{"localhost": addr.String()}, Client{addr, "localhost", false, ""}, "localhost", false, false},
		{"HELO confirms nothing", zone{addr.String(): mail, "a.example": addr.String()}, Client{addr, mail, false, "a.example"}, mail, false, false},
	} {
		j := &Judge{Resolver: tt.zone, Helo: true, Mismatch: true}
		f := j.Judge(t.Context(), tt.c)
		if f.Name != tt.name || f.Confirmed != tt.confirmed || f.Unclear != tt.unclear {
			t.Errorf("%s: %q, confirmed %v, unclear %v (%s)", tt.what, f.Name, f.Confirmed, f.Unclear, f.Class)
		}
	}
	if f := new(Judge).Judge(t.Context(), Client{addr, mail, false, ""}); f.Confirmed || !f.Unclear {
		t.Errorf("without resolver: %+v", f)
	}
}

// When a mismatch is not asked for, a name is held against the client all the
// same.
func TestJudgeMismatch(t *testing.T) {
	const dyn, mail = "p5ddb3ec9.dip0.t-ipconnect.de", "mail.example.org"
	addr := netip.MustParseAddr("93.219.62.201")
	for name, want := range map[string][2]Class{
		dyn:  {Mismatch, Dynamic},
		mail: {Mismatch, Mismatch},
	} {
		for i, mismatch := range []bool{true, false} {
			j := &Judge{Resolver: zone{addr.String(): name}, Mismatch: mismatch}
			if f := j.Judge(t.Context(), Client{addr, name, false, ""}); f.Class != want[i] {
				t.Errorf("%s, mismatch %v: %s, want %s", name, mismatch, f.Class, want[i])
			}
		}
	}
}

// What is not known when the time is over is not held against the client.
func TestJudgeDeadline(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("late"))
	j := &Judge{Resolver: zone{}, Helo: true}
	addr := netip.MustParseAddr("93.219.62.201")
	for _, c := range []Client{{addr, Unknown, false, ""}, {addr, "mail.example.org", false, ""}, {addr, long[:64], false, ""}} {
		if f := j.Judge(ctx, c); f.Class != Proper || f.Evidence != "dns=unclear" {
			t.Errorf("%q: %s (%s)", c.Name, f.Class, f.Evidence)
		}
	}
}

// asked notes that something was asked.
type asked struct {
	zone
	yes *bool
}

func (a asked) PTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	*a.yes = true
	return a.zone.PTR(ctx, addr)
}

func (a asked) A(ctx context.Context, name string) ([]netip.Addr, error) {
	*a.yes = true
	return a.zone.A(ctx, name)
}

func (a asked) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	*a.yes = true
	return a.zone.AAAA(ctx, name)
}

// Where Asks says no, the DNS is not asked, whoever the client is.
func TestAsks(t *testing.T) {
	never := 0
	for _, name := range []string{"", ".", Unknown, "localhost", "mail.example.org", "p5ddb3ec9.dip0.t-ipconnect.de", "93.219.62.201", long, strings.Repeat("a.", 31) + "ab"} {
		for _, helo := range []string{"", "mail.example.org", "pc", "[93.219.62.201]"} {
			for _, fcrdns := range []bool{false, true} {
				for bits := range 4 {
					yes := false
					j := &Judge{Resolver: asked{zone{}, &yes}, Mismatch: bits&1 != 0, Helo: bits&2 != 0}
					c := Client{netip.MustParseAddr("93.219.62.201"), name, fcrdns, helo}
					asks := j.Asks(c)
					j.Judge(t.Context(), c)
					if yes && !asks {
						t.Errorf("%+v, %+v: the DNS was asked", j, c)
					}
					if !asks {
						never++
					}
				}
			}
		}
	}
	if never == 0 {
		t.Error("the DNS may always be asked")
	}
}
