// Command scripted is a filter that gives one answer at one phase and
// is asked at no other: the other filter of a chain. It shares no code with
// the filters under test.
//
//	scripted PHASE DECISION [PARAMETER]
//
// Clients on the host itself are always let through. What it hears is noted on
// standard error.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: scripted PHASE DECISION [PARAMETER]")
		os.Exit(1)
	}
	phase, decision := os.Args[1], strings.Join(os.Args[2:], "|")
	local := map[string]bool{} // sessions from 127.0.0.1
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\n")
		f := strings.SplitN(line, "|", 8)
		switch {
		case line == "config|ready":
			fmt.Println("register|report|smtp-in|link-connect")
			fmt.Println("register|filter|smtp-in|" + phase)
			fmt.Println("register|ready")
		case f[0] == "report" && len(f) > 7:
			fmt.Fprintf(os.Stderr, "%s connected %s|%s\n", f[5], f[6], f[7])
			local[f[5]] = strings.Contains(f[7], "|127.0.0.1:")
		case f[0] == "filter" && len(f) > 6:
			answer := decision
			if local[f[5]] {
				answer = "proceed"
			} else {
				fmt.Fprintf(os.Stderr, "%s asked %s answered %s\n", f[5], f[4], answer)
			}
			fmt.Printf("filter-result|%s|%s|%s\n", f[5], f[6], answer)
		}
	}
}
