package themis

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkRule is a thousand policies, all of them about the request.
func BenchmarkRule(b *testing.B) {
	m := &memory{}
	when := []string{
		`template.image != "" && !template.pinned`, `request.internet && !template.names.exists(n, n.startsWith("base"))`,
		`(now.getHours() >= 20 || now.getHours() < 6) && request.vcpu > 64`, `request.timeout > duration("24h") && tenant.labels[?"batch"].orValue("") != "yes"`,
		`size(request.secrets) > 0 && request.allEgress`, `request.metadata[?"owner"].orValue("") == ""`,
		`!(template.registry in ["", "docker.io", "ghcr.io"])`, `request.egressProxy != "" || size(request.nameServers) > 3`,
	}
	for i := range 1000 {
		name := fmt.Sprintf("p%d", i)
		m.put(name, 1, scoped(name, "global", when[i%len(when)], "deny"))
	}
	e, err := NewEngine(EngineConfig{Store: m})
	if err == nil {
		err = e.Load(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		in := Input{Now: time.Now(), Request: RequestInput{Action: "create", Metadata: map[string]string{"owner": "a"}, Internet: true}, Template: TemplateInput{Image: "x", Pinned: true, Names: []string{"base"}}}
		r, err := e.Rule(b.Context(), &in)
		if err != nil || len(r.Reasons) > 0 {
			b.Fatal(r, err)
		}
	}
}
