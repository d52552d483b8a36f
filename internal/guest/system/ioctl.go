package system

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlBytes passes a pointer to data, or none.
func ioctlBytes(fd uintptr, request uint, data []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(unsafe.Pointer(unsafe.SliceData(data)))); errno != 0 {
		return errno
	}
	return nil
}
