// Package debian makes root filesystems from Debian packages.
// Everything it starts and makes on the host ends with the call: the packages are unpacked below a temporary folder,
// as root in a mount namespace of its own, and come out as one stream into the image.
//
// The work is done by mmdebstrap, or by debootstrap where only that is there.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/source"
)

// Base is what SDK users find in the template "base". Npm is not among it: Debian's has 280 packages, which would double
// the time to build and add 100 MB.
var Base = []string{
	"bash", "ca-certificates", "curl", "git", "iproute2", "less", "ncurses-bin", "netbase", "nodejs", "procps",
	"python3", "python3-pip", "python3-venv", "sudo",
}

// version changes when the same packages come to another tree.
const version = "1"

// expected is about how many packages a minimal Debian needs by itself, before ours: it makes a total
// for the progress before apt has counted.
const expected = 70

// Recipe is a set of packages, planned for this host.
type Recipe struct {
	packages []string
	without  []string // folders that are left out
	suite    string
	archives []archive
	tool     string // path of mmdebstrap or debootstrap
}

var packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`)

// Plan finds out how this host can get the packages. It starts nothing.
func Plan(packages ...string) (*Recipe, error) {
	for _, p := range packages {
		if !packageForm.MatchString(p) {
			return nil, tartarus.Errorf(tartarus.Invalid, "%.80q is no name of a Debian package", p)
		}
	}
	r := &Recipe{packages: slices.Clone(packages)}
	slices.Sort(r.packages)
	r.packages = slices.Compact(r.packages)
	r.suite, r.archives = hostArchives("/")
	return r, nil
}

// Without leaves folders out, of packages that others depend on but that nobody needs whole.
func (r *Recipe) Without(dirs ...string) { r.without = append(r.without, dirs...) }

// Key is over all that decides the content, but the versions of packages that an archive has on the day.
func (r *Recipe) Key() string {
	return "debian " + version + " " + r.suite + " " + strings.Join(r.packages, " ") + " -" + strings.Join(r.without, " -")
}

// find looks for the program that does the work.
func (r *Recipe) find() error {
	for _, name := range []string{"mmdebstrap", "debootstrap"} {
		if path, err := exec.LookPath(name); err == nil {
			r.tool = path
			return nil
		}
	}
	return tartarus.Errorf(tartarus.Unsupported, "building from Debian packages needs mmdebstrap: apt-get install mmdebstrap "+
		"(or build from a container image: --from REF)")
}

// AddTo fills an image. Temp is a folder for what is made on the way; nothing stays in it.
func (r *Recipe) AddTo(ctx context.Context, w *erofs.Writer, temp string, progress func(stage string, done, total int64, message string)) (err error) {
	if err := r.find(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		temp = "" // other users of the namespace must be able to enter it
	}
	dir, err := os.MkdirTemp(temp, "debian-*")
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The lock tells whoever clears the folder of the dead that this one is alive.
	held, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	defer held.Close()
	if err := errors.Join(syscall.Flock(int(held.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), held.Chmod(0o755)); err != nil {
		return fmt.Errorf("make temporary folder: %w", err)
	}
	m := &meter{report: progress, stage: "install", total: int64(expected + len(r.packages))}
	if filepath.Base(r.tool) == "debootstrap" {
		err = r.debootstrap(ctx, w, dir, m)
	} else {
		err = r.mmdebstrap(ctx, w, dir, m)
	}
	if err != nil {
		return err
	}
	return r.adapt(w)
}

// excluded keeps documentation and translations out, but not the licences.
var excluded = []string{
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/lintian/*",
}

func (r *Recipe) mmdebstrap(ctx context.Context, w *erofs.Writer, dir string, m *meter) error {
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	// Nothing here has to survive a crash: without syncing every file, dpkg is several times as fast.
	args := []string{"--verbose", "--variant=minbase", "--mode=" + mode, "--format=tar", "--dpkgopt=force-unsafe-io",
		"--include=" + strings.Join(r.packages, ",")}
	for _, o := range excluded {
		args = append(args, "--dpkgopt="+o)
	}
	for _, dir := range r.without {
		args = append(args, "--dpkgopt=path-exclude=/"+dir+"/*")
	}
	if dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output(); err == nil {
		for _, o := range proxies(string(dump)) {
			args = append(args, "--aptopt="+o)
		}
	}
	args = append(args, r.suite, "-")
	for _, a := range r.archives {
		args = append(args, a.line())
	}
	cmd := r.command(dir, args)
	return run(ctx, cmd, m, func(ctx context.Context, out io.Reader) error {
		in, err := source.Reader(ctx, out)
		if err != nil {
			return err
		}
		defer in.Close()
		if err := source.AddTar(w, in); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in) // what follows the end mark, or the writer would see a broken pipe
		return err
	})
}

func (r *Recipe) debootstrap(ctx context.Context, w *erofs.Writer, dir string, m *meter) error {
	if os.Geteuid() != 0 {
		return tartarus.Errorf(tartarus.Unsupported, "debootstrap works as root only: run as root, or apt-get install mmdebstrap")
	}
	root := filepath.Join(dir, "root")
	args := []string{"--variant=minbase", "--include=" + strings.Join(r.packages, ","), r.suite, root, r.archives[0].uri}
	err := run(ctx, r.command(dir, args), m, func(_ context.Context, out io.Reader) error {
		return m.read(out)
	})
	if err != nil {
		return err
	}
	m.tell("read folder", "reading the packages' files")
	return source.AddDir(ctx, w, root, func(int64) {})
}

// roomInMemory is how much memory must be free for the packages to be unpacked in it: several times what they take.
const roomInMemory = 4 << 30

// command prepares the tool. As root it gets namespaces of its own for mounts and processes: no mount outlives it, and
// with the first process all others are killed. Where there is memory enough it works in a file system in memory.
func (r *Recipe) command(dir string, args []string) *exec.Cmd {
	cmd := exec.Command(r.tool, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
		script := `mount -t proc proc /proc && exec "$@"`
		if room := availableMemory(); filepath.Base(r.tool) == "mmdebstrap" && room > roomInMemory {
			script = fmt.Sprintf(`mount -t tmpfs -o mode=0755,size=%d tartarus "$0" && `, room/2) + script
		}
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", script, dir, r.tool}, args...)
	}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "TMPDIR=") || strings.HasPrefix(e, "LANG") || strings.HasPrefix(e, "LC_")
	}), "TMPDIR="+dir, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	return cmd
}

func availableMemory() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(l, "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

// grace is how long the tool may clean up by itself before it and all it started are killed.
const grace = 15 * time.Second

// run starts the tool, hands its output to read, and ends it with ctx or when read fails.
func run(ctx context.Context, cmd *exec.Cmd, m *meter, read func(context.Context, io.Reader) error) error {
	// The tool must die with us; the kernel watches the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	messages, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	group := -cmd.Process.Pid
	ended := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-ended:
			return
		case <-inner.Done():
		}
		syscall.Kill(group, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(grace):
		}
		syscall.Kill(group, syscall.SIGKILL) // also what it left running
		messages.Close()
		out.Close()
	}()
	metered := make(chan error, 1)
	go func() { metered <- m.read(messages) }()
	readErr := read(inner, out)
	if readErr != nil {
		cancel()
		io.Copy(io.Discard, out)
	}
	meterErr := <-metered
	waitErr := cmd.Wait()
	close(ended)
	<-killed
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case waitErr != nil && (readErr == nil || tartarus.KindOf(readErr) == tartarus.Invalid):
		// The tool failed, and the stream ended early because of that.
		return &tartarus.Error{Kind: tartarus.Unavailable, Err: waitErr,
			Message: fmt.Sprintf("install Debian packages: %v: %s", waitErr, m.reason())}
	}
	return errors.Join(readErr, meterErr)
}

// meter turns what the tool prints into progress.
type meter struct {
	report      func(stage string, done, total int64, message string)
	stage       string
	total, seen int64 // packages: expected, announced by apt
	done        int64
	tail        []string // last lines, for an error
}

var (
	newlyInstalled = regexp.MustCompile(`(\d+) newly installed`)
	aptLine        = regexp.MustCompile(`^(?:Get:\d+ \S+ \S+ \S+ (\S+)|Unpacking (\S+)|Setting up (\S+)|I: (?:Retrieving|Extracting|Unpacking|Configuring) (\S+?)(?:\.\.\.)?$)`)
)

// stages maps what mmdebstrap announces to words for people.
var stages = []struct{ says, stage string }{
	{"running apt-get update", "update"}, {"downloading packages", "download"}, {"extracting archives", "install"},
	{"installing essential", "install"}, {"installing remaining", "install"}, {"cleaning package", "clean up"}, {"creating tarball", "read files"},
}

// read follows the tool's messages to their end. Lines may end in a carriage return and be of any length.
func (m *meter) read(r io.Reader) error {
	buf, line := make([]byte, 32<<10), []byte(nil)
	for {
		n, err := r.Read(buf)
		for _, part := range bytes.SplitAfter(bytes.ReplaceAll(buf[:n], []byte("\r"), []byte("\n")), []byte("\n")) {
			line = append(line, part...)
			if len(line) > 0 && (line[len(line)-1] == '\n' || len(line) > 4096) {
				m.line(strings.TrimSpace(string(line)))
				line = line[:0]
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read messages: %w", err)
		}
	}
}

func (m *meter) line(l string) {
	if l == "" {
		return
	}
	if m.tail = append(m.tail, l); len(m.tail) > 40 {
		m.tail = m.tail[1:]
	}
	if found := newlyInstalled.FindStringSubmatch(l); found != nil {
		var n int64
		fmt.Sscan(found[1], &n)
		m.seen += n
		m.total = max(m.total, m.seen)
		return
	}
	if rest, ok := strings.CutPrefix(l, "I: "); ok {
		for _, s := range stages {
			if strings.HasPrefix(rest, s.says) {
				m.tell(s.stage, strings.TrimSuffix(rest, "..."))
				return
			}
		}
	}
	if found := aptLine.FindStringSubmatch(l); found != nil && !strings.Contains(l, "InRelease") && !strings.HasSuffix(found[1], "Packages") {
		m.done++
		m.tell(m.stage, l)
	}
}

// tell reports. A package counts three times: downloaded, unpacked, set up.
func (m *meter) tell(stage, message string) {
	m.stage = stage
	m.report(stage, min(m.done, 3*m.total), 3*m.total, message)
}

// reason is what the tool said last about what went wrong.
func (m *meter) reason() string {
	var errs []string
	for _, l := range m.tail {
		if strings.HasPrefix(l, "E: ") || strings.HasPrefix(l, "W: Failed") || strings.HasPrefix(l, "dpkg: error") {
			errs = append(errs, l)
		}
	}
	if len(errs) == 0 {
		errs = m.tail[max(0, len(m.tail)-3):]
	}
	return strings.Join(errs[max(0, len(errs)-5):], "; ")
}
