package cli

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Strings is a flag that can be given several times.
type Strings []string

// Set adds a value.
func (s *Strings) Set(value string) error {
	*s = append(*s, value)
	return nil
}

func (s *Strings) String() string {
	return strings.Join(*s, ", ")
}

// A Duration is a flag that takes what ParseDuration reads, from Min to Max. A
// Max of 0 is no limit.
type Duration struct {
	Value, Min, Max time.Duration
}

// Set reads a value.
func (d *Duration) Set(s string) error {
	v, err := ParseDuration(s)
	switch {
	case err != nil:
		return err
	case v < d.Min:
		return errors.New("less than " + format(d.Min))
	case d.Max != 0 && v > d.Max:
		return errors.New("more than " + format(d.Max))
	}
	d.Value = v
	return nil
}

func (d *Duration) String() string {
	return format(d.Value)
}

// ParseDuration reads a time as Go writes it (5s, 1h30m), with days before it
// (30d, 1d12h), or a bare number of seconds (300). It is never negative.
func ParseDuration(s string) (time.Duration, error) {
	const maxDays = 36500 // of the 106751 that fit
	bad := errors.New("not a time such as 5s, 1h30m, 30d or 300 (seconds)")
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	var days uint64
	n, rest, ok := strings.Cut(s, "d")
	if ok {
		var err error
		if days, err = strconv.ParseUint(n, 10, 32); err != nil || days > maxDays {
			return 0, bad
		}
	} else {
		rest = s
	}
	var d time.Duration
	if rest != "" || !ok {
		var err error
		if d, err = time.ParseDuration(rest); err != nil || d < 0 {
			return 0, bad
		}
	}
	if d += time.Duration(days) * 24 * time.Hour; d < 0 {
		return 0, bad
	}
	return d, nil
}

// Format writes a time as ParseDuration reads it, without units that are zero.
func format(d time.Duration) string {
	const day = 24 * time.Hour
	if d < day {
		s := d.String()
		if strings.HasSuffix(s, "m0s") {
			s = s[:len(s)-2]
		}
		if strings.HasSuffix(s, "h0m") {
			s = s[:len(s)-2]
		}
		return s
	}
	s := strconv.FormatInt(int64(d/day), 10) + "d"
	if d %= day; d != 0 {
		s += format(d)
	}
	return s
}
