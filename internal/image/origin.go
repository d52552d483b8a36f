package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/debian"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci"
	"github.com/tartarus-sandbox/tartarus/internal/image/recipes"
	"github.com/tartarus-sandbox/tartarus/internal/image/source"
	"github.com/tartarus-sandbox/tartarus/internal/image/tiny"
)

// origin is what fills an image. An empty key says that it must always be built.
type origin struct {
	recipe string // for people
	key    string // over all that decides the content
	// fill writes the tree and gives what the source knows about running it.
	fill func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error)
	// signedBy are ids of keys that signed it.
	signedBy []string
	// runs holds the recipe's start and ready commands, which callers may override.
	runs Template
}

// Recipes are the names that Spec.Recipe takes.
func Recipes() []string {
	return []string{"base", "code-interpreter", "code-interpreter-v1", "mcp-gateway", "tiny"}
}

// origin finds out what a spec asks for, without building anything.
func (s *Store) origin(ctx context.Context, spec Spec) (origin, error) {
	given := 0
	for _, field := range []string{spec.Recipe, spec.OCI, spec.Layout, spec.Archive, spec.Dir, spec.Tar} {
		if field != "" {
			given++
		}
	}
	if given != 1 {
		return origin{}, tartarus.Errorf(tartarus.Invalid, "template %s needs one source and has %d", spec.Name, given)
	}
	if spec.Signed && (spec.OCI == "" || len(spec.Keys) == 0) {
		return origin{}, tartarus.Errorf(tartarus.Invalid, "a signature can be asked for of an image from a registry only, and with at least one key to look for")
	}
	switch {
	case spec.OCI != "":
		return fromRegistry(ctx, spec)
	case spec.Layout != "":
		img, err := oci.Layout(spec.Layout)
		return container("layout:"+spec.Layout, img, err)
	case spec.Archive != "":
		img, err := oci.Archive(spec.Archive)
		return container("archive:"+spec.Archive, img, err)
	case spec.Dir != "":
		return origin{recipe: "dir:" + spec.Dir, fill: func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error) {
			return Template{}, source.AddDir(ctx, w, spec.Dir, func(n int64) {
				progress(Progress{Stage: "read folder", Done: n, Message: fmt.Sprintf("%d files", n)})
			})
		}}, nil
	case spec.Tar != "":
		return origin{recipe: "tar:" + spec.Tar, fill: func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error) {
			return Template{}, addTarFile(ctx, w, spec.Tar, progress)
		}}, nil
	}
	return s.recipe(spec)
}

func (s *Store) recipe(spec Spec) (origin, error) {
	switch name := spec.Recipe; name {
	case "tiny":
		digest, err := s.programs.TinyDigest()
		if err != nil {
			return origin{}, err
		}
		return origin{
			recipe: name,
			key:    digestText(name, tiny.Version, digest),
			fill: func(_ context.Context, w *erofs.Writer, _ func(Progress)) (Template, error) {
				program, err := s.programs.Tiny()
				if err != nil {
					return Template{}, err
				}
				return Template{}, tiny.Add(w, program)
			},
		}, nil
	case "base":
		return s.debian(spec, nil)
	case "code-interpreter", "code-interpreter-v1": // the second is the name that SDKs ask for
		o, err := s.debian(spec, recipes.CodeInterpreterWithout, recipes.CodeInterpreterPackages...)
		if err != nil {
			return origin{}, err
		}
		o.runs = Template{StartCmd: recipes.CodeInterpreterStart, ReadyCmd: recipes.CodeInterpreterReady}
		return o.with(recipes.CodeInterpreter, recipes.AddCodeInterpreter), nil
	case "mcp-gateway":
		o, err := s.debian(spec, nil)
		if err != nil {
			return origin{}, err
		}
		return o.with(recipes.MCPGateway, recipes.AddMCPGateway), nil
	}
	return origin{}, tartarus.Errorf(tartarus.NotFound, "there is no recipe %q", spec.Recipe)
}

// with is o with a program of ours besides its packages.
func (o origin) with(program string, add func(*erofs.Writer) error) origin {
	o.key = digestText(o.key, program)
	packages := o.fill
	o.fill = func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error) {
		t, err := packages(ctx, w, progress)
		return t, errors.Join(err, add(w))
	}
	return o
}

// debian is an image of Debian packages: those of base, those of a recipe, and those the caller wants besides.
func (s *Store) debian(spec Spec, without []string, packages ...string) (origin, error) {
	r, err := debian.Plan(slices.Concat(debian.Base, packages, spec.Packages)...)
	if err != nil {
		return origin{}, err
	}
	r.Without(without...)
	return origin{
		recipe: spec.Recipe,
		key:    digestText(r.Key()),
		fill: func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error) {
			err := r.AddTo(ctx, w, filepath.Join(s.dir, "tmp"), func(stage string, done, total int64, message string) {
				progress(Progress{Stage: stage, Done: done, Total: total, Message: message})
			})
			return Template{Env: map[string]string{"LANG": "C.UTF-8"}}, err
		},
	}, nil
}

// is reports whether a template with the same content also comes from the same place: policies ask where from, and who signed it.
func (o origin) is(t Template) bool {
	return t.Recipe == o.recipe && slices.Equal(t.SignedBy, o.signedBy)
}

// fromRegistry is a container image with its signatures.
func fromRegistry(ctx context.Context, spec Spec) (origin, error) {
	img, err := oci.Remote(ctx, spec.OCI)
	o, err := container("oci:"+spec.OCI, img, err)
	if err != nil || len(spec.Keys) == 0 {
		return o, err
	}
	signed, err := img.Signed(ctx, spec.Keys)
	if err != nil {
		return o, fmt.Errorf("look for signatures of image %s: %w", spec.OCI, err)
	}
	if spec.Signed && len(signed.By) == 0 {
		return o, &tartarus.Error{Kind: tartarus.Denied, Code: "not_signed", Message: "image " + spec.OCI + " is not signed: " + signed.Why}
	}
	o.signedBy = signed.By
	return o, nil
}

func container(recipe string, img *oci.Image, err error) (origin, error) {
	if err != nil {
		return origin{}, err
	}
	return origin{
		recipe: recipe,
		key:    digestText("container", img.Digest),
		fill: func(ctx context.Context, w *erofs.Writer, progress func(Progress)) (Template, error) {
			err := img.AddTo(ctx, w, func(n, of int) {
				progress(Progress{Stage: "layers", Done: int64(n), Total: int64(of), Message: fmt.Sprintf("layer %d of %d", n+1, of)})
			})
			return Template{Env: img.Config.Env, User: img.Config.User, WorkDir: img.Config.WorkDir, Cmd: img.Config.Cmd}, err
		},
	}, nil
}

func addTarFile(ctx context.Context, w *erofs.Writer, name string, progress func(Progress)) error {
	f, err := os.Open(name)
	if err != nil {
		return &tartarus.Error{Kind: tartarus.Invalid, Message: strings.TrimPrefix(err.Error(), "open "), Err: err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	r, err := source.Reader(ctx, &countingReader{f: f, total: info.Size(), progress: progress})
	if err != nil {
		return err
	}
	defer r.Close()
	return source.AddTar(w, r)
}

// countingReader reports how far a file is read, at every 16 MiB.
type countingReader struct {
	f              *os.File
	n, told, total int64
	progress       func(Progress)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	if c.n += int64(n); c.n-c.told >= 16<<20 {
		c.told = c.n
		c.progress(Progress{Stage: "read archive", Done: c.n, Total: c.total, Message: fmt.Sprintf("%d of %d MiB", c.n>>20, c.total>>20)})
	}
	return n, err
}
