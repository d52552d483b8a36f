package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// litter makes a tree with one of everything a file system holds, and prints it as tree does.
func litter(args []string) error {
	root := args[0]
	at := func(name string) string { return filepath.Join(root, name) }
	big := make([]byte, 3<<20+7)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	sparse, err := create(at("dir/sparse"))
	if err != nil {
		return err
	}
	_, err = sparse.WriteAt([]byte("end"), 40<<20)
	err = errors.Join(err, sparse.Close(),
		os.WriteFile(at("dir/big"), big, 0o640), os.WriteFile(at("empty"), nil, 0o600), os.WriteFile(at("a name\nwith a line"), []byte("x"), 0o755),
		os.Chmod(at("a name\nwith a line"), 0o4755|fs.ModeSetuid), os.Chown(at("dir/big"), 1000, 1001),
		os.Link(at("dir/big"), at("hard")), os.Symlink("dir/big", at("soft")), os.Symlink("/nowhere", at("dangling")),
		unix.Mkfifo(at("pipe"), 0o622), unix.Setxattr(at("dir/big"), "user.colour", []byte("deep blue"), 0),
		os.Mkdir(at("private"), 0o700), os.Chown(at("private"), 1000, 1000), os.Chmod(at("private"), 0o2710|fs.ModeSetgid),
		os.WriteFile(at("deleted"), big, 0o600), os.Remove(at("deleted")),
	)
	when := time.Unix(1_000_000_000, 123_000_000)
	if err = errors.Join(err, os.Chtimes(at("dir/big"), when, when)); err != nil {
		return err
	}
	return tree(args)
}

func create(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	return os.Create(name)
}

// tree prints what is below a folder, with everything that a backup should keep.
func tree(args []string) error {
	return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no stat")
		}
		line := fmt.Sprintf("%q %o %d:%d", path, st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d links, %d bytes %x, written %d", st.Nlink, len(b), sha256.Sum256(b), info.ModTime().Round(time.Second).Unix()) // archives keep it so
		}
		names := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, names); err == nil {
			for name := range strings.SplitSeq(strings.Trim(string(names[:n]), "\x00"), "\x00") {
				value := make([]byte, 4096)
				if n, err := unix.Lgetxattr(path, name, value); name != "" && err == nil {
					line += fmt.Sprintf(" %s=%q", name, value[:n])
				}
			}
		}
		fmt.Println(line)
		return nil
	})
}
