package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
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

// An Arg is an argument of the command line or a line of a file.
type Arg struct {
	Text  string
	Where string // "file:line", or "" for the command line
}

const maxArgFile = 1 << 20

// ExpandArgs puts the lines of the file in the place of each argument @file.
// There # at the beginning or after a blank begins a comment, and blank lines
// are left out. A line cannot name another file. The error has a line for each
// thing that is wrong: a file that cannot be read or is larger than 1 MB, a line
// that begins with @, an argument that looks like a flag.
func ExpandArgs(args []string) ([]Arg, error) {
	var out []Arg
	var errs []error
	for _, a := range args {
		path, ok := strings.CutPrefix(a, "@")
		if ok {
			lines, err := readArgs(path)
			out = append(out, lines...)
			errs = append(errs, err)
		} else if strings.HasPrefix(a, "-") {
			errs = append(errs, fmt.Errorf("%s: flags come before the arguments", a))
		} else {
			out = append(out, Arg{Text: a})
		}
	}
	return out, errors.Join(errs...)
}

func readArgs(path string) ([]Arg, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxArgFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxArgFile {
		return nil, fmt.Errorf("%s: larger than %d MB", path, maxArgFile>>20)
	}
	var args []Arg
	var errs []error
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		n++
		where := fmt.Sprintf("%s:%d", path, n)
		line = strings.TrimSpace(cutComment(line))
		switch {
		case line == "":
		case line[0] == '@':
			errs = append(errs, fmt.Errorf("%s: a file cannot name another", where))
		default:
			args = append(args, Arg{line, where})
		}
	}
	return args, errors.Join(errs...)
}

func cutComment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}
