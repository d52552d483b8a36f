package files

import (
	"errors"
	"io/fs"
	"syscall"
)

// owner reads the ids of a file. Every FileInfo of package os on Linux has them.
func owner(st fs.FileInfo) (uid, gid uint32) {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Uid, sys.Gid
	}
	return 0, 0
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
