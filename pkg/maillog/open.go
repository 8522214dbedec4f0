package maillog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip" // twice as fast as that of Go

	"opensmtpd-filters/pkg/guard"
)

// A File is a log that is being read, and uncompressed beside that who reads it.
type File struct {
	io.Reader

	file    *os.File
	written time.Time
	size    int64
	read    atomic.Int64 // bytes of the file, still compressed
	stop    chan struct{}
}

// Open opens a log, which may be compressed with gzip; "-" is standard input.
func Open(path string) (*File, error) {
	f := &File{file: os.Stdin, written: time.Now(), stop: make(chan struct{})}
	if path != "-" {
		var err error
		if f.file, err = os.Open(path); err != nil {
			return nil, err
		}
		fi, err := f.file.Stat()
		if err == nil && fi.IsDir() {
			err = fmt.Errorf("%s: is a directory", path)
		}
		if err != nil {
			_ = f.file.Close()
			return nil, err
		}
		if fi.Mode().IsRegular() {
			f.size, f.written = fi.Size(), fi.ModTime()
		}
	}
	r, w := pipe(f.stop)
	f.Reader = r
	guard.Go(nil, "reading "+path, func() { f.pump(w) })
	return f, nil
}

// Written returns when the log was last written, now if that is not known.
func (f *File) Written() time.Time { return f.written }

// Progress returns how many bytes of the file were read of how many; of 0 if that
// is not known.
func (f *File) Progress() (read, size int64) { return f.read.Load(), f.size }

// Close ends the reading.
func (f *File) Close() error {
	close(f.stop)
	return f.file.Close()
}

// pump reads the file to its end.
func (f *File) pump(w *writer) {
	err := errors.New("reading the log has failed")
	defer func() { w.close(err) }()
	var in io.Reader = bufio.NewReaderSize(counter{f.file, &f.read}, 128<<10)
	start, _ := in.(*bufio.Reader).Peek(2)
	if string(start) == "\x1f\x8b" {
		var z *gzip.Reader
		if z, err = gzip.NewReader(in); err != nil {
			return
		}
		in = z
	}
	_, err = io.CopyBuffer(w, struct{ io.Reader }{in}, make([]byte, blockSize))
	if err == nil {
		err = io.EOF
	}
}

// A counter counts what is read.
type counter struct {
	r io.Reader
	n *atomic.Int64
}

func (c counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

const (
	blockSize = 128 << 10
	blocks    = 8 // that wait to be read
)

// pipe is an io.Pipe that holds some blocks, so that both ends work at a time.
func pipe(stop <-chan struct{}) (*reader, *writer) {
	full, empty := make(chan []byte, blocks), make(chan []byte, blocks)
	for range blocks {
		empty <- make([]byte, 0, blockSize)
	}
	w := &writer{full: full, empty: empty, stop: stop}
	return &reader{full: full, empty: empty, w: w}, w
}

type writer struct {
	full, empty chan []byte
	stop        <-chan struct{}
	err         error // once full is closed
}

var errStopped = errors.New("closed")

func (w *writer) Write(b []byte) (n int, err error) {
	for n < len(b) {
		select {
		case block := <-w.empty:
			block = block[:min(blockSize, len(b)-n)]
			n += copy(block, b[n:])
			w.full <- block // has room for all there are
		case <-w.stop:
			return n, errStopped
		}
	}
	return n, nil
}

func (w *writer) close(err error) {
	w.err = err
	close(w.full)
}

type reader struct {
	full, empty chan []byte
	block, rest []byte
	w           *writer
}

func (r *reader) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.block != nil {
			r.empty <- r.block
			r.block = nil
		}
		block, ok := <-r.full
		if !ok {
			return 0, r.w.err
		}
		r.block, r.rest = block, block
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
