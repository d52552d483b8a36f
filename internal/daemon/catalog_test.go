package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
)

// A fleet's control plane knows of a template what policies ask: where it comes from and who signed that, of the very version.
func TestFleetKnowsProvenance(t *testing.T) {
	ctx := t.Context()
	db, err := sqlite.Open(context.WithoutCancel(ctx), sqlite.Default(filepath.Join(t.TempDir(), "db")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	version := func(build string, by []string, tags ...string) hades.Template {
		return hades.Template{ID: "web", Build: build, Name: "web", Tags: tags, Recipe: "oci:web:" + build, Digest: "sha256:" + build, SignedBy: by, CreatedAt: time.Now()}
	}
	if err := db.Registry().PutNode(ctx, hades.Node{
		Name:      "one",
		Templates: []hades.Template{version("new", []string{"key1"}, "default"), version("old", nil, "v1"), version("held", nil)},
	}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := db.Registry().PutNode(ctx, hades.Node{Name: "gone", Templates: []hades.Template{version("lost", nil, "v0")}}, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	a := advertised{roster: hades.NewRoster(db.Registry())}
	for ref, build := range map[string]string{"web": "new", "web:v1": "old"} {
		got, err := a.Resolve(ctx, "acme", ref)
		if err != nil || got.BuildID != build || got.Recipe != "oci:web:"+build || got.Digest != "sha256:"+build {
			t.Errorf("%s is %+v, %v", ref, got, err)
		}
	}
	for build, by := range map[string][]string{"new": {"key1"}, "old": nil, "held": nil} {
		got, err := a.Version(ctx, "web", build)
		if err != nil || got.BuildID != build || got.Recipe != "oci:web:"+build || !slices.Equal(got.SignedBy, by) {
			t.Errorf("version %s is %+v, %v", build, got, err)
		}
	}
	if _, err := a.Version(ctx, "web", "lost"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("a version of a node that is gone: %v", err)
	}
	if got, err := a.Version(ctx, "web", ""); err != nil || got.BuildID != "new" {
		t.Errorf("the current version is %+v, %v", got, err)
	}
	if all, err := a.List(ctx, "acme"); err != nil || len(all) != 1 || all[0].BuildID != "new" {
		t.Errorf("listed %+v, %v", all, err)
	}
}
