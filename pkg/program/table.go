package program

import (
	"fmt"
	"io"
	"text/tabwriter"

	"opensmtpd-filters/pkg/cli"
)

// A Table is what -n and explain print: rows of a name and a value, with pieces
// of text between them. What comes from outside cannot spoil the terminal.
type Table struct {
	parts []part
}

type part struct {
	rows [][]string
}

// Row adds a name and a value.
func (t *Table) Row(name, format string, args ...any) {
	t.Columns(name, fmt.Sprintf(format, args...))
}

// Columns adds a row of several columns. Rows with another number of columns than
// those before them are aligned by themselves, after an empty line.
func (t *Table) Columns(fields ...string) {
	row := make([]string, len(fields))
	for i, f := range fields {
		row[i] = cli.Clean(f)
	}
	if n := len(t.parts); n == 0 || len(t.parts[n-1].rows[0]) != len(row) {
		t.parts = append(t.parts, part{})
	}
	last := &t.parts[len(t.parts)-1]
	last.rows = append(last.rows, row)
}

// Write prints the table.
func (t *Table) Write(w io.Writer) error {
	for i, p := range t.parts {
		if i > 0 {
			fmt.Fprintln(w)
		}
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, row := range p.rows {
			for j, f := range row {
				if j > 0 {
					fmt.Fprint(tw, "\t")
				}
				fmt.Fprint(tw, f)
			}
			fmt.Fprintln(tw)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return nil
}
