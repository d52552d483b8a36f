package vmmtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/erofs/go-erofs"
)

// build is a program built once for the whole test binary.
type build struct {
	once sync.Once
	path string
	err  error
	out  []byte
}

func (b *build) get(t testing.TB, pkg string) string {
	t.Helper()
	b.once.Do(func() {
		dir, err := os.MkdirTemp("", "vmmtest")
		if err != nil {
			b.err = err
			return
		}
		// Programs are read by a sandbox, which is nobody.
		if b.err = os.Chmod(dir, 0o755); b.err != nil {
			return
		}
		b.path = filepath.Join(dir, filepath.Base(pkg))
		cmd := exec.Command("go", "build", "-o", b.path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		b.out, b.err = cmd.CombinedOutput()
	})
	if b.err != nil {
		t.Skipf("build %s: %v %s", pkg, b.err, b.out)
	}
	return b.path
}

var guestProgram, sandboxProgram build

// BuildGuest builds the program that an image for the suite must hold at GuestPath.
func BuildGuest(t testing.TB) string {
	return guestProgram.get(t, "github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest/guest")
}

// BuildSandbox builds a program for gvisor.Config.Program: test binaries that are built with the race detector
// cannot be sandboxes themselves.
func BuildSandbox(t testing.TB) string {
	return sandboxProgram.get(t, "github.com/tartarus-sandbox/tartarus/internal/vmm/gvisor/sandbox")
}

// Clean removes what was built. TestMain calls it last.
func Clean() {
	for _, b := range []*build{&guestProgram, &sandboxProgram} {
		if b.path != "" {
			_ = os.RemoveAll(filepath.Dir(b.path))
		}
	}
}

// Image makes an EROFS image with the guest program and nothing else.
func Image(t testing.TB) string {
	t.Helper()
	program, err := os.ReadFile(BuildGuest(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := erofs.Create(f)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, mode := range map[string]fs.FileMode{"/bin": 0o755, "/tmp": 0o777 | fs.ModeSticky, "/proc": 0o755, "/dev": 0o755, "/sys": 0o755} {
		check(w.Mkdir(dir, mode))
	}
	// The second is one that always runs as root, as sudo does.
	for name, mode := range map[string]fs.FileMode{GuestPath: 0o755, GuestPath + "-root": 0o755 | fs.ModeSetuid} {
		g, err := w.Create(name)
		check(err)
		_, err = g.Write(program)
		check(err)
		check(g.Chmod(mode))
		check(g.Close())
	}
	check(w.Close())
	return path
}
