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
	if ref == "" {
		ref = t.fallback
	}
	if ref != "" {
		found, err := t.store.Resolve(ref)
		return forAPI(found), err
	}
	found, err := t.store.Resolve("base")
	if tartarus.Is(err, tartarus.NotFound) {
		found, err = t.store.Resolve("tiny")
	}
	return forAPI(found), err
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

func forAPI(t image.Template) olympus.Template {
	return olympus.Template{
		ID: t.ID, BuildID: t.Build, Names: []string{t.Name},
		VCPU: t.VCPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB, Public: true, CreatedAt: t.CreatedAt, UpdatedAt: t.CreatedAt,
	}
}

// Template implements hecatoncheir.Templates.
func (t *templates) Template(_ context.Context, id, build string) (hecatoncheir.Template, error) {
	all, err := t.store.List()
	if err != nil {
		return hecatoncheir.Template{}, err
	}
	i := slices.IndexFunc(all, func(one image.Template) bool {
		return one.ID == id && (one.Build == build || build == "" && slices.Contains(one.Tags, image.DefaultTag))
	})
	if i < 0 {
		return hecatoncheir.Template{}, tartarus.Errorf(tartarus.NotFound, "template %s has no build %s on this node", id, cmp.Or(build, image.DefaultTag))
	}
	grace, err := graceOf(all[i].Env)
	if err != nil {
		return hecatoncheir.Template{}, tartarus.Errorf(tartarus.Invalid, "template %s: %w", id, err)
	}
	return hecatoncheir.Template{
		Grace: grace, ID: id, RootFS: all[i].RootFS, Env: all[i].Env, User: all[i].User, Workdir: all[i].WorkDir,
		StartCmd: all[i].StartCmd, ReadyCmd: all[i].ReadyCmd,
	}, nil
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
