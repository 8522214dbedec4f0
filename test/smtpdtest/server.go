//go:build linux

package smtpdtest

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net/mail"
	"net/netip"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"opensmtpd-filters/pkg/filtertest"
)

const (
	// Hostname is the mail server's name. It takes mail for Domain.
	Hostname = "mx.example.org"
	Domain   = "example.org"

	// Addr4 and Addr6 are the mail server's addresses.
	Addr4 = "192.0.2.25"
	Addr6 = "2001:db8::25"

	// User may log in with Password where Config.TLS is set.
	User     = "alice"
	Password = "secret"

	// Dir is the folder, as smtpd and the filters see it, of the programs,
	// Config.Files and the mail.
	Dir = "/run/test"

	// State is the folder that the filters may write to.
	State = Dir + "/state"

	// patience limits every wait. Only a hang uses it up.
	patience = 60 * time.Second
)

// passwordHash is crypt(3) of Password.
const passwordHash = "$6$testtesttest$lw2q9PNfsMtN/yJv2RohGvrPpvmd/HvcvaRbeIfsKrgHSuP88VTZ9NYZU8vW9m6u0v/YoELWDYQ7iG1bE/lZU."

// A Config describes a mail server. The zero value, but for Release, is one
// without filters that takes any mail for Domain.
type Config struct {
	Release Release

	// Bin is the folder of the filters' programs.
	Bin string

	// Programs are more programs of Bin, for Run.
	Programs []string

	// Filters are asked in this order. More than one make a chain.
	Filters []Filter

	// Zone is the script of a DNS server on 127.0.0.1:53. Without it there
	// is none, and smtpd takes reverse names from Hosts.
	Zone string

	// Hosts is added to /etc/hosts.
	Hosts string

	// Resolv is /etc/resolv.conf. The default follows from Zone.
	Resolv string

	// Files are more files, name to content, placed in Dir.
	Files map[string]string

	// Users are the only users there are. Empty: every user exists.
	Users []string

	// StateSize is the size of the file system of State, as tmpfs(5) takes
	// it: "1m". Empty: there is enough.
	StateSize string

	// Listen are the listeners, as smtpd.conf has them: "0.0.0.0 port 25". Empty:
	// port 25 of Addr4 and Addr6, with what TLS calls for.
	Listen []string

	// Relay is the server, as relay of smtpd.conf takes it, that gets mail of local
	// users for others than Domain. Empty: such mail goes to a mailbox.
	Relay string

	// Syslog is the socket of a syslog daemon. With it smtpd logs there, and
	// Server.Log is empty.
	Syslog string

	// TLS offers STARTTLS and AUTH. It needs Release.TLS.
	TLS bool

	// Log gets what smtpd and the filters log, instead of Server.Log, and no
	// trace of each request: for runs too long to keep that.
	Log io.Writer
}

// A Filter is one filter of smtpd.conf.
type Filter struct {
	Name    string
	Command string // the program's name in Config.Bin, and arguments, as sh takes them; other programs there may be among them
	Builtin string // instead of Command, smtpd's own: "phase connect match !rdns junk"
}

var confTemplate = template.Must(template.New("smtpd.conf").
	Funcs(template.FuncMap{"quote": func(s string) string { return strings.ReplaceAll(s, `"`, `\"`) }}).
	Parse(`{{range .Filters}}filter "{{.Name}}" {{if .Builtin}}{{.Builtin}}{{else}}proc-exec "{{$.Dir}}/{{quote .Command}}"{{end}}
{{end}}{{if gt (len .Filters) 1}}filter "chain" chain { {{range $i, $f := .Filters}}{{if $i}}, {{end}}"{{$f.Name}}"{{end}} }
{{end}}{{if .TLS}}pki "mx" cert "{{.Dir}}/mx.crt"
pki "mx" key "{{.Dir}}/mx.key"
table "logins" file:{{.Dir}}/logins
{{end}}{{if .Users}}table "users" { {{range $i, $u := .Users}}{{if $i}}, {{end}}"{{$u}}@{{$.Domain}}"{{end}} }
{{end}}table "anyone" { "@{{.Domain}}" = "nobody", "@" = "nobody" }
listen on socket{{with .Filter}} filter "{{.}}"{{end}}
{{range .Addrs}}listen on {{.}} hostname {{$.Hostname}}{{with $.Filter}} filter "{{.}}"{{end}}
{{end}}action "inbox" maildir "{{.Dir}}/mail/%{rcpt.user}" junk virtual <anyone>
match from any for {{if .Users}}rcpt-to <users>{{else}}domain "{{.Domain}}"{{end}} action "inbox"
{{with .Relay}}action "relay" relay host "{{.}}"
{{end}}match from local ! for domain "{{.Domain}}" action "{{if .Relay}}relay{{else}}inbox{{end}}"
{{if .TLS}}match auth from any ! for domain "{{.Domain}}" action "{{if .Relay}}relay{{else}}inbox{{end}}"
{{end}}`))

