package redistest

import "syscall"

// endsWithUs has a server end when the tests do, however they end.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
