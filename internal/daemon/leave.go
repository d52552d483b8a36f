package daemon

import (
	"context"
	"runtime"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/thanatos"
)

// leaveTime bounds pausing all sandboxes before the process ends. What is not on the disk by then runs on, and is adopted by the next server.
const leaveTime = 5 * time.Minute

// pauseAll writes every sandbox to disk, as many at once as there are processors, because that is what it takes.
func (d *Daemon) pauseAll(ctx context.Context, p *parts) {
	began := time.Now()
	got := p.agent.Drain(context.WithoutCancel(ctx), thanatos.Drain{
		AtOnce: runtime.NumCPU(), Until: began.Add(leaveTime),
		Progress: func(now thanatos.Progress) {
			if now.Err != nil {
				d.log.Warn("sandbox not paused, it runs on", "sandbox", now.ID, "error", now.Err)
				return
			}
			d.log.Info("sandbox paused before the server ends", "sandbox", now.ID, "done", now.Done, "of", now.Total)
		},
	}, true, "the server was stopped")
	d.log.Info("sandboxes paused", "paused", got.Done, "running_on", got.Failed, "took", time.Since(began).Round(time.Millisecond))
}
