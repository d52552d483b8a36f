package vmboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	baseAt = "/base" // the template, read-only
	diskAt = "/disk" // the writable layer
	rootAt = "/root" // the two together, which become /

	// diskTime is how long disks may take to appear after their driver was loaded: they are there at once but on a
	// host under heavy load.
	diskTime = 20 * time.Second
)

// makeRoot puts the writable layer over the template and makes the result /.
func makeRoot(line string) error {
	base, disk, err := findDisks()
	if err != nil {
		return err
	}
	kind, err := fileSystem(base)
	if err != nil {
		return err
	}
	if kind == "squashfs" {
		if err := loadModules("later", line); err != nil {
			return err
		}
	}
	if err := unix.Mount(base, baseAt, kind, unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount template (%s): %w", kind, err)
	}
	if disk == "" {
		err = unix.Mount("tmpfs", diskAt, "tmpfs", 0, "mode=0755")
	} else {
		// Errors stop the guest from writing on, and never the machine.
		err = unix.Mount(disk, diskAt, "ext4", unix.MS_NOATIME, "errors=remount-ro,discard")
	}
	if err != nil {
		return fmt.Errorf("mount writable layer: %w", err)
	}
	upper, work := filepath.Join(diskAt, "upper"), filepath.Join(diskAt, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make writable layer: %w", err)
		}
	}
	options := "lowerdir=" + baseAt + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", rootAt, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	return switchRoot()
}

// findDisks tells the template, which is read-only, from the writable layer. Some machines have no writable one.
func findDisks() (base, disk string, err error) {
	for deadline := time.Now().Add(diskTime); ; time.Sleep(2 * time.Millisecond) {
		base, disk = "", ""
		names, err := filepath.Glob("/sys/block/vd*")
		if err != nil {
			return "", "", err
		}
		for _, name := range names {
			ro, err := os.ReadFile(filepath.Join(name, "ro"))
			if err != nil {
				continue
			}
			path := filepath.Join("/dev", filepath.Base(name))
			if strings.TrimSpace(string(ro)) == "1" && base == "" {
				base = path
			} else if disk == "" {
				disk = path
			}
		}
		// The devices of a machine are registered one after the other while their driver is loaded: the template and a layer, or the
		// template alone, are all there by then. An absent node in /dev comes within the moment.
		if base != "" && exists(base) && (disk == "" || exists(disk)) {
			return base, disk, nil
		}
		if time.Now().After(deadline) {
			return "", "", fmt.Errorf("find template's disk: there is no read-only one among %v", names)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fileSystem tells what is on a disk by its magic number.
func fileSystem(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open template: %w", err)
	}
	defer f.Close()
	head := make([]byte, 2048)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", fmt.Errorf("read template: %w", err)
	}
	switch {
	case bytes.Equal(head[1024:1028], []byte{0xe2, 0xe1, 0xf5, 0xe0}):
		return "erofs", nil
	case bytes.HasPrefix(head, []byte("hsqs")):
		return "squashfs", nil
	case bytes.Equal(head[1024+56:1024+58], []byte{0x53, 0xef}):
		return "ext4", nil
	}
	return "", errors.New("the template is neither EROFS nor squashfs nor ext4")
}

// switchRoot moves into the new root and frees what the initramfs held.
func switchRoot() error {
	for _, dir := range []string{"proc", "sys", "dev"} {
		at := filepath.Join(rootAt, dir)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make /%s: %w", dir, err)
		}
		if err := unix.Mount("/"+dir, at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", dir, err)
		}
	}
	// The program that runs stays in memory until it ends; its name may go.
	_ = os.RemoveAll(modulesDir)
	_ = os.Remove("/init")
	if err := os.Chdir(rootAt); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}
