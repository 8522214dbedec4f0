package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"opensmtpd-filters/pkg/cli"
	"opensmtpd-filters/pkg/filter"
	"opensmtpd-filters/pkg/rdns"
)

// action is what is done with the clients of a class.
type action struct {
	name  string
	delay time.Duration // of slow
}

func (a *action) String() string { return a.name }

// Set reads proceed, junk, reject, tempfail, disconnect or slow:TIME.
func (a *action) Set(s string) error {
	name, delay, slow := strings.Cut(s, ":")
	*a = action{name: s}
	switch name {
	case "proceed", "junk", "reject", "tempfail", "disconnect":
		if slow {
			return fmt.Errorf("%s takes no time", name)
		}
		return nil
	case "slow":
		d, err := cli.ParseDuration(delay)
		if err != nil {
			return err
		}
		if d <= 0 || d > filter.MaxDelay {
			return fmt.Errorf("slow takes a time up to %v", filter.MaxDelay)
		}
		a.delay = d
		return nil
	}
	return errors.New("not one of proceed, junk, reject, tempfail, disconnect, slow:TIME")
}

// refuses reports whether the client gets a reply of ours.
func (a *action) refuses() bool {
	return a.name == "reject" || a.name == "tempfail" || a.name == "disconnect"
}

// response is what smtpd is told.
func (a *action) response(r reply, class rdns.Class, addr, name string) filter.Response {
	switch a.name {
	case "junk":
		return filter.Junk()
	case "reject", "tempfail":
		code, enhanced := r.codes(a)
		return filter.Reject(code, enhanced, r.expand(class, addr, name))
	case "disconnect":
		code, enhanced := r.codes(a)
		return filter.Disconnect(code, enhanced, r.expand(class, addr, name))
	}
	return filter.Proceed().After(a.delay)
}

// reply is the text of a refusal.
type reply struct {
	code     int
	enhanced string // RFC 3463, empty if the text has none
	text     string // with %i, %n, %c
}

const (
	residential = "550 5.7.1 [%i] %n looks like a residential or generic line; please use your provider's mail server"
	nameless    = "550 5.7.25 [%i] has no valid reverse name" // RFC 7372 section 3.3
)

// parseReplies returns the reply for each class: the given one, or our own.
func parseReplies(given string) (map[rdns.Class]reply, error) {
	replies := make(map[rdns.Class]reply)
	for class := rdns.None; class < rdns.Proper; class++ {
		text := residential
		switch {
		case given != "":
			text = given
		case class == rdns.None || class == rdns.Mismatch || class == rdns.Bogus:
			text = nameless
		}
		r, err := parseReply(text)
		if err != nil {
			return nil, fmt.Errorf("-reply %q: %w", given, err)
		}
		replies[class] = r
	}
	return replies, nil
}

func parseReply(s string) (reply, error) {
	codeText, text, ok := strings.Cut(s, " ")
	code, err := strconv.Atoi(codeText)
	if !ok || err != nil || len(codeText) != 3 || code < 400 || code > 599 || strings.TrimSpace(text) == "" {
		return reply{}, errors.New("not a code from 400 to 599, a blank and a text")
	}
	r := reply{code: code, text: text}
	if enhancedCode(text) {
		return reply{}, errors.New("no text after the codes")
	}
	if first, rest, ok := strings.Cut(text, " "); ok && enhancedCode(first) {
		if first[0] != codeText[0] {
			return reply{}, fmt.Errorf("%s does not go with %d", first, code)
		}
		r.enhanced, r.text = first, rest
	}
	for i := 0; i < len(r.text); i++ {
		if r.text[i] != '%' {
			continue
		}
		i++
		if i == len(r.text) || !strings.ContainsRune("inc%", rune(r.text[i])) {
			return reply{}, errors.New("after % stands i (address), n (name), c (class) or %")
		}
	}
	return r, nil
}

// enhancedCode reports whether s is an enhanced status code of a refusal, such
// as 5.7.25 (RFC 3463 section 2).
func enhancedCode(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != "4" && parts[0] != "5" {
		return false
	}
	for _, p := range parts[1:] {
		if _, err := strconv.ParseUint(p, 10, 10); err != nil || len(p) > 3 {
			return false
		}
	}
	return true
}

// codes returns the codes of the reply. A permanent one is turned into 451 for
// tempfail.
func (r reply) codes(a *action) (int, string) {
	if a.name != "tempfail" || r.code < 500 {
		return r.code, r.enhanced
	}
	if r.enhanced == "" {
		return 451, ""
	}
	return 451, "4" + r.enhanced[1:]
}

// template returns the reply as it is sent for an action, but for its values.
func (r reply) template(a *action) string {
	code, enhanced := r.codes(a)
	return strings.Join(strings.Fields(fmt.Sprint(code, " ", enhanced, " ", r.text)), " ")
}

func (r reply) expand(class rdns.Class, addr, name string) string {
	if name == "" {
		name = rdns.Unknown
	}
	return strings.NewReplacer("%i", addr, "%n", name, "%c", class.String(), "%%", "%").Replace(r.text)
}
