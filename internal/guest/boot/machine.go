package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/vmboot"
)

// machine is the life of a virtual machine whose first process this is. It ends with the machine: it never returns but in an
// initramfs that cannot restart it.
func machine(ctx context.Context) error {
	if err := settle(); err != nil {
		return err
	}
	g, err := vmboot.Start()
	if err != nil {
		return err
	}
	log := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go g.Listen(ctx, slog.New(log))
	if len(g.Machine.Args) > 0 {
		what, err := g.Supervise()
		if err != nil {
			g.Fail(err)
			return err
		}
		g.End(what)
		return errors.New(what)
	}
	c := guest.Default()
	c.Log, c.Reap, c.Group = log, true, g.Group
	agent, err := guest.New(c)
	if err != nil {
		g.Fail(err)
		return err
	}
	g.Ready()
	if err = agent.Run(ctx); err != nil {
		g.Fail(err)
		return err
	}
	g.End("the agent was told to stop")
	return nil
}
