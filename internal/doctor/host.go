package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// path resolves a path of the host's file system.
func (c *Config) path(p string) string { return filepath.Join(c.root, p) }

// read returns a small file of the host without surrounding space, or "".
func (c *Config) read(p string) string {
	b, err := os.ReadFile(c.path(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func checkUser(_ context.Context, c *Config) Check {
	if c.UID == 0 {
		return Check{Status: OK, Detail: "root"}
	}
	return Check{Status: Fail, Detail: fmt.Sprintf("user %d: network namespaces, cgroups and nftables need root", c.UID),
		Fix: "run tartarus with sudo here, or use --url with a server that runs elsewhere"}
}

// checkKernel wants 5.6 for pidfd_open and openat2, without which machines cannot be adopted nor paths be kept
// inside a folder, and 5.10 as the oldest kernel that upstream still mends.
func checkKernel(_ context.Context, c *Config) Check {
	release := c.read("/proc/sys/kernel/osrelease")
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return Check{Status: Warn, Detail: fmt.Sprintf("release %q cannot be read", release), Fix: "make sure that it is Linux 5.10 or newer, with /proc mounted"}
	}
	at := major*1000 + minor
	switch {
	case at < 5006:
		return Check{Status: Fail, Detail: release + " is older than 5.6", Fix: "boot a kernel from 5.10 on"}
	case at < 5010:
		return Check{Status: Warn, Detail: release + " no longer gets security fixes", Fix: "boot a kernel from 5.10 on"}
	}
	return Check{Status: OK, Detail: release}
}

// checkUserNamespaces clones a process into a new user namespace. The program it should run does not exist: that error means
// that the clone itself was allowed, and nothing has to be run.
func checkUserNamespaces(context.Context, *Config) Check {
	pid, err := syscall.ForkExec("/nonexistent/tartarus-doctor", []string{"x"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}})
	if err == nil {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
	if err == nil || errors.Is(err, syscall.ENOENT) {
		return Check{Status: OK, Detail: "can be created"}
	}
	return Check{Status: Warn, Detail: fmt.Sprintf("cannot be created: %v; the gVisor sandbox isolates itself by one", err),
		Fix: "sysctl -w user.max_user_namespaces=15000, and kernel.unprivileged_userns_clone=1 where it exists"}
}

// checkMemory wants room for the server and a few sandboxes: 256 MiB are one of each.
func checkMemory(_ context.Context, c *Config) Check {
	const mib = 1 << 20
	info := c.meminfo()
	total, available := info["MemTotal"], info["MemAvailable"]
	detail := fmt.Sprintf("%d MiB available of %d", available/mib, total/mib)
	switch {
	case total == 0:
		return Check{Status: Warn, Detail: "/proc/meminfo cannot be read", Fix: "mount /proc"}
	case available < 256*mib:
		return Check{Status: Fail, Detail: detail, Fix: "free memory: the server and one sandbox take 256 MiB"}
	case available < 1024*mib:
		return Check{Status: Warn, Detail: detail, Fix: "free memory, or give sandboxes little (--memory 128)"}
	}
	return Check{Status: OK, Detail: detail}
}

func (c *Config) meminfo() map[string]int64 {
	out := map[string]int64{}
	sc := bufio.NewScanner(bytes.NewReader([]byte(c.read("/proc/meminfo"))))
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		if f := strings.Fields(rest); ok && len(f) > 0 {
			kb, _ := strconv.ParseInt(f[0], 10, 64)
			out[name] = kb << 10
		}
	}
	return out
}

// checkDisk looks at the file system that will hold the data folder. The base template takes 400 MB, twice that
// while it is built.
func checkDisk(_ context.Context, c *Config) Check {
	dir := c.DataDir
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if parent := filepath.Dir(dir); errors.Is(err, unix.ENOENT) && parent != dir {
			dir = parent
			continue
		}
		return Check{Status: Fail, Detail: fmt.Sprintf("%s: %v", dir, err), Fix: "choose another folder with --data"}
	}
	free := int64(st.Bavail) * int64(st.Bsize) >> 20
	detail := fmt.Sprintf("%d MiB free at %s", free, c.DataDir)
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		return Check{Status: Fail, Detail: c.DataDir + " is on a read-only file system", Fix: "choose another folder with --data"}
	case free < 256:
		return Check{Status: Fail, Detail: detail, Fix: "free space, or choose another folder with --data"}
	case free < 2048 || (st.Files > 0 && st.Ffree < 10_000):
		return Check{Status: Warn, Detail: fmt.Sprintf("%s, %d files more", detail, st.Ffree), Fix: "free space: building templates takes 1 GiB, snapshots as much as the sandboxes' memory"}
	}
	return Check{Status: OK, Detail: detail}
}

func optionalFilesystem(name, why string) func(context.Context, *Config) Check {
	return func(_ context.Context, c *Config) Check {
		for line := range strings.Lines(c.read("/proc/filesystems")) {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
				return Check{Status: OK, Detail: "in the kernel"}
			}
		}
		return Check{Status: OK, Detail: "not loaded; optional: " + why}
	}
}

func checkLoop(_ context.Context, c *Config) Check {
	if _, err := os.Stat(c.path("/dev/loop-control")); err == nil {
		return Check{Status: OK, Detail: "there"}
	}
	return Check{Status: OK, Detail: "none; optional: only looking into images by mounting them needs one"}
}
