//go:build linux

package test

import (
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"opensmtpd-filters/pkg/smtpdconf"
	"opensmtpd-filters/test/smtpdtest"
)

// confGen writes files that smtpd.conf may be, and many that it may not. What a
// string is shows in what smtpd says about it: of a name that is not defined, or
// defined twice.
type confGen struct {
	*rand.Rand
	newlines bool // in braces
}

func (g confGen) pick(words ...string) string { return words[g.IntN(len(words))] }

// text is a string as it may stand in a file.
func (g confGen) text() string {
	var b strings.Builder
	quote := g.pick(`"`, `"`, `'`, "")
	b.WriteString(quote)
	for range g.IntN(6) {
		b.WriteString(g.pick("a", "b9", "_", "-", "/x", ".", ":", "@", "~", "$m", "$", `\`, `\\`, `\"`, `\'`, `\ `, "\\\t", "\\n", "\\\n", "#",
			"filter", "proc", ";", "|", "&", "*", "?", "[", "]", "%", "^", "+", "`", "é", "7"))
		if quote != "" {
			b.WriteString(g.pick("", "", "", " ", "\t", "!", "{", "}", "<", ">", "=", ",", "(", "\n"))
		}
	}
	b.WriteString(quote)
	return b.String()
}

// name is one of few, so that some are defined.
func (g confGen) name() string {
	return g.pick("f1", "f2", `"f3"`, `'f4'`, `"f1"`, "p1", `"p2"`, "$m", "filter", `"filter"`, "7", "f\\1")
}

func (g confGen) gap() string { return g.pick(" ", " ", " ", "\t", " \\\n", "  \\\n\t") }

func (g confGen) list() string {
	var b strings.Builder
	nl := func() string {
		if g.newlines {
			return g.pick("", "", " ", "\n", "\n\n ", " # why\n")
		}
		return " "
	}
	b.WriteString("{" + nl())
	for i := range 1 + g.IntN(3) {
		if i > 0 {
			b.WriteString(g.pick(",", ", ", " ", ","+nl(), nl()+" "))
		}
		b.WriteString(g.name())
	}
	b.WriteString(nl() + g.pick("}", "}", "}", "}", ""))
	return b.String()
}

func (g confGen) statement() string {
	join := func(words ...string) string { return strings.Join(words, g.gap()) }
	switch g.IntN(12) {
	case 0:
		return g.pick("m", "f1", "x_y") + g.pick("=", " = ", "=\\\n") + g.pick(g.text(), `"f1"`, `"f2"`, `"\"a b\""`)
	case 1, 2:
		return join("filter", g.name(), "proc-exec", g.text()) + g.pick("", "", " user nobody", ` group "x" user y`, " user a user b", " chroot "+g.text())
	case 3:
		return join("proc", g.name(), g.text()) + g.pick("", " user nobody")
	case 4, 5, 6:
		return join("filter", g.name(), "proc", g.pick(g.name(), g.text()))
	case 7:
		return join("filter", g.name(), "chain", g.list())
	case 8:
		return join("listen", "on", "lo") + g.pick(" port 25", "") + g.gap() + "filter " + g.pick(g.name(), g.list())
	case 9:
		return join("filter", g.name(), "phase", "connect", "match", g.pick("!", "")+g.pick("rdns", "fcrdns"), g.pick("junk", `disconnect "550 no"`)) + "\n"
	case 10:
		return g.pick("# a comment", `# with a \`+"\ncontinuation", "", "   ", "include \"@DIR@/more.conf\"", "include "+g.pick(`"no such file"`, "none", "$m", `'no\'ne'`, `"no\ne"`), "filter", "filtre f1", "= x", "\\")
	}
	return g.text()
}

func (g confGen) file() string {
	var b strings.Builder
	for range 1 + g.IntN(5) {
		b.WriteString(g.statement() + g.pick("\n", "\n", "\n", " # end\n", " \\\n\n", ""))
	}
	return b.String()
}

// place matches what smtpd says of a file.
var place = regexp.MustCompile(`(?m)^(\S*(?:smtpd|more)\.conf:\d+): (.*)$`)

// smtpd finds the same error first, in the same place and words, and none in the
// same files.
func TestSmtpdConf(t *testing.T) {
	const files = 400
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		seed := rand.Uint64()
		old := strings.HasPrefix(r.Version, "6.")
		g := confGen{rand.New(rand.NewPCG(seed, 0)), !old}
		good := 0
		for range files {
			main, more := g.file()+"\nmatch from any for any reject\n", g.file()
			said, err := r.CheckFiles(map[string]string{"smtpd.conf": main, "more.conf": more})
			var want []string
			for _, m := range place.FindAllStringSubmatch(said, -1) {
				want = append(want, m[1]+": "+m[2])
			}
			conf, errs := smtpdconf.Parse("DIR/smtpd.conf", smtpdconf.Options{Open: func(name string) (io.ReadCloser, error) {
				switch name {
				case "DIR/smtpd.conf":
					return io.NopCloser(strings.NewReader(strings.ReplaceAll(main, "@DIR@", "DIR"))), nil
				case "DIR/more.conf":
					return io.NopCloser(strings.NewReader(strings.ReplaceAll(more, "@DIR@", "DIR"))), nil
				}
				return nil, os.ErrNotExist
			}})
			var got []string
			for _, e := range errs {
				text := e.Error()
				if i := strings.Index(text, ": failed to include file "); i >= 0 {
					text = strings.TrimSuffix(text, ": "+os.ErrNotExist.Error())
				}
				got = append(got, text)
			}
			// What follows an error depends on how yacc finds its way again.
			if len(got) != 0 && len(want) != 0 {
				got, want = got[:1], want[:1]
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d:\n%s\n--- more.conf\n%s\n--- smtpd says\n%s\n--- want %q\n--- got  %q", seed, main, more, said, want, got)
			}
			if err == nil {
				good++
				if len(conf.Filters)+len(conf.Procs) == 0 && strings.HasPrefix(main, "proc") {
					t.Errorf("nothing found in\n%s", main)
				}
			}
		}
		t.Logf("%d files, %d of them good", files, good)
		if good == 0 {
			t.Error("no file was good")
		}
	})
}
