package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/dnsbl"
	"opensmtpd-filters/pkg/resolve"
	"opensmtpd-filters/pkg/smtpdconf"
)

// A doctor looks at what filters need of a machine.
type doctor struct {
	*call
	*conf
	answers map[*smtpdconf.Proc]answer // of the filters that are ours, to -n
	bad     int
}

func examine(k *call) func() error {
	open := confFlags(k)
	return func() error {
		if len(k.args) > 0 {
			return fmt.Errorf("unexpected argument %q", k.args[0])
		}
		ctx := context.Background()
		d := &doctor{call: k, answers: map[*smtpdconf.Proc]answer{}}
		var err error
		if d.conf, err = open(); err != nil {
			d.say(err, "smtpd.conf", "")
			d.conf = &conf{Config: &smtpdconf.Config{}, smtpd: findSMTPD()}
			d.folder = filterFolder(d.smtpd)
		}
		d.versions(ctx)
		d.names(ctx)
		d.filters(ctx)
		d.resolvers(ctx)
		d.lists(ctx)
		d.addresses(ctx)
		d.clock()
		d.descriptors()
		if d.bad > 0 {
			return fmt.Errorf("%d of these are not well", d.bad)
		}
		return nil
	}
}

// say prints a line: that a subject is well, and how, or what is wrong and to be
// done.
func (d *doctor) say(err error, subject, well string) {
	mark, text := "ok ", well
	if err != nil {
		d.bad++
		mark, text = "BAD", strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if text != "" {
		subject += ": "
	}
	fmt.Fprintf(d.out, "%s  %s%s\n", mark, subject, text)
}

// note prints what could not be looked at.
func (d *doctor) note(format string, args ...any) {
	fmt.Fprintf(d.out, "--   %s\n", fmt.Sprintf(format, args...))
}

// release matches what smtpd says of itself.
var release = regexp.MustCompile(`OpenSMTPD (\d+)\.(\d+)\S*`)

func (d *doctor) versions(ctx context.Context) {
	if d.smtpd == "" {
		d.say(errors.New("is not installed"), "smtpd", "")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.smtpd, "-h")
	cmd.WaitDelay = time.Second
	out, _ := cmd.CombinedOutput()
	m := release.FindSubmatch(out)
	if m == nil {
		d.say(errors.New("does not say that it is OpenSMTPD"), d.smtpd, "")
		return
	}
	var err error
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	if major < 6 || major == 6 && minor < 6 {
		err = errors.New("filters are for OpenSMTPD 6.6 and later")
	}
	d.say(err, d.smtpd, string(m[0]))
}

// names looks for programs of our names, of which there should be one each, of one
// version.
func (d *doctor) names(ctx context.Context) {
	dirs := append([]string{d.folder}, folders...)
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	dirs = append(dirs, "/usr/local/bin", "/usr/local/sbin")
	for _, name := range suite {
		var found []string
		var seen []os.FileInfo
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			fi, err := os.Stat(path)
			if err != nil || fi.IsDir() || slices.ContainsFunc(seen, func(o os.FileInfo) bool { return os.SameFile(o, fi) }) {
				continue
			}
			found, seen = append(found, path), append(seen, fi)
		}
		if len(found) == 0 {
			continue
		}
		var err error
		version := d.version(ctx, found[0])
		switch {
		case len(found) > 1:
			err = fmt.Errorf("there is another, %s; smtpd runs the first: remove what is not used", strings.Join(found[1:], ", "))
		case version == "":
			err = errors.New("is another program of this name, not ours: its package is to be removed, and ours installed")
		case version != cli.Version():
			err = fmt.Errorf("version %s, filterctl is %s: install all together, and restart smtpd", version, cli.Version())
		}
		d.say(err, found[0], "version "+version)
	}
}

// version returns the version of one of our programs, "" if it is none.
func (d *doctor) version(ctx context.Context, path string) string {
	a, err := d.run(ctx, &smtpdconf.Proc{}, path, "-version")
	if err != nil || !a.ok || len(a.text) != 1 {
		return ""
	}
	words := strings.Fields(a.text[0])
	if len(words) < 2 || words[0] != filepath.Base(path) {
		return ""
	}
	return words[1]
}

// filters asks those of smtpd.conf whether they are well, and looks whether they
// can write what they are to write.
func (d *doctor) filters(ctx context.Context) {
	for _, p := range d.Procs {
		if !ours(p) {
			continue
		}
		a, err := d.try(ctx, p)
		if err != nil {
			err = fmt.Errorf("%w; see filterctl check", err)
		} else {
			d.answers[p] = a
			err = errors.Join(unwritable(p, a)...)
			for _, w := range a.rows("warning") {
				err = errors.Join(err, errors.New(w))
			}
		}
		d.say(err, at(p.Place, "%s", d.conf.names(p)), "it is right, and can write its files")
	}
}

