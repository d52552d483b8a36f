package themis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/tartarus-sandbox/tartarus"
)

// Reason is why a policy refuses or quarantines.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Rule    string `json:"rule"`
	Policy  string `json:"policyVersion"` // name@version
}

// Ruling is what all policies in force say to a request.
type Ruling struct {
	Effect   Effect   `json:"effect,omitempty"` // the strictest; empty allows
	Reasons  []Reason `json:"reasons"`          // of every rule that is about the request, strictest first
	Revision string   `json:"revision"`         // of the policies that were in force
	Policies int      `json:"policies"`         // how many were asked
	Demand   Demand   `json:"demand,omitzero"`  // what it must run on, when it may run
}

// Verdict is the ruling in one word.
func (r Ruling) Verdict() string {
	if r.Effect == "" {
		return "allow"
	}
	return string(r.Effect)
}

// set is the policies in force at a time, by whom they are about.
type set struct {
	revision int64
	global   []*Compiled
	tenant   map[string][]*Compiled
	template map[string][]*Compiled
	all      map[string]*Compiled
}

// EngineConfig says where policies are kept.
type EngineConfig struct {
	Store Store
	// Every is how often the store is asked whether anything changed. Default 300 ms: a change counts on every replica within a second.
	Every time.Duration
	// File keeps what was in force last, for a start without the store. Empty keeps nothing.
	File string
	Log  *slog.Logger
}

// Engine has the policies of the store ready to run. While the store is away, the last good version of each stays in force.
type Engine struct {
	cfg  EngineConfig
	mu   sync.Mutex // of Load: what was read later is never replaced by what was read before
	now  atomic.Pointer[set]
	sick atomic.Bool // the trouble with the store was logged
}

// NewEngine makes an engine with what File has; Load or Run brings what the store has.
func NewEngine(cfg EngineConfig) (*Engine, error) {
	if cfg.Store == nil {
		return nil, errors.New("themis: a store is needed")
	}
	if cfg.Every <= 0 {
		cfg.Every = 300 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg}
	if cfg.File == "" {
		return e, nil
	}
	raw, err := os.ReadFile(cfg.File)
	if errors.Is(err, os.ErrNotExist) {
		return e, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	var kept kept
	if err := json.Unmarshal(raw, &kept); err != nil {
		return nil, tartarus.Errorf(tartarus.Corrupt, "read policies from %s: %w", cfg.File, err)
	}
	e.now.Store(e.build(kept.Documents, kept.Revision))
	return e, nil
}

// kept is what File has.
type kept struct {
	Revision  int64      `json:"revision"`
	Documents []Document `json:"documents"`
}

// Run takes up changes until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	for {
		if err := e.Load(ctx); err != nil && ctx.Err() == nil {
			if !e.sick.Swap(true) {
				e.cfg.Log.Warn("policies not read: the last ones stay in force", "error", err)
			}
		} else {
			e.sick.Store(false)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(e.cfg.Every):
		}
	}
}

// Load takes up what changed in the store since it was last looked at.
func (e *Engine) Load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	revision, err := e.cfg.Store.Revision(ctx)
	if err != nil {
		return err
	}
	if old := e.now.Load(); old != nil && old.revision == revision {
		return nil
	}
	// Documents that changed since the revision was read are seen again next time.
	docs, err := e.cfg.Store.List(ctx)
	if err != nil {
		return err
	}
	e.now.Store(e.build(docs, revision))
	if e.cfg.File == "" {
		return nil
	}
	raw, err := json.Marshal(kept{revision, docs})
	if err != nil {
		return fmt.Errorf("keep policies: %w", err)
	}
	tmp := e.cfg.File + ".new"
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err != nil {
		return fmt.Errorf("keep policies: %w", err)
	}
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("keep policies: %w", err)
	}
	return os.Rename(tmp, e.cfg.File)
}

