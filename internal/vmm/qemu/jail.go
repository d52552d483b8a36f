package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// jail is where a QEMU lives. Its first process makes it, in namespaces that the driver gave it, and then becomes QEMU.
type jail struct {
	Root   string   `json:"root"`   // an empty folder, over which the new root is mounted
	Binds  []string `json:"binds"`  // what is seen of the host, read-only
	Nodes  []string `json:"nodes"`  // device nodes
	User   int      `json:"user"`   // user and group
	Limits []limit  `json:"limits"` // of resources
	NetNS  int      `json:"netns"`  // descriptor of the network namespace to live in, the last that is given
	Path   string   `json:"path"`
	Args   []string `json:"args"`
}

type limit struct {
	Resource int    `json:"resource"`
	Value    uint64 `json:"value"`
}

// hostFiles is all that QEMU sees of the host: its program, its libraries and firmware. What does not exist is left out, links stay links.
var hostFiles = []string{"/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/share/qemu", "/usr/share/seabios", "/lib", "/lib64", "/etc/ld.so.cache"}

// hostNodes are the devices that it may use; those of KVM come to that.
var hostNodes = []string{"/dev/null", "/dev/urandom"}

// run never returns but with an error.
func (j jail) run() error {
	runtime.LockOSThread()
	if err := process.CloseStrays(j.NetNS + 1); err != nil {
		return err
	}
	if err := unix.Setns(j.NetNS, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	_ = unix.Close(j.NetNS)
	if err := j.makeRoot(); err != nil {
		return err
	}
	for _, l := range j.Limits {
		if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Value, Max: l.Value}); err != nil {
			return fmt.Errorf("limit resource %d: %w", l.Resource, err)
		}
	}
	if err := j.becomeNobody(); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", j.Path, syscall.Exec(j.Path, j.Args, []string{"PATH=/usr/bin", "HOME=/"}))
}

// makeRoot builds the root in memory and moves into it.
func (j jail) makeRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	if err := unix.Mount("tmpfs", j.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, path := range j.Binds {
		if err := j.bind(path, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV); err != nil {
			return fmt.Errorf("show %s: %w", path, err)
		}
	}
	if err := j.makeNodes(); err != nil {
		return err
	}
	proc := filepath.Join(j.Root, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	// Of this process namespace, which has one process; and of it only the processes, where the kernel can.
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY)
	if unix.Mount("proc", proc, "proc", flags, "subset=pid") != nil {
		if err := unix.Mount("proc", proc, "proc", flags, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	if err := os.Chdir(j.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2): the old root lies over the new one then
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the host's root go: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make root read-only: %w", err)
	}
	return os.Chdir("/")
}

// makeNodes makes device nodes that belong to QEMU's user, who is in none of the groups that the host's are for.
func (j jail) makeNodes() error {
	dev := filepath.Join(j.Root, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, path := range j.Nodes {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("find %s: %w", path, err)
		}
		to := filepath.Join(j.Root, path)
		if err := unix.Mknod(to, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
		if err := os.Chown(to, j.User, j.User); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
	}
	return nil
}

// bind shows one path of the host under the same name.
func (j jail) bind(path string, flags uintptr) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	to := filepath.Join(j.Root, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case st.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(path, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// A file system's own restrictions cannot be lifted by a bind mount, and must be named again.
	var fsInfo unix.Statfs_t
	if err := unix.Statfs(to, &fsInfo); err != nil {
		return err
	}
	for _, f := range []struct{ st, ms uintptr }{
		{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_RDONLY, unix.MS_RDONLY},
		{unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if uintptr(fsInfo.Flags)&f.st != 0 {
			flags |= f.ms
		}
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

// becomeNobody gives up every power. QEMU is not dumpable by others and gains nothing by running what is set-user-id.
func (j jail) becomeNobody() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave groups: %w", err)
	}
	if err := syscall.Setgid(j.User); err != nil {
		return fmt.Errorf("become group %d: %w", j.User, err)
	}
	if err := syscall.Setuid(j.User); err != nil { // of all threads; takes the capabilities away
		return fmt.Errorf("become user %d: %w", j.User, err)
	}
	return nil
}
