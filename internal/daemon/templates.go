package daemon

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/image"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// TemplatesDir is where, in the data folder, templates are kept.
const TemplatesDir = "templates"

// templates shows this machine's template store to the API and to the node agent, each in its own words.
type templates struct {
	store    *image.Store
	fallback string // what the empty reference means; empty is base when built, else tiny
}

func openTemplates(ctx context.Context, cfg Config) (*templates, error) {
	store, err := image.New(image.Config{Dir: filepath.Join(cfg.DataDir, TemplatesDir)})
	if err != nil {
		return nil, err
	}
	if _, err := store.EnsureTiny(ctx); err != nil {
		return nil, err
	}
	return &templates{store: store, fallback: cfg.DefaultTemplate}, nil
}

// Resolve implements olympus.Templates. All tenants share the templates of a machine.
func (t *templates) Resolve(_ context.Context, _, ref string) (olympus.Template, error) {
	var first error
	for _, one := range meant(ref, t.fallback) {
		found, err := t.store.Resolve(one)
		if err == nil || !tartarus.Is(err, tartarus.NotFound) {
			return forAPI(found), err
		}
		first = cmp.Or(first, err)
	}
	return olympus.Template{}, first
}

// meant are the references that ref may stand for, the likeliest first. fallback is what the empty one means.
func meant(ref, fallback string) []string {
	switch ref = cmp.Or(ref, fallback); ref {
	case "":
		return []string{"base", "tiny"}
	case "code-interpreter-v1": // what the SDKs ask for; it is built under the shorter name
		return []string{ref, "code-interpreter"}
	}
	return []string{ref}
}

// List implements olympus.Templates.
func (t *templates) List(context.Context, string) ([]olympus.Template, error) {
	all, err := t.store.List()
	out := make([]olympus.Template, 0, len(all))
	for _, one := range all {
		if slices.Contains(one.Tags, image.DefaultTag) {
			out = append(out, forAPI(one))
		}
	}
	return out, err
}

// Version implements olympus.Templates.
func (t *templates) Version(_ context.Context, id, build string) (olympus.Template, error) {
	found, err := t.version(id, build)
	if err != nil {
		return olympus.Template{}, err
	}
	return forAPI(found), nil
}

func forAPI(t image.Template) olympus.Template {
	return olympus.Template{
		ID: t.ID, BuildID: t.Build, Names: []string{t.Name},
		Digest: t.Digest, Recipe: t.Recipe, SignedBy: t.SignedBy,
		VCPU: t.VCPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB, Public: true, CreatedAt: t.CreatedAt, UpdatedAt: t.CreatedAt,
	}
}

// Template implements hecatoncheir.Templates.
func (t *templates) Template(_ context.Context, id, build string) (hecatoncheir.Template, error) {
	one, err := t.version(id, build)
	if tartarus.Is(err, tartarus.NotFound) {
		return hecatoncheir.Template{}, tartarus.Errorf(tartarus.NotFound, "template %s has no build %s on this node", id, cmp.Or(build, image.DefaultTag))
	}
	if err != nil {
		return hecatoncheir.Template{}, err
	}
	grace, err := graceOf(one.Env)
	if err != nil {
		return hecatoncheir.Template{}, tartarus.Errorf(tartarus.Invalid, "template %s: %w", id, err)
	}
	return hecatoncheir.Template{
		Grace: grace, ID: id, Build: one.Build, Digest: one.Digest, RootFS: one.RootFS, Env: one.Env, User: one.User, Workdir: one.WorkDir,
		StartCmd: one.StartCmd, ReadyCmd: one.ReadyCmd,
	}, nil
}

// version finds one version of a template: also one that has no tag any more, as long as something holds it. Without a build it is the current one.
func (t *templates) version(id, build string) (image.Template, error) {
	if build != "" {
		return t.store.Version(id, build)
	}
	return t.store.Resolve(id)
}

// graceVariable is how a template says how long its sandboxes have to end in good order: a variable that any builder can set.
const graceVariable = "TARTARUS_GRACE"

// graceOf reads it.
func graceOf(env map[string]string) (*time.Duration, error) {
	text, said := env[graceVariable]
	if !said {
		return nil, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "its variable %s=%.40q is no duration such as 10s or 1m", graceVariable, text)
	}
	return &d, nil
}
