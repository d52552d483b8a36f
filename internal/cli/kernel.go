package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/internal/kernel"
)

func kernelCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Look at kernels for virtual machines",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(kernelCheckCommand(e), kernelExtractCommand(e))
	return cmd
}

func kernelCheckCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Find out whether a kernel can run sandboxes as virtual machines",
		Long: `Find out whether a kernel can run sandboxes as virtual machines, from its configuration.

FILE is a vmlinux, or a vmlinuz as distributions ship it. Its configuration is read from the kernel itself where that
carries it (CONFIG_IKCONFIG), else from config-VERSION or config beside it. A module counts only where the kernel's
modules lie beside it, in modules/VERSION or lib/modules/VERSION.

The exit code is 0 only where nothing that is required is missing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := kernel.Check(args[0])
			if err != nil {
				return err
			}
			if e.JSON {
				err = e.printJSON(r)
			} else {
				err = e.printKernel(r)
			}
			if err == nil && !r.OK {
				err = exit(1)
			}
			return err
		},
	}
}

func (e *Env) printKernel(r kernel.Report) error {
	fmt.Fprintf(e.Stdout, "Linux %s, configuration from %s\n\n", r.Version, r.Config)
	t := table{head: []string{"", "OPTION", "IS", "WHAT FOR"}}
	missing := 0
	for _, f := range r.Findings {
		status := cell{"ok", green}
		switch {
		case f.OK:
		case f.Required:
			status = cell{"missing", red}
			missing++
		default:
			status = cell{"optional", yellow}
		}
		why := f.Why
		if f.Value == "m" && !f.OK && r.Modules == "" {
			why += " (a module, and there are no modules of " + r.Version + " beside the kernel)"
		}
		t.rows = append(t.rows, []cell{status, {f.Option, plain}, {f.Value, plain}, {why, plain}})
	}
	if err := t.print(e.Stdout, e.coloured(e.Stdout)); err != nil {
		return err
	}
	verdict := "this kernel can run sandboxes"
	if missing > 0 {
		verdict = fmt.Sprintf("this kernel cannot run sandboxes: %d required options are missing", missing)
	}
	_, err := fmt.Fprintln(e.Stdout, "\n"+verdict)
	return err
}

func kernelExtractCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "extract FILE OUT",
		Short: "Write the uncompressed kernel in a distribution's vmlinuz to a file",
		Long: `Write the uncompressed ELF kernel that is inside a vmlinuz to OUT. Firecracker boots nothing else on x86-64;
QEMU boots it a second faster where it emulates the processor.`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := kernel.OpenFile(args[0])
			if err != nil {
				return err
			}
			n, err := k.WriteImage(args[1])
			if err != nil {
				return err
			}
			if e.JSON {
				return e.printJSON(map[string]any{"version": k.Version, "file": args[1], "sizeBytes": n})
			}
			_, err = fmt.Fprintf(e.Stdout, "Linux %s, %d bytes\n", k.Version, n)
			return err
		},
	}
}
