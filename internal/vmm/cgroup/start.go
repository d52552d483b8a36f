package cgroup

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd in the group, so that nothing it does is ever charged elsewhere. In v2 the kernel makes the process there. In v1
// the thread that makes it enters the group first, which needs no lock on the host's processes as moving a process
// would.
func (g *Group) Start(cmd *exec.Cmd) error { return g.StartAfter(nil, cmd) }

// StartAfter is Start, with before run on the thread that makes the process. It ends afterwards: what before changes of the thread is the
// process's alone.
func (g *Group) StartAfter(before func() error, cmd *exec.Cmd) error {
	dir, err := g.Dir()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	onThread(func() {
		if before != nil {
			if err = before(); err != nil {
				return
			}
		}
		if dir == nil {
			defer g.leave()
			if err = g.enter(); err != nil {
				return
			}
		}
		err = cmd.Start()
	})
	return err
}

// enter takes the calling thread into a v1 group.
func (g *Group) enter() error {
	for _, d := range g.dirs {
		if err := write(filepath.Join(d, "tasks"), "0"); err != nil {
			return fmt.Errorf("enter control group %s: %w", g.name, err)
		}
	}
	return nil
}

// leave takes the calling thread out of the group at once: while it is there the group holds this very process.
func (g *Group) leave() {
	for _, b := range g.host.bases() {
		_ = write(filepath.Join(b, "tasks"), "0") // the thread is about to end, which takes it out too
	}
}

// onThread runs f on a thread that ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked but below: the thread ends with this function
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// The program's first thread never ends. While this function holds it, another goroutine gets another thread.
		onThread(f)
		runtime.UnlockOSThread()
	}()
	<-done
}
