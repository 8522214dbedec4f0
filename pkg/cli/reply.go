package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A Reply is the text of a refusal, as an operator writes it.
type Reply struct {
	Code     int    // 400 to 599
	Enhanced string // RFC 3463, empty if there is none
	Text     string // with placeholders
}

// ParseReply reads a code, optionally an enhanced code, and a text in which a
// percent sign stands before one of the letters, or another percent sign.
func ParseReply(s, letters string) (Reply, error) {
	codeText, text, ok := strings.Cut(s, " ")
	code, err := strconv.Atoi(codeText)
	if !ok || err != nil || len(codeText) != 3 || code < 400 || code > 599 || strings.TrimSpace(text) == "" {
		return Reply{}, errors.New("not a code from 400 to 599, a blank and a text")
	}
	r := Reply{Code: code, Text: text}
	if first, rest, _ := strings.Cut(text, " "); enhanced(first) {
		if first[0] != codeText[0] {
			return Reply{}, fmt.Errorf("%s does not go with %d", first, code)
		}
		if strings.TrimSpace(rest) == "" {
			return Reply{}, errors.New("no text after the codes")
		}
		r.Enhanced, r.Text = first, rest
	}
	for i := 0; i < len(r.Text); i++ {
		if r.Text[i] != '%' {
			continue
		}
		if i++; i == len(r.Text) || !strings.Contains(letters+"%", r.Text[i:i+1]) {
			return Reply{}, fmt.Errorf("after %% stands one of %s%%", letters)
		}
	}
	return r, nil
}

// enhanced reports whether s is an enhanced status code of a refusal, such as
// 5.7.25 (RFC 3463 section 2).
func enhanced(s string) bool {
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

// Temporary returns the reply with code 451 if it is a permanent one.
func (r Reply) Temporary() Reply {
	if r.Code >= 500 {
		r.Code = 451
		if r.Enhanced != "" {
			r.Enhanced = "4" + r.Enhanced[1:]
		}
	}
	return r
}

// Expand returns the reply with values in the place of placeholders, given as
// "%i", "192.0.2.1", ...
func (r Reply) Expand(values ...string) Reply {
	r.Text = strings.NewReplacer(append(values, "%%", "%")...).Replace(r.Text)
	return r
}

// Has reports whether a placeholder is in the text.
func (r Reply) Has(placeholder string) bool {
	return r.Expand(placeholder, "x").Text != r.Expand(placeholder, "").Text
}

// String returns the reply as it is sent.
func (r Reply) String() string {
	return strings.Join(strings.Fields(fmt.Sprint(r.Code, " ", r.Enhanced, " ", r.Text)), " ")
}
