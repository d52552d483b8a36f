package cli

import (
	"context"
	"os"
	"runtime/debug"

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
	collectLess()
	return daemon.New(c, version)
}

// collectLess has the garbage of a server collected when its heap has grown to five times what lives in it, unless GOGC says otherwise. What lives
// is small, tens of megabytes, for sandboxes and jobs are in the store; collecting at twice that takes a tenth of the time of a create.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}
