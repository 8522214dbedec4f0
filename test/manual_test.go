//go:build linux

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"opensmtpd-filters/test/smtpdtest"
)

func page(t *testing.T, filter string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filter, filter+".8"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The page and -h name the same flags.
func TestManualFlags(t *testing.T) {
	for _, filter := range filters() {
		sameFlags(t, filter, shownFlags(t, filter), page(t, filter))
	}
}

// sameFlags has a page, or a part of it, describe the flags that are shown.
func sameFlags(t *testing.T, what string, shown []string, page string) {
	t.Helper()
	var described []string
	for _, m := range regexp.MustCompile(`(?m)^\.It Fl (\w+)`).FindAllStringSubmatch(page, -1) {
		if m[1] != "h" {
			described = append(described, m[1])
		}
	}
	slices.Sort(shown)
	slices.Sort(described)
	if described = slices.Compact(described); len(shown) == 0 || !slices.Equal(shown, described) {
		t.Errorf("%s: -h shows %q, the page describes %q", what, shown, described)
	}
}

// shownFlags returns the flags that a command line shows when -h is added.
func shownFlags(t *testing.T, program string, args ...string) (flags []string) {
	t.Helper()
	help, err := exec.Command(filepath.Join(os.Getenv(binEnv), program), append(args, "-h")...).Output()
	if err != nil {
		t.Fatal(program, args, err)
	}
	for _, m := range regexp.MustCompile(`(?m)^  -(\w+)`).FindAllStringSubmatch(string(help), -1) {
		flags = append(flags, m[1])
	}
	return flags
}

// Each command of filterctl has a part of the page, with its flags.
func TestManualCommands(t *testing.T) {
	help, err := exec.Command(filepath.Join(os.Getenv(binEnv), "filterctl"), "-h").Output()
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, m := range regexp.MustCompile(`(?m)^  (\w+)`).FindAllStringSubmatch(string(help), -1) {
		shown = append(shown, m[1])
	}
	parts := strings.Split(page(t, "filterctl"), "\n.Ss ")
	var described []string
	for _, part := range parts[1:] {
		name, _, _ := strings.Cut(part, "\n")
		described = append(described, name)
		sameFlags(t, name, shownFlags(t, "filterctl", name), part)
	}
	if !slices.Equal(shown, described) {
		t.Errorf("-h shows the commands %q, the page describes %q", shown, described)
	}
}

// Every smtpd.conf of the pages and of README.md is one.
func TestManualExamples(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var examples []string
	for block := range strings.SplitSeq(string(readme), "\n\n") {
		if strings.HasPrefix(block, "    ") {
			examples = append(examples, regexp.MustCompile(`(?m)^    `).ReplaceAllString(block, ""))
		}
	}
	var pages []string
	overviews, _ := filepath.Glob("../man/*.7")
	for _, path := range overviews {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, string(text))
	}
	for _, program := range append(filters(), "filterctl") {
		pages = append(pages, page(t, program))
	}
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`(?s)\.Bd -literal[^\n]*\n(.*?)\.Ed`).FindAllStringSubmatch(page, -1) {
			examples = append(examples, strings.NewReplacer(`\e`, `\`, `\&`, "").Replace(m[1]))
		}
	}
	forEachSMTPD(t, func(t *testing.T, r smtpdtest.Release) {
		n := 0
		for _, e := range examples {
			if !strings.Contains(e, "proc-exec") && !strings.HasPrefix(e, "filter ") {
				continue
			}
			n++
			if !strings.Contains(e, "\nmatch ") { // one to be added to what is there
				e += "\naction \"local\" mbox\nmatch from any for local action \"local\"\n"
			}
			if out, err := r.CheckConfig(e); err != nil {
				t.Errorf("%v\n%s\nin:\n%s", err, out, e)
			}
		}
		if n < 6 {
			t.Errorf("only %d examples found", n)
		}
	})
}

// Every page is whole in both formatters: the last of its words are there, and no
// section is lost on the way.
func TestManualWhole(t *testing.T) {
	pages, _ := filepath.Glob("../filter*/*.8")
	overviews, _ := filepath.Glob("../man/*.7")
	for _, command := range [][]string{{"mandoc", "-T", "ascii"}, {"groff", "-mandoc", "-T", "ascii", "-P", "-cbou"}} {
		t.Run(command[0], func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatal(err)
				}
				t.Skip(command[0] + " is not installed: run test/install.sh")
			}
			for _, path := range append(pages, overviews...) {
				isWhole(t, path, command)
			}
		})
	}
}

func isWhole(t *testing.T, path string, command []string) {
	t.Helper()
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(command[0], append(command[1:], path)...).Output()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	text := regexp.MustCompile(".\b").ReplaceAllString(string(out), "") // bold
	text = strings.Join(strings.Fields(text), " ")
	for _, m := range regexp.MustCompile(`(?m)^\.S[hs] (.*)$`).FindAllStringSubmatch(string(source), -1) {
		if !strings.Contains(text, m[1]+" ") {
			t.Errorf("%s: no section %s", path, m[1])
		}
	}
	words := strings.Fields(string(source))
	if last := words[len(words)-1]; !strings.Contains(text[len(text)*9/10:], last) {
		t.Errorf("%s: the end, %q, is not there", path, last)
	}
}

// The overview speaks of no flag that its program does not have.
func TestManualOverviewFlags(t *testing.T) {
	text, err := os.ReadFile("../man/opensmtpd-filters.7")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, filter := range filters() {
		for _, f := range shownFlags(t, filter) {
			all[f] = true
		}
	}
	// Options of others begin with - or are of one letter.
	for _, m := range regexp.MustCompile(`(?m)(?:^\.| )(?:It )?Fl ([a-z]\w+)`).FindAllStringSubmatch(string(text), -1) {
		if !all[m[1]] {
			t.Errorf("no filter has -%s", m[1])
		}
	}
}
