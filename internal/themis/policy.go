package themis

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"gopkg.in/yaml.v3"

	"github.com/tartarus-sandbox/tartarus"
)

// APIVersion is the schema of policy documents that this build reads.
const APIVersion = "tartarus.io/v1"

// Scope is whose requests a policy is about.
type Scope string

// The scopes. All policies of all three are in force together, and the strictest verdict stands: a narrower policy can refuse more than a
// wider one, and never permit what that refuses. An exception is written into the rule that it is one from.
const (
	Global     Scope = "global"
	OfTenant   Scope = "tenant"
	OfTemplate Scope = "template"
)

// Effect is what a rule does to a request it is about.
type Effect string

// The effects, strictest first.
const (
	Deny       Effect = "deny"
	Quarantine Effect = "quarantine"
	// Require lets the request in, and demands of what runs it: no node has that, no sandbox.
	Require Effect = "require"
)

// Policy is a document as it is written.
type Policy struct {
	APIVersion  string `yaml:"apiVersion" json:"apiVersion"`
	Name        string `yaml:"name" json:"name"`
	Description string `yaml:"description,omitempty" json:"description,omitempty"`
	Scope       Scope  `yaml:"scope" json:"scope"`
	Tenant      string `yaml:"tenant,omitempty" json:"tenant,omitempty"`     // of scope tenant
	Template    string `yaml:"template,omitempty" json:"template,omitempty"` // of scope template: a name or an id
	Rules       []Rule `yaml:"rules,omitempty" json:"rules,omitempty"`
	Risk        *Risk  `yaml:"risk,omitempty" json:"risk,omitempty"`
	Ends        *Ends  `yaml:"ends,omitempty" json:"ends,omitempty"`
	Heat        *Heat  `yaml:"heat,omitempty" json:"heat,omitempty"`
	Tests       []Case `yaml:"tests,omitempty" json:"tests,omitempty"`
}

// Rule refuses or quarantines what its condition is true for.
type Rule struct {
	Name    string   `yaml:"name" json:"name"`
	On      []string `yaml:"on,omitempty" json:"on,omitempty"` // actions: create, network, resume; all when left out
	When    string   `yaml:"when" json:"when"`                 // CEL, true or false
	Effect  Effect   `yaml:"effect" json:"effect"`
	Tier    string   `yaml:"tier,omitempty" json:"tier,omitempty"`       // of effect require: the weakest isolation that will do
	Runtime string   `yaml:"runtime,omitempty" json:"runtime,omitempty"` // of effect require: the only runtime that will do
	Code    string   `yaml:"code,omitempty" json:"code,omitempty"`       // for programs; the rule's name when left out
	Message string   `yaml:"message" json:"message"`                     // for people: what to do instead
}

// Risk weighs a request, and quarantines or denies it from a weight on.
type Risk struct {
	Score        string  `yaml:"score" json:"score"` // CEL, a double
	QuarantineAt float64 `yaml:"quarantineAt,omitempty" json:"quarantineAt,omitempty"`
	DenyAt       float64 `yaml:"denyAt,omitempty" json:"denyAt,omitempty"`
}

// Case is a request with the verdict that the policy, by itself, must give.
type Case struct {
	Name  string `yaml:"name" json:"name"`
	Input Input  `yaml:"input" json:"input"`
	Want  string `yaml:"want" json:"want"`                     // allow, deny or quarantine
	Rule  string `yaml:"rule,omitempty" json:"rule,omitempty"` // the rule that decides
	// Tier and Runtime are what must be required; not looked at when empty.
	Tier    string `yaml:"tier,omitempty" json:"tier,omitempty"`
	Runtime string `yaml:"runtime,omitempty" json:"runtime,omitempty"`
}

// Bounds of a document.
const (
	maxDocument   = 256 << 10
	maxRules      = 256
	maxExpression = 4096
	// maxCost bounds the work of one expression, in CEL's units: a comparison is about one. A list of a thousand addresses is gone through
	// in a few thousand.
	maxCost = 20_000
)

