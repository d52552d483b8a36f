// Package redis is the shared store: registry, queue, policies and keys in Redis or Valkey, alone, behind Sentinel or as a
// Cluster. Every change is one script, so that it happens as a whole or not at all, and a call that gets no answer within its
// bounded time is tartarus.Unavailable: it may or may not have happened.
//
// All keys that a script touches share a hash tag. The registry is spread over several tags, the queue has one.
//
// What survives is what Redis keeps: with appendfsync always an acknowledged change survives a crash, with everysec the
// last second may be lost. Replication is asynchronous: a failover may lose what the old master acknowledged last, unless Config's
// WaitReplicas is set, which narrows that window but cannot close it. A client recovers by repeating its request under
// its idempotency key; nodes report again what they hold.
//
// An ACL user needs its keys (~tartarus:*) and: resetchannels -@all +@read +@write +@connection +evalsha +eval +time +wait -@dangerous,
// in a Cluster also +cluster|slots +cluster|shards +cluster|nodes +readonly. Redis must not evict: maxmemory-policy noeviction.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says where Redis is and how it is spoken to.
type Config struct {
	// Addrs are host:port of the one server, of Sentinels, or of some nodes of a Cluster.
	Addrs []string
	// Master is the name under which Sentinels know the master; set, Addrs are Sentinels.
	Master string
	// Cluster says that Addrs belong to a Redis Cluster.
	Cluster bool
	// DB is the database's number; a Cluster has 0 alone.
	DB int

	Username, Password                 string // of an ACL user; empty for none
	SentinelUsername, SentinelPassword string
	TLS                                *tls.Config // nil: no TLS

	// Prefix begins every key, so that several installations can share a server.
	Prefix string
	// Timeout bounds every call, from waiting for a connection to the answer.
	Timeout time.Duration
	// PoolSize is the most connections to a server.
	PoolSize int
	// WaitReplicas makes every change wait until so many replicas have it, for at most half of Timeout; fewer is
	// tartarus.Unavailable. 0 does not wait.
	WaitReplicas int
	// Shards is over how many hash tags a new registry is spread: 1 is best for one server, a Cluster takes several
	// per master. What an existing registry has stays.
	Shards int
	// MaxOpenJobs bounds the queue: an Enqueue beyond it is tartarus.Unavailable.
	MaxOpenJobs int
	// Log hears when Redis goes away and when it is back. Nil: nobody does.
	Log *slog.Logger
}

// Default is the configuration for one server.
func Default(addrs ...string) Config {
	return Config{Addrs: addrs, Prefix: "tartarus:", Timeout: 2 * time.Second, PoolSize: 64, Shards: 1, MaxOpenJobs: 200_000}
}

