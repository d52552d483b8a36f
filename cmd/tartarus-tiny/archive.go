package main

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var archiveApplets = map[string]applet{"tar": tarApplet, "gzip": zip(""), "gunzip": zip("d"), "zcat": zip("dc")}

// zip is gzip, or one of its names that stand for flags.
func zip(flags string) applet {
	return func(args []string) error {
		o, err := parse("cdfkvqt123456789", args, "stdout=c", "decompress=d", "keep=k", "force=f")
		if err != nil {
			return err
		}
		for _, f := range flags {
			o.count[string(f)]++
		}
		if len(o.rest) == 0 {
			return zipStream(o, os.Stdin, os.Stdout)
		}
		return each("gzip", o.rest, func(name string) error { return zipFile(o, name) })
	}
}

func zipFile(o *options, name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if o.has("c") {
		return zipStream(o, in, os.Stdout)
	}
	to := name + ".gz"
	if o.has("d") {
		to = strings.TrimSuffix(name, ".gz")
		if t, ok := strings.CutSuffix(name, ".tgz"); ok {
			to = t + ".tar"
		}
		if to == name {
			return fmt.Errorf("%s: unknown suffix", name)
		}
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if !o.has("f") {
		mode |= os.O_EXCL
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, mode, info.Mode().Perm())
	if err != nil {
		return err
	}
	if err := errors.Join(zipStream(o, in, out), out.Close(), os.Chtimes(to, info.ModTime(), info.ModTime())); err != nil {
		os.Remove(to)
		return err
	}
	if o.has("k") {
		return nil
	}
	return os.Remove(name)
}

func zipStream(o *options, in io.Reader, out io.Writer) error {
	if o.has("d") {
		z, err := gzip.NewReader(bufio.NewReader(in))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, z)
		return err
	}
	level := gzip.DefaultCompression
	for l := gzip.BestSpeed; l <= gzip.BestCompression; l++ {
		if o.has(fmt.Sprint(l)) {
			level = l
		}
	}
	z, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, in); err != nil {
		return err
	}
	return z.Close()
}

func tarApplet(args []string) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		args[0] = "-" + args[0] // the old way: tar xzf FILE
	}
	// In a bundle, values follow in the order of their letters: tar -xzf FILE.
	o, err := parse("cxtzjvf:C:pkmOh", args, "create=c", "extract=x", "list=t", "gzip=z", "file=f", "directory=C", "verbose=v",
		"strip-components=s", "exclude=e", "no-same-owner=m")
	if err != nil {
		return err
	}
	switch {
	case o.has("c") && !o.has("x") && !o.has("t"):
		return pack(o)
	case o.has("x") != o.has("t") && !o.has("c"):
		return unpack(o)
	}
	return usage("tar -c|-x|-t [-zv] [-f FILE] [-C DIR] [PATH]...")
}

func pack(o *options) (err error) {
	var out io.Writer = os.Stdout
	if f := o.value["f"]; f != "" && f != "-" {
		file, err := os.Create(f)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	if len(o.rest) == 0 {
		return usage("nothing to archive")
	}
	if dir := o.value["C"]; dir != "" {
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	buffered := bufio.NewWriterSize(out, 1<<16)
	defer func() { err = errors.Join(err, buffered.Flush()) }()
	out = buffered
	if o.has("z") || strings.HasSuffix(o.value["f"], "gz") {
		z := gzip.NewWriter(out)
		defer func() { err = errors.Join(err, z.Close()) }()
		out = z
	}
	w := tar.NewWriter(out)
	defer func() { err = errors.Join(err, w.Close()) }()
	return each("tar", o.rest, func(root string) error {
		return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return packOne(w, p, d, o)
		})
	})
}

func packOne(w *tar.Writer, p string, d fs.DirEntry, o *options) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target, _ := os.Readlink(p)
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		exit("tar", err) // a socket
		return nil
	}
	h.Name = strings.TrimLeft(p, "/")
	if d.IsDir() {
		h.Name += "/"
	}
	if o.has("v") {
		fmt.Fprintln(os.Stderr, h.Name)
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w, f, h.Size)
	return err
}

func unpack(o *options) error {
	in := io.Reader(os.Stdin)
	if f := o.value["f"]; f != "" && f != "-" {
		file, err := os.Open(f)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	buffered := bufio.NewReader(in)
	in = buffered
	magic, _ := buffered.Peek(3)
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		in = z
	case string(magic) == "BZh":
		in = bzip2.NewReader(buffered)
	}
	dir := "."
	if d := o.value["C"]; d != "" {
		dir = d
	}
	// All names are opened below this root: none of the archive leads out of it.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var code error
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return code
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(strings.TrimLeft(h.Name, "/"))
		if len(o.rest) > 0 && !wanted(name, o.rest) {
			continue
		}
		if o.has("t") || o.has("v") {
			fmt.Println(h.Name)
		}
		if o.has("t") || name == "." {
			continue
		}
		if err := unpackOne(root, name, h, r); err != nil {
			code = exitCode(exit("tar", err))
		}
	}
}

func wanted(name string, only []string) bool {
	for _, w := range only {
		if w = filepath.Clean(strings.TrimLeft(w, "/")); name == w || strings.HasPrefix(name, w+"/") {
			return true
		}
	}
	return false
}

func unpackOne(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	mode := h.FileInfo().Mode()
	if h.Typeflag != tar.TypeDir {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, mode.Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
	case tar.TypeLink:
		return root.Link(filepath.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		d, err := root.Open(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer d.Close()
		kind := map[byte]uint32{tar.TypeFifo: syscall.S_IFIFO, tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK}[h.Typeflag]
		if err := unix.Mknodat(int(d.Fd()), filepath.Base(name), kind|uint32(mode.Perm()), int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return &fs.PathError{Op: "mknod", Path: name, Err: err}
		}
	default:
		return nil
	}
	if os.Geteuid() == 0 {
		if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}
