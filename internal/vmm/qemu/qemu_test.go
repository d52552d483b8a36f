package qemu_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/image/embedded"
	"github.com/tartarus-sandbox/tartarus/internal/kvm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/qemu"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// cacheEnv tells the manager processes that the suite starts where kernels are prepared: once for all.
const cacheEnv = "TARTARUS_TEST_QEMU_CACHE"

// kernels are where ./dev-setup.sh puts a kernel, or where the environment says.
func kernels() []string {
	if k := os.Getenv("TARTARUS_KERNEL"); k != "" {
		return []string{k}
	}
	here, err := os.Getwd()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(here, "../../../data/firecracker")}
}

func config(dir string) qemu.Config {
	return qemu.Config{
		Dir: dir, Cache: os.Getenv(cacheEnv), Kernel: &linux.Kernel{Places: kernels(), Cache: os.Getenv(cacheEnv), Agent: embedded.Guest},
		KVM: func(context.Context) kvm.Verdict { return kvm.Verdict{Reason: "this test emulates"} },
	}
}

func factory() vmmtest.Factory {
	return vmmtest.Factory{
		New:    func(dir string) (vmm.Driver, error) { return qemu.New(config(dir)) },
		RootFS: vmmtest.Image,
		TAP:    true, ByNetwork: true, OwnKernel: true, Patience: 5,
	}
}

func TestMain(m *testing.M) {
	qemu.Main()
	vmmtest.Manager(factory())
	cache, err := os.MkdirTemp("", "tartarus-qemu")
	if err != nil {
		panic(err)
	}
	os.Setenv(cacheEnv, cache)
	code := m.Run()
	os.RemoveAll(cache)
	vmmtest.Clean()
	os.Exit(code)
}

func TestConformance(t *testing.T) { vmmtest.Run(t, factory()) }
