package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/donation"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/cgroup"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/netns"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

const (
	// bootTimeout bounds a start for callers whose context does not. Measured: 50 ms alone, 2 s when fifty start
	// at once on two processors.
	bootTimeout = time.Minute

	// cleanupTimeout bounds what is done after a caller has gone.
	cleanupTimeout = 10 * time.Second

	// oomScore makes the kernel take a sandbox before the server when the host itself runs out of memory.
	oomScore = "500"

	// nobody is the user on the host that a sandbox runs as.
	nobody = 65534

	diskName  = "disk"  // the writable layer
	panicName = "panic" // what a dying sandbox process wrote
)

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	m, err := d.make(ctx, c, start{}, func(ctx context.Context, s *session) error {
		id := guestID
		return s.call(ctx, boot.ContMgrRootContainerStart, &id, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("boot machine %s: %w", c.ID, err)
	}
	return m, nil
}

// start says what a sandbox process is started for.
type start struct {
	restore bool       // a guest with its memory is put into it
	disk    []*os.File // a guest is booted on this disk snapshot
}

// make starts a sandbox process and has begin put a guest into it. When it fails, nothing is left.
func (d *Driver) make(ctx context.Context, c vmm.Config, how start, begin func(context.Context, *session) error) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := check(c); err != nil {
		return nil, err
	}
	if err := d.held.Claim(c.ID); err != nil {
		return nil, err
	}
	m := d.newMachine(c.ID)
	if err := d.makeAs(ctx, m, c, how, begin); err != nil {
		return nil, m.giveUp(ctx, err)
	}
	return m, nil
}

// giveUp removes what there is of a machine that does not come up, and adds to the reason what its process said.
func (m *machine) giveUp(ctx context.Context, err error) error {
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if ctx.Err() == nil && !m.foreign {
		if why := m.lastWords(cctx); why != "" {
			err = fmt.Errorf("%w (%s)", err, why)
		}
	}
	if cerr := m.discard(cctx); cerr != nil {
		err = errors.Join(err, cerr)
	}
	return err
}

func (d *Driver) makeAs(ctx context.Context, m *machine, c vmm.Config, how start, begin func(context.Context, *session) error) (err error) {
	if err := os.Mkdir(m.dir, 0o700); errors.Is(err, fs.ErrExist) {
		m.foreign = true // an earlier process made it: not ours to remove
		return tartarus.Errorf(tartarus.Conflict, "machine %s exists", c.ID)
	} else if err != nil {
		return err
	}
	if m.rootfs, err = manifest.ImageID(c.RootFS); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	device, err := d.spawn(ctx, m, c, how)
	if device != nil {
		defer device.Close()
	}
	if err != nil {
		return err
	}
	s, err := dial(m.dir)
	if err != nil {
		return err
	}
	defer s.close()
	network, err := links(m.conf, c.Interface, device, how.restore)
	if err != nil {
		return err
	}
	if err := s.call(ctx, boot.ContMgrSetNetworkArgs, network, nil); err != nil {
		return fmt.Errorf("set up guest network: %w", err)
	}
	if err := begin(ctx, s); err != nil {
		return fmt.Errorf("start guest: %w", err)
	}
	// Only now: the start itself takes more than one processor, and being held to the guest's share would double
	// its time.
	if err := m.group.SetCPUs(c.Resources.VCPU); err != nil {
		return err
	}
	m.watch(context.WithoutCancel(ctx))
	return nil
}

func check(c vmm.Config) error {
	switch r := c.Resources; {
	case c.RootFS == "":
		return tartarus.Errorf(tartarus.Invalid, "no root file system")
	case r.VCPU < 0 || r.MemoryMB < 0 || r.DiskMB < 0 || r.PIDs < 0:
		return tartarus.Errorf(tartarus.Invalid, "a limit is negative")
	case c.Interface != nil && (c.Interface.NetNS == "" || c.Interface.Device == "" || !c.Interface.Address.IsValid()):
		return tartarus.Errorf(tartarus.Invalid, "network interface is incomplete")
	}
	return nil
}

