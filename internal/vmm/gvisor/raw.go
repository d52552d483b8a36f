package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/sandbox"
)

// RawConfig describes a sandbox that is made by hand, as the floor of benchmarks.
type RawConfig struct {
	Dir    string   // empty folder for this sandbox alone
	RootFS string   // EROFS image
	Args   []string // first process
	NetNS  string   // path of a network namespace whose devices and addresses runsc takes over; empty for no network
}

// Raw is a sandbox made by runsc's own container package with its default configuration, and nothing of this driver
// around it: no limits, no control group, the writable layer in memory. It does less than a machine does.
type Raw struct {
	conf *config.Config
	c    *container.Container
}

// RawStart creates and starts a container, as "runsc run -detach" would. It is for benchmarks alone: the guest gets
// the caller's standard input and output.
func RawStart(c RawConfig) (*Raw, error) {
	r, err := rawNew(c)
	if err != nil {
		return nil, err
	}
	if err := r.c.Start(r.conf); err != nil {
		return nil, errors.Join(fmt.Errorf("start raw container: %w", err), r.Stop())
	}
	return r, nil
}

// RawRestore creates a container and restores it from a folder that Checkpoint filled.
func RawRestore(c RawConfig, dir string) (*Raw, error) {
	r, err := rawNew(c)
	if err != nil {
		return nil, err
	}
	if err := r.c.Restore(r.conf, dir, false, true, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("restore raw container: %w", err), r.Stop())
	}
	return r, nil
}

func rawNew(c RawConfig) (*Raw, error) {
	gvlog.SetTarget(&gvlog.Writer{Next: io.Discard})
	flags := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(flags)
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		return nil, fmt.Errorf("make runsc configuration: %w", err)
	}
	conf.RootDir, conf.Platform, conf.IgnoreCgroups = c.Dir, "systrap", true
	conf.Network = config.NetworkNone
	root := filepath.Join(c.Dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, fmt.Errorf("new raw container: %w", err)
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: c.Args, Env: []string{defaultPath}, Cwd: "/"},
		Linux:   &specs.Linux{},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": c.RootFS, "dev.gvisor.spec.rootfs.type": "erofs",
			"dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	if c.NetNS != "" {
		conf.Network = config.NetworkSandbox
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: c.NetNS}}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("new raw container: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "config.json"), b, 0o600); err != nil {
		return nil, fmt.Errorf("new raw container: %w", err)
	}
	made, err := container.New(conf, container.Args{ID: guestID, Spec: spec, BundleDir: c.Dir})
	if err != nil {
		return nil, fmt.Errorf("new raw container: %w", err)
	}
	return &Raw{conf: conf, c: made}, nil
}

// Exec runs argv, copies its output to stdout and returns its exit code.
func (r *Raw) Exec(ctx context.Context, argv []string, stdout io.Writer) (int, error) {
	out, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	args, null, err := execArgs(argv, w)
	if err != nil {
		w.Close()
		return 0, err
	}
	pid, err := r.c.Execute(r.conf, args)
	w.Close()
	null.Close()
	if err != nil {
		return 0, fmt.Errorf("execute in raw container: %w", err)
	}
	copied := follow(out, stdout)
	status, err := r.c.WaitPID(pid)
	return status.ExitStatus(), errors.Join(err, copied.finish(), ctx.Err())
}

// Checkpoint saves the container to dir, which is empty, and leaves it running.
func (r *Raw) Checkpoint(dir string) error {
	opts := sandbox.CheckpointOpts{Compression: statefile.CompressionLevelNone, Resume: true}
	if err := r.c.Checkpoint(r.conf, dir, opts); err != nil {
		return fmt.Errorf("checkpoint raw container: %w", err)
	}
	return nil
}

// Stop destroys the container.
func (r *Raw) Stop() error {
	if err := r.c.Destroy(); err != nil {
		return fmt.Errorf("destroy raw container: %w", err)
	}
	return nil
}
