package erofs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
	gverofs "gvisor.dev/gvisor/pkg/erofs"

	"github.com/tartarus-sandbox/tartarus"
)

var when = time.Unix(1700000000, 123456789)

// sample holds everything a root filesystem may: sizes around the block, a directory of several
// blocks, owners above 16 bits, special bits, devices, long links, hard links.
func sample() []Entry {
	out := []Entry{
		{Path: "", Mode: TypeDir | 0o755, ModTime: when},
		{Path: "tmp", Mode: TypeDir | 0o1777, ModTime: when},
		{Path: "usr/bin", Mode: TypeDir | 0o755, ModTime: when},
		{Path: "usr/bin/sudo", Mode: TypeRegular | 0o4755, Size: 5000, ModTime: when},
		{Path: "usr/bin/wall", Mode: TypeRegular | 0o2755, UID: 70000, GID: 80000, Size: 12, ModTime: when},
		{Path: "empty", Mode: TypeRegular | 0o600, ModTime: when},
		{Path: "emptydir", Mode: TypeDir | 0o700, UID: 1000, GID: 1000, ModTime: when},
		{Path: "link", Mode: TypeSymlink | 0o777, Target: "usr/bin/sudo", ModTime: when},
		{Path: "longlink", Mode: TypeSymlink | 0o777, Target: "/" + strings.Repeat("x", 4090), ModTime: when},
		{Path: "dev/null", Mode: TypeChar | 0o666, Major: 1, Minor: 3, ModTime: when},
		{Path: "dev/sdx", Mode: TypeBlock | 0o660, Major: 259, Minor: 70000, ModTime: when},
		{Path: "fifo", Mode: TypeFIFO | 0o644, ModTime: when},
		{Path: "sock", Mode: TypeSocket | 0o644, ModTime: when},
		{Path: "-dash", Mode: TypeRegular | 0o644, Size: 1, ModTime: when}, // sorts before "."
	}
	for _, n := range []int64{1, 4095, 4096, 4097, 8192, 3 << 20} {
		out = append(out, Entry{Path: fmt.Sprintf("sizes/%d", n), Mode: TypeRegular | 0o644, Size: n, ModTime: when})
	}
	for i := range 900 {
		out = append(out, Entry{Path: fmt.Sprintf("many/file-with-a-longer-name-%04d", i*7919%900), Mode: TypeRegular | 0o644, Size: int64(i % 3), ModTime: when})
	}
	for i := range 40 { // directories of every size around the block
		for j := range i * 12 {
			out = append(out, Entry{Path: fmt.Sprintf("dirs/%d/%d", i, j), Mode: TypeRegular | 0o644, ModTime: when})
		}
	}
	return out
}

// content is a file's data, derived from its name.
func content(name string, size int64) []byte {
	seed := sha256.Sum256([]byte(name))
	return bytes.Repeat(seed[:], int(size)/len(seed)+1)[:size]
}

