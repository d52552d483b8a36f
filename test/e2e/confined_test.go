package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

const suspicious = `apiVersion: tartarus.io/v1
name: suspicious
scope: global
rules:
  - name: newcomers
    on: [create]
    when: '"suspicious" in request.metadata'
    effect: quarantine
    message: it calls itself suspicious
tests:
  - name: the others run
    input: {request: {metadata: {}}}
    want: allow
`

// What a policy lets in only in quarantine runs on nodes for that, reaches nothing and is reached by nothing but its agent; nodes for it run
// nothing else, and other nodes refuse it.
func TestConfinedByPolicy(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "suspicious.yaml")
	if err := os.WriteFile(policy, []byte(suspicious), 0o600); err != nil {
		t.Fatal(err)
	}
	marked := func(in *api.NewSandbox) { in.Metadata = map[string]string{"suspicious": "yes"} }
	apply := func(s *server) {
		t.Helper()
		if out, code := s.cli("policy", "apply", policy); code != 0 {
			t.Fatalf("apply: %d\n%s", code, out)
		}
		time.Sleep(time.Second) // within which it counts everywhere
	}
	s := newServer(t)
	apply(s)
	s.create()
	in := api.NewSandbox{TemplateID: "tiny"}
	marked(&in)
	if _, err := s.Create(t.Context(), in, client.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "may only run in quarantine") {
		t.Errorf("on a node that is not for it: %v", err)
	}

	q := newServer(t, "TARTARUS_LABELS=tartarus.io/typhon=true")
	apply(q)
	if _, err := q.Create(t.Context(), api.NewSandbox{TemplateID: "tiny"}, client.CreateOptions{}); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("an ordinary sandbox on a node for quarantine: %v", err)
	}
	sb := q.create(marked)
	info, err := q.Get(t.Context(), sb.SandboxID)
	if err != nil || info.Confined == "" || info.CPUCount != 1 || info.AllowInternetAccess {
		t.Fatalf("%+v, %v", info, err)
	}
	if got := q.sh(sb.SandboxID, "echo alive"); got != "alive" {
		t.Errorf("it says %q", got)
	}
	if err := q.SetNetwork(t.Context(), sb.SandboxID, api.NetworkConfig{AllowOut: []string{"203.0.113.0/24"}}); err != nil && !tartarus.Is(err, tartarus.Denied) {
		t.Errorf("a wish for network: %v", err)
	}
	q.sh(sb.SandboxID, "nc -w 1 203.0.113.7 80 && exit 1; true")
	out, code := q.cli("place", "--explain", "--metadata", "suspicious=yes")
	if code != 0 || !strings.Contains(out, "it calls itself suspicious") {
		t.Errorf("place: %d\n%s", code, out)
	}
	forks, err := q.Fork(t.Context(), sb.SandboxID, 1, time.Minute)
	if err != nil || len(forks) != 1 || forks[0].Sandbox == nil {
		t.Fatalf("fork: %+v, %v", forks, err)
	}
	if clone, err := q.Get(t.Context(), forks[0].Sandbox.SandboxID); err != nil || clone.Confined == "" {
		t.Errorf("its clone: %+v, %v", clone, err)
	}
}
