package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
)

// probeTime is how long a server on this machine gets to say that it is there.
const probeTime = time.Second

// stopTime bounds the end of a stack in this process: ending its sandboxes takes about 100 ms each on a loaded host.
const stopTime = 30 * time.Second

// serverOrStack connects to the server that is named or listens here, and otherwise starts a stack in this process
// that ends with stop, and all its sandboxes with it. runtime is the one that sandboxes shall have, "" for the configured one.
func (e *Env) serverOrStack(ctx context.Context, runtime string, keep bool) (cl *client.Client, stop func(), err error) {
	c, err := e.configure(nil)
	if err != nil {
		return nil, nil, err
	}
	s, err := e.server(c)
	if err != nil {
		return nil, nil, err
	}
	userAgent := "tartarus-cli/" + e.Version
	if cl, err = client.New(client.Config{URL: s.url, APIKey: s.key, UserAgent: userAgent}); err != nil {
		return nil, nil, err
	}
	if !s.standard || e.ours(ctx, cl) {
		return cl, func() {}, nil
	}
	cl.Close()
	if keep {
		return nil, nil, fmt.Errorf("--keep needs a server that the sandbox can live on in: start one with `tartarus up`, or name one with --url")
	}
	if os.Geteuid() != 0 {
		return nil, nil, fmt.Errorf("no server is named nor listening on %s, and making sandboxes on this machine needs root "+
			"(network namespaces, cgroups, nftables): use sudo, or name a server with --url", c.APIAddr)
	}
	if runtime != "" {
		c.Runtime = runtime
	}
	c.Ephemeral, c.APIAddr, c.EdgeAddr = true, "127.0.0.1:0", ""
	c.Warm.MemoryMB = 0 // nobody comes after this one
	c.Log = e.logger(c, slog.LevelError)
	st, err := e.stack(c.Config, e.Version)
	if err != nil {
		return nil, nil, err
	}
	end, err := start(ctx, st)
	if err != nil {
		return nil, nil, err
	}
	stop = func() {
		if err := end(); err != nil {
			e.note("%v", err)
		}
	}
	cl, err = client.New(client.Config{URL: st.About().URL, APIKey: st.About().APIKey, UserAgent: userAgent})
	if err != nil {
		stop()
	}
	return cl, stop, err
}

// ours reports whether a server answers that takes our key. One on the default address that belongs to somebody else, with another data
// folder, is passed by unless a key was given for it.
func (e *Env) ours(ctx context.Context, cl *client.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if cl.Health(ctx) != nil {
		return false
	}
	_, given := e.lookup(envKey)
	if given || e.global.keyFile != "" {
		return true
	}
	_, _, err := cl.ListPage(ctx, client.ListOptions{PageSize: 1})
	return !tartarus.Is(err, tartarus.Unauthenticated)
}

// listens reports whether a server of ours answers at url. Whatever else may listen there does not count.
func listens(ctx context.Context, url string) bool {
	cl, err := client.New(client.Config{URL: url})
	if err != nil {
		return false
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	return cl.Health(ctx) == nil
}

// start runs st until end is called, which returns when st has stopped. It returns once st is ready.
func start(ctx context.Context, st Stack) (end func() error, err error) {
	// Not ended by ctx: when a signal ends the command, sandboxes must still be removed through the stack.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	result := make(chan error, 1)
	go func() { result <- st.Run(running) }()
	end = func() error {
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(stopTime):
			return tartarus.Errorf(tartarus.Deadline, "stop the server: not done within %s; `tartarus doctor --leaks` shows what may be left", stopTime)
		}
	}
	select {
	case <-st.Ready():
		return end, nil
	case err := <-result:
		cancel()
		if err == nil {
			err = errors.New("start the server: it ended at once")
		}
		return nil, err
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), end())
	}
}

// logger writes to stderr. level holds unless somebody set one.
func (e *Env) logger(c *effective, level slog.Level) *slog.Logger {
	if c.origin("logLevel") != "default" {
		_ = level.UnmarshalText([]byte(c.LogLevel)) // validated
	}
	return newLogger(e.Stderr, level, c.LogFormat)
}

func newLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