func (c Config) withDefaults() Config {
	d := Default()
	if c.Prefix == "" {
		c.Prefix = d.Prefix
	}
	if c.Timeout == 0 {
		c.Timeout = d.Timeout
	}
	if c.PoolSize == 0 {
		c.PoolSize = d.PoolSize
	}
	if c.Shards == 0 {
		c.Shards = d.Shards
		if c.Cluster {
			c.Shards = 16
		}
	}
	if c.MaxOpenJobs == 0 {
		c.MaxOpenJobs = d.MaxOpenJobs
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports what cannot work.
func (c Config) Validate() error {
	switch {
	case len(c.Addrs) == 0:
		return tartarus.Errorf(tartarus.Invalid, "redis: no address")
	case len(c.Addrs) > 1 && c.Master == "" && !c.Cluster:
		return tartarus.Errorf(tartarus.Invalid, "redis: several addresses need either a Sentinel master's name or cluster")
	case c.Master != "" && c.Cluster:
		return tartarus.Errorf(tartarus.Invalid, "redis: a Cluster has no Sentinels")
	case c.DB < 0 || c.Cluster && c.DB != 0:
		return tartarus.Errorf(tartarus.Invalid, "redis: no database %d there", c.DB)
	case strings.ContainsAny(c.Prefix, "{}"):
		return tartarus.Errorf(tartarus.Invalid, "redis: prefix %q holds a brace, which would be a hash tag", c.Prefix)
	case c.Timeout < 10*time.Millisecond || c.Timeout > time.Minute:
		return tartarus.Errorf(tartarus.Invalid, "redis: timeout must be 10 ms to 1 min, not %s", c.Timeout)
	case c.PoolSize < 2 || c.WaitReplicas < 0 || c.MaxOpenJobs < 1:
		return tartarus.Errorf(tartarus.Invalid, "redis: needs at least 2 connections, no fewer than 0 replicas and 1 open job")
	case c.Shards < 1 || c.Shards > 1024:
		return tartarus.Errorf(tartarus.Invalid, "redis: shards must be 1 to 1024, not %d", c.Shards)
	}
	return nil
}

// DB is a store in Redis. Its parts may be used concurrently until Close; after it everything is tartarus.Unavailable.
type DB struct {
	cfg    Config
	rdb    goredis.UniversalClient
	shards atomic.Int32 // of the registry as it is; 0 until Redis told

	batchers sync.Map // by hash tag
	bells    *bells
	timer    *timer
	stop     context.CancelFunc
	closing  chan struct{}
	running  sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// Open makes a store. It does not need Redis to be there: calls are tartarus.Unavailable until it is. Fields of c that are
// zero take their default. ctx gives its values to what runs in the background and does not end it; Close does.
func Open(ctx context.Context, c Config) (*DB, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	db := &DB{cfg: c, rdb: connect(c), bells: newBells(), timer: newTimer(), stop: stop, closing: make(chan struct{})}
	db.background(func() { db.listen(background) })
	db.background(func() { db.keepTime(background) })
	return db, nil
}

// quiet takes what the library would print to stderr by itself. Its errors all come back from calls too.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var silence = sync.OnceFunc(func() { goredis.SetLogger(quiet{}) })

func connect(c Config) goredis.UniversalClient {
	silence()
	return goredis.NewUniversalClient(&goredis.UniversalOptions{
		Addrs: c.Addrs, MasterName: c.Master, IsClusterMode: c.Cluster, DB: c.DB,
		Username: c.Username, Password: c.Password, SentinelUsername: c.SentinelUsername, SentinelPassword: c.SentinelPassword,
		TLSConfig: c.TLS, PoolSize: c.PoolSize,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout, ContextTimeoutEnabled: true,
		// A repeated script could find its own work done: whoever asked decides whether to ask again.
		MaxRetries: -1, DialerRetries: 1,
		// Answers are plain values, and what newer servers would push is not wanted.
		Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// Close ends what runs in the background and the connections. Calls under way are answered with an error.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	db.mu.Unlock()
	close(db.closing)
	db.stop()
	err := db.rdb.Close()
	db.running.Wait()
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil // the server closed a connection first, and did not hear that ours closes too
	}
	return err
}

// background runs fn on a goroutine that Close waits for; after Close it does not.
func (db *DB) background(fn func()) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return false
	}
	db.running.Go(fn)
	return true
}

// Ping reports whether Redis answers.
func (db *DB) Ping(ctx context.Context) error {
	_, err := db.registryShards(ctx)
	if err == nil {
		_, err = db.run(ctx, pingScript, db.tag("q"))
	}
	return err
}

// tag is the prefix of keys that live together.
func (db *DB) tag(name string) string { return db.cfg.Prefix + "{" + name + "}:" }

// registryShards says over how many tags the registry is spread. The first to ask writes its own number down.
func (db *DB) registryShards(ctx context.Context) (int, error) {
	if n := db.shards.Load(); n > 0 {
		return int(n), nil
	}
	v, err := db.run(ctx, layoutScript, db.tag("layout"), layoutVersion, db.cfg.Shards)
	if err != nil {
		return 0, err
	}
	r := v
	if r.text(0) != layoutVersion {
		return 0, tartarus.Errorf(tartarus.Unsupported, "redis holds a store of layout %s, written by another version, and this one knows %s alone: run that version, or give this one "+
			"a database or a prefix (redis.prefix) where nothing is yet; nodes enter their sandboxes there again, tenants, keys and policies are made anew", r.text(0), layoutVersion)
	}
	n := r.number(1)
	if n < 1 || n > 1024 {
		return 0, tartarus.Errorf(tartarus.Corrupt, "redis holds a store of %d shards", n)
	}
	db.shards.Store(int32(n))
	return int(n), nil
}

func noAnswer(err error) error {
	return tartarus.Errorf(tartarus.Unavailable, "redis does not answer: %w", err)
}

var errClosed = tartarus.Errorf(tartarus.Unavailable, "store is closed")

// layoutVersion is the version of the keys' meaning. A change that an older program would misread makes it grow.
const layoutVersion = "2"
