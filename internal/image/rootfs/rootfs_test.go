package rootfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

// finish completes a tree of files (path=data), links (path->target) and directories (path/).
func finish(t *testing.T, tree ...string) fs.FS {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := erofs.NewWriter(f, erofs.Options{})
	for _, spec := range tree {
		e, data := erofs.Entry{Path: spec, Mode: erofs.TypeDir | 0o700}, ""
		if name, target, ok := strings.Cut(spec, "->"); ok {
			e = erofs.Entry{Path: name, Mode: erofs.TypeSymlink, Target: target}
		} else if name, text, ok := strings.Cut(spec, "="); ok {
			e, data = erofs.Entry{Path: name, Mode: erofs.TypeRegular | 0o640, Size: int64(len(text)), GID: 42}, text
		}
		if err := w.Add(e, strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time changes nothing, or the first was not enough
		if err := Finish(w, []byte("agent")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func text(t *testing.T, img fs.FS, name string) string {
	t.Helper()
	b, err := fs.ReadFile(img, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func stat(t *testing.T, img fs.FS, name string) (mode uint32, st *goerofs.Stat) {
	t.Helper()
	info, err := fs.Lstat(img, name)
	if err != nil {
		t.Fatal(err)
	}
	return erofs.UnixMode(info.Mode()) | uint32(info.Mode())&0o7000, info.Sys().(*goerofs.Stat)
}

func TestFinish(t *testing.T) {
	for name, c := range map[string]struct {
		tree   []string
		passwd string // a line of it
		group  string
		home   string
		uid    uint32
	}{
		"empty":   {nil, "user:*:1000:1000::/home/user:/bin/sh\n", "user:x:1000:\n", "home/user", 1000},
		"debian":  {[]string{"usr/bin/bash=x", "bin->usr/bin", "etc/passwd=root:x:0:0:root:/root:/bin/bash", "etc/group=root:x:0:\n", "etc/shadow=root:*:1::::::\n"}, "\nuser:x:1000:1000::/home/user:/bin/bash\n", "root:x:0:\nuser:x:1000:\n", "home/user", 1000},
		"there":   {[]string{"etc/passwd=user:x:1234:5678:Me:/u:/bin/zsh\n", "etc/group=user:x:5678:\n", "u/"}, "user:x:1234:5678:Me:/u:/bin/zsh\n", "user:x:5678:\n", "u", 0},
		"taken":   {[]string{"etc/passwd=node:x:1000:1000::/home/node:/bin/sh\n", "etc/group=node:x:1000:\nx:x:1001:\n"}, "user:*:1002:1002::/home/user:/bin/sh\n", "user:x:1002:\n", "home/user", 1002},
		"by link": {[]string{"etc->/system/etc", "system/etc/", "home->data/home", "data/home/"}, "user:*:1000:1000::/home/user:/bin/sh\n", "user:x:1000:\n", "data/home/user", 1000},
	} {
		t.Run(name, func(t *testing.T) {
			img := finish(t, c.tree...)
			if got := text(t, img, "etc/passwd"); !strings.Contains(got, c.passwd) || strings.Count("\n"+got, "\nuser:") != 1 || !strings.HasSuffix(got, "\n") {
				t.Errorf("passwd:\n%s", got)
			}
			if got := text(t, img, "etc/group"); !strings.Contains(got, c.group) {
				t.Errorf("group:\n%s", got)
			}
			if _, st := stat(t, img, c.home); st.UID != c.uid || st.GID != c.uid {
				t.Errorf("home belongs to %d:%d", st.UID, st.GID)
			}
			if got := text(t, img, strings.TrimPrefix(tartarus.AgentPath, "/")); got != "agent" {
				t.Errorf("agent: %q", got)
			}
			for dir, mode := range map[string]uint32{"proc": 0o555, "dev/pts": 0o755, "dev/shm": 0o1777, "tmp": 0o1777, "run": 0o755} {
				if got, _ := stat(t, img, dir); got != erofs.TypeDir|mode {
					t.Errorf("%s has mode %o", dir, got)
				}
			}
			for _, file := range []string{"etc/hosts", "etc/resolv.conf", "etc/machine-id", "etc/hostname"} {
				if got := text(t, img, file); got != "" {
					t.Errorf("%s: %q", file, got)
				}
			}
		})
	}
}

func TestFinishKeeps(t *testing.T) {
	img := finish(t, "etc/hosts=1.2.3.4 x\n", "etc/resolv.conf->../run/stub", "etc/machine-id=0123\n", "tmp/", "usr/bin/tartarus-guest->/bin/evil",
		"etc/shadow=root:*:1::::::", "etc/passwd=root:x:0:0:::\n")
	if got := text(t, img, "etc/hosts"); got != "1.2.3.4 x\n" {
		t.Errorf("hosts: %q", got)
	}
	if got := text(t, img, "etc/machine-id"); got != "" {
		t.Errorf("a machine id that all sandboxes share: %q", got)
	}
	if mode, _ := stat(t, img, "etc/resolv.conf"); mode&erofs.TypeMask != erofs.TypeRegular {
		t.Errorf("resolv.conf has mode %o", mode)
	}
	if mode, _ := stat(t, img, "tmp"); mode != erofs.TypeDir|0o700 {
		t.Errorf("tmp was changed to %o", mode)
	}
	if mode, _ := stat(t, img, "usr/bin/tartarus-guest"); mode != erofs.TypeRegular|0o755 {
		t.Errorf("the agent has mode %o", mode)
	}
	if mode, st := stat(t, img, "etc/shadow"); mode != erofs.TypeRegular|0o640 || st.GID != 42 {
		t.Errorf("shadow has mode %o and group %d", mode, st.GID)
	}
	if got := text(t, img, "etc/shadow"); !strings.Contains(got, "root:*:1::::::\nuser:*:20454:") {
		t.Errorf("shadow: %q", got)
	}
}

func TestLoop(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := erofs.NewWriter(f, erofs.Options{})
	for name, target := range map[string]string{"etc": "a", "a": "etc"} {
		if err := w.Add(erofs.Entry{Path: name, Mode: erofs.TypeSymlink, Target: target}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := Finish(w, nil); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("got %v", err)
	}
}
