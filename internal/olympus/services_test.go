package olympus_test

import (
	"strings"
	"testing"
)

// What a sandbox's services were told is described again, without what is secret.
func TestServicesAreDescribed(t *testing.T) {
	r := newRig(t, nil)
	sb := r.create(`{"templateID":"base","iam":{"tokens":{"aws":{"audience":"sts","tokenType":"JWT-SVID"}}},"network":{"dnsServers":["9.9.9.9"],
		"egressProxy":{"address":"proxy.example.org:1080","username":"me","password":"pass-word","tls":{"enabled":true,"serverName":"Other.example.org"}},
		"rules":{"Api.Example.org":[{"transform":{"headers":{"Authorization":"Bearer raw-value"}}}]}}}`)
	held := r.Node.Held()[0]
	if got := held.Network.Transforms["api.example.org"]["Authorization"]; got != "Bearer raw-value" || held.Network.Proxy.Password != "pass-word" || held.Identity["aws"].Audience != "sts" {
		t.Fatalf("the node was told %+v", held.Network.Transforms)
	}
	a := r.call("developer", "GET", "/sandboxes/"+sb.SandboxID, "").want(200, "raw-value", "9.9.9.9", "proxy.example.org:1080", `"serverName":"other.example.org"`)
	if strings.Contains(a.body, "pass-word") {
		t.Errorf("the password came back: %s", a.body)
	}
	if a := r.call("reader", "GET", "/sandboxes/"+sb.SandboxID, "").want(200, "[redacted]"); strings.Contains(a.body, "raw-value") {
		t.Errorf("a reader sees the header: %s", a.body)
	}
	r.call("developer", "PUT", "/sandboxes/"+sb.SandboxID+"/network", `{}`).want(204)
	if n := r.Node.Held()[0].Network; n.Proxy != nil || n.DNS != nil || n.Transforms != nil {
		t.Errorf("an update without them left %+v", n)
	}
}

func TestKeySetIsPublished(t *testing.T) {
	r := newRig(t, nil)
	set := decode[struct{ Keys []map[string]string }](r.call("", "GET", "/.well-known/jwks.json", "").want(200))
	if len(set.Keys) != 1 || set.Keys[0]["kty"] != "EC" || set.Keys[0]["d"] != "" {
		t.Fatalf("got %v", set)
	}
	r.call("", "GET", "/.well-known/openid-configuration", "").want(200, "https://api.sb.test:8443/.well-known/jwks.json")
}
