package cli

import "testing"

func TestIsDomain(t *testing.T) {
	for in, want := range map[string]bool{
		"example.com": true, "a.b-c.example.": true, "b\u00fccher.example": true, "_dmarc.example.com": true,
		"localhost": false, "192.0.2.1": false, "": false, ".": false, "a..b": false, "a b.example": false, "x/y.example": false,
	} {
		if IsDomain(in) != want {
			t.Errorf("%q: %t", in, !want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"": "-", "a b": "a b", "b\u00fccher": "b\u00fccher", "\x1b[2J": `"\x1b[2J"`, "a\u009bb": `"a\u009bb"`, "\xff": `"\xff"`, "a\tb": `"a\tb"`, "a\u202eb": `"a\u202eb"`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
