package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// unguarded are the files that may start goroutines by themselves.
var unguarded = []string{
	"pkg/guard/guard.go", // that is where it is done
	"pkg/cli/log.go",     // writes the log, in which a panic would be said
	"pkg/filter/future.go",
	"pkg/filter/engine.go",
	"pkg/filter/machine.go",
	"pkg/filter/watch.go",
	"pkg/resolve/pool.go", // context.AfterFunc closes a connection
}

// unguardedCalls returns where a file starts a goroutine in which a panic would
// end the program: by a go statement, by AfterFunc of time or context, or by Go of
// a sync.WaitGroup with anything but a function that guards all it does.
func unguardedCalls(fset *token.FileSet, f *ast.File) (places []string) {
	packages := map[string]bool{}
	for _, spec := range f.Imports {
		name := path.Base(strings.Trim(spec.Path.Value, `"`))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		packages[name] = true
	}
	bad := func(n ast.Node) { places = append(places, fset.Position(n.Pos()).String()) }
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			bad(n)
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				break
			}
			id, _ := sel.X.(*ast.Ident)
			ofPackage := id != nil && packages[id.Name]
			switch {
			case sel.Sel.Name == "AfterFunc" && ofPackage && id.Name != "guard":
				bad(n)
			case sel.Sel.Name == "Go" && !ofPackage && len(n.Args) == 1 && !guards(n.Args[0]):
				bad(n)
			}
		}
		return true
	})
	return places
}

// guards reports whether each statement of a function literal is a call of Run or
// Call, of package guard or a guard.Complaints, or an if about its result.
func guards(f ast.Expr) bool {
	lit, ok := f.(*ast.FuncLit)
	if !ok {
		return false
	}
	return !slices.ContainsFunc(lit.Body.List, func(s ast.Stmt) bool {
		var e ast.Expr
		switch s := s.(type) {
		case *ast.ExprStmt:
			e = s.X
		case *ast.IfStmt:
			if as, ok := s.Init.(*ast.AssignStmt); ok && len(as.Rhs) == 1 {
				e = as.Rhs[0]
			}
		}
		call, ok := e.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		return !ok || sel.Sel.Name != "Run" && sel.Sel.Name != "Call" || len(call.Args) == 0
	})
}

// A panic in a goroutine that nobody recovers ends the filter, and with it smtpd.
func TestGoroutines(t *testing.T) {
	root := os.DirFS("..")
	seen := map[string]bool{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		top, _, _ := strings.Cut(name, "/")
		switch {
		case d.IsDir() && (name != "." && d.Name()[0] == '.' || d.Name() == "testdata" || top == "test" || top == "bench" ||
			name == "pkg/filtertest" || name == "pkg/greylist/storetest"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, text, 0)
		if err != nil {
			return err
		}
		places := unguardedCalls(fset, f)
		seen[name] = places != nil
		if !slices.Contains(unguarded, name) {
			for _, p := range places {
				t.Errorf("%s: a goroutine without pkg/guard", p)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range unguarded {
		if !seen[name] {
			t.Errorf("%s starts none: it need not be on the list", name)
		}
	}
}

func TestUnguardedCalls(t *testing.T) {
	for text, want := range map[string]int{
		`go f()`:                         1,
		`go func() { defer r(); f() }()`: 1,
		`time.AfterFunc(1, f)`:           1,
		`context.AfterFunc(ctx, f)`:      1,
		`wg.Go(f)`:                       1,
		`wg.Go(func() { f() })`:          1,
		`x.wg.Go(func() { f(); guard.Run(l, "", f) })`:                                1,
		`wg.Go(func() { c.Run(ctx); f() })`:                                           1,
		`wg.Go(func() { guard.Run(l, "", f) })`:                                       0,
		`x.wg.Go(func() { x.log.Run("a", f); x.log.Run("b", f) })`:                    0,
		`wg.Go(func() { if err := guard.Call(f); err != nil { guard.Call(g) } })`:     0,
		`guard.Go(l, "", f); guard.Keep(ctx, l, "", f); guard.AfterFunc(l, 1, "", f)`: 0,
		`filter.Go(s, 1, f)`: 0,
	} {
		src := "package p\nimport (\"time\"; \"context\"; \"opensmtpd-filters/pkg/guard\"; \"opensmtpd-filters/pkg/filter\")\nfunc x() {\n" + text + "\n}\n"
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "p.go", src, 0)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := unguardedCalls(fset, f); len(got) != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
