// Package guest is the agent inside every sandbox: an HTTP server through which clients run processes and
// reach files, and through which the host tells a fresh guest who it is. It is the only way into a
// sandbox, so it answers everything with a typed error and never ends because of a request.
//
// The parts: process runs commands, files serves the file system, watch tells of changes, system changes
// the guest's identity, journal keeps what happened, settings holds what the host said, account knows
// the users, fault words errors; boot makes a program of it. guestclient is the other end, and hostapi
// what both say to each other.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/files"
	"github.com/tartarus-sandbox/tartarus/internal/guest/journal"
	"github.com/tartarus-sandbox/tartarus/internal/guest/mounted"
	"github.com/tartarus-sandbox/tartarus/internal/guest/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

// Config says how the agent runs.
type Config struct {
	// Listen is the address it serves on.
	Listen string
	// Root is where the guest's /etc and /run are.
	Root string
	// Reap collects the orphans of the whole guest; for an agent that is init or a subreaper.
	Reap bool
	// Group is the control group of the guest's processes, where the agent itself is outside of it; nil where there is none.
	Group *os.File
	// JournalBytes bounds the log entries kept for the host.
	JournalBytes int
	// Kernel changes name, clock and randomness of the guest.
	Kernel system.Kernel
	// FromHost reports whether the peer of a connection is the host. Host-only routes ask it.
	FromHost func(peer net.Addr) bool
	// Log gets the agent's own troubles, beside the journal. May be nil.
	Log slog.Handler
}

// Default is the configuration of an agent in a sandbox.
func Default() Config {
	return Config{
		Listen:       net.JoinHostPort("0.0.0.0", strconv.Itoa(tartarus.AgentPort)),
		Root:         "/",
		JournalBytes: 1 << 20,
		Kernel:       system.Linux(),
		FromHost:     FromHost,
	}
}

// Validate refuses a Config that New cannot work with.
func (c Config) Validate() error {
	switch {
	case c.Listen == "", c.Root == "":
		return tartarus.Errorf(tartarus.Invalid, "guest: Listen and Root must be set")
	case c.JournalBytes < 4096:
		return tartarus.Errorf(tartarus.Invalid, "guest: JournalBytes %d is below 4096, one long line", c.JournalBytes)
	case c.FromHost == nil || c.Kernel.SetHostname == nil || c.Kernel.SetClock == nil || c.Kernel.AddEntropy == nil:
		return tartarus.Errorf(tartarus.Invalid, "guest: FromHost and Kernel must be set")
	}
	return nil
}

// Agent is the whole agent.
type Agent struct {
	config    Config
	log       *slog.Logger
	journal   *journal.Journal
	settings  *settings.Store
	processes *process.Manager
	files     *files.Service
	mounts    mounted.Mounts
	handler   http.Handler

	initialising sync.Mutex        // one init at a time
	noted        map[string]string // what note has written, under initialising
	guest        system.Guest
	terminating  sync.Mutex // one termination at a time

	metering sync.Mutex
	lastCPU  cpuTimes
}

// New makes an Agent. It opens nothing.
func New(c Config) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{config: c, journal: journal.New(c.JournalBytes), noted: map[string]string{}}
	var handler slog.Handler = journal.NewHandler(a.journal, slog.LevelInfo)
	if c.Log != nil {
		handler = slog.NewMultiHandler(handler, c.Log)
	}
	a.log = slog.New(handler)
	a.settings = settings.New(account.NewBook(c.Root + "/etc"))
	a.processes = process.New(process.Config{Settings: a.settings, Journal: a.journal, Log: a.log, Reap: c.Reap, Group: c.Group})
	a.files = files.New(files.Config{Settings: a.settings, Log: a.log})
	a.guest = system.Guest{Root: c.Root, Kernel: c.Kernel}
	a.handler = a.routes()
	return a, nil
}

// ServeHTTP answers one request. It serves tests and programs that bring their own server; Run must run too.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// Run serves on Config.Listen until ctx ends; then it kills every process it started.
func (a *Agent) Run(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.config.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return a.Serve(ctx, listener)
}

// Serve is Run on a listener that is open already. It closes it.
func (a *Agent) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:   a.handler,
		Protocols: new(http.Protocols),
		// A client that connects and says nothing is let go; one that keeps a connection for later is not.
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       15 * time.Minute, // longer than proxies keep theirs, so that the client is the one who closes
		MaxHeaderBytes:    64 << 10,
		// One proxy connection may carry all the streams of a busy sandbox.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 10_000},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.processes.Run(ctx) }()
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(listener)
	stopped := ctx.Err() != nil
	cancel()
	a.files.Close()
	a.mounts.Close()
	err = errors.Join(err, <-ended)
	if stopped {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}
