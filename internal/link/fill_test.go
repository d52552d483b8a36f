package link

import (
	"context"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// A node gets the values for the headers of its own sandboxes, and nothing else.
func TestFill(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", func(c *HubConfig) {
		c.Fill = func(_ context.Context, sb tartarus.Sandbox, value string) (string, error) {
			if value == "${e2b.secrets.gone}" {
				return "", tartarus.Errorf(tartarus.NotFound, "there is no secret gone")
			}
			return sb.Tenant + "'s " + value, nil
		}
	})
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	for id, node := range map[string]string{"i1": "n1", "i2": "n2"} {
		sb := sandbox(id, node)
		sb.Network.Transforms = map[string]map[string]string{"api.example": {"Authorization": "Bearer ${e2b.secrets.key}", "X": "${e2b.secrets.gone}"}}
		_, err := f.db.Registry().PutSandbox(t.Context(), sb)
		f.must(err)
	}
	got, err := m.Fill(t.Context(), "i1", "Bearer ${e2b.secrets.key}")
	f.must(err)
	if got != "acme's Bearer ${e2b.secrets.key}" {
		t.Errorf("got %q", got)
	}
	_, err = m.Fill(t.Context(), "i1", "${e2b.secrets.gone}")
	f.wantKind(err, tartarus.NotFound)
	_, err = m.Fill(t.Context(), "i1", "${e2b.secrets.key}") // no header of it says this
	f.wantKind(err, tartarus.Forbidden)
	_, err = m.Fill(t.Context(), "i2", "Bearer ${e2b.secrets.key}")
	f.wantKind(err, tartarus.Forbidden)
	_, err = m.Fill(t.Context(), "i3", "Bearer ${e2b.secrets.key}")
	f.wantKind(err, tartarus.NotFound)
}
