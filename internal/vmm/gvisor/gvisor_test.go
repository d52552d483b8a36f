package gvisor_test

import (
	"os"
	"runtime/debug"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

// programEnv names the sandbox program to the manager processes that the suite starts.
const programEnv = "TARTARUS_TEST_PROGRAM"

func factory(program string) vmmtest.Factory {
	return vmmtest.Factory{
		New: func(dir string) (vmm.Driver, error) {
			return gvisor.New(gvisor.Config{Dir: dir, Program: program})
		},
		RootFS: vmmtest.Image,
	}
}

func TestMain(m *testing.M) {
	gvisor.Main()
	vmmtest.Manager(factory(os.Getenv(programEnv)))
	code := m.Run()
	vmmtest.Clean()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// program is what sandboxes are started from: the test binary itself where it is static.
func program(t testing.TB) string {
	info, ok := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if ok && s.Key == "CGO_ENABLED" && s.Value == "0" {
			return ""
		}
	}
	return vmmtest.BuildSandbox(t)
}

func TestConformance(t *testing.T) {
	p := program(t)
	t.Setenv(programEnv, p)
	vmmtest.Run(t, factory(p))
}
