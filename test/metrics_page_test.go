package test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// metricsPage is the page of all metrics. Its list is made of the code.
const metricsPage = "../man/opensmtpd-filters-metrics.7"

var updateMetrics = flag.Bool("updateMetrics", false, "write the list of metrics into "+metricsPage)

// A declared metric is one of the code.
type declared struct {
	pkg, name, help string
	labels          []string
	histogram       bool
}

func (d declared) kind() string {
	switch {
	case d.histogram:
		return "histogram"
	case strings.HasSuffix(d.name, "_total"):
		return "counter"
	}
	return "gauge"
}

// declaredMetrics returns what the packages declare with metrics.Desc.
func declaredMetrics(t *testing.T) (all []declared) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("..", path)
		top, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		switch {
		case err != nil:
			return err
		case d.IsDir() && rel != "." && top != "pkg" && !strings.HasPrefix(top, "filter"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || rel == filepath.Base(rel):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if ok && isDesc(lit.Type) && len(lit.Elts) > 0 {
				m := descOf(t, path, lit)
				m.pkg = filepath.ToSlash(filepath.Dir(rel))
				all = append(all, m)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func isDesc(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == "metrics" && e.Sel.Name == "Desc"
	case *ast.Ident:
		return e.Name == "Desc"
	}
	return false
}

func descOf(t *testing.T, path string, lit *ast.CompositeLit) (d declared) {
	t.Helper()
	text := func(e ast.Expr) string {
		b, ok := e.(*ast.BasicLit)
		if !ok {
			t.Fatalf("%s: a metric is declared by something else than a string", path)
		}
		s, err := strconv.Unquote(b.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, e := range lit.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			t.Fatalf("%s: a metric is declared without the names of its fields", path)
		}
		switch kv.Key.(*ast.Ident).Name {
		case "Name":
			d.name = text(kv.Value)
		case "Help":
			d.help = text(kv.Value)
		case "Labels":
			for _, l := range kv.Value.(*ast.CompositeLit).Elts {
				d.labels = append(d.labels, text(l))
			}
		case "Buckets":
			d.histogram = true
		}
	}
	return d
}

// usersOf returns which filters a package is part of, "all" if it is of each.
func usersOf(t *testing.T) map[string]string {
	t.Helper()
	users := map[string][]string{}
	for _, f := range filters() {
		out, err := exec.Command("go", "list", "-deps", "../"+f).Output()
		if err != nil {
			t.Fatal(err)
		}
		for pkg := range strings.FieldsSeq(string(out)) {
			if own, ok := strings.CutPrefix(pkg, module); ok {
				users[own] = append(users[own], f)
			}
		}
	}
	words := map[string]string{}
	for pkg, names := range users {
		if words[pkg] = strings.Join(names, ", "); len(names) == len(filters()) {
			words[pkg] = "all"
		}
	}
	return words
}

// metricsList returns the list as the page has it: of all filters, then of some.
func metricsList(t *testing.T) string {
	t.Helper()
	users := usersOf(t)
	byUser := map[string][]declared{}
	for _, m := range declaredMetrics(t) {
		byUser[users[m.pkg]] = append(byUser[users[m.pkg]], m)
	}
	var order []string
	for u := range byUser {
		order = append(order, u)
	}
	slices.SortFunc(order, func(a, b string) int {
		if n := strings.Count(a, ",") - strings.Count(b, ","); n != 0 && a != "all" && b != "all" {
			return -n
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	for _, u := range order {
		heading := "Of " + u
		if u == "all" {
			heading = "Of all filters"
		}
		fmt.Fprintf(&b, ".Ss %s\n.Bl -tag -width Ds\n", heading)
		slices.SortFunc(byUser[u], func(a, b declared) int { return strings.Compare(a.name, b.name) })
		for _, m := range byUser[u] {
			fmt.Fprintf(&b, ".It Cm %s", m.name)
			if len(m.labels) > 0 {
				fmt.Fprintf(&b, " Ns { Ns Ar %s Ns }", strings.Join(m.labels, " , "))
			}
			fmt.Fprintf(&b, "\n%s.\n", strings.ToUpper(m.kind()[:1])+m.kind()[1:])
			wrapLine(&b, strings.ReplaceAll(m.help, " -", ` \-`))
		}
		b.WriteString(".El\n")
	}
	return b.String()
}

// wrapLine writes a sentence in lines that mandoc finds short enough.
func wrapLine(b *strings.Builder, text string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > 76 {
			b.WriteString(line + "\n")
			line = ""
		}
		if line = strings.TrimSpace(line + " " + word); strings.HasSuffix(word, ".") { // a sentence
			b.WriteString(line + "\n")
			line = ""
		}
	}
	if line != "" {
		b.WriteString(line + "\n")
	}
}

// The page lists what the code counts, in its words.
func TestManualMetrics(t *testing.T) {
	const begin, end = ".\\\" The list is written by go test ./test -run ManualMetrics -updateMetrics\n", ".\\\" The end of the list\n"
	text, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the list", metricsPage)
	}
	list := metricsList(t)
	if strings.Count(list, "\n.It ") < 30 {
		t.Fatalf("few metrics are declared:\n%s", list)
	}
	want := before + begin + list + end + after
	if *updateMetrics {
		if err := os.WriteFile(metricsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s does not list what the code counts: go test ./test -run ManualMetrics -updateMetrics", metricsPage)
	}
}
