package daemon

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// auditDir holds the audit log, in the state folder.
const auditDir = "audit"

// policiesFile keeps the policies that were in force last, in the state folder.
const policiesFile = "policies.json"

// law is what decides and what remembers.
type law struct {
	log    *audit.Log
	sealer *audit.Sealer
	themis *themis.Engine
}

// openLaw opens the audit log. A stack for one caller keeps none: it would be gone with the stack.
func (d *Daemon) openLaw(ctx context.Context, p *parts) (l law, err error) {
	l.themis, err = themis.NewEngine(themis.EngineConfig{Store: p.kept.policies, File: filepath.Join(p.state, policiesFile), Log: d.log})
	if err != nil {
		return l, err
	}
	// A shared store may be away; then what was in force last is, and without that nothing is allowed until it is back.
	if err := l.themis.Load(ctx); err != nil && !tartarus.Is(err, tartarus.Unavailable) {
		return l, err
	}
	if d.cfg.Ephemeral && !d.cfg.Recorded {
		return l, nil
	}
	age, sealEvery := time.Duration(0), time.Minute
	if d.cfg.Audit.ArchiveFor > 0 {
		age = d.cfg.Audit.ArchiveEvery
		sealEvery = min(sealEvery, age) // segments are archived behind each checkpoint
	}
	dir, store := filepath.Join(p.state, auditDir), p.kept.shelf
	l.log, err = audit.Open(audit.Config{Dir: dir, Chain: d.cfg.NodeName, SegmentAge: age, Log: d.log, Known: func(chain string) (audit.Head, error) {
		head, err := audit.KnownHead(ctx, dir, store, chain)
		if tartarus.Is(err, tartarus.Unavailable) {
			// A replica must start without the shared store. What it signed itself is in the folder as well.
			return audit.KnownHead(ctx, dir, nil, chain)
		}
		return head, err
	}})
	if err != nil {
		return l, err
	}
	p.onClose(closer(l.log))
	archive, err := d.archive(p)
	if err != nil {
		return l, err
	}
	l.sealer, err = audit.NewSealer(ctx, audit.SealerConfig{Log: l.log, Store: store, Every: sealEvery, Retention: d.cfg.Audit.Retention, Archive: archive, Slog: d.log})
	return l, err
}

// archive is where segments of the log go that have ended, nil when they go nowhere.
func (d *Daemon) archive(p *parts) (func(ctx context.Context, chain, file string, body []byte) error, error) {
	if d.cfg.Audit.ArchiveFor == 0 || d.cfg.Ephemeral {
		return nil, nil
	}
	bucket, err := s3.New(d.cfg.S3.config())
	if err != nil {
		return nil, err
	}
	p.onClose(func(context.Context) error { return bucket.Close() })
	return func(ctx context.Context, chain, file string, body []byte) error {
		locked, err := bucket.PutLocked(ctx, "audit/"+chain+"/"+file, body, time.Now().Add(d.cfg.Audit.ArchiveFor))
		if err == nil {
			d.log.Info("segment of the audit log archived", "chain", chain, "segment", file, "locked", locked)
		}
		return err
	}, nil
}

// run does the law's work in the background until ctx ends.
func (l law) run(ctx context.Context) error {
	if l.sealer == nil {
		return l.themis.Run(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.themis.Run(ctx) })
	g.Go(func() error { return l.sealer.Run(ctx) })
	return g.Wait()
}
