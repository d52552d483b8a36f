package process

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseStrays closes the descriptors of this process from first on that came with its exec. A process that has just been started by the server, and that was
// given the ones below first, calls it before anything else: libraries in the server open sockets and event descriptors that survive an exec, so
// that whoever is started at that moment has them too, and could speak to another sandbox's control server. What this process has opened
// itself does not survive an exec, and stays.
func CloseStrays(first int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < first {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}
