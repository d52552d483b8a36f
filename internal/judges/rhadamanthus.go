package judges

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/identity"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Policies rule on requests; themis.Engine does.
type Policies interface {
	// Rule says what the policies in force say to a request. An error means that it is not known.
	Rule(ctx context.Context, in *themis.Input) (themis.Ruling, error)
}

// Template is what a sandbox is made from, as far as judges care.
type Template struct {
	ID      string
	Names   []string
	Digest  string   // of the file system
	Recipe  string   // what it was built from, such as oci:debian:12; RecipeUnknown when nobody can say
	Signers []string // names of the keys that signed that
}

// RecipeUnknown is the Recipe of a template that is gone. Policies see it as an image of which nothing good is known.
const RecipeUnknown = "oci:unknown/unknown"

// Rhadamanthus holds a request against the policies: where its image comes from, what it wants to reach, how strongly it must be kept apart.
type Rhadamanthus struct {
	policies Policies
}

// Name is rhadamanthus.
func (*Rhadamanthus) Name() string { return "rhadamanthus" }

// AtOnce implements Prompt: there is nothing that policies speak of, or there are none.
func (h *Rhadamanthus) AtOnce(r Request) (v Verdict, known bool) {
	v.Allow = h.policies == nil || r.Action != Create && r.Action != Network && r.Action != Resume
	return v, v.Allow
}

// Judge asks the policies.
func (h *Rhadamanthus) Judge(ctx context.Context, r Request) Verdict {
	if v, known := h.AtOnce(r); known {
		return v
	}
	ruling, err := h.policies.Rule(ctx, Input(ctx, r))
	if err != nil {
		return Verdict{Kind: tartarus.KindOf(err), Reason: "the policies cannot be asked: " + err.Error(), Reasons: []Reason{{Code: "policies_unknown", Message: err.Error()}}}
	}
	v := Verdict{Allow: ruling.Effect != themis.Deny, Quarantine: ruling.Effect == themis.Quarantine, Policy: ruling.Revision}
	var said []string
	for _, q := range ruling.Reasons {
		v.Reasons = append(v.Reasons, Reason{Code: q.Code, Message: q.Message, Rule: q.Rule, Policy: q.Policy})
		said = append(said, q.Message)
	}
	v.Reason = strings.Join(said, "; ")
	if v.Allow {
		v.demand(r, ruling.Demand)
	}
	if !v.Allow {
		v.Kind = tartarus.Denied
	}
	return v
}

// demand takes over what policies require, or refuses a request that asks for something else.
func (v *Verdict) demand(r Request, d themis.Demand) {
	for _, q := range d.Reasons {
		v.Demand.Reasons = append(v.Demand.Reasons, Reason{Code: q.Code, Message: q.Message, Rule: q.Rule, Policy: q.Policy})
	}
	v.Demand.Tier, v.Demand.Runtime = d.Tier, d.Runtime
	if asked := r.Spec.Runtime; d.Runtime != "" && asked != "" && asked != "auto" && asked != d.Runtime {
		v.Allow, v.Reasons = false, v.Demand.Reasons
		v.Reason = "runtime " + asked + " was asked for, and policies require runtime " + d.Runtime
	}
}

// Input is a request as expressions see it.
func Input(ctx context.Context, r Request) *themis.Input {
	in := facts(r)
	if r.History != nil {
		in.FindHistory = func() (themis.HistoryInput, error) { return r.History(ctx) }
	}
	return in
}

// facts is a request without its history.
func facts(r Request) *themis.Input {
	s := r.Spec
	in := &themis.Input{
		Now: r.Now.UTC(),
		Request: themis.RequestInput{
			Action: string(r.Action), VCPU: int64(s.Resources.VCPU), MemoryMB: s.Resources.MemoryMB, DiskMB: s.Resources.DiskMB, Timeout: s.Timeout,
			Runtime: s.Runtime, Tier: string(r.Tier), Metadata: s.Metadata, EnvNames: slices.Sorted(maps.Keys(s.Env)),
			Internet: s.Network.Internet, Allow: s.Network.Allow, Deny: s.Network.Deny,
			AllEgress:     s.Network.Internet && len(s.Network.Deny) == 0,
			PublicTraffic: s.Network.PublicTraffic, AutoPause: s.Lifecycle.PauseOnTimeout,
		},
		Tenant:   themis.TenantInput{Name: s.Tenant, Labels: r.TenantLabels},
		Template: templateInput(r.Template),
		Key:      themis.KeyInput{ID: r.Key.ID, Name: r.Key.Name, Role: string(r.Key.Role)},
	}
	addServices(&in.Request, s)
	if in.Now.IsZero() {
		in.Now = time.Now().UTC()
	}
	return in
}

// addServices tells what of the tenant's goes into the sandbox, and what of the sandbox's goes past its rules by services of the host. Values of headers
// and passwords stay out: expressions end up in audit logs.
func addServices(in *themis.RequestInput, s tartarus.Spec) {
	in.NameServers = s.Network.DNS
	if s.Network.Proxy != nil {
		in.EgressProxy = s.Network.Proxy.Address
	}
	for domain, headers := range s.Network.Transforms {
		in.HeaderDomains = append(in.HeaderDomains, domain)
		for _, value := range headers {
			in.Secrets = append(in.Secrets, identity.Secrets(value)...)
		}
	}
	for _, t := range s.Identity {
		in.Tokens = append(in.Tokens, t.Audience)
	}
	for _, v := range s.Volumes {
		in.Volumes = append(in.Volumes, v.Name)
	}
	for _, list := range []*[]string{&in.HeaderDomains, &in.Secrets, &in.Tokens} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
}

func templateInput(t Template) themis.TemplateInput {
	in := themis.TemplateInput{ID: t.ID, Names: t.Names, Digest: t.Digest, Signed: len(t.Signers) > 0, Signers: t.Signers}
	if t.Recipe == RecipeUnknown {
		in.Image, in.Registry = "unknown", "unknown"
	} else if image, ok := strings.CutPrefix(t.Recipe, "oci:"); ok {
		in.Image, in.Registry = image, registryOf(image)
		in.Pinned = strings.Contains(image, "@sha256:")
	}
	return in
}

// registryOf is the host of an image's reference: what stands before the first slash, if it can be a host, else the registry that is meant
// when none is named.
func registryOf(image string) string {
	host, _, ok := strings.Cut(image, "/")
	if ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		return host
	}
	return "docker.io"
}
