// Package kernel prepares a Linux kernel for virtual machines: it takes the uncompressed image out of what distributions
// ship, says what a kernel lacks for our guests, and builds the initramfs that carries the guest agent and the modules it
// loads. It never changes the files it reads, and believes none of their sizes: kernels come from other people.
package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Kernel is a kernel with the modules that belong to it.
type Kernel struct {
	Image   string // file: an ELF vmlinux, or a bzImage with one inside
	Version string // as uname -r prints it
	Modules string // folder with its modules; empty when there are none
}

// maxImage bounds what is read of a kernel image: distribution kernels are 50 MB uncompressed, debug builds
// some hundred.
const maxImage = 1 << 30

// Names of a kernel in a folder, best first: an image of ours, then those of distributions.
var imageNames = []string{"vmlinux", "vmlinuz", "vmlinux-*", "vmlinuz-*"}

// Open finds the kernel in a folder: its image, and its modules in lib/modules or modules beside it. Of several images the
// newest version is taken. A folder without any is tartarus.NotFound.
func Open(dir string) (Kernel, error) {
	for _, pattern := range imageNames {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return Kernel{}, fmt.Errorf("find kernel in %s: %w", dir, err)
		}
		found = slices.DeleteFunc(found, func(p string) bool {
			st, err := os.Stat(p)
			return err != nil || !st.Mode().IsRegular()
		})
		if len(found) == 0 {
			continue
		}
		slices.SortFunc(found, compareVersions)
		return OpenFile(found[len(found)-1])
	}
	return Kernel{}, tartarus.Errorf(tartarus.NotFound, "there is no kernel (vmlinux or vmlinuz) in %s", dir)
}

// OpenFile describes the kernel whose image is the file path.
func OpenFile(path string) (Kernel, error) {
	data, err := readImage(path)
	if err != nil {
		return Kernel{}, err
	}
	version := versionOf(data)
	if version == "" {
		if data, err = Extract(data); err != nil {
			return Kernel{}, fmt.Errorf("read kernel %s: %w", path, err)
		}
		version = versionOf(data)
	}
	if version == "" {
		return Kernel{}, tartarus.Errorf(tartarus.Invalid, "%s does not say which Linux it is", path)
	}
	return Kernel{Image: path, Version: version, Modules: modulesOf(filepath.Dir(path), version)}, nil
}

// Load returns the kernel's ELF image.
func (k Kernel) Load() ([]byte, error) {
	data, err := readImage(k.Image)
	if err != nil {
		return nil, err
	}
	if data, err = Extract(data); err != nil {
		return nil, fmt.Errorf("read kernel %s: %w", k.Image, err)
	}
	return data, nil
}

func readImage(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, tartarus.Errorf(tartarus.NotFound, "there is no kernel %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxImage {
		return nil, tartarus.Errorf(tartarus.Invalid, "%s is no kernel image", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	return data, nil
}

// modulesOf finds the modules folder of a version beside an image, or on this machine. The version must match: a kernel
// refuses modules of another.
func modulesOf(dir, version string) string {
	for _, at := range []string{"modules", "lib/modules", "../lib/modules", "../usr/lib/modules"} {
		path := filepath.Join(dir, at, version)
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			return path
		}
	}
	return ""
}

var banner = regexp.MustCompile(`Linux version ([0-9]+\.[0-9]+[^ \x00]{0,64}) `)

// versionOf finds the version in an image: in the header of a bzImage (offset 0x20e of the boot protocol), or in the
// banner that every Linux carries.
func versionOf(data []byte) string {
	if at := header(data).version; at > 0 && at < len(data) {
		end := bytes.IndexByte(data[at:min(len(data), at+256)], 0)
		if end > 0 {
			v, _, _ := strings.Cut(string(data[at:at+end]), " ")
			return v
		}
	}
	if m := banner.FindSubmatch(data); m != nil && bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return string(m[1])
	}
	return ""
}

// compareVersions orders file names with numbers in them as people do.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if x != y {
				return strings.Compare(x, y)
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if n < 0 {
		return len(s)
	}
	return n
}

// WriteImage writes the kernel's ELF image to a file, which appears under its name only when it is whole, and returns its size.
func (k Kernel) WriteImage(path string) (int64, error) {
	image, err := k.Load()
	if err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".kernel")
	if err != nil {
		return 0, fmt.Errorf("write kernel: %w", err)
	}
	_, err = f.Write(image)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return 0, fmt.Errorf("write kernel: %w", err)
	}
	return int64(len(image)), nil
}
