//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLedger(t *testing.T) {
	body := func(id uint64) []byte { return fmt.Appendf(nil, "%s%d\r\nhello\r\n.\r\n", mark, id) }
	const file = "X: y\n\n" + mark + "1\nhello\n.\n"
	for _, tt := range []struct {
		name  string
		fate  fate
		files map[string]string
		want  string // of each fault, "" for none
	}{
		{"as it should be", accepted, map[string]string{"a/new/1": file, "b/.Junk/new/1": file}, ""},
		{"a long line in pieces", accepted, map[string]string{"a/new/1": file, "b/new/1": strings.Replace(file, "hello", "hel\nlo", 1)}, ""},
		{"refused", refused, nil, ""},
		{"nobody knows", unknown, nil, ""},
		{"nobody knows, and one has it", unknown, map[string]string{"a/new/1": file}, ""},
		{"lost", accepted, map[string]string{"a/new/1": file}, "accepted and never delivered: 1"},
		{"twice", accepted, map[string]string{"a/new/1": file, "a/new/2": file, "b/new/1": file}, "twice"},
		{"again", accepted, map[string]string{"a/new/1": file, "b/new/1": file, "b/new/2": file}, "delivered again"},
		{"refused, yet there", refused, map[string]string{"a/new/1": file}, "was refused, and delivered"},
		{"to another", accepted, map[string]string{"a/new/1": file, "b/new/1": file, "Z/new/1": file}, "to whom it was not sent"},
		{"cut", accepted, map[string]string{"a/new/1": file, "b/new/1": "X: y\n\n" + mark + "1\nhello\n"}, "was changed"},
		{"the rest as a mail", accepted, map[string]string{"a/new/1": file, "b/new/1": file, "b/new/2": "X: y\n\nhello"}, "nobody has sent"},
		{"another number", accepted, map[string]string{"a/new/1": file, "b/new/1": file, "b/new/2": "X: y\n\n" + mark + "2\n"}, "nobody has sent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := newLedger()
			id, _ := l.offer(body)
			l.expect(id, []string{"a", "b"})
			l.settle(id, tt.fate)
			if err := l.collect(dir); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(l.verdict(), "; ")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("verdict %q, want %q", got, tt.want)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*", "new", "*")); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}
