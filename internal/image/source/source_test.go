package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

var when = time.Unix(1700000000, 5000)

func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := h.PAXRecords["data"]
		delete(h.PAXRecords, "data")
		h.Size, h.ModTime, h.Format = int64(len(data)), when, tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, data string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"data": data}}
}

func build(t *testing.T, o erofs.Options, fill func(*erofs.Writer) error) (fs.FS, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := erofs.NewWriter(f, o)
	if err := fill(w); err != nil {
		return nil, err
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return img, nil
}

// listing gives one line per entry: mode, owner, links, path, content or target.
func listing(t *testing.T, img fs.FS) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*goerofs.Stat)
		mode := info.Mode().Type() | info.Mode().Perm()
		for i, bit := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
			if info.Mode()&(1<<(9+i)) != 0 { // where go-erofs leaves them
				mode |= bit
			}
		}
		l := fmt.Sprintf("%s %d:%d %s", mode, st.UID, st.GID, name)
		switch {
		case info.Mode().IsRegular():
			b, err := fs.ReadFile(img, name)
			if err != nil {
				return err
			}
			l += fmt.Sprintf(" x%d %.20q", st.Nlink, b)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(img, name)
			if err != nil {
				return err
			}
			l += " -> " + target
		case info.Mode()&fs.ModeDevice != 0:
			l += fmt.Sprintf(" %x", st.Rdev)
		}
		out = append(out, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTar(t *testing.T) {
	plain := archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1, Gid: 2},
		tar.Header{Name: "./usr/bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 100000, PAXRecords: map[string]string{"data": "su"}},
		tar.Header{Name: "/usr/bin/sg", Typeflag: tar.TypeLink, Linkname: "./usr/bin/su"},
		tar.Header{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"},
		tar.Header{Name: "escape", Typeflag: tar.TypeSymlink, Linkname: "../../../etc/passwd"}, // a link may say anything
		tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo},
	)
	want := []string{
		"drwxr-xr-x 0:0 .", "Lrwxrwxrwx 0:0 bin -> usr/bin", "drwxr-xr-x 0:0 dev", "Dcrw-rw-rw- 0:0 dev/null 103",
		"Lrwxrwxrwx 0:0 escape -> ../../../etc/passwd", "prw-r--r-- 0:0 pipe", "drwxr-xr-x 0:0 usr", "drwxr-xr-x 1:2 usr/bin",
		`urwxr-xr-x 100000:0 usr/bin/sg x2 "su"`, `urwxr-xr-x 100000:0 usr/bin/su x2 "su"`,
	}
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	gz.Write(plain)
	gz.Close()
	zst, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zst.EncodeAll(plain, nil)} {
		t.Run(name, func(t *testing.T) {
			img, err := build(t, erofs.Options{}, func(w *erofs.Writer) error {
				r, err := Reader(t.Context(), bytes.NewReader(data))
				if err != nil {
					return err
				}
				defer r.Close()
				return AddTar(w, r)
			})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, listing(t, img), want)
		})
	}
}

func TestHostileTar(t *testing.T) {
	link := tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}
	bomb := func(t *testing.T) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(archive(t, file("big", strings.Repeat("0", 8<<20))))
		w.Close()
		return b.Bytes()
	}
	truncated := archive(t, file("a", strings.Repeat("a", 5000)))
	for name, c := range map[string]struct {
		data []byte
		kind tartarus.Kind
	}{
		"climbs":              {archive(t, file("../../etc/passwd", "x")), tartarus.Invalid},
		"climbs inside":       {archive(t, file("a/../../x", "x")), tartarus.Invalid},
		"through a link":      {archive(t, link, file("l/passwd", "x")), tartarus.Invalid},
		"dir through a link":  {archive(t, link, tar.Header{Name: "l/sub/", Typeflag: tar.TypeDir}), tartarus.Invalid},
		"link through a link": {archive(t, link, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l/shadow"}), tartarus.NotFound},
		"link out":            {archive(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}), tartarus.Invalid},
		"link to nothing":     {archive(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}), tartarus.NotFound},
		"link to a directory": {archive(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d"}), tartarus.Invalid},
		"whiteout climbs":     {archive(t, file("a/../../.wh.x", "")), tartarus.Invalid},
		"whiteout of dots":    {archive(t, file("a/.wh...", "")), tartarus.Invalid},
		"too many":            {archive(t, file("1", ""), file("2", ""), file("3", ""), file("4", ""), file("5", "")), tartarus.TooLarge},
		"bomb":                {bomb(t), tartarus.TooLarge},
		"cut off":             {truncated[:3000], tartarus.Invalid},
		"no tar":              {bytes.Repeat([]byte("no tar at all "), 100), tartarus.Invalid},
		"bad gzip":            {[]byte{0x1f, 0x8b, 1, 2, 3, 4}, tartarus.Invalid},
		"bad zstd":            {[]byte{0x28, 0xb5, 0x2f, 0xfd, 9, 9, 9, 9, 9, 9}, tartarus.Invalid},
		"bad device":          {archive(t, tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 5000}), tartarus.Invalid},
		"bad owner":           {archive(t, tar.Header{Name: "d", Typeflag: tar.TypeReg, Uid: 1 << 40}), tartarus.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := build(t, erofs.Options{MaxBytes: 1 << 20, MaxEntries: 4}, func(w *erofs.Writer) error {
				r, err := Reader(t.Context(), bytes.NewReader(c.data))
				if err != nil {
					return err
				}
				defer r.Close()
				return AddLayer(w, r)
			})
			if !tartarus.Is(err, c.kind) {
				t.Errorf("got %v, want kind %s", err, c.kind)
			}
		})
	}
}

