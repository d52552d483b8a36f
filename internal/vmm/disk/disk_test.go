package disk_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
)

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestMake(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 (e2fsprogs)")
	}
	dir := t.TempDir()
	c := disk.Cache{Dir: filepath.Join(dir, "cache")}
	var wg sync.WaitGroup
	for i := range 4 { // also at once, and with an empty cache
		wg.Go(func() {
			path := filepath.Join(dir, string(rune('a'+i)))
			if err := c.Make(t.Context(), path, 512); err != nil {
				t.Error(err)
				return
			}
			if st, err := os.Stat(path); err != nil || st.Size() != 512<<20 || blocks(t, path) > 4<<20 {
				t.Errorf("%v, %d bytes on the disk", err, blocks(t, path))
			}
		})
	}
	wg.Wait()
	if out, err := exec.Command("e2fsck", "-fn", filepath.Join(dir, "a")).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v %s", err, out)
	}
	if err := c.Make(t.Context(), filepath.Join(dir, "a"), 512); err == nil {
		t.Error("a disk was made over another")
	}
	if err := c.Make(t.Context(), filepath.Join(dir, "z"), 0); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("nothing: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("the cache has %v", left)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 9<<20 + 5
	want := make([]byte, size)
	copy(want[1<<20:], bytes.Repeat([]byte("data"), 100_000))
	copy(want[size-3:], "end")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, part := range [][2]int{{1 << 20, 2 << 20}, {5 << 20, 6 << 20}, {size - 3, size}} { // the second is zeros, written
		if _, err := f.WriteAt(want[part[0]:part[1]], int64(part[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if b := blocks(t, to); b > blocks(t, from) {
		t.Errorf("the copy takes %d bytes, the source %d", b, blocks(t, from))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := disk.Copy(ctx, from, filepath.Join(dir, "none")); err == nil {
		t.Skip("this file system shares blocks: there is nothing to give up")
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("half a copy is left")
	}
}
