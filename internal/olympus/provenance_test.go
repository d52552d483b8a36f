package olympus_test

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

const signedOnly = `{"apiVersion":"tartarus.io/v1","name":"signed","scope":"global","rules":[{"name":"not-signed",
"when":"template.image != \"\" && !(\"release\" in template.signers)","effect":"deny","message":"nobody signed {image}"}],
"tests":[{"name":"none","input":{"template":{"image":"x"}},"want":"deny"}]}`

// Policies see where the version comes from that is asked for, and not the one that the template's name leads to; and a signer counts as long as
// its key is known.
func TestProvenanceOfTheVersion(t *testing.T) {
	signers := map[string]string{"key1": "release"}
	web := olympus.Template{ID: "webtemplateid0000000", Names: []string{"web"}}
	version := func(build, recipe string, by ...string) olympus.Template {
		v := web
		v.BuildID, v.Recipe, v.SignedBy = build, recipe, by
		return v
	}
	templates := olympustest.Templates{
		"web":      version("w1", "oci:web:1", "key1"),
		"web:old":  version("w0", "oci:web:0"),
		"web:else": version("w2", "oci:web:2", "key2"),
		"tiny":     {ID: "tinytemplateid000000", BuildID: "b2", Names: []string{"tiny"}},
	}
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Signers = signers
		c.Templates = templates
	})
	r.call("operator", "PUT", "/policies/signed", policyBody(t, signedOnly, 0)).want(200)
	create := func(ref string) answer {
		return r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"`+ref+`"}`)
	}
	sb := decode[api.Sandbox](create("web").want(201))
	create("tiny").want(201)
	create("web:old").want(403, "not-signed")
	create("web:else").want(403, "not-signed")

	// Where a sandbox's template came from that is gone nobody knows, so that it is not signed.
	narrow := func() answer { return r.call("developer", "PUT", "/sandboxes/"+sb.SandboxID+"/network", `{}`) }
	narrow().want(204)
	delete(templates, "web")
	eventually(t, "policies see that the template is gone", func() bool { return narrow().status == 403 })
}
