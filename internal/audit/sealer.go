package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/shelf"
)

// SealerConfig says how a chain is signed.
type SealerConfig struct {
	Log   *Log
	Store shelf.Store
	// HeadEvery is how often a chain that grew is signed: what a crash or a thief of the disk could take away unnoticed. Default 1 s.
	HeadEvery time.Duration
	// Every is how often a checkpoint over all chains is made, when any grew. Default 1 min.
	Every time.Duration
	// Retention is how long segments are kept after their last record. 0 keeps all.
	Retention time.Duration
	// Archive is given each segment that has ended, before retention may remove it. Nil archives nothing.
	Archive func(ctx context.Context, chain, file string, body []byte) error
	Slog    *slog.Logger
	Now     func() time.Time
}

// Sealer signs the chain of its replica and, with the other replicas by turns, the checkpoints over all.
type Sealer struct {
	cfg SealerConfig
	dir string

	mu        sync.Mutex // one of head, checkpoint, rotation, retention and verification at a time
	signer    *signer
	last      *Checkpoint // newest that is known; nil before the first
	published uint64
	archived  string // name of the last segment that is archived; empty before it is read
	signedTo  string // the same when checkpoints were archived last
	complaint string // what was logged last, so that a lasting trouble is logged once
}

// NewSealer reads the signing key, makes one at the first start, and finishes a rotation that was interrupted.
func NewSealer(ctx context.Context, cfg SealerConfig) (*Sealer, error) {
	if cfg.Log == nil || cfg.Store == nil {
		return nil, errors.New("audit: log and store are needed")
	}
	if cfg.HeadEvery <= 0 {
		cfg.HeadEvery = time.Second
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Minute
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Sealer{cfg: cfg, dir: cfg.Log.Dir()}
	var err error
	if s.signer, err = loadSigner(filepath.Join(s.dir, keyFile), true); err != nil {
		return nil, err
	}
	local, err := loadCheckpoints(s.dir)
	if err != nil {
		return nil, err
	}
	if len(local) > 0 {
		s.last = &local[len(local)-1]
	}
	return s, s.finishRotation()
}

// Run signs until ctx ends, and once more then.
func (s *Sealer) Run(ctx context.Context) error {
	head, all := time.NewTicker(s.cfg.HeadEvery), time.NewTicker(s.cfg.Every)
	defer head.Stop()
	defer all.Stop()
	s.complain(s.Seal(ctx)) // what an earlier process left unsigned
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			s.complain(s.Seal(last))
			return nil
		case <-head.C:
			s.complain(s.publish(ctx))
		case <-all.C:
			s.complain(s.Seal(ctx))
			s.complain(s.retain(ctx))
		}
	}
}

func (s *Sealer) complain(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := err.Error(); text != s.complaint {
		s.complaint = text
		s.cfg.Slog.Error("audit log not signed", "chain", s.cfg.Log.Chain(), "error", err)
	}
}

// publish signs the head of this replica's chain.
func (s *Sealer) publish(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publishHead(ctx)
}

func (s *Sealer) publishHead(ctx context.Context) error {
	head := s.cfg.Log.Head()
	if head.Seq == s.published || head.Seq == 0 {
		return nil
	}
	from, prev := uint64(1), zeroHash
	if s.last != nil {
		if span, ok := s.last.span(head.Chain); ok {
			from, prev = span.From, span.Prev
		}
	}
	h := signedHead{Span: Span{Chain: head.Chain, From: from, Prev: prev, Seq: head.Seq, Hash: head.Hash}, Time: s.cfg.Now().UTC(), Signer: s.signer.public}
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode head: %w", err)
	}
	line := s.signer.sign(body)
	if err := replaceFile(filepath.Join(s.dir, head.Chain, headFile), line); err != nil {
		return fmt.Errorf("write head: %w", err)
	}
	if err := upsert(ctx, s.cfg.Store, headShelf, head.Chain, line); err != nil {
		return fmt.Errorf("publish head: %w", err)
	}
	s.published = head.Seq
	return nil
}

