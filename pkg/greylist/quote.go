package greylist

import (
	"fmt"
	"strings"

	"opensmtpd-filters/pkg/listfile"
)

func quoted(s string) string { return listfile.Quote(s) }

// parseDomain reads a name of at least one label, in lower case.
func parseDomain(s string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	if name == "" || len(name) > 253 {
		return "", fmt.Errorf("%s is not a domain", quoted(s))
	}
	for label := range strings.SplitSeq(name, ".") {
		ok := label != "" && len(label) <= 63
		for i := 0; i < len(label); i++ {
			ok = ok && (isAlnum(label[i]) || label[i] == '-' || label[i] == '_')
		}
		if !ok {
			return "", fmt.Errorf("%s is not a domain", quoted(s))
		}
	}
	return name, nil
}