var policyName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?$`)

// Compiled is a policy whose expressions are ready to run.
type Compiled struct {
	Policy
	Version int64
	rules   []compiledRule
	score   cel.Program
	history bool // its expressions ask what the tenant did before
}

type compiledRule struct {
	Rule
	when cel.Program
}

// Parse reads a document, strictly: what it has no meaning for is an error with its line.
func Parse(body []byte) (p Policy, err error) {
	if len(body) > maxDocument {
		return p, tartarus.Errorf(tartarus.TooLarge, "the policy is over %d bytes", maxDocument)
	}
	d := yaml.NewDecoder(bytes.NewReader(body))
	d.KnownFields(true)
	if err := d.Decode(&p); err != nil {
		if errors.Is(err, io.EOF) {
			return p, tartarus.Errorf(tartarus.Invalid, "the policy is empty")
		}
		return p, tartarus.Errorf(tartarus.Invalid, "the policy cannot be read: %w", err)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return p, tartarus.Errorf(tartarus.Invalid, "the policy is followed by another document")
	}
	return p, p.validate()
}

func (p Policy) validate() error {
	bad := func(format string, args ...any) error {
		return tartarus.Errorf(tartarus.Invalid, "policy %.128s: "+format, append([]any{p.Name}, args...)...)
	}
	switch {
	case p.APIVersion != APIVersion:
		return bad("apiVersion is %.40q, this build reads %s", p.APIVersion, APIVersion)
	case !policyName.MatchString(p.Name):
		return bad("name must be 1 to 128 lower-case letters, digits, dots and dashes")
	case p.Scope != Global && p.Scope != OfTenant && p.Scope != OfTemplate:
		return bad("scope %.20q is none of global, tenant, template", p.Scope)
	case (p.Scope == OfTenant) != (p.Tenant != ""):
		return bad("tenant goes with scope tenant")
	case (p.Scope == OfTemplate) != (p.Template != ""):
		return bad("template goes with scope template")
	case len(p.Rules) > maxRules:
		return bad("it has %d rules, at most %d are read", len(p.Rules), maxRules)
	case len(p.Rules) == 0 && p.Risk == nil && p.Ends == nil && p.Heat == nil:
		return bad("it has no rules")
	}
	if err := cmp.Or(p.Ends.validate(), p.Heat.validate()); err != nil {
		return bad("%w", err)
	}
	names := map[string]bool{"risk": true}
	for i, r := range p.Rules {
		switch {
		case !policyName.MatchString(r.Name) || names[r.Name]:
			return bad("rule %d: name %.40q is missing, taken, or not of lower-case letters, digits, dots and dashes", i+1, r.Name)
		case r.Effect != Deny && r.Effect != Quarantine && r.Effect != Require:
			return bad("rule %s: effect %.20q is none of deny, quarantine, require", r.Name, r.Effect)
		case r.Message == "" || len(r.Message) > 512 || len(r.Code) > 64:
			return bad("rule %s: a message of up to 512 bytes is needed, and a code has up to 64", r.Name)
		}
		if err := r.validDemand(); err != nil {
			return bad("rule %s: %w", r.Name, err)
		}
		for _, on := range r.On {
			if !slices.Contains([]string{"create", "network", "resume"}, on) {
				return bad("rule %s: %.20q is none of the actions create, network, resume", r.Name, on)
			}
		}
		names[r.Name] = true
	}
	if p.Risk != nil && p.Risk.QuarantineAt <= 0 && p.Risk.DenyAt <= 0 {
		return bad("risk: quarantineAt or denyAt is needed, above 0")
	}
	for i, c := range p.Tests {
		if !slices.Contains([]string{"allow", "deny", "quarantine"}, c.Want) {
			return bad("test %d: want %.20q is none of allow, deny, quarantine", i+1, c.Want)
		}
	}
	return nil
}

// Compile makes a document ready to run. Errors of expressions say rule, line and column.
func Compile(body []byte, version int64) (*Compiled, error) {
	p, err := Parse(body)
	if err != nil {
		return nil, err
	}
	c := &Compiled{Policy: p, Version: version}
	for _, r := range p.Rules {
		program, err := c.expression(r.When, cel.BoolType)
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "policy %s: rule %s: when: %w", p.Name, r.Name, err)
		}
		if r.Code == "" {
			r.Code = r.Name
		}
		c.rules = append(c.rules, compiledRule{r, program})
	}
	if p.Risk != nil {
		if c.score, err = c.expression(p.Risk.Score, cel.DoubleType); err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "policy %s: risk: score: %w", p.Name, err)
		}
	}
	return c, nil
}

func (c *Compiled) expression(text string, want *cel.Type) (cel.Program, error) {
	if text == "" || len(text) > maxExpression {
		return nil, fmt.Errorf("an expression has 1 to %d bytes", maxExpression)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(text)
	if issues != nil && issues.Err() != nil {
		e := issues.Errors()[0]
		return nil, fmt.Errorf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, e.Message)
	}
	if !checked.OutputType().IsExactType(want) {
		return nil, fmt.Errorf("line 1, column 1: it gives %s, not %s", checked.OutputType(), want)
	}
	for _, ref := range checked.NativeRep().ReferenceMap() {
		c.history = c.history || strings.HasPrefix(ref.Name, "history.")
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if !short(checked) {
		options = append(options, cel.CostLimit(maxCost)) // to count the cost is half of it, for most expressions
	}
	return env.Program(checked, options...)
}

// quick begins the names of operations that are done once over what they are given, and make nothing longer than that.
var quick = []string{
	"logical_", "equals", "not_equals", "less_", "greater_", "in_", "size_", "starts_with_", "ends_with_", "contains_", "conditional", "index_",
	"timestamp_to_", "string_to_duration", "int64_to_double", "add_int64", "add_double", "subtract_", "multiply_", "divide_", "modulo_", "negate_",
	"optional_", "map_optindex_", "list_optindex_",
}

// short reports whether the length of an expression bounds its work: it has no loops, and nothing in it grows.
func short(a *cel.Ast) bool {
	loops := false
	ast.PreOrderVisit(a.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) { loops = loops || e.Kind() == ast.ComprehensionKind }))
	if loops {
		return false
	}
	for _, ref := range a.NativeRep().ReferenceMap() {
		for _, id := range ref.OverloadIDs {
			if !slices.ContainsFunc(quick, func(q string) bool { return strings.HasPrefix(id, q) }) {
				return false
			}
		}
	}
	return true
}

// Source names the version of a policy that a verdict came from.
func (c *Compiled) Source() string { return fmt.Sprintf("%s@%d", c.Name, c.Version) }
