package cli

import (
	"context"
	"errors"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// Stack is a server that runs inside this process.
type Stack interface {
	// Run serves until ctx ends, and then stops in order.
	Run(ctx context.Context) error
	// Ready is closed when requests are answered.
	Ready() <-chan struct{}
	// URL is where the API listens, known once Ready is closed.
	URL() string
	// APIKey is a key that may do everything, known once Ready is closed.
	APIKey() string
}

// StackConfig configures a Stack.
type StackConfig = daemon.Config

var errNoStack = errors.New("this build has no server: use --url with one that runs elsewhere")

func newStack(StackConfig) (Stack, error) { return nil, errNoStack }

// local is this machine.
var local = machine{
	drivers: func(daemon.Config) ([]vmm.Driver, error) { return nil, nil },
	leaks:   func(context.Context, daemon.Config, bool) ([]vmm.Leftover, error) { return nil, errNoStack },
}