// replaceFile is writeFile without the syncs: after a crash of the host the store's copy counts.
func replaceFile(path string, body []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// upsert replaces a record that only this replica writes.
func upsert(ctx context.Context, store shelf.Store, shelfName, name string, body []byte) error {
	rec, err := store.Get(ctx, shelfName, name)
	if err != nil && !tartarus.Is(err, tartarus.NotFound) {
		return err
	}
	_, err = store.Put(ctx, shelfName, name, body, rec.Revision)
	return err
}

// Seal signs the head, learns of the checkpoints of other replicas, and makes one when chains have grown.
func (s *Sealer) Seal(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seal(ctx, func(*Checkpoint) bool { return false })
}

// seal makes a checkpoint when a chain has grown or change, which may alter the new one, says so.
func (s *Sealer) seal(ctx context.Context, change func(*Checkpoint) bool) error {
	if err := s.publishHead(ctx); err != nil {
		return err
	}
	const tries = 8 // each lost one means that another replica made a checkpoint
	for range tries {
		if err := s.catchUp(ctx); err != nil {
			return err
		}
		next, grown, err := s.draft(ctx)
		if err != nil {
			return err
		}
		if changed := change(&next); !changed && !grown {
			return nil
		}
		if s.last != nil {
			if _, ok := trusted(s.last.Trust, s.signer.public.ID); !ok {
				return tartarus.Errorf(tartarus.Conflict,
					"the signing key %s of this replica is not trusted yet: an admin may trust it with `tartarus audit trust %s` at a replica that is", s.signer.public.ID, s.signer.public.ID)
			}
		}
		if err := next.seal(s.signer); err != nil {
			return err
		}
		_, err = s.cfg.Store.Put(ctx, checkpointShelf, checkpointName(next.N), next.line, 0)
		if tartarus.Is(err, tartarus.Conflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("store checkpoint: %w", err)
		}
		s.last = &next
		return saveCheckpoints(s.dir, next)
	}
	return tartarus.Errorf(tartarus.Unavailable, "other replicas made %d checkpoints before this one", tries)
}

// draft is the next checkpoint, unsigned, and whether it says anything new.
func (s *Sealer) draft(ctx context.Context) (next Checkpoint, grown bool, err error) {
	all, err := heads(ctx, s.dir, s.cfg.Store)
	if err != nil {
		return next, false, err
	}
	next = Checkpoint{N: 1, Time: s.cfg.Now().UTC(), Trust: []PublicKey{s.signer.public}, Prev: zeroHash}
	if s.last != nil {
		next.N, next.Trust, next.Prev, next.Chains = s.last.N+1, slices.Clone(s.last.Trust), s.last.hash(), slices.Clone(s.last.Chains)
	}
	for chain, h := range all {
		if key, ok := trusted(next.Trust, h.Signer.ID); !ok || key != h.Signer {
			continue
		}
		i := slices.IndexFunc(next.Chains, func(c Span) bool { return c.Chain == chain })
		switch {
		case i < 0:
			next.Chains, grown = append(next.Chains, h.Span), true
		case h.Seq > next.Chains[i].Seq:
			next.Chains[i].Seq, next.Chains[i].Hash, grown = h.Seq, h.Hash, true
		}
	}
	slices.SortFunc(next.Chains, func(a, b Span) int { return strings.Compare(a.Chain, b.Chain) })
	return next, grown, nil
}

// catchUp copies checkpoints that the folder lacks from the store, and those that the store has lost from the folder.
func (s *Sealer) catchUp(ctx context.Context) error {
	from := uint64(1)
	if s.last != nil {
		from = s.last.N
	}
	found, err := storedCheckpoints(ctx, s.cfg.Store, from)
	if err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	if s.last != nil {
		if len(found) == 0 {
			return s.restore(ctx)
		}
		if found[0].hash() != s.last.hash() {
			return tartarus.Errorf(tartarus.Corrupt, "checkpoint %d of the store is not the one that this folder has: see `tartarus audit verify`", s.last.N)
		}
		found = found[1:]
	}
	for i := range found {
		if err := found[i].follows(s.last); err != nil {
			return tartarus.Errorf(tartarus.Corrupt, "the store's %w", err)
		}
		if err := saveCheckpoints(s.dir, found[i]); err != nil {
			return err
		}
		s.last = &found[i]
	}
	return nil
}

// restore gives the store back what it has lost.
func (s *Sealer) restore(ctx context.Context) error {
	local, err := loadCheckpoints(s.dir)
	if err != nil {
		return err
	}
	for _, c := range local {
		if _, err := s.cfg.Store.Put(ctx, checkpointShelf, checkpointName(c.N), c.line, 0); err != nil && !tartarus.Is(err, tartarus.Conflict) {
			return fmt.Errorf("store checkpoint: %w", err)
		}
	}
	return nil
}

// Keys are the keys whose signatures count now, and the one of this replica.
func (s *Sealer) Keys() (trust []PublicKey, own PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		trust = slices.Clone(s.last.Trust)
	}
	return trust, s.signer.public
}

