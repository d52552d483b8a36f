package hecatoncheir

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// held is one sandbox of this node, from the moment its start is leased until nothing of it is left.
type held struct {
	spec      tartarus.Spec // never changes
	gone      chan struct{} // closed when nothing of it is left on the host
	samples   samples
	conns     conns
	suspicion suspicion

	op sync.Mutex // one pause or resume at a time

	mu      sync.Mutex
	up      chan struct{} // closed when the start or resume under way is over, one way or the other
	saved   string        // folder of the snapshot that is the sandbox while it is paused
	base    *base         // what its machine was restored from, where a pause may write the changes to it only
	sb      tartarus.Sandbox
	lease   *acheron.Lease     // of its start
	arrived int64              // the token of the lease under which its start was acknowledged
	outcome tartarus.Phase     // what a sandbox that is stopping will have become
	cancel  context.CancelFunc // ends a start under way, later the watch over the machine
	machine vmm.Machine
	// machineID is the machine's name on the host where that is not the sandbox's id: it was there before the sandbox.
	machineID string
	slot      *network.Slot
	guest     *guestclient.Client
	tried     time.Time             // when it could not be put to sleep, last
	freed     int64                 // bytes of memory it held before it was put to sleep
	ending    *thanatos.Termination // the last one that was begun; may be over
	cleaning  sync.Mutex            // one cleanup at a time
}

// record is how a held sandbox is written in the journal.
type record struct {
	Sandbox tartarus.Sandbox `json:"sandbox"`
	Slot    *network.Record  `json:"slot,omitempty"`
	Machine *vmm.Record      `json:"machine,omitempty"`
	Saved   string           `json:"saved,omitempty"` // id of its snapshot while paused
	Base    string           `json:"base,omitempty"`  // id of the snapshot that its machine was restored from, while that is kept
	Freed   int64            `json:"freed,omitempty"` // bytes of memory it held before it was put to sleep
	// Claimed marks a sandbox that got a warm machine, written down before the machine had agreed.
	Claimed bool `json:"claimed,omitempty"`
}

func newHeld(sb tartarus.Sandbox) *held {
	return &held{spec: sb.Spec, sb: sb, up: make(chan struct{}), gone: make(chan struct{}), cancel: func() {}}
}

// sandbox returns a copy of how the sandbox stands.
func (h *held) sandbox() tartarus.Sandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sb
}

// started is closed when the start or resume under way is over.
func (h *held) started() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up
}

// change applies f to the sandbox under its lock and returns the result, or f's error with nothing changed.
func (h *held) change(f func(*tartarus.Sandbox) error) (tartarus.Sandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.sb
	if err := f(&next); err != nil {
		return h.sb, err
	}
	h.sb = next
	return next, nil
}

// journal writes the sandbox as it stands.
func (a *Agent) journal(ctx context.Context, h *held) error {
	return a.write(ctx, h, h.record())
}

// record is how the sandbox stands.
func (h *held) record() record {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := record{Sandbox: h.sb, Saved: h.saved, Freed: h.freed}
	if h.base != nil {
		r.Base = h.base.id
	}
	if h.slot != nil {
		slot := h.slot.Record()
		r.Slot = &slot
	}
	if h.machine != nil {
		m := h.machine.Record()
		r.Machine = &m
	}
	return r
}

func (a *Agent) write(ctx context.Context, h *held, r record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode journal record: %w", err)
	}
	return a.cfg.Journal.Put(ctx, h.spec.ID, body)
}

// admit makes a place for a new sandbox. A second delivery of the same start gets the first one's, and fresh is false.
func (a *Agent) admit(sb tartarus.Sandbox) (h *held, fresh bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[sb.ID]; ok {
		return h, false, nil
	}
	if a.cordoned {
		return nil, false, &tartarus.Error{Kind: tartarus.Unavailable, Message: "the node is being drained", RetryAfter: 5 * time.Second}
	}
	if lacks := a.taken().Lacks(sb.Resources); lacks != "" {
		a.filled = time.Now()
		return nil, false, &tartarus.Error{
			Kind: tartarus.Unavailable, Code: hades.CodeNoRoom, RetryAfter: 5 * time.Second,
			Message: fmt.Sprintf("node %s has no room for the sandbox: %s", a.cfg.Name, lacks),
		}
	}
	h = newHeld(sb)
	a.held[sb.ID] = h
	a.allocated, a.filled = plus(a.allocated, sb.Resources, 1), time.Time{}
	return h, true, nil
}

// taken is what the node may hand out and what its sandboxes hold of that. A paused one keeps its part, so that it can always come back.
// The lock is held.
func (a *Agent) taken() hades.Node {
	return hades.Node{Name: a.cfg.Name, Capacity: a.cfg.Capacity, Most: a.cfg.MaxLive, Sandboxes: len(a.held), Allocated: a.allocated}
}

// plus is r with n times more added.
func plus(r, more tartarus.Resources, n int) tartarus.Resources {
	r.VCPU += n * more.VCPU
	r.MemoryMB += int64(n) * more.MemoryMB
	r.DiskMB += int64(n) * more.DiskMB
	return r
}

// keep takes a sandbox among those of this node that was here before: it keeps its place whatever the node may hand out by now.
func (a *Agent) keep(h *held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.held[h.spec.ID]; !ok {
		a.allocated = plus(a.allocated, h.spec.Resources, 1)
	}
	a.held[h.spec.ID] = h
}

// forget gives up the place of a sandbox of which nothing is left.
func (a *Agent) forget(h *held) {
	a.mu.Lock()
	if a.held[h.spec.ID] == h {
		delete(a.held, h.spec.ID)
		a.allocated = plus(a.allocated, h.spec.Resources, -1)
		a.filled = time.Time{}
		close(h.gone)
	}
	a.mu.Unlock()
	select {
	case a.freed <- struct{}{}:
	default:
	}
	h.release()
}

// release closes what this process holds of a sandbox without touching the sandbox.
func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cancel()
	if h.guest != nil {
		h.guest.Close()
	}
}
