package greylist

import (
	"strings"

	"golang.org/x/net/idna"
)

// NullSender is the normalised sender of bounces.
const NullSender = "<>"

// NormalizeSender returns what of an envelope sender stays the same from one
// message to the next, for use in keys only. Tags against forged bounces (BATV,
// SRS), the recipient and serial numbers within the address give one key for
// all messages of one sender. Rcpt is the first recipient, as given.
func NormalizeSender(sender, rcpt string) string {
	if sender == "" || sender == NullSender {
		return NullSender
	}
	local, domain := splitAddr(strings.ToLower(sender))
	local = unBATV(local)
	rlocal, rdomain := splitAddr(NormalizeRcpt(rcpt))
	if user, origin, ok := unSRS(local); ok {
		local = "srs:" + steady(user, rlocal, rdomain) + "%" + origin
	} else {
		local = steady(local, rlocal, rdomain)
	}
	return cutTo(local, 64) + "@" + asciiDomain(domain)
}

// asciiDomain returns a domain as it is in keys, in lower case and with A-labels,
// as far as it has any (RFC 5890 section 2.3.2.1).
func asciiDomain(domain string) string {
	domain = strings.TrimSuffix(strings.ToLower(domain), ".")
	if strings.ContainsFunc(domain, func(r rune) bool { return r >= 128 }) {
		if a, err := idna.Lookup.ToASCII(domain); err == nil {
			domain = a
		}
	}
	return cutTo(domain, 255)
}

// NormalizeRcpt returns a recipient as it is in keys: in lower case.
func NormalizeRcpt(rcpt string) string {
	return cutTo(strings.TrimSuffix(strings.ToLower(rcpt), "."), 320)
}

// cutTo bounds the length, in bytes. It keeps to whole letters: an export holds
// no parts of them.
func cutTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// splitAddr splits at the last @ and drops the final dot of the domain. A source
// route, "@a.example,@b.example:", is ignored (RFC 5321 section 4.1.1.3).
func splitAddr(addr string) (local, domain string) {
	if strings.HasPrefix(addr, "@") {
		if _, rest, ok := strings.Cut(addr, ":"); ok {
			addr = rest
		}
	}
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return addr, ""
	}
	return addr[:i], strings.TrimSuffix(addr[i+1:], ".")
}

// unBATV returns the mailbox without a bounce tag (draft-levine-smtp-batv, and
// what others made of it).
func unBATV(local string) string {
	if rest, ok := strings.CutPrefix(local, "prvs="); ok {
		tag1, user1, ok := strings.Cut(rest, "=")
		if !ok {
			return local
		}
		i := strings.LastIndexByte(rest, '=')
		user2, tag2 := rest[:i], rest[i+1:]
		first, last := isTag(tag1) && user1 != "", isTag(tag2) && user2 != ""
		switch {
		case first && last && isDraftTag(tag2) && !isDraftTag(tag1):
			return user2
		case first:
			return user1
		case last:
			return user2
		}
		return local
	}
	if i := strings.LastIndex(local, "+prvs="); i > 0 && isTag(local[i+6:]) {
		return local[:i]
	}
	if rest, ok := strings.CutPrefix(local, "btv1=="); ok {
		if tag, user, ok := strings.Cut(rest, "=="); ok && isTag(tag) && user != "" {
			return user
		}
	}
	if rest, ok := strings.CutPrefix(local, "msprvs1="); ok {
		if tag, user, ok := strings.Cut(rest, "="); ok && isTag(tag) && user != "" {
			return user
		}
	}
	return local
}

// isTag: 8 to 20 letters and digits, at least one digit.
func isTag(s string) bool {
	letters, digits, other := count(s)
	return len(s) >= 8 && len(s) <= 20 && digits > 0 && other == 0 && letters+digits == len(s)
}

// isDraftTag: four digits and six hexadecimal ones.
func isDraftTag(s string) bool {
	if len(s) != 10 || !isHex(s) {
		return false
	}
	_, digits, _ := count(s[:4])
	return digits == 4
}

// unSRS returns user and domain of a rewritten sender (Sender Rewriting Scheme).
func unSRS(local string) (user, domain string, ok bool) {
	if len(local) < 6 || !isSRSSep(local[4]) {
		return "", "", false
	}
	rest := local[5:]
	switch local[:4] {
	case "srs0":
	case "srs1": // hash = forwarder = SRS0 without its name
		f := strings.SplitN(rest, "=", 3)
		if len(f) < 3 || f[2] == "" || !isSRSSep(f[2][0]) {
			return "", "", false
		}
		rest = f[2][1:]
	default:
		return "", "", false
	}
	f := strings.SplitN(rest, "=", 4) // hash, day, domain, user
	if len(f) < 4 || f[2] == "" || f[3] == "" {
		return "", "", false
	}
	return f[3], f[2], true
}

