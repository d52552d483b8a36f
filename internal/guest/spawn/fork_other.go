//go:build !amd64

package spawn

import (
	"errors"
	"syscall"
)

func forkExec(string, []string, *syscall.ProcAttr) (int, error) { return 0, errors.ErrUnsupported }
