package olympus

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/recent"
)

// Templates finds what sandboxes are made from. All methods may be called concurrently.
type Templates interface {
	// Resolve finds a template that the tenant may use by id, name, name:tag or namespace/name. The empty reference is the server's
	// default template. Unknown, not ready and another's private one are all tartarus.NotFound.
	Resolve(ctx context.Context, tenant, ref string) (Template, error)

	// Version returns a version by the ids of its template and build: also one that no name leads to any more, as long as it is kept. An
	// empty build is the current one, none is tartarus.NotFound.
	Version(ctx context.Context, id, build string) (Template, error)

	// List returns all templates that the tenant may use, by name.
	List(ctx context.Context, tenant string) ([]Template, error)
}

// Template is what the API needs to know of one. Zero resources are left to the limits' defaults.
type Template struct {
	ID        string
	BuildID   string
	Names     []string // the first is shown as alias
	VCPU      int
	MemoryMB  int64
	DiskMB    int64
	Digest    string   // of its file system; empty where it is not known
	Recipe    string   // what it was built from, such as oci:debian:12
	SignedBy  []string // ids of keys that signed what it was built from
	Public    bool
	CreatedAt time.Time
	UpdatedAt time.Time
}

// templateTTL is how long a name may lead to an older build after a newer one is ready. Names that are not found are not remembered.
const templateTTL = time.Second

type templateCache struct {
	source Templates
	known  *recent.Cache[templateKey, Template]
}

type templateKey struct{ tenant, ref, build string }

func newTemplateCache(source Templates) *templateCache {
	return &templateCache{source: source, known: recent.New[templateKey, Template](1024, templateTTL)}
}

func (c *templateCache) resolve(ctx context.Context, tenant, ref string, now time.Time) (Template, error) {
	return c.find(templateKey{tenant: tenant, ref: ref}, now, func() (Template, error) { return c.source.Resolve(ctx, tenant, ref) })
}

// version finds the one version that a sandbox is made from.
func (c *templateCache) version(ctx context.Context, id, build string, now time.Time) (Template, error) {
	return c.find(templateKey{ref: id, build: build}, now, func() (Template, error) { return c.source.Version(ctx, id, build) })
}

func (c *templateCache) find(k templateKey, now time.Time, ask func() (Template, error)) (Template, error) {
	if t, ok := c.known.Get(k, now); ok {
		return t, nil
	}
	t, err := ask()
	if err != nil {
		return Template{}, err
	}
	c.known.Put(k, t, now)
	return t, nil
}
