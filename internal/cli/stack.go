package cli

import (
	"context"

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
func newStack(c daemon.Config, version string) (Stack, error) { return daemon.New(c, version) }
