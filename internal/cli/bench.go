package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/internal/bench"
)

func benchCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure this machine against what the same work costs by hand",
		Long: `Measure a stack of its own in this process, interleaved with the least that the same work can cost: the runtime called by hand.

Quote ratios: absolute times drift with the load of the machine. A run in which anything failed ends with 1.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		e.benchVerb("create", "From the create request to the first command's output", 50, bench.Create),
		e.benchVerb("exec", "One echo through API and agent", 200, bench.Exec),
		e.benchVerb("density", "What idle sandboxes cost in memory and processor time", 100, bench.Density),
		e.benchVerb("resume", "From the resume request to the first command's output", 30, bench.Resume),
		e.benchVerb("fork", "How long a sandbox stands still for a fork, and how long n clones take", 8, bench.Fork),
		e.benchVerb("vmm", "A driver of virtual machines alone: restores one by one, and clones at once", 30, bench.VMM),
		e.benchControl(),
		e.benchVerb("judges", "What admission costs with 1,000 policies, and what the audit log costs creates", 40, bench.Judges),
		e.benchVerb("edge", "A download from a server inside a sandbox", 10, bench.Edge),
	)
	return cmd
}

func (e *Env) benchVerb(name, short string, n int, run func(context.Context, bench.Config) (*bench.Report, error)) *cobra.Command {
	cfg := bench.Config{N: n, Concurrency: 1, Template: "tiny"}
	cmd := &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("making sandboxes on this machine needs root: use sudo")
			}
			c, err := e.configure(nil)
			if err != nil {
				return err
			}
			cfg.Daemon, cfg.Version = c.Config, e.Version
			if !e.JSON {
				cfg.Progress = e.Stderr
			}
			tune() // as a server does
			rep, err := run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return e.printBench(rep)
		},
	}
	cmd.Flags().IntVarP(&cfg.N, "n", "n", n, "how many")
	cmd.Flags().StringVar(&cfg.Template, "template", "tiny", "template of the sandboxes")
	if name == "fork" {
		cmd.Flags().Int64Var(&cfg.MemoryMB, "memory", 64, "MB of memory that the sandbox has touched")
	}
	if name == "vmm" {
		cmd.Flags().StringVar(&cfg.Driver, "driver", "firecracker", "driver to measure")
		cmd.Flags().IntVar(&cfg.Clones, "clones", 50, "how many clones of one snapshot to make at once")
	}
	if name == "judges" {
		cmd.Flags().IntVar(&cfg.Policies, "policies", 1000, "how many policies are in force")
	}
	if name == "create" {
		cmd.Flags().IntVar(&cfg.Concurrency, "concurrency", 1, "how many at once")
		cmd.Flags().BoolVar(&cfg.Warm, "warm", false, "with a warm pool: sandboxes are claimed, not made")
	}
	return cmd
}

// benchControl measures the control plane, which needs neither root nor a runtime.
func (e *Env) benchControl() *cobra.Command {
	cfg := bench.ControlConfig{N: 20_000, Concurrency: 256, Store: "embedded"}
	driver, profile := "", ""
	cmd := &cobra.Command{
		Use: "control", Short: "Creates per second through the control plane, and its cost at a size, with fake machines", Args: cobra.NoArgs,
		Long: `Creates per second through HTTP, authentication, judges, audit, queue and registry to a node and back, all durable, beside the same requests to
a server that answers at once. With --nodes and --sandboxes: placement, a page of a listing and memory in a registry of that size.

The machines are fake, which must be said with --driver fake. With --store redis a redis-server of its own is started, which syncs to disk before it answers.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if driver != "fake" {
				return fmt.Errorf("this measures the control plane alone: say --driver fake")
			}
			if !e.JSON {
				cfg.Progress = e.Stderr
			}
			tune() // as a server does
			var rep *bench.Report
			err := profiled(profile, func() (err error) {
				rep, err = bench.Control(cmd.Context(), cfg)
				return err
			})
			if err != nil {
				return err
			}
			return e.printBench(rep)
		},
	}
	f := cmd.Flags()
	f.StringVar(&driver, "driver", "", "fake")
	f.IntVarP(&cfg.N, "n", "n", cfg.N, "how many creates, or placements")
	f.IntVar(&cfg.Concurrency, "concurrency", cfg.Concurrency, "how many at once")
	f.StringVar(&cfg.Store, "store", cfg.Store, "embedded or redis")
	f.IntVar(&cfg.Nodes, "nodes", 0, "register so many nodes, and measure size")
	f.IntVar(&cfg.Sandboxes, "sandboxes", 0, "register so many sandboxes")
	f.StringVar(&profile, "cpuprofile", "", "write where the processor time went to this file, for go tool pprof")
	return cmd
}

// profiled calls run, and writes where its processor time went to the file of that name, if there is one.
func profiled(name string, run func() error) error {
	if name == "" {
		return run()
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err = pprof.StartCPUProfile(f); err == nil {
		err = run()
		pprof.StopCPUProfile()
	}
	return errors.Join(err, f.Close())
}

func (e *Env) printBench(rep *bench.Report) error {
	var err error
	if e.JSON {
		err = e.printLine(rep)
	} else {
		_, err = fmt.Fprint(e.Stdout, rep.Text())
	}
	if err == nil && rep.Failed > 0 {
		err = exit(1)
	}
	return err
}
