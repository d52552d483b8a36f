package fleet

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

const strangers = `apiVersion: tartarus.io/v1
name: strangers
scope: global
rules:
  - name: strangers
    on: [create]
    when: '"stranger" in request.metadata'
    effect: quarantine
    message: nobody knows it
`

// TestTyphonNode has one node for what is in quarantine and one for everything else, and puts a running sandbox of the latter into quarantine from afar.
func TestTyphonNode(t *testing.T) {
	w := newWorld(t)
	a := w.newReplica("a")
	w.newNode("n1", 1, true, a)
	w.newNode("n2", 2, false, a)
	a.ready("n1", "n2")
	defer a.killAll()
	policy := filepath.Join(w.dir, "strangers.yaml")
	must(t, os.WriteFile(policy, []byte(strangers), 0o600))
	a.must("policy", "apply", policy)
	time.Sleep(time.Second) // within which it counts everywhere

	life := int64(1800)
	stranger := api.NewSandbox{TemplateID: "tiny", Timeout: &life, Metadata: map[string]string{"stranger": "yes"}}
	if sb, err := a.Client.Create(t.Context(), stranger, client.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "quarantine") {
		t.Fatalf("without a node for it: %+v, %v", sb, err)
	}
	w.say("a policy lets strangers in only in quarantine, and no node is for that: refused")
	a.must("node", "label", "n2", tartarus.LabelTyphon+"=true")
	var confined *api.Sandbox
	w.eventually("the label counts", func() (err error) {
		confined, err = a.Client.Create(t.Context(), stranger, client.CreateOptions{})
		return err
	})
	if confined.Node != "n2" {
		t.Fatalf("a stranger runs on %s", confined.Node)
	}
	must(t, a.echo(confined.SandboxID, "confined"))
	var plain *api.Sandbox
	for range 8 {
		sb, err := a.create()
		must(t, err)
		if sb.Node != "n1" {
			t.Fatalf("an ordinary sandbox runs on %s, which is for quarantine", sb.Node)
		}
		plain = sb
	}
	w.say("n2 is labelled %s: the stranger runs there and executes commands; eight ordinary sandboxes all went to n1", tartarus.LabelTyphon)

	id := plain.SandboxID
	a.must("exec", id, "--", "sh", "-c", "echo '#!/bin/sh' >/tmp/dropped; chmod 4755 /tmp/dropped")
	a.must("quarantine", "add", id, "--reason", "it dropped a setuid program")
	if out, code := a.cli("exec", id, "--", "true"); code == 0 {
		t.Errorf("a command ran in quarantine: %s", out)
	}
	for _, verb := range []string{"show", "inspect"} {
		if out := a.must("quarantine", verb, id); !strings.Contains(out, "/tmp/dropped") {
			t.Errorf("quarantine %s: %s", verb, out)
		}
	}
	if out, code := a.cli("quarantine", "release", id, "--reason", "I changed my mind"); code == 0 {
		t.Errorf("released by the one who put it there: %s", out)
	}
	second := a.must("key", "create", "--tenant", "default", "--role", "operator", "--json")
	_, rest, _ := strings.Cut(second, `"key": "`)
	secret, _, _ := strings.Cut(rest, `"`)
	other, err := client.New(client.Config{URL: a.url(), APIKey: secret})
	must(t, err)
	defer other.Close()
	if err := other.Release(t.Context(), id, "it was a test"); err != nil {
		t.Fatalf("release by a second operator: %v", err)
	}
	must(t, a.echo(id, "back"))
	w.say("a sandbox on n1 was put into quarantine through the session, looked at, kept from its own operator's release, released by a second one, and runs on")
}
