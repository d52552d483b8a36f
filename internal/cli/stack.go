package cli

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// Stack is a server that runs inside this process.
type Stack interface {
	// Run serves until ctx ends, and then stops in order.
	Run(ctx context.Context) error
	// Ready is closed when sandboxes can be made.
	Ready() <-chan struct{}
	// About describes the server once Ready is closed.
	About() daemon.About
}

// newStack makes the real one.
func newStack(c daemon.Config, version string) (Stack, error) {
	tune()
	return daemon.New(c, version)
}

// logs is how many goroutines of a server are in a sync most of the time when it is busy: the store's, and the audit log's.
const logs = 2

// tune sets the runtime up as a server needs it, unless the environment says otherwise.
var tune = sync.OnceFunc(func() {
	// The garbage is collected when the heap has grown to five times what lives in it. What lives is small, tens of megabytes, for sandboxes and jobs
	// are in the store; collecting at twice that takes a tenth of the time of a create.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	// A goroutine in a sync keeps its place among those that run until the runtime notices, which may be milliseconds later. On two processors
	// those places were half of all, and a third of the processor time was lost.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + logs)
	}
})
