package audit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// retain archives segments that have ended and removes those that are too old. A checkpoint says where the chain begins from then on,
// before anything is removed: what is left stays verifiable, and what was removed by anybody else is missed.
func (s *Sealer) retain(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	chain := s.cfg.Log.Chain()
	all, err := segments(filepath.Join(s.dir, chain))
	if err != nil || len(all) < 2 {
		return err
	}
	var old []segment
	var last Record
	young := s.cfg.Retention <= 0          // so are all that follow one that is
	for _, seg := range all[:len(all)-1] { // the last one is written to
		if err := s.archive(ctx, chain, seg); err != nil {
			return err
		}
		if young {
			continue
		}
		end, err := lastRecord(seg.path)
		if err != nil {
			return err
		}
		if young = s.cfg.Now().Sub(end.Time) < s.cfg.Retention; young {
			continue
		}
		old, last = append(old, seg), end
	}
	if err := s.archiveCheckpoints(ctx, chain, all); err != nil {
		return err
	}
	if len(old) == 0 {
		return nil
	}
	if err := s.seal(ctx, func(c *Checkpoint) bool {
		for i := range c.Chains {
			if c.Chains[i].Chain == chain && c.Chains[i].Seq >= last.Seq {
				c.Chains[i].From, c.Chains[i].Prev = last.Seq+1, last.Hash
			}
		}
		return true
	}); err != nil {
		return err
	}
	if span, ok := s.last.span(chain); !ok || span.From != last.Seq+1 {
		return nil // the chain's end is not signed that far
	}
	for _, seg := range old {
		if err := os.Remove(seg.path); err != nil {
			return fmt.Errorf("remove segment: %w", err)
		}
	}
	s.cfg.Log.Note(Record{
		Action: "audit.retention", Stage: Attempt, Verdict: Allow, Actor: Actor{Kind: BySystem}, Object: Object{Kind: "audit", ID: chain},
		Detail: map[string]string{"upTo": fmt.Sprint(last.Seq), "segments": fmt.Sprint(len(old))},
	})
	return nil
}

// lastRecord reads the end of a segment that is not written to any more.
func lastRecord(path string) (Record, error) {
	lines, _, err := content(path)
	if err != nil {
		return Record{}, err
	}
	if len(lines) == 0 {
		return Record{}, fmt.Errorf("segment %s is empty", path)
	}
	r, err := openLine(lines[len(lines)-1])
	if err != nil {
		return r, fmt.Errorf("last record of segment %s: %w", path, err)
	}
	return r, nil
}
