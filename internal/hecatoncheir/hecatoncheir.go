// Package hecatoncheir is the node agent: it owns the sandboxes of its node, is the truth about them, and keeps their time.
// Nothing of a sandbox exists on the host without a journal record written before it, so that an agent that dies at any
// point can be followed by one that adopts what lives and removes what does not.
package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hypnos"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/warm"
)

// Config describes a node.
type Config struct {
	Name      string            // unique in the fleet
	Version   string            // of this build, told to the control plane
	Labels    map[string]string // tartarus.io/... and the operator's own
	Dir       string            // where the node keeps logs of ended sandboxes and snapshots of paused ones
	Control   Control
	Journal   Journal
	Arrivals  Arrivals // nil where the stores of Control and Journal are apart
	Templates Templates
	Snapshots *snapshot.Store    // what paused sandboxes are kept in; nil makes one in Dir
	Drivers   []vmm.Driver       // in order of preference; the first usable one runs what demands none
	Slots     *network.Pool      // nil only with drivers whose guests have no network and no agent
	Volumes   Volumes            // nil where sandboxes can have none mounted
	Capacity  tartarus.Resources // what its sandboxes may hold in all, paused ones included; 0 of something is not limited
	MaxLive   int                // how many sandboxes it holds at once
	Starts    int                // machines brought up at once; more than the processors can do makes all of them slow
	Ephemeral bool               // Run ends every sandbox before it returns
	StartTime time.Duration      // how long one start may take
	Ends      thanatos.Limits
	Hypnos    *hypnos.Config // nil puts nothing to sleep
	Meter     Meter          // counts; may be nil
	// Strikes counts what a sandbox did that looks like an attempt to break out, and says why it has to go into quarantine for it, if it has to.
	// Nil counts nothing. Suspicion is from where on something is a strike.
	Strikes   func(ctx context.Context, s typhon.Strike) (quarantine string, err error)
	Suspicion typhon.Limits
	// Prepare has templates snapshot once they are used, so that what is created from them later is restored, not booted.
	Prepare bool
	Warm    Warm
	// Catalog lists the templates that are here, for a fleet whose nodes have different ones. Nil: the control plane knows without.
	Catalog func() []hades.Template
	Log     *slog.Logger
}

// Warm says how many machines wait for somebody who wants them. It needs Prepare.
type Warm struct {
	Memory int64 // bytes that they may take together; 0 is none
	Keep   int   // of each kind that is in use
	Most   int   // of each kind
}

// The agent's rhythms.
const (
	// leaseTTL is how long a start may go without renewing; three renewals fit into it.
	leaseTTL = 15 * time.Second
	// heartbeatEvery and heartbeatTTL let two heartbeats get lost before a node counts as gone.
	heartbeatEvery = 5 * time.Second
	heartbeatTTL   = 16 * time.Second
	// sampleEvery is the resolution of metrics: what the SDKs' own service keeps.
	sampleEvery = 5 * time.Second
	// cleanupTime bounds taking one sandbox off the host.
	cleanupTime = 30 * time.Second
	// reportTime bounds one attempt to tell the control plane something.
	reportTime = 5 * time.Second
	// toldTime is how long a request waits until the control plane has what it changed: hundreds of store writes, and no wait that a
	// person feels while the control plane is away.
	toldTime = 500 * time.Millisecond
)

// Agent runs the sandboxes of one node.
type Agent struct {
	cfg       Config
	snapshots *snapshot.Store
	log       *slog.Logger
	usable    map[string]vmm.Driver // by name, set by Run before anything is started
	support   map[string]vmm.Support
	first     string // name of the preferred usable driver

	mu       sync.Mutex
	held     map[string]*held // by sandbox id
	next     *news            // not told yet
	sent     *news            // being told
	going    bool             // no termination begins any more
	cordoned bool             // no sandbox is taken any more
	wakeup   chan struct{}    // capacity 1: there is news

	allocated tartarus.Resources // what those held hold in all
	filled    time.Time          // when one was refused for want of room, and none has gone since
	freed     chan struct{}      // capacity 1: one has gone

	flushing chan struct{} // capacity 1: somebody delivers reports

	warm      *warm.Pool[*pristine]
	strays    strays
	preparing singleflight.Group
	wanted    chan warm.Kind // to be prepared when nothing else is to be done
	origins   origins

	count   Meter
	boots   chan struct{}  // capacity Config.Starts: machines that are being brought up
	starts  sync.WaitGroup // leased work under way
	busy    atomic.Int32   // how much of it
	endings sync.WaitGroup // terminations under way
	waking  singleflight.Group
	wakers  chan struct{} // as many as may wake at once
	leaving chan struct{} // closed when terminations must be left to the next agent
	rewound chan struct{} // capacity 1: a deadline changed
	looksAt atomic.Int64  // when deadlines are looked at next without that, in nanoseconds of the epoch
	ready   chan struct{}
}

