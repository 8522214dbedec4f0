package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"testing"
)

// BenchmarkClassify takes a name through -classify: read, judged and printed.
func BenchmarkClassify(b *testing.B) {
	names, err := os.ReadFile("../pkg/rdns/testdata/rdns-labelled.tsv")
	if err != nil {
		b.Fatal(err)
	}
	flags := newFlags()
	if err := flags.parse(nil); err != nil {
		b.Fatal(err)
	}
	c, err := newChecker(flags, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer c.resolver.Close()
	all := bytes.Repeat(names, 100)
	n := bytes.Count(names, []byte("\n")) * 100
	b.ReportAllocs()
	for b.Loop() {
		if err := c.classify("-", bytes.NewReader(all), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/name")
}
