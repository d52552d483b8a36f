package gvisor

import (
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// canIsolate starts this program once in the namespaces of a sandbox, as the process that is never admitted: it
// ends at once, because its gate is closed.
func canIsolate() error {
	cmd := exec.Command(selfExe)
	cmd.Args[0] = "runsc-sandbox"
	cmd.Env = []string{gateEnv + "=0"} // standard input is the null device
	cmd.SysProcAttr = isolation()
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := cmd.Wait(); err == nil {
		return fmt.Errorf("a probe process ended without its sign")
	}
	return nil
}

// isolation is how every sandbox process is kept apart from the host.
func isolation() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Setsid:     true, // no terminal's signal reaches it
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		// Root of its own user namespace while it builds its empty root, and nobody on the host all the time.
		Credential:  &syscall.Credential{Uid: 0, Gid: 0},
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},

		GidMappingsEnableSetgroups: true, // to give up the server's supplementary groups
	}
}
