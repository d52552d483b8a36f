// Package network gives every sandbox its own piece of network: a slot with a namespace, one cable to the host and
// the egress rules of that cable. Nothing that a sandbox sends passes the host end of its cable unless a rule lets it:
// a slot without rules is closed, and filtering never depends on anything inside the sandbox's own namespace.
//
// Slots are made ahead and reused. Everything on the host is named after its slot, tart<realm>x<number>, where a realm
// is a block of addresses that one process claims for itself through a lock file, so that several processes share a host.
//
// The package is larger than most: slots and their rules belong together, because a slot that is there while its rules are not
// is the one thing that must not happen. What talks to sandboxes stands apart, in resolver and webgate.
package network

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network/resolver"
	"github.com/tartarus-sandbox/tartarus/internal/network/webgate"
	"golang.org/x/sync/errgroup"
)

// Kind is the sort of device a machine finds in its slot.
type Kind string

// The kinds.
const (
	Veth Kind = "veth" // one end of a veth pair: runtimes that open a packet socket on it
	TAP  Kind = "tap"  // a TAP device bridged to the veth: virtual machine monitors
)

// Config says where a pool lives and how much it holds ready.
type Config struct {
	// StateDir is the owner's durable folder. While it exists the pool keeps its realms across restarts.
	StateDir string
	// Ephemeral marks an owner whose sandboxes are not meant to outlive its process: once the process is gone,
	// any other pool may clear its realms away, whether or not StateDir is still there.
	Ephemeral bool
	// RunDir holds locks and namespace handles, and is shared by every pool of the host. It must not survive a reboot.
	RunDir string
	// Base is the range that slots take their addresses from, a /22 at a time. It has to be one that nobody routes.
	Base netip.Prefix
	// Slots and TAPs are how many slots of each kind Run keeps ready.
	Slots int
	TAPs  int
	// MTU of the cables; 0 takes that of the host's default route, at most 1500.
	MTU int
	// HostConfig names the name servers that sandboxes' questions are passed on to.
	HostConfig string
	// Fill puts secrets and tokens of a sandbox in the place of a header value's placeholders. Nil has none.
	Fill func(ctx context.Context, o Owner, value string) (string, error) `json:"-"`
	// Roots are what servers' certificates have to lead to where headers are put into requests; nil is the host's.
	Roots *x509.CertPool `json:"-"`
	Log   *slog.Logger
}

// Default is a Config that lacks only StateDir.
func Default() Config {
	return Config{
		RunDir:     "/run/tartarus",
		Base:       netip.MustParsePrefix("198.18.0.0/15"), // RFC 2544: benchmarking between network devices, never routed
		Slots:      8,
		HostConfig: "/etc/resolv.conf",
	}
}

// maxReady bounds what one pool keeps ready of a kind: half of its largest possible number of slots.
const maxReady = maxRealms * slotsPerRealm / 2

func (c *Config) validate() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	def := Default()
	if c.RunDir == "" {
		c.RunDir = def.RunDir
	}
	if !c.Base.IsValid() {
		c.Base = def.Base
	}
	if c.HostConfig == "" {
		c.HostConfig = def.HostConfig
	}
	c.Base = c.Base.Masked()
	switch {
	case !filepath.IsAbs(c.StateDir):
		return tartarus.Errorf(tartarus.Invalid, "network: state folder %q is not an absolute path", c.StateDir)
	case !filepath.IsAbs(c.RunDir):
		return tartarus.Errorf(tartarus.Invalid, "network: run folder %q is not an absolute path", c.RunDir)
	case !c.Base.Addr().Is4() || c.Base.Bits() > realmBits:
		return tartarus.Errorf(tartarus.Invalid, "network: base %s is not an IPv4 range of /%d or more", c.Base, realmBits)
	case c.Slots < 0 || c.TAPs < 0 || c.Slots > maxReady || c.TAPs > maxReady:
		return tartarus.Errorf(tartarus.Invalid, "network: %d slots and %d TAPs to keep ready, 0 to %d are possible", c.Slots, c.TAPs, maxReady)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65521):
		return tartarus.Errorf(tartarus.Invalid, "network: MTU %d is outside 576 to 65521", c.MTU)
	}
	return nil
}

// Pool makes, lends and takes back slots. All methods may be called concurrently.
type Pool struct {
	cfg  Config
	log  *slog.Logger
	host *host
	fw   *firewall
	mtu  int

	resolver  *resolver.Server
	gate      *webgate.Gate
	authority *webgate.Authority
	wake      chan struct{} // tells Run that slots went out or came back

	mu      sync.Mutex
	realms  []*realm
	slots   map[string]*Slot  // every slot of this process, whatever its state, by name
	foreign map[string]*trace // found in our realms at Open, and nobody has adopted it yet
	ready   map[Kind][]*Slot  // oldest first: an address rests as long as it can before it is used again
	dirty   []*Slot           // given back, not yet reset
	closed  bool
}

// Open claims a realm for the pool and puts the host's base rules in place. It starts nothing and makes no slot.
// Slots that an earlier process of this StateDir left behind stay untouched until Adopt or Leftovers.
// Without the rights to change the host's network it is tartarus.Unsupported; a second pool on one StateDir is tartarus.Conflict.
func Open(ctx context.Context, c Config) (*Pool, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	h, err := openHost(c.RunDir)
	if err != nil {
		return nil, err
	}
	p := &Pool{
		cfg: c, log: c.Log, host: h, mtu: c.MTU,
		fw:      newFirewall(c.Log),
		wake:    make(chan struct{}, 1),
		slots:   map[string]*Slot{},
		foreign: map[string]*trace{},
		ready:   map[Kind][]*Slot{},
	}
	if p.mtu == 0 {
		p.mtu = h.uplinkMTU()
	}
	err = p.openServices(ctx)
	if err == nil {
		err = p.open(ctx)
	}
	if err != nil {
		p.mu.Lock()
		p.dropRealms()
		p.mu.Unlock()
		p.closeAll()
		return nil, err
	}
	return p, nil
}

