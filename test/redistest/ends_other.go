//go:build !linux

package redistest

import "syscall"

func endsWithUs() *syscall.SysProcAttr { return nil }
