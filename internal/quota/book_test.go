package quota

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

const grace = 2 * time.Minute

func newBook() *book { return &book{Holds: map[string]hold{}, Creates: map[int64]int64{}} }

func claim(act Act, id string, q tenant.Quota) Claim {
	return Claim{Act: act, Tenant: "acme", ID: id, Quota: q, Resources: tartarus.Resources{VCPU: 2, MemoryMB: 512, DiskMB: 1024}}
}

// grant enters a claim that must fit.
func (b *book) grant(t *testing.T, c Claim, now time.Time) {
	t.Helper()
	if why := b.fits(c, now); why != nil {
		t.Fatalf("%s of %s does not fit: %s", c.Act, c.ID, why.Message)
	}
	b.enter(c, now, grace)
}

func sandbox(id string, phase tartarus.Phase, revision int64) tartarus.Sandbox {
	sb := tartarus.Sandbox{Spec: tartarus.Spec{ID: id, Resources: tartarus.Resources{VCPU: 2, MemoryMB: 512, DiskMB: 1024}}, Phase: phase, Revision: revision}
	if phase == tartarus.Quarantined {
		sb.Quarantine = &tartarus.Quarantine{}
	}
	return sb
}

// Each part of a quota bounds what it is about, up to the last that fits.
func TestParts(t *testing.T) {
	for rule, tt := range map[string]struct {
		quota tenant.Quota
		act   Act
	}{
		"sandboxes": {tenant.Quota{Sandboxes: 2}, Start}, "vcpu": {tenant.Quota{VCPU: 5}, Start}, "memoryMB": {tenant.Quota{MemoryMB: 1024}, Start},
		"diskMB": {tenant.Quota{DiskMB: 3000}, Start}, "createsPerMinute": {tenant.Quota{CreatesPerMinute: 2}, Start}, "queue": {tenant.Quota{Queue: 2}, Start},
		"snapshotMB": {tenant.Quota{SnapshotMB: 2 * (512 + 1024)}, Keep},
	} {
		b := newBook()
		b.grant(t, claim(tt.act, "a", tt.quota), noon)
		b.grant(t, claim(tt.act, "b", tt.quota), noon.Add(time.Second))
		why := b.fits(claim(tt.act, "c", tt.quota), noon.Add(2*time.Second))
		if why == nil || why.Rule != rule || why.Message == "" {
			t.Errorf("%s: a third is refused with %+v", rule, why)
		}
		if b.fits(claim(tt.act, "c", tenant.Quota{}), noon) != nil {
			t.Errorf("%s: no quota bounds something", rule)
		}
	}
}

// The second claim of one sandbox, from a create that is tried again, holds once.
func TestClaimedTwice(t *testing.T) {
	b, q := newBook(), tenant.Quota{Sandboxes: 1, VCPU: 2}
	b.grant(t, claim(Start, "a", q), noon)
	b.grant(t, claim(Start, "a", q), noon)
	if u := b.usage(noon); u.Sandboxes != 1 || u.VCPU != 2 || u.DiskMB != 1024 {
		t.Errorf("usage %+v", u)
	}
}

// Creates count for a minute, to the second, and the refusal says when the next one may come.
func TestRate(t *testing.T) {
	b, q := newBook(), tenant.Quota{CreatesPerMinute: 2}
	b.grant(t, claim(Start, "a", q), noon)
	b.grant(t, claim(Start, "b", q), noon.Add(30*time.Second))
	at := noon.Add(45 * time.Second)
	why := b.fits(claim(Start, "c", q), at)
	if why == nil || why.After <= 0 || why.After > time.Minute {
		t.Fatalf("got %+v", why)
	}
	if b.fits(claim(Start, "c", q), at.Add(why.After-2*time.Second)) == nil {
		t.Error("it may come earlier than it was told")
	}
	b.grant(t, claim(Start, "c", q), at.Add(why.After))
	if len(b.Creates) > 2 {
		t.Errorf("seconds that are long ago are kept: %v", b.Creates)
	}
	for _, act := range []Act{Wake, Sleep, Keep} { // is no create
		if why := b.fits(claim(act, "d", q), at); why != nil {
			t.Errorf("%s: %+v", act, why)
		}
	}
}

