package daemon

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// TestMemoryFromTheBucket holds when snapshots are left in the bucket: with handlers, a bucket, and a stack that outlives its caller. What is in no bucket is told as such.
func TestMemoryFromTheBucket(t *testing.T) {
	store, err := snapshot.New(snapshot.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		handler, ephemeral bool
		bucket             string
		want               bool
	}{
		"all of it":   {handler: true, bucket: "b", want: true},
		"no handlers": {bucket: "b"},
		"no bucket":   {handler: true},
		"for one":     {handler: true, bucket: "b", ephemeral: true},
	} {
		d := &Daemon{cfg: Default()}
		d.cfg.PageFaultHandler, d.cfg.Ephemeral, d.cfg.S3.Bucket = tc.handler, tc.ephemeral, tc.bucket
		memory := d.remoteMemory(func() *snapshot.Store { return store })
		if (memory != nil) != tc.want {
			t.Errorf("%s: memory comes from there: %t", name, memory != nil)
		}
		if memory == nil {
			continue
		}
		if _, err := memory(t.Context(), t.TempDir()); !tartarus.Is(err, tartarus.NotFound) {
			t.Errorf("%s: of what is no snapshot: %v", name, err)
		}
		// The driver is told, and says so where the host can hand page faults over.
		d.cfg.DataDir = filepath.Join(t.TempDir(), "data")
		drivers, err := openDrivers(d.cfg, d.cfg.DataDir, memory, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, driver := range drivers {
			_, lazy := driver.(vmm.Lazy)
			found = found || lazy
		}
		if !found {
			t.Errorf("%s: no driver takes memory from elsewhere", name)
		}
	}
}
