// Package judges is the admission chain: what a caller asks for is first amended, then judged by everyone. It fails closed: a judge
// that panics or takes too long has said no, and every verdict is kept, whichever way the first one went.
package judges

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// Action is what the caller wants to do.
type Action string

// The actions that are judged.
const (
	Create   Action = "create"   // start a sandbox
	Network  Action = "network"  // change the egress rules of a running one
	Resume   Action = "resume"   // bring a paused one back
	Pause    Action = "pause"    // put a running one to sleep
	Snapshot Action = "snapshot" // keep a snapshot of a running one
)

// Request is a caller's wish. Amenders fill in what Spec leaves open; judges get a copy of their own.
type Request struct {
	Action Action
	Key    tenant.Key    // who asks
	Spec   tartarus.Spec // what it will be
	Tier   tartarus.Tier // weakest isolation that will do; empty is any

	Template     Template          // what it is made from
	TenantLabels map[string]string // of whose it will be
	Quota        tenant.Quota      // likewise
	Revision     int64             // of a sandbox that is there, in the registry
	KeptMB       int64             // what the tenant's snapshots have, of Snapshot
	Heat         themis.Heat       // how far a caller's hint may move the heat
	Now          time.Time         // zero is the time of judging
	Dry          bool              // only a question: nothing is taken of the quota
	// History finds out what the tenant did before, for policies that ask. Nil knows nothing.
	History func(ctx context.Context) (themis.HistoryInput, error)

	refused bool // a judge before this one said no
}

func (r Request) clone() Request {
	s := &r.Spec
	s.Metadata, s.Env = maps.Clone(s.Metadata), maps.Clone(s.Env)
	s.Network.Allow, s.Network.Deny = slices.Clone(s.Network.Allow), slices.Clone(s.Network.Deny)
	s.Network.HTTPSPorts, s.Network.DNS = slices.Clone(s.Network.HTTPSPorts), slices.Clone(s.Network.DNS)
	s.Volumes, s.Identity = slices.Clone(s.Volumes), maps.Clone(s.Identity)
	if p := s.Network.Proxy; p != nil {
		proxy := *p
		s.Network.Proxy = &proxy
	}
	s.Network.Transforms = maps.Clone(s.Network.Transforms)
	for domain, headers := range s.Network.Transforms {
		s.Network.Transforms[domain] = maps.Clone(headers)
	}
	return r
}

// Verdict is what one judge said.
type Verdict struct {
	Judge  string        `json:"judge"`
	Allow  bool          `json:"allow"`
	Kind   tartarus.Kind `json:"kind,omitempty"`   // of the refusal; empty is Denied
	Reason string        `json:"reason,omitempty"` // one sentence, needed with a refusal

	Quarantine bool          `json:"quarantine,omitempty"`    // it may run, but only apart from everything else
	Reasons    []Reason      `json:"reasons,omitempty"`       // one by one, where there are several
	Policy     string        `json:"policyVersion,omitempty"` // revision of the policies that were asked
	Demand     Demand        `json:"demand,omitzero"`         // what it must run on, when it may run
	RetryAfter time.Duration `json:"-"`                       // when a refused request may be let in; 0 when unknown
}

// causes are the verdict's reasons with its judge; one that gave none in parts has one.
func (v Verdict) causes() []tartarus.Cause {
	if len(v.Reasons) == 0 {
		return []tartarus.Cause{{Code: string(v.Kind), Message: v.Reason, Judge: v.Judge}}
	}
	out := make([]tartarus.Cause, len(v.Reasons))
	for i, r := range v.Reasons {
		out[i] = tartarus.Cause{Code: r.Code, Message: r.Message, Judge: v.Judge, Rule: r.Rule, Policy: r.Policy}
	}
	return out
}

// Demand is what an allowed request must run on. It raises what the request itself asks for, and never lowers it.
type Demand struct {
	Tier    tartarus.Tier `json:"tier,omitempty"`
	Runtime string        `json:"runtime,omitempty"`
	Reasons []Reason      `json:"reasons,omitempty"` // who demands it
}

// Reason is one of the causes of a verdict.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Rule    string `json:"rule,omitempty"`
	Policy  string `json:"policyVersion,omitempty"` // name@version
}

// Amender changes a request before it is judged. It does nothing where nothing is missing, and never widens what the caller asked for.
type Amender interface {
	Name() string
	Amend(r *Request)
}

// Judge allows or refuses a request, without changing it. It may be called concurrently and should return when ctx ends: it has
// lost its say by then.
type Judge interface {
	Name() string
	Judge(ctx context.Context, r Request) Verdict
}

// Prompt is a Judge that knows at once what it says of most requests.
type Prompt interface {
	// AtOnce is Judge where that neither waits for anything nor changes anything; known is false where it would.
	AtOnce(r Request) (v Verdict, known bool)
}

// Patient is a Judge that other requests may hold up, and that has a longer time than the others for it.
type Patient interface {
	Patience() time.Duration
}

// Config sets up the chain.
type Config struct {
	Limits Limits
	// Policies are what Rhadamanthus holds requests against. Nil asks none.
	Policies Policies
	// Ledger counts what tenants hold. Nil counts nothing.
	Ledger  Ledger
	Timeout time.Duration // of each judge; 0 is one second
}

// Chain is the amenders and judges in their order.
type Chain struct {
	amenders []Amender
	judges   []Judge
	timeout  time.Duration
	limits   Limits
	ledger   Ledger
}

