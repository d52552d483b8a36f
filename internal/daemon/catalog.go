package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/image"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// fleetTemplates shows a machine's templates under ids that are the same on all machines of a fleet: a template's follows from its name and
// a version's from its image, so that two nodes with the same image have the same version though each made it itself.
type fleetTemplates struct{ local *templates }

// fleetID is an id of 20 lower-case letters and digits made from text.
func fleetID(use, text string) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	sum := sha256.Sum256([]byte(use + " " + text))
	out := make([]byte, 20)
	for i := range out {
		out[i] = alphabet[int(sum[i])%len(alphabet)] // not quite even, which an id made from a digest need not be
	}
	return string(out)
}

func templateID(t image.Template) string { return fleetID("template", t.Name) }
func buildID(t image.Template) string    { return fleetID("build", t.Digest) }

// Template implements hecatoncheir.Templates.
func (f fleetTemplates) Template(ctx context.Context, id, build string) (hecatoncheir.Template, error) {
	all, err := f.local.store.All()
	if err != nil {
		return hecatoncheir.Template{}, err
	}
	for _, t := range all {
		if templateID(t) == id && (buildID(t) == build || build == "" && slices.Contains(t.Tags, image.DefaultTag)) {
			found, err := f.local.Template(ctx, t.ID, t.Build)
			found.ID = id
			return found, err
		}
	}
	return hecatoncheir.Template{}, tartarus.Errorf(tartarus.NotFound, "template %s has no build %s on this node", id, cmp.Or(build, image.DefaultTag))
}

// catalog is what the node tells the registry. A folder that cannot be read has nothing to offer.
func (f fleetTemplates) catalog() []hades.Template {
	all, err := f.local.store.All()
	out := make([]hades.Template, 0, len(all))
	if err != nil {
		return out
	}
	for _, t := range all {
		out = append(out, hades.Template{
			ID: templateID(t), Build: buildID(t), Name: t.Name, Tags: t.Tags, VCPU: t.VCPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB, CreatedAt: t.CreatedAt,
			Digest: t.Digest, Recipe: t.Recipe, SignedBy: t.SignedBy,
		})
	}
	return out
}

// advertised finds templates among those that live nodes have.
type advertised struct {
	roster   *hades.Roster
	fallback string // what the empty reference means; empty is base where a node has it, else tiny
}

// all lists what live nodes have, one version each however many nodes have it, the newest first.
func (a advertised) all(ctx context.Context, ask func(context.Context, time.Time) (hades.List, error)) ([]hades.Template, error) {
	now := time.Now()
	list, err := ask(ctx, now)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []hades.Template
	for _, n := range list.Nodes {
		if !n.Live(now) {
			continue
		}
		for _, t := range n.Templates {
			if !seen[t.ID+t.Build] {
				seen[t.ID+t.Build] = true
				out = append(out, t)
			}
		}
	}
	slices.SortStableFunc(out, func(x, y hades.Template) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), y.CreatedAt.Compare(x.CreatedAt), cmp.Compare(x.Build, y.Build))
	})
	return out, nil
}

// first finds the first template that is meant. That there is none is only said of a list that is new.
func (a advertised) first(ctx context.Context, meant func([]hades.Template) int) (t hades.Template, found bool, err error) {
	for _, ask := range []func(context.Context, time.Time) (hades.List, error){a.roster.List, a.roster.Fresh} {
		all, err := a.all(ctx, ask)
		if err != nil {
			return t, false, err
		}
		if i := meant(all); i >= 0 {
			return all[i], true, nil
		}
	}
	return t, false, nil
}

// Resolve implements olympus.Templates.
func (a advertised) Resolve(ctx context.Context, _, ref string) (olympus.Template, error) {
	refs := meant(ref, a.fallback)
	names, tags := make([]string, len(refs)), make([]string, len(refs))
	for i, ref := range refs {
		var err error
		if names[i], tags[i], err = image.SplitRef(ref); err != nil {
			return olympus.Template{}, err
		}
	}
	t, found, err := a.first(ctx, func(all []hades.Template) int {
		for i := range refs { // the first reference that anything stands for
			if at := slices.IndexFunc(all, func(t hades.Template) bool {
				return (t.Name == names[i] || t.ID == names[i]) && slices.Contains(t.Tags, tags[i])
			}); at >= 0 {
				return at
			}
		}
		return -1
	})
	if err == nil && !found {
		err = tartarus.Errorf(tartarus.NotFound, "no node has a template %q", strings.Join(refs, " or "))
	}
	return forFleet(t), err
}

// List implements olympus.Templates.
func (a advertised) List(ctx context.Context, _ string) ([]olympus.Template, error) {
	all, err := a.all(ctx, a.roster.List)
	out := make([]olympus.Template, 0, len(all))
	for _, t := range all {
		if slices.Contains(t.Tags, image.DefaultTag) && !slices.ContainsFunc(out, func(o olympus.Template) bool { return o.ID == t.ID }) {
			out = append(out, forFleet(t))
		}
	}
	return out, err
}

// Version implements olympus.Templates.
func (a advertised) Version(ctx context.Context, id, build string) (olympus.Template, error) {
	if build == "" {
		return a.Resolve(ctx, "", id)
	}
	t, found, err := a.first(ctx, func(all []hades.Template) int {
		return slices.IndexFunc(all, func(t hades.Template) bool { return t.ID == id && t.Build == build })
	})
	if err == nil && !found {
		err = tartarus.Errorf(tartarus.NotFound, "no node has the version %s of template %s", build, id)
	}
	return forFleet(t), err
}

func forFleet(t hades.Template) olympus.Template {
	return olympus.Template{
		ID: t.ID, BuildID: t.Build, Names: []string{t.Name}, VCPU: t.VCPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB,
		Digest: t.Digest, Recipe: t.Recipe, SignedBy: t.SignedBy, Public: true, CreatedAt: t.CreatedAt, UpdatedAt: t.CreatedAt,
	}
}