// String returns the smtpd.conf of c.
func (c Config) String() string {
	filter := ""
	switch len(c.Filters) {
	case 0:
	case 1:
		filter = c.Filters[0].Name
	default:
		filter = "chain"
	}
	listen := c.Listen
	if len(listen) == 0 {
		tls := ""
		if c.TLS {
			tls = ` tls pki "mx" auth-optional <logins>`
		}
		listen = []string{Addr4 + " port 25" + tls, Addr6 + " port 25" + tls}
	}
	var b strings.Builder
	err := confTemplate.Execute(&b, struct {
		Config
		Dir, Hostname, Domain, Filter string
		Addrs                         []string
	}{c, Dir, Hostname, Domain, filter, listen})
	if err != nil {
		return err.Error()
	}
	return b.String()
}

// A Server is a running smtpd. There is one at a time: the paths of its
// queue and its socket are compiled in.
type Server struct {
	DNS *filtertest.DNS // nil without Config.Zone

	conf   Config
	cmd    *exec.Cmd
	exited chan struct{} // closed when smtpd has ended
	mounts []string
	log    string // what smtpd wrote, once it is stopped
}

// Start starts smtpd and waits until it greets, that is, until all filters
// are ready.
func Start(c Config) (*Server, error) {
	if c.TLS && !c.Release.TLS {
		return nil, fmt.Errorf("OpenSMTPD %s has no working TLS", c.Release.Version)
	}
	s := &Server{conf: c}
	if err := s.prepare(); err != nil {
		s.release()
		return nil, err
	}
	if err := s.launch(); err != nil {
		s.release()
		return nil, err
	}
	if err := s.greeted(); err != nil {
		err = errors.Join(err, s.Stop())
		return nil, fmt.Errorf("%w\nsmtpd.log:\n%s", err, s.log)
	}
	return s, nil
}

// Restart ends smtpd and its filters, calls meanwhile, which may be nil, and
// starts them again. Files, mail and log stay.
func (s *Server) Restart(meanwhile func() error) error {
	if err := s.end(); err != nil {
		return err
	}
	if meanwhile != nil {
		if err := meanwhile(); err != nil {
			return err
		}
	}
	if err := s.launch(); err != nil {
		return err
	}
	return s.greeted()
}

