package olympus_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// What a process that was killed had queued: its clients are gone, and only one that sent a key will ask again.
func TestDropUnawaited(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	queued := func(kind, key, node string, phase tartarus.Phase) string {
		id := tartarus.NewID()
		sb := tartarus.Sandbox{Spec: tartarus.Spec{ID: id, Tenant: tenant.Default, TemplateID: "t"}, Node: node, Phase: phase, CreatedAt: time.Now()}
		if _, err := r.DB.Registry().PutSandbox(ctx, sb); err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(sb.Spec)
		if err != nil {
			t.Fatal(err)
		}
		j := acheron.Job{ID: id, Tenant: sb.Tenant, Node: node, Kind: kind, Payload: payload, MaxAttempts: 3, Deadline: time.Now().Add(time.Minute)}
		if key != "" {
			j.Key, j.Digest = key, "d"
		}
		if _, err := r.DB.Queue().Enqueue(ctx, j); err != nil {
			t.Fatal(err)
		}
		return id
	}
	waiting := queued(acheron.Create, "", "away", tartarus.Queued)
	leased := queued(acheron.Create, "", "dead", tartarus.Queued)
	if l, err := r.DB.Queue().Lease(ctx, "dead", 1, time.Minute); err != nil || len(l) != 1 {
		t.Fatalf("%v, %v", l, err)
	}
	keyed := queued(acheron.Create, "again", "away", tartarus.Queued)
	resume := queued(acheron.Resume, "", "away", tartarus.Paused)
	for range 2 { // the second finds nothing to do
		if err := r.Server.DropUnawaited(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []struct {
		name, id string
		state    acheron.State
		phase    tartarus.Phase
	}{
		{"waiting", waiting, acheron.Cancelled, tartarus.Failed}, {"leased by who died", leased, acheron.Cancelled, tartarus.Failed},
		{"with a key", keyed, acheron.Waiting, tartarus.Queued}, {"a resume", resume, acheron.Cancelled, tartarus.Paused},
	} {
		j, err := r.DB.Queue().Job(ctx, want.id)
		if err != nil || j.State != want.state {
			t.Errorf("%s: the job is %s, %v", want.name, j.State, err)
		}
		sb, err := r.DB.Registry().Sandbox(ctx, hades.AnyTenant, want.id)
		if err != nil || sb.Phase != want.phase {
			t.Errorf("%s: the sandbox is %s, %v", want.name, sb.Phase, err)
		}
	}
}
