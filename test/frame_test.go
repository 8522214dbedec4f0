package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A main.go reads like a table of contents.
const maxMain = 110

// sameLines is the length of a run of lines from which on two programs say the
// same: it belongs into a package.
const sameLines = 6

// Programs share no code but through packages.
func TestProgramsShareNothing(t *testing.T) {
	dirs, err := filepath.Glob("../filter*")
	if err != nil || len(dirs) < 4 {
		t.Fatal(dirs, err)
	}
	runs := make(map[string]string) // the lines: where they stand
	for _, dir := range dirs {
		files, _ := filepath.Glob(dir + "/*.go")
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), "\n"); filepath.Base(file) == "main.go" && n >= maxMain {
				t.Errorf("%s has %d lines, want under %d", file, n, maxMain)
			}
			lines := code(string(text))
			for i := range len(lines) - sameLines + 1 {
				run := strings.Join(lines[i:i+sameLines], "\n")
				if other := runs[run]; other != "" && filepath.Dir(other) != dir {
					t.Errorf("%s and %s have the same lines:\n%s", other, file, run)
				}
				runs[run] = file
			}
		}
	}
}

// code returns the lines of a file, without imports and what holds nothing.
func code(text string) []string {
	var lines []string
	imports := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "import (":
			imports = true
		case imports:
			imports = line != ")"
		case line != "" && line != "}" && line != ")" && !strings.HasPrefix(line, "package ") && !strings.HasPrefix(line, "import "):
			lines = append(lines, line)
		}
	}
	return lines
}

func TestCode(t *testing.T) {
	got := code("package x\n\nimport (\n\t\"a\"\n)\n\nfunc f() {\n\tg()\n\n}\n")
	if want := "[func f() { g()]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}
