package hecatoncheir

import (
	"path/filepath"
	"strconv"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
)

// TestMicroPausesOfWhatWasResumed holds that a pause after a resume writes changes only, that a resume has all of them, and that a chain does not get longer than its bound; across a
// restart of the agent.
func TestMicroPausesOfWhatWasResumed(t *testing.T) {
	r := newMicroRig(t, nil)
	id := r.create()
	r.expectSaid(id, payload.Fill, "ok")
	for cycle := 1; cycle <= mostLayers+2; cycle++ {
		want := "cycle " + strconv.Itoa(cycle)
		r.expectSaid(id, payload.Keep('k', want), "ok")
		if cycle == 3 {
			r.again() // the machine is adopted, and so is what it came from
		}
		r.pause(id)
		saved, chain := r.saved(id)
		if layers := (cycle-1)%mostLayers + 1; len(chain) != layers {
			t.Fatalf("cycle %d: %d layers, want %d", cycle, len(chain), layers)
		}
		if r.snapshotsHere() != len(chain) {
			t.Errorf("cycle %d: %d snapshots on disk, of which %d are needed", cycle, r.snapshotsHere(), len(chain))
		}
		if n := r.taken(r.memory(saved)); len(chain) > 1 && n > 4<<20 {
			t.Errorf("cycle %d: changes of a few pages take %d bytes", cycle, n)
		}
		if cycle == 4 {
			r.again()
		}
		r.resume(id)
		r.expectSaid(id, payload.Give('k'), want)
		r.expectSaid(id, payload.Verify, "ok")
	}
	// A snapshot that somebody asked for is whole, and so is the pause behind it: what changed is known since that one.
	snap, err := r.agent.Snapshot(t.Context(), id, tartarus.SnapshotHow{})
	if err != nil {
		t.Fatal(err)
	}
	if n := r.agent.snapshots.Layers(snap.ID); n != 1 {
		t.Errorf("a snapshot that was asked for has %d layers", n)
	}
	r.pause(id)
	if _, chain := r.saved(id); len(chain) != 1 {
		t.Errorf("the pause behind it has %d layers", len(chain))
	}
	r.resume(id)
	r.expectSaid(id, payload.Verify, "ok")
	if err := r.agent.RemoveSnapshot(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.Stop(t.Context(), id, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	if n := r.snapshotsHere(); n != 0 {
		t.Errorf("%d snapshots are left of a sandbox that has ended", n)
	}
}

// TestMicroChainIsMadeWhole holds that what is asleep for long gets one layer, and that the next pause builds on that.
func TestMicroChainIsMadeWhole(t *testing.T) {
	r := newMicroRig(t, nil)
	id := r.create()
	r.expectSaid(id, payload.Fill, "ok")
	for _, text := range []string{"one", "two", "three"} {
		r.expectSaid(id, payload.Keep('k', text), "ok")
		r.pause(id)
		if text != "three" {
			r.resume(id)
		}
	}
	saved, chain := r.saved(id)
	if len(chain) != 3 {
		t.Fatalf("%d layers", len(chain))
	}
	if err := r.agent.snapshots.Flatten(t.Context(), saved); err != nil {
		t.Fatal(err)
	}
	if _, chain := r.saved(id); len(chain) != 1 || chain[0] != saved || r.snapshotsHere() != 1 {
		t.Errorf("made whole it has layers %v, and %d snapshots are on disk", chain, r.snapshotsHere())
	}
	r.again()
	r.resume(id)
	r.expectSaid(id, payload.Give('k'), "three")
	r.expectSaid(id, payload.Verify, "ok")
	r.expectSaid(id, payload.Keep('k', "four"), "ok")
	r.pause(id)
	if _, chain := r.saved(id); len(chain) != 2 || chain[0] != saved {
		t.Errorf("the next pause has layers %v", chain)
	}
	r.resume(id)
	r.expectSaid(id, payload.Give('k'), "four")
}

// TestMicroDamagedChains flips a bit in each layer in turn: the sandbox does not come back, the layer is named, and it is whole again with the bit.
func TestMicroDamagedChains(t *testing.T) {
	r := newMicroRig(t, nil)
	id := r.create()
	r.expectSaid(id, payload.Fill, "ok")
	for _, text := range []string{"one", "two", "three"} {
		r.expectSaid(id, payload.Keep('k', text), "ok")
		r.pause(id)
		if text != "three" {
			r.resume(id)
		}
	}
	_, chain := r.saved(id)
	if len(chain) != 3 {
		t.Fatalf("%d layers", len(chain))
	}
	for i, layer := range chain {
		r.flip(r.memory(layer))
		r.refuses("a bit of layer "+strconv.Itoa(i+1), id, tartarus.Corrupt, "layer "+strconv.Itoa(i+1)+" of 3", "snapshot "+layer, "memory")
		if err := r.agent.snapshots.Flatten(t.Context(), chain[2]); !tartarus.Is(err, tartarus.Corrupt) {
			t.Errorf("layer %d is merged for good: %v", i+1, err)
		}
		r.flip(r.memory(layer))
	}
	r.resume(id)
	r.expectSaid(id, payload.Give('k'), "three")
	r.expectSaid(id, payload.Verify, "ok")
}

// TestMicroChainThatDoesNotFit has agents with other processors, templates and monitors refuse what is asleep, each with what does not fit.
func TestMicroChainThatDoesNotFit(t *testing.T) {
	r := newMicroRig(t, nil)
	id := r.create()
	r.expectSaid(id, payload.Keep('k', "one"), "ok")
	r.pause(id)
	whole, _ := r.saved(id)
	files := filepath.Dir(r.memory(whole))
	man, err := manifest.Read(files)
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		change func(m *manifest.Manifest)
		says   string
	}{
		"version":   {func(m *manifest.Manifest) { m.Version = "1" }, "version 1, "},
		"processor": {func(m *manifest.Manifest) { m.Needs["processor"] = "AMD" }, "AMD"},
	} {
		r.rewrite(files, tc.change)
		r.refuses("another "+what, id, tartarus.Unsupported, tc.says)
		if err := man.Write(files); err != nil {
			t.Fatal(err)
		}
	}
	r.resume(id)
	r.expectSaid(id, payload.Keep('k', "two"), "ok")
	r.pause(id)
	if _, chain := r.saved(id); len(chain) != 2 {
		t.Fatalf("layers %v", chain)
	}
	r.micro.CPUTemplate = "T2"
	r.again()
	r.refuses("another processor template", id, tartarus.Unsupported, "processor template")
	r.micro.CPUTemplate = ""
	r.again()
	r.image("two")
	r.refuses("another image", id, tartarus.Invalid, "root file system")
	r.image("one")
	r.resume(id)
	r.expectSaid(id, payload.Give('k'), "two")
}

// TestMicroPausesWithoutTracking holds that a driver which does not track changes has whole pauses only, and that chains of one that did still come back.
func TestMicroPausesWithoutTracking(t *testing.T) {
	r := newMicroRig(t, nil)
	id := r.create()
	r.pause(id)
	r.resume(id)
	r.expectSaid(id, payload.Keep('k', "kept"), "ok")
	r.pause(id)
	if _, chain := r.saved(id); len(chain) != 2 {
		t.Fatalf("layers %v", chain)
	}
	r.micro.TrackDirty = false
	r.again()
	for range 2 {
		r.resume(id)
		r.expectSaid(id, payload.Give('k'), "kept")
		r.pause(id)
		if _, chain := r.saved(id); len(chain) != 1 || r.snapshotsHere() != 1 {
			t.Errorf("layers %v, %d snapshots on disk", chain, r.snapshotsHere())
		}
	}
}

// TestMicroMonitorIsMeasured holds that what a real monitor counts reaches the node's meter.
func TestMicroMonitorIsMeasured(t *testing.T) {
	meter := &devices{}
	r := newMicroRig(t, func(_ *microRig, c *Config) { c.Meter = meter })
	id := r.create()
	r.ask(id, "c")
	r.agent.sample(t.Context(), r.mustFind(id), nil)
	meter.mu.Lock()
	defer meter.mu.Unlock()
	if meter.sum.SerialWritten < 2 {
		t.Errorf("a guest that spoke is counted with %+v", meter.sum)
	}
}
