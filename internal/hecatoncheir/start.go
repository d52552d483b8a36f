package hecatoncheir

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/warm"
)

// handsPerStart is how many jobs are in work for each machine that may be brought up at once: most of a claim's time is spent waiting
// for the store and for the guest.
const handsPerStart = 8

// bootTurn waits until the node may bring up one more machine; the caller gives the turn back.
func (a *Agent) bootTurn(ctx context.Context) (done func(), err error) {
	select {
	case a.boots <- struct{}{}:
		return func() { <-a.boots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takeWork leases jobs while there are free hands for them.
func (a *Agent) takeWork(ctx context.Context) error {
	hands, idle := make(chan struct{}, handsPerStart*a.cfg.Starts), make(chan acheron.Lease)
	for {
		select {
		case <-ctx.Done():
			return nil
		case hands <- struct{}{}: // one hand is kept for the first job of the next lease
		}
		most := cap(hands) - len(hands) + 1
		if a.awaitRoom(ctx) {
			most = 1
		}
		leases, err := a.cfg.Control.Lease(ctx, a.cfg.Name, most, leaseTTL)
		if err != nil || len(leases) == 0 {
			<-hands
			if ctx.Err() != nil {
				return nil
			}
			a.log.Warn("no work to be had", "error", err)
			pause(ctx, time.Second)
			continue
		}
		for i, l := range leases {
			if i > 0 {
				hands <- struct{}{} // does not block: no more were leased than hands were free
			}
			a.starts.Add(1)
			a.busy.Add(1)
			select {
			case idle <- l:
			default:
				go a.worker(ctx, l, idle, hands)
			}
		}
	}
}

// workerIdle is how long a worker waits for another job. A new one costs more than the wait: its stack grows to what a start takes, step by step.
const workerIdle = time.Second

// worker carries out a job, and those that come soon after. Each has a hand, which is given back.
func (a *Agent) worker(ctx context.Context, l acheron.Lease, more <-chan acheron.Lease, hands <-chan struct{}) {
	for {
		func() {
			defer a.starts.Done()
			defer a.busy.Add(-1)
			defer func() { <-hands }()
			a.work(ctx, l)
		}()
		select {
		case l = <-more:
		case <-time.After(workerIdle):
			return
		case <-ctx.Done():
			return
		}
	}
}

// tryFull is how long a node that had no room for a sandbox leaves its queue alone, unless one goes: those that wait keep their places there, and
// now and then the first of them is tried, which may be smaller or may have room on another node by now.
const tryFull = time.Second

// awaitRoom lets a node that is full leave its queue alone, and reports whether it is full still.
func (a *Agent) awaitRoom(ctx context.Context) (full bool) {
	for {
		a.mu.Lock()
		full = !a.filled.IsZero()
		wait := tryFull - time.Since(a.filled)
		a.mu.Unlock()
		if !full || wait <= 0 {
			return full
		}
		select {
		case <-ctx.Done():
			return full
		case <-a.freed:
		case <-time.After(wait):
		}
	}
}

// work carries out one leased job and reports how it went. It goes on when ctx ends, because a start half done must be
// finished or undone; ctx only bounds the watch over the machine afterwards.
func (a *Agent) work(ctx context.Context, l acheron.Lease) {
	job, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.StartTime)
	defer cancel()
	renewed := make(chan struct{})
	renewal := time.AfterFunc(renewEvery, func() { // most starts are over before
		defer close(renewed)
		a.renew(job, cancel, l)
	})

	began := time.Now()
	sb, err := a.carryOut(ctx, job, l)
	if l.Job.Kind != acheron.Resume {
		a.count.Created(time.Since(began), err)
	}
	cancel()
	if !renewal.Stop() {
		<-renewed
	}

	if h, held := a.find(sb.ID); err == nil && held == nil && h.arrivedUnder(l) {
		return
	}
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), reportTime)
	defer cancelLast()
	if err != nil {
		retry := retryable(err)
		a.log.Warn("start failed", "sandbox", sb.ID, "tenant", l.Job.Tenant, "attempt", l.Job.Attempt, "retry", retry, "error", err)
		if err := a.cfg.Control.Fail(last, l, acheron.Reason(err), retry); err != nil {
			a.log.Warn("failed start not reported", "sandbox", sb.ID, "error", err)
		}
		return
	}
	a.finish(last, l, sb)
}

