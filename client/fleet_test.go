package client_test

import (
	"context"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// joins is a fleet that anybody may join.
type joins struct{}

func (joins) Token(string, time.Duration) (string, time.Time, error) { return "", time.Time{}, nil }
func (joins) Ban(context.Context, string) error                      { return nil }

func TestRemoveNode(t *testing.T) {
	c, s := connect(t, "admin", func(cfg *olympus.Config, _ *olympustest.Node) { cfg.Joins = joins{} })
	paused := tartarus.Sandbox{Spec: tartarus.Spec{ID: "ipaused", Tenant: "default"}, Phase: tartarus.Paused, Node: "one", CreatedAt: time.Now()}
	if _, err := s.DB.Registry().PutSandbox(t.Context(), paused); err != nil {
		t.Fatal(err)
	}
	if err := c.Cordon(t.Context(), "one", true); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNode(t.Context(), "one", false); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("with a paused sandbox: %v", err)
	}
	if err := c.RemoveNode(t.Context(), "one", true); err != nil {
		t.Errorf("which may be lost: %v", err)
	}
	if _, err := c.Node(t.Context(), "one"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("removed, it is there: %v", err)
	}
}