func (s *Server) launch() error {
	args := []string{"-d", "-v", "-f", Dir + "/smtpd.conf"}
	if s.conf.Syslog != "" {
		args = []string{"-F", "-f", Dir + "/smtpd.conf"}
	}
	log, err := s.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	if s.conf.Log == nil && s.conf.Syslog == "" {
		args = append(args, "-T", "filters")
	}
	s.cmd = s.conf.Release.command("/usr/sbin/smtpd", args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// As stdbuf(1) does: a line is one write. Else the processes of smtpd write
	// into each other's lines.
	s.cmd.Env = append(os.Environ(), "LD_PRELOAD=/usr/libexec/coreutils/libstdbuf.so", "_STDBUF_E=L")
	if err := s.cmd.Start(); err != nil {
		return err
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		_ = cmd.Wait() // the status says little: 0 also when a filter died
		close(exited)
	}()
	return nil
}

// openLog returns what smtpd writes its log to.
func (s *Server) openLog() (*os.File, error) {
	if s.conf.Log == nil {
		return os.OpenFile(s.Path("smtpd.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		_, _ = io.Copy(s.conf.Log, r)
		_ = r.Close()
	}()
	return w, nil
}

// Exited is closed when smtpd has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

func (s *Server) greeted() error {
	return s.poll("smtpd greets", func() (bool, error) { return s.greets() == nil, nil })
}

// Path is the place of a file of Dir as this program sees it.
func (s *Server) Path(name string) string { return filepath.Join(s.conf.Release.Root, Dir, name) }

func (s *Server) prepare() error {
	root := s.conf.Release.Root
	for _, dir := range []string{"/run", "/var/spool"} { // smtpd makes its queue itself
		if err := s.mount("none", filepath.Join(root, dir), "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.Path("mail"), 0o755); err != nil {
		return err
	}
	const nobody = 65534
	if err := os.Chown(s.Path("mail"), nobody, nobody); err != nil {
		return err
	}
	if err := s.makeState(); err != nil {
		return err
	}

	if s.conf.Syslog != "" && root != "/" {
		if err := s.bind(s.conf.Syslog, filepath.Join(root, "/dev/log")); err != nil {
			return err
		}
	}

	files := map[string]string{"smtpd.conf": s.conf.String()}
	if s.conf.TLS {
		cert, key, err := certificate()
		if err != nil {
			return err
		}
		files["mx.crt"], files["mx.key"] = cert, key
		files["logins"] = User + " " + passwordHash + "\n"
	}
	maps.Copy(files, s.conf.Files)
	resolv := "lookup file\n" // smtpd's resolver reads hosts only
	if s.conf.Zone != "" {
		var err error
		if s.DNS, err = filtertest.StartDNS("127.0.0.1:53", s.conf.Zone); err != nil {
			return fmt.Errorf("DNS server: %w", err)
		}
		resolv = "nameserver 127.0.0.1\n"
	}
	files["resolv.conf"] = cmp.Or(s.conf.Resolv, resolv)
	files["hosts"] = "127.0.0.1 localhost\n::1 localhost\n" + s.conf.Hosts
	for name, text := range files {
		mode := fs.FileMode(0o644)
		if name == "mx.key" {
			mode = 0o600 // else smtpd refuses it
		}
		if err := os.WriteFile(s.Path(name), []byte(text), mode); err != nil {
			return err
		}
	}
	for _, name := range []string{"hosts", "resolv.conf"} {
		if err := s.bind(s.Path(name), filepath.Join(root, "/etc", name)); err != nil {
			return err
		}
	}
	for _, program := range s.conf.Programs {
		if err := s.install(program); err != nil {
			return err
		}
	}
	for _, f := range s.conf.Filters {
		if f.Builtin != "" {
			continue
		}
		// The program, and others that it is given to run.
		for i, program := range strings.Fields(f.Command) {
			if err := s.install(program); err != nil && (i == 0 || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
		}
	}
	return nil
}

// install copies a program of Config.Bin to Dir.
func (s *Server) install(program string) error {
	data, err := os.ReadFile(filepath.Join(s.conf.Bin, program))
	if err != nil {
		return err
	}
	return os.WriteFile(s.Path(program), data, 0o755)
}

// makeState makes State for the user that smtpd runs filters as.
func (s *Server) makeState() error {
	passwd, err := os.ReadFile(filepath.Join(s.conf.Release.Root, "/etc/passwd"))
	if err != nil {
		return err
	}
	uid := regexp.MustCompile(`(?m)^opensmtpd:[^:]*:(\d+):(\d+):`).FindSubmatch(passwd)
	if uid == nil {
		return errors.New("no user opensmtpd")
	}
	state := s.Path("state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=700,uid=%s,gid=%s", uid[1], uid[2])
	if s.conf.StateSize != "" {
		options += ",size=" + s.conf.StateSize
	}
	return s.mount("none", state, "tmpfs", 0, options)
}

func (s *Server) mount(source, target, kind string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount on %s: %w", target, err)
	}
	s.mounts = append(s.mounts, target)
	return nil
}

// bind puts file in the place of target, which may be a link into /run
// (resolv.conf often is), where nothing is now.
func (s *Server) bind(file, target string) error {
	if link, err := os.Readlink(target); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(target), link)
		}
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		target = link
	}
	if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
	}
	return s.mount(file, target, "", syscall.MS_BIND, "")
}

// release gives back what prepare has taken.
func (s *Server) release() {
	if s.DNS != nil {
		s.DNS.Close()
	}
	for _, m := range slices.Backward(s.mounts) {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
	s.mounts = nil
}

// certificate returns a self-signed certificate of Hostname and its key, PEM.
func certificate() (cert, key string, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{Hostname},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
	c, err := x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
	if err != nil {
		return "", "", err
	}
	k, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})), nil
}

