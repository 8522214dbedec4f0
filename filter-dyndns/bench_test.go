package main

import (
	"bytes"
	"io"
	"os"
	"testing"

	"opensmtpd-filters/pkg/program"
)

// BenchmarkClassify takes a name through -classify: read, judged and printed.
func BenchmarkClassify(b *testing.B) {
	names, err := os.ReadFile("../pkg/rdns/testdata/rdns-labelled.tsv")
	if err != nil {
		b.Fatal(err)
	}
	all := bytes.Repeat(names, 100)
	n := bytes.Count(names, []byte("\n")) * 100
	b.ReportAllocs()
	for b.Loop() {
		std := program.Streams{In: bytes.NewReader(all), Out: io.Discard, Err: os.Stderr}
		if status := program.Run(spec, []string{"-classify", "-"}, std); status != 0 {
			b.Fatal("status", status)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/name")
}
