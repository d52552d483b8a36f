package olympus_test

import (
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// The document is held against the server by a tool that makes requests of all kinds from it: no answer may be a server error, or other than
// described. It takes what the tool calls st, from PyPI's schemathesis.
func TestSchemathesis(t *testing.T) {
	st, err := exec.LookPath("st")
	if err != nil {
		t.Skip("schemathesis (st) is not in the PATH")
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.Rate = -1 })
	srv := httptest.NewServer(r.Server.Handler())
	defer srv.Close()
	document, err := filepath.Abs("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), st, "run", document, "--url", srv.URL, "--no-color",
		"--header", "X-API-KEY: "+r.Keys["admin"], "--max-examples", "25", "--seed", "1", "--continue-on-failure",
		"--checks", strings.Join([]string{
			"not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
			"response_schema_conformance", "unsupported_method", "ignored_auth", "use_after_free", "negative_data_rejection",
		}, ","))
	cmd.Dir = t.TempDir() // it leaves a cache where it runs
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("%s", out)
	}
}
