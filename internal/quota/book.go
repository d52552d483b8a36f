package quota

import (
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// book is a tenant's record.
type book struct {
	Holds   map[string]hold `json:"holds"`
	Creates map[int64]int64 `json:"creates"` // claims for a start, by the second of Unix time; those of the last minute
	Checked int64           `json:"checked"` // when it was last held against the registry, in Unix milliseconds
	Young   int64           `json:"young"`   // until when it is held against it each time
}

// hold is what one sandbox has.
type hold struct {
	VCPU     int64 `json:"vcpu"`
	MemoryMB int64 `json:"memoryMB"`
	DiskMB   int64 `json:"diskMB"`
	Awake    bool  `json:"awake,omitempty"`    // it has processors and memory
	Asleep   bool  `json:"asleep,omitempty"`   // it has a snapshot; both while it is paused or comes back
	Snapshot bool  `json:"snapshot,omitempty"` // it is no sandbox but a snapshot on its way
	Queued   bool  `json:"queued,omitempty"`   // it waits for a node
	Revision int64 `json:"revision,omitempty"` // a later one in the registry says more than this
	Until    int64 `json:"until,omitempty"`    // when the registry must have it, in Unix milliseconds
}

const minute = 60

// due reports whether the record must be held against the registry before anything else.
func (b *book) due(now time.Time) bool {
	at := now.UnixMilli()
	return at < b.Young || at-b.Checked >= checkEvery.Milliseconds()
}

func (b *book) usage(now time.Time) (u Usage) {
	for _, h := range b.Holds {
		if h.Awake {
			u.Sandboxes++
			u.VCPU += h.VCPU
			u.MemoryMB += h.MemoryMB
		}
		if !h.Snapshot {
			u.DiskMB += h.DiskMB
		}
		if h.Asleep {
			u.SnapshotMB += h.MemoryMB + h.DiskMB
		}
		if h.Queued {
			u.Queue++
		}
	}
	for second, n := range b.Creates {
		// A whole second counts until all of it is a minute ago.
		if now.Unix()-second <= minute {
			u.CreatesPerMinute += n
		}
	}
	return u
}

// fits says why a claim does not, nil when it does.
func (b *book) fits(c Claim, now time.Time) *Refusal {
	u, q, r := b.usage(now), c.Quota, c.Resources
	old := b.Holds[c.ID]
	snap := r.MemoryMB + r.DiskMB
	switch c.Act {
	case Sleep:
		if old.Asleep {
			u.SnapshotMB -= old.MemoryMB + old.DiskMB
		}
		return over("snapshotMB", "MiB of snapshots", u.SnapshotMB, snap, q.SnapshotMB, 0)
	case Keep:
		return over("snapshotMB", "MiB of snapshots", u.SnapshotMB+c.KeptMB, snap, q.SnapshotMB, 0)
	}
	if old.Awake {
		u.Sandboxes, u.VCPU, u.MemoryMB = u.Sandboxes-1, u.VCPU-old.VCPU, u.MemoryMB-old.MemoryMB
	}
	if !old.Snapshot {
		u.DiskMB -= old.DiskMB
	}
	checks := []*Refusal{
		over("sandboxes", "sandboxes", u.Sandboxes, 1, q.Sandboxes, 0),
		over("vcpu", "processors", u.VCPU, int64(r.VCPU), q.VCPU, 0),
		over("memoryMB", "MiB of memory", u.MemoryMB, r.MemoryMB, q.MemoryMB, 0),
		over("diskMB", "MiB of disk", u.DiskMB, r.DiskMB, q.DiskMB, 0),
	}
	if c.Act == Start {
		checks = append(checks,
			over("createsPerMinute", "creates within a minute", u.CreatesPerMinute, 1, q.CreatesPerMinute, b.nextCreate(now)),
			over("queue", "creates in the queue", u.Queue, 1, q.Queue, time.Second))
	}
	for _, why := range checks {
		if why != nil {
			return why
		}
	}
	return nil
}

// nextCreate is when the oldest creates are a minute ago.
func (b *book) nextCreate(now time.Time) time.Duration {
	oldest := now.Unix()
	for second := range b.Creates {
		if now.Unix()-second <= minute {
			oldest = min(oldest, second)
		}
	}
	return time.Unix(oldest+minute+1, 0).Sub(now)
}

func over(rule, what string, have, more, most int64, after time.Duration) *Refusal {
	if most == 0 || have+more <= most {
		return nil
	}
	return &Refusal{Rule: rule, After: after, Message: fmt.Sprintf("the tenant has %d of at most %d %s, and %d more are asked for", have, most, what, more)}
}

// enter writes a granted claim down.
func (b *book) enter(c Claim, now time.Time, grace time.Duration) {
	h := hold{
		VCPU: int64(c.Resources.VCPU), MemoryMB: c.Resources.MemoryMB, DiskMB: c.Resources.DiskMB,
		Awake: true, Revision: c.Revision, Until: now.Add(grace).UnixMilli(),
	}
	switch c.Act {
	case Start:
		h.Queued = true
		b.Creates[now.Unix()]++
		for second := range b.Creates {
			if now.Unix()-second > minute {
				delete(b.Creates, second)
			}
		}
	case Wake, Sleep:
		h.Asleep = true
	case Keep:
		h.Awake, h.Asleep, h.Snapshot = false, true, true
		b.Holds["snapshot of "+c.ID+" at "+fmt.Sprint(now.UnixNano())] = h
		return
	}
	b.Holds[c.ID] = h
}

// doubt leaves a hold to the registry.
func (b *book) doubt(id string) bool {
	h, ok := b.Holds[id]
	if !ok || h.Until == 0 {
		return false
	}
	h.Until = 0
	b.Holds[id] = h
	b.Checked = 0
	return true
}

// agree makes the record say what the registry says, but for claims that it cannot know of yet.
func (b *book) agree(found map[string]tartarus.Sandbox, now time.Time) {
	next := map[string]hold{}
	for id, h := range b.Holds {
		sb, there := found[id]
		pending := now.UnixMilli() < h.Until
		switch {
		case there && sb.Phase.Ended():
		case h.Snapshot && pending, !there && pending && h.Revision == 0, there && pending && h.Revision > 0 && sb.Revision <= h.Revision:
			next[id] = h
		}
	}
	for id, sb := range found {
		if _, ok := next[id]; ok || sb.Phase.Ended() {
			continue
		}
		h := hold{
			VCPU: int64(sb.Resources.VCPU), MemoryMB: sb.Resources.MemoryMB, DiskMB: sb.Resources.DiskMB,
			Awake: !sb.AtRest(), Asleep: sb.AtRest() || sb.Phase == tartarus.Pausing, Queued: sb.Phase == tartarus.Queued,
		}
		if sb.DiskOnly && h.Asleep && !h.Awake {
			h.MemoryMB = 0
		}
		next[id] = h
	}
	b.Holds, b.Checked = next, now.UnixMilli()
}
