package sqlite

import "syscall"

// available returns the bytes that a user may still write below a directory.
func available(dir string) (free int64, ok bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return max(int64(st.F_bavail), 0) * int64(st.F_bsize), true
}
