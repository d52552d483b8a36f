package firecracker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

const (
	workingName = "working"    // in the driver's folder: the working sets of snapshots
	voidName    = "void"       // beside the jail: the root of the page-fault handler
	pagesName   = "pages.sock" // in the jail: where the monitor meets the handler

	// mostWorking bounds how many working sets are kept; each has some kilobytes.
	mostWorking = 512
)

// PageFaults says where a restored machine's memory comes from. By default the monitor maps the memory file: the kernel brings its
// pages in, and clones share those they only read.
type PageFaults struct {
	// Handler has a process of its own serve the memory also where the file is on this machine.
	Handler bool

	// Remote says how the memory of the snapshot in dir, which has no memory file, is read; nil when there is no such thing. Its Kind
	// is one that the handler's program opens.
	Remote func(ctx context.Context, dir string) (*Remote, error)

	// Program is what handlers are started from; empty is this program. It must call pagefault.Main first thing.
	Program string
}

// Remote is memory that is somewhere else.
type Remote struct {
	Kind string          // of a pagefault.Opener
	Spec json.RawMessage // for it
	Size int64           // of the memory
	// Network says that it is read over the network, so that the handler keeps this process's.
	Network bool
}

var _ vmm.Lazy = (*Driver)(nil)

// Elsewhere implements vmm.Lazy.
func (d *Driver) Elsewhere() []string {
	if d.cfg.PageFaults.Remote == nil || pagefault.Available() != nil {
		return nil
	}
	return []string{memoryName}
}

// MemoryFile is the file of a snapshot that a Remote stands for.
const MemoryFile = memoryName

// remoteMB is what the page-fault handler of a memory that is elsewhere may take, of the machine's control group.
const remoteMB = 96

// memory has m's memory come from where it is.
func (d *Driver) memory(ctx context.Context, m *machine, s *stored) (Backend, error) {
	file := Backend{Kind: BackendFile, Path: "/" + memoryName}
	if s.remote == nil && !d.cfg.PageFaults.Handler {
		return file, nil
	}
	if err := pagefault.Available(); err != nil {
		if s.remote != nil {
			return file, tartarus.Errorf(tartarus.Unsupported, "snapshot's memory is not on this machine, and cannot be brought in as it is used: %w", err)
		}
		d.log.Warn("no page-fault handler: memory is mapped from its file", "sandbox", m.id, "error", err)
		return file, nil
	}
	if err := d.startPages(m, s); err != nil {
		return file, err
	}
	go m.watchPages(context.WithoutCancel(ctx)) // from now on: the load itself waits for memory
	return Backend{Kind: BackendUffd, Path: "/" + pagesName}, ctx.Err()
}

// startPages starts the page-fault handler of m, in the machine's group, under a user of its own.
func (d *Driver) startPages(m *machine, s *stored) (err error) {
	if m.state.PagesUID, err = d.cfg.Users.Claim(m.dir); err != nil {
		return err
	}
	void := filepath.Join(m.dir, voidName)
	if err := os.Mkdir(void, 0o555); err != nil {
		return err
	}
	working, err := d.openWorking(s.man.Chain())
	if err != nil {
		return err
	}
	defer working.Close()
	c := pagefault.Config{
		Program: d.cfg.PageFaults.Program, Args: []string{"--id", m.id, "/" + d.socket()},
		UID: m.state.PagesUID, Monitor: m.state.UID, Root: void, Socket: inFolder(m.root, pagesName), Working: working,
	}
	if r := s.remote; r != nil {
		c.Kind, c.Spec, c.Size = r.Kind, r.Spec, r.Size
	} else {
		info, err := s.files[1].Stat()
		if err != nil {
			return err
		}
		c.Memory, c.Size = s.files[1], info.Size()
	}
	// From its birth on, so that each of its threads has it: the kernel keeps that for each by itself.
	isolate := func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }
	if s.remote == nil || !s.remote.Network {
		ns, err := netns.Empty()
		if err != nil {
			return err
		}
		bare := isolate
		isolate = func() error { return errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), bare()) }
	}
	c.Start = func(cmd *exec.Cmd) error { return m.group.StartAfter(isolate, cmd) }
	cmd, err := pagefault.Start(c)
	if err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it ends with its machine, and is watched by its descriptor
	if m.pages, err = process.Open(cmd.Process.Pid); err != nil {
		return fmt.Errorf("start page-fault handler: %w", err)
	}
	who, err := process.Identify(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("start page-fault handler: %w", err)
	}
	m.state.Pages = &who
	return nil
}

// openWorking opens the working set of a snapshot. The oldest sets go when there are too many.
func (d *Driver) openWorking(snapshot string) (*os.File, error) {
	dir := filepath.Join(d.dir, workingName)
	if entries, err := os.ReadDir(dir); err == nil && len(entries) >= mostWorking {
		age := func(e os.DirEntry) time.Time {
			info, err := e.Info()
			if err != nil {
				return time.Time{}
			}
			return info.ModTime()
		}
		slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(age(a).UnixNano(), age(b).UnixNano()) })
		for _, e := range entries[:len(entries)-mostWorking+1] {
			_ = os.Remove(filepath.Join(dir, e.Name())) // a hint only
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, snapshot), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open working set: %w", err)
	}
	return f, nil
}

// letPagesEnd gives the page-fault handler of a monitor that has ended a moment to write down its working set, and to end by itself.
func (m *machine) letPagesEnd(ctx context.Context) {
	if m.pages == nil {
		return
	}
	const moment = time.Second
	ctx, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	_ = m.pages.Wait(ctx) // one that does not is killed with the group
}

// watchPages ends the machine when its page-fault handler has ended before it: its processors would wait for ever.
func (m *machine) watchPages(ctx context.Context) {
	if m.pages.Wait(ctx) != nil {
		return
	}
	// The handler ends with the monitor. Which of both was first is not to be seen in the same moment.
	const moment = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	if err := m.handle.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		m.driver.log.Warn("page-fault handler ended before its machine", "sandbox", m.id)
		m.fail("the page-fault handler ended")
	}
}