// New makes the chain.
func New(cfg Config) (*Chain, error) {
	if err := cfg.Limits.Validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Second
	}
	minos := &Minos{limits: cfg.Limits}
	amenders := []Amender{
		minos,               // defaults
		&Ends{cfg.Policies}, // graces, and what is kept at an end
		&Heat{cfg.Policies}, // how far a hint reaches
	}
	judges := []Judge{
		minos,                       // static limits
		&Rhadamanthus{cfg.Policies}, // policies
		&Quotas{cfg.Ledger},         // last, because it takes what it grants
	}
	return &Chain{amenders: amenders, judges: judges, timeout: cfg.Timeout, limits: cfg.Limits, ledger: cfg.Ledger}, nil
}

// Outcome is how a request left the chain.
type Outcome struct {
	Request  Request // as amended
	Verdicts []Verdict
}

// Quarantine reports whether a judge let the request in only apart from everything else.
func (o Outcome) Quarantine() bool {
	return slices.ContainsFunc(o.Verdicts, func(v Verdict) bool { return v.Quarantine })
}

// applyDemands writes into the request what judges demand of what it runs on. That it does not contradict the request is for the judge to see to.
func (o *Outcome) applyDemands() {
	for _, v := range o.Verdicts {
		if t := v.Demand.Tier; t != "" && (o.Request.Tier == "" || t.AtLeast(o.Request.Tier)) {
			o.Request.Tier = t
		}
		if v.Demand.Runtime != "" {
			o.Request.Spec.Runtime = v.Demand.Runtime
		}
	}
}

// Demanded says who demands what of the node that takes the request; empty when nobody does.
func (o Outcome) Demanded() string {
	var said []string
	for _, v := range o.Verdicts {
		for _, q := range v.Demand.Reasons {
			said = append(said, fmt.Sprintf("policy %s, rule %s: %s", q.Policy, q.Rule, q.Message))
		}
	}
	return strings.Join(said, "; ")
}

// Try amends r and has it judged. A refusal is a *tartarus.Error with the kind of the first judge that refused and the reasons
// of all; the outcome is complete either way.
func (c *Chain) Try(ctx context.Context, r Request) (Outcome, error) {
	r = r.clone()
	for _, a := range c.amenders {
		if err := amend(a, &r); err != nil {
			return Outcome{Request: r, Verdicts: []Verdict{{Judge: a.Name(), Kind: tartarus.Denied, Reason: err.Error()}}}, err
		}
	}
	out := Outcome{Request: r, Verdicts: make([]Verdict, 0, len(c.judges))}
	var kind tartarus.Kind
	var reasons []string
	var causes []tartarus.Cause
	code, wait := "", time.Duration(0)
	for _, j := range c.judges {
		r.refused = kind != ""
		v := c.ask(ctx, j, r)
		out.Verdicts = append(out.Verdicts, v)
		if !v.Allow {
			if kind == "" {
				kind = v.Kind
				if len(v.Reasons) > 0 {
					code = v.Reasons[0].Code
				}
			}
			wait = max(wait, v.RetryAfter)
			reasons = append(reasons, v.Reason)
			causes = append(causes, v.causes()...)
		}
	}
	if kind == "" {
		out.applyDemands()
		return out, nil
	}
	c.Undo(ctx, r) // a judge that did not answer in time may have taken something all the same
	return out, &tartarus.Error{Kind: kind, Code: code, Message: strings.Join(reasons, "; "), RetryAfter: wait, Causes: causes}
}

// Undo lets go of what a request took that was allowed and came to nothing. It does not wait.
func (c *Chain) Undo(ctx context.Context, r Request) {
	if c.ledger != nil && !r.Quota.Unbounded() && r.Spec.ID != "" {
		c.ledger.Doubt(ctx, r.Spec.Tenant, r.Spec.ID)
	}
}

func amend(a Amender, r *Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = tartarus.Errorf(tartarus.Denied, "%s failed while it completed the request: %v", a.Name(), p)
		}
	}()
	a.Amend(r)
	return nil
}

// ask gets one verdict.
func (c *Chain) ask(ctx context.Context, j Judge, r Request) Verdict {
	v, known := atOnce(j, r)
	if !known {
		v = c.await(ctx, j, r)
	}
	v.Judge = j.Name()
	if !v.Allow && v.Kind == "" {
		v.Kind = tartarus.Denied
	}
	if !v.Allow && v.Reason == "" {
		v.Reason = j.Name() + " refused and gave no reason"
	}
	return v
}

func atOnce(j Judge, r Request) (v Verdict, known bool) {
	p, ok := j.(Prompt)
	if !ok {
		return v, false
	}
	defer func() {
		if said := recover(); said != nil {
			v, known = panicked(j, said), true
		}
	}()
	return p.AtOnce(r)
}

func panicked(j Judge, said any) Verdict {
	return Verdict{Reason: fmt.Sprintf("%s failed: %v", j.Name(), said)}
}

// await gets a verdict within the time. The judge runs beside its asker, so that one that hangs costs its own goroutine and the
// request, and nothing else.
func (c *Chain) await(ctx context.Context, j Judge, r Request) Verdict {
	limit := c.timeout
	if p, ok := j.(Patient); ok {
		limit = max(limit, p.Patience())
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r = r.clone()
	said := make(chan Verdict, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				said <- panicked(j, p)
			}
		}()
		said <- j.Judge(ctx, r)
	}()
	select {
	case v := <-said:
		return v
	case <-ctx.Done():
		return Verdict{Reason: j.Name() + " did not answer in time"}
	}
}

// Limits are the static bounds that Minos holds sandboxes to.
func (c *Chain) Limits() Limits { return c.limits }
