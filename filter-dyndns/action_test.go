package main

import (
	"testing"
	"time"

	"opensmtpd-filters/pkg/rdns"
)

func TestAction(t *testing.T) {
	for in, delay := range map[string]time.Duration{
		"proceed": 0, "junk": 0, "reject": 0, "tempfail": 0, "disconnect": 0,
		"slow:5s": 5 * time.Second, "slow:3": 3 * time.Second, "slow:30s": 30 * time.Second,
	} {
		var a action
		if err := a.Set(in); err != nil || a.String() != in || a.delay != delay {
			t.Errorf("Set(%q): %v, %q, %v", in, err, a.String(), a.delay)
		}
	}
	for _, in := range []string{"", "Junk", "slow", "slow:", "slow:0", "slow:31s", "slow:-1s", "slow:x", "reject:5s"} {
		var a action
		if err := a.Set(in); err == nil {
			t.Errorf("Set(%q): no error", in)
		}
	}
}

func TestReply(t *testing.T) {
	tests := []struct{ given, action, class, want string }{
		{"", "reject", "dynamic", "550 5.7.1 [192.0.2.1] a.example looks like a residential or generic line; please use your provider's mail server"},
		{"", "tempfail", "static", "451 4.7.1 [192.0.2.1] a.example looks like a residential or generic line; please use your provider's mail server"},
		{"", "disconnect", "none", "550 5.7.25 [192.0.2.1] has no valid reverse name"},
		{"", "tempfail", "mismatch", "451 4.7.25 [192.0.2.1] has no valid reverse name"},
		{"554 no", "reject", "bogus", "554 no"},
		{"554 no", "tempfail", "bogus", "451 no"},
		{"550 5.7.1 100%% %c: %n at %i", "reject", "hosting", "550 5.7.1 100% hosting: a.example at 192.0.2.1"},
	}
	for _, tt := range tests {
		replies, err := parseReplies(tt.given)
		if err != nil {
			t.Errorf("%q: %v", tt.given, err)
			continue
		}
		class, err := rdns.ParseClass(tt.class)
		if err != nil {
			t.Fatal(err)
		}
		c := &checker{replies: replies}
		f := rdns.Finding{Verdict: rdns.Verdict{Class: class}, Name: "a.example"}
		if got := expand(c.reply(&action{name: tt.action}, class), f, "192.0.2.1").String(); got != tt.want {
			t.Errorf("%q, %s %s: %q, want %q", tt.given, tt.class, tt.action, got, tt.want)
		}
	}
	if _, err := parseReplies("550 %x"); err == nil {
		t.Error("a reply with an unknown placeholder is taken")
	}
}
