package cli

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
)

// guest is the inside of one sandbox. A path that does not start with a slash is below the user's home; an empty user is
// the template's.
type guest interface {
	// Start runs a command and returns once it has a process id.
	Start(ctx context.Context, c command) (process, error)
	// Stat describes a path; a symbolic link is followed. Absent is tartarus.NotFound.
	Stat(ctx context.Context, user, path string) (entry, error)
	// List describes what is directly in a folder.
	List(ctx context.Context, user, path string) ([]entry, error)
	// MakeDir makes a folder and those above it; one that is there is no error.
	MakeDir(ctx context.Context, user, path string) error
	// Read opens a regular file; the caller closes it.
	Read(ctx context.Context, user, path string) (io.ReadCloser, error)
	// Write makes or replaces a file, and the folders above it.
	Write(ctx context.Context, user, path string, content io.Reader) error
}

// command is what to run in a guest.
type command struct {
	argv     []string
	env      map[string]string
	user     string
	workdir  string
	terminal *windowSize // nil without one
	input    bool
	timeout  time.Duration // 0 is none
}

// entry is a file of a guest.
type entry struct {
	name   string // last element of its path
	path   string
	mode   fs.FileMode // type and permissions
	size   int64
	target string // of a symbolic link
}

// guestOf reaches into a sandbox that runs. It does not extend the sandbox's time, as connecting would.
func (e *Env) guestOf(ctx context.Context, cl *client.Client, id string) (guest, error) {
	sb, err := cl.Get(ctx, id)
	if tartarus.Is(err, tartarus.NotFound) {
		return nil, fmt.Errorf("%w; `tartarus ps` lists those that live", err)
	}
	if err != nil {
		return nil, err
	}
	g := cl.Sandbox(sb.SandboxID)
	g.AgentToken, g.TrafficToken = sb.EnvdAccessToken, sb.TrafficAccessToken
	return e.guest(g), nil
}
