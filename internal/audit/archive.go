package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// What is in the archive already, in the folder of its chain: the name of the last segment, and the number of the last checkpoint. Both go there in
// their order, and a server that starts does not send everything again.
const (
	archivedFile            = "archived"
	archivedCheckpointsFile = "archived.checkpoints"
)

// checkpointsAtOnce bounds what one archived file holds: half a megabyte.
const checkpointsAtOnce = 1000

// archive sends a segment that has ended, unless it is there.
func (s *Sealer) archive(ctx context.Context, chain string, seg segment) error {
	if s.cfg.Archive == nil {
		return nil
	}
	mark := filepath.Join(s.dir, chain, archivedFile)
	if s.archived == "" {
		last, err := readMark(mark)
		if err != nil {
			return err
		}
		s.archived = last
	}
	name := filepath.Base(seg.path)
	if name <= s.archived {
		return nil
	}
	body, err := os.ReadFile(seg.path)
	if err != nil {
		return fmt.Errorf("read segment: %w", err)
	}
	if err := s.cfg.Archive(ctx, chain, name, body); err != nil {
		return fmt.Errorf("archive segment: %w", err)
	}
	if err := replaceFile(mark, []byte(name)); err != nil {
		return fmt.Errorf("note what is archived: %w", err)
	}
	s.archived = name
	return nil
}

// archiveCheckpoints sends the checkpoints that speak of nothing but archived records of this chain, so that what is in the archive can be verified
// by itself. all are the chain's segments.
func (s *Sealer) archiveCheckpoints(ctx context.Context, chain string, all []segment) error {
	if s.cfg.Archive == nil || s.archived == s.signedTo {
		return nil
	}
	end := uint64(0) // last archived record
	for _, next := range all[1:] {
		if segmentName(next.first) > s.archived {
			end = next.first - 1
			break
		}
	}
	mark := filepath.Join(s.dir, chain, archivedCheckpointsFile)
	text, err := readMark(mark)
	if err != nil {
		return err
	}
	done, _ := strconv.ParseUint(text, 10, 64) // none is 0, and so is what nobody can read: sent twice is better than not at all
	known, err := loadCheckpoints(s.dir)
	if err != nil {
		return err
	}
	var body []byte
	first, last, n := uint64(0), uint64(0), 0
	send := func() error {
		if n == 0 {
			return nil
		}
		if err := s.cfg.Archive(ctx, chain, "checkpoints-"+checkpointName(first)+segmentSuffix, body); err != nil {
			return fmt.Errorf("archive checkpoints: %w", err)
		}
		body, n = nil, 0
		return replaceFile(mark, []byte(strconv.FormatUint(last, 10)))
	}
	for _, c := range known {
		if span, ok := c.span(chain); ok && span.Seq > end {
			break
		}
		if c.N <= done {
			continue
		}
		if n == 0 {
			first = c.N
		}
		body, last, n = append(append(body, c.line...), '\n'), c.N, n+1
		if n == checkpointsAtOnce {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	s.signedTo = s.archived
	return nil
}

func readMark(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read what is archived: %w", err)
	}
	return string(text), nil
}
