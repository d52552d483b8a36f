package image

import (
	"cmp"
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
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/embedded"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci"
	"github.com/tartarus-sandbox/tartarus/internal/image/rootfs"
)

// formatVersion is part of every key: a new one makes all images anew.
const formatVersion = "1"

// Programs gives the programs that images carry, and their SHA-256 in hexadecimal digits.
type Programs interface {
	Guest() (program []byte, err error)
	GuestDigest() (string, error)
	Tiny() (program []byte, err error)
	TinyDigest() (string, error)
}

type embeddedPrograms struct{}

func (embeddedPrograms) Guest() ([]byte, error)       { return embedded.Guest() }
func (embeddedPrograms) GuestDigest() (string, error) { return embedded.GuestDigest() }
func (embeddedPrograms) Tiny() ([]byte, error)        { return embedded.Tiny() }
func (embeddedPrograms) TinyDigest() (string, error)  { return embedded.TinyDigest() }

// Progress is one report of a running build.
type Progress struct {
	Stage   string // what is being done: "packages", "write image", ...
	Done    int64  // of Total, in the stage's own unit; both 0 where there is nothing to count
	Total   int64
	Message string // one line for people
}

// Spec says what to build. Exactly one source is set.
type Spec struct {
	Name string
	Tags []string // none means the default tag

	Recipe  string // one of Recipes
	OCI     string // reference of an image in a registry
	Layout  string // folder in the OCI image layout
	Archive string // file written by docker save
	Dir     string // folder that is the root filesystem
	Tar     string // file: tar, or tar compressed by gzip or zstd

	// Keys are those whose signatures of a container image are looked for. Signed refuses an image that none of them signed.
	Keys   []oci.Key
	Signed bool

	// Packages are Debian packages besides those of the recipe base or code-interpreter.
	Packages []string

	Env      map[string]string // added to the source's
	User     string            // instead of the source's
	WorkDir  string
	StartCmd string
	ReadyCmd string
	VCPU     int
	MemoryMB int64
	DiskMB   int64

	// Force builds even when an equal template is there.
	Force bool
	// Limits bound what the source may hold; the zero value means the defaults of erofs.Options.
	Limits erofs.Options
}

// Build makes a template, or finds that an equal one is there. When only the guest agent differs, the image is copied
// with the new one. When ctx ends, nothing of the build is left. Progress may be nil; it is called from
// one goroutine at a time and should return at once.
func (s *Store) Build(ctx context.Context, spec Spec, progress func(Progress)) (Template, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	if !ValidName(spec.Name) {
		return Template{}, tartarus.Errorf(tartarus.Invalid, "%.80q is no template name: [namespace/]name of a-z, 0-9, - and _", spec.Name)
	}
	src, err := s.origin(ctx, spec)
	if err != nil {
		return Template{}, err
	}
	agent, err := s.programs.GuestDigest()
	if err != nil {
		return Template{}, err
	}
	if src.key != "" {
		src.key = spec.key(src.key)
	}
	if t, ok := s.ready(spec, src, agent); ok {
		progress(Progress{Stage: "done", Message: spec.Name + " is up to date"})
		return t, nil
	}
	unlock, err := s.lock(ctx, "build-"+spec.Name)
	if err != nil {
		return Template{}, err
	}
	defer unlock()
	if t, ok := s.ready(spec, src, agent); ok { // another process made it while this one waited
		progress(Progress{Stage: "done", Message: spec.Name + " is up to date"})
		return t, nil
	}
	t, err := s.again(ctx, spec, src, agent)
	if tartarus.Is(err, tartarus.NotFound) {
		t, err = s.make(ctx, spec, src, agent, progress)
	}
	if err != nil {
		return Template{}, fmt.Errorf("build template %s: %w", spec.Name, err)
	}
	progress(Progress{Stage: "done", Message: fmt.Sprintf("%s is ready, %d MiB", t.Name, t.Size>>20)})
	return t, nil
}

// EnsureTiny prepares the template "tiny", which needs nothing from outside, or finds it prepared.
func (s *Store) EnsureTiny(ctx context.Context) (Template, error) {
	return s.Build(ctx, Spec{Name: "tiny", Recipe: "tiny"}, nil)
}

// key adds what the caller decides about a template to the source's key.
func (spec *Spec) key(source string) string {
	return digestText(formatVersion, runtime.GOARCH, source, fmt.Sprint(spec.Env), spec.User, spec.WorkDir, spec.StartCmd, spec.ReadyCmd,
		fmt.Sprint(spec.VCPU, spec.MemoryMB, spec.DiskMB))
}