// build compiles what changed and takes over what did not. A document that this build cannot read, from a newer one, leaves the version before it in
// force; where there was none, everything it may be about is denied.
func (e *Engine) build(docs []Document, revision int64) *set {
	old := e.now.Load()
	next := &set{revision: revision, tenant: map[string][]*Compiled{}, template: map[string][]*Compiled{}, all: map[string]*Compiled{}}
	for _, d := range docs {
		var c *Compiled
		if old != nil {
			c = old.all[d.Name]
		}
		if c == nil || c.Version != d.Version {
			fresh, err := Compile(d.Body, d.Version)
			switch {
			case err == nil:
				c = fresh
			case c != nil:
				e.cfg.Log.Error("policy not taken up: its last good version stays in force", "policy", d.Name, "version", d.Version, "inForce", c.Version, "error", err)
			default:
				e.cfg.Log.Error("policy cannot be read: everything is denied until it is mended or removed", "policy", d.Name, "version", d.Version, "error", err)
				c = unreadable(d, err)
			}
		}
		next.add(d.Name, c)
	}
	return next
}

func unreadable(d Document, err error) *Compiled {
	broken := &Compiled{Policy: Policy{Name: d.Name, Scope: Global}, Version: d.Version}
	broken.rules = []compiledRule{{Rule: Rule{Name: "unreadable", Effect: Deny, Code: "policy_unreadable", Message: "policy " + d.Name + " cannot be read: " + err.Error()}}}
	return broken
}

func (s *set) add(name string, c *Compiled) {
	s.all[name] = c
	switch c.Scope {
	case OfTenant:
		s.tenant[c.Tenant] = append(s.tenant[c.Tenant], c)
	case OfTemplate:
		s.template[c.Template] = append(s.template[c.Template], c)
	default:
		s.global = append(s.global, c)
	}
}

// Count is how many policies are in force.
func (e *Engine) Count() int {
	if s := e.now.Load(); s != nil {
		return len(s.all)
	}
	return 0
}

// Rule asks all policies that are about a request. While none were ever read, it is an error: nobody knows what is forbidden.
func (e *Engine) Rule(ctx context.Context, in *Input) (Ruling, error) {
	s := e.now.Load()
	if s == nil {
		return Ruling{}, tartarus.Errorf(tartarus.Unavailable, "the policies have not been read yet")
	}
	asked := s.about(in)
	out := Ruling{Reasons: []Reason{}, Revision: fmt.Sprint(s.revision), Policies: len(asked)}
	vars := newActivation(in)
	for _, c := range asked {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		out.Reasons = append(out.Reasons, c.ask(vars, &out)...)
	}
	sortReasons(out.Reasons, s.all)
	return out, nil
}

// about chooses the policies of a request: global ones, those of its tenant, those of its template by any of its names.
func (s *set) about(in *Input) []*Compiled {
	out := slices.Clip(s.global)
	out = append(out, s.tenant[in.Tenant.Name]...)
	if len(s.template) == 0 {
		return out
	}
	seen := map[string]bool{}
	for _, name := range append([]string{in.Template.ID}, in.Template.Names...) {
		if !seen[name] {
			seen[name] = true
			out = append(out, s.template[name]...)
		}
	}
	return out
}

