// Package sqlite is the embedded store: registry, queue, policies, keys and a node's journal in one SQLite file.
// Whatever a method has acknowledged is on the disk: all changes cross one committer (committer.go), which writes what many of them do into one record
// of a side file (redo.go) and answers after its fsync. The database commits later, for many records at once, or when somebody reads.
//
// The files belong to one process at a time. Reads use connections of their own; they wait for the committer only where it has acknowledged
// what the database does not hold yet. The queue's open jobs are also held in memory (line.go), rebuilt from the file at Open. Five seams make this a
// larger package than most; they are one because they share the committer, and with it each fsync.
package sqlite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says where the store is and how much it may use.
type Config struct {
	// Path is the database file. Its folder must exist; beside it live Path-wal, Path-shm, Path.redo and Path.lock.
	Path string
	// Readers is how many reads run at the same time.
	Readers int
	// CacheMB is the page cache of the committer in MiB; each reader has a quarter of it.
	CacheMB int
	// MaxOpenJobs bounds the queue's memory: an Enqueue beyond it is tartarus.Unavailable. An open job takes about
	// 500 bytes and its payload.
	MaxOpenJobs int
}

// Default is the configuration for a file.
func Default(path string) Config {
	return Config{Path: path, Readers: 4, CacheMB: 64, MaxOpenJobs: 200_000}
}

// Validate reports what cannot work.
func (c Config) Validate() error {
	switch {
	case c.Path == "":
		return tartarus.Errorf(tartarus.Invalid, "store: path is empty")
	case c.Readers < 1 || c.Readers > 64:
		return tartarus.Errorf(tartarus.Invalid, "store: readers must be 1 to 64, not %d", c.Readers)
	case c.CacheMB < 1 || c.CacheMB > 65536:
		return tartarus.Errorf(tartarus.Invalid, "store: cache must be 1 to 65536 MiB, not %d", c.CacheMB)
	case c.MaxOpenJobs < 1:
		return tartarus.Errorf(tartarus.Invalid, "store: open jobs must be at least 1, not %d", c.MaxOpenJobs)
	}
	return nil
}

// DB is an open store. Its parts may be used concurrently until Close; after it everything is tartarus.Unavailable.
type DB struct {
	ops     chan *op
	closing chan struct{} // closed by Close: nothing more is taken in
	done    chan struct{} // closed by the committer when it has answered everything
	once    sync.Once
	err     error // of Close, valid after done

	lock    *os.File
	readers chan *conn
	behind  atomic.Bool // the database lacks something that was acknowledged
	watch   watchers
	policy  policyRevision

	// fail is nil outside tests. It is asked before each step of a transaction, by name.
	fail func(point string) error
}

// Open opens or makes the store and brings its schema up to date. Fields of c that are zero take their default. ctx
// bounds the opening alone. A file that another process has open is tartarus.Conflict; one
// written by a newer program is tartarus.Unsupported; bytes that are no store are tartarus.Corrupt.
func Open(ctx context.Context, c Config) (*DB, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", c.Path, err)
	}
	lock, err := takeLock(path)
	if err != nil {
		return nil, err
	}
	db := &DB{
		ops:     make(chan *op, 1024),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		lock:    lock,
		readers: make(chan *conn, c.Readers),
		watch:   watchers{m: map[string][]told{}, open: map[string]struct{}{}},
	}
	w, err := db.openAll(ctx, path, c)
	if err != nil {
		db.closeReaders()
		lock.Close()
		return nil, err
	}
	go w.run()
	return db, nil
}

func (c Config) withDefaults() Config {
	d := Default(c.Path)
	if c.Readers == 0 {
		c.Readers = d.Readers
	}
	if c.CacheMB == 0 {
		c.CacheMB = d.CacheMB
	}
	if c.MaxOpenJobs == 0 {
		c.MaxOpenJobs = d.MaxOpenJobs
	}
	return c
}

// openAll opens the committer's connection, the schema, the readers and the queue's memory.
func (db *DB) openAll(ctx context.Context, path string, c Config) (_ *committer, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// It holds tokens of sandboxes; SQLite gives its side files the mode of this one.
	err = f.Chmod(0o600)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	main, err := openConn(path, c.CacheMB, false)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			main.close()
		}
	}()
	log, err := upToDate(path, main)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			log.f.Close()
		}
	}()
	for range c.Readers {
		if err = ctx.Err(); err != nil {
			return nil, err
		}
		r, err := openConn(path, max(1, c.CacheMB/4), true)
		if err != nil {
			return nil, fmt.Errorf("open store %s: %w", path, err)
		}
		db.readers <- r
	}
	log.fail = db.failpoint
	w := &committer{db: db, conn: main, redo: log, landed: make(chan error, 1), settleAfter: settleAfter, line: newLine(c.MaxOpenJobs)}
	w.open = &txn{committer: w}
	if err = w.load(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	return w, nil
}

// Close ends the store: what was taken in is committed and answered, everything later is refused. It
// returns when the files are closed, and may be called more than once.
func (db *DB) Close() error {
	db.once.Do(func() { close(db.closing) })
	<-db.done
	return db.err
}

func (db *DB) closeReaders() {
	for range cap(db.readers) {
		select {
		case r := <-db.readers:
			r.close()
		default: // Open stopped before it had them all
		}
	}
}

// takeLock makes the store this process's own until the file is closed, by its end at the latest. The file
// stays behind: removing it would let two processes lock two files of one name.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("lock store %s: %w", path, err)
		}
		holder := "another process"
		var buf [20]byte
		if n, _ := f.ReadAt(buf[:], 0); n > 0 {
			holder = "process " + strings.TrimSpace(string(buf[:n]))
		}
		return nil, tartarus.Errorf(tartarus.Conflict, "store %s is in use by %s", path, holder)
	}
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // only for the message above
	}
	return f, nil
}
