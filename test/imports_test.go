package test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "opensmtpd-filters/"

// importRules says which packages of this module a package below pkg may import.
// A package that is not here has yet to be given its place.
func importRules() map[string][]string {
	small := []string{"pkg/guard", "pkg/listfile"}
	check := []string{"pkg/resolve", "pkg/ipset", "pkg/listfile", "pkg/metrics", "pkg/guard"}
	store := []string{"pkg/greylist", "pkg/guard"}
	return map[string][]string{
		"pkg/guard":           nil,
		"pkg/proto":           {"pkg/guard"},
		"pkg/metrics":         {"pkg/guard"},
		"pkg/listfile":        {"pkg/guard"},
		"pkg/sandbox":         {"pkg/guard"},
		"pkg/peek":            {"pkg/guard"},
		"pkg/maillog":         {"pkg/guard"},
		"pkg/smtpdconf":       {"pkg/guard"},
		"pkg/ipset":           small,
		"pkg/reload":          small,
		"pkg/cli":             small,
		"pkg/resolve":         {"pkg/metrics", "pkg/guard"},
		"pkg/filter":          {"pkg/proto", "pkg/metrics", "pkg/guard"},
		"pkg/spf":             {"pkg/resolve", "pkg/metrics", "pkg/guard"},
		"pkg/exempt":          {"pkg/ipset", "pkg/listfile", "pkg/reload", "pkg/guard"},
		"pkg/dnsbl":           check,
		"pkg/rdns":            check,
		"pkg/senderscore":     check,
		"pkg/greylist":        check,
		"pkg/greylist/sqlite": store,
		"pkg/greylist/redis":  append(store, "pkg/metrics"),
		"pkg/program": {
			"pkg/cli", "pkg/exempt", "pkg/filter", "pkg/guard", "pkg/ipset", "pkg/listfile", "pkg/metrics",
			"pkg/proto", "pkg/reload", "pkg/resolve", "pkg/sandbox", "pkg/spf",
		},
	}
}

// onlyImporters names the packages that alone may import a library.
func onlyImporters() map[string][]string {
	return map[string][]string{
		"github.com/miekg/dns":      {"pkg/resolve", "pkg/filtertest"},
		"modernc.org/sqlite":        {"pkg/greylist/sqlite"},
		"github.com/prometheus":     {"pkg/metrics"},
		"github.com/redis/go-redis": {"pkg/greylist/redis"},
	}
}

// violations says which imports of a package are against the rules. Pkg is its
// folder in the module; imports are those of its files that are not tests, which
// may import what they like.
func violations(pkg string, imports []string) []string {
	top, _, _ := strings.Cut(pkg, "/")
	if top == "test" || top == "bench" {
		return nil // programs for tests
	}
	forTests := func(p string) bool { return p == "pkg/filtertest" || p == "pkg/greylist/storetest" }
	rule, known := importRules()[pkg]
	isFilter := strings.HasPrefix(top, "filter-") || top == "filterctl"
	var bad []string
	if !known && !isFilter && !forTests(pkg) {
		bad = append(bad, pkg+" has no import rule")
	}
	for _, imp := range imports {
		ok := true
		if own, ours := strings.CutPrefix(imp, module); ours {
			switch {
			case isFilter:
				ok = strings.HasPrefix(own, "pkg/") && !forTests(own) || strings.HasPrefix(own, top+"/")
			case forTests(pkg):
				ok = strings.HasPrefix(own, "pkg/")
			default:
				ok = slices.Contains(rule, own)
			}
		}
		for library, importers := range onlyImporters() {
			if strings.HasPrefix(imp+"/", library+"/") {
				ok = slices.Contains(importers, pkg)
			}
		}
		if !ok {
			bad = append(bad, pkg+" imports "+imp)
		}
	}
	return bad
}