// New makes an agent that does nothing yet.
func New(c Config) (*Agent, error) {
	switch {
	case c.Name == "":
		return nil, errors.New("hecatoncheir: the node needs a name")
	case c.Control == nil, c.Journal == nil, c.Templates == nil, len(c.Drivers) == 0, c.Log == nil:
		return nil, errors.New("hecatoncheir: control, journal, templates, drivers and log are needed")
	case c.Warm.Memory > 0 && !c.Prepare:
		return nil, errors.New("hecatoncheir: warm machines are restored from prepared templates")
	case c.Starts < 1 || c.MaxLive < 1 || c.StartTime <= 0:
		return nil, errors.New("hecatoncheir: starts, live sandboxes and start time must be positive")
	}
	if c.Snapshots == nil {
		var err error
		if c.Snapshots, err = snapshot.New(snapshot.Config{Dir: filepath.Join(c.Dir, "snapshots"), Merge: Merging(c.Drivers), Log: c.Log}); err != nil {
			return nil, err
		}
	}
	a := &Agent{
		snapshots: c.Snapshots,
		cfg:       c, log: c.Log.With("node", c.Name),
		usable: map[string]vmm.Driver{}, support: map[string]vmm.Support{},
		held: map[string]*held{}, next: newNews(), sent: newNews(), count: meterOrNone(c.Meter), leaving: make(chan struct{}),
		wanted: make(chan warm.Kind, mostWanted), boots: make(chan struct{}, c.Starts),
		wakers: make(chan struct{}, c.Starts),
		freed:  make(chan struct{}, 1), wakeup: make(chan struct{}, 1), flushing: make(chan struct{}, 1), ready: make(chan struct{}), rewound: make(chan struct{}, 1),
	}
	var err error
	a.warm, err = warm.New(warm.Config[*pristine]{
		Maker: a, Memory: c.Warm.Memory, Keep: c.Warm.Keep, Most: c.Warm.Most, Makers: warmMakers(), Log: a.log,
		Busy: func() bool { return a.busy.Load() > 0 },
	})
	return a, err
}

// warmMakers is how many machines are made ready at once: half of the processors, for the others have work.
func warmMakers() int { return max(1, runtime.NumCPU()/2) }

// Ready is closed once the node has reconciled what an earlier agent left and takes work.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Preferred names the driver that runs what demands none, and how strongly it isolates, once Ready is closed.
func (a *Agent) Preferred() (string, tartarus.Tier) { return a.first, a.support[a.first].Tier }

// Support returns what each driver said of this host. It is complete once Ready is closed.
func (a *Agent) Support() map[string]vmm.Support { return a.support }

// Run reconciles, takes work until ctx ends, then waits for starts under way and flushes reports. Sandboxes
// live on to be adopted, unless the node is ephemeral.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.probe(ctx); err != nil {
		return err
	}
	if err := a.reconcile(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	// A control plane that is away keeps nobody from running: what was adopted has its timeouts, and the heartbeats go on.
	if err := a.cfg.Control.Heartbeat(ctx, a.Node(), heartbeatTTL); tartarus.Is(err, tartarus.Unavailable) {
		a.log.Warn("node not registered yet", "error", err)
	} else if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	if err := a.expectPrepared(ctx); err != nil {
		return err
	}
	close(a.ready)

	g, loops := errgroup.WithContext(ctx)
	g.Go(func() error { return a.takeWork(loops) })
	g.Go(func() error { return a.heartbeats(loops) })
	g.Go(func() error { return a.deadlines(loops) })
	g.Go(func() error { return a.reports(loops) })
	g.Go(func() error { return a.sampleAll(loops) })
	g.Go(func() error { return a.tidy(loops) })
	g.Go(func() error { return a.snapshots.Run(loops) })
	g.Go(func() error { return a.lookForIdle(loops) })
	g.Go(func() error { return a.warm.Run(loops) })
	g.Go(func() error { return a.prepareWanted(loops) })
	err := g.Wait()

	a.shutdown(context.WithoutCancel(ctx))
	return err
}