// finish tells the control plane that a sandbox runs. A refusal means that nobody waits for it any more: the job was cancelled, or another
// holder took it over.
func (a *Agent) finish(ctx context.Context, l acheron.Lease, sb tartarus.Sandbox) {
	h, held := a.find(sb.ID)
	switch {
	case held != nil:
	case l.Job.Kind == acheron.Create: // which was told when it came up
		a.heard(ctx, h)
	default:
		a.told(ctx, h)
	}
	body, err := json.Marshal(sb)
	if err == nil {
		err = a.cfg.Control.Complete(ctx, l, body)
	}
	switch {
	case err == nil:
	case tartarus.Is(err, tartarus.Conflict), tartarus.Is(err, tartarus.NotFound):
		if held == nil {
			err = a.end(ctx, h, tartarus.Stopped, tartarus.ReasonUser, "the request for it was withdrawn before it ran")
		}
		a.log.Info("start withdrawn", "sandbox", sb.ID, "tenant", sb.Tenant, "error", err)
	default:
		// The control plane is away. The sandbox stays: a redelivered job finds it, and its timeout ends it otherwise.
		a.log.Warn("start not acknowledged", "sandbox", sb.ID, "error", err)
	}
}

// retryable reports whether another attempt at the same job here may go better. One that there is no room for is given back at once: there may be
// some on another node.
func retryable(err error) bool {
	if e, ok := errors.AsType[*tartarus.Error](err); ok && e.Code == hades.CodeNoRoom {
		return false
	}
	switch tartarus.KindOf(err) {
	case tartarus.Internal, tartarus.Unavailable:
		return true
	}
	return false
}

// renewEvery lets two renewals get lost.
const renewEvery = leaseTTL / 3

