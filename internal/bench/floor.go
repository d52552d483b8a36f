package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
)

// hand is one sandbox of the floor. What its making costs before start is not measured.
type hand interface {
	start(ctx context.Context) error
	execEcho(ctx context.Context) error
	end(ctx context.Context) error
}

// byHand is a sandbox of the floor: runsc's container in a network slot, nothing of ours around it.
type byHand struct {
	*gvisor.Raw
	r    *rig
	dir  string
	slot *network.Slot
}

// place gets what is not measured: a folder and a network namespace with a cable.
func (r *rig) place(ctx context.Context) (*byHand, error) {
	dir := filepath.Join(r.dir, fmt.Sprint("raw", r.count.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	slot, err := r.slots.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	return &byHand{r: r, dir: dir, slot: slot}, nil
}

// start is what is measured: New and Start of a container whose first process is the guest agent, as ours is.
func (b *byHand) start(context.Context) (err error) {
	b.Raw, err = gvisor.RawStart(gvisor.RawConfig{
		Dir: b.dir, RootFS: b.r.rootfs, Args: []string{tartarus.AgentPath}, NetNS: b.slot.Interface().NetNS,
	})
	return err
}

func (b *byHand) execEcho(ctx context.Context) error { return b.execHi(ctx, echo) }

func (b *byHand) execHi(ctx context.Context, argv []string) error {
	var out lastBytes
	code, err := b.Exec(ctx, argv, &out)
	return checkEcho(code, string(out), err)
}

func (b *byHand) end(ctx context.Context) error {
	var err error
	if b.Raw != nil {
		err = b.Stop()
	}
	return errors.Join(err, b.r.slots.Release(context.WithoutCancel(ctx), b.slot), os.RemoveAll(b.dir))
}

// roused is a sandbox of the floor of bursts on a warm pool: a machine whose agent is up and has run something. To start it is to tell
// the agent who it is, straight over the cable.
type roused struct {
	r       *rig
	machine vmm.Machine
	slot    *network.Slot
	guest   *guestclient.Client
}

// rouse makes the machine.
func (r *rig) rouse(ctx context.Context) (_ *roused, err error) {
	w := &roused{r: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.end(ctx))
		}
	}()
	if w.slot, err = r.slots.Acquire(ctx); err != nil {
		return nil, err
	}
	nic := w.slot.Interface()
	w.machine, err = r.driver.Boot(ctx, vmm.Config{
		ID: tartarus.NewID(), RootFS: r.rootfs, Hostname: "byhand", Interface: nic,
		Resources: tartarus.Resources{VCPU: 2, MemoryMB: 1024, DiskMB: 4096, PIDs: 4096},
	})
	if err != nil {
		return nil, err
	}
	w.guest = guestclient.New(guestclient.Config{Addr: nic.Address.Addr()})
	if err := w.guest.HealthWhenUp(ctx); err != nil {
		return nil, err
	}
	return w, w.execEcho(ctx)
}

func (w *roused) start(ctx context.Context) error {
	return w.guest.Init(ctx, guestclient.Init{EnvVars: map[string]string{"A": "B"}, Hostname: "byhand", SandboxID: "byhand"})
}

func (w *roused) execEcho(ctx context.Context) error { return execEcho(ctx, w.guest) }

func (w *roused) end(ctx context.Context) error {
	var errs []error
	if w.guest != nil {
		w.guest.Close()
	}
	if w.machine != nil {
		errs = append(errs, w.machine.Stop(context.WithoutCancel(ctx)))
	}
	if w.slot != nil {
		errs = append(errs, w.r.slots.Release(context.WithoutCancel(ctx), w.slot))
	}
	return errors.Join(errs...)
}
