package hecatoncheir

import (
	"context"
	"errors"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/warm"
)

const (
	// examineTime bounds looking at what a frozen sandbox has on its disk.
	examineTime = 3 * time.Minute
	// examineLook is how much of it the guest may take to hash files.
	examineLook = 30 * time.Second
)

// examineLimits are those of the machine that a seized disk is looked at in.
var examineLimits = tartarus.Resources{VCPU: 1, MemoryMB: 512, PIDs: 128}

// Examine looks at the disk of a sandbox in quarantine without waking it: its forensic snapshot's writable layer is put, as a copy, under a new
// machine that has no network and is thrown away. Processes and sockets are those that were seen before the freeze. One that is not in
// quarantine is tartarus.Conflict.
func (a *Agent) Examine(ctx context.Context, id string) (in tartarus.Inspection, err error) {
	h, err := a.find(id)
	if err != nil {
		return in, err
	}
	sb := h.sandbox()
	switch {
	case sb.Phase != tartarus.Quarantined || sb.Quarantine == nil:
		return in, tartarus.Errorf(tartarus.Conflict, "sandbox %s is %s, not quarantined", id, sb.Phase)
	case sb.Quarantine.Snapshot == "":
		return in, tartarus.Errorf(tartarus.Unsupported, "sandbox %s has no forensic snapshot; its evidence says why", id)
	}
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	t, err := a.cfg.Templates.Template(ctx, sb.TemplateID, sb.BuildID)
	if err != nil {
		return in, err
	}
	done, err := a.bootTurn(ctx)
	if err != nil {
		return in, err
	}
	defer done()
	limits := examineLimits
	limits.DiskMB = sb.Resources.DiskMB
	p, err := a.makePristine(ctx, warm.Kind{Template: t.ID, Build: t.Build, Runtime: sb.Driver, Resources: limits}, func(d vmm.Driver, c vmm.Config) (vmm.Machine, error) {
		c.RootFS = t.RootFS
		m, _, err := a.fromSnapshot(ctx, d, c, sb.Quarantine.Snapshot, true)
		return m, err
	})
	if err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, p.Discard(ctx)) }()
	if p.guest == nil {
		return in, tartarus.Errorf(tartarus.Unsupported, "runtime %s has no agent in its guests", sb.Driver)
	}
	if err := p.guest.HealthWhenUp(ctx); err != nil {
		return in, err
	}
	if in, err = p.guest.Inspect(ctx, sb.StartedAt, examineLook); err != nil {
		return in, err
	}
	in.Processes, in.Sockets = nil, nil // of the machine that looked
	if e, err := a.Evidence(ctx, id); err == nil && e.Guest != nil {
		in.Processes, in.Sockets = e.Guest.Processes, e.Guest.Sockets
	}
	return in, nil
}
