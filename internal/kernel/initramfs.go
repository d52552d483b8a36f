package kernel

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// guestModules are what our guests need, each where the kernel has it not built in. Devices come up in this order.
var guestModules = []string{
	"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "erofs", "overlay", "ext4", "af_packet",
}

// optionalModules come along where the kernel has them, and are loaded when they are needed.
var optionalModules = []string{"squashfs"}

// Places in the initramfs that the guest's side (internal/guest/vmboot) knows too.
const (
	InitPath    = "init"
	ModulesPath = "modules" // folder; its file "order" lists the others, one a line, in the order to load them
	orderName   = "order"
	laterName   = "later" // as order, of what is loaded only when it is needed
)

// Initramfs writes the first root file system of a guest: the agent as init, and the modules that this kernel needs. It is not
// compressed: the host unpacks nothing, and copying is faster than the guest's decompression.
func (k Kernel) Initramfs(w io.Writer, agent []byte) error {
	var load, later []Module
	if k.Modules != "" {
		m, err := openModules(k.Modules)
		if err != nil {
			return err
		}
		if load, err = m.resolve(guestModules); err != nil {
			return err
		}
		all, err := m.resolve(append(slices.Clone(guestModules), slices.DeleteFunc(slices.Clone(optionalModules), func(n string) bool { return !m.has(n) })...))
		if err != nil {
			return err
		}
		later = all[len(load):] // resolve lists what comes first first
	}
	c := &cpio{w: w}
	for _, dir := range []string{"dev", "proc", "sys", "base", "disk", "root", ModulesPath} {
		c.add(dir, modeDir|0o755, nil)
	}
	// Without a console the kernel starts init with no standard files at all.
	c.device("dev/console", 5, 1)
	c.modules(orderName, load)
	c.modules(laterName, later)
	c.add(InitPath, modeFile|0o755, agent)
	return c.end()
}

// The types of a cpio entry (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
const (
	modeDir    = 0o040000
	modeFile   = 0o100000
	modeDevice = 0o020000
	modeType   = 0o170000
)

// modules adds modules and the list of them.
func (c *cpio) modules(listName string, list []Module) {
	var names bytes.Buffer
	for _, m := range list {
		fmt.Fprintln(&names, m.Name)
		c.add(path.Join(ModulesPath, m.Name), modeFile|0o600, m.Data)
	}
	c.add(path.Join(ModulesPath, listName), modeFile|0o600, names.Bytes())
}

// cpio writes the archive format "newc". Its first error stays.
type cpio struct {
	w     io.Writer
	inode int
	at    int64
	err   error
}

func (c *cpio) add(name string, mode int, data []byte) { c.entry(name, mode, data, 0, 0) }

func (c *cpio) device(name string, major, minor int) {
	c.entry(name, modeDevice|0o600, nil, major, minor)
}

// entry writes a header, the name and the data, each filled up to a multiple of four bytes. Nothing has a time or an owner: the same
// input gives the same archive.
func (c *cpio) entry(name string, mode int, data []byte, major, minor int) {
	c.inode++
	links := 1
	if mode&modeType == modeDir {
		links = 2
	}
	var b strings.Builder
	b.WriteString("070701")
	for _, v := range []int{c.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name) + 1, 0} {
		fmt.Fprintf(&b, "%08X", v)
	}
	b.WriteString(name + "\x00")
	c.write([]byte(b.String()))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpio) write(b []byte) {
	if c.err != nil || len(b) == 0 {
		return
	}
	n, err := c.w.Write(b)
	c.at += int64(n)
	c.err = err
}

func (c *cpio) pad() { c.write(make([]byte, (4-c.at%4)%4)) }

func (c *cpio) end() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	if c.err != nil {
		return fmt.Errorf("write initramfs: %w", c.err)
	}
	return nil
}
