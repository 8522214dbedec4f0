package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes folders, files and links ("name -> target") in a new folder, which
// is what it returns.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	for _, n := range names {
		name, to, link := strings.Cut(n, " -> ")
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case link:
			must(t, os.Symlink(strings.ReplaceAll(to, "ROOT", root), path))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, nil, 0o644))
		}
	}
	return root
}

// below makes paths relative to root, and takes the root away from absolute ones.
func below(root string, paths []string) string {
	var out []string
	for _, p := range paths {
		rel, _ := filepath.Rel(root, p)
		out = append(out, rel)
	}
	return strings.Join(out, " ")
}

func TestFolders(t *testing.T) {
	for _, tt := range []struct{ tree, file, want string }{
		{"a/list", "a/list", "a"},
		{"a/", "a/none", "a"},
		{"", "none/list", ""},
		{"b/list|a/list -> ../b/list", "a/list", "a b"},
		{"b/list|a/list -> ROOT/b/list", "a/list", "a b"},
		{"c/list|b/list -> ../c/list|a/list -> ROOT/b/list", "a/list", "a b c"},
		{"a/list -> list", "a/list", "a"}, // a circle
		{"a/list -> ../b/list", "a/list", "a"},
		{"real/list|a -> real", "a/list", "real"},
		{"deep/real/x/|deep/list|a -> deep/real/x|deep/real/x/list -> ../../list", "a/list", "deep deep/real/x"},
		// As a volume of Kubernetes has them.
		{"v/..1/list|v/..data -> ..1|v/list -> ..data/list", "v/list", "v v/..1"},
		{"a/x/|a/list", "a/x/../list", "a"},
	} {
		var names []string
		if tt.tree != "" {
			names = strings.Split(tt.tree, "|")
		}
		root := tree(t, names...)
		if got := below(root, New(Needs{Read: []string{root + "/" + tt.file}}).Read); got != tt.want {
			t.Errorf("%s of %s: folders %q, want %q", tt.file, tt.tree, got, tt.want)
		}
	}
}

// A file that is replaced is inside, whatever is done with its folder is not.
func TestOutside(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(t *testing.T, root string)
		want   string
	}{
		"nothing": {func(*testing.T, string) {}, ""},
		"file replaced": {func(t *testing.T, root string) {
			must(t, os.WriteFile(root+"/a/new", nil, 0o644))
			must(t, os.Rename(root+"/a/new", root+"/a/list"))
		}, ""},
		"file gone": {func(t *testing.T, root string) { must(t, os.Remove(root+"/a/list")) }, ""},
		"link to a file below": {func(t *testing.T, root string) {
			must(t, os.MkdirAll(root+"/a/x", 0o755))
			must(t, os.Remove(root+"/a/list"))
			must(t, os.Symlink("x/list", root+"/a/list"))
		}, ""},
		"link elsewhere": {func(t *testing.T, root string) {
			must(t, os.Remove(root+"/a/list"))
			must(t, os.Symlink("../b/list", root+"/a/list"))
		}, "b"},
		"link to nowhere": {func(t *testing.T, root string) {
			must(t, os.Remove(root+"/a/list"))
			must(t, os.Symlink("../none/list", root+"/a/list"))
		}, "none"},
		"folder replaced": {func(t *testing.T, root string) {
			must(t, os.Rename(root+"/a", root+"/old"))
			must(t, os.Rename(root+"/b", root+"/a"))
		}, "a"},
		"folder gone":  {func(t *testing.T, root string) { must(t, os.RemoveAll(root+"/a")) }, "a"},
		"folder moved": {func(t *testing.T, root string) { must(t, os.Rename(root+"/a", root+"/old")) }, "a"},
		"folder a link to itself": {func(t *testing.T, root string) {
			must(t, os.Rename(root+"/a", root+"/old"))
			must(t, os.Symlink("old", root+"/a"))
		}, ""},
		"folder a link elsewhere": {func(t *testing.T, root string) {
			must(t, os.Rename(root+"/a", root+"/old"))
			must(t, os.Symlink("b", root+"/a"))
		}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, "a/list", "b/list")
			s := New(Needs{Read: []string{root + "/a/list"}})
			tt.change(t, root)
			if got := below(root, s.Outside()); got != tt.want {
				t.Errorf("outside are %q, want %q", got, tt.want)
			}
		})
	}
	root := tree(t)
	s := New(Needs{Write: []string{root + "/late/db"}, Read: []string{root + "/late/list"}})
	must(t, os.Mkdir(root+"/late", 0o755))
	if got := below(root, s.Outside()); got != "late" {
		t.Errorf("outside are %q, want the folder that was made later", got)
	}
}

func TestNeeds(t *testing.T) {
	root := tree(t, "a/", "b/", "s/")
	var n Needs
	n.Add(Needs{Read: []string{root + "/a/1"}, Ports: []uint16{853, 53}})
	n.Add(Needs{Read: []string{root + "/a/2"}, Write: []string{root + "/b/1"}, Ports: []uint16{53}, Unix: []string{root + "/s/redis"}})
	s := New(n)
	if r, w, u := below(root, s.Read), below(root, s.Write), below(root, s.Unix); r != "a" || w != "b" || u != "s" {
		t.Errorf("read %q, write %q, sockets %q", r, w, u)
	}
	if !slices.Equal(s.Ports, []uint16{53, 853}) || s.Any {
		t.Errorf("ports %v, any %v", s.Ports, s.Any)
	}
	n.Add(Needs{Any: true})
	if n.Add(Needs{}); !New(n).Any {
		t.Error("any port was asked for")
	}
}
