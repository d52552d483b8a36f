package hecatoncheir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// TestSnapshotAndCreateFromIt holds that a snapshot leaves its source running, outlives it and the agent, and that sandboxes come from it.
func TestSnapshotAndCreateFromIt(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	snap, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{Names: []string{"a:b"}})
	if err != nil || snap.SandboxID != sb.ID || snap.Tenant != sb.Tenant || snap.Runtime != "fake" || snap.TemplateID != "tmpl" {
		t.Fatalf("snapshot: %+v, %v", snap, err)
	}
	r.expect(sb.ID, tartarus.Running, "")
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	list, err := r.agent.Snapshots(t.Context(), tartarus.SnapshotQuery{Tenant: sb.Tenant, Name: "a"})
	if err != nil || len(list) != 1 || list[0].ID != snap.ID || list[0].Node == "" {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if others, err := r.agent.Snapshots(t.Context(), tartarus.SnapshotQuery{Tenant: "another"}); err != nil || len(others) != 0 {
		t.Errorf("another tenant sees %+v, %v", others, err)
	}
	clone := r.create(func(s *tartarus.Spec) { s.SnapshotID = snap.ID })
	if err := r.agent.RemoveSnapshot(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	r.expect(clone.ID, tartarus.Running, "")
	job := r.await(r.enqueue("create", r.spec(func(s *tartarus.Spec) { s.SnapshotID = snap.ID }), 1))
	if job.State != acheron.Dead || !tartarus.Is(acheron.FromReason(job.Reason), tartarus.Corrupt) {
		t.Errorf("from a removed one: %s, %s", job.State, job.Reason)
	}
	if err := r.agent.Stop(t.Context(), clone.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	r.empty(clone.ID)
}

// TestSnapshotThatFails holds that the source runs on, and that nothing is left, whatever goes wrong.
func TestSnapshotThatFails(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	left := func() {
		t.Helper()
		r.off()
		r.expect(sb.ID, tartarus.Running, "")
		if all := r.agent.snapshots.List(snapshot.Filter{}); len(all) != 0 {
			t.Errorf("left: %+v", all)
		}
		if found, err := filepath.Glob(filepath.Join(r.agent.cfg.Dir, "snapshots", "tmp", "*")); err != nil || len(found) != 0 {
			t.Errorf("left: %v, %v", found, err)
		}
	}
	r.on("snapshot", func(context.Context) error { return errors.New("disk full") })
	if _, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{}); err == nil {
		t.Error("a snapshot that failed was said to work")
	}
	left()
	if _, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{Disk: true}); !tartarus.Is(err, tartarus.Unsupported) {
		t.Errorf("of the disk alone, where there is none: %v", err)
	}
	left()
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{Disk: true}); !tartarus.Is(err, tartarus.Unsupported) {
		t.Errorf("pause of the disk alone, where there is none: %v", err)
	}
	left()
	if _, err := r.agent.Snapshot(t.Context(), "nobody", tartarus.SnapshotHow{}); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("of nobody: %v", err)
	}
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{}); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("of a paused one: %v", err)
	}
}

// TestKilledWhileSnapshotting holds that an end does not wait for a snapshot to be of use to anybody, and that it counts.
func TestKilledWhileSnapshotting(t *testing.T) {
	r := newRig(t)
	sb := r.create()
	begun, goOn := make(chan struct{}), make(chan struct{})
	r.on("snapshot", func(context.Context) error { close(begun); <-goOn; return nil })
	ended := make(chan error, 1)
	go func() {
		_, err := r.agent.Snapshot(context.WithoutCancel(t.Context()), sb.ID, tartarus.SnapshotHow{})
		ended <- err
	}()
	<-begun
	if got := r.mustFind(sb.ID).sandbox().Phase; got != tartarus.Snapshotting {
		t.Errorf("it is %s meanwhile", got)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.agent.Stop(context.WithoutCancel(t.Context()), sb.ID, tartarus.ReasonUser) }()
	close(goOn)
	<-ended // it may have worked or not
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the end waits for ever")
	}
	r.empty(sb.ID)
}

// TestOverTheQuota holds that a tenant that has no room for a snapshot keeps its sandbox running.
func TestOverTheQuota(t *testing.T) {
	r := newRig(t, func(c *Config) {
		store, err := snapshot.New(snapshot.Config{Dir: filepath.Join(c.Dir, "snapshots"), MaxBytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		c.Snapshots = store
	})
	sb := r.create()
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); !tartarus.Is(err, tartarus.Exhausted) {
		t.Errorf("pause: %v", err)
	}
	if _, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{}); !tartarus.Is(err, tartarus.Exhausted) {
		t.Errorf("snapshot: %v", err)
	}
	r.expect(sb.ID, tartarus.Running, "")
}

// TestImageIsHeld holds that the image of a template stays while a sandbox or a snapshot stands on it.
func TestImageIsHeld(t *testing.T) {
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "image.erofs")
	if err := os.WriteFile(rootfs, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.Dir, c.Templates = filepath.Join(dir, "node"), templateAt(rootfs) })
	links := func() uint64 {
		t.Helper()
		n, err := linksOf(rootfs)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	sb := r.create()
	if n := links(); n != 2 {
		t.Errorf("%d names while a sandbox runs", n)
	}
	snap, err := r.agent.Snapshot(t.Context(), sb.ID, tartarus.SnapshotHow{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.Pause(t.Context(), sb.ID, tartarus.PauseHow{}); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	if n := links(); n != 3 {
		t.Errorf("%d names with a snapshot and a paused sandbox", n)
	}
	if err := r.agent.Stop(t.Context(), sb.ID, tartarus.ReasonUser); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.RemoveSnapshot(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	if n := links(); n != 1 {
		t.Errorf("%d names when nobody needs it", n)
	}
}

// templateAt is a template whose image is a file of the test.
type templateAt string

func (p templateAt) Template(_ context.Context, id, build string) (Template, error) {
	return Template{ID: id, Build: build, RootFS: string(p)}, nil
}

func linksOf(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return uint64(st.Nlink), err
}
