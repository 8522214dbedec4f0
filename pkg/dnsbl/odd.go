package dnsbl

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Warnings returns what is probably not meant, a line each.
func (o Options) Warnings() (lines []string) {
	for _, l := range o.Lists {
		switch {
		case l.Dead != "":
			lines = append(lines, fmt.Sprintf("list %s is not asked: %s", l.Label, l.Dead))
		case l.Odd != "":
			lines = append(lines, fmt.Sprintf("list %s: %s", l.Label, l.Odd))
		}
	}
	if o.JunkAt > 0 && o.BlockAt > 0 && o.JunkAt >= o.BlockAt {
		lines = append(lines, fmt.Sprintf("-junkAt %d is not below -blockAt %d: nothing is junked for its score", o.JunkAt, o.BlockAt))
	}
	most, always, plain := o.most()
	for _, t := range []struct {
		flag string
		at   int
	}{{"-blockAt", o.BlockAt}, {"-junkAt", o.JunkAt}} {
		if t.at <= most || always {
			continue
		}
		text := fmt.Sprintf("all lists together weigh %d, which does not reach %s %d", most, t.flag, t.at)
		if plain != nil {
			text += fmt.Sprintf(": in a value as postscreen has them a list without a weight counts 1, add *%d to %s", plain.info.weight, plain.Label)
		}
		lines = append(lines, text)
	}
	return lines
}

// most returns what may be reached, whether a list decides alone, and the first
// list that weighs less than it does by itself.
func (o Options) most() (n int, always bool, plain *List) {
	for i, l := range o.Lists {
		if l.Dead != "" || l.Weight < 0 {
			continue
		}
		always = always || l.Block
		n = min(n+l.Weight, math.MaxInt32)
		if l.plain && plain == nil {
			plain = &o.Lists[i]
		}
	}
	return n, always, plain
}

// odd says what is probably wrong with a list.
func (l *List) odd() string {
	if k := keyOf(l.zone); k != "" && placeholder(k) {
		return "the first label of the zone stands for your key: put that there"
	}
	if l.info.zone == "" {
		if near := nearest(strings.TrimPrefix(l.zone, keyOf(l.zone)+".")); near != "" {
			return fmt.Sprintf("there is no such zone known; is it %s?", near)
		}
	}
	switch {
	case l.matched && !l.possible():
		text := "it never answers what the match wants"
		if l.info.match != "" {
			text += "; by itself it has =" + l.info.match
		}
		return text
	case l.Weight > 0 && l.info.weight < 0:
		return fmt.Sprintf("it is an allow list: give it a negative weight, such as *%d", l.info.weight)
	case l.Weight > 0 && l.info.zone == "" && allowName(l.zone):
		return "by its name it is an allow list: give it a negative weight, such as *-1"
	case l.Weight < 0 && l.info.zone != "" && l.info.weight > 0 && !(l.matched && (l.info.kind == scores || l.info.white1)):
		return "it is a block list, and has a negative weight"
	case l.info.match != "" && !l.matched && l.Weight == 0:
		return "it weighs nothing"
	}
	return ""
}

// possible reports whether the zone may answer something that matches and is a
// listing.
func (l *List) possible() bool {
	var codes []Match
	for _, c := range l.info.codes {
		if m, err := ParseMatch(c.match); err == nil {
			codes = append(codes, m)
		}
	}
	return l.Match.some(func(a netip.Addr) bool {
		return l.info.fault(a) == nil &&
			(codes == nil || slices.ContainsFunc(codes, func(m Match) bool { return m.Contains(a) }))
	}, codes != nil)
}

// placeholder reports whether a key is one of documentation.
func placeholder(key string) bool {
	key = strings.ToLower(key)
	if strings.ContainsAny(key, "-_") || strings.Trim(key, "x") == "" {
		return true
	}
	for _, w := range []string{"your", "key", "dqs", "apikey", "example", "insert", "here", "secret", "changeme"} {
		if key == w || strings.HasPrefix(key, "your") || strings.HasPrefix(key, "mykey") || strings.HasSuffix(key, "keyhere") || strings.HasSuffix(key, "apikey") || strings.HasSuffix(key, "dqskey") {
			return true
		}
	}
	return false
}

// allowName reports whether a zone is named as allow lists are.
func allowName(zone string) bool {
	for label := range strings.SplitSeq(zone, ".") {
		switch label {
		case "wl", "swl", "dwl", "dnswl", "white", "whitelist", "whitelisted", "allow", "allowlist", "allowed", "nobl", "welcomelist", "ipwl":
			return true
		}
	}
	return false
}

// nearest returns the known zone that another one is probably meant to be: one or
// two letters are wrong, or the top-level domain.
func nearest(zone string) string {
	best, least := "", 3
	for _, k := range knownZones() {
		if withoutLast(k.zone) == withoutLast(zone) && k.zone != zone {
			return k.zone
		}
		if len(k.zone) < 10 || max(len(k.zone), len(zone))-min(len(k.zone), len(zone)) > 2 {
			continue
		}
		if d := distance(k.zone, zone); d > 0 && d < least {
			best, least = k.zone, d
		}
	}
	return best
}

func withoutLast(zone string) string { return zone[:strings.LastIndexByte(zone, '.')+1] }

// distance is the number of letters to change, add, leave out, or swap with their
// neighbours (optimal string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range b {
		rows[0][j+1] = j + 1
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			d := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				d++
			}
			d = min(d, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
