package daemon

import (
	"context"

	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot/remote"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
)

// remoteMemory says how page-fault handlers read the memory of snapshots that is in the object store alone: they get links and no credentials. It is nil where nothing
// can be read so.
func (d *Daemon) remoteMemory(store func() *snapshot.Store) func(ctx context.Context, dir string) (*firecracker.Remote, error) {
	if !d.cfg.PageFaultHandler || d.cfg.S3.Bucket == "" || d.cfg.Ephemeral {
		return nil
	}
	return func(ctx context.Context, dir string) (*firecracker.Remote, error) {
		links, err := store().Links(ctx, dir, firecracker.MemoryFile)
		if err != nil {
			return nil, err
		}
		spec, size, err := remote.Describe(links)
		return &firecracker.Remote{Kind: remote.Kind, Spec: spec, Size: size, Network: true}, err
	}
}
