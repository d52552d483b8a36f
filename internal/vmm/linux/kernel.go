// Package linux is what drivers of virtual machines share about a Linux guest: the kernel and initramfs that it boots, what it is told on
// the kernel command line and after a restore, and what it says on its console. The guest's own side is internal/guest/vmboot.
package linux

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kernel"
)

// Kernel finds the kernel for guests and makes it ready to boot. Its zero value has none. It may be used by several drivers at once.
type Kernel struct {
	Places []string               // folders or files, see kernel.Open; the first that has a kernel gives it
	Cache  string                 // folder for what is made of it; several processes may have the same
	Agent  func() ([]byte, error) // the guest agent, a static program: the guest's first process

	mu    sync.Mutex
	ready bool
	image string
	first string
}

// Find finds the kernel; tartarus.Unsupported where there is none.
func (k *Kernel) Find() (kernel.Kernel, error) {
	var missing []string
	for _, path := range k.Places {
		open := kernel.Open
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			open = kernel.OpenFile
		}
		found, err := open(path)
		if err == nil {
			return found, nil
		}
		if !tartarus.Is(err, tartarus.NotFound) {
			return kernel.Kernel{}, err
		}
		missing = append(missing, path)
	}
	return kernel.Kernel{}, tartarus.Errorf(tartarus.Unsupported, "there is no guest kernel, vmlinux or vmlinuz, in %s", cmp.Or(strings.Join(missing, ", "), "any place that is named"))
}

// Prepare returns the files to boot, an uncompressed kernel and an initramfs: 0.2 s the first time for a kernel, and nothing later. They are
// kept under a name that says what they were made of, so that another kernel or agent never meets old files.
func (k *Kernel) Prepare() (image, initramfs string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ready {
		return k.image, k.first, nil
	}
	found, err := k.Find()
	if err != nil {
		return "", "", err
	}
	agent, err := k.Agent()
	if err != nil {
		return "", "", err
	}
	st, err := os.Stat(found.Image)
	if err != nil {
		return "", "", fmt.Errorf("prepare kernel: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%d\n%d\n", found.Image, found.Version, found.Modules, st.Size(), st.ModTime().UnixNano())
	h.Write(agent)
	dir := filepath.Join(k.Cache, "boot-"+hex.EncodeToString(h.Sum(nil)[:16]))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := fill(dir, found, agent); err != nil {
			return "", "", fmt.Errorf("prepare kernel %s: %w", found.Version, err)
		}
	}
	k.image, k.first, k.ready = filepath.Join(dir, imageName), filepath.Join(dir, firstName), true
	return k.image, k.first, nil
}

const imageName, firstName = "vmlinux", "initramfs"

// fill fills a folder that appears under its name only when it is whole.
func fill(dir string, k kernel.Kernel, agent []byte) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-boot")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	image, err := k.Load()
	if err != nil {
		return err
	}
	var first bytes.Buffer
	if err := k.Initramfs(&first, agent); err != nil {
		return err
	}
	// Readable by all: monitors, which run as users of their own, get them as open files or links.
	for name, data := range map[string][]byte{imageName: image, firstName: first.Bytes()} {
		if err := os.WriteFile(filepath.Join(tmp, name), data, 0o644); err != nil {
			return err
		}
	}
	err = os.Rename(tmp, dir)
	if errors.Is(err, fs.ErrExist) { // another process did the same
		return nil
	}
	return err
}