// knownLists are asked for their test entries to see what the resolver does to
// them, if smtpd.conf has no lists.
var knownLists = []string{"zen.spamhaus.org", "bl.spamcop.net", "list.dnswl.org"}

// resolvers judges those that filters ask.
func (d *doctor) resolvers(ctx context.Context) {
	used := []string{}
	for _, p := range d.Procs {
		if a, ok := d.answers[p]; ok && !slices.Contains(used, a.row("-resolver")) {
			used = append(used, a.row("-resolver"))
		}
	}
	if len(used) == 0 {
		used = []string{""}
	}
	for _, servers := range used {
		addrs, err := resolve.ParseServers(servers)
		if servers == "" {
			addrs, err = nil, nil
		}
		if err == nil {
			err = d.resolver(ctx, addrs)
		}
		if err != nil {
			d.say(err, "resolver "+servers, "")
		}
	}
}

func (d *doctor) resolver(ctx context.Context, servers []netip.AddrPort) error {
	r := resolve.New(resolve.Options{Servers: servers, Timeout: 5 * time.Second})
	defer r.Close()
	for _, s := range r.Servers() {
		var err error
		for _, a := range behind(s.Addr()) {
			if resolve.Public(a) {
				err = fmt.Errorf("%s is a public resolver, which many lists do not answer: run a resolver of your own, as unbound(8), on this machine", a)
			}
		}
		d.say(err, "resolver "+s.String(), "not a public one")
	}
	trouble := resolve.NewHealth(r, nil, nil).Judge(ctx)
	text := trouble.String()
	if trouble == resolve.Well {
		lists, _ := dnsbl.Parse(knownLists...)
		c := dnsbl.New(dnsbl.Options{Lists: lists, Resolver: r, Timeout: 5 * time.Second})
		c.Test(ctx)
		if text = c.Trouble(); text == "" && !listed(ctx, r) {
			text = fmt.Sprintf("answers for names, and has the test entry of none of the lists %s, which every list has", strings.Join(knownLists, ", "))
		}
	} else if trouble == resolve.Down {
		text += ": look at /etc/resolv.conf, and whether it runs"
	}
	var err error
	if text != "" {
		err = errors.New(text)
	}
	var names []string
	for _, s := range r.Servers() {
		names = append(names, s.String())
	}
	d.say(err, "resolver "+strings.Join(names, ", "), "says of what does not exist that it does not, and lets answers of lists through")
	return nil
}

// listed reports whether one of the known lists has its test entry (RFC 5782,
// section 5).
func listed(ctx context.Context, r *resolve.Resolver) bool {
	for _, zone := range knownLists {
		addrs, _ := r.A(ctx, dnsbl.Name(zone, netip.MustParseAddr("127.0.0.2")))
		if slices.ContainsFunc(addrs, netip.Addr.IsLoopback) {
			return true
		}
	}
	return false
}

// behind returns whom the stub of systemd asks, or the server itself.
func behind(server netip.Addr) []netip.Addr {
	if server != netip.MustParseAddr("127.0.0.53") {
		return []netip.Addr{server}
	}
	text, _ := os.ReadFile("/run/systemd/resolve/resolv.conf")
	addrs := []netip.Addr{server}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) == 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// lists has each filter-dnsbl test its lists.
func (d *doctor) lists(ctx context.Context) {
	for _, p := range d.Procs {
		if _, ok := d.answers[p]; !ok || smtpdconf.Program(p.Command) != "filter-dnsbl" {
			continue
		}
		a, err := d.ask(ctx, p, "explain", "192.0.2.1")
		if err == nil && !a.ok {
			err = errors.New(strings.Join(a.errs, "; "))
		}
		sick, well := []string{}, 0
		if err == nil {
			sick, well = health(a)
		}
		if t := a.row("resolver"); err == nil && t != "" {
			err = errors.New(t)
		}
		if err == nil && len(sick) > 0 {
			err = errors.New(strings.Join(sick, "; "))
		}
		d.say(err, at(p.Place, "%s", d.conf.names(p)), fmt.Sprintf("lists that have passed their test: %d", well))
	}
}

// columns are those of a table.
var columns = regexp.MustCompile(`\s{2,}`)

// health reads the table of lists that filter-dnsbl explains.
func health(a answer) (sick []string, well int) {
	table := false
	for _, line := range a.text {
		f := columns.Split(line, -1)
		switch {
		case len(f) != 6:
			table = false
		case f[0] == "list" && f[5] == "health":
			table = true
		case table && f[5] == "good":
			well++
		case table:
			sick = append(sick, f[0]+": "+f[5])
		}
	}
	return sick, well
}

