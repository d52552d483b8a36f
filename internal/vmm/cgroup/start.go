package cgroup

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// Start starts cmd in the group, so that nothing it does is ever charged elsewhere. In v2 the kernel makes the process there. In v1
// the thread that makes it enters the group first, which needs no lock on the host's processes as moving a process
// would, and ends afterwards.
func (g *Group) Start(cmd *exec.Cmd) error {
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
		return cmd.Start()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread stays in the group and ends with this function
		for _, d := range g.dirs {
			if err := write(filepath.Join(d, "tasks"), "0"); err != nil {
				done <- fmt.Errorf("enter control group %s: %w", g.name, err)
				return
			}
		}
		done <- cmd.Start()
	}()
	return <-done
}
