package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/smtpdconf"
)

// suite are the filters that are ours.
var suite = []string{"filter-dnsbl", "filter-dyndns", "filter-greet", "filter-greylist", "filter-senderscore"}

// A conf is an smtpd.conf and what is needed to run its filters.
type conf struct {
	*smtpdconf.Config
	file   string
	macros []string // NAME=VALUE of -D
	errs   []error  // what is wrong with the file
	smtpd  string   // the program, "" if there is none
	folder string   // of filters without a path
}

// confFlags adds the flags that say which smtpd.conf.
func confFlags(k *call) func() (*conf, error) {
	var macros cli.Strings
	file := k.String("f", defaultConf(), "read `FILE`")
	k.Var(&macros, "D", "define a macro as smtpd -D does: `NAME=VALUE`; repeatable")
	return func() (*conf, error) { return readConf(*file, macros) }
}

// defaultConf is where smtpd looks for its file: each system has its place.
func defaultConf() string {
	places := []string{"/etc/mail/smtpd.conf", "/etc/smtpd.conf", "/usr/local/etc/mail/smtpd.conf", "/etc/smtpd/smtpd.conf"}
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return places[0]
}

// readConf reads an smtpd.conf. Only one that cannot be read is an error.
func readConf(file string, macros []string) (*conf, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	c := &conf{file: file, macros: macros, smtpd: findSMTPD()}
	o := smtpdconf.Options{
		Open:   func(name string) (io.ReadCloser, error) { return os.Open(name) },
		Macros: map[string]string{},
	}
	for _, m := range macros {
		i := strings.LastIndexByte(m, '=') // as smtpd has it
		if i < 0 {
			return nil, cli.BadFlag("D", m, errors.New("want NAME=VALUE"))
		}
		o.Macros[m[:i]] = m[i+1:]
	}
	c.Config, c.errs = smtpdconf.Parse(file, o)
	c.folder = filterFolder(c.smtpd)
	return c, nil
}

func findSMTPD() string {
	for _, p := range []string{"/usr/sbin/smtpd", "/usr/local/sbin/smtpd"} {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// folders are those in which systems have filters.
var folders = []string{
	"/usr/libexec/opensmtpd", "/usr/local/libexec/smtpd", "/usr/local/libexec/opensmtpd",
	"/usr/libexec/smtpd", "/usr/lib/opensmtpd", "/usr/lib/smtpd",
}

// The helpers of deliveries are in the folder of the filters, and named in smtpd.
var helper = regexp.MustCompile(`(/[\w./-]+)/mail\.maildir`)

// filterFolder returns where this smtpd looks for filters: the path is compiled
// in.
func filterFolder(smtpd string) string {
	if program, err := os.ReadFile(smtpd); err == nil {
		for _, m := range helper.FindAllSubmatch(program, -1) {
			if dir := string(m[1]); dir != "/usr/libexec" { // OpenBSD's own are elsewhere
				return filepath.Clean(dir)
			}
		}
	}
	i := slices.IndexFunc(folders, func(dir string) bool {
		fi, err := os.Stat(dir)
		return err == nil && fi.IsDir()
	})
	return folders[max(i, 0)]
}

// names returns which filters a program runs for, as words.
func (c *conf) names(p *smtpdconf.Proc) string {
	var names []string
	for _, f := range c.Filters {
		if f.Proc == p {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		return "proc " + p.Name
	}
	return "filter " + strings.Join(names, ", ")
}

// path returns the program of a command.
func (c *conf) path(p *smtpdconf.Proc) string {
	path := smtpdconf.Path(p.Command)
	if !strings.HasPrefix(p.Command, "/") {
		path = c.folder + "/" + path
	}
	return path
}

// ours reports whether a program has the name of one of ours.
func ours(p *smtpdconf.Proc) bool { return slices.Contains(suite, smtpdconf.Program(p.Command)) }

func at(p smtpdconf.Place, format string, args ...any) string {
	return fmt.Sprintf("%s: %s", p, fmt.Sprintf(format, args...))
}
