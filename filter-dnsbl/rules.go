package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/gaissmai/bart"

	"opensmtpd-filters/pkg/ipset"
	"opensmtpd-filters/pkg/listfile"
)

// rules are networks and what is done with their clients. The first line that
// names a client's network counts, as in cidr_table(5) of Postfix. A nil *rules
// has none.
type rules struct {
	table bart.Table[rule]
	n     int
}

type rule struct {
	action action
	order  int
	where  string // file:line
}

type action byte

const (
	dunno action = iota // ask the lists
	permit
	reject
)

func parsePermit(r io.Reader, file string) (*rules, []error) { return parseRules(r, file, permit) }
func parseReject(r io.Reader, file string) (*rules, []error) { return parseRules(r, file, reject) }

// parseRules reads lines of a network and, optionally, permit, reject or dunno.
func parseRules(r io.Reader, file string, def action) (*rules, []error) {
	rs := new(rules)
	var errs []error
	more := 0
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		text, err := lines.ReadString('\n')
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		text, _, _ = strings.Cut(text, "#")
		if fields := strings.Fields(text); len(fields) > 0 && (err == nil || err == io.EOF) {
			ru, p, bad := parseRule(fields, def)
			ru.where = fmt.Sprintf("%s:%d", file, n)
			switch {
			case bad == nil:
				rs.insert(p, ru)
			case len(errs) < listfile.MaxErrors:
				errs = append(errs, fmt.Errorf("%s: %w", ru.where, bad))
			default:
				more++
			}
		}
		if err == nil {
			continue
		}
		if more > 0 {
			errs = append(errs, fmt.Errorf("%s: %d more bad lines", file, more))
		}
		if err != io.EOF {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
		}
		return rs, errs
	}
}

func parseRule(fields []string, def action) (rule, netip.Prefix, error) {
	ru := rule{action: def}
	p, err := ipset.ParsePrefix(fields[0])
	if err != nil || len(fields) == 1 {
		return ru, p, err
	}
	switch strings.ToLower(fields[1]) {
	case "permit":
		ru.action = permit
	case "reject":
		ru.action = reject
	case "dunno":
		ru.action = dunno
	default:
		return ru, p, fmt.Errorf("%.40q is not permit, reject or dunno", fields[1])
	}
	if len(fields) > 2 {
		return ru, p, fmt.Errorf("%.40q follows %s", fields[2], fields[1])
	}
	return ru, p, nil
}

// insert adds a rule after those that are there.
func (rs *rules) insert(p netip.Prefix, ru rule) {
	ru.order = rs.n
	rs.n++
	rs.table.Modify(p, func(old rule, ok bool) (rule, bool) {
		if ok {
			ru = old
		}
		return ru, false
	})
}

// mergeRules returns the rules of several files, in this order.
func mergeRules(files ...*rules) *rules {
	m := new(rules)
	for _, f := range files {
		if f == nil {
			continue
		}
		for p, ru := range f.table.All() {
			ru.order += m.n
			m.table.Modify(p, func(old rule, ok bool) (rule, bool) {
				if ok && old.order < ru.order {
					return old, false
				}
				return ru, false
			})
		}
		m.n += f.n
	}
	return m
}

// Len returns the number of lines.
func (rs *rules) Len() int {
	if rs == nil {
		return 0
	}
	return rs.n
}

// lookup returns the first rule that applies to an address.
func (rs *rules) lookup(a netip.Addr) (first rule, ok bool) {
	if rs == nil || !a.IsValid() {
		return rule{}, false
	}
	a = a.Unmap().WithZone("")
	for _, ru := range rs.table.Supernets(netip.PrefixFrom(a, a.BitLen())) {
		if !ok || ru.order < first.order {
			first, ok = ru, true
		}
	}
	return first, ok
}
