package exempt

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/listfile"
)

// The common list. Nil is empty.
type common struct {
	clients clientFile
	senders senderFile
	rcpts   addressFile
}

var errCommon = errors.New("want permit or reject, then client=, sender= or rcpt=, as in: permit client=192.0.2.1")

func parseCommon(r io.Reader, file string) (*common, []error) {
	c := &common{clients: clientFile{file: file}}
	order := math.MaxInt // the last line counts
	errs := listfile.Each(r, file, func(e listfile.Entry) error {
		order--
		return c.add(e, order)
	})
	return c, errs
}

func (c *common) add(e listfile.Entry, order int) error {
	word, what, ok := strings.Cut(strings.ReplaceAll(e.Text, "\t", " "), " ")
	action, err := parseAction(word)
	if !ok || err != nil || action == Dunno {
		return errCommon
	}
	r := &rule{Match{e.Place, action}, order}
	what = strings.TrimSpace(what)
	if _, err := ipset.ParsePrefix(what); err == nil {
		what = "client=" + what
	}
	kind, value, _ := strings.Cut(what, "=")
	if value = strings.TrimSpace(value); value == "" {
		return errCommon
	}
	if value[0] == '!' {
		return fmt.Errorf("%s: no ! is understood here", listfile.Quote(value))
	}
	if action == Reject && (kind == "sender" || kind == "rcpt") {
		return errors.New("reject takes client= only")
	}
	switch kind {
	case "client":
		warn, err := c.clients.add(value, r, false)
		if warn != nil && len(c.clients.warnings) < maxWarnings {
			c.clients.warnings = append(c.clients.warnings, fmt.Errorf("%s: %w", e.Place, warn))
		}
		return err
	case "sender", "rcpt":
		if err := glued(e); err != nil {
			return err
		}
		if kind == "rcpt" {
			return c.rcpts.add(value, r, true)
		}
		return c.senders.add(value, r)
	}
	return errCommon
}

// Len returns the number of entries.
func (c *common) Len() int {
	return c.clientsOf().Len() + c.sendersOf().Len() + c.rcptsOf().Len()
}

func (c *common) clientsOf() Clients {
	if c == nil {
		return nil
	}
	return Clients{&c.clients}
}

func (c *common) sendersOf() Senders {
	if c == nil {
		return nil
	}
	return Senders{&c.senders}
}

func (c *common) rcptsOf() Recipients {
	if c == nil {
		return nil
	}
	return Recipients{&c.rcpts}
}

// CommonLine returns the line of the common list that permits or rejects what: an
// address or a network, or client=, sender= or rcpt= and what may follow it. The
// comment is put behind it.
func CommonLine(action Action, what, comment string) (string, error) {
	what = strings.TrimSpace(what)
	if _, err := ipset.ParsePrefix(what); err == nil {
		what = "client=" + what
	} else if !strings.Contains(what, "=") {
		if what == "" || strings.ContainsFunc(what, unicode.IsSpace) {
			what = "example.com"
		}
		return "", fmt.Errorf("want one of client=%[1]s (machines of that name or address), sender=%[1]s, rcpt=%[1]s", what)
	}
	if strings.ContainsFunc(what+comment, unicode.IsControl) {
		return "", errors.New("a control character is in it")
	}
	text := action.String() + " " + what
	line := text
	if comment != "" {
		line += " # " + comment
	}
	entries := 0
	errs := listfile.Each(strings.NewReader(line), "", func(e listfile.Entry) error {
		if entries++; e.Text != text {
			return fmt.Errorf("%s ends at a #: put quotes around the part before the @", listfile.Quote(text))
		}
		return new(common).add(e, 0)
	})
	if err := errors.Join(errs...); err != nil {
		_, reason, _ := strings.Cut(err.Error(), ": ") // behind the place
		return "", errors.New(reason)
	}
	if entries != 1 {
		return "", errCommon
	}
	return line, nil
}