// Trust makes the key that another replica signs its head with count from the next checkpoint on.
func (s *Sealer) Trust(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := heads(ctx, s.dir, s.cfg.Store)
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.Signer.ID == id {
			return s.seal(ctx, func(c *Checkpoint) bool {
				if _, there := trusted(c.Trust, id); there {
					return false
				}
				c.Trust = append(c.Trust, h.Signer)
				return true
			})
		}
	}
	return tartarus.Errorf(tartarus.NotFound, "no replica signs with a key %.40q", id)
}

// Distrust ends the trust in a key: of a replica that is gone, or whose key was seen by others.
func (s *Sealer) Distrust(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == s.signer.public.ID {
		return tartarus.Errorf(tartarus.Conflict, "key %s is the one that this replica signs with: rotate it instead", id)
	}
	found := false
	err := s.seal(ctx, func(c *Checkpoint) bool {
		n := len(c.Trust)
		c.Trust = slices.DeleteFunc(c.Trust, func(k PublicKey) bool { return k.ID == id })
		found = found || len(c.Trust) < n
		return len(c.Trust) < n
	})
	if err == nil && !found {
		return tartarus.Errorf(tartarus.NotFound, "no key %.40q is trusted", id)
	}
	return err
}

// Rotate replaces the key of this replica. The old one hands over to the new one in a checkpoint before it is destroyed.
func (s *Sealer) Rotate(ctx context.Context) (PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := newSigner(filepath.Join(s.dir, nextKeyFile))
	if err != nil {
		return PublicKey{}, err
	}
	old := s.signer.public
	if err := s.seal(ctx, func(c *Checkpoint) bool { c.Trust = append(c.Trust, next.public); return true }); err != nil {
		return PublicKey{}, errors.Join(err, os.Remove(filepath.Join(s.dir, nextKeyFile)))
	}
	if err := s.finishRotation(); err != nil {
		return PublicKey{}, err
	}
	s.published = 0 // the head is signed anew
	return next.public, s.seal(ctx, func(c *Checkpoint) bool {
		c.Trust = slices.DeleteFunc(c.Trust, func(k PublicKey) bool { return k == old })
		return true
	})
}

// finishRotation takes up a new key that a checkpoint trusts already, and forgets one that none does.
func (s *Sealer) finishRotation() error {
	path := filepath.Join(s.dir, nextKeyFile)
	next, err := loadSigner(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.last != nil {
		if _, ok := trusted(s.last.Trust, next.public.ID); ok {
			if err := os.Rename(path, filepath.Join(s.dir, keyFile)); err != nil {
				return fmt.Errorf("take up the new signing key: %w", err)
			}
			s.signer = next
			return syncDir(s.dir)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("forget the new signing key: %w", err)
	}
	return nil
}