// addresses looks whether those of this machine have names that resolve to them:
// without, many do not take its mail.
func (d *doctor) addresses(ctx context.Context) {
	r := resolve.New(resolve.Options{Timeout: 10 * time.Second})
	defer r.Close()
	addrs := d.own()
	if len(addrs) == 0 {
		d.note("no public address on this machine: that it has a name which resolves to it was not looked at")
	}
	for _, a := range addrs {
		names, err := r.PTR(ctx, a)
		var dns *net.DNSError
		switch {
		case err == nil && len(names) > 0:
			back, _ := r.Addrs(ctx, names[0])
			if err = nil; !slices.ContainsFunc(back, func(b netip.Addr) bool { return b.Unmap() == a }) {
				err = fmt.Errorf("its name %s does not resolve to it: correct the A or AAAA record, or have the provider correct the name", strings.TrimSuffix(names[0], "."))
			}
		case errors.As(err, &dns) && !dns.IsNotFound:
			err = errors.New("the DNS does not answer for its name")
		default:
			err = errors.New("it has no name: have the provider set the reverse name to that of this mail server; without, many do not take its mail")
		}
		d.say(err, "address "+a.String(), "its name resolves to it")
	}
}

// own returns the public addresses of this machine: those that smtpd.conf names, or
// else those of its interfaces.
func (d *doctor) own() (addrs []netip.Addr) {
	add := func(s string) {
		a, err := netip.ParseAddr(s)
		cgnat := netip.MustParsePrefix("100.64.0.0/10")
		if a = a.Unmap(); err == nil && a.IsGlobalUnicast() && !a.IsPrivate() && !cgnat.Contains(a) && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	for _, l := range d.Listeners {
		add(l.On)
	}
	if len(addrs) > 0 {
		return addrs
	}
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			add(n.IP.String())
		}
	}
	return addrs
}

// clock says whether the clock is kept right. A wrong one makes records of
// greylisting old or new, and TLS and DNSSEC fail.
func (d *doctor) clock() {
	synced, known := clockSynced()
	switch {
	case time.Now().Year() < 2026:
		d.say(fmt.Errorf("it is %s here: set it, and run ntpd(8) or chrony", time.Now().Format(time.DateOnly)), "clock", "")
	case !known:
		d.note("clock: whether it is kept right is not known here: it is %s", time.Now().Format(time.DateTime))
	case !synced:
		d.say(errors.New("nobody keeps it right, says the kernel: run ntpd(8), chrony or systemd-timesyncd"), "clock", "")
	default:
		d.say(nil, "clock", "kept right")
	}
}

// minFiles is how many descriptors smtpd and filters should be allowed: smtpd takes
// half as many connections.
const minFiles = 256

// descriptors looks at the limits of smtpd and filters at work, or else of who
// asks. The hard limit counts, to which they raise their own.
func (d *doctor) descriptors() {
	judge := func(who string, n uint64) {
		var err error
		if n < minFiles {
			err = fmt.Errorf("at most %d descriptors: smtpd takes half as many connections; allow 1024 or more (LimitNOFILE of systemd, openfiles in login.conf(5), ulimit -n)", n)
		}
		d.say(err, who, "enough")
	}
	running := limits(append([]string{"smtpd"}, suite...))
	for _, l := range running {
		judge(fmt.Sprintf("descriptors of %s, process %d", l.name, l.pid), l.files)
	}
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err == nil && (len(running) == 0 || uint64(own.Max) < minFiles) {
		judge("descriptors of who asks", uint64(own.Max))
	}
}

// A limit is how many descriptors a process may have.
type limit struct {
	name  string
	pid   int
	files uint64
}

// limits returns those of running programs, one of each name, where the system
// has them in /proc.
func limits(names []string) (limits []limit) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		name := strings.TrimSpace(string(comm))
		i := slices.IndexFunc(names, func(n string) bool { return n[:min(len(n), 15)] == name }) // the kernel keeps 15 bytes
		if err != nil || i < 0 {
			continue
		}
		text, err := os.ReadFile(dir + "/limits")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(text) {
			f := strings.Fields(strings.TrimPrefix(string(line), "Max open files"))
			if !bytes.HasPrefix(line, []byte("Max open files")) || len(f) < 2 {
				continue
			}
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				n = 1 << 63 // unlimited
			}
			pid, _ := strconv.Atoi(filepath.Base(dir))
			l := limit{names[i], pid, n}
			j := slices.IndexFunc(limits, func(o limit) bool { return o.name == l.name })
			if j < 0 {
				limits = append(limits, l)
			} else if l.files < limits[j].files {
				limits[j] = l
			}
		}
	}
	return limits
}