// renew prolongs the lease, now and until ctx ends; when it is lost, it ends the work.
func (a *Agent) renew(ctx context.Context, lost context.CancelFunc, l acheron.Lease) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	until := l.Until
	for {
		err := a.cfg.Control.Renew(ctx, l, leaseTTL)
		switch {
		case err == nil:
			until = time.Now().Add(leaseTTL - leaseTTL/10)
		case tartarus.Is(err, tartarus.Conflict), tartarus.Is(err, tartarus.NotFound), time.Now().After(until):
			lost()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// carryOut starts the sandbox that the job describes, or finds it already started by an earlier delivery.
func (a *Agent) carryOut(ctx, job context.Context, l acheron.Lease) (tartarus.Sandbox, error) {
	j := l.Job
	var spec tartarus.Spec
	if err := json.Unmarshal(j.Payload, &spec); err != nil {
		return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Invalid, "decode job %s: %w", j.ID, err)
	}
	sb := tartarus.Sandbox{Spec: spec, Node: a.cfg.Name, Phase: tartarus.Starting, CreatedAt: j.EnqueuedAt, Revision: 1}
	if !tartarus.ValidID(spec.ID) {
		return sb, tartarus.Errorf(tartarus.Invalid, "job %s: %q cannot be a sandbox id", j.ID, spec.ID)
	}
	if j.Kind == acheron.Resume {
		return a.carryResume(ctx, job, j, sb)
	}
	h, fresh, err := a.admit(sb)
	if err != nil {
		return sb, err
	}
	if !fresh {
		select {
		case <-h.started():
		case <-job.Done():
			return sb, tartarus.Errorf(tartarus.Unavailable, "an earlier attempt is still under way")
		}
		if now := h.sandbox(); now.Phase == tartarus.Running {
			return now, nil
		}
		return sb, tartarus.Errorf(tartarus.Unavailable, "an earlier attempt is being undone")
	}
	h.mu.Lock()
	h.lease = &l
	h.mu.Unlock()
	return a.start(ctx, job, h)
}

// start brings a sandbox up, or leaves nothing of it.
func (a *Agent) start(ctx, job context.Context, h *held) (tartarus.Sandbox, error) {
	job, cancel := context.WithCancel(job)
	defer cancel()
	h.mu.Lock()
	h.cancel = cancel
	h.mu.Unlock()

	err := a.bringUp(job, h)
	if err == nil {
		a.settle(ctx, h)
		return h.sandbox(), nil
	}
	close(h.up)
	sb := h.sandbox()
	a.cleanUp(context.WithoutCancel(ctx), h)
	if sb.Phase == tartarus.Running { // the control plane may have heard so
		why := err
		if _, err := h.change(func(sb *tartarus.Sandbox) error {
			sb.EndedAt = time.Now()
			return sb.Transition(tartarus.Failed, tartarus.ReasonStart, why.Error())
		}); err == nil {
			a.tell(h)
		}
	}
	if errors.Is(err, context.Canceled) {
		err = tartarus.Errorf(tartarus.Conflict, "the start of sandbox %s was called off", sb.ID)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = tartarus.Errorf(tartarus.Unavailable, "sandbox %s did not come up within %s: %w", sb.ID, a.cfg.StartTime, err)
	}
	return sb, err
}

// bringUp does the steps of a start in order. What it has acquired stands in h, from where cleanUp takes it away.
func (a *Agent) bringUp(ctx context.Context, h *held) error {
	template, err := a.cfg.Templates.Template(ctx, h.spec.TemplateID, h.spec.BuildID)
	if err != nil {
		return err
	}
	driver, err := a.driver(h.spec.Runtime)
	if err != nil {
		return err
	}
	rules, err := rulesOf(h.spec, h.spec.Network)
	if err != nil {
		return err
	}
	if err := a.holdImage(h.spec.ID, template); err != nil {
		return err
	}
	if h.spec.SnapshotID != "" {
		return a.bringUpFrom(ctx, h, template, driver, rules)
	}
	kind := kindOf(h.spec, template, driver.Name())
	if p, ok := a.warm.Claim(ctx, kind, phlegethon.Heat(h.spec.Heat)); ok {
		err := a.moveIn(ctx, h, p, move{template, driver, rules})
		if err == nil {
			a.origins.claimed.Add(1)
			return nil
		}
		if !tartarus.Is(err, tartarus.GuestGone) {
			return err
		}
	}
	done, err := a.bootTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := a.attach(ctx, h, driver, rules); err != nil {
		return err
	}
	// Written before the machine exists: an agent that dies from here on is followed by one that knows where to look.
	if err := a.journal(ctx, h); err != nil {
		return err
	}
	m, booted, err := a.launch(ctx, h, template, kind, driver)
	if err != nil {
		return err
	}
	return a.bringAlive(ctx, h, template, m, driver, h.spec.Timeout, booted)
}

// launch restores the template's snapshot, or boots it from cold where there is none that works.
func (a *Agent) launch(ctx context.Context, h *held, t Template, k warm.Kind, d vmm.Driver) (m vmm.Machine, booted bool, err error) {
	c := a.machineConfig(h, t)
	if dir, ok := a.prepared(k); ok {
		m, err := d.Restore(ctx, c, dir)
		if !useless(err) {
			a.origins.restored.Add(1)
			return m, false, err
		}
		a.unprepare(k, err)
	}
	a.prepareSoon(k)
	a.origins.booted.Add(1)
	m, err = d.Boot(ctx, c)
	return m, true, err
}

// acquire gets a network slot for a machine of the driver's.
func (a *Agent) acquire(ctx context.Context, d vmm.Driver) (*network.Slot, error) {
	if _, ok := d.(vmm.TAPDriver); ok {
		return a.cfg.Slots.AcquireTAP(ctx)
	}
	return a.cfg.Slots.Acquire(ctx)
}

// attach gives the sandbox a network slot with its egress rules in force.
func (a *Agent) attach(ctx context.Context, h *held, d vmm.Driver, rules network.Rules) error {
	if a.cfg.Slots == nil {
		return nil
	}
	slot, err := a.acquire(ctx, d)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.slot = slot
	h.mu.Unlock()
	return a.cfg.Slots.SetRules(ctx, slot, rules)
}

// machineConfig is what the driver needs to know.
func (a *Agent) machineConfig(h *held, t Template) vmm.Config {
	c := vmm.Config{ID: h.spec.ID, RootFS: t.RootFS, Hostname: h.spec.ID, Resources: h.spec.Resources}
	if h.slot != nil {
		c.Interface = h.slot.Interface()
	}
	return c
}

// initGuest waits for the guest agent and makes it this sandbox's. A guest that has just booted first runs what its template starts, which knows
// the template's variables alone, as it does in the snapshot that later sandboxes come from.
func (a *Agent) initGuest(ctx context.Context, h *held, t Template, booted bool) error {
	if h.slot == nil {
		return nil
	}
	nic := h.slot.Interface()
	guest := guestclient.New(guestclient.Config{Addr: nic.Address.Addr(), Token: h.spec.Secrets.AgentToken})
	h.mu.Lock()
	h.guest = guest
	h.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if exit, err := h.machine.Wait(ctx); err == nil {
			cancel(tartarus.Errorf(tartarus.Internal, "the machine ended while it started (%s): %s", exit.Reason, exit.Message))
		}
	}()
	if booted && t.starts() {
		err := guest.InitWhenUp(ctx, templateInit(t, nic))
		if err == nil {
			err = prepare(ctx, guest, t)
		}
		if ended, ok := errors.AsType[*tartarus.Error](context.Cause(ctx)); ok {
			return ended
		}
		if err != nil {
			return err
		}
	}
	if err := guest.InitWhenUp(ctx, a.guestInit(h, t, nic)); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	return nil
}

