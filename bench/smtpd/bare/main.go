// Bare is the least that a filter written in Go does: it reads, takes lines apart
// and says proceed, in one goroutine. Its argument is a file of registrations.
package main

import (
	"bufio"
	"bytes"
	"log"
	"os"
)

func main() {
	log.SetFlags(0)
	registrations, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	in := bufio.NewReaderSize(os.Stdin, 128<<10)
	var out []byte
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		line = line[:len(line)-1]
		f := bytes.SplitN(line, []byte{'|'}, 8)
		switch {
		case string(line) == "config|ready":
			out = append(append(out, registrations...), "register|ready\n"...)
		case len(f) < 8 || string(f[0]) != "filter":
		case string(f[4]) == "data-line":
			out = append(answer(append(out, "filter-dataline|"...), f), f[7]...)
			out = append(out, '\n')
		default:
			out = append(answer(append(out, "filter-result|"...), f), "proceed\n"...)
		}
		if in.Buffered() == 0 && len(out) > 0 {
			if _, err := os.Stdout.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
}

func answer(out []byte, f [][]byte) []byte {
	out = append(append(out, f[5]...), '|')
	return append(append(out, f[6]...), '|')
}
