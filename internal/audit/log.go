package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Config says where a replica writes its chain.
type Config struct {
	// Dir holds the chains, a folder each, with the checkpoints beside them. It is made with mode 0700.
	Dir string
	// Chain is the replica's name: lower-case letters, digits, dots and dashes. No two replicas may share it.
	Chain string
	// SegmentBytes is how large a segment grows. Default 16 MiB: small enough to be read at once.
	SegmentBytes int64
	// SegmentAge is how long one is written to at most, so that what is archived is never long behind. 0 sets no bound.
	SegmentAge time.Duration
	// Known finds the newest signed head of a chain, none being the zero Head. May be nil.
	Known func(chain string) (Head, error)
	// Log is told what an operator must act on. Nil discards.
	Log *slog.Logger
	// Fail is asked before each write and sync, by name, and may fail it. For tests.
	Fail func(point string) error
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

const (
	// maxBatch bounds how many records share one sync: at 5 µs each, the first waits 3 ms for the last.
	maxBatch = 512
	// maxWaiting bounds the records that wait for the writer.
	maxWaiting = 4096
	// growBy is how much a segment is made longer at a time, so that a sync need not write the file's length as well.
	growBy = 1 << 20
	// noteTime is how long a record that nobody waits for may wait for room.
	noteTime = time.Second
)

var chainName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// Log is the chain of this replica. One goroutine writes; what arrives while a batch is synced goes into the next.
type Log struct {
	cfg     Config
	entries chan *entry
	closing chan struct{}
	done    chan struct{}
	once    sync.Once
	lock    *os.File

	dropped atomic.Int64 // notes that found no room since the last record
	head    atomic.Pointer[Head]

	// The writer's own.
	file   *os.File
	path   string
	at     int64 // end of the last record that is durable
	size   int64 // of the file, zeros included
	began  time.Time
	buffer []byte
	broken bool // what is behind at must be cut off before anything else is written
}

// Head is the last durable record of a chain.
type Head struct {
	Chain string    `json:"chain"`
	Seq   uint64    `json:"seq"`
	Hash  string    `json:"hash"`
	Time  time.Time `json:"time"`
}

type entry struct {
	record Record
	done   chan error // nil when nobody waits
}

// Open goes on with a replica's chain, or begins it. What a crash left of a record that was never acknowledged is cut off and recorded as
// such. When the folder is behind what Config.Known has seen of the chain, records are missing: a new chain is begun beside the damaged
// one, which stays as it is.
func Open(cfg Config) (*Log, error) {
	if cfg.SegmentBytes <= 0 {
		cfg.SegmentBytes = 16 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if !chainName.MatchString(cfg.Chain) {
		return nil, tartarus.Errorf(tartarus.Invalid, "audit chain %q must be lower-case letters, digits, dots and dashes", cfg.Chain)
	}
	l := &Log{cfg: cfg, entries: make(chan *entry, maxWaiting), closing: make(chan struct{}), done: make(chan struct{})}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create audit folder: %w", err)
	}
	first, err := l.recover()
	if err != nil {
		l.shut()
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	go l.run()
	for _, r := range first {
		if err := l.Append(context.Background(), r); err != nil { //nolint:contextcheck // the writer answers or ends
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Append writes a record and returns when it is durable. What the record speaks of must not begin before, and must not begin at all when
// there is an error.
func (l *Log) Append(ctx context.Context, r Record) error {
	e := &entry{record: r, done: make(chan error, 1)}
	select {
	case <-l.closing:
		return errClosed
	default:
	}
	select {
	case l.entries <- e:
	case <-l.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
		select {
		case err := <-e.done:
			return err
		default:
			return errClosed
		}
	}
}

// Note writes a record that nobody waits for: how an act ended, or that something was looked at. It is in its place in the chain like any
// other. When there is no room for long, it is dropped, and the next record says how many were.
func (l *Log) Note(r Record) {
	e := &entry{record: r}
	select {
	case l.entries <- e:
		return
	default:
	}
	timer := time.NewTimer(noteTime)
	defer timer.Stop()
	select {
	case l.entries <- e:
	case <-l.closing:
	case <-timer.C:
		l.dropped.Add(1)
	}
}

// Head is the last durable record.
func (l *Log) Head() Head { return *l.head.Load() }

// Chain is the name of the chain that is written.
func (l *Log) Chain() string { return l.cfg.Chain }

// Dir is the folder of all chains.
func (l *Log) Dir() string { return l.cfg.Dir }

// Close writes what waits and ends the log.
func (l *Log) Close() error {
	l.once.Do(func() { close(l.closing) })
	<-l.done
	return nil
}

var errClosed = tartarus.Errorf(tartarus.Unavailable, "the audit log is closed")

func (l *Log) run() {
	defer close(l.done)
	defer l.shut()
	var aged <-chan time.Time
	if l.cfg.SegmentAge > 0 {
		ticker := time.NewTicker(l.cfg.SegmentAge)
		defer ticker.Stop()
		aged = ticker.C
	}
	for {
		select {
		case e := <-l.entries:
			l.batch(e)
		case <-aged: // also when nothing is written any more
			if err := l.endOld(); err != nil {
				l.broken = true
				l.cfg.Log.Error("segment of the audit log not ended", "chain", l.cfg.Chain, "error", err)
			}
		case <-l.closing:
			for {
				select {
				case e := <-l.entries:
					l.batch(e)
				default:
					return
				}
			}
		}
	}
}

// batch writes first and whatever else waits already.
func (l *Log) batch(first *entry) {
	batch := append(make([]*entry, 0, 16), first)
gather:
	for len(batch) < maxBatch {
		select {
		case e := <-l.entries:
			batch = append(batch, e)
		default:
			break gather
		}
	}
	err := l.write(batch)
	if err != nil {
		l.broken = true
		l.cfg.Log.Error("audit records not written", "records", len(batch), "error", err)
		err = tartarus.Errorf(tartarus.Unavailable, "the audit log cannot be written, so nothing was done: %w", err)
	}
	for _, e := range batch {
		if e.done != nil {
			e.done <- err
		} else if err != nil {
			l.dropped.Add(1)
		}
	}
}

// write makes a batch durable, or leaves the chain as it was.
func (l *Log) write(batch []*entry) error {
	if l.broken {
		// Half of a batch may be on disk. Nobody was told of it.
		if err := l.cut(); err != nil {
			return err
		}
	}
	head, dropped := *l.head.Load(), l.dropped.Load()
	l.buffer = l.buffer[:0]
	for i, e := range batch {
		r := &e.record
		r.Seq, r.Chain, r.Time, r.Prev = head.Seq+1, l.cfg.Chain, l.cfg.Now().UTC(), head.Hash
		if i == 0 && dropped > 0 {
			r.Detail = with(r.Detail, "dropped", strconv.FormatInt(dropped, 10))
		}
		line, err := r.seal()
		if err != nil {
			return err
		}
		l.buffer = append(l.buffer, line...)
		head = Head{Chain: r.Chain, Seq: r.Seq, Hash: r.Hash, Time: r.Time}
	}
	if l.at > 0 && l.at+int64(len(l.buffer)) > l.cfg.SegmentBytes {
		if err := l.next(); err != nil {
			return err
		}
	}
	if err := l.endOld(); err != nil {
		return err
	}
	if err := l.put(l.buffer); err != nil {
		return err
	}
	l.head.Store(&head)
	l.dropped.Add(-dropped)
	return nil
}

func with(detail map[string]string, key, value string) map[string]string {
	out := make(map[string]string, len(detail)+1)
	for k, v := range detail {
		out[k] = v
	}
	out[key] = value
	return out
}

// put writes bytes behind the last record and syncs them.
func (l *Log) put(b []byte) error {
	if err := l.fail("write"); err != nil {
		return err
	}
	end := l.at + int64(len(b))
	if end > l.size {
		size := (end/growBy + 1) * growBy
		// Zeros are written rather than reserved where the file system cannot do it: only the sync costs more then.
		if err := unix.Fallocate(int(l.file.Fd()), 0, l.size, size-l.size); err == nil {
			l.size = size
			if err := l.file.Sync(); err != nil {
				return fmt.Errorf("grow segment: %w", err)
			}
		} else if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("grow segment: %w", err)
		}
	}
	if _, err := l.file.WriteAt(b, l.at); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	if err := l.fail("sync"); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		return fmt.Errorf("sync segment: %w", err)
	}
	l.at = end
	l.size = max(l.size, end)
	return nil
}

// cut takes off what follows the last durable record.
func (l *Log) cut() error {
	if err := l.fail("cut"); err != nil {
		return err
	}
	if err := l.file.Truncate(l.at); err != nil {
		return fmt.Errorf("cut segment: %w", err)
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("cut segment: %w", err)
	}
	l.size, l.broken = l.at, false
	return nil
}

// endOld ends a segment that was written to for long enough.
func (l *Log) endOld() error {
	if l.cfg.SegmentAge <= 0 || l.at == 0 || l.cfg.Now().Sub(l.began) < l.cfg.SegmentAge {
		return nil
	}
	return l.next()
}

// next ends the segment and begins another one.
func (l *Log) next() error {
	if err := l.cut(); err != nil {
		return err
	}
	old := l.file
	if err := l.begin(l.head.Load().Seq + 1); err != nil {
		return err
	}
	return old.Close()
}

// begin makes an empty segment and goes on in it.
func (l *Log) begin(first uint64) error {
	dir := filepath.Join(l.cfg.Dir, l.cfg.Chain)
	path := filepath.Join(dir, segmentName(first))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		// From an attempt to begin it that failed half way.
		f, err = os.OpenFile(path, os.O_RDWR|os.O_TRUNC, 0o600)
	}
	if err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.path, l.at, l.size, l.began = f, path, 0, 0, l.cfg.Now()
	return nil
}

func (l *Log) fail(point string) error {
	if l.cfg.Fail == nil {
		return nil
	}
	return l.cfg.Fail(point)
}

// shut gives back what the log holds.
func (l *Log) shut() {
	if l.file != nil {
		if !l.broken {
			_ = l.file.Truncate(l.at) // the zeros; a reader skips them as well
		}
		_ = l.file.Close()
	}
	if l.lock != nil {
		_ = l.lock.Close()
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}
