package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/disk"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
)

// RawConfig describes a machine made by hand.
type RawConfig struct {
	Driver *Driver // whose programs and snapshot format are used, and nothing else of it
	Dir    string  // of the jails
	UID    int
	Config vmm.Config
	Snap   string
}

// Raw is a machine restored by hand: files put in place, the jailer with its own flags for control groups, and the three calls that make
// a snapshot go on. It is the floor of benchmarks: no record, no watch, no checks, no cleaning up after a failure.
type Raw struct {
	c       RawConfig
	pid     int
	version version
}

// RawRestore restores a snapshot.
func RawRestore(ctx context.Context, c RawConfig) (*Raw, error) {
	p, err := c.Driver.monitor(ctx)
	if err != nil {
		return nil, err
	}
	r := &Raw{c: c, version: p.version}
	root := r.root()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	for from, name := range map[string]string{
		c.Config.RootFS: imageName, filepath.Join(c.Snap, stateName): stateName, filepath.Join(c.Snap, memoryName): memoryName,
	} {
		if err := os.Link(from, filepath.Join(root, name)); err != nil {
			return nil, err
		}
	}
	copied := filepath.Join(root, diskName)
	if err := disk.Copy(ctx, filepath.Join(c.Snap, diskName), copied); err != nil {
		return nil, err
	}
	if err := os.Chown(copied, c.UID, c.UID); err != nil {
		return nil, err
	}
	ns, err := os.Open(c.Config.Interface.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := netns.OwnTAP(ns, c.Config.Interface.Device, c.UID, c.UID); err != nil {
		return nil, err
	}
	if err := r.spawn(ctx, p); err != nil {
		return nil, fmt.Errorf("jailer: %w", err)
	}
	return r, r.load(ctx)
}

func (r *Raw) root() string { return filepath.Join(r.c.Dir, exeName, r.c.Config.ID, rootName) }

// spawn runs the jailer as its manual says.
func (r *Raw) spawn(ctx context.Context, p *program) error {
	uid, memory := strconv.Itoa(r.c.UID), strconv.FormatInt((r.c.Config.Resources.MemoryMB+overheadMB)<<20, 10)
	args := []string{
		"--id", r.c.Config.ID, "--exec-file", p.path, "--uid", uid, "--gid", uid, "--chroot-base-dir", r.c.Dir,
		"--netns", r.c.Config.Interface.NetNS, "--new-pid-ns", "--parent-cgroup", cgroup.Parent,
	}
	groups := []string{"memory.limit_in_bytes=" + memory, "pids.max=65", "cpu.cfs_quota_us=100000"}
	if r.c.Driver.host.Version() == 2 {
		groups = []string{"memory.max=" + memory, "pids.max=65", "cpu.max=100000 100000"}
	}
	args = append(args, "--cgroup-version", strconv.Itoa(r.c.Driver.host.Version()))
	for _, g := range groups {
		args = append(args, "--cgroup", g)
	}
	args = append(args, "--", "--api-sock", "/"+r.c.Driver.socket())
	cmd := exec.CommandContext(ctx, r.c.Driver.cfg.Jailer, args...)
	cmd.Env = []string{}
	if err := cmd.Run(); err != nil { // without its output: a pipe would stay open as long as the monitor lives
		return err
	}
	b, err := os.ReadFile(filepath.Join(r.root(), pidName))
	if err == nil {
		r.pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return err
}

// load waits for the socket and has the machine go on.
func (r *Raw) load(ctx context.Context) error {
	dir, err := openFolder(r.root())
	if err != nil {
		return err
	}
	defer dir.Close()
	c := &Client{dir: dir, name: r.c.Driver.socket(), version: r.version}
	for {
		conn, _, err := c.dial(ctx)
		if err == nil {
			conn.Close()
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(200 * time.Microsecond)
	}
	return c.LoadSnapshot(ctx, SnapshotLoad{
		State: "/" + stateName, Memory: Backend{Kind: BackendFile, Path: "/" + memoryName}, Resume: true,
		Networks: []NetworkOverride{{ID: interfaceID, Device: r.c.Config.Interface.Device}},
	})
}

// Stop ends the machine and removes what is left of it.
func (r *Raw) Stop(ctx context.Context) error {
	if r.pid > 1 {
		_ = unix.Kill(r.pid, unix.SIGKILL)
	}
	return errors.Join(r.c.Driver.host.Group(r.c.Config.ID).Remove(ctx), os.RemoveAll(filepath.Dir(r.root())))
}