// rulesOf are the rules of a sandbox under network options that may have been changed since it was created.
func rulesOf(spec tartarus.Spec, n tartarus.Network) (network.Rules, error) {
	if spec.Confined != "" {
		return network.Rules{}, nil // nothing leaves it, whatever anybody asks for
	}
	rules, err := network.ParseRules(n)
	rules.Owner = network.Owner{Sandbox: spec.ID, Tenant: spec.Tenant, Tokens: spec.Identity}
	return rules, err
}

// authority is what a guest has to trust, where headers are put into its requests.
func (a *Agent) authority(n tartarus.Network) string {
	if len(n.Transforms) == 0 || a.cfg.Slots == nil {
		return ""
	}
	return string(a.cfg.Slots.CACertificate())
}

// trust has a running guest trust what it has to.
func (a *Agent) trust(ctx context.Context, h *held, n tartarus.Network) error {
	bundle := a.authority(n)
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if bundle == "" || guest == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	return guest.Init(ctx, guestclient.Init{AccessToken: h.spec.Secrets.AgentToken, CABundle: bundle})
}

// guestInit is the identity that the agent takes on.
func (a *Agent) guestInit(h *held, t Template, nic *vmm.Interface) guestclient.Init {
	spec := h.spec
	env := make(map[string]string, len(t.Env)+len(spec.Env))
	maps.Copy(env, t.Env)
	maps.Copy(env, spec.Env)
	var seed [48]byte
	rand.Read(seed[:])
	return guestclient.Init{
		EnvVars: env, AccessToken: spec.Secrets.AgentToken, Timestamp: time.Now(),
		DefaultUser: t.User, DefaultWorkdir: t.Workdir,
		SandboxID: spec.ID, TemplateID: spec.TemplateID, Hostname: spec.ID,
		MachineID: hex.EncodeToString(seed[:16]), Entropy: base64.StdEncoding.EncodeToString(seed[16:]),
		DNSServers: []string{nic.Gateway.String()}, CABundle: a.authority(h.sandbox().Network),
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