func (p *Pool) open(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("create state folder: %w", err)
	}
	unlock, err := lockHost(ctx, p.cfg.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.host.mountNamespaces(); err != nil {
		return err
	}
	if err := p.fw.ensure(); err != nil {
		return err
	}
	if err := p.enableForwarding(); err != nil {
		return err
	}
	if err := p.reclaimRealms(); err != nil {
		return err
	}
	if len(p.realms) == 0 {
		if err := p.claimRealm(); err != nil {
			return err
		}
	}
	found, err := p.survey()
	if err != nil {
		return err
	}
	for name, t := range found {
		if p.ours(name) {
			p.foreign[name] = t
		}
	}
	return nil
}

// refillEvery is how often Run looks at the pool and at the host's rules when nothing wakes it.
const refillEvery = 30 * time.Second

// Run resets slots that came back, keeps the wanted number ready, puts the rules back when somebody flushes them, and serves sandboxes'
// questions for names and what domain rules let through. It returns nil when ctx ends. Without it, slots are made when they are asked for,
// and no name is answered.
func (p *Pool) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.resolver.Run(ctx) })
	g.Go(func() error { return p.gate.Run(ctx) })
	g.Go(func() error { return p.keep(ctx) })
	return g.Wait()
}

// keep looks after slots and rules.
func (p *Pool) keep(ctx context.Context) error {
	watch, err := watchRules()
	if err != nil {
		return err
	}
	defer watch.close()
	events := watch.start(ctx)
	flushed := events
	tick := time.NewTicker(refillEvery)
	defer tick.Stop()
	retry := time.NewTimer(0) // a flush from before the watch began shows now
	defer retry.Stop()
	heal := func() {
		if err := p.heal(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("check and restore egress rules", "error", err)
			retry.Reset(time.Second)
		}
	}
	p.refill(ctx)
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			watch.close()
			for range events { // ends when the watcher has
			}
			return nil
		case _, ok := <-flushed:
			if ctx.Err() != nil {
				continue
			}
			if !ok {
				p.log.Warn("nothing watches the egress rules any more; they are checked at every tick")
				flushed = nil
			}
			heal()
		case <-retry.C:
			heal()
		case <-tick.C:
			heal()
			p.refill(ctx)
		case <-p.wake:
			switch {
			case p.low():
				p.refill(ctx)
			case settled == nil:
				settled = time.After(settleTime)
			}
		case <-settled:
			settled = nil
			p.refill(ctx)
		}
	}
}

// heal puts the table back where somebody flushed the host's rules, and with it everything the pool's slots need.
func (p *Pool) heal(ctx context.Context) error {
	unlock, err := lockHost(ctx, p.cfg.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	p.mu.Lock()
	realms := make([]netip.Prefix, 0, len(p.realms))
	for _, r := range p.realms {
		realms = append(realms, r.prefix)
	}
	p.mu.Unlock()
	healed, err := p.fw.heal(realms)
	if healed {
		p.log.Warn("egress rules had been changed by somebody else and are restored")
	}
	return err
}

// settleTime is how long the pool lets others go first while it has slots left. Resetting one holds the kernel's lock on all rules for 13 ms, which
// whoever has just taken or given back a slot most likely needs for the next.
const settleTime = 200 * time.Millisecond

// low reports whether less than half of the slots that are kept ready are.
func (p *Pool) low() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return 2*len(p.ready[Veth]) < p.want(Veth) || 2*len(p.ready[TAP]) < p.want(TAP)
}

func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Close removes every slot that nobody holds and lets go of the realms. Slots still held keep their
// namespace, cable and rules: the sandboxes in them go on, for a later pool on the same StateDir to adopt.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	var idle []*Slot
	for _, s := range p.slots {
		if s.state == ready || s.state == dirty {
			idle = append(idle, s)
		}
	}
	clear(p.ready)
	p.dirty = nil
	p.mu.Unlock()
	err := p.destroy(idle)

	unlock, lockErr := lockHost(ctx, p.cfg.RunDir)
	if lockErr != nil {
		err = errors.Join(err, lockErr)
	} else {
		defer unlock()
		err = errors.Join(err, p.leaveRealms())
	}
	p.mu.Lock()
	p.dropRealms()
	p.mu.Unlock()
	return errors.Join(err, p.closeAll())
}

// closeAll lets go of the process's own resources.
func (p *Pool) closeAll() error {
	p.fw.close()
	p.host.close()
	var errs error
	if p.resolver != nil {
		errs = p.resolver.Close()
	}
	if p.gate != nil {
		errs = errors.Join(errs, p.gate.Close())
	}
	return errs
}

// enableForwarding lets the host route for sandboxes. It stays on when the pool closes: by then others may rely on it.
func (p *Pool) enableForwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	was, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read ip_forward: %w", err)
	}
	if len(was) > 0 && was[0] != '0' {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("switch on ip_forward: %w", err)
	}
	p.log.Info("switched on net.ipv4.ip_forward, which was off; it stays on")
	return nil
}