// What the registry says of a sandbox is what it holds, phase by phase.
func TestPhases(t *testing.T) {
	type holds struct{ sandboxes, disk, snapshot, queue int64 }
	for phase, want := range map[tartarus.Phase]holds{
		tartarus.Queued: {1, 1024, 0, 1}, tartarus.Starting: {1, 1024, 0, 0}, tartarus.Running: {1, 1024, 0, 0}, tartarus.Snapshotting: {1, 1024, 0, 0},
		tartarus.Pausing: {1, 1024, 1536, 0}, tartarus.Paused: {0, 1024, 1536, 0}, tartarus.Quarantined: {1, 1024, 0, 0}, tartarus.Stopping: {1, 1024, 0, 0},
		tartarus.Stopped: {}, tartarus.Failed: {}, tartarus.Rejected: {},
	} {
		b := newBook()
		b.agree(map[string]tartarus.Sandbox{"a": sandbox("a", phase, 1)}, noon)
		if u := b.usage(noon); (holds{u.Sandboxes, u.DiskMB, u.SnapshotMB, u.Queue}) != want || u.VCPU != 2*want.sandboxes || u.MemoryMB != 512*want.sandboxes {
			t.Errorf("%s: %+v, want %+v", phase, u, want)
		}
	}
	still := sandbox("a", tartarus.Quarantined, 1)
	still.Quarantine.Paused = true
	disk := sandbox("b", tartarus.Paused, 1)
	disk.DiskOnly = true
	b := newBook()
	b.agree(map[string]tartarus.Sandbox{"a": still, "b": disk}, noon)
	if u := b.usage(noon); u.Sandboxes != 0 || u.SnapshotMB != 1536+1024 {
		t.Errorf("one in quarantine that sleeps, and one paused without its memory: %+v", u)
	}
}

// A claim counts until the registry knows more, or its time is over.
func TestAgreement(t *testing.T) {
	q := tenant.Quota{Sandboxes: 5}
	wake := claim(Wake, "a", q)
	wake.Revision = 7
	for name, tt := range map[string]struct {
		claim Claim
		found []tartarus.Sandbox
		after time.Duration
		want  int64
	}{
		"on its way":                        {claim(Start, "a", q), nil, time.Minute, 1},
		"for too long":                      {claim(Start, "a", q), nil, grace, 0},
		"there":                             {claim(Start, "a", q), []tartarus.Sandbox{sandbox("a", tartarus.Running, 1)}, grace, 1},
		"ended at once":                     {claim(Start, "a", q), []tartarus.Sandbox{sandbox("a", tartarus.Failed, 1)}, time.Second, 0},
		"waking, still paused":              {wake, []tartarus.Sandbox{sandbox("a", tartarus.Paused, 7)}, time.Second, 1},
		"paused again since":                {wake, []tartarus.Sandbox{sandbox("a", tartarus.Paused, 9)}, time.Second, 0},
		"woken":                             {wake, []tartarus.Sandbox{sandbox("a", tartarus.Running, 8)}, time.Second, 1},
		"never woken":                       {wake, []tartarus.Sandbox{sandbox("a", tartarus.Paused, 7)}, grace, 0},
		"gone while it was to be woken":     {wake, nil, time.Second, 0},
		"another that nobody claimed, also": {claim(Start, "a", q), []tartarus.Sandbox{sandbox("b", tartarus.Running, 1)}, time.Second, 2},
	} {
		b := newBook()
		b.grant(t, tt.claim, noon)
		found := map[string]tartarus.Sandbox{}
		for _, sb := range tt.found {
			found[sb.ID] = sb
		}
		now := noon.Add(tt.after)
		b.agree(found, now)
		if u := b.usage(now); u.Sandboxes != tt.want {
			t.Errorf("%s: %+v", name, u)
		}
		before := len(b.Holds)
		if b.agree(found, now); len(b.Holds) != before {
			t.Errorf("%s: looked at again it is another", name)
		}
	}
}

// A doubt leaves a claim to the registry, once.
func TestDoubt(t *testing.T) {
	b, q := newBook(), tenant.Quota{Sandboxes: 1}
	if b.doubt("a") {
		t.Error("what nobody claimed is in doubt")
	}
	b.grant(t, claim(Start, "a", q), noon)
	if !b.doubt("a") || b.doubt("a") || !b.due(noon) {
		t.Errorf("after a doubt: %+v", b)
	}
	b.agree(nil, noon)
	if u := b.usage(noon); u.Sandboxes != 0 || b.due(noon) || !b.due(noon.Add(checkEvery)) {
		t.Errorf("usage %+v", u)
	}
}

// Putting to sleep needs room for a snapshot and frees the rest; the disk goes on counting.
func TestSleepAndWake(t *testing.T) {
	b, q := newBook(), tenant.Quota{Sandboxes: 1, SnapshotMB: 1536}
	b.grant(t, claim(Start, "a", q), noon)
	b.grant(t, claim(Sleep, "a", q), noon)
	b.grant(t, claim(Sleep, "a", q), noon) // asked for twice
	if why := b.fits(claim(Sleep, "b", q), noon); why == nil || why.Rule != "snapshotMB" {
		t.Errorf("a second snapshot: %+v", why)
	}
	kept := claim(Keep, "c", q)
	kept.KeptMB = 1
	if why := b.fits(kept, noon); why == nil || why.Rule != "snapshotMB" {
		t.Errorf("a snapshot that stays: %+v", why)
	}
	b.agree(map[string]tartarus.Sandbox{"a": sandbox("a", tartarus.Paused, 3)}, noon.Add(grace))
	b.grant(t, claim(Start, "b", q), noon.Add(grace))
	if why := b.fits(claim(Wake, "a", q), noon.Add(grace)); why == nil || why.Rule != "sandboxes" {
		t.Errorf("it wakes beside another one: %+v", why)
	}
}
