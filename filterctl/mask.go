package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// A mask puts other words in the place of addresses and names, the same for the
// same within one report. It has a secret of its own that is nowhere kept: else
// whoever has a list of addresses could find them. Nil hides nothing.
type mask struct{ secret []byte }

func newMask(hide bool) *mask {
	if !hide {
		return nil
	}
	m := &mask{make([]byte, 32)}
	_, _ = rand.Read(m.secret) // never fails
	return m
}

var letters = base32.NewEncoding("abcdefghijkmnopqrstuvwxyz2345679").WithPadding(base32.NoPadding)

func (m *mask) word(kind, s string) string {
	h := hmac.New(sha256.New, m.secret)
	h.Write([]byte(kind + "\x00" + strings.ToLower(s)))
	return kind + "-" + letters.EncodeToString(h.Sum(nil)[:5])
}

func (m *mask) addr(s string) string {
	if m == nil || s == "" || s == "local" {
		return s
	}
	return m.word("client", s)
}

// host keeps whether there is a name, and whether it is confirmed.
func (m *mask) host(s string) string {
	if m == nil || s == "" || s == "-" {
		return s
	}
	if name, ok := strings.CutPrefix(s, "?"); ok {
		return "?" + m.word("host", name)
	}
	return m.word("host", s)
}

// mail keeps the null sender, and what has one domain in common.
func (m *mask) mail(s string) string {
	if m == nil || s == "" {
		return s
	}
	user, domain, ok := strings.Cut(s, "@")
	if !ok {
		return m.word("user", s)
	}
	return m.word("user", user+"@"+domain) + "@" + m.word("domain", domain)
}