func isSRSSep(c byte) bool { return c == '=' || c == '+' || c == '-' }

// steady replaces what changes from message to message.
func steady(local, rlocal, rdomain string) string {
	local = hideRcpt(local, rlocal, rdomain)
	if base, _, ok := strings.Cut(rlocal, "+"); ok && base != "" {
		local = hideRcpt(local, base, rdomain)
	}
	if i := strings.IndexByte(local, '+'); i > 0 {
		local = local[:i]
	}
	local = hideUUIDs(local)
	if !strings.ContainsFunc(local, func(c rune) bool { return c < 128 && isSep(byte(c)) }) {
		if letters, digits, other := count(local); len(local) >= 20 && letters > 0 && digits > 0 && other == 0 {
			return "#"
		}
		return local
	}
	var out []byte
	for start := 0; start <= len(local); {
		end := start
		for end < len(local) && !isSep(local[end]) {
			end++
		}
		out = appendToken(out, local[start:end])
		if end < len(local) {
			out = append(out, local[end])
		}
		start = end + 1
	}
	return foldNumbers(string(out))
}

// hideUUIDs replaces UUIDs (RFC 9562 section 4): some of their groups have no digit.
func hideUUIDs(s string) string {
	for i := 0; i+uuidLen <= len(s); i++ {
		if (i == 0 || !isAlnum(s[i-1])) && isUUID(s[i:i+uuidLen]) && (i+uuidLen == len(s) || !isAlnum(s[i+uuidLen])) {
			s = s[:i] + "#" + s[i+uuidLen:]
		}
	}
	return s
}

const uuidLen = 36

func isUUID(s string) bool {
	for i := 0; i < len(s); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if !isSep(s[i]) || s[i] != s[8] {
				return false
			}
		} else if !isDigit(s[i]) && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

func isSep(c byte) bool { return strings.IndexByte("-_.=/", c) >= 0 }

// hideRcpt replaces the recipient, in the forms that mailing lists write it.
func hideRcpt(s, rlocal, rdomain string) string {
	if rlocal == "" || rdomain == "" {
		return s
	}
	for from := 0; ; {
		i := strings.Index(s[from:], rlocal)
		if i < 0 {
			return s
		}
		i += from
		from = i + 1
		if i > 0 && isAlnum(s[i-1]) {
			continue
		}
		rest := s[i+len(rlocal):]
		for _, sep := range []int{1, 2, 3} {
			if len(rest) < sep || !isRcptSep(rest[:sep]) || !strings.HasPrefix(rest[sep:], rdomain) {
				continue
			}
			after := rest[sep+len(rdomain):]
			if after == "" || !isAlnum(after[0]) {
				return s[:i] + "RCPT" + after
			}
		}
	}
}

func isRcptSep(s string) bool {
	return s == "=3d" || strings.Trim(s, "=*~%@.-") == ""
}

// appendToken appends a part between separators, # in place of what looks like
// a number of a message.
func appendToken(out []byte, t string) []byte {
	letters, digits, other := count(t)
	switch {
	case digits == 0 && (len(t) < 8 || !isHex(t)):
		return append(out, t...)
	case digits == len(t),
		isHex(t) && (len(t) >= 6 || len(t) == 4),
		len(t) >= 10 && letters > 0 && other == 0:
		return append(out, '#')
	}
	for i := 0; i < len(t); {
		j := i
		for j < len(t) && isDigit(t[j]) {
			j++
		}
		switch {
		case j-i >= 4:
			out = append(out, '#')
		case j > i:
			out = append(out, t[i:j]...)
		default:
			out = append(out, t[i])
			j++
		}
		i = j
	}
	return out
}

// foldNumbers makes # of #-#-#.
func foldNumbers(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		n := len(out)
		if s[i] == '#' && n >= 2 && isSep(out[n-1]) && out[n-2] == '#' &&
			(n == 2 || isSep(out[n-3])) && (i+1 == len(s) || isSep(s[i+1])) {
			out = out[:n-1]
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}

func count(s string) (letters, digits, other int) {
	for i := 0; i < len(s); i++ {
		switch {
		case isDigit(s[i]):
			digits++
		case isAlnum(s[i]):
			letters++
		default:
			other++
		}
	}
	return
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlnum(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'z' }

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return s != ""
}
