package hecatoncheir

import (
	"context"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Control is the control plane as a node sees it: where its work comes from and where it reports to.
// Everything but the four lease methods may fail for as long as it likes without harm to running sandboxes.
type Control interface {
	// Lease, Renew, Complete and Fail are acheron.Queue's.
	Lease(ctx context.Context, node string, max int, ttl time.Duration) ([]acheron.Lease, error)
	Renew(ctx context.Context, l acheron.Lease, ttl time.Duration) error
	Complete(ctx context.Context, l acheron.Lease, result []byte) error
	Fail(ctx context.Context, l acheron.Lease, reason string, retry bool) error

	// Report makes the registry agree with what the node says of these sandboxes, whatever it held before.
	Report(ctx context.Context, sandboxes ...tartarus.Sandbox) error

	// Heartbeat registers the node for another ttl.
	Heartbeat(ctx context.Context, n hades.Node, ttl time.Duration) error
}

// Arrivals is a store that has all that changes when a new sandbox has come up: a node that shares its process with the stores needs one write for it.
type Arrivals interface {
	// Arrive makes durable, all of it or nothing, that the sandbox of a job runs: the journal's record, the registry's entry, which becomes what the
	// node says as with Report, and the job's end with the entry as its result. It returns the entry's revision. A lease that no longer holds is
	// tartarus.Conflict.
	Arrive(ctx context.Context, l acheron.Lease, sb tartarus.Sandbox, record []byte) (revision int64, err error)
}

// Journal is the node's own durable memory: one opaque record per sandbox. What Put and Delete have acknowledged survives a crash.
type Journal interface {
	Put(ctx context.Context, id string, record []byte) error
	Delete(ctx context.Context, id string) error
	All(ctx context.Context) (map[string][]byte, error)
}

// Volumes opens the files of volumes for the sandboxes that have them mounted.
type Volumes interface {
	// Open opens a volume until release is called; one that is not there is tartarus.NotFound. Several may have it open.
	Open(id string) (files VolumeFiles, release func(), err error)
}

// VolumeFiles answers what a guest asks about the files of one volume.
type VolumeFiles interface {
	// Serve answers over conn until either end closes it or ctx ends. Whatever comes, it leads to nothing outside of the volume.
	Serve(ctx context.Context, conn net.Conn) error
}

// Templates finds the files of a template.
type Templates interface {
	// Template returns one build of a template, the current one for the empty build; unknown is tartarus.NotFound.
	Template(ctx context.Context, id, build string) (Template, error)
}

// Template is what a node needs of a template to boot it.
type Template struct {
	ID      string
	Build   string // which version of it
	Digest  string // of its image
	RootFS  string // path of its EROFS image
	Env     map[string]string
	User    string // who runs commands when the request names nobody
	Workdir string // where

	StartCmd string // runs in the background from the first boot on; may be empty
	ReadyCmd string // succeeds once the start command is up; may be empty

	Grace *time.Duration // how long its sandboxes have to end in good order; nil says nothing
}

// Direct is the Control of a node that shares its process with the stores.
type Direct struct {
	acheron.Queue
	Registry hades.Registry
}

// Report writes each sandbox over the registry's revision of it. A sandbox that a node reports wins over anything a
// replica wrote about it, so a conflict is answered by reading the newer revision and writing again.
func (d Direct) Report(ctx context.Context, sandboxes ...tartarus.Sandbox) error {
	// At the same time, so that the store can commit them together.
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(reportsAtOnce)
	for _, sb := range sandboxes {
		g.Go(func() error { return d.report(ctx, sb) })
	}
	return g.Wait()
}

// reportsAtOnce is as many changes as the stores commit together.
const reportsAtOnce = 512

// reportTries bounds the race with other writers of one sandbox; each lost round means that another one succeeded.
const reportTries = 8

func (d Direct) report(ctx context.Context, sb tartarus.Sandbox) error {
	for try := 0; ; try++ {
		_, err := d.Registry.PutSandbox(ctx, sb)
		if !tartarus.Is(err, tartarus.Conflict) || try == reportTries {
			return err
		}
		stored, err := d.Registry.Sandbox(ctx, hades.AnyTenant, sb.ID)
		switch {
		case err == nil:
			sb.Revision = stored.Revision
		case tartarus.Is(err, tartarus.NotFound):
			sb.Revision = 0
		default:
			return err
		}
	}
}

// Heartbeat registers the node.
func (d Direct) Heartbeat(ctx context.Context, n hades.Node, ttl time.Duration) error {
	return d.Registry.PutNode(ctx, n, ttl)
}
