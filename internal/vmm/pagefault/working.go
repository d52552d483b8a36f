package pagefault

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long after its start a guest's working set is taken for complete.
const settle = 5 * time.Second

// mostUnits bounds a working set: 64 GiB of memory.
const mostUnits = 1 << 20

const workingMagic = "tartarus working set 1\n"

// workingSet is which units guests of one snapshot touch after their restore, first ones first.
type workingSet struct {
	file   *os.File
	before []int // as it was found

	mu    sync.Mutex
	known map[int]bool
	added []int
	saved bool
}

// openWorkingSet reads what is known. A set that is damaged is empty.
func openWorkingSet(f *os.File) *workingSet {
	w := &workingSet{file: f, known: map[int]bool{}}
	if f == nil {
		return w
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, mostUnits*4+1024))
	rest, ok := bytes.CutPrefix(b, []byte(workingMagic))
	if err != nil || !ok || len(rest) < 8 {
		return w
	}
	n, sum := binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
	list := rest[8:]
	if uint64(n)*4 > uint64(len(list)) || crc32.ChecksumIEEE(list[:n*4]) != sum {
		return w
	}
	for i := range int(n) {
		unit := int(binary.LittleEndian.Uint32(list[i*4:]))
		if !w.known[unit] {
			w.known[unit] = true
			w.before = append(w.before, unit)
		}
	}
	return w
}

// note adds a unit that a guest waited for.
func (w *workingSet) note(unit int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.saved && !w.known[unit] && len(w.known) < mostUnits {
		w.known[unit] = true
		w.added = append(w.added, unit)
	}
}

// save writes the set, once, unless another process is writing it now.
func (w *workingSet) save() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.saved || w.file == nil || len(w.added) == 0 {
		w.saved = true
		return
	}
	w.saved = true
	if unix.Flock(int(w.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	defer func() { _ = unix.Flock(int(w.file.Fd()), unix.LOCK_UN) }()
	var list []byte
	for _, units := range [][]int{w.before, w.added} {
		for _, u := range units {
			list = binary.LittleEndian.AppendUint32(list, uint32(u))
		}
	}
	b := []byte(workingMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(list)/4))
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(list))
	_, _ = w.file.WriteAt(append(b, list...), 0) // a hint: one that is damaged is not believed
}
