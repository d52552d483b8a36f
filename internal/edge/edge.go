// Package edge carries traffic from clients to the ports of sandboxes: by host name, {port}-{id}.{domain}, or by headers on the API's own
// port. Nothing passes to a sandbox that does not run, and when one ends, every connection to it is cut.
package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// Config says where sandboxes are found and how they are reached.
type Config struct {
	Registry hades.Registry
	// Fleet leads to the nodes, through which guests are dialled.
	Fleet olympus.Fleet
	// Wake brings a paused sandbox back that may be resumed by traffic, and returns it running. Nil wakes nobody.
	Wake func(ctx context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error)
	// Domain is the wildcard domain, with or without a port. Empty leaves routing to headers.
	Domain string
	Log    *slog.Logger
	// Audit is told of what is run in sandboxes, and of the files that are read and written, before it happens. Nil records nothing.
	Audit *audit.Log
}

// Edge is a proxy to all sandboxes.
type Edge struct {
	cfg    Config
	domain string // lower-case, without port
	log    *slog.Logger
	ways   *ways
	signed *signed
	ups    *upstreams
}

// New makes an edge that carries nothing yet.
func New(cfg Config) (*Edge, error) {
	if cfg.Registry == nil || cfg.Fleet == nil || cfg.Log == nil {
		return nil, errors.New("edge: registry, fleet and log are needed")
	}
	domain, err := bareDomain(cfg.Domain)
	if err != nil {
		return nil, err
	}
	e := &Edge{cfg: cfg, domain: domain, log: cfg.Log, ways: newWays(cfg.Registry), signed: newSigned(cfg.Registry)}
	e.ups = newUpstreams(e)
	return e, nil
}

// Wrap serves requests that are meant for a sandbox, and gives all others to api. Without an api they are not found.
func (e *Edge) Wrap(api http.Handler) http.Handler {
	if api == nil {
		api = http.NotFoundHandler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch t, err := e.target(r); {
		case err != nil:
			refuse(w, r, refusalOf(err, t))
		case t.id == "":
			api.ServeHTTP(w, r)
		default:
			e.carry(w, r, t)
		}
	})
}

// Changed tells what somebody has learned of a sandbox. One that no longer runs is cut off at once. It may be called from anywhere and
// with older news than the edge has: what counts is read again when it is needed.
func (e *Edge) Changed(sb tartarus.Sandbox) {
	if open(sb) {
		e.ways.put(sb, time.Now())
		e.ups.moved(sb)
		return
	}
	e.ways.drop(sb.ID)
	e.ups.end(sb.ID)
}

// open reports whether traffic may go to a sandbox. Its node wakes one that is hibernated when it is dialled.
func open(sb tartarus.Sandbox) bool { return sb.Reachable() }

// The edge looks again at sandboxes it has connections to, in case nobody tells it that they ended, and lets go of those nobody asks for.
const (
	lookEvery = 2 * time.Second
	idleAfter = time.Minute
)

// Run keeps the edge tidy until ctx ends, then cuts everything.
func (e *Edge) Run(ctx context.Context) error {
	defer e.ups.endAll()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			e.look(ctx, now)
		}
	}
}

// look cuts what has ended. A registry that does not answer cuts nobody.
func (e *Edge) look(ctx context.Context, now time.Time) {
	for _, u := range e.ups.tidy(now) {
		sb, err := e.cfg.Registry.Sandbox(ctx, hades.AnyTenant, u.sb.ID)
		switch {
		case tartarus.Is(err, tartarus.NotFound), err == nil && !open(sb):
			e.ways.drop(u.sb.ID)
			e.ups.end(u.sb.ID)
		case err == nil:
			e.ups.moved(sb)
		case ctx.Err() != nil:
			return
		default:
			e.log.Warn("sandbox not looked up", "sandbox", u.sb.ID, "node", u.sb.Node, "error", err)
		}
	}
}
