package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci/ocitest"
)

const signedPolicy = `apiVersion: tartarus.io/v1
name: signed
scope: global
rules:
  - {name: not-signed, when: 'template.image != "" && !("release" in template.signers)', effect: deny, message: nobody signed it}
`

// A template of an image that a known key signed may be used, and one of an image that only a stranger signed may not.
func TestSignedTemplates(t *testing.T) {
	registry, release, stranger := ocitest.New(t), ocitest.NewKey(t), ocitest.NewKey(t)
	s := newServer(t, "TARTARUS_SIGNATURE_KEYS=release="+release.File(), "DOCKER_CONFIG="+t.TempDir())
	policy := filepath.Join(t.TempDir(), "signed.yaml")
	if err := os.WriteFile(policy, []byte(signedPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := s.cli("policy", "apply", policy); code != 0 {
		t.Fatalf("apply: %s", out)
	}
	build := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), s.bin, append([]string{"template", "build", "app", "--from", registry.Host + "/app:v1"}, args...)...)
		cmd.Env = append(s.env(), "TARTARUS_URL=") // on the machine that keeps them
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	create := func() error {
		_, err := s.Create(t.Context(), api.NewSandbox{TemplateID: "app"}, client.CreateOptions{})
		return err
	}
	digest := registry.Push("app:v1", "hello")
	registry.Store("app", digest, stranger.Sign(ocitest.Text(digest)))
	if out, err := build("--signed"); err == nil || !strings.Contains(out, "none by a key that is known here") {
		t.Fatalf("an image that a stranger signed: %v\n%s", err, out)
	}
	if out, err := build(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := create(); !tartarus.Is(err, tartarus.Denied) && !tartarus.Is(err, tartarus.Forbidden) || !strings.Contains(err.Error(), "nobody signed it") {
		t.Fatalf("a template that a stranger signed: %v", err)
	}
	registry.Store("app", digest, stranger.Sign(ocitest.Text(digest)), release.Sign(ocitest.Text(digest)))
	if out, err := build("--signed", "--json"); err != nil || !strings.Contains(out, `"signedBy"`) {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, time.Minute, create) // a name leads to the old version for a second
}
