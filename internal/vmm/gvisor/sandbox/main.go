// Command sandbox is a sandbox process and nothing else: the program that gvisor.Config.Program names where the
// calling program cannot be one itself, as tests with the race detector cannot.
package main

import (
	"os"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
)

func main() {
	gvisor.Main()
	os.Exit(2) // started by hand
}
