package filter

import (
	"io"
	"os"
	"syscall"
)

// unblocked returns in and out as streams that hold no thread while they wait, if
// they are the two ends of smtpd's socket: a thread that blocks in a system call,
// and is taken to another one when it returns, costs more than all that a filter
// does with a line.
//
// A stream of another kind, such as the file of a recorded stream, a terminal or a
// pipe, stays as it is: who else has it would be surprised by what we do to it. So
// does a socket of which we have only one end, because something stands between
// smtpd and us, as in "tee log | filter-x".
func unblocked(in io.Reader, out io.Writer) (io.Reader, io.Writer) {
	i, ok1 := in.(*os.File)
	o, ok2 := out.(*os.File)
	if !ok1 || !ok2 {
		return in, out
	}
	si, err1 := i.Stat()
	so, err2 := o.Stat()
	if err1 != nil || err2 != nil || si.Mode()&os.ModeSocket == 0 || !os.SameFile(si, so) {
		return in, out
	}
	if syscall.SetNonblock(int(i.Fd()), true) != nil || syscall.SetNonblock(int(o.Fd()), true) != nil {
		return in, out
	}
	return os.NewFile(i.Fd(), i.Name()), os.NewFile(o.Fd(), o.Name())
}
