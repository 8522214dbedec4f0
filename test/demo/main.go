//go:build linux

// Command demo shows filter-dyndns, filter-greylist and filter-greet at work: a
// real smtpd, clients from a dozen addresses with the reverse names of the world,
// and where their mail goes; then clients that come again, or do not; then such
// that wait for the greeting, or do not. It runs as root, in a network of its own,
// after the filters were built into bin/.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"

	"opensmtpd-filters/test/smtpdtest"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		status = 1
	}
	os.Exit(status)
}

func run() (status int, err error) {
	release := smtpdtest.Release{Root: "/"} // any version does
	if smtpdtest.Inside() {
		if err := smtpdtest.Setup(); err != nil {
			return 1, err
		}
		bin, err := filepath.Abs("bin")
		if err != nil {
			return 1, err
		}
		if err := showDyndns(os.Stdout, release, bin); err != nil {
			return 1, err
		}
		if err := showGreylist(os.Stdout, release, bin); err != nil {
			return 1, err
		}
		return 0, showGreet(os.Stdout, release, bin)
	}
	for _, name := range []string{"bin/filter-dyndns", "bin/filter-greylist", "bin/filter-greet"} {
		if _, err := os.Stat(name); err != nil {
			return 1, fmt.Errorf("%w; run make first, and this from the top folder", err)
		}
	}
	if os.Getuid() != 0 {
		return 1, errors.New("not root; a mail server on port 25 needs it, also in a network of its own")
	}
	if release.Ready() != nil {
		fmt.Println("installing opensmtpd and iproute2; no mail server is started")
		cmd := exec.Command("test/install.sh", "demo")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return 1, fmt.Errorf("%s: %w", cmd, err)
		}
		if err := release.Ready(); err != nil {
			return 1, err
		}
	}
	return smtpdtest.Isolate()
}

// A client is a mail's sender. The names are made as providers make them.
type client struct {
	what, addr, name string
	oneWay           bool // the name does not lead back to the address
	helo             string
}

var clients = []client{
	{what: "mail server", addr: "198.51.100.10", name: "mail.sender.example"},
	{what: "mail server, IPv6", addr: "2001:db8:1::10", name: "mail.sender.example"},
	{what: "home, DSL", addr: "203.0.113.14", name: "pCB00710E.dip0.t-ipconnect.de"},
	{what: "home, cable", addr: "203.0.113.21", name: "c-203-0-113-21.hsd1.ma.comcast.net"},
	{what: "home, IPv6", addr: "2001:db8:2f0f:5e00:e15a:1b2e:1d2a:ce20", name: "p20010db82f0f5e00e15a1b2e1d2ace20.dip0.t-ipconnect.de"},
	{what: "office on DSL", addr: "203.0.113.77", name: "203-0-113-77.dsl.provider.example"},
	{what: "the same, HELO resolves", addr: "203.0.113.78", name: "203-0-113-78.dsl.provider.example", helo: "mail.office.example"},
	{what: "business line", addr: "203.0.113.30", name: "203-0-113-30-static.hfc.comcastbusiness.net"},
	{what: "cloud, default name", addr: "203.0.113.40", name: "ec2-203-0-113-40.compute-1.amazonaws.com"},
	{what: "no reverse name", addr: "203.0.113.50"},
	{what: "name is localhost", addr: "203.0.113.60", name: "localhost", oneWay: true},
	{what: "name of somebody else", addr: "203.0.113.70", name: "mail.bank.example", oneWay: true},
}

// showDyndns shows whose mail is junked for its reverse name.
func showDyndns(w io.Writer, release smtpdtest.Release, bin string) (err error) {
	zone := "mail.office.example A 203.0.113.78\n"
	for _, c := range clients {
		switch {
		case c.oneWay:
			zone += smtpdtest.Pointer(c.addr, c.name)
		case c.name != "":
			zone += smtpdtest.Host(c.addr, c.name)
		}
	}
	conf := smtpdtest.Config{
		Release: release,
		Bin:     bin,
		Zone:    zone,
		Filters: []smtpdtest.Filter{{Name: "dyndns", Command: "filter-dyndns -none defer -mismatch refuse"}},
	}
	fmt.Fprintf(w, "smtpd.conf:\n\n%s\n", indent(conf.String()))
	s, err := smtpdtest.Start(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT\tREVERSE NAME\tCLASS\tMAIL\tLAST REPLY")
	for i, c := range clients {
		user := fmt.Sprint("user", i)
		res, err := s.Send(smtpdtest.Mail{Src: c.addr, Helo: c.helo, To: user})
		if err != nil {
			return fmt.Errorf("mail from %s: %w", c.addr, err)
		}
		class, went := logField(s.Log(), c.addr, "reason"), "refused"
		if res.Accepted() {
			mails, err := s.WaitMail(user, 1)
			if err != nil {
				return err
			}
			went = "INBOX"
			if mails[0].Junk {
				went = ".Junk"
			}
		}
		name := c.name
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", c.what, name, class, went, res)
	}
	fmt.Fprintf(w, "What the filter wrote to smtpd's log:\n\n")
	for line := range strings.Lines(s.Log()) {
		if strings.HasPrefix(line, "dyndns: ") {
			fmt.Fprint(w, "    ", line)
		}
	}
	fmt.Fprintln(w)
	if err := table.Flush(); err != nil {
		return err
	}
	return s.Check()
}

// indent indents text by four blanks.
func indent(text string) string {
	return regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(text, "    $1")
}

// logField returns a field of the filter's last line about a client.
func logField(log, addr, field string) string {
	value := "-"
	for line := range strings.Lines(log) {
		fields := map[string]string{}
		for _, m := range regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`).FindAllStringSubmatch(line, -1) {
			fields[m[1]] = strings.Trim(m[2], `"`)
		}
		if fields["filter"] == "dyndns" && fields["addr"] == addr && fields[field] != "" {
			value = fields[field]
		}
	}
	return value
}
