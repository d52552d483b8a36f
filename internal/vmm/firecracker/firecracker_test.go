package firecracker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/firecracker"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/payload"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	pagefault.Main(map[string]pagefault.Opener{"slow": openSlow})
	beElsewhere()
	vmmtest.Manager(used())
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

// openSlow opens a file as if it were far away.
func openSlow(spec json.RawMessage) (pagefault.Source, error) {
	var path string
	if err := json.Unmarshal(spec, &path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return slowFile{f}, nil
}

type slowFile struct{ *os.File }

func (s slowFile) ReadAt(b []byte, at int64) (int, error) {
	time.Sleep(time.Millisecond)
	return s.File.ReadAt(b, at)
}

// binaries is the folder with firecracker and jailer, or why there is none.
var binaries = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("../../../test/firecracker.sh").Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
})

// need skips a test where the programs cannot be had.
func need(t testing.TB) {
	t.Helper()
	if _, err := binaries(); err != nil {
		t.Skipf("test/firecracker.sh: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("the jailer needs root")
	}
}

// config is that of a driver whose guest is the payload.
func config(dir string) (firecracker.Config, error) {
	bin, err := binaries()
	if err != nil {
		return firecracker.Config{}, err
	}
	kernel := filepath.Join(dir, "bin", "payload.elf")
	if err := os.MkdirAll(filepath.Dir(kernel), 0o700); err != nil {
		return firecracker.Config{}, err
	}
	if _, err := os.Stat(kernel); err != nil {
		if err := os.WriteFile(kernel, payload.ELF(), 0o644); err != nil {
			return firecracker.Config{}, err
		}
	}
	return firecracker.Config{
		Dir: dir, Firecracker: filepath.Join(bin, "firecracker"), Jailer: filepath.Join(bin, "jailer"),
		Guest: firecracker.Guest{Bare: kernel}, Console: true, TrackDirty: true,
	}, nil
}

// console is the machine's serial port.
func console(m vmm.Machine) (*firecracker.Console, error) {
	c, ok := m.(interface {
		Console() (*firecracker.Console, error)
	})
	if !ok {
		return nil, fmt.Errorf("%T has no console", m)
	}
	return c.Console()
}

// talk is one lock for each machine: a console takes one question at a time.
var talk sync.Map

// verb has the payload do what the suite asks a guest for.
func verb(ctx context.Context, m vmm.Machine, argv []string) (string, int, error) {
	c, err := console(m)
	if err != nil {
		return "", 0, err
	}
	lock, _ := talk.LoadOrStore(m, &sync.Mutex{})
	lock.(*sync.Mutex).Lock()
	defer lock.(*sync.Mutex).Unlock()
	switch args := argv[1:]; {
	case args[0] == "args":
		_, err = payload.Count(ctx, c)
		return strings.Join(args[1:], "|"), 0, err
	case args[0] == "cat" && args[1] == "/count":
		n, err := payload.Count(ctx, c)
		return strconv.Itoa(n), 0, err
	case args[0] == "cat":
		out, err := payload.Ask(ctx, c, payload.Give(place(args[1])))
		return out, 0, err
	case args[0] == "write":
		return "", 0, payload.Do(ctx, c, payload.Keep(place(args[1]), args[2]))
	case args[0] == "end":
		_, err = c.Write([]byte(payload.Reset + "\n"))
		return "", 0, err
	}
	return "", 0, tartarus.Errorf(tartarus.Unsupported, "the payload cannot %v", argv[1:])
}

// place is where the payload keeps what a guest with files would have in path.
func place(path string) byte {
	sum := 0
	for _, b := range []byte(path) {
		sum = sum*31 + int(b)
	}
	return byte('A' + sum%50)
}

func factory() vmmtest.Factory {
	return vmmtest.Factory{
		New: func(dir string) (vmm.Driver, error) {
			c, err := config(dir)
			if err != nil {
				return nil, err
			}
			return firecracker.New(c)
		},
		RootFS: vmmtest.Image,
		Exec:   verb,
		TAP:    true,
		// Snapshots of the payload are written hundreds of times here.
		MemoryMB: payload.MinMemoryMB,
		Lacks: map[vmmtest.Ability]string{
			vmmtest.Linux:   "it is the bare payload; `make test-kvm` runs this row with a Linux guest where KVM can run one",
			vmmtest.Network: "it is the bare payload; `make test-kvm` runs this row with a Linux guest where KVM can run one",
		},
	}
}

func TestConformance(t *testing.T) {
	need(t)
	vmmtest.Run(t, factory())
}