func digestText(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ready finds a template that a build would only make again.
func (s *Store) ready(spec Spec, src origin, agent string) (Template, bool) {
	if spec.Force || src.key == "" {
		return Template{}, false
	}
	for _, tag := range spec.tags() {
		t, err := s.Resolve(spec.Name + ":" + tag)
		if err != nil || t.Key != src.key || !src.is(t) || t.AgentDigest != agent || !intact(t) {
			return Template{}, false
		}
	}
	t, err := s.Resolve(spec.Name + ":" + spec.tags()[0])
	return t, err == nil
}

func (spec *Spec) tags() []string {
	if len(spec.Tags) == 0 {
		return []string{DefaultTag}
	}
	return spec.Tags
}

// intact is the cheap check: the file is there and as long as it was. Verify reads it all.
func intact(t Template) bool {
	info, err := os.Stat(t.RootFS)
	return err == nil && info.Mode().IsRegular() && info.Size() == t.Size
}

func (s *Store) make(ctx context.Context, spec Spec, src origin, agent string, progress func(Progress)) (Template, error) {
	guest, err := s.programs.Guest()
	if err != nil {
		return Template{}, err
	}
	f, err := s.temp()
	if err != nil {
		return Template{}, err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	defer f.Close()
	w := erofs.NewWriter(f, spec.Limits)

	var t Template
	if old, ok := s.reusable(spec, src.key); ok {
		progress(Progress{Stage: "copy image", Message: "only the guest agent is new"})
		t = old
		err = copyImage(w, old.RootFS)
	} else {
		t, err = src.fill(ctx, w, progress)
	}
	if err != nil {
		return Template{}, err
	}
	if err := rootfs.Finish(w, guest); err != nil {
		return Template{}, err
	}
	progress(Progress{Stage: "write image", Message: "writing the image"})
	stats, err := w.Close()
	if err != nil {
		return Template{}, err
	}
	if err := ctx.Err(); err != nil {
		return Template{}, context.Cause(ctx)
	}
	t.Name, t.Tags, t.Key, t.Recipe, t.AgentDigest = spec.Name, spec.tags(), src.key, src.recipe, agent
	t.SignedBy, t.ID, t.Build, t.CreatedAt = src.signedBy, "", "", time.Time{}
	t.DroppedXattrs += stats.DroppedXattrs
	t.StartCmd, t.ReadyCmd = src.runs.StartCmd, src.runs.ReadyCmd
	spec.apply(&t)
	// Each takes a second for a few hundred megabytes, the one on the disk, the other on a processor.
	synced := make(chan error, 1)
	go func() { synced <- errors.Join(f.Chmod(0o444), f.Sync()) }()
	t.Digest, t.Size, err = digestFile(f.Name())
	if err := errors.Join(err, <-synced); err != nil {
		return Template{}, fmt.Errorf("store image: %w", err)
	}
	t.RootFS = filepath.Join(s.dir, "images", strings.TrimPrefix(t.Digest, "sha256:")+".erofs")
	return s.put(ctx, t, func() error {
		if err := os.Rename(f.Name(), t.RootFS); err != nil {
			return err
		}
		return syncDir(filepath.Dir(t.RootFS))
	})
}

// again gives an image that is there already another tag or name; tartarus.NotFound when none is the same.
func (s *Store) again(ctx context.Context, spec Spec, src origin, agent string) (Template, error) {
	t, ok := s.reusable(spec, src.key)
	if !ok || t.AgentDigest != agent {
		return Template{}, tartarus.Errorf(tartarus.NotFound, "no such image yet")
	}
	if t.Name == spec.Name && len(t.Tags) > 0 && src.is(t) {
		return s.Tag(ctx, spec.Name+":"+t.Tags[0], spec.tags()...)
	}
	t.Name, t.Tags, t.Recipe, t.SignedBy, t.ID, t.Build, t.CreatedAt = spec.Name, spec.tags(), src.recipe, src.signedBy, "", "", time.Time{}
	return s.Put(ctx, t)
}

// reusable finds an image that differs from the wanted one in nothing but the agent.
func (s *Store) reusable(spec Spec, key string) (Template, bool) {
	if spec.Force || key == "" {
		return Template{}, false
	}
	x, err := s.load()
	if err != nil {
		return Template{}, false
	}
	same := slices.DeleteFunc(x.Templates, func(t Template) bool { return t.Key != key || !intact(t) })
	if len(same) == 0 {
		return Template{}, false
	}
	// Best one whose agent is the newest, and of the wanted name.
	return slices.MaxFunc(same, func(a, b Template) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(btoi(a.Name == spec.Name), btoi(b.Name == spec.Name)))
	}), true
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func copyImage(w *erofs.Writer, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer f.Close()
	return erofs.CopyImage(w, f, func(name string) bool { return "/"+name == tartarus.AgentPath })
}

// apply puts what the caller said over what the source said.
func (spec *Spec) apply(t *Template) {
	env := map[string]string{}
	for name, value := range t.Env {
		env[name] = value
	}
	for name, value := range spec.Env {
		env[name] = value
	}
	if t.Env = env; len(env) == 0 {
		t.Env = nil
	}
	t.User = cmp.Or(spec.User, t.User, rootfs.User)
	home := rootfs.Home
	if t.User == "root" || t.User == "0" {
		home = "/root"
	}
	t.WorkDir = cmp.Or(spec.WorkDir, strings.TrimSuffix(t.WorkDir, "/"), home)
	t.StartCmd, t.ReadyCmd = cmp.Or(spec.StartCmd, t.StartCmd), cmp.Or(spec.ReadyCmd, t.ReadyCmd)
	t.VCPU, t.MemoryMB, t.DiskMB = cmp.Or(spec.VCPU, t.VCPU), cmp.Or(spec.MemoryMB, t.MemoryMB), cmp.Or(spec.DiskMB, t.DiskMB)
}