// probe asks each driver what it can do here.
func (a *Agent) probe(ctx context.Context) error {
	var why error
	for _, d := range a.cfg.Drivers {
		s := d.Probe(ctx)
		a.support[d.Name()] = s
		if !s.Usable {
			why = errors.Join(why, fmt.Errorf("%s: %s", d.Name(), s.Reason))
			continue
		}
		a.usable[d.Name()] = d
		// Emulation is for those who demand it: it is ten times slower than any other runtime.
		if a.first == "" && (s.Tier != tartarus.TierEmulated || len(a.cfg.Drivers) == 1) {
			a.first = d.Name()
		}
	}
	switch {
	case a.first != "":
		return nil
	case len(a.cfg.Drivers) == 1: // it was demanded: others may well be usable
		return tartarus.Errorf(tartarus.Unsupported, "the only runtime allowed is not usable on this host: %w", why)
	}
	return tartarus.Errorf(tartarus.Unsupported, "no runtime is usable on this host: %w", why)
}

// driver chooses the driver for a demand.
func (a *Agent) driver(demand string) (vmm.Driver, error) {
	if demand == "" || demand == "auto" {
		return a.usable[a.first], nil
	}
	if d, ok := a.usable[demand]; ok {
		return d, nil
	}
	if s, ok := a.support[demand]; ok {
		return nil, tartarus.Errorf(tartarus.Unsupported, "runtime %s is not usable on this node: %s", demand, s.Reason)
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "there is no runtime %q", demand)
}

// Node describes this node as it stands.
func (a *Agent) Node() hades.Node {
	n := hades.Node{
		Name: a.cfg.Name, Labels: a.cfg.Labels, Version: a.cfg.Version, CPUModel: hostCPU(), Most: a.cfg.MaxLive,
		Capacity: a.cfg.Capacity, Runtimes: map[string]hades.Runtime{},
	}
	for k, ready := range a.warm.Ready() {
		if ready > 0 {
			if n.Warm == nil {
				n.Warm = map[string]int{}
			}
			n.Warm[k.Build] += ready
		}
	}
	for name := range a.usable {
		n.Runtimes[name] = hades.Runtime{Tier: a.support[name].Tier, Version: a.support[name].Version}
	}
	if a.cfg.Catalog != nil {
		n.Templates = a.cfg.Catalog()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n.Cordoned, n.Allocated, n.Sandboxes = a.cordoned, a.allocated, len(a.held)
	return n
}

// heartbeats keeps the node registered. A control plane that is away changes nothing here.
func (a *Agent) heartbeats(ctx context.Context) error {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	heard := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		began := time.Now()
		beat, cancel := context.WithTimeout(ctx, reportTime)
		err := a.cfg.Control.Heartbeat(beat, a.Node(), heartbeatTTL)
		cancel()
		switch {
		case err == nil:
			if time.Since(heard) > heartbeatTTL {
				a.Refill() // the node counted as gone, and what it holds may have been counted as lost
			}
			heard = began
		case ctx.Err() == nil:
			a.log.Warn("heartbeat not delivered", "error", err)
		}
	}
}

// shutdown is the agent's end: starts under way finish or are undone, sandboxes of an ephemeral node stop, reports are flushed.
func (a *Agent) shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*cleanupTime)
	defer cancel()
	a.starts.Wait() // bounded: each start has its own deadline
	a.mu.Lock()
	a.going = true
	a.mu.Unlock()
	close(a.leaving)
	a.endings.Wait() // bounded: from the kill on by its time, before by that of a journal record
	if a.cfg.Ephemeral {
		g := errgroup.Group{}
		g.SetLimit(8)
		for _, h := range a.all() {
			g.Go(func() error {
				return a.end(ctx, h, tartarus.Stopped, tartarus.ReasonUser, "the stack that ran it ended")
			})
		}
		if err := g.Wait(); err != nil {
			a.log.Error("sandboxes left behind", "error", err)
		}
	}
	for _, h := range a.all() {
		h.release()
	}
	a.flush(ctx)
}

// all returns the sandboxes held now.
func (a *Agent) all() []*held {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*held, 0, len(a.held))
	for _, h := range a.held {
		out = append(out, h)
	}
	return out
}

// find returns a sandbox held here.
func (a *Agent) find(id string) (*held, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[id]; ok {
		return h, nil
	}
	return nil, tartarus.Errorf(tartarus.NotFound, "sandbox %s is not on this node", id)
}
