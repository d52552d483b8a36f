package sqlite

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Enter implements olympus.Entrance.
func (db *DB) Enter(ctx context.Context, j acheron.Job, sb tartarus.Sandbox) (acheron.Job, error) {
	if err := j.Validate(); err != nil {
		return acheron.Job{}, err
	}
	if err := hades.CheckSandbox(sb); err != nil {
		return acheron.Job{}, err
	}
	now, err := newFiled(sb)
	if err != nil {
		return acheron.Job{}, err
	}
	sb.Revision = 1
	body, err := json.Marshal(sb)
	if err != nil {
		return acheron.Job{}, fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	var stored acheron.Job
	err = db.write(ctx, func(t *txn) (err error) {
		var fresh bool
		if stored, fresh, err = t.enqueue(j); err == nil && fresh {
			_, err = t.addSandbox(now, sb.Revision, body)
		}
		return err
	})
	if err != nil {
		return acheron.Job{}, err // ctx may have ended while the committer still writes stored
	}
	return stored, nil
}

// Arrive implements hecatoncheir.Arrivals.
func (db *DB) Arrive(ctx context.Context, l acheron.Lease, sb tartarus.Sandbox, record []byte) (revision int64, err error) {
	if err := hades.CheckSandbox(sb); err != nil {
		return 0, err
	}
	expect := sb.Revision
	now, err := newFiled(sb)
	if err != nil {
		return 0, err
	}
	sb.Revision++
	body, err := json.Marshal(sb)
	if err != nil {
		return 0, fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	if err := acheron.CheckResult(l.Job.ID, body); err != nil {
		return 0, err
	}
	err = db.write(ctx, func(t *txn) error {
		e, err := t.line.held(t, l)
		if err != nil {
			return err
		}
		old, err := t.filedSandbox(sb.ID)
		if err != nil {
			return err
		}
		entry := body
		if old.revision != expect { // somebody else wrote, or the entry is not there yet; the node's word counts
			sb.Revision = old.revision + 1
			if entry, err = json.Marshal(sb); err != nil {
				return err
			}
		}
		if old.revision == 0 {
			err = t.insertSandbox(now, sb.Revision, entry)
		} else {
			err = t.updateSandbox(now, sb.Revision, entry)
		}
		if err == nil {
			err = t.putJournal(sb.ID, record)
		}
		if err != nil {
			return err
		}
		t.line.end(t, e, acheron.Done, "", entry)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("sandbox %s arrives: %w", sb.ID, err)
	}
	return sb.Revision, nil
}
