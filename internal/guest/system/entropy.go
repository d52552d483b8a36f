package system

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// addEntropy mixes seed into the kernel's pool and has it counted, so that two guests restored from one snapshot draw
// different numbers from then on. Where counting is not permitted, mixing alone has to do: the
// generator is reseeded from it all the same.
func addEntropy(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: bits counted, bytes following, bytes.
	info := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(info, uint32(len(seed)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(seed)))
	info = append(info, seed...)
	if ioctlBytes(f.Fd(), unix.RNDADDENTROPY, info) == nil {
		// The pool is read by the generator at its next reseed only; this makes it now. gVisor, which draws
		// from the host for every call, has neither.
		_ = ioctlBytes(f.Fd(), unix.RNDRESEEDCRNG, nil)
		return nil
	}
	_, err = f.Write(seed)
	return err
}
