// Package devsetup runs ./dev-setup.sh against a mirror on this machine: whole, truncated, resumed, with wrong and missing checksums.
package devsetup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const script = "../../dev-setup.sh"

// mirror serves artefacts as TARTARUS_MIRROR expects them, and can misbehave.
type mirror struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	cut   map[string]int // so many times an artefact is cut off in the middle
	asked []string       // paths with their Range
}

func arch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

func release() string {
	return "/github.com/firecracker-microvm/firecracker/releases/download/v1.12.1/firecracker-v1.12.1-" + arch() + ".tgz"
}

func sample(name string) string {
	return "/s3.amazonaws.com/spec.ccfc.min/firecracker-ci/v1.12/" + arch() + "/" + name
}

// tgz is a release archive with two programs in it.
func tgz(t *testing.T) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, name := range []string{"firecracker", "jailer"} {
		body := []byte("#!/bin/sh\necho " + name + "\n" + strings.Repeat("# filler that does not shrink to nothing\n", 100))
		h := &tar.Header{Name: "release-v1.12.1-" + arch() + "/" + name + "-v1.12.1-" + arch(), Mode: 0o755, Size: int64(len(body))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func newMirror(t *testing.T) *mirror {
	m := &mirror{files: map[string][]byte{}, cut: map[string]int{}}
	archive := tgz(t)
	m.files[release()] = archive
	m.files[release()+".sha256.txt"] = []byte(sum(archive) + "  firecracker-v1.12.1-" + arch() + ".tgz\n")
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 100_000)...)
	m.files[sample("vmlinux-6.1.141")] = kernel
	m.files[sample("vmlinux-6.1.90")] = []byte("\x7fELF older")
	m.files[sample("ubuntu-24.04.squashfs")] = bytes.Repeat([]byte("rootfs "), 50_000)
	m.Server = httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.Close)
	return m
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.asked = append(m.asked, r.URL.Path+" "+r.Header.Get("Range"))
	body, ok := m.files[r.URL.Path]
	cut := m.cut[r.URL.Path] > 0
	if cut {
		m.cut[r.URL.Path]--
	}
	var index []string
	for name := range m.files {
		if strings.HasPrefix(name, r.URL.Path) && strings.HasSuffix(r.URL.Path, "/") {
			index = append(index, strings.TrimPrefix(name, r.URL.Path))
		}
	}
	m.mu.Unlock()
	switch {
	case ok && cut:
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Header().Set("Accept-Ranges", "bytes")
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	case ok:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	case len(index) > 0:
		fmt.Fprintf(w, "<a href=%q>", index)
	default:
		http.NotFound(w, r)
	}
}

// run fetches from a mirror.
func run(t *testing.T, dir, url string) (string, int) {
	t.Helper()
	return setup(t, dir, []string{"fetch"}, "TARTARUS_MIRROR="+url)
}

// setup runs the script, which looks for bin/tartarus beside it and finds none.
func setup(t *testing.T, dir string, args []string, vars ...string) (string, int) {
	t.Helper()
	for _, tool := range []string{"bash", "curl", "sha256sum", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	home := filepath.Dir(dir)
	raw, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(home, "dev-setup.sh")
	if err := os.WriteFile(name, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), append(vars, "TARTARUS_DEV_DIR="+dir)...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func want(t *testing.T, out string, code, wantCode int, parts ...string) {
	t.Helper()
	if code != wantCode {
		t.Fatalf("exit code %d, want %d:\n%s", code, wantCode, out)
	}
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Fatalf("it does not say %q:\n%s", p, out)
		}
	}
}

