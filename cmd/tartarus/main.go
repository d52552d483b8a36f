// Command tartarus runs untrusted code in sandboxes: the server, its node agent and the command line are this one
// program. It re-executes itself as the sandbox process of the gVisor runtime, to shut QEMU in, and as the
// page-fault handler of a Firecracker machine, which is decided before anything else runs.
package main

import (
	"context"
	"os"

	"github.com/tartarus-sandbox/tartarus/internal/cli"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot/remote"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/qemu"
)

// version is set by the linker.
var version = "dev"

func main() {
	gvisor.Main()
	qemu.Main()
	pagefault.Main(map[string]pagefault.Opener{remote.Kind: remote.Open})
	os.Exit(cli.Main(context.Background(), version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
