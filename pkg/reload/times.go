package reload

import "time"

// Paths returns the files.
func (f *File[T]) Paths() []string {
	if f == nil {
		return nil
	}
	return f.opts.Paths
}

// ReadAt returns when the file at path was last read without error, the zero time
// for never. It does not wait, not even for a file that is being read.
func (f *File[T]) ReadAt(path string) time.Time {
	if f == nil {
		return time.Time{}
	}
	t, _ := f.times.Load(path)
	at, _ := t.(time.Time)
	return at
}
