package firecracker_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/image/embedded"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// guestEnv tells the processes that the suite starts which guest it is run with.
const guestEnv = "TARTARUS_TEST_FIRECRACKER_GUEST"

// linuxFactory makes drivers as production has them: Firecracker under its jailer with a Linux guest.
func linuxFactory() vmmtest.Factory {
	return vmmtest.Factory{
		New: func(dir string) (vmm.Driver, error) {
			c, err := config(dir)
			if err != nil {
				return nil, err
			}
			here, err := filepath.Abs("../../../data/firecracker")
			if err != nil {
				return nil, err
			}
			c.Guest = firecracker.Guest{Linux: &linux.Kernel{Places: []string{here}, Cache: filepath.Join(dir, "kernels"), Agent: embedded.Guest}}
			return firecracker.New(c)
		},
		RootFS: vmmtest.Image,
		TAP:    true, ByNetwork: true, OwnKernel: true,
	}
}

// used is the factory of the guest that this process is about.
func used() vmmtest.Factory {
	if os.Getenv(guestEnv) == "linux" {
		return linuxFactory()
	}
	return factory()
}

// TestLinuxGuest holds every row with the pairing that production runs. It needs a KVM that can run Linux: `make test-kvm`.
func TestLinuxGuest(t *testing.T) {
	need(t)
	t.Setenv(guestEnv, "linux")
	vmmtest.Run(t, linuxFactory())
}
