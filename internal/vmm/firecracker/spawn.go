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
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// interfaceID is the monitor's name of the guest's network interface.
const interfaceID = "eth0"

// spawn has the jailer start the monitor of m and waits until it listens.
func (d *Driver) spawn(ctx context.Context, m *machine, c vmm.Config) (err error) {
	p, err := d.monitor(ctx)
	if err != nil {
		return err
	}
	if m.group, err = d.host.Make(m.id, cgroup.Limits{
		MemoryBytes: (c.Resources.MemoryMB + overheadMB + m.extraMB) << 20, PIDs: int64(c.Resources.VCPU + hostThreads),
	}); err != nil {
		return err
	}
	ns, err := d.enterable(c, m.state.UID)
	if err != nil {
		return err
	}
	if c.Interface != nil {
		defer ns.Close()
	}
	cmd := d.jailer(m, c, p, inSelf(ns))
	if err := d.runJailer(ctx, m, cmd); err != nil {
		return err
	}
	if err := m.hold(); err != nil {
		return err
	}
	return m.connect(ctx)
}

// enterable opens the network namespace of the machine, with its TAP device given to the monitor's user.
func (d *Driver) enterable(c vmm.Config, uid int) (*os.File, error) {
	if c.Interface == nil {
		return netns.Empty()
	}
	ns, err := os.Open(c.Interface.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := netns.OwnTAP(ns, c.Interface.Device, uid, uid); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// jailer is the command that starts the monitor. The group is ours and not the jailer's: it would move itself there, and be
// charged elsewhere before.
func (d *Driver) jailer(m *machine, c vmm.Config, p *program, ns string) *exec.Cmd {
	uid := strconv.Itoa(m.state.UID)
	// What the monitor may write at most into one file: the guest's memory in a snapshot, or the disk.
	most := max(c.Resources.MemoryMB, c.Resources.DiskMB)<<20 + 64<<20
	ns = strings.Replace(ns, "/self/", "/"+strconv.Itoa(os.Getpid())+"/", 1) // as the jailer sees it
	cmd := exec.Command(d.cfg.Jailer,
		"--id", m.id, "--exec-file", p.path, "--uid", uid, "--gid", uid, "--chroot-base-dir", d.dir,
		"--netns", ns, "--new-pid-ns",
		"--resource-limit", "fsize="+strconv.FormatInt(most, 10), "--resource-limit", "no-file="+strconv.Itoa(mostFiles),
		"--", "--api-sock", "/"+m.driver.socket(), "--log-path", "/"+logName, "--level", "Info", "--metrics-path", "/"+metricsName)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal to the server's terminal reaches it
	return cmd
}

// runJailer starts the jailer in the machine's group and waits until it has made the monitor and gone.
func (d *Driver) runJailer(ctx context.Context, m *machine, cmd *exec.Cmd) error {
	out, err := openPipe(filepath.Join(m.dir, consoleName))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if d.cfg.Console {
		in, err := openPipe(filepath.Join(m.dir, inputName))
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	if err := m.group.Start(cmd); err != nil {
		return fmt.Errorf("start jailer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("jailer: %w", err)
	}
	return nil
}

// hold takes hold of the monitor that the jailer made.
func (m *machine) hold() error {
	b, err := os.ReadFile(m.path(pidName))
	if err != nil {
		return fmt.Errorf("find monitor: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("find monitor: process id %q", linux.Printable(string(b)))
	}
	if m.handle, err = process.Open(pid); err != nil {
		return err
	}
	// It is in the machine's group by birth. Nobody else is, so this number is the monitor's, however often numbers are used anew.
	if !inGroup(m.group, pid) {
		m.handle.Close()
		m.handle = nil
		return errors.New("the monitor ended while it started")
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScore), 0); err != nil {
		return fmt.Errorf("set score of monitor: %w", err)
	}
	m.state.Process.PID = pid
	return nil
}

// connect waits until the monitor answers on its socket.
func (m *machine) connect(ctx context.Context) error {
	const look = 200 * time.Microsecond
	for {
		conn, pid, err := m.api.dial(ctx)
		if err == nil {
			conn.Close()
			if pid != m.state.Process.PID {
				return fmt.Errorf("process %d listens in place of the monitor", pid)
			}
			// It listens, so what runs is the monitor's program and no longer the jailer's.
			m.state.Process, err = process.Identify(pid)
			m.api.pid = pid
			return err
		}
		if m.handle.Ended() {
			return errors.New("the monitor ended while it started")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
	}
}
