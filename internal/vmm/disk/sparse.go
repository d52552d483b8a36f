package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// step is how much is copied at once; what is all zeros stays a hole.
const step = 256 << 10

var zeros [step]byte

// CopySparse makes out, an empty file, a copy of in: what is a hole or zeros there is a hole here. The offset of in is left alone, so that
// one file may be copied several times at once.
func CopySparse(ctx context.Context, out, in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	own, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(in.Fd()))) // looking for data moves the offset
	if err != nil {
		return err
	}
	defer own.Close()
	buf := make([]byte, step)
	for at := int64(0); at < info.Size(); {
		begin, end, err := nextData(own, at, info.Size())
		if err != nil {
			return err
		}
		for at = begin; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := own.ReadAt(buf[:min(step, end-at)], at)
			if n == 0 && err != nil {
				return fmt.Errorf("read at %d: %w", at, err)
			}
			if !bytes.Equal(buf[:n], zeros[:n]) {
				if _, err := out.WriteAt(buf[:n], at); err != nil {
					return err
				}
			}
			at += int64(n)
		}
	}
	return nil
}

// nextData finds the next part that holds data, from at on; both are size when there is none.
func nextData(f *os.File, at, size int64) (begin, end int64, err error) {
	begin, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // this file system cannot tell
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	if end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return begin, min(end, size), nil
}