// poll waits until done says so, smtpd has ended, or patience is at its end.
func (s *Server) poll(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain: %s", patience, what)
		}
		select {
		case <-s.exited:
			return fmt.Errorf("smtpd ended before: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// greets makes a connection from the host itself.
func (s *Server) greets() error {
	c, err := s.Dial("127.0.0.1")
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := c.Reply()
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return fmt.Errorf("greeted with %v", r)
	}
	_, err = c.Do("QUIT")
	return err
}

// Check returns an error unless smtpd is well: it greets, and its log tells
// of no dead filter or process.
func (s *Server) Check() error {
	var errs []error
	if err := s.greets(); err != nil {
		errs = append(errs, fmt.Errorf("smtpd does not greet: %w", err))
	}
	for line := range strings.Lines(s.Log()) {
		if Trouble(line) {
			errs = append(errs, fmt.Errorf("smtpd.log: %s", strings.TrimSpace(line)))
		}
	}
	return errors.Join(errs...)
}

// Trouble reports whether a line of smtpd's log tells of a dead filter or
// process.
func Trouble(line string) bool {
	if strings.HasPrefix(line, "debug:") {
		return false
	}
	for _, bad := range []string{"lost processor", "fatal", "lookup: ", "misbehaving", "exited abnormally", "smtpd: process"} {
		if strings.Contains(line, bad) {
			return true
		}
	}
	return false
}

// Stop ends smtpd and waits until it and its filters are gone. The mail is
// gone too; the log stays.
func (s *Server) Stop() error {
	err := s.end()
	s.log = s.Log()
	s.release()
	return err
}

func (s *Server) end() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	var errs []error
	select {
	case <-s.exited:
	case <-time.After(patience):
		errs = append(errs, fmt.Errorf("smtpd runs on %v after SIGTERM", patience))
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	// smtpd does not wait for filters. They are to end at end of input.
	deadline := time.Now().Add(patience)
	for len(s.filters()) > 0 {
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("run on %v after smtpd: %v", patience, s.filters()))
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(errs...)
}

// filters returns the programs of Dir that run, by process id.
func (s *Server) filters() map[int]string {
	programs := s.Processes()
	maps.DeleteFunc(programs, func(_ int, p string) bool { return p == "smtpd" })
	return programs
}

// Processes returns the programs of Dir that run, and the processes of smtpd
// as "smtpd", by process id.
func (s *Server) Processes() map[int]string {
	programs := map[int]string{}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, e := range exes {
		p, err := os.Readlink(e)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		switch {
		case strings.HasPrefix(p, s.Path("")+"/"):
			programs[pid] = filepath.Base(p)
		case p == filepath.Join(s.conf.Release.Root, "/usr/sbin/smtpd"):
			programs[pid] = "smtpd"
		}
	}
	return programs
}

// Signal sends a signal to the filters that run this program.
func (s *Server) Signal(program string, sig syscall.Signal) error {
	found := false
	for pid, p := range s.filters() {
		if p == program {
			found = true
			if err := syscall.Kill(pid, sig); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("%s does not run", program)
	}
	return nil
}

// Run runs a command line, as sh takes it, in Dir as smtpd and the filters see
// it, as root and beside them. It returns what the command writes.
func (s *Server) Run(line string) (output string, err error) {
	cmd := s.conf.Release.command("/bin/sh", "-c", "cd "+Dir+" && "+line)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", line, err, out)
	}
	return string(out), err
}

// WriteFile replaces one of Config.Files.
func (s *Server) WriteFile(name, text string) error {
	return os.WriteFile(s.Path(name), []byte(text), 0o644)
}

// Log returns what smtpd has logged so far, with the filters' own lines as
// "NAME: text". It is empty with Config.Log.
func (s *Server) Log() string {
	if len(s.mounts) == 0 {
		return s.log
	}
	b, _ := os.ReadFile(s.Path("smtpd.log"))
	return string(b)
}

// WaitLog waits until a line of the log contains all of words, and returns
// the first such line.
func (s *Server) WaitLog(words ...string) (line string, err error) {
	err = s.poll(fmt.Sprintf("a log line with %q", words), func() (bool, error) {
		for line = range strings.Lines(s.Log()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true, nil
			}
		}
		return false, nil
	})
	return strings.TrimSpace(line), err
}

// A Message is a delivered mail.
type Message struct {
	Junk bool   // found in .Junk
	Text string // as delivered, lines ending in LF
}

// Header returns the values of a header field. A message without a sound
// header has none.
func (m Message) Header(name string) []string {
	msg, err := mail.ReadMessage(strings.NewReader(m.Text))
	if err != nil {
		return nil
	}
	return msg.Header[textproto.CanonicalMIMEHeaderKey(name)]
}

// Body returns what follows the header.
func (m Message) Body() string {
	_, body, _ := strings.Cut(m.Text, "\n\n")
	return body
}

// Mail returns what was delivered to a user of Domain so far.
func (s *Server) Mail(user string) ([]Message, error) {
	var all []Message
	for _, dir := range []string{"new", ".Junk/new"} {
		files, err := filepath.Glob(filepath.Join(s.Path("mail"), user, dir, "*"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			all = append(all, Message{Junk: dir != "new", Text: string(b)})
		}
	}
	return all, nil
}

// WaitMail waits until n mails were delivered to the user.
func (s *Server) WaitMail(user string, n int) (all []Message, err error) {
	err = s.poll(fmt.Sprintf("%d mails for %s", n, user), func() (bool, error) {
		var err error
		all, err = s.Mail(user)
		return len(all) >= n, err
	})
	return all, err
}

// listener returns the address that a client at src talks to.
func listener(src netip.Addr) netip.AddrPort {
	if src.Is4() {
		return netip.AddrPortFrom(netip.MustParseAddr(Addr4), 25)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(Addr6), 25)
}