func TestFetch(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	out, code := run(t, dir, m.URL)
	want(t, out, code, 0, "firecracker unpacked", "jailer unpacked", "vmlinux-6.1.141 fetched", "no checksum is published")
	for name, body := range map[string][]byte{"vmlinux-6.1.141": m.files[sample("vmlinux-6.1.141")], "ubuntu-24.04.squashfs": m.files[sample("ubuntu-24.04.squashfs")]} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s is not the mirror's newest: %v", name, err)
		}
	}
	record, err := os.ReadFile(filepath.Join(dir, "CHECKSUMS"))
	if err != nil || strings.Count(string(record), "\n") != 5 || !strings.Contains(string(record), sum(m.files[release()])) {
		t.Errorf("recorded: %s, %v", record, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "firecracker")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("firecracker: %v, %v", info, err)
	}

	// Again: nothing is fetched twice.
	m.asked = nil
	out, code = run(t, dir, m.URL)
	want(t, out, code, 0, "vmlinux-6.1.141 is there")
	if len(m.asked) != 0 {
		t.Errorf("asked for %v", m.asked)
	}

	// What was changed since is found.
	if err := os.WriteFile(filepath.Join(dir, "vmlinux-6.1.141"), []byte("\x7fELF another"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, code = run(t, dir, m.URL)
	want(t, out, code, 4, "vmlinux-6.1.141 is not what was put there")
}

func TestWrongChecksum(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	m.files[release()+".sha256.txt"] = []byte(strings.Repeat("0", 64) + "  x\n")
	out, code := run(t, dir, m.URL)
	want(t, out, code, 4, "is not what its published checksum says")
	if left, _ := filepath.Glob(filepath.Join(dir, "fire*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	delete(m.files, release()+".sha256.txt")
	out, code = run(t, dir, m.URL)
	want(t, out, code, 4, "no checksum is published")

	// A kernel with a wrong checksum beside it.
	m = newMirror(t)
	m.files[sample("vmlinux-6.1.141.sha256")] = []byte(strings.Repeat("a", 64))
	out, code = run(t, dir, m.URL)
	want(t, out, code, 4, "vmlinux-6.1.141 is not what its published checksum says")
}

// A change of what was recorded is refused, also where nobody publishes a checksum.
func TestChangedSinceRecorded(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	out, code := run(t, dir, m.URL)
	want(t, out, code, 0)
	if err := os.Remove(filepath.Join(dir, "vmlinux-6.1.141")); err != nil {
		t.Fatal(err)
	}
	m.files[sample("vmlinux-6.1.141")] = []byte("\x7fELF another under the same name")
	out, code = run(t, dir, m.URL)
	want(t, out, code, 4, "has changed since it was recorded")
}

// A transfer that is cut off goes on from where it was, in this run or the next.
func TestResumed(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	m.cut[sample("vmlinux-6.1.141")] = 2
	out, code := run(t, dir, m.URL)
	want(t, out, code, 0, "vmlinux-6.1.141 fetched")
	half := fmt.Sprintf("bytes=%d-", len(m.files[sample("vmlinux-6.1.141")])/2)
	if !strings.Contains(strings.Join(m.asked, "\n"), half) {
		t.Errorf("nothing was resumed with %s: %v", half, m.asked)
	}

	dir = filepath.Join(t.TempDir(), "fc")
	m.cut[sample("vmlinux-6.1.141")] = 100
	out, code = run(t, dir, m.URL)
	want(t, out, code, 1, "run this again to go on from there")
	if _, err := os.Stat(filepath.Join(dir, "vmlinux-6.1.141")); err == nil {
		t.Error("half a kernel has the name of a whole one")
	}
	m.cut = map[string]int{}
	out, code = run(t, dir, m.URL)
	want(t, out, code, 0, "vmlinux-6.1.141 fetched")
	got, err := os.ReadFile(filepath.Join(dir, "vmlinux-6.1.141"))
	if err != nil || !bytes.Equal(got, m.files[sample("vmlinux-6.1.141")]) {
		t.Errorf("the resumed kernel is another one: %v", err)
	}
}

func TestTruncatedForGood(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	whole := m.files[release()]
	m.files[release()] = whole[:len(whole)/2] // the mirror itself has half of it
	out, code := run(t, dir, m.URL)
	want(t, out, code, 4, "is not what its published checksum says")
}

func TestNothingThere(t *testing.T) {
	m, dir := newMirror(t), filepath.Join(t.TempDir(), "fc")
	m.files = map[string][]byte{}
	out, code := run(t, dir, m.URL)
	want(t, out, code, 1, "TARTARUS_MIRROR")
	out, code = run(t, dir, "http://127.0.0.1:1")
	want(t, out, code, 1, "could not be fetched")
}

// KVM that is missing or not permitted is told with what to do.
func TestKVM(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fc")
	out, code := setup(t, dir, []string{"kvm"}, "TARTARUS_KVM_DEVICE="+filepath.Join(dir, "none"))
	want(t, out, code, 2, "KVM: ")
	if os.Geteuid() == 0 {
		return // root may use any device
	}
	locked := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(locked, nil, 0); err != nil {
		t.Fatal(err)
	}
	out, code = setup(t, dir, []string{"kvm"}, "TARTARUS_KVM_DEVICE="+locked)
	want(t, out, code, 2, "sudo chmod 666", "usermod -aG")
}

// What docker-compose.yml needs and is not there is told by name, with what to do.
func TestDocker(t *testing.T) {
	for name, c := range map[string]struct {
		docker string // what the program does; empty when there is none
		code   int
		says   string
	}{
		"not installed": {"", 1, "Docker: not installed"},
		"no compose":    {`[ "$1" != compose ]`, 1, "docker-compose-plugin"},
		"no engine":     {`[ "$1" != info ]`, 1, "usermod -aG docker"},
		"usable":        {"true", 0, "docker compose up --build"},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			for _, tool := range []string{"bash", "curl", "sha256sum", "tar", "dirname", "mkdir", "timeout", "id", "uname"} {
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Skipf("needs %s: %v", tool, err)
				}
				if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			if c.docker != "" {
				if err := os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\n"+c.docker+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			out, code := setup(t, filepath.Join(t.TempDir(), "fc"), []string{"docker"}, "PATH="+bin)
			want(t, out, code, c.code, c.says)
		})
	}
}

func TestUsage(t *testing.T) {
	cmd := exec.Command("bash", script, "what")
	out, _ := cmd.CombinedOutput()
	want(t, string(out), cmd.ProcessState.ExitCode(), 64, "unknown argument what")
	cmd = exec.Command("bash", script, "--help")
	out, _ = cmd.CombinedOutput()
	want(t, string(out), cmd.ProcessState.ExitCode(), 0, "TARTARUS_MIRROR", "Exit codes")
}
