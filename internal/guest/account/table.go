package account

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// table is one colon-separated file, kept parsed for as long as the file stays the same.
type table struct {
	path   string
	fields int

	mu    sync.Mutex
	stamp stamp
	rows  [][]string
	names map[uint32]string // id in the third field to the name in the first
}

// stamp tells versions of a file apart. The change time is in it because a file can be written twice
// within one tick of its modification time, or have that time set.
type stamp struct {
	ino, dev     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// maxTable bounds what is read: 4 MiB hold some 60,000 users.
const maxTable = 4 << 20

func (t *table) read() ([][]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.refresh()
	return t.rows, err
}

func (t *table) nameOf(id uint32) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	// An unreadable file means that no name is known, which the digits say.
	_ = t.refresh()
	if name, ok := t.names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (t *table) refresh() error {
	var st syscall.Stat_t
	if err := syscall.Stat(t.path, &st); err != nil {
		t.rows, t.names, t.stamp = nil, nil, stamp{}
		return &os.PathError{Op: "stat", Path: t.path, Err: err}
	}
	now := stamp{st.Ino, uint64(st.Dev), st.Size, st.Mtim, st.Ctim}
	if now == t.stamp && t.names != nil {
		return nil
	}
	if st.Size > maxTable {
		return &os.PathError{Op: "read", Path: t.path, Err: syscall.EFBIG}
	}
	data, err := os.ReadFile(t.path)
	if err != nil {
		return err
	}
	t.stamp, t.rows, t.names = now, nil, make(map[uint32]string)
	for line := range strings.Lines(string(data)) {
		row := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(row) < t.fields || row[0] == "" || row[0][0] == '#' {
			continue
		}
		t.rows = append(t.rows, row)
		if id, err := strconv.ParseUint(row[2], 10, 32); err == nil {
			if _, taken := t.names[uint32(id)]; !taken {
				t.names[uint32(id)] = row[0]
			}
		}
	}
	return nil
}
