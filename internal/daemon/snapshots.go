package daemon

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/dir"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// openSnapshots opens the snapshots of this node, and where copies of them go.
func (d *Daemon) openSnapshots(p *parts, drivers []vmm.Driver) (*snapshot.Store, error) {
	blobs, err := d.openBlobs(p)
	if err != nil {
		return nil, err
	}
	return snapshot.New(snapshot.Config{
		Dir: filepath.Join(p.state, "snapshots"), Node: d.cfg.NodeName, Blobs: blobs, MaxBytes: d.cfg.Snapshots.MaxMB << 20, Log: d.log,
		Merge: hecatoncheir.Merging(drivers),
	})
}

// openBlobs chooses the object store: a bucket, else a folder, else none.
func (d *Daemon) openBlobs(p *parts) (snapshot.Blobs, error) {
	switch {
	case d.cfg.Ephemeral: // nothing outlives it
		return nil, nil
	case d.cfg.S3.Bucket != "":
		store, err := s3.New(d.cfg.S3.config())
		if err != nil {
			return nil, err
		}
		p.onClose(func(context.Context) error { return store.Close() })
		return store, nil
	case d.cfg.Snapshots.CopyDir != "":
		return dir.New(d.cfg.Snapshots.CopyDir)
	}
	return nil, nil
}

func (c S3) config() s3.Config {
	return s3.Config{
		Endpoint: c.Endpoint, Bucket: c.Bucket, Region: c.Region, AccessKey: c.AccessKey, SecretKey: c.SecretKey, PathStyle: c.PathStyle, Prefix: c.Prefix,
	}
}

func (c S3) validate() (errs []error) {
	if c.Bucket == "" {
		if c.Endpoint != "" {
			errs = append(errs, tartarus.Errorf(tartarus.Invalid, "s3.endpoint is set and s3.bucket (TARTARUS_S3_BUCKET) is not"))
		}
		return errs
	}
	if err := c.config().Validate(); err != nil {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "s3: %w", err))
	}
	if c.Prefix != "" && (!strings.HasSuffix(c.Prefix, "/") || strings.HasPrefix(c.Prefix, "/")) {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "s3.prefix %q must end with a slash, and not begin with one", c.Prefix))
	}
	return errs
}

func (s Snapshots) validate() (errs []error) {
	if s.MaxMB < 0 || s.MaxMB > 1<<40 {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "snapshots.maxMB %d must be between 0 and 2^40", s.MaxMB))
	}
	if s.CopyDir != "" && !filepath.IsAbs(s.CopyDir) {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "snapshots.copyDir %q must be an absolute path", s.CopyDir))
	}
	return errs
}