// sortReasons puts what denies first, and keeps the order of scopes and rules otherwise.
func sortReasons(rs []Reason, all map[string]*Compiled) {
	denies := func(r Reason) bool {
		name, _, _ := strings.Cut(r.Policy, "@")
		c := all[name]
		if c == nil {
			return true
		}
		i := slices.IndexFunc(c.rules, func(q compiledRule) bool { return q.Name == r.Rule })
		return i < 0 || c.rules[i].Effect != Quarantine // what requires is a reason only where it cannot be had
	}
	slices.SortStableFunc(rs, func(a, b Reason) int {
		switch x, y := denies(a), denies(b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
}

// ask runs one policy. An expression that fails, by its cost or by what it meets, denies: what it would have said is not known.
func (c *Compiled) ask(vars *activation, said *Ruling) (reasons []Reason) {
	in := vars.Input
	add := func(e Effect, code, rule, message string) {
		if said.Effect != Deny {
			said.Effect = e
		}
		reasons = append(reasons, Reason{Code: code, Message: message, Rule: rule, Policy: c.Source()})
	}
	if in.FindHistory != nil && c.history {
		h, err := in.FindHistory()
		if err != nil {
			add(Deny, "history_unknown", "history", "what the tenant did before cannot be found out now")
			return reasons
		}
		in.History, in.FindHistory = h, nil
	}
	apply := func(r Rule) {
		if r.Effect != Require {
			add(r.Effect, r.Code, r.Name, r.Message)
		} else if why := said.Demand.require(r, c.Source()); why != "" {
			add(Deny, "runtimes_differ", r.Name, why)
		}
	}
	for _, r := range c.rules {
		if r.Effect == Require && in.Request.Action == "network" {
			continue // it runs on what it runs on
		}
		if len(r.On) > 0 && !slices.Contains(r.On, in.Request.Action) {
			continue
		}
		if r.when == nil {
			apply(r.Rule)
			continue
		}
		v, err := run(r.when, vars)
		yes, ok := v.(bool)
		switch {
		case err != nil || !ok:
			add(Deny, "policy_failed", r.Name, fmt.Sprintf("rule %s of policy %s cannot be decided: %v", r.Name, c.Name, err))
		case yes:
			apply(r.Rule)
		}
	}
	if c.score == nil {
		return reasons
	}
	v, err := run(c.score, vars)
	score, ok := v.(float64)
	switch {
	case err != nil || !ok:
		add(Deny, "policy_failed", "risk", fmt.Sprintf("the risk by policy %s cannot be told: %v", c.Name, err))
	case c.Risk.DenyAt > 0 && score >= c.Risk.DenyAt:
		add(Deny, "risk", "risk", fmt.Sprintf("the risk is %.4g, from %.4g on it is denied", score, c.Risk.DenyAt))
	case c.Risk.QuarantineAt > 0 && score >= c.Risk.QuarantineAt:
		add(Quarantine, "risk", "risk", fmt.Sprintf("the risk is %.4g, from %.4g on it is quarantined", score, c.Risk.QuarantineAt))
	}
	return reasons
}

func run(p cel.Program, vars *activation) (any, error) {
	v, _, err := p.Eval(vars)
	if err != nil {
		return nil, err
	}
	return v.Value(), nil
}

// Try asks one policy by itself, for tests of it.
func (c *Compiled) Try(in Input) Ruling {
	out := Ruling{Reasons: []Reason{}, Policies: 1}
	out.Reasons = append(out.Reasons, c.ask(newActivation(&in), &out)...)
	sortReasons(out.Reasons, map[string]*Compiled{c.Name: c})
	return out
}

// CaseResult is how a test of a policy went.
type CaseResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Want   string `json:"want"`
	Got    string `json:"got"`
	Ruling Ruling `json:"ruling"`
}

// RunTests runs a policy's own tests.
func (c *Compiled) RunTests() []CaseResult {
	out := []CaseResult{}
	for _, t := range c.Tests {
		in := t.Input
		if in.Request.Action == "" {
			in.Request.Action = "create"
		}
		r := c.Try(in)
		said := append(slices.Clip(r.Reasons), r.Demand.Reasons...)
		ok := r.Verdict() == t.Want && (t.Rule == "" || slices.ContainsFunc(said, func(q Reason) bool { return q.Rule == t.Rule })) &&
			(t.Tier == "" || t.Tier == string(r.Demand.Tier)) && (t.Runtime == "" || t.Runtime == r.Demand.Runtime)
		out = append(out, CaseResult{Name: t.Name, OK: ok, Want: t.Want, Got: r.Verdict(), Ruling: r})
	}
	return out
}
