package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// programs are stand-ins of the right shape: a template is as good with any bytes.
type programs struct{ guest, tiny string }

func hexOf(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }

func (p programs) Guest() ([]byte, error)       { return []byte(p.guest), nil }
func (p programs) GuestDigest() (string, error) { return hexOf(p.guest), nil }
func (p programs) Tiny() ([]byte, error)        { return []byte(p.tiny), nil }
func (p programs) TinyDigest() (string, error)  { return hexOf(p.tiny), nil }

func open(t testing.TB, dir string, p Programs) *Store {
	t.Helper()
	s, err := New(Config{Dir: dir, Programs: p})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var standIns = programs{strings.Repeat("guest", 5000), strings.Repeat("tiny", 5000)}

func TestTiny(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, standIns)
	tpl, err := s.EnsureTiny(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tpl.Name != "tiny" || tpl.User != "user" || tpl.WorkDir != "/home/user" || tpl.VCPU != 2 || tpl.MemoryMB != 1024 || tpl.DiskMB != 4096 ||
		len(tpl.ID) != 20 || !strings.HasPrefix(tpl.Digest, "sha256:") || tpl.AgentDigest != hexOf(standIns.guest) {
		t.Errorf("%+v", tpl)
	}
	if got := contents(t, tpl.RootFS, "usr/bin/tartarus-guest"); got != standIns.guest {
		t.Error("the guest agent is not in the image")
	}
	if got := contents(t, tpl.RootFS, "bin/sh"); got != standIns.tiny {
		t.Error("/bin/sh is not the shell")
	}
	if got := contents(t, tpl.RootFS, "etc/passwd"); !strings.Contains(got, "user:*:1000:1000::/home/user:/bin/bash\n") {
		t.Errorf("passwd: %s", got)
	}
	if err := s.Verify("tiny"); err != nil {
		t.Error(err)
	}

	again, err := open(t, dir, standIns).EnsureTiny(t.Context())
	if err != nil || again.Build != tpl.Build {
		t.Errorf("a second call built again: %+v, %v", again, err)
	}
	elsewhere, err := open(t, t.TempDir(), standIns).EnsureTiny(t.Context())
	if err != nil || elsewhere.Digest != tpl.Digest {
		t.Errorf("the same input gave another image: %+v, %v", elsewhere, err)
	}
	if elsewhere.ID == tpl.ID {
		t.Error("template ids follow from the content")
	}
}

// TestNewAgent expects that another agent makes another image with nothing else changed, and that the old one goes.
func TestNewAgent(t *testing.T) {
	dir := t.TempDir()
	old, err := open(t, dir, standIns).EnsureTiny(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stages := map[string]bool{}
	p := programs{"another guest", standIns.tiny}
	s := open(t, dir, p)
	tpl, err := s.Build(t.Context(), Spec{Name: "tiny", Recipe: "tiny"}, func(p Progress) { stages[p.Stage] = true })
	if err != nil {
		t.Fatal(err)
	}
	if !stages["copy image"] {
		t.Errorf("the image was not made from the old one: %v", stages)
	}
	if tpl.ID != old.ID || tpl.Digest == old.Digest || tpl.Key != old.Key {
		t.Errorf("%+v after %+v", tpl, old)
	}
	if got := contents(t, tpl.RootFS, "usr/bin/tartarus-guest"); got != "another guest" {
		t.Errorf("agent: %.40q", got)
	}
	if got := contents(t, tpl.RootFS, "bin/sh"); got != standIns.tiny {
		t.Error("the shell was lost")
	}
	if _, err := os.Stat(old.RootFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old image is still there: %v", err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestSameImage expects another tag or name for what is there to cost nothing.
func TestSameImage(t *testing.T) {
	s := open(t, t.TempDir(), standIns)
	first, err := s.EnsureTiny(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tagged, err := s.Build(t.Context(), Spec{Name: "tiny", Tags: []string{"v1"}, Recipe: "tiny"}, nil)
	if err != nil || tagged.Build != first.Build || !slices.Equal(tagged.Tags, []string{"default", "v1"}) {
		t.Errorf("%+v, %v", tagged, err)
	}
	named, err := s.Build(t.Context(), Spec{Name: "small", Recipe: "tiny"}, nil)
	if err != nil || named.RootFS != first.RootFS || named.ID == first.ID || named.Build == first.Build || named.Name != "small" {
		t.Errorf("%+v, %v", named, err)
	}
	if err := s.Remove(t.Context(), "tiny"); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify("small"); err != nil {
		t.Error(err)
	}
}

func contents(t *testing.T, image, name string) string {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := img.(interface{ ReadFile(string) ([]byte, error) }).ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// record puts a version with an image of its own.
func record(t *testing.T, s *Store, name string, when time.Time, tags ...string) Template {
	t.Helper()
	path := filepath.Join(s.dir, "images", tartarus.NewTemplateID()+".erofs")
	if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
		t.Fatal(err)
	}
	tpl, err := s.Put(t.Context(), Template{Name: name, Tags: tags, RootFS: path, Digest: "sha256:" + hexOf(path), Size: int64(len(path)), CreatedAt: when})
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func TestResolve(t *testing.T) {
	s := open(t, t.TempDir(), standIns)
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	v1 := record(t, s, "app", day, "default", "v1")
	v2 := record(t, s, "app", day.Add(time.Hour), "v2.0_x")
	team := record(t, s, "team/app", day, "dev")
	if v1.ID != v2.ID || v1.ID == team.ID || v1.Build == v2.Build {
		t.Errorf("ids: %s %s %s", v1.ID, v2.ID, team.ID)
	}
	for _, c := range []struct {
		ref  string
		want string
		kind tartarus.Kind
	}{
		{"app", v1.Build, ""}, {"app:default", v1.Build, ""}, {"app:v1", v1.Build, ""}, {"app:v2.0_x", v2.Build, ""},
		{v1.ID, v1.Build, ""}, {v1.ID + ":v2.0_x", v2.Build, ""},
		{"team/app", team.Build, ""}, {"team/app:dev", team.Build, ""}, // no default tag: the newest
		{"team/app:default", "", tartarus.NotFound}, {"app:v3", "", tartarus.NotFound}, {"nobody", "", tartarus.NotFound}, {"other/app", "", tartarus.NotFound},
		{"", "", tartarus.Invalid}, {"App", "", tartarus.Invalid}, {"../app", "", tartarus.Invalid}, {"a/b/c", "", tartarus.Invalid},
		{"app:", "", tartarus.Invalid}, {"app:..", "", tartarus.Invalid}, {"app:V1", "", tartarus.Invalid}, {"app:a:b", "", tartarus.Invalid},
		{strings.Repeat("a", 200), "", tartarus.Invalid}, {"-app", "", tartarus.Invalid}, {"app\n", "", tartarus.Invalid},
	} {
		got, err := s.Resolve(c.ref)
		if c.kind == "" && (err != nil || got.Build != c.want) || c.kind != "" && !tartarus.Is(err, c.kind) {
			t.Errorf("%q: %s, %v", c.ref, got.Build, err)
		}
	}

	// A tag moves to the version that is put last; a version that loses its last tag goes, and its image with it.
	v3 := record(t, s, "app", day.Add(2*time.Hour), "v2.0_x")
	if got, err := s.Resolve("app:v2.0_x"); err != nil || got.Build != v3.Build {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(v2.RootFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("image of a forgotten version: %v", err)
	}
	if _, err := s.Tag(t.Context(), "app:v1", "stable"); err != nil {
		t.Error(err)
	}
	if got, err := s.Resolve("app:stable"); err != nil || got.Build != v1.Build || !slices.Contains(got.Tags, "v1") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRemove(t *testing.T) {
	s := open(t, t.TempDir(), standIns)
	v1 := record(t, s, "app", time.Time{}, "default", "v1")
	v2 := record(t, s, "app", time.Time{}, "v2")
	keep := record(t, s, "keep", time.Time{})
	step := func(ref string, kind tartarus.Kind, left ...string) {
		t.Helper()
		if err := s.Remove(t.Context(), ref); kind == "" && err != nil || kind != "" && !tartarus.Is(err, kind) {
			t.Errorf("remove %s: %v", ref, err)
		}
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, tpl := range all {
			have = append(have, tpl.Name+":"+strings.Join(tpl.Tags, ","))
		}
		slices.Sort(have)
		if !slices.Equal(have, left) {
			t.Errorf("after %s: %v, want %v", ref, have, left)
		}
	}
	step("nobody", tartarus.NotFound, "app:default,v1", "app:v2", "keep:default")
	step("app:nobody", tartarus.NotFound, "app:default,v1", "app:v2", "keep:default")
	step("app:v1", "", "app:default", "app:v2", "keep:default")
	if _, err := os.Stat(v1.RootFS); err != nil {
		t.Error(err)
	}
	step("app:default", "", "app:v2", "keep:default")
	if _, err := os.Stat(v1.RootFS); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	step(v2.ID, "", "keep:default")
	if err := s.Verify("keep"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(keep.RootFS, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify("keep"); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("a damaged image: %v", err)
	}
}

// TestHold expects a held version to outlive its tags, and to go once it is released.
func TestHold(t *testing.T) {
	s := open(t, t.TempDir(), standIns)
	old := record(t, s, "app", time.Time{})
	hold := filepath.Join(t.TempDir(), "rootfs")
	if err := Hold(old, hold); err != nil {
		t.Fatal(err)
	}
	now := record(t, s, "app", time.Time{})
	if got, err := s.Resolve("app"); err != nil || got.Build != now.Build {
		t.Errorf("%+v, %v", got, err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if got, err := s.Version(old.ID, old.Build); err != nil || got.RootFS != old.RootFS {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("app"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("a removed template: %v", err)
	}
	if _, err := s.Version(now.ID, now.Build); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("a removed version that nobody holds: %v", err)
	}
	if _, err := os.Stat(old.RootFS); err != nil {
		t.Error(err)
	}
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	record(t, s, "other", time.Time{})
	if _, err := os.Stat(old.RootFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a released version is still there: %v", err)
	}
	if err := Hold(old, hold); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("holding what is gone: %v", err)
	}
}

// TestAtOnce lets several stores, as several processes would, change one folder.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			s := open(t, dir, standIns)
			if _, err := s.EnsureTiny(t.Context()); err != nil {
				t.Error(err)
			}
			for j := range 5 {
				record(t, s, fmt.Sprintf("app-%d", i), time.Time{}, fmt.Sprintf("t%d", j))
			}
		})
	}
	all.Wait()
	s := open(t, dir, standIns)
	list, err := s.List()
	if err != nil || len(list) != 41 {
		t.Errorf("%d templates, %v", len(list), err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, standIns)
	live, err := s.temp()
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	dead := filepath.Join(dir, "tmp", "image-dead")
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	deadDir := filepath.Join(dir, "tmp", "debian-dead")
	if err := os.MkdirAll(filepath.Join(deadDir, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{dead, deadDir, live.Name()} {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, standIns)
	for _, name := range []string{dead, deadDir} {
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what a dead builder left is still there: %v", err)
		}
	}
	if _, err := os.Stat(live.Name()); err != nil {
		t.Errorf("the image of a living builder is gone: %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, standIns)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		spec Spec
		kind tartarus.Kind
	}{
		{"no source", t.Context(), Spec{Name: "a"}, tartarus.Invalid},
		{"bad name", t.Context(), Spec{Name: "../a", Recipe: "tiny"}, tartarus.Invalid},
		{"bad tag", t.Context(), Spec{Name: "a", Tags: []string{"/"}, Recipe: "tiny"}, tartarus.Invalid},
		{"too large", t.Context(), Spec{Name: "a", Recipe: "tiny", Limits: erofs.Options{MaxBytes: 10_000}}, tartarus.TooLarge},
		{"ended", ended, Spec{Name: "a", Recipe: "tiny"}, tartarus.Internal},
	} {
		if _, err := s.Build(c.ctx, c.spec, nil); !tartarus.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := os.WriteFile(s.indexPath(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("damaged records: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*", "image*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSources builds from every kind of source that needs no network.
func TestSources(t *testing.T) {
	s := open(t, t.TempDir(), standIns)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("from a folder"), 0o644); err != nil {
		t.Fatal(err)
	}
	tpl, err := s.Build(t.Context(), Spec{Name: "team/folder", Dir: dir, Tags: []string{"v1"}, Env: map[string]string{"A": "1"}, User: "root", VCPU: 4,
		StartCmd: "serve", ReadyCmd: "true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if contents(t, tpl.RootFS, "hello") != "from a folder" || tpl.WorkDir != "/root" || tpl.VCPU != 4 || tpl.Env["A"] != "1" || tpl.StartCmd != "serve" {
		t.Errorf("%+v", tpl)
	}

	saved := filepath.Join(t.TempDir(), "saved.tar")
	config, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"A=image", "B=image"}, User: "1000:1000", WorkingDir: "/srv/", Cmd: []string{"run"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(saved, name.MustParseReference("app:v1"), config); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "app", Archive: saved, Env: map[string]string{"B": "caller"}}
	tpl, err = s.Build(t.Context(), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if tpl.Env["A"] != "image" || tpl.Env["B"] != "caller" || tpl.User != "1000" || tpl.WorkDir != "/srv" || !slices.Equal(tpl.Cmd, []string{"run"}) {
		t.Errorf("%+v", tpl)
	}
	if again, err := s.Build(t.Context(), spec, nil); err != nil || again.Build != tpl.Build {
		t.Errorf("the same image was built again: %v", err)
	}
	spec.Env = nil
	if again, err := s.Build(t.Context(), spec, nil); err != nil || again.Build == tpl.Build || again.Env["B"] != "image" {
		t.Errorf("another environment was not built: %+v, %v", again, err)
	}
	spec.Force = true
	forced, err := s.Build(t.Context(), spec, nil)
	if err != nil || forced.Build == tpl.Build {
		t.Errorf("force did not build: %v", err)
	}

	tarred, err := s.Build(t.Context(), Spec{Name: "tarred", Tar: saved}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(contents(t, tarred.RootFS, "manifest.json"), "app:v1") {
		t.Error("the archive was not unpacked")
	}
	for _, bad := range []Spec{{Name: "x", Tar: "/nosuch"}, {Name: "x", Dir: "/nosuch"}, {Name: "x", Archive: "/nosuch"}, {Name: "x", Dir: dir, Tar: saved}} {
		if _, err := s.Build(t.Context(), bad, nil); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