// spawn starts the sandbox process of m inside its control group and waits until it listens. It returns the packet
// socket of the guest's network device, if it has one.
func (d *Driver) spawn(ctx context.Context, m *machine, c vmm.Config, how start) (device *os.File, err error) {
	if m.conf, err = newConfig(m.dir); err != nil {
		return nil, err
	}
	grouped := make(chan error, 1)
	makeGroup := func() error {
		r := c.Resources
		g, err := d.host.Make(c.ID, cgroup.Limits{MemoryBytes: r.MemoryMB << 20, PIDs: hostPIDs(r.PIDs)})
		if err == nil {
			m.group = g
		}
		return err
	}
	// With v1 hierarchies the process can only be moved into its group, so both are made at the same time.
	var groupDir *os.File
	if d.host.Version() == 2 {
		if err := makeGroup(); err != nil {
			return nil, err
		}
		if groupDir, err = m.group.Dir(); err != nil {
			return nil, err
		}
		defer groupDir.Close()
		grouped <- nil
	} else {
		go func() { grouped <- makeGroup() }()
	}
	p, err := newProcess(d.exe, m.conf, c, m.dir, how)
	if err == nil {
		defer p.close()
		device, err = d.launch(m, c, p, groupDir)
	}
	if gerr := <-grouped; gerr != nil || err != nil {
		return device, errors.Join(err, gerr)
	}
	if groupDir == nil {
		if err := m.group.Add(m.who.PID); err != nil {
			return device, err
		}
	}
	return device, p.admit(ctx)
}

// launch starts the process in the network namespace of its slot.
func (d *Driver) launch(m *machine, c vmm.Config, p *sandboxProcess, group *os.File) (device *os.File, err error) {
	var ns *os.File
	if c.Interface == nil {
		ns, err = netns.Empty()
	} else if ns, err = os.Open(c.Interface.NetNS); err == nil {
		defer ns.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if group != nil {
		p.cmd.SysProcAttr.UseCgroupFD = true
		p.cmd.SysProcAttr.CgroupFD = int(group.Fd())
	}
	err = netns.In(ns, func() error {
		if c.Interface != nil {
			if device, err = openDevice(c.Interface); err != nil {
				return err
			}
		}
		return p.cmd.Start()
	})
	if err != nil {
		return device, fmt.Errorf("start sandbox process: %w", err)
	}
	m.cmd = p.cmd
	pid := p.cmd.Process.Pid
	if m.handle, err = process.Open(pid); err != nil {
		return device, err
	}
	if m.who, err = process.Identify(pid); err != nil {
		return device, err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScore), 0); err != nil {
		return device, fmt.Errorf("set score of sandbox process: %w", err)
	}
	// The sandbox locks its memory file for moments, to bring in many pages at once; where this is forbidden it
	// goes without.
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	_ = unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, &unlimited, nil)
	return device, nil
}

// sandboxProcess is a sandbox process that is about to be started.
type sandboxProcess struct {
	cmd    *exec.Cmd
	given  donation.Agency // descriptors that the process gets, closed here after the start
	gate   *os.File        // a byte written here lets it go on
	booted *os.File        // a byte comes from here when it listens
}

func newProcess(exe string, conf *config.Config, c vmm.Config, dir string, how start) (p *sandboxProcess, err error) {
	p = &sandboxProcess{cmd: exec.Command(exe, conf.ToFlags()...)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.cmd.Args[0] = "runsc-sandbox"
	p.cmd.Env = []string{gateEnv + "=3", pidsEnv + "=" + strconv.FormatInt(c.Resources.PIDs, 10)}
	p.cmd.SysProcAttr = isolation()
	if err := p.pipes(); err != nil {
		return nil, err
	}
	if err := p.files(c, dir); err != nil {
		return nil, err
	}
	for _, f := range how.disk {
		p.given.Donate("fs-restore-fds", f)
	}
	p.given.Transfer(p.cmd, 3+len(p.cmd.ExtraFiles))
	p.cmd.Env = append(p.cmd.Env, givenEnv+"="+strconv.Itoa(3+len(p.cmd.ExtraFiles)))
	p.cmd.Args = append(p.cmd.Args, guestID)
	return p, nil
}

// pipes makes the gate, which must be descriptor 3, and the way back.
func (p *sandboxProcess) pipes() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.gate = w
	p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, r)
	return nil
}

