package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHostArchives(t *testing.T) {
	debian := "ID=debian\nVERSION_CODENAME=trixie\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"another distribution": {map[string]string{"etc/os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n", "etc/apt/sources.list": "deb http://u/debian noble main\n"},
			[]string{"bookworm", "deb http://deb.debian.org/debian bookworm main", "deb http://deb.debian.org/debian-security bookworm-security main"}},
		"no sources": {map[string]string{"etc/os-release": debian},
			[]string{"trixie", "deb http://deb.debian.org/debian trixie main", "deb http://deb.debian.org/debian-security trixie-security main"}},
		"lines": {map[string]string{"etc/os-release": debian, "etc/apt/sources.list": `# deb http://no/debian trixie main
deb http://mirror.lan/debian/ trixie main contrib # ours
deb-src http://mirror.lan/debian trixie main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.lan/debian-security trixie-security main
deb http://mirror.lan/debian sid main
deb [broken http://mirror.lan/debian trixie main
`, "etc/apt/sources.list.d/vendor.list": "deb https://vendor.example/debian/12/prod trixie main\ndeb https://vendor.example/debian trixie stable\n"},
			[]string{"trixie", "deb http://mirror.lan/debian/ trixie main", "deb [signed-by=/k.gpg] http://mirror.lan/debian-security trixie-security main"}},
		"paragraphs": {map[string]string{"etc/os-release": debian, "etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
# a remark
URIs: http://a.lan/debian
 http://b.lan/debian
Suites: trixie trixie-updates
Components: main non-free
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://c.lan/debian
Suites: trixie
Components: main
Enabled: no

Types: deb
URIs: http://d.lan/debian-security
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
`},
			[]string{"trixie", "deb [signed-by=/usr/share/keyrings/debian.gpg] http://a.lan/debian trixie main",
				"deb [signed-by=/usr/share/keyrings/debian.gpg] http://a.lan/debian trixie-updates main",
				"deb [signed-by=/usr/share/keyrings/debian.gpg] http://b.lan/debian trixie main",
				"deb [signed-by=/usr/share/keyrings/debian.gpg] http://b.lan/debian trixie-updates main",
				"deb http://d.lan/debian-security trixie-security main"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			suite, archives := hostArchives(root)
			got := []string{suite}
			for _, a := range archives {
				got = append(got, a.line())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestProxies(t *testing.T) {
	dump := `Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.lan:3128";
Acquire::https::Proxy "";
Acquire::http::Proxy::direct.lan "DIRECT";
APT::Architecture "amd64";
`
	want := []string{`Acquire::http::Proxy "http://proxy.lan:3128";`, `Acquire::http::Proxy::direct.lan "DIRECT";`}
	if got := proxies(dump); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestPlan(t *testing.T) {
	for _, bad := range []string{"", "-e", "a,b", "A", "a b", "x;y", "../x"} {
		if _, err := Plan(bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	a, err := Plan("python3", "git", "git")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Plan("git", "python3")
	if err != nil || a.Key() != b.Key() {
		t.Errorf("%q, %q, %v", a.Key(), b.Key(), err)
	}
}

func TestMissingTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := add(t, t.Context(), nil)
	if !tartarus.Is(err, tartarus.Unsupported) || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
		t.Errorf("got %v", err)
	}
}

type report struct {
	stage       string
	done, total int64
}

// add builds with whatever mmdebstrap is in PATH, and checks that nothing is left in the temporary folder.
func add(t *testing.T, ctx context.Context, reports *[]report) (fs.FS, error) {
	t.Helper()
	r, err := Plan("bash")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, temp := erofs.NewWriter(f, erofs.Options{MaxBytes: 1 << 20}), t.TempDir()
	err = r.AddTo(ctx, w, temp, func(stage string, done, total int64, _ string) {
		if reports != nil {
			*reports = append(*reports, report{stage, done, total})
		}
	})
	if left, readErr := os.ReadDir(temp); readErr != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, readErr)
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return img, nil
}

// fake puts a shell script in the place of mmdebstrap.
func fake(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// skeleton is a little tree like Debian's, in the way that mmdebstrap gives it.
const skeleton = `
test -d "$TMPDIR" && cd "$TMPDIR" && mkdir root && cd root || exit 9
mkdir -p etc/apt/apt.conf.d etc/skel usr/bin usr/local/bin usr/lib/python3.11 usr/share/doc/x usr/share/man/man1 var/cache/apt
echo 'secret proxy' > etc/apt/apt.conf.d/99mmdebstrap
echo 'nameserver 10.0.0.1' > etc/resolv.conf; echo buildhost > etc/hostname
echo rc > etc/skel/.bashrc; echo x > usr/bin/python3; : > usr/lib/python3.11/EXTERNALLY-MANAGED
echo c > usr/share/doc/x/copyright; echo c > usr/share/doc/x/README; echo m > usr/share/man/man1/x.1
`

func TestBuild(t *testing.T) {
	fake(t, skeleton+`
echo "I: running apt-get update..." >&2
echo "Get:1 http://a/debian bookworm InRelease [151 kB]" >&2
echo "I: downloading packages with apt..." >&2
echo "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded." >&2
echo "Get:1 http://a/debian bookworm/main amd64 libx amd64 1.0 [1 kB]" >&2
echo "Get:2 http://a/debian bookworm/main amd64 bash amd64 5.2 [1 kB]" >&2
echo "I: installing remaining packages inside the chroot..." >&2
printf 'Unpacking libx (1.0) ...\r\nUnpacking bash (5.2) ...\nSetting up libx (1.0) ...\nSetting up bash (5.2) ...\n' >&2
exec tar -C . --owner=0 --group=0 -cf - .`)
	var reports []report
	img, err := add(t, t.Context(), &reports)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"etc/sudoers.d/user": "user ALL=(ALL:ALL) NOPASSWD:ALL\n", "etc/resolv.conf": "", "etc/hostname": "", "home/user/.bashrc": "rc\n",
		"usr/bin/python": "x\n", "usr/share/doc/x/copyright": "c\n", "etc/default/locale": "LANG=C.UTF-8\n",
	}
	for name, text := range want {
		if got, err := fs.ReadFile(img, name); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"etc/apt/apt.conf.d/99mmdebstrap", "usr/lib/python3.11/EXTERNALLY-MANAGED", "usr/share/doc/x/README", "usr/share/man/man1"} {
		if _, err := fs.Stat(img, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	if info, err := fs.Stat(img, "usr/local/bin"); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("/usr/local/bin: %v, %v", info, err)
	}
	last := report{}
	for _, r := range reports {
		if r.done < last.done || r.done > r.total {
			t.Errorf("progress went from %+v to %+v", last, r)
		}
		last = r
	}
	if last.done != 6 || reports[0].stage != "update" || last.stage != "install" {
		t.Errorf("progress: %+v", reports)
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		kind   tartarus.Kind
		says   string
	}{
		"the tool fails":    {"echo 'I: running' >&2; echo 'E: no network' >&2; exit 25", tartarus.Unavailable, "no network"},
		"it fails halfway":  {"printf 'half a tar archive'; echo 'E: disk full' >&2; exit 1", tartarus.Unavailable, "disk full"},
		"it ends too early": {"printf 'half a tar archive'", tartarus.Invalid, ""},
		"too large":         {skeleton + "dd if=/dev/zero of=big bs=1M count=3 2>/dev/null; tar -cf - .; sleep 100", tartarus.TooLarge, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, c.script)
			start := time.Now()
			_, err := add(t, t.Context(), nil)
			if !tartarus.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want kind %s", err, c.kind)
			}
			if time.Since(start) > 10*time.Second {
				t.Errorf("took %v", time.Since(start))
			}
		})
	}
}

// TestCancel expects everything that was started to be gone, also what ignores the request.
func TestCancel(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	fake(t, `sleep 1000 & echo host $(readlink /proc/self) > `+pids+`.new; mv `+pids+`.new `+pids+`; mkdir -p "$TMPDIR/deep"; wait`)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the user went away")
	go func() {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(pids); err == nil {
				break
			}
		}
		cancel(gone)
	}()
	_, err := add(t, ctx, nil)
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || bytes.Contains(mounts, []byte("debian-")) {
		t.Errorf("a mount is left: %v", err)
	}
	if os.Geteuid() != 0 {
		return // without a namespace the process numbers are not known here
	}
	out, _ := exec.Command("pgrep", "-f", "^sleep 1000$").Output()
	for pid := range strings.FieldsSeq(string(out)) {
		n, _ := strconv.Atoi(pid)
		if exe, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", n)); bytes.Contains(exe, []byte("TMPDIR=")) && bytes.Contains(exe, []byte("/debian-")) {
			t.Errorf("process %d still runs", n)
			syscall.Kill(n, syscall.SIGKILL)
		}
	}
}
