package hecatoncheir

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/warm"
)

// A prepared template is a snapshot of a machine that booted from it once and whose guest agent is up. It lies in a folder
// named after all that it depends on; kind.json is there only when all else is. It can be made again at any time, so that one
// which is damaged or does not fit is thrown away.
const (
	kindName  = "kind.json"
	stateName = "state" // the driver's own folder
)

// prepareTime bounds preparing one template: a boot, its start command, and a snapshot.
const prepareTime = 3 * time.Minute

// keepPrepared is how long a prepared template lies unused before it is removed.
const keepPrepared = 7 * 24 * time.Hour

// preparedDir is where a kind's prepared template is, or would be.
func (a *Agent) preparedDir(k warm.Kind) string {
	name, _ := json.Marshal([]any{k, a.support[k.Runtime].Version}) // strings and numbers only: never fails
	sum := sha256.Sum256(name)
	return filepath.Join(a.cfg.Dir, "prepared", hex.EncodeToString(sum[:16]))
}

// prepared finds a kind's snapshot and notes that it is used.
func (a *Agent) prepared(k warm.Kind) (dir string, ok bool) {
	dir = a.preparedDir(k)
	now := time.Now()
	if err := os.Chtimes(filepath.Join(dir, kindName), now, now); err != nil {
		return "", false
	}
	return filepath.Join(dir, stateName), true
}

// unprepare throws a kind's snapshot away.
func (a *Agent) unprepare(k warm.Kind, why error) {
	a.log.Warn("prepared template is thrown away", "template", k.Template, "runtime", k.Runtime, "error", why)
	if err := os.RemoveAll(a.preparedDir(k)); err != nil {
		a.log.Error("prepared template not removed", "template", k.Template, "error", err)
	}
}

// useless reports whether an error of a restore means that the snapshot will never work.
func useless(err error) bool {
	switch tartarus.KindOf(err) {
	case tartarus.Corrupt, tartarus.Unsupported, tartarus.Invalid, tartarus.NotFound:
		return true
	}
	return false
}

// ensurePrepared makes a kind's snapshot if there is none. Of several callers one does it.
func (a *Agent) ensurePrepared(ctx context.Context, k warm.Kind) (string, error) {
	if dir, ok := a.prepared(k); ok {
		return dir, nil
	}
	_, err, _ := a.preparing.Do(a.preparedDir(k), func() (any, error) {
		work, cancel := context.WithTimeout(ctx, prepareTime)
		defer cancel()
		return nil, a.makePrepared(work, k)
	})
	if err != nil {
		return "", fmt.Errorf("prepare template %s: %w", k.Template, err)
	}
	dir, ok := a.prepared(k)
	if !ok {
		return "", fmt.Errorf("prepare template %s: the snapshot is gone again", k.Template)
	}
	return dir, nil
}

func (a *Agent) makePrepared(ctx context.Context, k warm.Kind) (err error) {
	final := a.preparedDir(k)
	tmp := final + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(final), os.MkdirAll(filepath.Join(tmp, stateName), 0o700)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	p, err := a.bootPristine(ctx, k)
	if err != nil {
		return err
	}
	err = p.machine.Snapshot(ctx, filepath.Join(tmp, stateName))
	if err := errors.Join(err, p.Discard(ctx)); err != nil {
		return err
	}
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := errors.Join(syncFolder(filepath.Join(tmp, stateName)), os.WriteFile(filepath.Join(tmp, kindName), body, 0o600), syncFolder(tmp)); err != nil {
		return err
	}
	return os.Rename(tmp, final)
}

// bootPristine boots a machine from cold that is nobody's, with all that its template starts.
func (a *Agent) bootPristine(ctx context.Context, k warm.Kind) (*pristine, error) {
	template, err := a.cfg.Templates.Template(ctx, k.Template, k.Build)
	if err != nil {
		return nil, err
	}
	p, err := a.makePristine(ctx, k, func(d vmm.Driver, c vmm.Config) (vmm.Machine, error) {
		c.RootFS = template.RootFS
		return d.Boot(ctx, c)
	})
	if err != nil || p.slot == nil {
		return p, err
	}
	if err := a.breathe(ctx, p, template); err != nil {
		return nil, errors.Join(err, p.Discard(ctx))
	}
	return p, nil
}

