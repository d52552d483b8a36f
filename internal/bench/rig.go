package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/image"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
)

// Config says what to measure.
type Config struct {
	Daemon      daemon.Config // of the stack that is measured; it is made ephemeral
	Version     string
	Template    string
	N           int
	Concurrency int
	Warm        bool      // sandboxes are claimed, not made
	MemoryMB    int64     // that a forked sandbox has touched
	Driver      string    // of VMM
	Clones      int       // at once, of VMM
	Policies    int       // in force, of Judges
	Progress    io.Writer // a line now and then; nil for none
}

func (c *Config) validate() error {
	if c.N < 1 || c.N > 100_000 || c.Concurrency < 1 || c.Concurrency > 1000 {
		return tartarus.Errorf(tartarus.Invalid, "n must be 1 to 100000 and concurrency 1 to 1000, not %d and %d", c.N, c.Concurrency)
	}
	if c.Clones < 0 || c.Clones > 1000 {
		return tartarus.Errorf(tartarus.Invalid, "clones must be 0 to 1000, not %d", c.Clones)
	}
	if c.Policies < 0 || c.Policies > 10_000 {
		return tartarus.Errorf(tartarus.Invalid, "policies must be 0 to 10000, not %d", c.Policies)
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	return nil
}

// rig is a stack of our own in this process, and beside it what is needed to do the same by hand.
type rig struct {
	cfg    Config
	stack  *daemon.Daemon
	client *client.Client
	rootfs string
	dir    string        // of what is made by hand
	slots  *network.Pool // for what is made by hand
	driver *gvisor.Driver
	count  atomic.Int64
	stop   func() error
}

// open starts the stack, without an edge for names. Its close must be called.
func open(ctx context.Context, cfg Config) (r *rig, err error) {
	return openAt(ctx, cfg, daemon.EdgeOff)
}

// openAt is open with an edge at this address.
func openAt(ctx context.Context, cfg Config, edge string) (r *rig, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Daemon.Ephemeral, cfg.Daemon.APIAddr, cfg.Daemon.EdgeAddr = true, "127.0.0.1:0", edge
	if cfg.Daemon.Network.Slots < cfg.Concurrency {
		cfg.Daemon.Network.Slots = cfg.Concurrency
	}
	cfg.Daemon.Warm = daemon.Warm{}
	if cfg.Warm {
		keep := max(4, cfg.Concurrency)
		cfg.Daemon.Warm = daemon.Warm{MemoryMB: int64(keep) * 128, Keep: keep, Most: keep}
	}
	stack, err := daemon.New(cfg.Daemon, cfg.Version)
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- stack.Run(running) }()
	r = &rig{cfg: cfg, stack: stack, stop: func() error { cancel(); return <-ended }}
	select {
	case err := <-ended:
		cancel()
		return nil, errors.Join(err, errors.New("the stack ended before it was ready"))
	case <-stack.Ready():
	}
	if err := r.prepare(ctx); err != nil {
		return nil, errors.Join(err, r.close(ctx))
	}
	return r, nil
}

// prepare makes what the floor needs: a template's image, and network slots of a pool of its own.
func (r *rig) prepare(ctx context.Context) (err error) {
	if r.client, err = client.New(client.Config{URL: r.stack.URL(), APIKey: r.stack.APIKey()}); err != nil {
		return err
	}
	store, err := image.New(image.Config{Dir: filepath.Join(r.cfg.Daemon.DataDir, daemon.TemplatesDir)})
	if err != nil {
		return err
	}
	template, err := store.Resolve(r.cfg.Template)
	if err != nil {
		return err
	}
	r.rootfs = template.RootFS
	if r.dir, err = os.MkdirTemp("", "tartarus-bench-"); err != nil {
		return fmt.Errorf("make folder for the floor: %w", err)
	}
	if r.driver, err = gvisor.New(gvisor.Config{Dir: filepath.Join(r.dir, "gvisor")}); err != nil {
		return err
	}
	r.slots, err = network.Open(ctx, network.Config{StateDir: filepath.Join(r.dir, "network"), Ephemeral: true, Base: r.cfg.Daemon.Network.Base})
	return err
}

func (r *rig) close(ctx context.Context) error {
	var errs []error
	if r.client != nil {
		r.client.Close()
	}
	if r.slots != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		errs = append(errs, r.slots.Close(last))
	}
	errs = append(errs, r.stop())
	if r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
	}
	return errors.Join(errs...)
}

// report begins a report about this rig.
func (r *rig) report(what string) *Report {
	return &Report{
		What: what, Runtime: r.stack.About().Driver, N: r.cfg.N, Concurrency: r.cfg.Concurrency, Warm: r.cfg.Warm,
		Stages: map[string]float64{}, Extra: map[string]float64{}, Host: thisHost(),
	}
}

// sandbox makes a sandbox through the API, as any client does.
func (r *rig) sandbox(ctx context.Context) (*client.Guest, error) {
	sb, err := r.client.Create(ctx, api.NewSandbox{TemplateID: r.cfg.Template}, client.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return r.client.Guest(sb), nil
}

// fillTime bounds how long the warm pool may take to be full again: a burst of a hundred takes some ten seconds.
const fillTime = 5 * time.Minute

// full waits until n machines are warm and nobody makes any, so that neither ours nor the floor is measured beside it.
func (r *rig) full(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, fillTime)
	defer cancel()
	for r.stack.Agent().WarmReady() < n {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d machines are warm: %w", r.stack.Agent().WarmReady(), n, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// agent is a client of the sandbox's agent through the API's port.
func agent(g *client.Guest) *guestclient.Client {
	return guestclient.New(guestclient.Config{BaseURL: g.BaseURL(), RoundTripper: g.RoundTripper(tartarus.AgentPort), Token: g.AgentToken})
}

// echo is what every first exec runs.
var echo = []string{"/bin/echo", "hi"}

func execEcho(ctx context.Context, c *guestclient.Client) error { return execHi(ctx, c, echo) }

// execHi runs a command that prints hi.
func execHi(ctx context.Context, c *guestclient.Client, argv []string) error {
	var out lastBytes
	exit, err := c.Run(ctx, guestclient.Command{Argv: argv}, nil, &out, io.Discard)
	return checkEcho(exit.ShellCode(), string(out), err)
}

func checkEcho(code int, out string, err error) error {
	if err == nil && (code != 0 || out != "hi\n") {
		err = fmt.Errorf("echo ended with %d and printed %q", code, out)
	}
	return err
}

// lastBytes keeps what is written to it; nothing that benchmarks run prints much.
type lastBytes []byte

func (b *lastBytes) Write(p []byte) (int, error) {
	if len(*b) < 4096 {
		*b = append(*b, p...)
	}
	return len(p), nil
}
