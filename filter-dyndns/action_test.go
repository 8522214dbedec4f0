package main

import (
	"testing"
	"time"

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

// A client that would be let pass anyway is judged once: there is nothing that the
// name in HELO could clear it of.
func TestHeloMatters(t *testing.T) {
	for class := rdns.None; class <= rdns.Proper; class++ {
		for _, action := range []string{"", "proceed", "junk", "defer", "refuse", "disconnect", "slow:1s"} {
			a := &cli.Action{MaxDelay: time.Minute}
			if action != "" {
				if err := a.Set(action); err != nil {
					t.Fatal(err)
				}
			}
			for _, helo := range []string{"", "mail.example.net"} {
				for _, on := range []bool{false, true} {
					c := &check{helo: on, actions: map[rdns.Class]*cli.Action{}}
					if class != rdns.Proper {
						c.actions[class] = a
					}
					passes := class == rdns.Proper || action == "" || action == "proceed"
					f := rdns.Finding{Verdict: rdns.Verdict{Class: class}}
					if got, want := c.heloMatters(f, helo), on && helo != "" && !passes; got != want {
						t.Errorf("%s %q, HELO %q, -helo %v: judged again %v", class, action, helo, on, got)
					}
				}
			}
		}
	}
	c := &check{}
	if a := c.action(rdns.Finding{Verdict: rdns.Verdict{Class: rdns.Proper}}); a.String() != cli.Proceed {
		t.Errorf("the action for a proper name is called %q", a.String())
	}
}