func build(t testing.TB, o Options, entries []Entry, more func(*Writer)) (*os.File, Stats) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := NewWriter(f, o)
	for _, e := range entries {
		if err := w.Add(e, bytes.NewReader(content(e.Path, e.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if more != nil {
		more(w)
	}
	s, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return f, s
}

func hardlinks(t testing.TB) func(*Writer) {
	return func(w *Writer) {
		if err := errors.Join(w.Link("usr/bin/sudoedit", "usr/bin/sudo"), w.Link("zz", "/usr/bin/sudo")); err != nil {
			t.Fatal(err)
		}
	}
}

// want maps the sample to lines, one per path.
func want(entries []Entry) map[string]string {
	out := map[string]string{}
	for _, e := range entries {
		out[e.Path] = line(e, uint64(e.ModTime.Unix()), e.Size)
	}
	for _, implied := range []string{"usr", "dev", "sizes", "many", "dirs"} {
		out[implied] = line(Entry{Mode: TypeDir | 0o755}, 0, 0)
	}
	for i := range 40 {
		if i > 0 {
			out[fmt.Sprintf("dirs/%d", i)] = line(Entry{Mode: TypeDir | 0o755}, 0, 0)
		}
	}
	sudo := out["usr/bin/sudo"]
	out["usr/bin/sudoedit"], out["zz"] = sudo, sudo
	return out
}

func line(e Entry, mtime uint64, size int64) string {
	if e.Type() == TypeDir {
		size = 0
	}
	return fmt.Sprintf("%o %d:%d %d %q %d:%d %d", e.Mode, e.UID, e.GID, size, e.Target, e.Major, e.Minor, mtime)
}

func diff(t *testing.T, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != got[name] {
			t.Errorf("%s: want %s, got %s", name, want[name], got[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is in the image and should not be", name)
		}
	}
}

// TestGVisorReads walks the image with the very package that gVisor mounts it with.
func TestGVisorReads(t *testing.T) {
	entries := sample()
	f, _ := build(t, Options{}, entries, hardlinks(t))
	got, nids := walkGVisor(t, f)
	expected := want(entries)
	for name, l := range expected { // this reader does not give device numbers
		if strings.HasPrefix(name, "dev/") {
			got[name] = l
		}
	}
	diff(t, expected, got)
	if nids["zz"] != nids["usr/bin/sudo"] || nids["zz"] != nids["usr/bin/sudoedit"] {
		t.Error("hard links are different inodes")
	}
}

// walkGVisor gives a line and the inode number for every path, and checks data and lookups on the way.
func walkGVisor(t *testing.T, f *os.File) (lines map[string]string, nids map[string]uint64) {
	t.Helper()
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	img, err := gverofs.OpenImage(os.NewFile(uintptr(dup), f.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	lines, nids = map[string]string{}, map[string]uint64{}
	var walk func(name string, nid uint64)
	walk = func(name string, nid uint64) {
		n, err := img.Inode(nid)
		if err != nil {
			t.Fatalf("inode of %s: %v", name, err)
		}
		nids[name], lines[name] = nid, lineGVisor(t, name, &n)
		if !n.IsDir() {
			return
		}
		err = n.IterDirents(func(child string, _ uint8, nid uint64) error {
			if found, err := n.Lookup(child); err != nil || found != nid {
				t.Errorf("lookup of %s in %s: %d, %v", child, name, found, err)
			}
			if child != "." && child != ".." {
				walk(strings.TrimPrefix(name+"/"+child, "/"), nid)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("list %s: %v", name, err)
		}
		if _, err := n.Lookup("nobody"); err == nil {
			t.Errorf("%s has a child that nobody made", name)
		}
	}
	walk("", img.RootNid())
	return lines, nids
}

// firstName undoes the hard links of the sample: data follows from the first name.
var firstName = strings.NewReplacer("usr/bin/sudoedit", "usr/bin/sudo", "zz", "usr/bin/sudo")

func lineGVisor(t *testing.T, name string, n *gverofs.Inode) string {
	t.Helper()
	e := Entry{Mode: uint32(n.Mode()), UID: n.UID(), GID: n.GID()}
	if n.IsSymlink() {
		target, err := n.Readlink()
		if err != nil {
			t.Fatal(err)
		}
		e.Target = target
	}
	if !n.IsRegular() {
		return line(e, n.Mtime(), 0)
	}
	if _, err := n.DataOffset(); err != nil {
		t.Errorf("%s cannot be mapped: %v", name, err)
	}
	ranges, err := n.DataRanges()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ranges[0].Bytes, content(firstName.Replace(name), int64(n.Size()))) {
		t.Errorf("%s has other data", name)
	}
	return line(e, n.Mtime(), int64(n.Size()))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestLinuxReads mounts the image.
func TestLinuxReads(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	entries := sample()
	for i := range entries {
		if entries[i].Path == "usr/bin/sudo" {
			entries[i].Xattrs = map[string]string{
				"security.capability": "\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"user.note":           strings.Repeat("n", 600),
			}
		}
	}
	f, _ := build(t, Options{Xattrs: true}, entries, hardlinks(t))
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", f.Name(), dir).CombinedOutput(); err != nil {
		t.Skipf("this host mounts no EROFS image: %v: %s", err, out)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		e := Entry{Mode: UnixMode(info.Mode()), UID: st.Uid, GID: st.Gid}
		if e.Type() == TypeChar || e.Type() == TypeBlock {
			e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if e.Type() == TypeSymlink {
			e.Target, _ = os.Readlink(p)
		}
		if e.Type() == TypeRegular {
			if data, err := os.ReadFile(p); err != nil || !bytes.Equal(data, content(firstName.Replace(name), info.Size())) {
				t.Errorf("%s has other data: %v", name, err)
			}
		}
		got[name] = line(e, uint64(info.ModTime().Unix()), info.Size()*int64(btoi(e.Type() == TypeRegular)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	diff(t, want(entries), got)
	st := syscall.Stat_t{}
	if err := syscall.Stat(dir+"/usr/bin/sudo", &st); err != nil || st.Nlink != 3 || st.Mtim.Nsec != 123456789 {
		t.Errorf("sudo: %+v, %v", st, err)
	}
	buf := make([]byte, 1000)
	if n, err := unix.Getxattr(dir+"/usr/bin/sudo", "security.capability", buf); err != nil || n != 20 {
		t.Errorf("security.capability: %d, %v", n, err)
	}
	if n, err := unix.Getxattr(dir+"/usr/bin/sudo", "user.note", buf); err != nil || n != 600 {
		t.Errorf("user.note: %d, %v", n, err)
	}
}

func none(string) bool { return false }

// TestCopyImage copies an image and expects the same bytes: that is also the proof that equal input gives equal output.
func TestCopyImage(t *testing.T) {
	f, s := build(t, Options{}, sample(), hardlinks(t))
	again, s2 := build(t, Options{}, nil, func(w *Writer) {
		if err := CopyImage(w, f, none); err != nil {
			t.Fatal(err)
		}
	})
	third, _ := build(t, Options{}, nil, func(w *Writer) {
		if err := CopyImage(w, again, none); err != nil {
			t.Fatal(err)
		}
	})
	before, _ := walkGVisor(t, f)
	after, nids := walkGVisor(t, again)
	diff(t, before, after)
	if nids["zz"] != nids["usr/bin/sudo"] {
		t.Error("hard links were copied as files")
	}
	if s.Inodes != s2.Inodes || s.Size != s2.Size || s.DataBytes != s2.DataBytes {
		t.Errorf("%+v, copied %+v", s, s2)
	}
	if read(t, again) != read(t, third) {
		t.Error("the same input gave another image")
	}
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		t.Skip("fsck.erofs is missing: apt-get install erofs-utils")
	}
	if out, err := exec.Command("fsck.erofs", "--extract", f.Name()).CombinedOutput(); err != nil {
		t.Errorf("fsck: %v: %s", err, out)
	}
}

func read(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDropsXattrs(t *testing.T) {
	f, s := build(t, Options{}, []Entry{{Path: "a", Mode: TypeRegular | 0o644, Xattrs: map[string]string{"user.a": "1", "user.b": "2"}}}, nil)
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	a, err := img.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	info, err := a.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*goerofs.Stat); len(st.Xattrs) != 0 || s.DroppedXattrs != 2 {
		t.Errorf("%v, %+v", st.Xattrs, s)
	}
}

func TestRefuses(t *testing.T) {
	file := func(p string) Entry { return Entry{Path: p, Mode: TypeRegular | 0o644} }
	for _, c := range []struct {
		name string
		kind tartarus.Kind
		do   func(w *Writer) error
	}{
		{"climbing", tartarus.Invalid, func(w *Writer) error { return w.Add(file("a/../../etc/passwd"), nil) }},
		{"climbing inside", tartarus.Invalid, func(w *Writer) error { return w.Add(file("a/../b"), nil) }},
		{"through a link", tartarus.Invalid, func(w *Writer) error {
			return errors.Join(w.Add(Entry{Path: "l", Mode: TypeSymlink, Target: "/etc"}, nil), w.Add(file("l/passwd"), nil))
		}},
		{"through a file", tartarus.Invalid, func(w *Writer) error { return errors.Join(w.Add(file("f"), nil), w.Add(file("f/x"), nil)) }},
		{"linking through a link", tartarus.NotFound, func(w *Writer) error {
			return errors.Join(w.Add(Entry{Path: "l", Mode: TypeSymlink, Target: "/etc"}, nil), w.Link("x", "l/passwd"))
		}},
		{"linking out", tartarus.Invalid, func(w *Writer) error { return w.Link("x", "../../etc/passwd") }},
		{"linking a directory", tartarus.Invalid, func(w *Writer) error {
			return errors.Join(w.Add(Entry{Path: "d", Mode: TypeDir | 0o755}, nil), w.Link("x", "d"))
		}},
		{"long name", tartarus.Invalid, func(w *Writer) error { return w.Add(file(strings.Repeat("n", 256)), nil) }},
		{"long path", tartarus.Invalid, func(w *Writer) error { return w.Add(file(strings.Repeat("n/", 2100)), nil) }},
		{"root as file", tartarus.Invalid, func(w *Writer) error { return w.Add(file("/"), nil) }},
		{"no type", tartarus.Invalid, func(w *Writer) error { return w.Add(Entry{Path: "x", Mode: 0o644}, nil) }},
		{"empty link", tartarus.Invalid, func(w *Writer) error { return w.Add(Entry{Path: "x", Mode: TypeSymlink}, nil) }},
		{"too many bytes", tartarus.TooLarge, func(w *Writer) error {
			e := file("x")
			e.Size = 2 << 20
			return w.Add(e, bytes.NewReader(make([]byte, 2<<20)))
		}},
		{"too many entries", tartarus.TooLarge, func(w *Writer) error { return w.Add(file("a/b/c/d/e/f/g/h/i/j/k"), nil) }},
		{"short data", tartarus.Internal, func(w *Writer) error {
			e := file("x")
			e.Size = 10
			err := w.Add(e, strings.NewReader("short"))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "x"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = c.do(NewWriter(f, Options{MaxBytes: 1 << 20, MaxEntries: 10}))
			var all interface{ Unwrap() []error }
			if errors.As(err, &all) {
				err = all.Unwrap()[0]
			}
			if !tartarus.Is(err, c.kind) {
				t.Errorf("got %v, want kind %s", err, c.kind)
			}
		})
	}
}

// TestLayers checks that upper layers replace and remove, and that nothing removed stays in the file.
func TestLayers(t *testing.T) {
	secret := []byte(strings.Repeat("secret!", 1000))
	put := func(w *Writer, p, data string) {
		t.Helper()
		if err := w.Add(Entry{Path: p, Mode: TypeRegular | 0o644, Size: int64(len(data)), ModTime: when}, strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	f, s := build(t, Options{}, nil, func(w *Writer) {
		put(w, "a/key", string(secret))
		put(w, "a/keep", strings.Repeat("keep", 2000))
		put(w, "b/x", string(secret))
		put(w, "b/sub/y", string(secret))
		put(w, "c", string(secret))
		put(w, "d/was/dir", string(secret))
		put(w, "h1", "linked")
		if err := w.Link("h2", "h1"); err != nil {
			t.Fatal(err)
		}
		w.NextLayer()
		put(w, "b/new", "new")
		put(w, "b/sub/z", "z")
		put(w, "c", "replaced")
		put(w, "d", "file now")
		if err := errors.Join(w.RemoveLower("a/key"), w.RemoveLower("not/there"), w.RemoveLower("b/new"),
			w.RemoveLowerChildren("b"), w.RemoveLowerChildren("gone"), w.RemoveLower("h1")); err != nil {
			t.Fatal(err)
		}
		if got, err := w.ReadFile("c"); err != nil || string(got) != "replaced" {
			t.Errorf("read back %q, %v", got, err)
		}
	})
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"a/keep": strings.Repeat("keep", 2000), "b/new": "new", "b/sub/z": "z", "c": "replaced", "d": "file now", "h2": "linked"}
	for name, data := range all {
		r, err := img.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != data {
			t.Errorf("%s: %.40q, %v", name, got, err)
		}
		r.Close()
	}
	for _, gone := range []string{"a/key", "b/x", "b/sub/y", "h1"} {
		if _, err := img.Open(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	if strings.Contains(read(t, f), "secret") {
		t.Error("removed data is still in the image file")
	}
	if s.Inodes != 10 {
		t.Errorf("%d inodes, want 10", s.Inodes)
	}
}