// files opens everything the sandbox may use of the host. Once started it can open nothing more.
func (p *sandboxProcess) files(c vmm.Config, dir string) error {
	give := func(flag string, f *os.File, err error) error {
		if err != nil {
			return fmt.Errorf("open %s: %w", strings.TrimSuffix(flag, "-fd"), err)
		}
		p.given.DonateAndClose(flag, f)
		return nil
	}
	// Flags of the program come before the word "boot", those of boot after it.
	f, err := os.OpenFile(filepath.Join(dir, panicName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err := give("panic-log-fd", f, err); err != nil {
		return err
	}
	p.given.Transfer(p.cmd, 3+len(p.cmd.ExtraFiles))
	r := c.Resources
	upper := mountConf(r.DiskMB)
	p.cmd.Args = append(p.cmd.Args, "boot", "--bundle="+dir, "--apply-caps=true", "--setup-root",
		"--gofer-mount-confs="+upper.String(), "--cpu-num="+strconv.Itoa(cpus(r)))
	if r.MemoryMB > 0 {
		p.cmd.Args = append(p.cmd.Args, "--total-memory="+strconv.FormatInt(r.MemoryMB<<20, 10),
			"--total-host-memory="+strconv.FormatInt(r.MemoryMB<<20, 10))
	}
	image, err := os.Open(c.RootFS)
	if errors.Is(err, fs.ErrNotExist) {
		return tartarus.Errorf(tartarus.NotFound, "root file system %s does not exist", filepath.Base(c.RootFS))
	}
	if err := give("io-fds", image, err); err != nil {
		return err
	}
	disk, err := os.OpenFile(filepath.Join(dir, diskName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		pgalloc.IMAWorkAroundForMemFile(disk.Fd()) // must happen outside: the filter forbids it inside
	}
	if err := give("gofer-filestore-fds", disk, err); err != nil {
		return err
	}
	spec, err := specFile(newSpec(c, dir))
	if err := give("spec-fd", spec, err); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	socket, err := listen(folder)
	if err := give("controller-fd", socket, err); err != nil {
		return err
	}
	r0, w0, err := os.Pipe()
	if err != nil {
		return err
	}
	p.booted = r0
	p.given.DonateAndClose("start-sync-fd", w0)
	for range 3 {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err := give("stdio-fds", null, err); err != nil {
			return err
		}
	}
	return nil
}

// specFile puts the description of the container into memory, where the sandbox can read it twice.
func specFile(s *specs.Spec) (*os.File, error) {
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "spec")
	if err := json.NewEncoder(f).Encode(s); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// admit lets the process go on and waits until its control server listens.
func (p *sandboxProcess) admit(ctx context.Context) error {
	p.release()
	if _, err := p.gate.Write([]byte{1}); err != nil {
		return fmt.Errorf("admit sandbox process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.booted.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := p.booted.Read(make([]byte, 1)); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return errors.New("sandbox process ended while it started")
	}
	return nil
}

// release closes this side's copies of what the process was given, so that its end can be seen.
func (p *sandboxProcess) release() {
	p.given.Close()
	if len(p.cmd.ExtraFiles) > 0 {
		_ = p.cmd.ExtraFiles[0].Close() // the gate's far end
	}
}

func (p *sandboxProcess) close() {
	p.release()
	for _, f := range []*os.File{p.gate, p.booted} {
		if f != nil {
			_ = f.Close()
		}
	}
}
