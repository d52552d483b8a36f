package gvisor

import (
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

// pidsEnv tells a sandbox process how many processes and threads its guest may have.
const pidsEnv = "TARTARUS_PIDS"

// reserve is how many more tasks the guest's first process may make, threads and children: the guest agent must be
// able to go on, and to kill, in the middle of a fork bomb.
const reserve = 32

// limitTasks makes the sandbox kernel refuse, with EAGAIN, to give the guest more tasks than it may have. It is part
// of the kernel's own system call table, so that not even the guest's root can lift it, which it can with
// RLIMIT_NPROC and with a control group inside the guest. It runs in the sandbox process before the kernel is made.
func limitTasks() {
	most, err := strconv.Atoi(os.Getenv(pidsEnv))
	_ = os.Unsetenv(pidsEnv)
	if err != nil || most <= 0 {
		return
	}
	// Tasks that are being made: without them, as many as run at once could pass the last free place.
	var coming atomic.Int64
	for _, table := range kernel.SyscallTables() {
		for number, call := range table.Table {
			if !slices.Contains([]string{"clone", "clone3", "fork", "vfork"}, call.Name) {
				continue
			}
			next := call.Fn
			call.Fn = func(t *kernel.Task, sysno uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
				defer coming.Add(-1)
				room := int64(most)
				if t.ThreadGroup() == t.Kernel().GlobalInit() {
					room += reserve
				}
				if int64(t.Kernel().RootPIDNamespace().NumTasks())+coming.Add(1) > room {
					return 0, nil, linuxerr.EAGAIN
				}
				return next(t, sysno, args)
			}
			table.Table[number] = call
		}
		table.Init() // builds the table for fast look-ups anew
	}
}