// The files are read here, for all systems and build tags, and not by go list:
// go test then sees that its result depends on them.
func TestImports(t *testing.T) {
	root := os.DirFS("..")
	imports := map[string][]string{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != "." && (base[0] == '.' || base[0] == '_' || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") || base[0] == '.' || base[0] == '_' {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(name)
		if _, ok := imports[pkg]; !ok {
			imports[pkg] = nil // no import is fine too
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports[pkg] = append(imports[pkg], imp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(imports["pkg/metrics"]) == 0 {
		t.Error("the imports of pkg/metrics were not found")
	}
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		for _, v := range violations(pkg, imports[pkg]) {
			t.Error(v)
		}
	}
}

func TestImportRules(t *testing.T) {
	for _, tt := range []struct {
		pkg     string
		imports string // ours begin with pkg/, filter- or test/
		bad     string // those of them that are refused
	}{
		{"pkg/proto", "fmt strconv", ""},
		{"pkg/proto", "pkg/metrics", "pkg/metrics"},
		{"pkg/metrics", "github.com/prometheus/client_golang/prometheus pkg/guard", ""},
		{"pkg/metrics", "pkg/cli", "pkg/cli"},
		{"pkg/ipset", "github.com/gaissmai/bart pkg/resolve", "pkg/resolve"},
		{"pkg/sandbox", "pkg/cli", "pkg/cli"},
		{"pkg/cli", "pkg/reload", "pkg/reload"},
		{"pkg/reload", "pkg/ipset", "pkg/ipset"},
		{"pkg/listfile", "pkg/guard pkg/ipset", "pkg/ipset"},
		{"pkg/ipset", "pkg/listfile pkg/reload", "pkg/reload"},
		{"pkg/exempt", "pkg/ipset pkg/listfile pkg/reload", ""},
		{"pkg/exempt", "pkg/spf pkg/resolve pkg/cli pkg/filter", "pkg/spf pkg/resolve pkg/cli pkg/filter"},
		{"pkg/senderscore", "pkg/resolve pkg/dnsbl", "pkg/dnsbl"},
		{"pkg/resolve", "pkg/metrics github.com/miekg/dns", ""},
		{"pkg/resolve", "pkg/ipset pkg/filter", "pkg/ipset pkg/filter"},
		{"pkg/filter", "pkg/proto pkg/metrics", ""},
		{"pkg/filter", "pkg/resolve pkg/cli pkg/filtertest", "pkg/resolve pkg/cli pkg/filtertest"},
		{"pkg/dnsbl", "pkg/resolve pkg/ipset pkg/metrics", ""},
		{"pkg/dnsbl", "pkg/filter pkg/proto pkg/rdns", "pkg/filter pkg/proto pkg/rdns"},
		{"pkg/rdns", "pkg/resolve pkg/filter", "pkg/filter"},
		{"pkg/greylist", "pkg/resolve pkg/greylist/sqlite", "pkg/greylist/sqlite"},
		{"pkg/greylist", "github.com/miekg/dns modernc.org/sqlite github.com/redis/go-redis/v9", "github.com/miekg/dns modernc.org/sqlite github.com/redis/go-redis/v9"},
		{"pkg/greylist/sqlite", "pkg/greylist modernc.org/sqlite modernc.org/sqlite/lib", ""},
		{"pkg/greylist/sqlite", "pkg/metrics github.com/redis/go-redis/v9", "pkg/metrics github.com/redis/go-redis/v9"},
		{"pkg/greylist/redis", "pkg/greylist github.com/redis/go-redis/v9", ""},
		{"pkg/greylist/redis", "modernc.org/sqlite pkg/greylist/storetest", "modernc.org/sqlite pkg/greylist/storetest"},
		{"pkg/greylist/storetest", "pkg/greylist testing", ""},
		{"pkg/filtertest", "pkg/filter pkg/proto github.com/miekg/dns", ""},
		{"pkg/filtertest", "filter-dnsbl test/smtpdtest", "filter-dnsbl test/smtpdtest"},
		{"filter-dnsbl", "pkg/filter pkg/dnsbl pkg/cli pkg/greylist/sqlite filter-dnsbl/zones", ""},
		{"filter-dnsbl", "filter-dyndns filter-dyndns/x pkg/filtertest pkg/greylist/storetest test/smtpdtest", "filter-dyndns filter-dyndns/x pkg/filtertest pkg/greylist/storetest test/smtpdtest"},
		{"filter-dnsbl", "github.com/miekg/dns", "github.com/miekg/dns"},
		{"filter-dnsbl/zones", "filter-dnsbl/a filter-dyndns/b", "filter-dyndns/b"},
		{"filterctl", "pkg/smtpdconf pkg/resolve", ""},
		{"filterctl", "filter-dnsbl pkg/filtertest", "filter-dnsbl pkg/filtertest"},
		{"filter-dnsbl", "filterctl", "filterctl"},
		{"test/demo", "pkg/filter pkg/filtertest github.com/miekg/dns", ""},
		{"bench", "pkg/filtertest", ""},
	} {
		full := func(list string) []string {
			words := strings.Fields(list)
			for i, w := range words {
				if top, _, _ := strings.Cut(w, "/"); top == "pkg" || top == "test" || strings.HasPrefix(top, "filter") {
					words[i] = module + w
				}
			}
			return words
		}
		var want []string
		for _, imp := range full(tt.bad) {
			want = append(want, tt.pkg+" imports "+imp)
		}
		if got := violations(tt.pkg, full(tt.imports)); !slices.Equal(got, want) {
			t.Errorf("%s, %s: got %q, want %q", tt.pkg, tt.imports, got, want)
		}
	}
	if got := fmt.Sprint(violations("pkg/new", []string{"fmt"})); got != "[pkg/new has no import rule]" {
		t.Errorf("a package without a rule: %s", got)
	}
}