func TestLayers(t *testing.T) {
	img, err := build(t, erofs.Options{}, func(w *erofs.Writer) error {
		for _, layer := range [][]byte{
			archive(t, file("keep", "1"), file("etc/secret", "s"), file("etc/conf", "old"), file("cache/a", "a"), file("cache/sub/b", "b"),
				file("both", "first"), tar.Header{Name: "twin", Typeflag: tar.TypeLink, Linkname: "both"}, file("d/x", "x"), file(".wh..wh.plnk/1.2", "meta")),
			archive(t, file("etc/.wh.secret", ""), file("etc/conf", "new"), file("cache/new", "n"), file("cache/.wh..wh..opq", ""),
				file(".wh.both", ""), file("d", "now a file"), file("not/there/.wh.x", ""), file("gone/.wh..wh..opq", "")),
			archive(t, file("etc/secret", "again"), file(".wh.etc/x", "no whiteout")),
		} {
			if err := AddLayer(w, bytes.NewReader(layer)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, listing(t, img), []string{
		"drwxr-xr-x 0:0 .", "drwxr-xr-x 0:0 .wh.etc", `-rw-r--r-- 0:0 .wh.etc/x x1 "no whiteout"`, "drwxr-xr-x 0:0 cache",
		`-rw-r--r-- 0:0 cache/new x1 "n"`, `-rw-r--r-- 0:0 d x1 "now a file"`, "drwxr-xr-x 0:0 etc", `-rw-r--r-- 0:0 etc/conf x1 "new"`,
		`-rw-r--r-- 0:0 etc/secret x1 "again"`, `-rw-r--r-- 0:0 keep x1 "1"`, `-rw-r--r-- 0:0 twin x1 "first"`,
	})
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "usr/bin/tool"), []byte("tool"), 0o600))
	must(os.Chmod(filepath.Join(dir, "usr/bin/tool"), 0o755|fs.ModeSetgid))
	must(os.Link(filepath.Join(dir, "usr/bin/tool"), filepath.Join(dir, "usr/bin/also")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "out")))
	must(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	must(os.Chmod(dir, 0o755))
	img, err := build(t, erofs.Options{}, func(w *erofs.Writer) error { return AddDir(t.Context(), w, dir, func(int64) {}) })
	must(err)
	own := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	equal(t, listing(t, img), []string{
		"drwxr-xr-x " + own + " .", "Lrwxrwxrwx " + own + " out -> /etc/passwd", "prw-r--r-- " + own + " pipe", "drwxr-xr-x " + own + " usr",
		"drwxr-xr-x " + own + " usr/bin", "grwxr-xr-x " + own + ` usr/bin/also x2 "tool"`, "grwxr-xr-x " + own + ` usr/bin/tool x2 "tool"`,
	})

	if _, err := build(t, erofs.Options{}, func(w *erofs.Writer) error {
		return AddDir(t.Context(), w, filepath.Join(dir, "nosuch"), nil)
	}); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("a missing folder: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := build(t, erofs.Options{}, func(w *erofs.Writer) error { return AddDir(ended, w, dir, nil) }); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	r, err := Reader(ended, bytes.NewReader(archive(t, file("a", "a"))))
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

// FuzzTar expects no archive to crash us, and every image made of one to be readable.
func FuzzTar(f *testing.F) {
	var t testing.T
	f.Add(archive(&t, file("a/b", "c"), tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}, file("a/.wh.b", "")))
	f.Add(archive(&t, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, file("d/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := build(t, erofs.Options{MaxBytes: 1 << 20, MaxEntries: 1000}, func(w *erofs.Writer) error {
			if err := AddLayer(w, bytes.NewReader(data)); err != nil {
				return err
			}
			return AddLayer(w, bytes.NewReader(data))
		})
		if err == nil {
			listing(t, img)
		}
	})
}