// breathe waits for the agent of a machine that booted and gives it what all sandboxes of the template share.
func (a *Agent) breathe(ctx context.Context, p *pristine, t Template) error {
	rules, err := network.ParseRules(tartarus.Network{Internet: true})
	if err != nil {
		return err
	}
	if err := a.cfg.Slots.SetRules(ctx, p.slot, rules); err != nil {
		return err
	}
	if err := p.guest.InitWhenUp(ctx, templateInit(t, p.slot.Interface())); err != nil {
		return err
	}
	if err := prepare(ctx, p.guest, t); err != nil {
		return err
	}
	p.guest.Close() // so that the snapshot has no connection in it
	return nil
}

// templateInit is what the agent is told before there is a sandbox: nothing of it outlives the init of the sandbox.
func templateInit(t Template, nic *vmm.Interface) guestclient.Init {
	var seed [48]byte
	rand.Read(seed[:])
	return guestclient.Init{
		EnvVars: t.Env, Timestamp: time.Now(), DefaultUser: t.User, DefaultWorkdir: t.Workdir, TemplateID: t.ID, Hostname: "sandbox",
		MachineID: hex.EncodeToString(seed[:16]), Entropy: base64.StdEncoding.EncodeToString(seed[16:]),
		DNSServers: []string{nic.Gateway.String()},
	}
}

// mostWanted bounds the kinds that wait to be prepared; one that finds no place is wanted again by its next sandbox.
const mostWanted = 16

// prepareSoon has a kind prepared when the node has time, where no warm pool does that anyway.
func (a *Agent) prepareSoon(k warm.Kind) {
	if !a.cfg.Prepare || a.cfg.Warm.Memory > 0 {
		return
	}
	select {
	case a.wanted <- k:
	default:
	}
}

// prepareWanted prepares what sandboxes were booted for, one kind at a time, until ctx ends.
func (a *Agent) prepareWanted(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case k := <-a.wanted:
			for tries := 0; a.busy.Load() > 0 && tries < 50; tries++ { // five seconds at most: a busy node needs it all the more
				pause(ctx, 100*time.Millisecond)
			}
			if _, err := a.ensurePrepared(ctx, k); err != nil && ctx.Err() == nil {
				a.log.Warn("template not prepared", "template", k.Template, "runtime", k.Runtime, "error", err)
			}
		}
	}
}

// origins count where sandboxes came from.
type origins struct{ claimed, restored, booted atomic.Int64 }

// Origins says how many sandboxes were claimed from the warm pool, restored from their template's snapshot, and booted from cold.
func (a *Agent) Origins() (claimed, restored, booted int64) {
	return a.origins.claimed.Load(), a.origins.restored.Load(), a.origins.booted.Load()
}

// WarmReady says how many machines wait to be claimed.
func (a *Agent) WarmReady() (n int) {
	for _, ready := range a.warm.Ready() {
		n += ready
	}
	return n
}

// expectPrepared has machines of the kinds that were used lately made ready, and removes what was not used for long.
func (a *Agent) expectPrepared(ctx context.Context) error {
	root := filepath.Join(a.cfg.Dir, "prepared")
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list prepared templates: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		k, used, err := readPrepared(dir)
		if err != nil || a.preparedDir(k) != dir || time.Since(used) > keepPrepared || !a.Current(ctx, k) {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove prepared template: %w", err)
			}
			continue
		}
		if time.Since(used) < time.Hour {
			a.warm.Expect(ctx, k)
		}
	}
	return nil
}

func readPrepared(dir string) (k warm.Kind, used time.Time, err error) {
	path := filepath.Join(dir, kindName)
	info, err := os.Stat(path)
	if err != nil {
		return k, used, err
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return k, used, err
	}
	return k, info.ModTime(), json.Unmarshal(body, &k)
}
