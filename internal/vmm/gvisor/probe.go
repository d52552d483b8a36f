package gvisor

import (
	"debug/elf"
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// usable reports why sandboxes could not be started from the file exe: they run as an unprivileged user, in a root
// without any library.
func usable(exe string) error {
	f, err := elf.Open(exe)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("this program is linked dynamically; build it with CGO_ENABLED=0")
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(exe, &st); err != nil {
		return err
	}
	if st.Mode&0o005 != 0o005 {
		return errors.New("this program's file must be readable and executable by everyone; chmod 755 it")
	}
	return nil
}

// canIsolate starts the program once in the namespaces of a sandbox, as the process that is never admitted: it
// ends at once, because its gate is closed.
func canIsolate(exe string) error {
	cmd := exec.Command(exe)
	cmd.Args[0] = "runsc-sandbox"
	cmd.Env = []string{gateEnv + "=0", givenEnv + "=3"} // standard input is the null device
	cmd.SysProcAttr = isolation()
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := cmd.Wait(); err == nil {
		return errors.New("the probe process ended without its sign; it must call Main")
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
