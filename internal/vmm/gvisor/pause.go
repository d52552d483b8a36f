package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gvisor.dev/gvisor/runsc/boot"
)

// A sandbox counts pauses and dies of a resume too many, and it cannot be asked whether it is paused. So the
// machine's folder says what was done, for the process that adopts it.
const (
	pauseName = "paused"

	running = ""        // no file
	pausing = "pausing" // a call to pause or to resume is under way
	paused  = "paused"
)

// pauseTimeout bounds a pause or resume once it has begun. It is not given up when the caller goes: whether it
// took place must be known. Measured: 1 ms.
const pauseTimeout = 20 * time.Second

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.setPaused(ctx, true); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.id, err)
	}
	return nil
}

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.setPaused(ctx, false); err != nil {
		return fmt.Errorf("resume machine %s: %w", m.id, err)
	}
	return nil
}

func (m *machine) setPaused(ctx context.Context, want bool) error {
	release, err := m.life.Take(ctx)
	if err != nil {
		return err
	}
	defer release()
	if m.paused == want {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTimeout)
	defer cancel()
	if err := m.mark(pausing); err != nil {
		return err
	}
	method, after := boot.ContMgrPause, paused
	if !want {
		method, after = boot.ContMgrResume, running
	}
	if err := call(ctx, m.dir, method, nil, nil); err != nil {
		return m.ended(err)
	}
	m.paused = want
	return m.mark(after)
}

// mark notes in the machine's folder whether it is paused.
func (m *machine) mark(state string) error {
	path := filepath.Join(m.dir, pauseName)
	var err error
	if state == running {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		err = os.WriteFile(path, []byte(state), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note pause: %w", err)
	}
	return nil
}

// recallPause finds out whether an adopted machine is paused. Where the earlier process died within a call, the
// machine is paused once more, so that the next Resume is never one too many.
func (m *machine) recallPause(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(m.dir, pauseName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recall pause: %w", err)
	}
	if string(b) == pausing {
		if err := call(ctx, m.dir, boot.ContMgrPause, nil, nil); err != nil {
			return fmt.Errorf("recall pause: %w", err)
		}
		if err := m.mark(paused); err != nil {
			return err
		}
	}
	m.paused = true
	return nil
}
