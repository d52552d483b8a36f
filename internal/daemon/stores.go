package daemon

import (
	"context"
	"log/slog"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/link"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/redis"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// stores are what the control plane keeps, wherever that is. A node's journal is never among them: it is on the node.
type stores struct {
	registry hades.Registry
	queue    acheron.Queue
	keys     tenant.Store
	secrets  secret.Store
	volumes  volume.Store
	vault    link.Vault
	marks    hades.Marks
	shelf    shelf.Store
	policies themis.Store
	shared   bool // other replicas have them too, and they can be away
}

func embedded(db *sqlite.DB) stores {
	registry, marks := hades.WithMarks(db.Registry(), db.Vault())
	return stores{shelf: db.Shelf(), policies: db.Policies(), registry: registry, marks: marks, queue: db.Queue(), keys: db.Keys(), secrets: db.Secrets(), volumes: db.Volumes(), vault: db.Vault()}
}

// openShared opens the store in Redis. It need not be there: until it is, everything in it is tartarus.Unavailable.
func openShared(ctx context.Context, c Redis, log *slog.Logger) (stores, *redis.DB, error) {
	rc, err := c.config(log)
	if err != nil {
		return stores{}, nil, err
	}
	db, err := redis.Open(ctx, rc)
	if err != nil {
		return stores{}, nil, err
	}
	registry, marks := hades.WithMarks(db.Registry(), db.Vault())
	return stores{
		shelf: db.Shelf(), policies: db.Policies(), marks: marks,
		registry: newRemembered(registry), queue: db.Queue(), keys: newRememberedKeys(db.Keys()), secrets: db.Secrets(), volumes: db.Volumes(), vault: db.Vault(), shared: true,
	}, db, nil
}
