package redis

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/link"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

var (
	_ hades.Registry   = (*Registry)(nil)
	_ acheron.Queue    = (*Queue)(nil)
	_ acheron.Operator = (*Queue)(nil)
	_ themis.Store     = (*Policies)(nil)
	_ tenant.Store     = (*Keys)(nil)
	_ secret.Store     = (*Secrets)(nil)
	_ volume.Store     = (*Volumes)(nil)
	_ link.Vault       = (*Vault)(nil)
)

func registryOf(db *DB) hades.Registry    { return db.Registry() }
func queueOf(db *DB) storetest.QueueStore { return db.Queue() }
func policiesOf(db *DB) themis.Store      { return db.Policies() }
func keysOf(db *DB) tenant.Store          { return db.Keys() }
func shelfOf(db *DB) shelf.Store          { return db.Shelf() }
func secretsOf(db *DB) secret.Store       { return db.Secrets() }
func volumesOf(db *DB) volume.Store       { return db.Volumes() }
func vaultOf(db *DB) link.Vault           { return db.Vault() }

// subject makes a factory for one seam on a server. A crash is the server's: it is killed and started again.
func subject[T any](s *server, part func(*DB) T) storetest.Factory[T] {
	return func(t *testing.T) storetest.Subject[T] {
		db := openTest(t, Config{Addrs: []string{s.addr()}})
		return storetest.Subject[T]{Store: part(db), Crash: func(t *testing.T) T {
			s.restart(t)
			return part(openTest(t, Config{Addrs: []string{s.addr()}, Prefix: db.cfg.Prefix}))
		}}
	}
}

func TestSuites(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	t.Run("registry", func(t *testing.T) { storetest.Registry(t, subject(s, registryOf)) })
	t.Run("queue", func(t *testing.T) { storetest.Queue(t, subject(s, queueOf)) })
	t.Run("policies", func(t *testing.T) { storetest.Policies(t, subject(s, policiesOf)) })
	t.Run("keys", func(t *testing.T) { storetest.Keys(t, subject(s, keysOf)) })
	t.Run("shelf", func(t *testing.T) { storetest.Shelf(t, subject(s, shelfOf)) })
	t.Run("secrets", func(t *testing.T) { storetest.Secrets(t, subject(s, secretsOf)) })
	t.Run("volumes", func(t *testing.T) { storetest.Volumes(t, subject(s, volumesOf)) })
	t.Run("reload", func(t *testing.T) { storetest.Reload(t, subject(s, policiesOf)) })
	t.Run("quotas", func(t *testing.T) {
		storetest.Quotas(t, subject(s, func(db *DB) storetest.Counted { return storetest.Counted{Shelf: db.Shelf(), Registry: db.Registry()} }))
	})
	t.Run("vault", func(t *testing.T) { storetest.Vault(t, subject(s, vaultOf)) })
}

// TestShards runs the registry's suite spread over several tags.
func TestShards(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--appendfsync", "no")
	storetest.Registry(t, func(t *testing.T) storetest.Subject[hades.Registry] {
		return storetest.Subject[hades.Registry]{Store: openTest(t, Config{Addrs: []string{s.addr()}, Shards: 7}).Registry()}
	})
}
