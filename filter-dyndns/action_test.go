package main

import (
	"testing"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/rdns"
)

func TestReply(t *testing.T) {
	tests := []struct{ given, action, class, want string }{
		{"", "refuse", "dynamic", "550 5.7.1 [192.0.2.1] a.example looks like a residential or generic line; please use your provider's mail server"},
		{"", "defer", "static", "451 4.7.1 [192.0.2.1] a.example looks like a residential or generic line; please use your provider's mail server"},
		{"", "disconnect", "none", "550 5.7.25 [192.0.2.1] has no valid reverse name"},
		{"", "refuse", "bogus", "550 5.7.25 [192.0.2.1] has no valid reverse name"},
		{"", "defer", "mismatch", "451 4.7.25 [192.0.2.1] reverse name a.example does not resolve to this address"},
		{"554 no", "refuse", "bogus", "554 no"},
		{"554 no", "defer", "bogus", "451 no"},
		{"550 5.7.1 100%% %c: %n at %i", "refuse", "hosting", "550 5.7.1 100% hosting: a.example at 192.0.2.1"},
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
		c := &check{replies: replies}
		f := rdns.Finding{Verdict: rdns.Verdict{Class: class}, Name: "a.example"}
		if got := expand(c.reply(cli.Action{Name: tt.action}, class), f, "192.0.2.1").String(); got != tt.want {
			t.Errorf("%q, %s %s: %q, want %q", tt.given, tt.class, tt.action, got, tt.want)
		}
	}
	if _, err := parseReplies("550 %x"); err == nil {
		t.Error("a reply with an unknown placeholder is taken")
	}
}
