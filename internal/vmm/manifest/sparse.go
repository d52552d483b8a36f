package manifest

import (
	"errors"
	"hash/crc32"
	"os"
	"sort"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// emptyCRC is the checksum of a chunk of zeros.
var emptyCRC = sync.OnceValue(func() uint32 { return crc32.Checksum(make([]byte, chunk), castagnoli) })

// extent is a part of a file, from begin to before end.
type extent struct{ begin, end int64 }

// extentList is in order and without overlaps.
type extentList []extent

// any reports whether a part of the file holds data.
func (l extentList) any(at, size int64) bool {
	i := sort.Search(len(l), func(i int) bool { return l[i].end > at })
	return i < len(l) && l[i].begin < at+size
}

// extents lists the parts of a file that hold data; the whole file where its file system does not tell. It works on a
// descriptor of its own, because looking for data moves the offset.
func extents(f *os.File, size int64) (extentList, error) {
	own, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, err
	}
	defer own.Close()
	var l extentList
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(own.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing behind at
			break
		}
		if errors.Is(err, unix.EINVAL) {
			return extentList{{0, size}}, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(own.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		l = append(l, extent{begin, end})
		at = end
	}
	return l, nil
}
