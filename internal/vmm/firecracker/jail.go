package firecracker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// Names in a jail.
const (
	rootName    = "root"    // of the jail: what the monitor sees as /
	snapName    = "snap"    // where the monitor writes snapshots
	logName     = "log"     // named pipe
	metricsName = "metrics" // named pipe
	imageName   = "rootfs"
	diskName    = "disk"
	kernelName  = "kernel"
	initrdName  = "initrd"
	stateName   = "state"  // of a snapshot, here and in its folder
	memoryName  = "memory" // likewise
	pidName     = "firecracker.pid"
	exeName     = "firecracker"

	consoleName = "console" // beside the jail, not in it
	inputName   = "input"
)

// makeJail makes the folders and pipes of m, whose id is claimed.
func (d *Driver) makeJail(m *machine, c vmm.Config) (err error) {
	if err := os.Mkdir(m.dir, 0o700); errors.Is(err, fs.ErrExist) {
		m.foreign = true // an earlier process made it: not ours to remove
		return tartarus.Errorf(tartarus.Conflict, "machine %s exists", m.id)
	} else if err != nil {
		return err
	}
	if m.state.UID, err = d.cfg.Users.Claim(m.dir); err != nil {
		return err
	}
	if err := os.Mkdir(m.path(""), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(m.path(snapName), 0o711); err != nil { // mode: the monitor may pass through, and change nothing
		return err
	}
	for _, p := range []string{m.path(logName), m.path(metricsName)} {
		if err := makePipe(p, m.state.UID); err != nil {
			return err
		}
	}
	if err := makePipe(filepath.Join(m.dir, consoleName), 0); err != nil {
		return err
	}
	if d.cfg.Console {
		if err := makePipe(filepath.Join(m.dir, inputName), 0); err != nil {
			return err
		}
	}
	return m.open()
}

// open takes hold of the jail's folders and begins to read its pipes. The monitor may change names in its root, so what
// is opened later must be what it was.
func (m *machine) open() (err error) {
	if m.root, err = openFolder(m.path("")); err != nil {
		return err
	}
	if m.snap, err = openFolder(m.path(snapName)); err != nil {
		return err
	}
	if info, err := m.snap.Stat(); err != nil || owner(info) != 0 {
		return errors.Join(err, errors.New("the folder for snapshots is not root's"))
	}
	if m.console, err = listen(filepath.Join(m.dir, consoleName)); err != nil {
		return err
	}
	if m.log, err = listen(m.path(logName)); err != nil {
		return err
	}
	if m.counts, err = count(m.path(metricsName)); err != nil {
		return err
	}
	if m.driver.cfg.Console {
		if m.input, err = openPipe(filepath.Join(m.dir, inputName)); err != nil {
			return err
		}
	}
	m.api = &Client{dir: m.root, name: m.driver.socket()}
	return nil
}

func openFolder(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// inFolder is the path of a name in a folder that is held.
func inFolder(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// close lets go of everything that open took hold of.
func (m *machine) close() {
	for _, f := range []*os.File{m.root, m.snap, m.input} {
		if f != nil {
			_ = f.Close()
		}
	}
	for _, t := range []*tail{m.console, m.log} {
		if t != nil {
			t.close()
		}
	}
	if m.counts != nil {
		m.counts.close()
	}
	for _, h := range []*process.Handle{m.handle, m.pages} {
		if h != nil {
			h.Close()
		}
	}
}

// owner is the user that a file belongs to.
func owner(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}
